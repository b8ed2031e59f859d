"""Limits of a target: what it does not support and has not promised, which is no defect unless `--strict`."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..examples import Example
from ..laws import SECOND_DERIVATIVES
from ..worlds import WorldError
from ..worlds.simulated import SimulationError

if TYPE_CHECKING:
    from .certifier import Check, Finding

UNEQUAL_ROWS = "unequal rows"
RAISING_SECOND_DERIVATIVES = "a second derivative raises"
WORDS = {
    UNEQUAL_ROWS: "does not support unequal rows: with equally many rows on every rank this holds",
    RAISING_SECOND_DERIVATIVES: "a second derivative raises",
}
"""What each limit says of a target."""
EVEN_SECONDS = 10.0
"""How long a check is verified again with equal rows."""
EVEN_ALONE = "verified with equal rows alone: the target does not support unequal ones"

VerifyAgain = Callable[["Check", float], "Finding"]
"""Verifies a check over cases of the same seed; past that time it draws no more than one case."""
Returns = Callable[["Check", Example], bool]
"""Whether a plain call of an example and its backward return."""


def has_unequal_rows(example: Example) -> bool:
    """Whether the ranks hold different numbers of rows in one of an example's calls."""
    return any(len(set(case.rows)) > 1 for case in (example.case, *(step.case for step in example.steps)))


def evenly(check: "Check") -> "Check":
    """Return a check that draws equally many rows for every rank."""
    return replace(check, subject=replace(check.subject, even=True))


def may_be_limit(check: "Check", example: Example, error: Exception) -> bool:
    """Whether a failure may turn out to be a limit: it is then told of once that is known."""
    if check.subject.strict:
        return False
    unequal = has_unequal_rows(example) and not check.subject.even
    return unequal or _raises_second(check, error)


def judged(finding: "Finding", verify_again: VerifyAgain, returns: Returns) -> "Finding":
    """Return a falsified finding as a limit, where it is one and the target is not judged strictly.

    Where the law does not hold with equal rows either, what is wrong with those is returned.
    """
    check = finding.check
    if finding.verdict != "falsified" or check.subject.strict or finding.smallest is None:
        return finding
    failed = [example for example, _ in finding.met] or [finding.smallest]
    if not check.subject.even and all(map(has_unequal_rows, failed)):
        again = verify_again(evenly(check), time.monotonic() + EVEN_SECONDS)
        if again.verdict == "holds":
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
    return _second(finding, returns)


def _second(finding: "Finding", returns: Returns) -> "Finding":
    """Return a finding as a limit where nothing but the second derivative raises."""
    check, example, error = finding.check, finding.smallest, finding.error
    if example is None or error is None or not _raises_second(check, error):
        return finding
    if any(place is not None for _, place in finding.met) or not returns(check, example):
        return finding
    return replace(finding, verdict="limit", limit=RAISING_SECOND_DERIVATIVES, hung=False)


def _raises_second(check: "Check", error: Exception) -> bool:
    """Whether a law of second derivatives fails because a rank raised."""
    if check.law.concerns != SECOND_DERIVATIVES or not isinstance(error, WorldError):
        return False
    if isinstance(error, SimulationError) and error.finding != "raised":
        return False
    ended = [state.state for state in error.ranks]
    return "raised" in ended and not {"exited", "killed", "hung"} & set(ended)
