"""Limits of a target: what it does not support and has not promised, which is no defect unless `--strict`."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..examples import Example
from ..laws import AUTOCAST, COMPILE, SECOND_DERIVATIVES
from ..laws.hygiene import RAISING_AGAIN
from ..laws.wrappers import RAISING_SUBCLASSES, RAISING_TRANSFORMS
from ..worlds import WorldError
from ..worlds.simulated import SimulationError

if TYPE_CHECKING:
    from .certifier import Check, Finding

UNEQUAL_ROWS = "unequal rows"
RANDOM_DRAWS = "random draws"
RAISING_SECOND_DERIVATIVES = "a second derivative raises"
RAISING_COMPILED = "torch.compile raises"
RAISING_AUTOCAST = "autocast raises"
WORDS = {
    UNEQUAL_ROWS: "does not support unequal rows: with equally many rows on every rank this holds",
    RANDOM_DRAWS: "draws random numbers other than those of one process: with constants instead this holds",
    RAISING_SECOND_DERIVATIVES: RAISING_SECOND_DERIVATIVES,
    RAISING_COMPILED: RAISING_COMPILED,
    RAISING_AUTOCAST: RAISING_AUTOCAST,
    RAISING_AGAIN: RAISING_AGAIN,
    RAISING_TRANSFORMS: RAISING_TRANSFORMS,
    RAISING_SUBCLASSES: RAISING_SUBCLASSES,
}
"""What each limit says of a target."""
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
OTHER_DTYPES = "verified without {}, which the target does not take"
EVEN_ALONE = "verified with equal rows alone: the target does not support unequal ones"

VerifyAgain = Callable[["Check", float], "Finding"]
"""Verifies a check over cases of the same seed; past that time it draws no more than one case."""
ErrorOf = Callable[["Check", Example], Exception | None]
"""Runs a check on an example again: what it fails with."""
Returns = Callable[["Check", Example], bool]
"""Whether a plain call of an example and its backward return."""


def has_unequal_rows(example: Example) -> bool:
    """Whether the ranks hold different numbers of rows in one of an example's calls."""
    return any(len(set(case.rows)) > 1 for case in (example.case, *(step.case for step in example.steps)))


def evenly(check: "Check") -> "Check":
    """Return a check that draws equally many rows for every rank."""
    return replace(check, subject=replace(check.subject, even=True))


def words(limit: str) -> str:
    """Return what a limit says of a target."""
    return WORDS.get(limit, f"does not take {limit}")


def dtypes_of(limit: str) -> tuple[str, ...]:
    """Return the dtypes that a target does not take, where that is the limit."""
    return () if limit in WORDS else tuple(filter(None, limit.split(", ")))


def without(check: "Check", dtypes: tuple[str, ...]) -> "Check":
    """Return a check that draws none of some dtypes."""
    kept = tuple(one for one in check.subject.dtypes if one not in dtypes)
    return replace(check, subject=replace(check.subject, dtypes=kept))


def may_be_limit(check: "Check", example: Example, error: Exception) -> bool:
    """Whether a failure may turn out to be a limit: it is then told of once that is known."""
    if check.subject.strict:
        return False
    unequal = has_unequal_rows(example) and not check.subject.even
    refused = _raised(error) and len(check.subject.dtypes) > 1
    return unequal or refused or _raises_alone(check, error)


def judged(
    finding: "Finding", verify_again: VerifyAgain, returns: Returns, error_of: ErrorOf = lambda *_: None
) -> "Finding":
    """Return a falsified finding as a limit, where it is one and the target is not judged strictly.

    Where the law does not hold with equal rows either, what is wrong with those is returned: of cases that
    fail for several reasons, the smallest may fail for unequal rows.
    """
    check = finding.check
    if finding.verdict != "falsified" or check.subject.strict or finding.smallest is None:
        return finding
    finding = _refused(finding, verify_again, returns)
    if finding.verdict != "falsified" or finding.smallest is None:
        return finding
    failed = [example for example, _ in finding.met] or [finding.smallest]
    if not check.subject.even and has_unequal_rows(finding.smallest):
        again = verify_again(evenly(check), time.monotonic() + EVEN_SECONDS)
        if again.verdict == "holds" and all(map(has_unequal_rows, failed)):
            return replace(
                finding,
                verdict="limit",
                limit=UNEQUAL_ROWS,
                ratios=again.ratios,
                cases=again.cases,
                seconds=finding.seconds + again.seconds,
                hung=False,
                more=again.more,
            )
        if again.verdict == "falsified":
            finding = replace(again, check=check, seconds=finding.seconds + again.seconds)
        elif again.verdict == "holds":  # by luck: a case of equal rows fails
            finding = _of_equal_rows(finding, error_of)
    return _raising(finding, returns)


def _of_equal_rows(finding: "Finding", error_of: ErrorOf) -> "Finding":
    """Return a finding with a case of equally many rows that fails, where one fails again."""
    met = tuple(one for one in finding.met if not has_unequal_rows(one[0]))
    error = error_of(finding.check, met[-1][0]) if met else None
    if error is None:
        return finding
    reason = f"{type(error).__name__}: {error}"
    return replace(finding, smallest=met[-1][0], error=error, reason=reason, met=met)


def _refused(finding: "Finding", verify_again: VerifyAgain, returns: Returns) -> "Finding":
    """Return a finding as a limit where each call in a dtype raises, and without that the law holds.

    Where without it something else is wrong, that is returned.
    """
    check, found = finding.check, finding
    refused: tuple[str, ...] = ()
    while len(check.subject.dtypes) - len(refused) > 1 and (dtype := _dtype_refused(found, returns)):
        refused = (*refused, dtype)
        found = verify_again(without(check, refused), time.monotonic() + EVEN_SECONDS)
        if found.verdict == "holds":
            return replace(
                finding,
                verdict="limit",
                limit=", ".join(refused),
                ratios=found.ratios,
                cases=found.cases,
                seconds=finding.seconds + found.seconds,
                hung=False,
                more=found.more,
            )
    if refused and found.verdict == "falsified":
        return replace(found, check=check, seconds=finding.seconds + found.seconds)
    return finding


def _dtype_refused(finding: "Finding", returns: Returns) -> str:
    """Return the dtype of all cases that fail where every call in it raises; nothing where it does not."""
    if finding.smallest is None or finding.error is None or not _raised(finding.error):
        return ""
    failed = [example for example, _ in finding.met] or [finding.smallest]
    case = finding.smallest.case
    others = {one.dtype for one in finding.cases}
    if any(one.case.dtype != case.dtype for one in failed) or case.dtype in others:
        return ""
    width = finding.check.subject.width_of(4)
    plain = replace(case, pattern="unit", scale=1.0, strides="contiguous", width=width)
    tried = [Example(replace(plain, rows=(rows,) * case.world_size)) for rows in ROWS_OF_DTYPE]
    if any(returns(finding.check, one) for one in tried):
        return ""
    # in another dtype the same calls return
    kept = next(one for one in finding.check.subject.dtypes if one != case.dtype)
    wider = [Example(replace(one.case, dtype=kept, wide_scalars=False)) for one in tried]
    return case.dtype if all(returns(finding.check, one) for one in wider[1:]) else ""


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
