"""The shipped losses hold; so do the parts of open_clip that are right."""

import dataclasses
import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from verified_losses.oracles import bounds
from verified_losses.properties.cases import DTYPES, Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import AUTOCAST, FROZEN, HOSTILE, SUBCLASSES, TRANSFORMS, Falsified, laws
from verified_losses.properties.laws.objects import LACKING, OWNS_NOTHING
from verified_losses.properties.laws.ranks import NO_GROUP
from verified_losses.properties.reference import Reference
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify import certifier
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import Certifier, Check, Finding, checks, falsify, verify
from verified_losses.properties.verify.plan import fitted, not_verified, plan
from verified_losses.properties.worlds import OutOfTime, RankState, WorldError, WorldLost
from verified_losses.properties.worlds.specs import WorldSpec, parse
from verified_losses.properties.worlds.table import KINDS

WORLDS = parse("1,2,sim:2-8")
SIMULATED = (AUTOCAST, FROZEN, HOSTILE)
"""What is asked in simulated ranks alone here; `make verify` asks it in one process too."""
OF_THREE = ("terms", "gradients", "cotangents", "mean")
"""What the properties begin with that three processes are asked; two are asked all."""
IN_ONE = (TRANSFORMS, SUBCLASSES)
"""What is asked in one process here, and of `ClipLoss` in two; `make verify` asks all losses in two."""
EXAMPLES = int(os.environ.get("VERIFY_EXAMPLES", "8"))
BRIEFLY = "coca_hidden"
"""Asked in simulated ranks alone, in fewer cases: but for captions it is `coca`."""


def _verify(check: Check) -> None:
    finding = verify(check, EXAMPLES // 3 if check.label == BRIEFLY else EXAMPLES, base_seed=1)
    if check.law.name == "owned parameters get gradients":
        assert (finding.verdict, finding.reason) == ("skipped", OWNS_NOTHING)
        return
    if check.contract.name == "linear_cross_entropy" and finding.reason in (*LACKING, NO_GROUP):
        return  # a function
    assert finding.verdict == "holds", f"{finding.reason}\n{finding.counterexample}"
    assert finding.examples > 0, "nothing was checked"


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(c, id=f"{c.label}-{c.law.name}-{c.world.name}")
        for c in checks(SHIPPED, parse("1,2,3,sim:2-8"))
        if c.world.kind == "simulated" or (c.law.concerns not in SIMULATED and c.label != BRIEFLY)
        if c.world.sizes != (3,) or c.law.name.startswith(OF_THREE)
        if c.law.concerns not in IN_ONE
        or c.world.kind == "single"
        or (c.label, c.world.sizes) == ("clip", (2,))
    ],
)
def test_shipped_losses_hold(check: Check) -> None:
    _verify(check)


def test_ranks_that_share_a_process_are_not_asked_what_takes_a_process_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = dataclasses.replace(KINDS["simulated"], name="threads", is_drawn=False)
    monkeypatch.setitem(KINDS, "threads", row)
    planned = [check.law for check in checks(SHIPPED, [WorldSpec("threads", (2,))])]
    assert {law.name for law in planned if not law.simulated} == set()
    assert {law.name for law in laws() if law.simulated and law.worlds == "any"} <= {
        law.name for law in planned
    }


def test_a_seed_draws_the_same_cases_whatever_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = next(checks({"clip": SHIPPED["clip"]}, parse("1")))
    before = verify(check, 25).cases
    (tmp_path / "full_of_constants.py").write_text(f"NUMBERS = {[*range(101, 900), *map(float, range(100))]}")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("full_of_constants")
    assert verify(check, 25).cases == before


def _first(monkeypatch: pytest.MonkeyPatch, judge: Callable[[], float]) -> tuple[Check, list[Example]]:
    """Return a check, and the examples that it is run on: what comes of one is what `judge` says."""
    ran: list[Example] = []

    def falsify(check: Check, example: Example) -> float:
        ran.append(example)
        return judge()

    monkeypatch.setattr(certifier, "falsify", falsify)
    return next(checks({"clip": SHIPPED["clip"]}, parse("1"))), ran


def test_a_finding_is_told_of_before_it_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge() -> float:
        raise Falsified("wrong")

    check, ran = _first(monkeypatch, judge)
    told: list[tuple[int, Finding]] = []
    finding = verify(check, 25, found=lambda first: told.append((len(ran), first)))
    ((after, first),) = told
    assert after == 1
    assert (first.key, first.reason, first.smallest) == (finding.key, finding.reason, ran[0])


def test_nothing_is_drawn_once_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    check, ran = _first(monkeypatch, lambda: 0.0)
    late = verify(check, 10**9, until=time.monotonic())
    assert (late.verdict, len(ran)) == ("holds", 1)
    later = verify(check, 10**9, deadline=time.monotonic())
    assert (later.verdict, later.reason, later.not_run, len(ran)) == ("skipped", "out of time", True, 1)


