"""What is wrong with a target, each defect once, with the program that shows it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..step.verify import Benches, StepFinding, grouped
from ..verify import concerns
from ..verify.certifier import Finding
from ..verify.grouping import GROUP_SECONDS, group
from . import step
from .counterexample import write

AnyFinding = Finding | StepFinding
"""Of a loss, or of a training step."""


@dataclass(frozen=True)
class Defect:
    """Findings that one defect explains."""

    leader: AnyFinding
    others: tuple[AnyFinding, ...] = ()
    file: Path | None = None
    """The leader's counterexample; None where it could not be written."""
    trouble: str = ""
    """Why it could not."""

    @property
    def concern(self) -> str:
        """The widest concern of its findings."""
        every = (self.leader, *self.others)
        return min(
            (one.concern if isinstance(one, StepFinding) else concerns.of(one) for one in every),
            key=concerns.place,
        )


def ranked(defects: Sequence[Defect]) -> list[Defect]:
    """Return defects in the order in which people read them: first what concerns everyone who trains."""
    return sorted(defects, key=lambda defect: concerns.place(defect.concern))


def explain(
    findings: Sequence[AnyFinding], folder: Path, deadline: float = math.inf, benches: Benches | None = None
) -> list[Defect]:
    """Group what is falsified, and write one counterexample a group.

    When `time.monotonic()` is past the deadline, no case is run again to tell which findings are one.

    Args:
        findings: of losses and of training steps.
        folder: where to write.
        deadline: see above.
        benches: where cases of training steps have run.
    """
    falsified = [finding for finding in findings if finding.verdict == "falsified"]
    until = min(time.monotonic() + GROUP_SECONDS, deadline)
    of_losses = [one for one in falsified if isinstance(one, Finding)]
    of_steps = [one for one in falsified if isinstance(one, StepFinding)]
    found = [_written(members, folder) for members in group(of_losses, until - time.monotonic())]
    found += [_written(members, folder) for members in grouped(of_steps, benches or {}, until)]
    return ranked(found)


def _written(members: Sequence[AnyFinding], folder: Path) -> Defect:
    """Return findings of one defect as that, once its counterexample is written."""
    leader, *others = members
    try:
        file = step.write(leader, folder) if isinstance(leader, StepFinding) else write(leader, folder)
        return Defect(leader, tuple(others), file)
    except OSError as error:
        return Defect(leader, tuple(others), trouble=f"{folder}: {error.strerror or error}")
