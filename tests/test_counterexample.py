"""A falsified check becomes a file that shows the bug anywhere, and one defect becomes one finding."""

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import torch.distributed as dist
from hypothesis.errors import UnsatisfiedAssumption

from verified_losses.properties.ask.cli import main
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.examples import Example, Step
from verified_losses.properties.laws import Falsified, Place, laws
from verified_losses.properties.laws.communication import compare_with_single
from verified_losses.properties.laws.hygiene import same_bits
from verified_losses.properties.names import Features, Held
from verified_losses.properties.reference import Reference
from verified_losses.properties.show import counterexample
from verified_losses.properties.show.replay import replay
from verified_losses.properties.standalone.acts import Outcome
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import Check, Finding, checks, falsify, verify
from verified_losses.properties.verify.fingerprints import fingerprint
from verified_losses.properties.verify.grouping import group
from verified_losses.properties.verify.plan import inspection
from verified_losses.properties.worlds import RankState, WorldError, specs
from verified_losses.properties.worlds.simulated import SimulatedWorld, SimulationError
from verified_losses.properties.worlds.specs import parse

from .children import LIMIT_SECONDS
from .defects.index import DEFECTS
from .defects.index import RIGHT as RIGHT_VARIANTS

LAWS = {law.name: law for law in laws()}
ROOT = Path(__file__).parents[1]
CERTIFIED = [(contract, subject.target) for contract, subject in reversed(SHIPPED.values())]
RIGHT = dict([*((right.contract, right.subject.target) for right in reversed(RIGHT_VARIANTS)), *CERTIFIED])
"""An implementation of each contract: the first that is shipped, else the first right variant."""


EXAMPLES = 100


def failing(check: Check, example: Example, error: Exception | None) -> Finding:
    """Return a falsified check."""
    reason = f"{type(error).__name__}: {error}"
    return Finding(check, 0, "falsified", reason=reason, smallest=example, error=error)


def failure(check: Check, example: Example) -> Exception | None:
    """Return what a case makes a check raise."""
    try:
        falsify(check, example)
    except UnsatisfiedAssumption:
        raise
    except Exception as error:
        return error
    return None


def called_in_order(name: str, contract: str, law: str, world: str) -> Finding:
    """Return the finding of a defect that is called with two tensors, whatever it names them."""
    options = () if contract == "cross_entropy" else (("local_loss", True), ("gather_with_grad", True))
    planned = checks(
        {name: (contract, Subject(f"tests.defects.cosine:{name}", options=options))}, parse(world)
    )
    (check,) = [one for one in planned if one.law.name == law]
    return verify(check, EXAMPLES)


def planted(target: str, law: str, world: str | None = None) -> Finding:
    """Return the finding of a planted defect."""
    (defect,) = [one for one in DEFECTS if target in (one.name, one.id)]
    planned = checks({defect.name: (defect.contract, defect.subject)}, parse(world or defect.world))
    (check,) = [one for one in planned if one.law.name == law]
    return verify(check, EXAMPLES)


FLAGS = (("convention", "exact"), ("local_loss", True), ("gather_with_grad", True))


def stranger(file: Path, law: str, world_size: int, error: Exception) -> Finding:
    """Return a finding of a file's `Loss` as if it had been found with the plainest case."""
    (spec,) = parse(str(world_size))
    check = Check("Loss", contracts()["clip"], Subject(f"{file}:Loss"), LAWS[law], spec)
    return failing(check, Example(Case(rows=(1,) * world_size, options=FLAGS)), error)


def died(state: Literal["raised", "exited", "hung"], detail: str = "") -> WorldError:
    return WorldError("single", [RankState(0, state, detail)])


