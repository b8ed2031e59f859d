"""Limits of a target: what it does not support and has not promised, which is no defect unless `--strict`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from verified_losses.oracles.bounds import FLOAT32, FLOAT64

from ..cases import Case, moved
from ..examples import Example
from ..laws import AUTOCAST, COMPILE, SECOND_DERIVATIVES, Falsified, Place, large, values
from ..laws.hygiene import RAISING_AGAIN
from ..laws.wrappers import RAISING_SUBCLASSES, RAISING_TRANSFORMS
from ..names import HALVES
from ..worlds import WorldError
from ..worlds.simulated import SimulationError

if TYPE_CHECKING:
    from .certifier import Check, Finding

UNEQUAL_ROWS = "unequal rows"
STRIDED_INPUTS = "strided inputs"
FLOAT64_ROUNDING = "rounding in float64"
KINKS = "kinks"
RANDOM_DRAWS = "random draws"
RAISING_SECOND_DERIVATIVES = "a second derivative raises"
RAISING_COMPILED = "torch.compile raises"
RAISING_AUTOCAST = "autocast raises"
RAISING_INFERENCE = "inference mode raises"
WORDS = {
    UNEQUAL_ROWS: "does not support unequal rows: with equally many rows on every rank this holds",
    STRIDED_INPUTS: "does not take inputs that are not contiguous: with contiguous ones this holds",
    FLOAT64_ROUNDING: "is as exact as float32 allows, and in float64 no more: without float64 this holds",
    KINKS: "has a gradient that is wrong in single points alone, as at a kink: beside these this holds",
    RANDOM_DRAWS: "draws random numbers other than those of one process: with constants instead this holds",
    RAISING_SECOND_DERIVATIVES: RAISING_SECOND_DERIVATIVES,
    RAISING_COMPILED: RAISING_COMPILED,
    RAISING_AUTOCAST: RAISING_AUTOCAST,
    RAISING_INFERENCE: RAISING_INFERENCE,
    RAISING_AGAIN: RAISING_AGAIN,
    RAISING_TRANSFORMS: RAISING_TRANSFORMS,
    RAISING_SUBCLASSES: RAISING_SUBCLASSES,
}
"""What each limit says of a target."""
WAYS = (1, 2, 3)
"""In which rows are moved."""
CONTIGUOUS = ("contiguous",)
IF_IT_RAISES = {
    SECOND_DERIVATIVES: RAISING_SECOND_DERIVATIVES,
    COMPILE: RAISING_COMPILED,
    AUTOCAST: RAISING_AUTOCAST,
}
"""The limit of a target that raises, and is not wrong, by what a law concerns."""
EVEN_SECONDS = 10.0
"""How long a check is verified again with equal rows."""
ROWS_OF_DTYPE = (1, 2, 5)
"""Of the calls that are to raise too, where a dtype is refused."""
OTHER_DTYPES = "verified without {}, which a limit names"
EVEN_ALONE = "verified with equal rows alone: the target does not support unequal ones"
CONTIGUOUS_ALONE = "verified with contiguous inputs alone: the target does not take others"

VerifyAgain = Callable[["Check", float], "Finding"]
"""Verifies a check over cases of the same seed; past that time it draws no more than one case."""
ErrorOf = Callable[["Check", Example], Exception | None]
"""Runs a check on an example again: what it fails with."""
Returns = Callable[["Check", Example], bool]
"""Whether a plain call of an example and its backward return."""


def has_unequal_rows(example: Example) -> bool:
    """Whether the ranks hold different numbers of rows in one of an example's calls."""
    return any(len(set(case.rows)) > 1 for case in _calls(example))


def _calls(example: Example) -> tuple[Case, ...]:
    return example.case, *(step.case for step in example.steps)


def evenly(check: "Check") -> "Check":
    """Return a check that draws equally many rows for every rank."""
    return replace(check, subject=replace(check.subject, even=True))


def is_strided(example: Example) -> bool:
    """Whether inputs of one of an example's calls are not contiguous."""
    return with_contiguous_inputs(example) != example


def with_contiguous_inputs(example: Example) -> Example:
    """Return an example with contiguous inputs in all of its calls; cotangents keep their layout."""
    return example.changed(lambda case: replace(case, strides="contiguous"))


