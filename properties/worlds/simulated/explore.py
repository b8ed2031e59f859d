"""Every schedule that some rank can tell from the others, once each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .scheduler import Chooser, Option

T = TypeVar("T")


class _Redundant(Exception):
    """Every way on from here differs from an explored schedule only in the order of independent steps."""


@dataclass(frozen=True)
class Exploration(Generic[T]):
    """The outcome of every distinct schedule, in the order in which they were tried."""

    outcomes: list[list[T] | Exception]
    """A schedule's results in rank order, or its SimulationError."""

    @property
    def schedules(self) -> int:
        return len(self.outcomes)

    @property
    def failures(self) -> list[Exception]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Exception)]


@dataclass
class _Node:
    options: Sequence[Option]
    asleep: set[Option]
    """Options whose schedules were all explored from an earlier sibling."""
    taken: Option
    explored: set[Option] = field(default_factory=set)


def _independent(one: Option, other: Option) -> bool:
    """Whether the two steps have the same effect in either order, and neither prevents the other."""
    if one.kind == other.kind == "match":
        return one.rank != other.rank
    first, second = ({step.rank, step.peer} if step.kind == "match" else {step.rank} for step in (one, other))
    return not first & second


class Explorer:
    """A depth-first search with sleep sets (Godefroid 1996) over matches and polls.

    Which rank runs is no choice: a receive from any source takes its message only when no rank can run, so
    all orders of running lead to the same options.
    """

    interleaves = False
    on_caller = False
    exhaustive = True

    def __init__(self) -> None:
        self.path: list[_Node] = []
        self.depth = 0

    def choose(self, options: Sequence[Option]) -> int:
        if self.depth == len(self.path):
            asleep: set[Option] = set()
            if self.path:
                last = self.path[-1]
                asleep = {step for step in last.asleep | last.explored if _independent(step, last.taken)}
            awake = [option for option in options if option not in asleep]
            if not awake:
                raise _Redundant
            self.path.append(_Node(options, asleep, awake[0]))
        node = self.path[self.depth]
        self.depth += 1
        return node.options.index(node.taken)

    def explore(
        self, run: Callable[[Chooser], list[T]], failure: type[Exception], limit: int
    ) -> Exploration[T]:
        outcomes: list[list[T] | Exception] = []
        while True:
            self.depth = 0
            try:
                outcomes.append(run(self))
            except failure as error:
                outcomes.append(error)
            except _Redundant:
                pass
            if len(outcomes) > limit:
                raise RuntimeError(f"more than {limit} schedules")
            if not self._advance():
                return Exploration(outcomes)

    def _advance(self) -> bool:
        """Move to the next unexplored option, deepest first."""
        while self.path:
            node = self.path[-1]
            node.explored.add(node.taken)
            left = [step for step in node.options if step not in node.explored and step not in node.asleep]
            if left:
                node.taken = left[0]
                return True
            self.path.pop()
        return False