def holds(file: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a counterexample in this process, its ranks in a simulated world, and let it judge."""
    monkeypatch.setenv("VERIFIED_LOSSES_TARGET", target)
    monkeypatch.setattr(sys, "path", list(sys.path))
    program = runpy.run_path(str(file))
    loss = program["find_target"]()
    size = program["WORLD_SIZE"]
    if size == 1:
        seen = [program["act"](loss, 0)]
    else:
        seen = SimulatedWorld(size, copies=False).run(lambda rank, _: program["act"](loss, rank))
    verdict = program["judge"](loss, seen)
    assert verdict in (True, False)
    return bool(verdict)


def run(file: Path, folder: Path, target: str = "", path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a counterexample as a user does, from another folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VERIFIED"))}
    environment = {**kept, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    if target:
        environment["VERIFIED_LOSSES_TARGET"] = target
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, str(file)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


PARTS = [
    ("OnlyImageToText", "terms equal the oracle"),
    ("OnlyImageToText", "gradients equal the oracle"),
    ("IgnoresCotangent", "cotangents pass through"),
    ("NotTwiceDifferentiable", "twice differentiable"),
    ("ClampsScaleInPlace", "inputs unchanged"),
    ("RowsWithoutGaps", "terms equal the oracle"),
    ("ColumnsWithoutGaps", "terms equal the oracle"),
    ("TeacherCachedByAddress", "used equals fresh"),
    ("TurnsGradientsOn", "leaves no trace"),
    ("InferenceInHalf", "terms equal the oracle"),
    ("InferenceInPlace", "inputs unchanged"),
    ("CotangentScaledInPlace", "inputs unchanged"),
    ("cotangent_summed_in_place", "inputs unchanged"),
    ("CotangentNarrowed", "cotangents pass through"),
    ("IntegerZero", "outputs well formed"),
    ("TeacherLearns", "outputs well formed"),
    ("TeacherLearns", "gradients equal the oracle"),
    ("Noisy", "deterministic"),
    ("SlopeScaledInPlace", "deterministic"),
    ("NaNForPadding", "terms equal the oracle"),
    ("PaddingLeaks", "padding never matters"),
    ("siglip:BiasUnused", "terms equal the oracle"),
    ("GradientOnce", "mean over ranks equals single process"),
    ("MeanOfRankMeans", "mean over ranks equals single process"),
    ("own_slice", "cotangents pass through"),
    ("wrong_way", "terms equal the oracle"),
    ("once_differentiable", "second derivatives travel"),
    ("OneDirectionInEval", "eval equals train"),
    ("StaysInEval", "eval equals train"),
    ("LogitsBuffer", "two graphs at once"),
    ("TemperatureDetached", "owned parameters get gradients"),
    ("TemperatureNaN", "owned parameters get gradients"),
    ("SavesEveryTile", "takes no more memory than stated"),
    ("DetachedInFunc", "torch.func equals autograd"),
    ("MapsTheFirst", "scales may be mapped"),
    ("OfPlainData", "subclasses equal tensors"),
    ("half_sums", "terms equal the oracle"),
    ("weight_of_last_chunk", "gradients equal the oracle"),
]


IN_ORDER = [
    ("NoTemperature", "infonce", "terms equal the oracle", "1"),
    ("FirstOrderOnly", "infonce", "twice differentiable", "1"),
    ("OwnKeysOnly", "infonce", "gradients equal the oracle", "sim:2"),
    ("OwnKeysOnly", "infonce", "mean over ranks equals single process", "sim:2"),
    ("CountsItself", "ntxent", "terms equal the oracle", "1"),
    ("OneViewOnly", "ntxent", "gradients equal the oracle", "1"),
    ("CountsIgnored", "cross_entropy", "terms equal the oracle", "1"),
    ("CountsIgnored", "cross_entropy", "cotangents pass through", "1"),
    ("OverwritesLogits", "cross_entropy", "inputs unchanged", "1"),
]


@pytest.mark.parametrize(
    ("find", "arguments"),
    [(planted, part) for part in PARTS] + [(called_in_order, part) for part in IN_ORDER],
)
def test_file_judges_as_the_law_does(
    find: Callable[..., Finding],
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("verified_losses.properties.verify.certifier.SHRINK_SECONDS", 1.0)  # any case will do
    finding = find(*arguments)
    file = counterexample.write(finding, tmp_path)
    stated = "convention exact" if "convention" in finding.check.contract.values else ""
    assert f"({', '.join(filter(None, [finding.check.contract.name, stated]))})." in file.read_text()
    assert not holds(file, finding.check.subject.target, monkeypatch)
    shown = capsys.readouterr().out
    assert "expected" in shown
    assert "observed" in shown
    assert holds(file, RIGHT[finding.check.contract.name], monkeypatch)


@pytest.mark.parametrize(
    ("contract", "wrong", "law", "right", "shown"),
    [
        ("infonce", "DetachesTemperature", "gradients equal the oracle", "LearnedQueries",
         "infonce_loss(first, second, logit_scale, rank"),
        ("distill", "distilled_twice", "terms equal the oracle", "distilled_sum",
         "distill_loss("),
    ],
)  # fmt: skip
def test_file_of_a_form_that_is_found_judges_as_the_law_does(
    contract: str,
    wrong: str,
    law: str,
    right: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as here:
        here.setattr(specs.Worlds, "isolated", lambda self, inner, spec, patience=1.0: inner)
        here.setattr(specs.Worlds, "start", lambda self, spec, patience=1.0: None)
        subject, _ = inspection(ask(f"tests.wild:{wrong}", contract)[1], contract)
        planned = checks({wrong: (contract, subject)}, parse("1"))
        (check,) = [one for one in planned if one.law.name == law]
        file = counterexample.write(verify(check, 10), tmp_path)
    assert shown in file.read_text()
    assert not holds(file, subject.target, monkeypatch)
    assert holds(file, f"tests.wild:{right}", monkeypatch)


EXP: Held = (("logit_scale", "exp"),)


@pytest.mark.parametrize(
    ("contract", "features", "held", "wrong", "law", "right", "shown"),
    [
        ("clip", "normalized", (), "TakesRowsAsTheyAre", "terms equal the oracle", "NormalizesFirst",
         "image_features = [normalize(one) for one in image_features]"),
        ("clip", "normalized", (), "LengthDetached", "gradients equal the oracle", "DividesByLength",
         "text_features = [normalize(one) for one in text_features]"),
        ("clip", "unit", (), "LengthDetached", "cotangents pass through", "NormalizesTwice",
         "text_features = [normalize(normalize(one)) for one in text_features]"),
        ("clip", "", EXP, "SlopeOfScale", "gradients equal the oracle", "HoldsLogarithm",
         "logit_scale = [exp(one) for one in logit_scale]"),
        ("clip", "", (("logit_scale", "inverse"),), "TakesRowsAsTheyAre", "terms equal the oracle",
         "DividesByTemperature", "logit_scale = [inverse(one) for one in logit_scale]"),
        ("infonce", "raw", (), "InfoNCENormalizes", "terms equal the oracle", "InfoNCEOfDots", "False)"),
        ("infonce", "unit", (), "InfoNCEOfDots", "gradients equal the oracle", "InfoNCENormalizesAgain",
         "first = [normalize(one) for one in first]"),
    ],
)  # fmt: skip
def test_file_of_a_form_judges_as_the_law_does(
    contract: str,
    features: Features,
    held: Held,
    wrong: str,
    law: str,
    right: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = Subject(f"tests.defects.forms:{wrong}", features=features, held=held)
    (check,) = [one for one in checks({wrong: (contract, subject)}, parse("1")) if one.law.name == law]
    file = counterexample.write(verify(check, EXAMPLES), tmp_path)
    assert shown in file.read_text()
    assert not holds(file, subject.target, monkeypatch)
    assert holds(file, f"tests.defects.forms:{right}", monkeypatch)


@pytest.mark.parametrize(
    ("target", "law", "world"),
    [
        ("OnlyImageToText", "terms equal the oracle", "1"),
        ("GradientOnce", "mean over ranks equals single process", "sim:2"),
    ],
)
def test_file_runs_alone(
    target: str, law: str, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    finding = planted(target, law, world)
    file = counterexample.write(finding, tmp_path / "kept")
    wrong = run(file, tmp_path / "elsewhere")
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert "expected" in wrong.stdout
    assert "observed" in wrong.stdout
    assert "Traceback" not in wrong.stderr
    right = run(file, tmp_path / "elsewhere", RIGHT[finding.check.contract.name])
    assert right.returncode == 0, right.stdout + right.stderr
    assert [*temporary.glob("torchelastic_*")] == []


def test_used_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("tests.defects.clip:LabelsCachedByCount")
    (spec,) = parse("sim:3")
    check = Check("LabelsCachedByCount", contracts()["clip"], subject, LAWS["used equals fresh"], spec)
    found = Example(Case(rows=(2, 1, 1), options=FLAGS), (Step(Case(rows=(1, 1, 1), options=FLAGS)),))
    file = counterexample.write(failing(check, found, failure(check, found)), tmp_path)
    assert not holds(file, subject.target, monkeypatch)
    assert holds(file, RIGHT["clip"], monkeypatch)


LOSS = """
import os, sys, time
import torch
from torch.nn.functional import cross_entropy

class Loss:
    def __init__(self, rank=0, world_size=1):
        self.rank = rank
    def __call__(self, image_features, text_features, logit_scale, output_dict=False):
        {body}
        logits = logit_scale * image_features @ text_features.T
        labels = torch.arange(len(logits))
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
"""
"""CLIP's loss of one process."""


@pytest.mark.parametrize(
    ("law", "size", "body"),
    [
        ("leaves no trace", 1, "print(1)"),
        ("backward is silent", 2, "image_features.register_hook(lambda grad: talk(grad.clone()))"),
    ],
)
def test_what_is_said_in_words_is_judged_with_torch_and_numpy_alone(
    law: str, size: int, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number is compared: the file has to see by itself what the law saw."""
    target, right = tmp_path / "mine.py", tmp_path / "right.py"
    talk = "from torch.distributed import all_reduce as talk\n"
    monkeypatch.setattr(sys, "path", list(sys.path))
    target.write_text(talk + LOSS.format(body=body))
    right.write_text(LOSS.format(body="pass"))
    file = counterexample.write(stranger(target, law, size, Falsified("rank 0: it does")), tmp_path / "kept")
    assert "properties." not in file.read_text()
    # one rank of a real group: what it sends in backward is seen there as in two
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for place, right_one in ((target, False), (right, True)):
            monkeypatch.setenv("VERIFIED_LOSSES_TARGET", f"{place}:Loss")
            program = runpy.run_path(str(file))
            loss = program["find_target"]()
            assert program["judge"](loss, [program["act"](loss, 0)]) is right_one
    finally:
        dist.destroy_process_group()


def test_compiled_alone_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "mine.py"
    target.write_text(
        LOSS.format(body="logit_scale = logit_scale * (2 if torch.compiler.is_compiling() else 1)")
    )
    right = tmp_path / "right.py"
    right.write_text(LOSS.format(body=""))
    found = stranger(target, "compiled equals eager", 1, AssertionError())
    example = Example(Case(rows=(2,), width=2, pattern="unit", output_dict=False))
    found = failing(found.check, example, failure(found.check, example))
    file = counterexample.write(found, tmp_path)
    assert not holds(file, f"{target}:Loss", monkeypatch)
    assert holds(file, f"{right}:Loss", monkeypatch)


def test_what_takes_the_process_down_is_shown_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterexample, "SECONDS", 5)
    monkeypatch.chdir(tmp_path)
    law = "terms equal the oracle"
    bodies = {
        "raises": "raise ValueError('no')",
        "exits": "os._exit(0)",
        "hangs": "os.fork() and time.sleep(1000) or time.sleep(1000)",
        "fixed": "pass",
    }
    files = {}
    for name, body in bodies.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mine.py").write_text(LOSS.format(body=body))
        found = stranger(folder / "mine.py", law, 1, died("exited", "status 0"))
        files[name] = counterexample.write(found, folder / "build")
    stray = tmp_path / "stray.py"
    stray.write_text("raise SystemExit(1)")
    gone = counterexample.write(stranger(tmp_path / "gone.py", law, 1, died("raised")), tmp_path / "build")
    before = set(psutil.pids())
    results = {one.file: one for one in replay([*files.values(), gone, stray, tmp_path / "none.py"], 90)}
    assert "ValueError: no" in results[files["raises"]].output
    assert "time.sleep" in results[files["hangs"]].output or "mine.py" in results[files["hangs"]].output
    states = [one.state for one in results.values()]
    assert states == [
        "still there", "still there", "still there", "fixed", "cannot run", "cannot run", "cannot run",
    ]  # fmt: skip
    left = [pid for pid in set(psutil.pids()) - before if _runs(pid, str(tmp_path))]
    assert not left


def _runs(pid: int, word: str) -> bool:
    try:
        return any(word in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def test_replay_does_not_wait_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        f"{counterexample.MARK}\nimport subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(500)'], start_new_session=True)\n"
    )
    before = set(psutil.pids())
    start = time.monotonic()
    (result,) = replay([file], 3)
    assert time.monotonic() - start < 30
    assert result.state == "cannot run"
    assert "no verdict in 3 s" in result.output
    assert not [pid for pid in set(psutil.pids()) - before if _runs(pid, "sleep(500)")]


@pytest.mark.parametrize(
    ("statuses", "state", "status"),
    [
        ([0, 0, 0, 1], "fixed", 0),
        ([1, 0, 0, 0], "still there", 1),
        ([0, 1, 0, 0], "flaky", 1),
        ([0, 0, 1, 0], "flaky", 1),
        ([0, 2, 0, 0], "cannot run", 3),
        ([2, 0, 0, 0], "cannot run", 3),
    ],
)
def test_replay_tries_again_before_it_says_fixed(
    statuses: list[int], state: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, file = tmp_path / "runs", tmp_path / "case.py"
    runs.write_text("")
    file.write_text(
        f"{counterexample.MARK}\nimport sys\nruns = open({str(runs)!r}, 'r+')\ndone = len(runs.read())\n"
        f"runs.write('.')\nruns.close()\nsys.exit({statuses}[done])\n"
    )
    with pytest.raises(SystemExit, match=str(status)):
        main(["replay", str(file)])
    assert capsys.readouterr().out.startswith(f"{state} {file}\n")
    failed = next((place for place, code in enumerate(statuses) if code), 0)
    assert len(runs.read_text()) == (3 if state == "fixed" else failed + 1), "it runs until it fails"


SCHEDULED = """
import torch, torch.distributed as dist

class Loss:
    def __init__(self, rank=0, world_size=1):
        self.rank, self.world_size = rank, world_size
    def __call__(self, image_features, text_features, logit_scale, output_dict=False):
        given = torch.zeros(3)
        peer = (self.rank + 1) % self.world_size
        if self.rank == 0:
            dist.send(given, peer)
            dist.recv(given, peer)
        else:
            dist.send(given, 0)
            dist.recv(given, 0)
        return logit_scale.sum() + 0 * image_features.sum() + 0 * text_features.sum()
"""
"""Two ranks that send to one another first: they need a transport that buffers."""


def test_what_only_a_simulated_world_shows_is_judged_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine.py"
    target.write_text(SCHEDULED)
    found = stranger(target, "deterministic", 2, AssertionError())
    check = replace(found.check, world=parse("sim:2")[0])
    assert found.smallest is not None
    error = failure(check, found.smallest)
    assert isinstance(error, SimulationError)
    file = counterexample.write(failing(check, found.smallest, error), tmp_path)
    assert error.finding in file.read_text()
    monkeypatch.setattr(sys, "path", list(sys.path))
    program = runpy.run_path(str(file))
    program["find_target"]()
    assert program["judge_with_properties"]() is False
    assert error.finding in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "verified_losses.properties.laws", None)
    assert program["judge_with_properties"]() is None


def named(check: Check, error: Exception | None) -> str:
    return fingerprint(Finding(check, 0, "falsified", error=error))


def test_fingerprint_forgets_seeds_sizes_and_ranks() -> None:
    found = stranger(Path("mine.py"), "terms equal the oracle", 2, AssertionError())
    check, other = found.check, stranger(Path("mine.py"), "deterministic", 2, AssertionError()).check

    def wrong(rank: int, name: str = "contrastive_loss") -> Falsified:
        return Falsified(f"rank {rank}", Place("term", name, rank, expected=rank, observed=2.0))

    assert named(check, wrong(0)) == named(check, wrong(1))
    assert named(check, wrong(0)) != named(check, wrong(0, "caption_loss"))
    assert named(check, wrong(0)) != named(other, wrong(0))

    def raised(line: int, name: str, function: str = "forward") -> WorldError:
        detail = f'Traceback\n  File "/a/mine.py", line {line}, in {function}\n    x\n{name}: rows {line}\n'
        return died("raised", detail)

    assert named(check, raised(3, "ValueError")) == named(check, raised(7, "ValueError"))
    assert named(check, raised(3, "ValueError")) != named(check, raised(3, "KeyError"))
    assert named(check, raised(3, "ValueError")) != named(check, raised(3, "ValueError", "gather"))
    peers = [
        RankState(0, "raised", "RuntimeError: Connection closed by peer [::1]:3"),
        *raised(3, "ValueError").ranks,
    ]
    assert named(check, WorldError("processes:2", peers)) == named(check, raised(4, "ValueError"))
    assert len(named(check, None)) == 12


def test_one_defect_is_one_finding() -> None:
    cotangents, terms, gradients = (
        planted("OnlyImageToText", law)
        for law in ("cotangents pass through", "terms equal the oracle", "gradients equal the oracle")
    )
    altered = planted("ClampsScaleInPlace", "inputs unchanged")
    groups = group([cotangents, altered, gradients, terms])
    assert groups == [[terms, gradients, cotangents], [altered]]


@pytest.mark.filterwarnings("ignore:Using .assume. outside a property-based test")
def test_two_infinities_do_not_agree_and_are_one_finding_with_what_the_oracle_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("tests.defects.clip:NoMaxSubtraction")
    (spec,) = parse("sim:2")
    example = Example(Case(rows=(1, 1), dtype="float32", pattern="saturated", scale=100.0, options=FLAGS))
    found = []
    for law in ("mean over ranks equals single process", "terms equal the oracle"):
        check = Check("NoMaxSubtraction", contracts()["clip"], subject, LAWS[law], spec)
        found.append(failing(check, example, failure(check, example)))
    mean, terms = found
    alone = r"rank 0, contrastive_loss in one process with the whole batch: "
    assert re.search(rf"{alone}expected -?[\d.e-]+, observed (inf|nan), which is not finite$", mean.reason)
    assert group(found) == [[terms, mean]]
    file = counterexample.write(mean, tmp_path)
    assert not holds(file, subject.target, monkeypatch)
    assert holds(file, RIGHT["clip"], monkeypatch)


@pytest.mark.filterwarnings("ignore:Using .assume. outside a property-based test")
def test_a_sum_of_one_process_may_leave_the_dtype_before_the_mean_unless_that_is_strict() -> None:
    # the losses of both views of 26 rows add up to 83,000
    case = Case((13, 13), 1, "float16", "large", 2.72, features="raw", options=(
        ("convention", "exact"), ("local_loss", False), ("gather_with_grad", False)))  # fmt: skip
    (spec,) = parse("sim:2")
    for strict in (False, True):
        subject = Subject("tests.defects.forms:NTXentOfDots", features="raw", strict=strict)
        law = LAWS["mean over ranks equals single process"]
        error = failure(Check("dots", contracts()["ntxent"], subject, law, spec), Example(case))
        assert isinstance(error, Falsified) == strict, error


def test_a_gradient_that_is_not_finite_is_compared_with_the_oracle() -> None:
    case = Case(rows=(2,), width=2, pattern="unit", options=FLAGS)
    whole, place = Reference(contracts()["clip"], Example(case)), Place("gradient", "image_features")
    single = np.array([[0.0, 0.0], [np.nan, np.inf]])
    with pytest.raises(
        Falsified, match=r"\[1, 0\]: expected .*, observed nan, which is not finite$"
    ) as raised:
        compare_with_single(whole, place, single, single, np.ones((2, 2)))
    along = np.array([[0.0, 0.0], [1.0, 0.0]])
    found = raised.value.place
    assert found is not None
    assert found.expected == whole.derivative(0, "image_features", along)
    assert found.bound == 1


def test_what_differs_is_named_among_what_is_not_finite() -> None:
    def outcome(last: float) -> Outcome:
        return Outcome("Tensor", {"contrastive_loss": np.array([np.nan, np.inf, last])}, {})

    of_clip = Reference(contracts()["clip"], Example(Case(rows=(2,), width=2, options=FLAGS)))
    same_bits(of_clip, 0, "called twice", outcome(1.0), outcome(1.0))
    with pytest.raises(Falsified, match=r"called twice at \[2\]: expected 1, observed 2, "):
        same_bits(of_clip, 0, "called twice", outcome(2.0), outcome(1.0))
    right = f"{float(of_clip.terms[0]['contrastive_loss']):.9g}"
    for pair in ((np.nan, 1.0), (1.0, np.nan)):
        with pytest.raises(
            Falsified, match=rf"called twice at \[2\]: expected {right}, observed nan, which is not finite"
        ):
            same_bits(of_clip, 0, "called twice", *map(outcome, pair))


def test_unrelated_wrong_numbers_stay_apart() -> None:
    one = planted("IgnoresCotangent", "cotangents pass through")
    law = LAWS["terms equal the oracle"]
    other = failing(
        Check(one.check.label, one.check.contract, one.check.subject, law, one.check.world),
        Example(Case(options=FLAGS)),
        Falsified("", Place("term", "contrastive_loss", 0)),
    )
    assert group([one, other]) == [[other], [one]]


def test_a_crash_is_one_finding_whatever_law_met_it() -> None:
    errors = died("raised", 'Traceback\n  File "mine.py", line 3, in forward\n    x\nValueError: no\n')
    crashes = [stranger(Path("mine.py"), law, 1, errors) for law in list(LAWS)[:3]]
    assert [len(one) for one in group(crashes)] == [3]


def test_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = stranger(tmp_path / "mine.py", "deterministic", 1, died("raised"))
    with pytest.raises(OSError, match="file"):
        counterexample.write(found, tmp_path / "file")
    file = counterexample.write(found, tmp_path / "folder")
    assert [one.name for one in (tmp_path / "folder").iterdir()] == [file.name]