def contiguously(check: "Check") -> "Check":
    """Return a check that draws contiguous inputs alone."""
    return replace(check, subject=replace(check.subject, strides=CONTIGUOUS))


def beside(example: Example, way: int = 1) -> Example:
    """Return an example whose rows of features lie beside its own, in all of its calls."""
    return example.changed(lambda case: moved(case, way))


def words(limit: str) -> str:
    """Return what a limit says of a target."""
    return WORDS.get(limit, f"does not take {limit}")


def dtypes_of(limit: str) -> tuple[str, ...]:
    """Return the dtypes that are not drawn within a limit."""
    if limit == FLOAT64_ROUNDING:
        return ("float64",)
    return () if limit in WORDS else tuple(filter(None, limit.split(", ")))


def without(check: "Check", dtypes: tuple[str, ...]) -> "Check":
    """Return a check that draws none of some dtypes."""
    kept = tuple(one for one in check.subject.dtypes if one not in dtypes)
    return replace(check, subject=replace(check.subject, dtypes=kept))


@dataclass(frozen=True)
class Limits:
    """What a target's other checks leave out once it is known not to be supported."""

    unequal_rows: bool = False
    strided_inputs: bool = False
    dtypes: tuple[str, ...] = ()

    def plus(self, limit: str) -> "Limits":
        """Return these limits and another one, if that is one of inputs."""
        return Limits(
            self.unequal_rows or limit == UNEQUAL_ROWS,
            self.strided_inputs or limit == STRIDED_INPUTS,
            (*self.dtypes, *dtypes_of(limit)),
        )

    def of(self, check: "Check") -> "Limits":
        """Return those that change what a check draws."""
        return replace(
            self, unequal_rows=self.unequal_rows and max(check.sizes) > 1 and not check.subject.even
        )

    def applied(self, check: "Check") -> "Check":
        """Return a check that draws nothing beyond them."""
        check = without(check, self.dtypes) if self.dtypes else check
        check = contiguously(check) if self.strided_inputs else check
        return evenly(check) if self.unequal_rows else check

    def words(self) -> str:
        """Return what is said of a check that holds within them; nothing where there are none."""
        words = [EVEN_ALONE] * self.unequal_rows + [CONTIGUOUS_ALONE] * self.strided_inputs
        words += [OTHER_DTYPES.format(", ".join(self.dtypes))] * bool(self.dtypes)
        return "; ".join(words)


def may_be_limit(check: "Check", example: Example, error: Exception) -> bool:
    """Whether a failure may turn out to be a limit: it is then told of once that is known."""
    if check.subject.strict:
        return False
    unequal = has_unequal_rows(example) and not check.subject.even
    refused = _raised(error) and len(check.subject.dtypes) > 1
    strided = _raised(error) and is_strided(example) and check.subject.strides != CONTIGUOUS
    place = error.place if isinstance(error, Falsified) else None
    small = _is_small(check, example, place) or _may_be_kink(check, example, place)
    inferred = _raised(error) and _has_inference(check, example)
    return unequal or refused or strided or small or inferred or _raises_alone(check, error)


def judged(
    finding: "Finding", verify_again: VerifyAgain, returns: Returns, error_of: ErrorOf = lambda *_: None
) -> "Finding":
    """Return a falsified finding as a limit, where it is one and the target is not judged strictly.

    What fails after calls under inference mode alone is no limit, and hides what fails without them. Where
    the law does not hold within a limit either, what is wrong there is returned: of cases that fail for
    several reasons, the smallest may fail for unequal rows.
    """
    check = finding.check
    if finding.verdict != "falsified":
        return finding
    finding = replace(_without_inference(finding, verify_again), check=check)
    if check.subject.strict:
        return finding

    def strided(found: "Finding") -> "Finding":
        return _strided(found, verify_again, error_of)

    def kinked(found: "Finding") -> "Finding":
        return _kinked(found, verify_again, error_of)

    stages: list[Callable[[Finding], Finding]] = [
        lambda found: _refused(found, verify_again, returns),
        lambda found: _inexact(found, verify_again, error_of),
        kinked,
        strided,
        lambda found: _uneven(found, verify_again, error_of),
        kinked,  # of equal rows
        strided,
        lambda found: _uninferred(found, verify_again, error_of),
        lambda found: _raising(found, returns),
    ]
    for stage in stages:
        if finding.verdict == "falsified" and finding.smallest is not None:
            finding = stage(finding)
    return replace(finding, check=check)


