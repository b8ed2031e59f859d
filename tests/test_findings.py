"""How findings are judged, ranked and explained: limits, concerns, hints, and what is not finite."""

import dataclasses
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from verified_losses.oracles.infonce import normalize
from verified_losses.properties.ask import run
from verified_losses.properties.ask.run import smallest
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.examples import Example, Step
from verified_losses.properties.laws import Bench, Falsified, Place, Unanswered, compare, laws
from verified_losses.properties.laws.objects import OWNS_NOTHING
from verified_losses.properties.reference import Reference, reference
from verified_losses.properties.show import terminal
from verified_losses.properties.show.certificate import Asked
from verified_losses.properties.show.defects import Defect, ranked
from verified_losses.properties.standalone.acts import NO_MODES, Outcome
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify import certifier, concerns, hints, limits
from verified_losses.properties.verify.arguments import Unusable, ask
from verified_losses.properties.verify.certifier import Certifier, Check, Finding, checks
from verified_losses.properties.verify.known import Entry, Known
from verified_losses.properties.verify.plan import fitted
from verified_losses.properties.worlds import RankState, World, WorldError
from verified_losses.properties.worlds.single import SingleWorld
from verified_losses.properties.worlds.specs import WorldSpec, parse

pytestmark = pytest.mark.filterwarnings("ignore:Using `assume` outside")

LAWS = {law.name: law for law in laws()}
TERMS, GRADS, TWICE = "terms equal the oracle", "gradients equal the oracle", "twice differentiable"
FLAGS = (("convention", "exact"), ("local_loss", False), ("gather_with_grad", True), ("cache_labels", False))
RAISED = WorldError("sim", [RankState(0, "raised", "RuntimeError: no second derivative")])
EVEN, UNEVEN = Case(rows=(2, 2), options=FLAGS), Case(rows=(2, 1), options=FLAGS)


def _check(law: str = TERMS, contract: str = "clip", world: str = "sim:2-8", **subject: Any) -> Check:
    (spec,) = parse(world)
    return Check("Loss", contracts()[contract], Subject("any:Loss", **subject), LAWS[law], spec)


def _falsified(check: Check, *cases: Case, error: Exception | None = None) -> Finding:
    wrong = error or Falsified("wrong", Place("term", "contrastive_loss", 0, expected=1.0, observed=3.0))
    place = wrong.place if isinstance(wrong, Falsified) else None
    examples = [Example(case) for case in cases]
    met = tuple((example, place) for example in examples)
    return Finding(check, 0, "falsified", (0.1,), reason="wrong", smallest=examples[-1], error=wrong, met=met)


def _again(verdict: Any, asked: list[Check]) -> Callable[[Check, float], Finding]:
    def verify(check: Check, until: float) -> Finding:
        asked.append(check)
        return Finding(check, 0, verdict, (0.5, 0.6), reason="again", smallest=Example(EVEN))

    return verify


# limits


def test_what_holds_with_equal_rows_is_a_limit() -> None:
    asked: list[Check] = []
    found = limits.judged(_falsified(_check(), UNEVEN, UNEVEN), _again("holds", asked), lambda *_: False)
    assert (found.verdict, found.limit, found.ratios) == ("limit", "unequal rows", (0.5, 0.6))
    assert [check.subject.even for check in asked] == [True]
    assert found.check == _check()
    assert not found.check.subject.even