def test_a_call_that_is_given_up_falsifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge() -> float:
        time.sleep(max(0, deadline - time.monotonic()))
        raise OutOfTime

    check, ran = _first(monkeypatch, judge)
    deadline = time.monotonic() + 0.1
    finding = verify(check, 25, deadline=deadline)
    assert (finding.verdict, finding.reason, len(ran)) == ("skipped", "out of time", 1)


def test_a_world_that_is_lost_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge() -> float:
        if len(ran) > 3:
            raise WorldLost("host 1 is gone")
        return 0.5

    check, ran = _first(monkeypatch, judge)
    finding = verify(check, 25)
    assert (finding.verdict, finding.reason, finding.not_run) == ("skipped", "host 1 is gone", True)
    assert (finding.examples, len(ran)) == (3, 4)


def test_a_case_that_ends_its_world_is_not_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge() -> float:
        if len(ran) == 3:
            raise WorldError(
                "torchrun:2", [RankState(0, "returned", ""), RankState(1, "exited", "")], over=True
            )
        return 0.5

    check, ran = _first(monkeypatch, judge)
    finding = verify(check, 25)
    assert (finding.verdict, finding.smallest, len(ran)) == ("falsified", ran[2], 3)
    assert "not every time" not in finding.reason


def test_no_check_runs_in_a_world_that_is_not_there_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    check, ran = _first(monkeypatch, lambda: 0.5)
    row = dataclasses.replace(KINDS["single"], missing=lambda: "host 1 is gone")
    monkeypatch.setitem(KINDS, "single", row)
    finding = Certifier(25).verify(check)
    assert (finding.reason, finding.not_run, ran) == ("host 1 is gone", True, [])


def test_no_counterexample_is_made_smaller_once_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge() -> float:
        time.sleep(max(0, deadline - time.monotonic()))
        raise Falsified("wrong")

    check, ran = _first(monkeypatch, judge)
    deadline = time.monotonic() + 0.1
    finding = verify(check, 25, deadline=deadline)
    assert (finding.verdict, finding.smallest, len(ran)) == ("falsified", ran[0], 1)


def test_processes_do_not_look_at_a_target_once_time_is_over() -> None:
    asked = {"none": ("clip", Subject("no_such_module:Loss"))}
    assert fitted(asked, deadline=time.monotonic()) == asked


def test_a_derivative_that_nearly_underflows_accuses_nobody() -> None:
    flags = ("local_loss", True), ("gather_with_grad", True)
    options = (*flags, ("clip_loss_weight", 1.0), ("caption_loss_weight", 1.0))
    case = Case((1, 1, 1), 94, pattern="grid", scale=100.0, options=options, cotangents="drawn")
    planned = checks({"coca": SHIPPED["coca"]}, parse("sim:3"))
    (check,) = [one for one in planned if one.law.name == "cotangents pass through"]
    assert falsify(check, Example(case)) < 1


@pytest.mark.parametrize(
    ("name", "pinned", "ignored"),
    [("EveryLabelCounts", (), set()), ("CrossEntropy", (("ignore_index", 3),), {3})],
    ids=["it takes none", "it is pinned"],
)
def test_labels_are_ignored_as_the_loss_is_constructed(
    name: str, pinned: tuple[tuple[str, object], ...], ignored: set[int]
) -> None:
    asked = ask(f"tests.defects.cosine:{name}", "cross_entropy", config=pinned)
    (check,) = plan(fitted({name: asked}), "1", only=["terms equal the oracle"])
    finding = verify(check, 40)
    assert finding.verdict == "holds", f"{finding.reason}\n{finding.counterexample}"
    assert {case.pad_id for case in finding.cases if case.pads != "none" or case.pad_rows} == ignored


def test_a_confident_loss_of_half_precision_logits_accuses_nobody() -> None:
    case = Case((2,), dtype="float16", pattern="grid", pad_id=1000, pads="inside", seed=902)
    planned = checks({"torch": ("cross_entropy", Subject("torch.nn:CrossEntropyLoss"))}, parse("1"))
    (check,) = [one for one in planned if one.law.name == "terms equal the oracle"]
    assert falsify(check, Example(case)) < 1


@pytest.mark.parametrize(
    ("dtypes", "drawn"), [(DTYPES, {"float64"}), (DTYPES[1:], {"float32"}), (DTYPES[2:], set())]
)
def test_second_derivatives_are_taken_in_a_dtype_that_is_asked_for(
    dtypes: tuple[str, ...], drawn: set[str]
) -> None:
    contract, subject = SHIPPED["clip"]
    subject = dataclasses.replace(subject, dtypes=dtypes)
    planned = checks({"clip": (contract, subject)}, parse("1"))
    (check,) = [one for one in planned if one.law.name == "twice differentiable"]
    finding = verify(check, EXAMPLES)
    assert {case.dtype for case in finding.cases} == drawn
    assert finding.verdict == ("holds" if drawn else "skipped")