def _within(finding: "Finding", again: "Finding", limit: str) -> "Finding":
    """Return as a limit what is falsified, and holds over the cases within that limit."""
    return replace(
        finding,
        verdict="limit",
        limit=limit,
        ratios=again.ratios,
        cases=again.cases,
        seconds=finding.seconds + again.seconds,
        hung=False,
        more=again.more,
    )


def _instead(finding: "Finding", again: "Finding") -> "Finding":
    """Return what was found when a finding was verified again, in the place of that finding."""
    return replace(again, seconds=finding.seconds + again.seconds)


def _settled(finding: "Finding", again: "Finding", limit: str) -> "Finding":
    """Return a finding as a limit if the law holds within it; else what is wrong there, if that is known."""
    if again.verdict == "holds":
        return _within(finding, again, limit)
    return _instead(finding, again) if again.verdict == "falsified" else finding


def _failed(finding: "Finding") -> list[Example]:
    """Return the cases that fail."""
    return [example for example, _ in finding.met] or ([finding.smallest] if finding.smallest else [])


def _uneven(finding: "Finding", verify_again: VerifyAgain, error_of: ErrorOf) -> "Finding":
    """Return a finding as a limit where unequal rows alone fail.

    What is wrong with equal rows is returned instead. Where a target's terms are right for unequal rows, it
    takes them, and what else is wrong with them is no limit; nor are terms that are wrong for some of them.
    """
    check = finding.check
    if check.subject.even or finding.smallest is None or not has_unequal_rows(finding.smallest):
        return finding
    if _takes_some(finding, error_of):
        return finding
    again = verify_again(evenly(check), time.monotonic() + EVEN_SECONDS)
    if again.verdict == "holds" and not all(map(has_unequal_rows, _failed(finding))):
        # by luck: a case of equal rows fails
        return _with_a_case(finding, lambda example, _: not has_unequal_rows(example), error_of)
    return _settled(finding, again, UNEQUAL_ROWS)


def _takes_some(finding: "Finding", error_of: ErrorOf) -> bool:
    """Whether terms of plain rows are right for some that are unequal, and something is wrong with others."""
    (terms,) = values.LAWS
    check, smallest = replace(finding.check, law=terms), finding.smallest
    if smallest is None:
        return False
    plain = replace(smallest.case, pattern="unit", strides="contiguous", width=check.subject.width_of(4))
    size = plain.world_size
    turned = [tuple((rank + turn) % size + 1 for rank in range(size)) for turn in range(size)]
    splits = sorted({*turned, *(rows[::-1] for rows in turned)})
    cases = [one for rows in splits if check.contract.defined(one := replace(plain, rows=rows))]
    errors = [error_of(check, Example(one)) for one in cases]
    if None not in errors:
        return False
    if finding.law == terms.name:
        return any(isinstance(one, Falsified) for one in errors)
    return isinstance(finding.error, Falsified) or not any(isinstance(one, WorldError) for one in errors)


def _strided(finding: "Finding", verify_again: VerifyAgain, error_of: ErrorOf) -> "Finding":
    """Return a finding as a limit where calls with strided inputs alone raise.

    What returns a wrong number for them is no limit, and neither is a backward that raises for a strided
    cotangent, as autograd makes such. Where with contiguous inputs something else is wrong, that is returned.
    """
    check, smallest = finding.check, finding.smallest
    if check.subject.strides == CONTIGUOUS or smallest is None or finding.error is None:
        return finding
    if not _raised(finding.error) or not all(map(is_strided, _failed(finding))):
        return finding
    if any(place is not None for _, place in finding.met):
        return finding
    if error_of(check, with_contiguous_inputs(smallest)) is not None:
        return finding
    again = verify_again(contiguously(check), time.monotonic() + EVEN_SECONDS)
    return _settled(finding, again, STRIDED_INPUTS)


