"""The errors that a simulated run can find, and their exceptions."""

from collections.abc import Sequence
from typing import Literal

from .. import RankState, WorldError

Finding = Literal[
    "raised",  # a rank's function raised
    "vanished",  # a rank was made to vanish
    "hung",  # the run outlasted its timeout
    "deadlock",  # no rank can run
    "needs_buffering",  # the ranks finish only if sends complete before they are received
    "early_exit",  # a rank returned while others wait for it
    "mismatch",  # two sides of one communication disagree
    "unwaited",  # a rank returned with a communication it never waited for
    "unreceived",  # a message was never received
    "written_in_flight",  # a buffer was written between the start of a communication and its wait
    "read_in_flight",  # a buffer that a communication fills was read before its wait
    "aliasing",  # two communications, or two outputs of one, fill the same memory
]


class CommunicationError(RuntimeError):
    """Raised by a communication call of a rank once the run has failed; `finding` names the cause."""

    def __init__(self, finding: Finding, message: str) -> None:
        super().__init__(finding, message)
        self.finding = finding
        self.message = message

    def __str__(self) -> str:
        return f"{self.finding}: {self.message}"


class InjectedFault(RuntimeError):
    """Raised in a rank by a `Fault` of kind "raise"."""


class Vanish(BaseException):
    """Ends a rank without a word to its peers; no `except Exception` may stop it."""


class Abandon(BaseException):
    """Unwinds a rank of a run that is no longer wanted."""


class SimulationError(WorldError):
    """A simulated run that failed.

    Attributes:
        finding: The kind of failure.
        message: The event, with every rank that took part.
        schedule: The choices taken; `SimulatedWorld(size, schedule=error.schedule)` replays the run.
        ranks: Every rank's state; where a rank waited, its Python stack.
    """

    def __init__(
        self, world: str, ranks: list[RankState], finding: Finding, message: str, schedule: Sequence[int]
    ) -> None:
        super().__init__(world, ranks)
        self.args = (world, ranks, finding, message, schedule)
        self.finding = finding
        self.message = message
        self.schedule = tuple(schedule)

    def __str__(self) -> str:
        lines = [f"world {self.world}: {self.finding}: {self.message}"]
        if any(self.schedule):
            lines.append(f"schedule: {list(self.schedule)}")
        return "\n".join([*lines, *map(str, self.ranks)])
