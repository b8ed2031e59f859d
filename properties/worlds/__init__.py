"""Where ranks run: one process, simulated ranks, or real processes that talk over gloo or Horovod."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")
State = Literal["returned", "raised", "exited", "killed", "hung"]


@dataclass(frozen=True)
class RankState:
    """The state of one rank after a run that failed."""

    rank: int
    state: State
    detail: str
    """The traceback where it raised or hung, the exit status or the signal's name where it died."""

    def __str__(self) -> str:
        return f"rank {self.rank} {self.state}" + (f":\n{self.detail}" if self.detail else "")

    @property
    def said(self) -> str:
        """The state in a line: of a traceback the exception, else the first line."""
        first = next((line for line in self.detail.strip().splitlines() if line.strip()), "")
        said = exception_of(self.detail) if self.state == "raised" else first
        return f"rank {self.rank} {self.state}: {said}"


def exception_of(traceback: str) -> str:
    """Return the line of a traceback that says what was raised, the first of several."""
    lines = [line for line in traceback.strip().splitlines() if line.strip()] or [""]
    within = [number for number, line in enumerate(lines, 1) if line.startswith(("  ", "Traceback"))]
    return (lines[max(within, default=0) :] or lines[-1:])[0]


class WorldError(Exception):
    """A run in which at least one rank did not return.

    Args:
        world: its name.
        ranks: every rank's state.
        over: whether the world cannot be used any more.
    """

    def __init__(self, world: str, ranks: list[RankState], over: bool = False) -> None:
        super().__init__(world, ranks, over)
        self.world = world
        self.ranks = ranks
        self.over = over

    def __str__(self) -> str:
        return f"world {self.world}: not every rank returned\n" + "\n".join(map(str, self.ranks))


class OutOfTime(Exception):
    """A run was given up before its own time was over, as its caller had no more."""


class WorldLost(OutOfTime):
    """A world is gone, by no fault of the target: a host was lost, or a run before has ended it."""


class World(Protocol):
    """Runs the same function on `size` ranks, which can communicate if there are several."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Call `function(rank, size, *arguments)` on every rank; return the results in rank order.

        Raises:
            WorldError: a rank raised, exited, was killed or hung. The world stays usable.
        """
        ...

    def close(self) -> None:
        """End the world's processes. Closing twice is harmless."""
        ...


class Pool(World, Protocol):
    """A world of processes, which are kept from run to run."""

    until: float
    """When `time.monotonic()` is past it, what runs is given up."""
    timeout: float
    """How many seconds a run may take."""

    def start(self) -> None:
        """Start the processes, if there are none; otherwise the first run does."""
        ...
