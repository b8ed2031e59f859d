"""Falsified checks that one defect explains."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from hypothesis.errors import HypothesisDeprecationWarning, UnsatisfiedAssumption

from ..examples import Example
from ..laws import Falsified, Law, laws, plain_examples
from .certifier import Check, Finding, falsify
from .fingerprints import not_finite, signature

CHEAP = 0.1
"""A law that takes a smaller share of the examples is not run for grouping."""

GROUP_SECONDS = 20.0
"""How long cases are run again to tell which findings are one."""

F = TypeVar("F", bound=Finding)
Falsifies = Callable[[Check, Check, Example], bool]
"""Whether a check's law fails on a case that was found for another check, in that one's world."""


def group(
    findings: Sequence[F], seconds: float = GROUP_SECONDS, falsifies: Falsifies | None = None
) -> list[list[F]]:
    """Put together the findings that one defect explains; each group's first leads, by law and by world.

    Two findings of one subject are one where the same law finds the same wrong in two worlds, where the same
    failure of the target meets two laws, or where both find wrong numbers, or both numbers that are not
    finite, and the smallest case of one falsifies the law of the other too. In the last, cases are run
    again, for about `seconds` at most.
    """
    rerun = falsifies or falsified_by
    order = {law.name: place for place, law in enumerate(laws())}
    ranked = sorted(
        findings, key=lambda f: (order.get(f.check.law.name, len(order)), max(f.check.world.sizes))
    )
    deadline = time.monotonic() + seconds
    groups: list[list[F]] = []
    for finding in ranked:
        for members in groups:
            if _explains(members[0], finding, rerun, deadline):
                members.append(finding)
                break
        else:
            groups.append([finding])
    return groups


def falsified_by(check: Check, found: Check, example: Example) -> bool:
    """Run one check's law on an example of another, in the world where that one was found."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", HypothesisDeprecationWarning
            )  # of `assume` where nothing is drawn
            falsify(replace(check, world=found.world), example)
    except UnsatisfiedAssumption:
        return False
    except Falsified:
        return True
    except Exception:
        return False
    return False


def _explains(leader: F, finding: F, rerun: Falsifies, deadline: float) -> bool:
    one, other = leader.check, finding.check
    if (one.label, one.contract.name, one.subject) != (other.label, other.contract.name, other.subject):
        return False
    same_failure = signature(one.subject.target, leader.error) == signature(one.subject.target, finding.error)
    if not (_has_wrong_numbers(leader) and _has_wrong_numbers(finding)):
        # an exception is the same failure under any law; a malformed output is so under one law alone
        raised = not isinstance(leader.error, Falsified) and not isinstance(finding.error, Falsified)
        return same_failure and (raised or one.law.name == other.law.name)
    if one.law.name == other.law.name and same_failure:
        return True
    if not_finite(leader.error) != not_finite(finding.error):
        return False
    pairs = [(one, other, finding.smallest), (other, one, leader.smallest)]
    return any(
        example is not None
        and _applies(check.law, check, found, example)
        and time.monotonic() < deadline
        and rerun(check, found, example)
        for check, found, example in pairs
    )


def _has_wrong_numbers(finding: Finding) -> bool:
    error = finding.error
    return (
        isinstance(error, Falsified)
        and error.place is not None
        and error.place.kind in ("term", "gradient", "second derivative")
    )


def _applies(law: Law, check: Check, found: Check, example: Example) -> bool:
    """Whether a law says anything about an example that was drawn for another one."""
    return (
        not example.steps
        and (law.draw is plain_examples or law.takes(example.case))
        and law.share >= CHEAP
        and (law.simulated or not found.world.row.shares_process)
        and law.is_of(found.world.device)
        and law.fits(check.contract, example.case.world_size)
    )
