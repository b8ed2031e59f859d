"""The command line as a person uses it: verdicts, exit statuses, and what is said of wrong arguments."""

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from rich.progress import Progress

from verified_losses.properties import devices
from verified_losses.properties.ask import run
from verified_losses.properties.ask.cli import main
from verified_losses.properties.ask.plans import AnyCheck, Verifier
from verified_losses.properties.laws import Falsified, laws
from verified_losses.properties.names import LAWS
from verified_losses.properties.show import terminal
from verified_losses.properties.show.certificate import Asked
from verified_losses.properties.show.console import Console
from verified_losses.properties.show.defects import AnyFinding
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import Check, Finding, verify
from verified_losses.properties.verify.known import Known
from verified_losses.properties.verify.plan import plan
from verified_losses.properties.worlds import RankState, WorldError
from verified_losses.properties.worlds.simulated import SimulationError

from .children import LIMIT_SECONDS, refused_early, started, wait_until

COMMAND = [sys.executable, "-m", "verified_losses.properties", "certify"]


def _certify(folder: Path, *arguments: str) -> tuple[int, str, str]:
    command = [*COMMAND, "--json", str(folder / "certificate.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    return done.returncode, done.stdout, done.stderr


def test_what_holds_is_certified(tmp_path: Path) -> None:
    status, printed, _ = _certify(tmp_path, "--loss", "siglip", "--world", "1,sim:2-3", "--max-examples", "3")
    assert status == 0, printed
    assert re.match(r"verifying siglip: \d+ checks, up to 3 cases each, seed 0\n", printed)
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["verdict"] == "holds"
    assert {found["world"] for found in record["properties"]} == {"single", "simulated:2-3"}
    without = [found["property"] for found in record["properties"] if not found["examples"]]
    assert without == ["owned parameters get gradients"]  # it owns none
    assert len(record["source"]) == 64
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100
    assert any(line.startswith("Horovod: ") for line in record["not_verified"])
    assert "not verified: Horovod: " in printed


def test_a_loss_that_the_worlds_say_nothing_about_gets_no_certificate(tmp_path: Path) -> None:
    asked = ["--loss", "siglip", "exchange", "--world", "1", "--max-examples", "1"]
    status, printed, _ = _certify(tmp_path, *asked)
    assert status == 0, printed
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["target"] == "verified_losses:SigLipLoss"
    assert "exchange: not in these worlds" in record["not_verified"]


def test_a_strangers_loss_is_falsified_with_a_case(tmp_path: Path) -> None:
    target = "tests.defects.clip:OnlyImageToText"
    page = tmp_path / "page.html"
    asked = [target, "--as", "clip", "--world", "1", "--max-examples", "20", "--html", str(page)]
    status, printed, _ = _certify(tmp_path, *asked)
    assert status == 1
    assert "smallest case: Case(rows=(2,)" in printed
    early, table, defects = re.split(r"\nloss .*|\n\d+ findings?, 1 defect:\n", printed)
    found = f"FALSIFIED {target.partition(':')[2]}: terms equal the oracle in world single: rank 0, "
    assert re.search(rf"^{re.escape(found)}.* times its bound\n  smallest case: Case\(", early, re.MULTILINE)
    assert early.count("FALSIFIED") == table.count(" falsified") > 0
    assert defects.count("does not hold") == 1
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["verdict"] == "falsified"
    assert record["command"].startswith(
        f"verified-losses certify --json {tmp_path / 'certificate.json'} {target}"
    )
    assert sum(record["drawn"]["dtype"].values()) == sum(one["examples"] for one in record["properties"])
    assert "Counterexamples" in page.read_text()


def test_a_loss_that_is_called_in_order_names_its_arguments_as_it_likes(tmp_path: Path) -> None:
    asked = ["torch.nn:CrossEntropyLoss", "--as", "cross_entropy", "--world", "1", "--max-examples", "8"]
    status, printed, said = _certify(tmp_path, *asked)
    assert status == 0, printed + said


@pytest.mark.parametrize(("variable", "coloured"), [("NO_COLOR", False), ("UNUSED", True)])
def test_a_terminal_gets_colours_unless_it_refuses_them(
    tmp_path: Path, variable: str, coloured: bool
) -> None:
    ours, theirs = pty.openpty()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")
    }
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100", variable: "1"}
    files = ["--json", str(tmp_path / "certificate.json")]
    few = ["--loss", "exchange", "--world", "sim:2", "--only", "deterministic", "--max-examples", "1"]
    with started([*COMMAND, *files, *few], stdout=theirs, stderr=theirs, env=environment) as running:
        os.close(theirs)
        printed = b""
        # reading fails once nobody writes any more
        with contextlib.suppress(OSError):
            while select.select([ours], [], [], LIMIT_SECONDS)[0] and (part := os.read(ours, 4096)):
                printed += part
        os.close(ours)
        assert running.wait(LIMIT_SECONDS) == 0, printed
    assert b"holds" in printed
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-9]", printed)) == coloured