def _with_a_case(
    finding: "Finding", chosen: Callable[[Example, Place | None], bool], error_of: ErrorOf
) -> "Finding":
    """Return a finding with the last chosen case that failed, where that fails again."""
    met = tuple(one for one in finding.met if chosen(*one))
    error = error_of(finding.check, met[-1][0]) if met else None
    if error is None:
        return finding
    reason = f"{type(error).__name__}: {error}"
    return replace(finding, smallest=met[-1][0], error=error, reason=reason, met=met)


def _refused(finding: "Finding", verify_again: VerifyAgain, returns: Returns) -> "Finding":
    """Return a finding as a limit where each call in some dtypes raises, and without these the law holds.

    Where without them something else is wrong, that is returned.
    """
    check, found = finding.check, finding
    refused: tuple[str, ...] = ()
    while found.verdict == "falsified" and (more := _dtypes_refused(found, returns)):
        refused = (*refused, *more)
        found = verify_again(without(check, refused), time.monotonic() + EVEN_SECONDS)
        if found.verdict in ("holds", "skipped"):  # a law of these dtypes alone has nothing left to say
            return _within(finding, found, ", ".join(refused))
    return _instead(finding, found) if refused and found.verdict == "falsified" else finding


def _inexact(finding: "Finding", verify_again: VerifyAgain, error_of: ErrorOf) -> "Finding":
    """Return a finding as a limit where float64 alone fails, by no more than float32 would round off.

    A softplus that torch makes linear beyond 20 is such a loss, and a norm to which 1e-8 is added. Where a
    larger error was met, or one in another dtype, that is returned.
    """
    check, smallest = finding.check, finding.smallest
    if smallest is None or not _is_small(check, smallest, dict(finding.met).get(smallest)):
        return finding
    if not all(_is_small(check, *one) for one in finding.met):
        return _with_a_case(finding, lambda *one: not _is_small(check, *one), error_of)
    again = verify_again(without(check, ("float64",)), time.monotonic() + EVEN_SECONDS)
    return _settled(finding, again, FLOAT64_ROUNDING)


def _is_small(check: "Check", example: Example, place: Place | None) -> bool:
    """Whether an error in float64 is within the bound that it has in float32."""
    if example.case.dtype != "float64" or "float32" not in check.subject.dtypes:
        return False
    # of a large batch the bound in float32 would hide a row that is left out
    if place is None or not place.bound or check.law.name in {law.name for law in large.LAWS}:
        return False
    error = abs(np.asarray(place.observed) - np.asarray(place.expected))
    return bool(np.all(error <= place.bound * FLOAT32 / FLOAT64))


def _without_inference(finding: "Finding", verify_again: VerifyAgain) -> "Finding":
    """Return what fails without calls under inference mode, where all cases that fail have such calls."""
    failed = _failed(finding)
    if not failed or not all(any(step.mode == "inference" for step in one.steps) for one in failed):
        return finding
    again = verify_again(_with_gradient(finding.check), time.monotonic() + EVEN_SECONDS)
    return _instead(finding, again) if again.verdict == "falsified" else finding


def _uninferred(finding: "Finding", verify_again: VerifyAgain, error_of: ErrorOf) -> "Finding":
    """Return a finding as a limit where a call under inference mode raises, and without such calls it holds.

    A call that raises after one under inference mode is no limit.
    """
    check, smallest = finding.check, finding.smallest
    if smallest is None or finding.error is None or not _raised(finding.error):
        return finding
    if not _has_inference(check, smallest):
        return finding
    called = next((step.case for step in smallest.steps if step.mode == "inference"), smallest.case)
    (terms,) = values.LAWS
    asked = replace(check, law=terms)
    error = error_of(asked, Example(called))
    if error is None or not _raised(error) or error_of(_with_gradient(asked), Example(called)) is not None:
        return finding
    again = verify_again(_with_gradient(check), time.monotonic() + EVEN_SECONDS)
    return _settled(finding, again, RAISING_INFERENCE)


def _has_inference(check: "Check", example: Example) -> bool:
    """Whether a check calls under inference mode, or an example does."""
    return "inference" in check.law.modes or any(step.mode == "inference" for step in example.steps)


def _with_gradient(check: "Check") -> "Check":
    """Return a check without calls under inference mode."""
    return replace(check, subject=replace(check.subject, inference=False))