@pytest.mark.parametrize("late", [True, False], ids=["before it is judged", "as cases are run again"])
def test_what_no_time_was_left_to_judge_is_not_verified(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = time.monotonic() + (0 if late else 0.2)

    def verify(check: Check, *_: Any) -> Finding:
        assert not late
        time.sleep(max(0, deadline - time.monotonic()))
        return Finding(check, 0, "skipped", reason="out of time", not_run=True)

    monkeypatch.setattr(certifier, "verify", verify)
    monkeypatch.setattr(certifier, "_error_of", lambda *_: None)
    uneven, wrong = _falsified(_check(), UNEVEN), Falsified("wrong too")
    found = certifier.judged(uneven, 10, deadline)
    assert (found.verdict, found.reason) == ("skipped", "no time was left to judge a failing case")
    assert found.not_run
    assert certifier.judged(_falsified(_check(), EVEN), 10, deadline).verdict == "falsified"
    sure = certifier.judged(dataclasses.replace(uneven, sure=(Example(EVEN), wrong)), 10, deadline)
    assert (sure.verdict, sure.smallest, sure.error) == ("falsified", Example(EVEN), wrong)


def test_the_last_case_that_is_no_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def falsify(check: Check, example: Example) -> float:
        raise Falsified("wrong", Place("term", "contrastive_loss", 0, expected=1.0, observed=3.0))

    monkeypatch.setattr(certifier, "falsify", falsify)
    (check,) = [
        one
        for one in checks({"Loss": ("clip", Subject("any:Loss"))}, parse("sim:2"))
        if one.law.name == TERMS
    ]
    found = certifier.verify(check, 50)
    assert found.sure is not None
    assert not limits.may_be_limit(check, *found.sure)
    assert found.sure[0] in dict(found.met)


HALF, SINGLE = (dataclasses.replace(EVEN, dtype=dtype) for dtype in ("float16", "float32"))
BFLOAT16 = dataclasses.replace(EVEN, dtype="bfloat16")


@pytest.mark.parametrize(
    ("examples", "refused", "limit"),
    [
        ((Example(HALF),), {"float16"}, "float16"),
        ((Example(HALF), Example(BFLOAT16)), {"float16", "bfloat16"}, "bfloat16, float16"),
        ((Example(EVEN, (Step(HALF),)),), {"float16", "bfloat16"}, "float16"),
        ((Example(EVEN, (Step(HALF),)), Example(BFLOAT16)), {"float16", "bfloat16"}, "bfloat16, float16"),
        ((Example(HALF), Example(BFLOAT16)), {"float16"}, ""),
        ((Example(HALF), Example(SINGLE)), {"float16"}, ""),
        ((Example(HALF),), set(), ""),
        ((Example(HALF),), {"float16", "bfloat16", "float32", "float64"}, ""),
    ],
)
@pytest.mark.parametrize("verdict", ["holds", "skipped"])
def test_dtypes_in_which_every_call_raises_are_a_limit(
    examples: tuple[Example, ...], refused: set[str], limit: str, verdict: str
) -> None:
    finding = dataclasses.replace(
        _falsified(_check(), EVEN, error=RAISED),
        smallest=examples[-1],
        met=tuple((one, None) for one in examples),
    )
    asked: list[Check] = []
    found = limits.judged(
        finding, _again(verdict, asked), lambda _, example: example.case.dtype not in refused
    )
    assert (found.verdict, found.limit) == ("limit" if limit else "falsified", limit)
    assert [set(limit.split(", ")) & set(check.subject.dtypes) for check in asked] == [set()] * bool(limit)


def test_a_dtype_in_which_a_case_holds_is_not_refused() -> None:
    finding = dataclasses.replace(_falsified(_check(), HALF, error=RAISED), cases=(HALF,))
    assert limits.judged(finding, _again("holds", []), lambda _, one: one.case.dtype != "float16").limit == ""


def test_rows_without_a_value_do_not_tell_whether_a_dtype_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check = _check()
    monkeypatch.setattr(type(check.contract), "defined", lambda self, case: max(case.rows) > 1)
    finding = _falsified(check, HALF, error=RAISED)

    def returns(_: Check, example: Example) -> bool:
        assert max(example.case.rows) > 1
        return example.case.dtype != "float16"

    assert limits.judged(finding, _again("holds", []), returns).limit == "float16"
    monkeypatch.setattr(type(check.contract), "defined", lambda self, case: False)
    assert limits.judged(finding, _again("holds", []), returns).limit == ""


@pytest.mark.parametrize(
    ("check", "cases"),
    [
        (_check(strict=True), (UNEVEN,)),
        (_check(even=True), (UNEVEN,)),
        (_check(), (UNEVEN, EVEN)),
        (_check(world="1"), (Case(rows=(2,)),)),
    ],
    ids=["strict", "equal rows already", "failed with equal rows", "one rank"],
)
def test_what_is_no_question_of_unequal_rows_stays_a_defect(check: Check, cases: tuple[Case, ...]) -> None:
    asked: list[Check] = []
    assert limits.judged(_falsified(check, *cases), _again("holds", asked), lambda *_: True).limit == ""
    assert asked == []


def test_what_is_wrong_with_unequal_rows_that_some_terms_are_right_for_stays_a_defect() -> None:
    wrong = Falsified("wrong", Place("term", "contrastive_loss"))
    asked: list[Check] = []

    def judge(
        fails: Callable[[tuple[int, ...]], bool], error: Exception, law: str = TERMS, first: Exception = wrong
    ) -> Finding:
        def error_of(check: Check, example: Example) -> Exception | None:
            assert limits.has_unequal_rows(example)
            return error if fails(example.case.rows) else None

        finding = _falsified(_check(law), dataclasses.replace(UNEVEN, rows=(1, 1, 2)), error=first)
        return limits.judged(finding, _again("holds", asked), lambda *_: False, error_of)

    turned = ((2, 3, 1), (3, 1, 2))
    assert judge(lambda rows: rows in turned, wrong).verdict == "falsified"
    assert asked == []
    assert judge(lambda rows: True, wrong).limit == "unequal rows"
    assert judge(lambda rows: False, wrong).limit == "unequal rows"  # of plain rows nothing is known
    assert judge(lambda rows: rows in turned, RAISED).limit == "unequal rows"
    assert asked[-1].law.name == TERMS
    assert judge(lambda rows: False, wrong, GRADS).verdict == "falsified"  # their terms are right
    assert judge(lambda rows: rows in turned, wrong, GRADS).verdict == "falsified"
    assert judge(lambda rows: True, wrong, GRADS).limit == "unequal rows"
    assert judge(lambda rows: rows in turned, RAISED, "used equals fresh", RAISED).limit == "unequal rows"
    alone = judge(lambda rows: False, RAISED, "used equals fresh", RAISED)  # in which no call raises
    assert alone.verdict == "falsified"


def test_what_is_wrong_with_equal_rows_too_is_shown_with_those() -> None:
    found = limits.judged(_falsified(_check(), UNEVEN), _again("falsified", []), lambda *_: False)
    assert (found.verdict, found.limit, found.smallest) == ("falsified", "", Example(EVEN))
    assert found.check == _check()


def test_of_two_reasons_the_one_that_equal_rows_have_is_shown() -> None:
    asked: list[Check] = []
    raised, finding = WorldError("sim", RAISED.ranks), _falsified(_check(), EVEN, UNEVEN)
    found = limits.judged(finding, _again("holds", asked), lambda *_: True, lambda *_: raised)
    assert (found.verdict, found.limit, found.smallest, found.error) == (
        "falsified",
        "",
        Example(EVEN),
        raised,
    )
    assert [example for example, _ in found.met] == [Example(EVEN)]
    assert found.reason == f"WorldError: {raised}"
    assert limits.judged(finding, _again("holds", asked), lambda *_: True) == finding
    assert limits.judged(finding, _again("falsified", asked), lambda *_: True).smallest == Example(EVEN)


def test_without_a_case_of_equal_rows_it_stays_a_defect() -> None:
    finding = _falsified(_check(), UNEVEN)
    assert limits.judged(finding, _again("skipped", []), lambda *_: False) == finding


def test_unequal_rows_of_earlier_calls_count() -> None:
    before = Example(EVEN, (Step(UNEVEN),))
    assert limits.has_unequal_rows(before)
    assert not limits.has_unequal_rows(Example(EVEN, (Step(EVEN),)))


def _second(error: Exception, law: str = TWICE, returns: bool = True, *, strict: bool = False) -> Finding:
    finding = _falsified(_check(law, strict=strict), EVEN, error=error)
    return limits.judged(finding, _again("holds", []), lambda *_: returns, lambda *_: error)


def _at_a_kink(place: Place, beside: Exception | None = None, again: str = "holds", **asked: Any) -> Finding:
    finding = _falsified(_check(GRADS, **asked), EVEN, error=Falsified("wrong", place))
    return limits.judged(finding, _again(again, []), lambda *_: True, lambda *_: beside)


JUMP = Place("gradient", "image_features", 0, expected=0.5, observed=1.0, bound=1e-15)


def test_a_gradient_that_is_wrong_in_single_points_alone_is_a_limit() -> None:
    found = _at_a_kink(JUMP)
    assert (found.verdict, found.limit, found.ratios) == ("limit", "kinks", (0.5, 0.6))
    assert limits.dtypes_of(found.limit) == ()


@pytest.mark.parametrize(
    "found",
    [
        _at_a_kink(JUMP, beside=Falsified("wrong", JUMP)),
        _at_a_kink(JUMP, again="falsified"),
        _at_a_kink(JUMP, strict=True),
        _at_a_kink(dataclasses.replace(JUMP, observed=np.nan)),
        _at_a_kink(dataclasses.replace(JUMP, kind="term", name="contrastive_loss")),
    ],
    ids=["beside it too", "elsewhere too", "strict", "no number", "a value"],
)
def test_what_is_no_question_of_kinks_stays_a_defect(found: Finding) -> None:
    assert (found.verdict, found.limit) == ("falsified", "")


def test_a_loss_that_torch_does_not_compile_has_a_limit() -> None:
    compiled = "compiled equals eager"
    assert _second(RAISED, law=compiled).limit == "torch.compile raises"
    wrong = Falsified("wrong", Place("gradient", "x", 0, expected=1.0, observed=2.0))
    for found in (_second(wrong, law=compiled), _second(RAISED, law=compiled, returns=False)):
        assert (found.verdict, found.limit) == ("falsified", "")


def test_a_second_derivative_that_raises_is_a_limit_and_one_that_is_wrong_is_none() -> None:
    assert _second(RAISED).limit == "a second derivative raises"
    wrong = Falsified("wrong", Place("second derivative", "x", 0, expected=1.0, observed=2.0))
    hung = WorldError("sim", [RankState(0, "raised", ""), RankState(1, "hung", "")])
    for found in (
        _second(wrong),
        _second(hung),
        _second(RAISED, strict=True),
        _second(RAISED, law=GRADS),
        _second(RAISED, returns=False),
    ):
        assert (found.verdict, found.limit) == ("falsified", "")


def test_a_limit_is_told_of_when_it_is_known_to_be_none() -> None:
    wrong = Falsified("wrong")
    assert limits.may_be_limit(_check(), Example(UNEVEN), wrong)
    assert limits.may_be_limit(_check(TWICE), Example(EVEN), RAISED)
    assert not limits.may_be_limit(_check(), Example(EVEN), wrong)
    assert not limits.may_be_limit(_check(strict=True), Example(UNEVEN), wrong)


def test_after_a_limit_a_target_is_asked_for_equal_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def falsify(check: Check, example: Example) -> float:
        ran.append(check)
        if limits.has_unequal_rows(example):
            raise Falsified("wrong")
        return 0.5

    ran: list[Check] = []
    monkeypatch.setattr(certifier, "falsify", falsify)
    announced: list[Finding] = []
    first = Certifier(40, found=announced.append)
    found = first.verify(_check())
    assert (found.verdict, found.limit, announced) == ("limit", "unequal rows", [])
    assert found.counterexample
    ran.clear()
    later = first.verify(_check(GRADS))
    assert (later.verdict, later.reason) == ("holds", limits.EVEN_ALONE)
    assert {check.subject.even for check in ran} == {True}
    assert later.check == _check(GRADS)
    strict = Certifier(40).verify(_check(strict=True))
    assert (strict.verdict, strict.limit) == ("falsified", "")


def _run(*findings: Finding, known: Known | None = None) -> run.Run:
    subjects = {"Loss": ("clip", Subject("verified_losses:ClipLoss"))}
    planned = [finding.check for finding in findings]
    return run.Run(subjects, planned, Asked(0, 1, "sim:2-8"), known or Known(), list(findings))


def _limited(law: str = TERMS) -> Finding:
    return dataclasses.replace(_falsified(_check(law), UNEVEN), verdict="limit", limit="unequal rows")


def test_limits_alone_hold_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    holds = Finding(_check(GRADS), 0, "holds", (0.1,), (EVEN,))
    of = _run(_limited(), holds, known=Known([Entry(TERMS, "as agreed")]))
    record = of.record
    assert record.verdict == "holds"
    assert record.limits == ["unequal rows"]  # type: ignore[union-attr]
    assert [(one.verdict, one.limit) for one in record.properties] == [  # type: ignore[union-attr]
        ("limit", "unequal rows"), ("holds", ""),
    ]  # fmt: skip
    console = run.printer()
    run.show(of, console)
    assert run.conclude(of, record.verdict, console) == 0
    said = capsys.readouterr().out
    assert "limits, which are no defects unless --strict:" in said
    assert "Loss: does not support unequal rows" in said
    assert "smallest case: Case(rows=(2, 1)" in said
    assert "1 check holds, but for: unequal rows over 2 cases" in said
    assert "did not occur" not in said


VIEW = WorldError("sim", [RankState(0, "raised", "RuntimeError: view size is not compatible")])
STRIDED = dataclasses.replace(EVEN, strides="sliced")


def test_a_loss_that_raises_for_strided_inputs_alone_has_a_limit() -> None:
    asked: list[Check] = []
    tried: list[Example] = []
    finding = _falsified(_check(), STRIDED, error=VIEW)
    found = limits.judged(
        finding, _again("holds", asked), lambda *_: True, lambda _, example: tried.append(example)
    )
    assert (found.verdict, found.limit, found.ratios) == ("limit", "strided inputs", (0.5, 0.6))
    assert [check.subject.strides for check in asked] == [("contiguous",)]
    assert [check.subject.cotangent_strides for check in asked] == [Subject("any:Loss").cotangent_strides]
    assert tried == [Example(EVEN)]
    assert found.check == _check()


@pytest.mark.parametrize(
    ("finding", "error"),
    [
        (_falsified(_check(strict=True), STRIDED, error=VIEW), None),
        (_falsified(_check(), STRIDED), None),
        (_falsified(_check(), EVEN, STRIDED, error=VIEW), None),
        (_falsified(_check(), dataclasses.replace(EVEN, cotangent_strides="expanded"), error=VIEW), None),
        (_falsified(_check(), STRIDED, error=VIEW), VIEW),
    ],
    ids=[
        "strict",
        "a wrong number",
        "contiguous inputs too",
        "a strided cotangent",
        "the same without strides",
    ],
)
def test_what_is_no_question_of_strided_inputs_stays_a_defect(
    finding: Finding, error: Exception | None
) -> None:
    found = limits.judged(finding, _again("holds", []), lambda *_: True, lambda *_: error)
    assert (found.verdict, found.limit) == ("falsified", "")


def _off(error: float, dtype: str = "float64", **subject: Any) -> Finding:
    place = Place("term", "contrastive_loss", 0, expected=1.0, observed=1.0 + error, bound=1e-15)
    case = dataclasses.replace(EVEN, dtype=dtype)
    return _falsified(_check(**subject), case, error=Falsified("wrong", place))


def test_an_error_that_float32_would_round_off_is_a_limit() -> None:
    asked: list[Check] = []
    found = limits.judged(_off(2e-9), _again("holds", asked), lambda *_: True)
    assert (found.verdict, found.limit, found.ratios) == ("limit", "rounding in float64", (0.5, 0.6))
    assert ["float64" in check.subject.dtypes for check in asked] == [False]
    assert limits.dtypes_of(found.limit) == ("float64",)


@pytest.mark.parametrize(
    ("finding", "again"),
    [
        (_off(1e-6), "holds"),
        (_off(np.nan), "holds"),
        (_off(2e-9), "falsified"),
        (_off(2e-9, "float32"), "holds"),
        (_off(2e-9, dtypes=("float64",)), "holds"),
        (_off(2e-9, strict=True), "holds"),
        (dataclasses.replace(_off(2e-9), check=_check("large batches equal the oracle")), "holds"),
        (_falsified(_check(), EVEN, error=VIEW), "holds"),
    ],
    ids=["larger", "nan", "without float64 too", "in float32", "float64 alone", "strict", "large", "raised"],
)
def test_a_larger_error_or_one_outside_float64_stays_a_defect(finding: Finding, again: str) -> None:
    found = limits.judged(finding, _again(again, []), lambda *_: True)
    assert (found.verdict, found.limit) == ("falsified", "")


def test_of_several_errors_in_float64_the_largest_decides() -> None:
    small, large = _off(2e-9), _off(1e-6)
    both = dataclasses.replace(small, met=(*large.met, *small.met))
    found = limits.judged(both, _again("holds", []), lambda *_: True, lambda *_: large.error)
    assert (found.verdict, found.error, found.met) == ("falsified", large.error, large.met)


def test_a_loss_that_refuses_strided_inputs_and_unequal_rows_is_not_accused() -> None:
    def verify(check: Check, until: float) -> Finding:
        if check.subject.strides != ("contiguous",):
            return _falsified(check, STRIDED, error=VIEW)
        if not check.subject.even:
            return _falsified(check, UNEVEN, error=VIEW)
        return Finding(check, 0, "holds", (0.5,), (EVEN,))

    found = limits.judged(_falsified(_check(), STRIDED, error=VIEW), verify, lambda *_: True)
    assert (found.verdict, found.limit, found.check) == ("limit", "unequal rows", _check())
    later = limits.judged(_falsified(_check(), UNEVEN, error=VIEW), verify, lambda *_: True)
    assert (later.verdict, later.limit) == ("limit", "strided inputs")


def test_after_that_limit_a_target_is_asked_for_contiguous_inputs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def falsify(check: Check, example: Example) -> float:
        ran.append(check)
        if example.case.strides != "contiguous":
            raise VIEW
        return 0.5

    ran: list[Check] = []
    monkeypatch.setattr(certifier, "falsify", falsify)
    monkeypatch.setattr(certifier, "_returns", lambda *_: False)
    announced: list[Finding] = []
    first = Certifier(40, found=announced.append)
    found = first.verify(_check())
    assert (found.verdict, found.limit, announced) == ("limit", "strided inputs", [])
    ran.clear()
    later = first.verify(_check(GRADS))
    assert (later.verdict, later.reason) == ("holds", limits.CONTIGUOUS_ALONE)
    assert {check.subject.strides for check in ran} == {("contiguous",)}


# concerns


@pytest.mark.parametrize(
    ("law", "case", "steps", "expected"),
    [
        (TERMS, EVEN, (), "training"),
        (TERMS, dataclasses.replace(EVEN, strides="sliced"), (), "layouts"),
        (GRADS, dataclasses.replace(EVEN, cotangent_strides="expanded"), (), "layouts"),
        ("cotangents pass through", EVEN, (), "cotangents"),
        (TWICE, dataclasses.replace(EVEN, strides="sliced"), (), "second derivatives"),
        ("compiled equals eager", EVEN, (), "torch.compile"),
        ("leaves no trace", EVEN, (), "traces"),
        (
            "used equals fresh",
            dataclasses.replace(EVEN, options=(("cache_labels", True),)),
            (),
            "cached labels",
        ),
        ("used equals fresh", EVEN, (Step(EVEN, "inference"),), "inference mode"),
        ("used equals fresh", EVEN, (Step(EVEN),), "training"),
    ],
)
def test_whom_a_finding_concerns(law: str, case: Case, steps: tuple[Step, ...], expected: str) -> None:
    finding = dataclasses.replace(_falsified(_check(law), case), smallest=Example(case, steps))
    assert concerns.concern(finding) == expected
    assert expected in concerns.CONCERNS


def test_a_layout_counts_where_the_same_case_holds_without_it() -> None:
    finding = _falsified(_check(), dataclasses.replace(EVEN, strides="sliced"))
    asked: list[Example] = []
    assert concerns.concern(finding, lambda example: bool(asked.append(example))) == "layouts"
    assert asked == [Example(EVEN)]
    assert concerns.concern(finding, lambda example: True) == "training"


def test_what_is_wrong_under_inference_mode_alone_concerns_those_who_use_it() -> None:
    place = Place("term", "contrastive_loss", 0, "under inference mode", expected=1.0, observed=2.0)
    assert concerns.concern(_falsified(_check(), EVEN, error=Falsified("wrong", place))) == "inference mode"


def test_defects_come_in_the_order_of_whom_they_concern() -> None:
    several = [Defect(_falsified(_check(law), EVEN)) for law in (TWICE, "cotangents pass through", TERMS)]
    assert [defect.leader.law for defect in ranked(several)] == [TERMS, "cotangents pass through", TWICE]
    both = Defect(several[0].leader, (several[2].leader,))
    assert both.concern == "training"
    out = run.printer()
    with out.capture() as captured:
        terminal.show(out, several, Known())
    said = captured.get()
    first, second = said.index("what makes a plain training step wrong:"), said.index("derive twice")
    assert first < said.index(f"Loss: {TERMS} does not") < second < said.index(f"Loss: {TWICE} does not")
    assert "--skip 'twice differentiable' 'second derivatives travel'" in " ".join(said.split())


# hints


def _explained(
    observe: Callable[[float, Reference], float], *cases: Case, contract: str = "clip", term: str = ""
) -> tuple[Finding, tuple[hints.Hint, ...]]:
    """Return a finding of rank 0's term, and what explains it, where `observe` gives what is seen."""
    held_to = contracts()[contract]
    met = []
    name = term or held_to.terms[0]
    for case in cases:
        reference = Reference(held_to, Example(case))
        expected = float(reference.terms[0][name])
        bound = float(reference.bounds.terms[0][name])
        place = Place("term", name, 0, expected=expected, observed=observe(expected, reference), bound=bound)
        met.append((Example(case), place))
    finding = _falsified(_check(contract=contract), *cases, error=Falsified("wrong", met[-1][1]))
    finding = dataclasses.replace(finding, met=tuple(met))
    return finding, hints.explain(finding)


RANDOM = [Case((3, 2), 5, pattern="large", scale=2.0, options=FLAGS, seed=seed) for seed in range(3)]


@pytest.mark.parametrize(("factor", "number"), [("2", 2.0), ("1/2", 0.5), ("n", 5.0), ("1/n", 0.2)])
def test_one_number_explains_every_case(factor: str, number: float) -> None:
    cases = [dataclasses.replace(case, rows=(2, 2, 1)) for case in RANDOM]
    finding, found = _explained(lambda expected, _: number * expected, *cases)
    assert [(one.kind, one.factor) for one in found] == [("times", factor)]
    said = terminal.hints(dataclasses.replace(finding, hints=found), "--")[0]
    assert said.startswith("in every case that fails, the value is exactly ")
    if factor == "2":
        assert said.endswith("state it: --call 'target(...) / 2'")


def test_a_number_explains_nothing_where_many_cases_hold_without_it() -> None:
    cases = [dataclasses.replace(case, rows=(2, 2, 1)) for case in RANDOM]
    finding, found = _explained(lambda expected, _: 2 * expected, *cases)
    assert [one.factor for one in found] == ["2"]
    assert not hints._explained(dataclasses.replace(finding, cases=tuple(RANDOM[:1] * 8)))
    assert hints._explained(dataclasses.replace(finding, cases=tuple(RANDOM[:1] * 7))) == found


def test_unequal_rows_that_raise_leave_the_number_that_explains_the_others() -> None:
    even = [dataclasses.replace(case, rows=(2, 2)) for case in RANDOM]
    finding, found = _explained(lambda expected, _: 2 * expected, *even)
    raised = dataclasses.replace(finding, met=((Example(RANDOM[0]), None), *finding.met))
    assert hints.explain(raised) == found != ()
    also = dataclasses.replace(finding, met=((Example(even[0]), None), *finding.met))
    assert hints.explain(also) == ()


LOW = dataclasses.replace(RANDOM[0], scale=50.0)


@pytest.mark.parametrize(
    ("failing", "held", "said"),
    [
        ((LOW,), [RANDOM[0]] * 8, "met with a scale of 50 or more alone: 8 cases elsewhere hold"),
        ((RANDOM[0],), [LOW] * 8, "met with a scale of 2 or less alone: 8 cases elsewhere hold"),
        ((LOW,), [RANDOM[0]] * 7, ""),  # too few
        ((LOW,), [RANDOM[0]] * 8 + [LOW], ""),
        ((LOW, dataclasses.replace(LOW, scale=1.0)), [RANDOM[0]] * 8, ""),
        ((dataclasses.replace(LOW, dtype="float16"),), [LOW] * 8,
         "met in float16 alone: 8 cases elsewhere hold"),
        ((dataclasses.replace(LOW, dtype="float16"),),
         [dataclasses.replace(RANDOM[0], dtype="float16"), *[LOW] * 7],
         "met in float16 with a scale of 50 or more alone: 8 cases elsewhere hold"),
        ((dataclasses.replace(LOW, drawn=(("temperature", 0.01), ("how", "mean"))),),
         [dataclasses.replace(LOW, drawn=(("temperature", 0.5), ("how", "mean")))] * 8,
         "met with a temperature of 0.01 or less alone: 8 cases elsewhere hold"),
    ],
)  # fmt: skip
def test_where_all_cases_that_fail_lie_is_said(failing: Any, held: Any, said: str) -> None:
    place = Place("term", "contrastive_loss", 0, expected=1.0, observed=float("nan"), bound=1e-9)
    finding = _falsified(_check(contract="clip"), *failing, error=Falsified("wrong", place))
    met = tuple((Example(case), place) for case in failing)
    finding = dataclasses.replace(finding, met=met, cases=tuple(held))
    found = hints.explain(finding)
    assert [terminal._worded([one], "", "--") for one in found] == [said] * bool(said)


def test_ranks_are_told_from_two_by_another_number_of_ranks() -> None:
    three = dataclasses.replace(RANDOM[0], rows=(2, 1, 1))
    _, found = _explained(lambda expected, given: given.case.world_size * expected, RANDOM[0], three)
    assert [one.factor for one in found] == ["W"]
    finding, found = _explained(lambda expected, given: given.case.world_size * expected, RANDOM[0])
    assert [one.factor for one in found] == ["2", "W"]
    said = terminal.hints(dataclasses.replace(finding, hints=found), "--")[0]
    assert "exactly 2, which is the number of ranks times" in said


def test_what_no_number_explains_in_one_case_has_no_hint() -> None:
    numbers = iter([2.0, 2.0, 2.001])
    assert _explained(lambda expected, _: next(numbers) * expected, *RANDOM)[1] == ()
    assert _explained(lambda expected, _: expected + 0.1, *RANDOM)[1] == ()


def test_the_divergence_is_told_from_the_cross_entropy() -> None:
    def less_entropy(expected: float, given: Reference) -> float:
        inputs = given.inputs
        swapped = [one | {name: one[f"dist_{name}"] for name in hints.STUDENT[:3]} for one in inputs]
        entropy = given.contract.oracle(given.case, swapped)[0]["distill_loss"]
        return expected - float(np.real(entropy))

    cases = [dataclasses.replace(case, teacher_width=4) for case in RANDOM]
    finding, found = _explained(less_entropy, *cases, contract="distill", term="distill_loss")
    assert [one.kind for one in found] == ["entropy"]
    assert "KL divergence" in terminal.hints(dataclasses.replace(finding, hints=found), "--")[0]


def test_rows_that_are_normalised_explain_a_case() -> None:
    def normalised(_: float, given: Reference) -> float:
        inputs = [
            one
            | {
                name: one[name] / np.linalg.norm(one[name], axis=1, keepdims=True)
                for name in hints.FEATURES[:2]
            }
            for one in given.inputs
        ]
        return float(np.real(given.contract.oracle(given.case, inputs)[0]["contrastive_loss"]))

    finding, found = _explained(normalised, *RANDOM)
    assert [one.kind for one in found] == ["normalized"]
    assert "--features normalized" in terminal.hints(dataclasses.replace(finding, hints=found), "--")[0]


def test_hints_compare_with_what_the_oracle_gets() -> None:
    """A loss that holds the logarithm of its scale, and normalises where the contract does not."""

    def normalised(_: float, given: Reference) -> float:
        ready = given.contract.prepared(given.case, given.inputs)
        inputs = [one | {name: normalize(one[name]) for name in hints.FEATURES[:2]} for one in ready]
        return float(np.real(given.contract.oracle(given.case, inputs)[0]["contrastive_loss"]))

    cases = [dataclasses.replace(case, held=(("logit_scale", "exp"),)) for case in RANDOM]
    assert [one.kind for one in _explained(normalised, *cases)[1]] == ["normalized"]


def test_the_smallest_case_is_shown_with_its_own_numbers() -> None:
    first = _falsified(_check(), RANDOM[0], error=Falsified("expected 1, observed 2"))
    last = dataclasses.replace(first, error=Falsified("expected 3, observed 4"))
    assert smallest(last, first)[1:] == ["in it: expected 3, observed 4"]
    assert smallest(last, last) == [f"smallest case: {last.counterexample}"]


def test_rows_that_are_not_normalised_explain_a_case() -> None:
    def products(_: float, given: Reference) -> float:
        first, second = (np.concatenate([one[name] for one in given.inputs]) for name in ("first", "second"))
        logits = given.case.scale * first @ second.T
        return float(np.mean(np.log(np.exp(logits).sum(1)) - np.diagonal(logits)))

    cases = [Case((4,), 5, pattern="grid", scale=2.0, options=FLAGS, seed=seed) for seed in range(3)]
    finding, found = _explained(products, *cases, contract="infonce")
    assert [one.kind for one in found] == ["raw"]
    assert "--features raw" in terminal.hints(dataclasses.replace(finding, hints=found), "--")[0]


def test_another_option_explains_a_case() -> None:
    def local(_: float, given: Reference) -> float:
        case = dataclasses.replace(given.case, options=(("local_loss", True), *given.case.options[2:]))
        return float(np.real(given.contract.oracle(case, given.inputs)[0]["contrastive_loss"]))

    finding, found = _explained(local, *RANDOM)
    assert [one.config for one in found] == [(("local_loss", True),)]
    assert "--config local_loss=true" in terminal.hints(dataclasses.replace(finding, hints=found), "--")[0]


@pytest.mark.parametrize("rows", [(2, 2), (3, 1, 2)], ids=str)
def test_labels_that_begin_at_0_on_every_rank_explain_a_case(rows: tuple[int, ...]) -> None:
    options = (FLAGS[0], ("local_loss", True), *FLAGS[2:])
    case = Case(rows, 5, pattern="large", scale=2.0, options=options, seed=1)
    given = contracts()["clip"].inputs(case)
    images, texts = ([one[name] for one in given] for name in hints.FEATURES[:2])
    logits = given[1]["logit_scale"] * images[1] @ np.concatenate(texts).T
    others = given[1]["logit_scale"] * texts[1] @ np.concatenate(images).T
    lost = [np.logaddexp.reduce(one, axis=1) - np.diagonal(one) for one in (logits, others)]
    reference = Reference(contracts()["clip"], Example(case))
    expected = float(reference.terms[1]["contrastive_loss"])
    bound = float(reference.bounds.terms[1]["contrastive_loss"])
    place = Place(
        "term", "contrastive_loss", 1, expected=expected, observed=float(np.mean(lost)), bound=bound
    )
    finding = _falsified(_check(), case, error=Falsified("wrong", place))
    found = hints.explain(finding)
    assert [one.kind for one in found] == ["offset"]
    said = terminal.hints(dataclasses.replace(finding, hints=found), "--")[0]
    assert "labels that begin at 0 on every rank" in said


def test_a_term_that_is_a_plain_number_has_no_hint() -> None:
    options = (*FLAGS, ("clip_loss_weight", 0.0), ("caption_loss_weight", 2.0), ("pad_id", 0))
    case = Case((2, 2), 5, options=options)
    _, found = _explained(lambda expected, _: expected + 1.0, case, contract="coca")
    assert found == ()


def test_a_finding_without_a_smallest_case_has_no_empty_line() -> None:
    finding = dataclasses.replace(_falsified(_check(), EVEN), smallest=None)
    assert "smallest case" not in terminal.explained(Defect(finding), "--")
    assert "smallest case: Case(" in terminal.explained(Defect(_falsified(_check(), EVEN)), "--")


# what is not finite


class _Canned(Bench):
    """A bench whose acts give what was made beforehand, one after another."""

    def act(self, act: Any, *steps: Any) -> Any:
        return self.world.pop(0)  # type: ignore[attr-defined]


def _bench(contract: str, *results: Any, single: tuple[Any, ...] = ()) -> Bench:
    return _Canned(contracts()[contract], Subject("any:Loss"), list(results), list(single))  # type: ignore[arg-type]


def _outcomes(
    reference: Reference, term: float | None = None, gradient: float | None = None
) -> list[Outcome]:
    """Return the expected outcome of every rank, or one with these values."""
    made = []
    for rank, terms in enumerate(reference.terms):
        values = {name: np.asarray(value if term is None else term) for name, value in terms.items()}
        gradients: dict[str, Any] = {}
        for name in reference.contract.differentiable:
            if (given := reference.inputs[rank].get(name)) is not None:
                units = np.eye(given.size).reshape(given.size, *given.shape)
                right = [reference.derivative(rank, name, unit) for unit in units]
                gradients[name] = np.reshape(right, given.shape)
                if gradient is not None:
                    gradients[name] = np.full(given.shape, gradient)
        made.append(Outcome("Tensor", values, {}, gradients))
    return made


CASE = Case((2,), 2, pattern="unit", options=FLAGS)
OVERFLOWS = Case((2,), 2, dtype="float16", pattern="unit", options=FLAGS)
INFINITE = [np.inf, -np.inf, np.nan]


def _asked(law: str, case: Case, term: float | None, gradient: float | None, contract: str = "clip") -> None:
    """Run a law where every call gives these values."""
    reference = Reference(contracts()[contract], Example(case))
    seen = [[one] for one in _outcomes(reference, term, gradient)]
    right = [[one] for one in _outcomes(reference)]
    if law == "padding never matters":
        both = [[one[0], other[0]] for one, other in zip(right, seen, strict=True)]
        LAWS[law].check(_bench(contract, both), reference)
    elif law == "deterministic":
        thrice = [[other[0], one[0], other[0]] for one, other in zip(right, seen, strict=True)]
        LAWS[law].check(_bench(contract, thrice), reference)
    elif law == "used equals fresh":
        both = [[other[0], one[0]] for one, other in zip(right, seen, strict=True)]
        LAWS[law].check(_bench(contract, both), reference)
    else:
        LAWS[law].check(_bench(contract, seen, seen, single=(seen,)), reference)


@pytest.mark.parametrize("value", INFINITE)
@pytest.mark.parametrize(
    "law",
    [
        TERMS,
        "deterministic",
        "used equals fresh",
        "compiled equals eager",
        "mean over ranks equals single process",
    ],
)
def test_a_value_that_is_not_finite_is_compared_with_the_oracle(law: str, value: float) -> None:
    right = float(Reference(contracts()["clip"], Example(CASE)).terms[0]["contrastive_loss"])
    with pytest.raises(Falsified, match=f"expected {right:.9g}, observed {value:g}, which is not finite"):
        _asked(law, CASE, value, None)


@pytest.mark.parametrize("value", INFINITE)
@pytest.mark.parametrize("law", [GRADS, "cotangents pass through", "compiled equals eager", "deterministic"])
def test_a_gradient_that_is_not_finite_names_the_oracles(law: str, value: float) -> None:
    with pytest.raises(Falsified, match=r"expected -?\d\S*, observed \S+, which is not finite") as raised:
        _asked(law, CASE, None, value)
    assert raised.value.place is not None
    assert np.isfinite(raised.value.place.expected)
    assert raised.value.place.index
    assert raised.value.place.along is None


@pytest.mark.parametrize(
    "law",
    [
        TERMS,
        "deterministic",
        "used equals fresh",
        "compiled equals eager",
        "mean over ranks equals single process",
    ],
)
def test_what_leaves_the_dtype_is_not_judged(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beyond = [{"contrastive_loss": np.asarray(1e5)}]
    monkeypatch.setattr(Reference, "terms", property(lambda self: beyond))
    _asked(law, OVERFLOWS, np.inf, None)
    monkeypatch.setattr(Reference, "terms", property(lambda self: [{"contrastive_loss": np.asarray(1e4)}]))
    with pytest.raises(Falsified):
        _asked(law, OVERFLOWS, np.inf, None)


def test_what_overflows_on_both_sides_is_no_finding_of_padding() -> None:
    case = Case((2,), 2, pattern="unit", vocabulary=3, length=2, pads="inside", seed=3, options=(
        *FLAGS, ("clip_loss_weight", 1.0), ("caption_loss_weight", 1.0)))  # fmt: skip
    reference = Reference(contracts()["coca"], Example(case))
    infinite = [[one, one] for one in _outcomes(reference, np.inf)]
    LAWS["padding never matters"].check(_bench("coca", infinite), reference)
    with pytest.raises(Falsified, match=r"after filling the padding: expected .*, observed inf"):
        _asked("padding never matters", case, np.inf, None, "coca")


def test_what_is_expected_to_be_no_number_is_not_judged() -> None:
    place = Place("second derivative", "x", 0)
    for expected in INFINITE:
        assert compare(place, [1.0, 2.0], [1.0, expected], 0.0) == 0
    assert compare(place, 70000.0, 70000.0, 1.0, largest=65504.0) == 0
    # the sum of 216 losses of 637 is beyond the largest number of float16, and their mean is not
    assert compare(place, np.inf, 637.0, 1.0, largest=65504.0, summed=216) == 0
    for seen, summed in ((np.inf, 1), (np.inf, 100), (300.0, 216)):
        with pytest.raises(Falsified):
            compare(place, seen, 637.0, 1.0, largest=65504.0, summed=summed)
    with pytest.raises(Falsified, match="which is not finite"):
        compare(place, np.nan, 1.0, np.inf)
    with pytest.raises(Falsified):
        compare(place, [np.nan, 1.0], [np.nan, 2.0], 0.5)


# what is not said twice


def test_what_targets_have_not_is_one_line_and_what_was_not_drawn_is_counted() -> None:
    holds = [
        dataclasses.replace(Finding(_check(law), 0, "holds", (0.1,)), reason=limits.EVEN_ALONE)
        for law in (TERMS, GRADS)
    ]
    skipped = [
        Finding(_check(law, world=world), 0, "skipped", reason=reason)
        for law, world, reason in (
            ("eval equals train", "1", NO_MODES),
            ("eval equals train", "sim:2-8", NO_MODES),
            ("owned parameters get gradients", "1", OWNS_NOTHING),
            (TWICE, "1", "no dtype"),
            (TWICE, "sim:2-8", "no dtype"),
        )
    ]
    other = dataclasses.replace(skipped[-1], check=dataclasses.replace(skipped[-1].check, label="Other"))
    assert run.left_unsaid([skipped[-1], other]) == [
        "Loss, Other: twice differentiable in world simulated:2-8: no dtype"
    ]
    assert run.left_unsaid([*holds, *skipped]) == [
        "Loss: twice differentiable in worlds single, simulated:2-8: no dtype",
        "Loss: no eval mode and no parameter of its own that requires grad",
        f"Loss: 2 checks {limits.EVEN_ALONE}",
    ]


def test_a_first_call_that_takes_long_is_said_to_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.01)
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    with run.waiting(console, ["Slow"]):
        for _ in range(200):
            if printed.getvalue():
                break
            time.sleep(0.01)
    assert printed.getvalue() == "Slow: waits for the first calls, up to 20 s for each that hangs\n"
    with run.waiting(console, ["Quick"]):
        pass
    assert "Quick" not in printed.getvalue()


def test_what_cancels_in_the_oracle_is_shown_as_0() -> None:
    place = Place("gradient", "x", 0)
    with pytest.raises(Falsified, match=r"expected 0, observed 0\.5,"):
        compare(place, 0.5, 3e-18, 1e-16)
    with pytest.raises(Falsified, match="expected 3e-18, observed 4e-18"):
        compare(place, 4e-18, 3e-18, 1e-30)


# losses that cannot be called


PLAN = "verified_losses.properties.verify.plan"


class _Here:
    """Worlds of this process."""

    until = 0.0

    def open(self, spec: WorldSpec, patience: float = 1.0, size: int | None = None) -> World:
        if spec.sizes != (1,):
            raise WorldError("simulated", [])
        return SingleWorld()


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "worlds", lambda self: _Here())
    monkeypatch.setattr(f"{PLAN}.find", lambda *_, **named: Case(options=FLAGS))
    monkeypatch.setattr(f"{PLAN}._is_called_by_several", lambda *_: False)


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    ("name", "said", "detail"),
    [
        ("NoForward", "NoForward has no forward; the contract clip calls it with image_features", ""),
        (
            "WrongShapes",
            "image_features (float32, [1, 1]), text_features (float32, [1, 1]), logit_scale (float32, [])",
            "mat1 and mat2",
        ),
    ],
)
def test_a_loss_that_cannot_be_called_is_unusable(name: str, said: str, detail: str) -> None:
    with pytest.raises(Unusable) as raised:
        fitted({name: ask(f"tests.uncallable:{name}", "clip")})
    assert said in raised.value.problem
    assert detail in raised.value.detail


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    "target",
    ["tests.uncallable:NoFloat64", "tests.uncallable:NoSingleRow"],
)
def test_a_loss_that_can_be_called_in_some_way_is_certified(target: str) -> None:
    (found,) = fitted({"Loss": ask(target, "clip")}).values()
    assert found[1].target == target


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize("by_several", [True, False])
def test_a_loss_that_gathers_without_asking_is_certified_on_several_ranks(
    by_several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{PLAN}._is_called_by_several", lambda *_: by_several)
    asked = {"Loss": ask("tests.defects.clip:GathersAlone", "clip")}
    if by_several:
        assert fitted(asked)["Loss"][1].target == "tests.defects.clip:GathersAlone"
        return
    with pytest.raises(Unusable, match="every call raised"):
        fitted(asked)


def test_a_target_that_is_still_being_compiled_is_not_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = '  File "site-packages/torch/_dynamo/convert_frame.py", line 777 in __call__'
    states = [RankState(0, "hung", f"no answer in 80 s\n{stack}"), RankState(1, "hung", "no answer in 80 s")]

    def observe(self: Bench, steps: object) -> object:
        raise WorldError("processes:2", states)

    monkeypatch.setattr(Bench, "observe", observe)
    (law,) = [one for one in laws() if one.name == "compiled equals eager"]
    check = next(
        one for one in checks({"clip": SHIPPED["clip"]}, parse("proc:2")) if one.law.name == law.name
    )
    bench = Bench(check.contract, check.subject, SingleWorld(), SingleWorld())
    case = Case(rows=(1, 1), options=(("local_loss", False), ("gather_with_grad", True)))
    with pytest.raises(Unanswered, match="took longer than a call may"):
        law.check(bench, reference(check.contract, Example(case)))
    states[0] = RankState(0, "hung", "no answer in 80 s")
    with pytest.raises(WorldError):
        law.check(bench, reference(check.contract, Example(case)))