def test_lines_fit_a_terminal_and_are_whole_in_a_pipe() -> None:
    words = " ".join(["expected 1, observed 2"] * 9)
    for is_terminal, longest in ((True, 60), (False, len(words) + 2)):
        file = io.StringIO()
        console = Console(file=file, width=60, force_terminal=is_terminal, color_system=None)
        run.say(console, f"  {words}")
        with Progress(*run.columns(60), console=console, expand=True) as progress:
            progress.add_task("a" * 90, total=7)
        lines = [line.partition("\x1b")[0] for line in file.getvalue().split("\n")]
        assert max(map(len, lines)) <= longest
        assert any(line.startswith("  expected") and len(line) > longest - 22 for line in lines)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody whose folder is empty, with the command on the path."""
    command = tmp_path / "bin" / "verified-losses"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    theirs = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR", "ZSH", "ZSH_CUSTOM")
    environment = {name: value for name, value in os.environ.items() if name not in theirs}
    return environment | {"HOME": str(tmp_path), "PATH": f"{command.parent}:{os.environ['PATH']}"}


def _teach(shell: str, environment: dict[str, str]) -> str:
    """Let the command install what completes it; return where the shell is."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"completion by {shell} is not tried: no {shell} is installed")
    asked = [*COMMAND[:-1], "--install-completion", "--shell", shell]
    subprocess.run(asked, env=environment, timeout=LIMIT_SECONDS, check=True, stdout=subprocess.DEVNULL)
    return program


