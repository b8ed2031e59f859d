"""What is wrong with a target, each defect once, with the program that shows it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..verify import concerns
from ..verify.certifier import Finding
from ..verify.grouping import GROUP_SECONDS, group
from .counterexample import write


@dataclass(frozen=True)
class Defect:
    """Findings that one defect explains."""

    leader: Finding
    others: tuple[Finding, ...] = ()
    file: Path | None = None
    """The leader's counterexample; None where it could not be written."""
    trouble: str = ""
    """Why it could not."""

    @property
    def concern(self) -> str:
        """The widest concern of its findings."""
        return min((concerns.of(one) for one in (self.leader, *self.others)), key=concerns.place)


def ranked(defects: Sequence[Defect]) -> list[Defect]:
    """Return defects in the order in which people read them: first what concerns everyone who trains."""
    return sorted(defects, key=lambda defect: concerns.place(defect.concern))


def explain(findings: Sequence[Finding], folder: Path, deadline: float = math.inf) -> list[Defect]:
    """Group what is falsified, and write one counterexample a group.

    When `time.monotonic()` is past the deadline, no case is run again to tell which findings are one.
    """
    defects = []
    falsified = [finding for finding in findings if finding.verdict == "falsified"]
    for leader, *others in group(falsified, min(GROUP_SECONDS, deadline - time.monotonic())):
        try:
            defects.append(Defect(leader, tuple(others), write(leader, folder)))
        except OSError as error:
            defects.append(Defect(leader, tuple(others), trouble=f"{folder}: {error.strerror or error}"))
    return ranked(defects)