def _kinked(finding: "Finding", verify_again: VerifyAgain, error_of: ErrorOf) -> "Finding":
    """Return a finding as a limit where gradients alone are wrong, in special points alone.

    log(1 + exp(-x)) as clamp(-x, min=0) + log1p(exp(-abs(x))) is such a loss: autograd takes the one side's
    gradient of each at 0. Rows are moved a little in every case that fails: a gradient that is wrong in a
    region stays wrong, and so does one that is not finite.
    """
    check = finding.check
    if finding.smallest is None or not finding.met:
        return finding
    if not all(_may_be_kink(check, *one) for one in finding.met):
        return finding
    for example, _ in reversed(finding.met):
        # in half precision a logit may round to 0 beside it too
        if all(error_of(check, beside(example, way)) is not None for way in WAYS):
            return finding
    around = replace(check, subject=replace(check.subject, beside=True))
    again = verify_again(around, time.monotonic() + EVEN_SECONDS)
    if again.verdict == "holds":
        return _within(finding, again, KINKS)
    # what remains may be unequal rows
    uneven = again.smallest is not None and has_unequal_rows(again.smallest)
    return _instead(finding, again) if uneven else finding


def _may_be_kink(check: "Check", example: Example, place: Place | None) -> bool:
    """Whether a finite gradient is wrong at rows that may be zeros, equal, opposite or at right angles."""
    if check.subject.beside or example.case.beside or not (check.contract.rows or check.contract.whole):
        return False
    case = example.case
    if case.pattern in ("unit", "large") and case.width > 1 and case.dtype not in HALVES:
        return False  # random numbers
    if place is None or place.kind not in ("gradient", "second derivative"):
        return False
    observed = np.asarray(place.observed)
    return observed.dtype.kind == "f" and bool(np.all(np.isfinite(observed)))


def _dtypes_refused(finding: "Finding", returns: Returns) -> tuple[str, ...]:
    """Return the dtypes in which every call raises, where all that fails has a call in one of them."""
    check, smallest = finding.check, finding.smallest
    if smallest is None or finding.error is None or not _raised(finding.error):
        return ()
    width = check.subject.width_of(4)
    plain = replace(smallest.case, pattern="unit", scale=1.0, strides="contiguous", width=width)
    calls = [replace(plain, rows=(rows,) * plain.world_size) for rows in ROWS_OF_DTYPE]
    # of rows for which there is no value, a call may return anything
    calls = [one for one in calls if check.contract.defined(one)]

    def returned(dtype: str, cases: list[Case]) -> Iterator[bool]:
        wide = plain.wide_scalars and dtype in HALVES
        return (returns(check, Example(replace(one, dtype=dtype, wide_scalars=wide))) for one in cases)

    failed = [{case.dtype for case in _calls(one)} for one in _failed(finding)]
    unheld = [one for one in check.subject.dtypes if one not in {case.dtype for case in finding.cases}]
    tried = [one for one in unheld if any(one in dtypes for dtypes in failed)]
    refused = tuple(one for one in tried if calls and not any(returned(one, calls)))
    if not all(dtypes.intersection(refused) for dtypes in failed):
        return ()
    # in another dtype the same calls return
    kept = [one for one in check.subject.dtypes if one not in refused]
    some = [one for one in calls if min(one.rows) > 1]
    return refused if kept and some and all(returned(kept[0], some)) else ()


def _raising(finding: "Finding", returns: Returns) -> "Finding":
    """Return a finding as a limit where a second derivative or torch.compile raises, and no plain call."""
    check, example, error = finding.check, finding.smallest, finding.error
    if example is None or error is None or not _raises_alone(check, error):
        return finding
    if any(place is not None for _, place in finding.met) or not returns(check, example):
        return finding
    return replace(finding, verdict="limit", limit=IF_IT_RAISES[check.law.concerns], hung=False)


def _raises_alone(check: "Check", error: Exception) -> bool:
    """Whether a law of second derivatives, or of torch.compile, fails because a rank raised."""
    return check.law.concerns in IF_IT_RAISES and _raised(error)


def _raised(error: Exception) -> bool:
    """Whether a rank raised, and no rank was cut off."""
    if not isinstance(error, WorldError):
        return False
    if isinstance(error, SimulationError) and error.finding != "raised":
        return False
    ended = [state.state for state in error.ranks]
    return "raised" in ended and not {"exited", "killed", "hung"} & set(ended)