SCRIPTS = {
    "bash": """
. ~/.bashrc
COMP_WORDS=(verified-losses certify --max-t) COMP_CWORD=2
_verified_losses; echo "${COMPREPLY[@]}"
""",
    "fish": "complete --do-complete 'verified-losses certify --max-t' | string split --fields 1 \\t",
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_shell_completes_the_command(shell: str, home: dict[str, str]) -> None:
    program = _teach(shell, home)
    said = subprocess.run(
        [program, "-c", SCRIPTS[shell]], env=home, capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout == "--max-time\n"


def test_zsh_completes_the_command(home: dict[str, str]) -> None:
    """Type into it, as it completes nothing in a script."""
    (Path(home["HOME"]) / ".zshrc").write_text("autoload -Uz compinit\ncompinit -u\nPROMPT='ready> '\n")
    program = _teach("zsh", home)
    ours, theirs = pty.openpty()
    environment = home | {"TERM": "dumb", "COLUMNS": "200"}
    with started([program, "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        _read_until(ours, b"ready> ")
        os.write(ours, b"verified-losses certify --max-t\t")
        _read_until(ours, b"--max-time")
    os.close(ours)


def _read_until(file: int, wanted: bytes) -> bytes:
    printed = b""
    while wanted not in printed:
        assert select.select([file], [], [], LIMIT_SECONDS)[0], printed
        printed += os.read(file, 4096)
    return printed


def test_its_version_is_that_of_the_package() -> None:
    shown = subprocess.run(
        [*COMMAND[:-1], "--version"], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert shown.stdout.strip() == metadata.version("verified-losses")


def test_the_names_of_all_properties_are_known_without_them() -> None:
    assert [law.name for law in laws()] == list(LAWS)


def test_a_known_property_must_be_one(tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    file.write_text('[[known]]\nproperty = "terms equals"\nreason = "x"\n')
    with pytest.raises(
        ValueError,
        match=r"property: expected one of terms equal.*, got 'terms equals': did you mean terms equal",
    ):
        Known.read(file).check([law.name for law in laws()])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--loss", "clap"], "--loss: expected some of clip"),
        (["--world", "0"], "--world: expected a number of ranks from 1"),
        (["--world", "two"], "--world: expected parts like"),
        (["--device", "gpu"], "--device: expected cpu, cuda, cuda:1 or all, separated by commas, got 'gpu'"),
        (["--max-examples", "0"], "--max-examples: expected at least 1, got 0"),
        (["--max-examples", "x"], "error --max-examples: expected a whole number, got 'x'\n"),
        (["--max-examples", "2.5"], "error --max-examples: expected a whole number, got '2.5'\n"),
        (["--seed", "1.5"], "error --seed: expected a whole number, got '1.5'\n"),
        (["--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (["--max-time", "-1s"], "--max-time: expected seconds, or a time like 60s, 5m or 1h, got '-1s'"),
        (["--max-time"], "error --max-time: expected a value after it, got nothing\n"),
        (["--fail-fast=3"], "error --fail-fast: expected nothing, true or false, got '3'\n"),
        (["--convention", "ours"], "error --convention: expected one of exact, open_clip, got 'ours'\n"),
        (["--zq"], "error Unknown option: --zq.\n"),
        (["--loss", "exchange", "--world", "1"], "nothing to verify for exchange"),
        (["no_such_module:Loss", "--as", "clip"], "no_such_module:Loss: there is no module no_such_module"),
        (["torch.nn:NoSuchLoss", "--as", "clip"], "NoSuchLoss"),
        (["torch.nn:Linear"], "--as: expected one of"),
        (["--as", "clip"], "--as: expected a target"),
        (["tests/no_such_file.py:Loss", "--as", "clip"], "there is no file tests/no_such_file.py"),
        (["torch.nn:Linear", "--as", "clip"], "Linear needs in_features, out_features"),
        (["torch.nn:ReLU", "--as", "clip"], "ReLU takes no image_features"),
        (["torch.nn:ReLU", "--as", "infonce"], "infonce calls with 2 tensors in order; ReLU: too many"),
        (["torch.nn:ReLU", "--as", "clip", "--config", "slope=3"], "takes no slope"),
        (["--config", "local_loss"], "--config: expected name=value"),
        (
            ["torch.nn:ReLU", "--as", "siglip", "--convention", "open_clip"],
            "--convention: the contract siglip has none: expected exact, got open_clip",
        ),
        (["--dtype", "float8"], "--dtype: expected some of float64"),
        (["--only", "beauty"], "--only: expected some of terms equal the oracle"),
        (["--only", "grdients*"], "got 'grdients*': did you mean gradients equal the oracle?"),
        (["--skip", "*padding matter"], "got '*padding matter': did you mean padding never matters?"),
        (["torch.nn:ReLU", "--as", "clipp"], "got clipp: did you mean clip?"),
        (["--loss", "siglp"], "got siglp: did you mean siglip?"),
        (["--max-time", "soon"], "--max-time: expected seconds, or a time like 60s"),
        (["--world", "sim:9-2"], "--world: expected the smaller number of ranks first, got 'sim:9-2'"),
        (["--config", "local_loss=maybe"], "--config: local_loss: expected one of false, true, got maybe"),
        (["--config", "local_loss=1"], "--config: local_loss: expected one of false, true, got 1"),
        (["--config", "local_loss="], "--config: local_loss: expected one of false, true, got ''"),
        (["--config", "rank=3"], "--config: rank cannot be pinned"),
        (["--loss", "siglip", "--config", "dist_impl=blah"], 'dist_impl: expected one of "bidir", "shift"'),
        (["torch.nn:ReLU", "--as", "coca", "--config", "pad_id=zero"], "pad_id: expected an int, got zero"),
        (
            ["torch.nn:ReLU", "--as", "coca", "--config", "clip_loss_weight=true"],
            "expected a number, got True",
        ),
        (["--counterexamples", "pyproject.toml/x"], "pyproject.toml is not a folder"),
        (["--shard", "3/2"], "--shard: expected i/n, with i from 1 to n, as 1/4, got '3/2'"),
        (["--known", "tests/no_such_file.toml"], "--known: cannot read tests/no_such_file.toml"),
        (["--html", "tests"], "--html: cannot write tests: it is a folder"),
        (["mine.py", "--as", "clip"], "mine.py: expected MODULE:NAME or FILE.py:NAME, got 'mine.py'"),
        ([".mine:Loss", "--as", "clip"], ".mine:Loss: there is no module .mine"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main(["certify", "--json", str(tmp_path / "certificate.json"), *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert named in said
    assert "Traceback" not in said


def test_a_wrong_argument_costs_no_import_and_no_process() -> None:
    wrong = [
        ["--seed", "x"], ["--zq"], ["--loss", "clap"], ["--world", "0"], ["--dtype", "float8"],
        ["--config", "local_loss=maybe"], ["--max-time", "soon"], ["--max-examples", "0"],
        ["--known", "tests/no_such_file.toml"], ["--convention", "ours"], ["x:y", "--as", "clop"],
        ["--shard", "0/2"], ["--seed", "-1"], ["--max-time", "-1s"], ["--only", "beauty"],
        ["--junit", "pyproject.toml/x"], ["tests/no_such_file.py:Loss", "--as", "clip"],
        ["no_such_module:Loss", "--as", "clip"],
    ]  # fmt: skip
    if devices.absent("cuda:0"):
        wrong.append(["--device", "cuda"])
    assert refused_early("certify", wrong) == ["2"] * len(wrong) + [""]


@pytest.mark.parametrize(
    ("body", "when"), [("def __init__(self):", "constructed"), ("if True:", "imported")], ids=["", "import"]
)
def test_a_targets_own_traceback_is_shown_alone(
    body: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("def broken():\n    raise RuntimeError('my own mistake')\n")
    target = tmp_path / "mine.py"
    target.write_text(f"import beside\n\nclass Loss:\n    {body}\n        beside.broken()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="2"):
        main(["certify", f"{target}:Loss", "--as", "clip"])
    said = capsys.readouterr().err
    assert f"error {target}:Loss: raised as it was {when}: RuntimeError: my own mistake\n" in said
    assert "RuntimeError: my own mistake" in said
    files = re.findall(r'File "(.+?)"', said)
    assert list(dict.fromkeys(files)) == [str(target), str(tmp_path / "beside.py")]


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, option: str) -> None:
    files = {"--json": str(tmp_path / "certificate.json"), option: "/proc/no/such"}
    command = [*COMMAND, "--loss", "clip", *(part for pair in files.items() for part in pair)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 2
    assert f"{option}: cannot write /proc/no/such" in done.stderr
    assert done.stdout == "", "nothing runs before it is said"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_writes_what_it_has(tmp_path: Path, number: signal.Signals, status: int) -> None:
    record, page, called = tmp_path / "certificate.json", tmp_path / "page.html", tmp_path / "called"
    called.touch()
    target = tmp_path / "mine.py"
    target.write_text(f"""
import verified_losses
class Loss(verified_losses.ClipLoss):
    def forward(self, *given, **named):
        with open({str(called)!r}, "a") as file:
            file.write(".")
        return super().forward(*given, **named)
""")
    asked = [f"{target}:Loss", "--as", "clip", "--world", "1", "--max-examples", "5000"]
    files = ["--json", str(record), "--html", str(page)]
    with started([*COMMAND, *asked, *files], stdout=subprocess.PIPE) as running:
        wait_until(lambda: called.stat().st_size > 500, running)  # the inspection calls it some ten times
        running.send_signal(number)
        printed, _ = running.communicate(timeout=LIMIT_SECONDS)
    assert running.returncode == status, printed
    assert json.loads(record.read_text())["verdict"] == "incomplete"
    assert "interrupted after" in printed
    assert "interrupted after" in page.read_text()


def test_an_interrupt_is_answered_while_torch_is_imported(tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = [sys.executable, "-X", "importtime", *COMMAND[1:]]
    with said.open("w") as file, started(command, stderr=file) as running:
        wait_until(lambda: "torch." in said.read_text(), running)
        running.send_signal(signal.SIGINT)
        status = running.wait(LIMIT_SECONDS)
    # interrupted within an exec, `python -m` ends by the signal itself, though told to exit with 130: to a
    # shell that is the same
    assert status in (130, -signal.SIGINT), said.read_text()
    assert [line for line in said.read_text().splitlines() if "import time:" not in line] == [
        "interrupted before a check ran"
    ]


def test_an_interrupt_where_nothing_can_be_raised_is_answered() -> None:
    script = """
import gc, signal, time
from verified_losses.properties import __main__
from verified_losses.properties.ask import cli
def once(phase, info):
    gc.callbacks.remove(once)
    signal.raise_signal(signal.SIGINT)
def work(begun):
    gc.callbacks.append(once)
    gc.collect()
    time.sleep(600)
cli.main = work
__main__.main()
"""
    with started([sys.executable, "-c", script], stderr=subprocess.PIPE) as running:
        _, said = running.communicate(timeout=LIMIT_SECONDS)
    assert (running.returncode, said) == (130, "interrupted before a check ran\n")


def _wrong(*arguments: str) -> list[str]:
    return [
        "tests.defects.clip:OnlyImageToText",
        "--as",
        "clip",
        "--world",
        "1",
        "--max-examples",
        "20",
        *arguments,
    ]


def test_a_known_finding_is_accepted_and_one_that_is_gone_reported(tmp_path: Path) -> None:
    known = tmp_path / "known.toml"
    known.write_text(
        '[[known]]\nproperty = "terms equal the oracle"\nreason = "one direction is all we train"\n'
        '[[known]]\nproperty = "deterministic"\nreason = "repaired long ago"\n'
    )
    only = ["--only", "terms equal the oracle", "deterministic", "--counterexamples", str(tmp_path / "kept")]
    status, printed, _ = _certify(tmp_path, *_wrong("--known", str(known), *only))
    assert status == 0, printed
    assert "known finding did not occur: deterministic (repaired long ago)" in printed
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert [one["known"] for one in record["properties"]] == ["one direction is all we train", ""]


def test_the_first_finding_that_is_not_known_ends_the_run(tmp_path: Path) -> None:
    known = tmp_path / "known.toml"
    known.write_text('[[known]]\nproperty = "terms equal the oracle"\nreason = "as we train"\n')
    only = ["--only", "terms*", "cotangents*", "inputs*", "--counterexamples", str(tmp_path / "kept")]
    status, printed, _ = _certify(tmp_path, *_wrong("--known", str(known), "--fail-fast", *only))
    assert status == 1, printed
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert [(one["property"], one["verdict"]) for one in record["properties"]] == [
        ("terms equal the oracle", "falsified"), ("cotangents pass through", "falsified")
    ]  # fmt: skip
    left = "OnlyImageToText in world single: inputs unchanged: not run after the first finding"
    assert left in record["not_verified"]
    assert printed.count("FALSIFIED") == 1


def test_what_time_does_not_allow_is_not_certified(tmp_path: Path) -> None:
    status, printed, _ = _certify(tmp_path, "--loss", "clip", "--world", "1", "--max-time", "0.001s")
    assert status == 3, printed
    assert json.loads((tmp_path / "certificate.json").read_text())["verdict"] == "incomplete"
    assert re.search(r"not verified: \d+ checks could not run: out of time", printed)


def test_a_saved_counterexample_is_run_again(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    asked = _wrong("--only", "terms equal the oracle", "--counterexamples", str(kept))
    status, printed, _ = _certify(tmp_path, *asked)
    assert status == 1
    (file,) = kept.glob("*.py")
    assert f"run: python {file}" in printed
    replay = [sys.executable, "-m", "verified_losses.properties", "replay", str(kept)]
    done = subprocess.run(replay, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (1, f"still there {file}\n")
    right = {**os.environ, "VERIFIED_LOSSES_TARGET": "verified_losses:ClipLoss"}
    done = subprocess.run(
        replay, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, env=right
    )
    assert (done.returncode, done.stdout) == (0, f"fixed {file}\n")


def test_a_folder_without_counterexamples_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["replay", str(tmp_path)])
    assert "expected a counterexample, or a folder of them" in capsys.readouterr().err


def test_a_finding_is_kept_if_the_run_is_interrupted_before_its_case_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(Verifier):
        def verify_all(self, planned: Sequence[AnyCheck]) -> Iterator[AnyFinding]:
            said = self.losses.found
            assert said is not None

            def interrupt(finding: Finding) -> None:
                said(finding)
                raise KeyboardInterrupt

            assert isinstance(planned[0], Check)
            yield verify(planned[0], 5, 0, found=interrupt)

    monkeypatch.setattr(run, "Verifier", Interrupted)
    target = {"mine": ask("tests.defects.clip:OnlyImageToText", "clip")}
    begun = run.Run(target, plan(target, "1"), Asked(0, 5, "1"), Known())
    run.verify(begun, run.printer(), tmp_path)
    assert "FALSIFIED mine: terms equal the oracle in world single: rank 0, " in capsys.readouterr().out
    assert begun.record.verdict == "falsified"
    assert any(line.startswith("interrupted after 0 of ") for line in begun.not_verified)
    assert len([*tmp_path.glob("*.py")]) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Falsified("rank 1, loss: expected 2, observed 3"), "rank 1, loss: expected 2, observed 3"),
        (
            WorldError(
                "processes:2",
                [
                    RankState(0, "returned", ""),
                    RankState(1, "raised", "Traceback ...\nValueError: no\n"),
                ],
            ),
            "rank 1 raised: ValueError: no",
        ),
        (
            WorldError("single", [RankState(0, "killed", "SIGSEGV\nlast words")]),
            "rank 0 killed: SIGSEGV",
        ),
        (
            SimulationError("simulated:2", [RankState(0, "returned", "")], "unwaited", "a send\nof 0", []),
            "unwaited: a send",
        ),
        (ValueError("one\ntwo"), "ValueError: one"),
    ],
)
def test_a_finding_is_said_in_a_line(error: Exception, said: str) -> None:
    target = {"mine": ask("mine:Loss", "clip")}
    (check, *_) = plan(target, "1")
    finding = Finding(check, 0, "falsified", reason=f"{type(error).__name__}: {error}", error=error)
    assert terminal.headline(finding) == f"mine: terms equal the oracle in world single: {said}"


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["schema"])
    assert "Certificate" in json.loads(capsys.readouterr().out)["$defs"]


@pytest.mark.parametrize("flags", [["-P"], []], ids=["as the command", "by python -m"])
def test_a_target_named_like_a_module_of_python_is_certified(tmp_path: Path, flags: list[str]) -> None:
    loss = "def clip_loss(image_features, text_features, logit_scale):\n    raise ValueError('mine')\n"
    (tmp_path / "queue.py").write_text(loss)
    command = [sys.executable, *flags, *COMMAND[1:], "queue.py:clip_loss", "--as", "clip", "--world", "1"]
    path = os.pathsep.join(one for one in sys.path if one)
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    assert "ValueError: mine" in done.stderr
    assert done.returncode == 2


def test_a_suite_that_fails_itself_accuses_nobody() -> None:
    program = (
        "from verified_losses.properties import __main__ as command\n"
        "from verified_losses.properties.ask import cli\n"
        "def main(begun):\n"
        "    raise RuntimeError('of the suite')\n"
        "cli.main = main\n"
        "command.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "RuntimeError: of the suite\nverified-losses: the suite itself failed" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_finding() -> None:
    reads, writes = os.pipe()
    os.close(reads)  # as `head` does; rich would exit with 1
    file = os.fdopen(writes, "w")
    with pytest.raises(BrokenPipeError):
        Console(file=file).print("more")
    with contextlib.suppress(BrokenPipeError):
        file.close()