@pytest.mark.parametrize(
    ("dtypes", "drawn"), [(DTYPES, "float64"), (DTYPES[1:], "float32"), (DTYPES[2:], "bfloat16")]
)
def test_compiled_calls_are_in_a_dtype_that_is_asked_for(
    dtypes: tuple[str, ...], drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract, subject = SHIPPED["clip"]
    planned = checks({"clip": (contract, dataclasses.replace(subject, dtypes=dtypes))}, parse("2"))
    (check,) = [one for one in planned if one.law.name == "compiled equals eager"]
    monkeypatch.setattr(certifier, "falsify", lambda check, example: 0.0)
    cases = verify(check, EXAMPLES).cases
    assert {check.law.prepare(case).dtype for case in cases} == {drawn}


@pytest.mark.parametrize(
    ("worlds", "where"),
    [("1", {"single"}), ("1,sim:2", {"single"}), ("1,proc:2", {"processes:2"}), ("proc:3", set())],
)
def test_a_loss_is_compiled_in_one_process_where_no_two_are_verified(worlds: str, where: set[str]) -> None:
    planned = list(checks({"clip": SHIPPED["clip"]}, parse(worlds)))
    for law in ("compiled equals eager", "compiled keeps dtypes"):
        assert {check.world.name for check in planned if check.law.name == law} == where


def test_a_loss_that_does_not_gather_is_compiled_in_one_process() -> None:
    contract, subject = SHIPPED["clip"]
    subjects = {"clip": (contract, dataclasses.replace(subject, gathers=False))}
    planned = list(checks(subjects, parse("1,proc:2")))
    assert {check.world.name for check in planned if check.law.name == "compiled equals eager"} == {"single"}


def test_interpreted_kernels_meet_no_large_cases_and_no_compiler() -> None:
    contract, subject = SHIPPED["clip"]
    interpreted = list(checks({"clip": (contract, dataclasses.replace(subject, interpret=True))}, parse("1")))
    left_out = {check.law.name for check in checks({"clip": SHIPPED["clip"]}, parse("1"))}
    left_out -= {check.law.name for check in interpreted}
    assert left_out == {
        "large batches equal the oracle", "NaN spreads as the formula says", "compiled equals eager",
        "compiled keeps dtypes", "bfloat16 autocast equals the oracle", "float16 autocast equals the oracle",
    }  # fmt: skip
    (line,) = (line for line in not_verified(interpreted) if "interpreter" in line)
    assert (
        line
        == "large batches, many logits, NaN, autocast and torch.compile: not in Triton's interpreter: clip"
    )


OPEN_CLIP = importlib.util.find_spec("open_clip")
AGREE = [("clip", "ClipLoss", (("gather_with_grad", True), ("local_loss", local))) for local in (False, True)]
AGREE += [("siglip", "SigLipLoss", (("dist_impl", name),)) for name in ("bidir", "shift", "reduce", "gather")]


@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional:FutureWarning")
@pytest.mark.skipif(
    OPEN_CLIP is None, reason="open_clip_torch is not installed: upstream is not compared with"
)
@pytest.mark.parametrize("world", WORLDS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("law", ["terms equal the oracle", "gradients equal the oracle"])
@pytest.mark.parametrize(("contract", "name", "options"), AGREE)
def test_right_parts_of_open_clip_hold(
    contract: str, name: str, options: tuple[tuple[str, object], ...], law: str, world: WorldSpec
) -> None:
    assert OPEN_CLIP is not None
    assert OPEN_CLIP.origin is not None
    # its loss module alone: the package would import what training needs
    path = Path(OPEN_CLIP.origin).with_name("loss.py")
    # its exchanges refuse strided tensors and unequal rows, half precision overflows its sums, and ClipLoss
    # adds the bias in place, once to an image and twice to a text
    subject = Subject(
        f"{path}:{name}",
        ("open_clip",),
        even=True,
        dtypes=("float64", "float32"),
        strides=("contiguous",),
        cotangent_strides=("contiguous",),
        options=options,
        bias=contract == "siglip",
    )
    (chosen,) = [one for one in laws() if one.name == law]
    _verify(Check(name, contracts()[contract], subject, chosen, world))


@pytest.mark.parametrize("chunk_size", [0, 1])
def test_a_scalars_gradient_may_be_added_up_in_half_precision_part_by_part(chunk_size: int) -> None:
    # 128 parts of 0.95 and less: those of 128 ranks with a row each, or of 128 images scored one by one
    parts = 128
    rows = (parts,) if chunk_size else (1,) * parts
    options = (("chunk_size", chunk_size),)
    case = Case(options=options, rows=rows, dtype="bfloat16", pattern="zeros", bias=3.0)
    reference = Reference(contracts()["siglip"], Example(case))
    bound = reference.bounds.gradients[0]["logit_bias"]
    exact = reference.derivative(0, "logit_bias", np.ones(()))
    # rank 0's image is 0, so that its bias is every logit; its own text is the one positive
    slopes = torch.full((parts,), 3.0).sigmoid() - (torch.arange(parts) == 0).float()
    total = torch.zeros((), dtype=torch.bfloat16)
    for part in slopes * exact / slopes.sum():
        total = total + part.bfloat16()
    assert abs(total.item() - exact) <= bound
    # six roundings alone would not allow it
    assert abs(total.item() - exact) > bounds.gamma(6, 2.0**-8) * exact
