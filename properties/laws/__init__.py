"""The properties: predicates over (contract, subject, world, case) that raise `Falsified`.

A law returns the worst error as a fraction of its bound; laws about bits or types return 0.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from ..cases import Case
from ..contracts import Contract
from ..process_state import preserved
from ..subjects import Outcome, Step, Subject, run_steps
from ..worlds import World

T = TypeVar("T")
Predicate = Callable[[Contract, Subject, World, Any], float]


class Falsified(AssertionError):
    """A law does not hold; the message says where, and what was expected."""


@dataclass(frozen=True)
class Law:
    """A property, and what it applies to."""

    name: str
    check: Predicate
    worlds: Literal["any", "one", "two", "several"] = "any"
    applies: Callable[[Contract], bool] = lambda contract: True
    draw: Callable[[Contract, Subject, int], st.SearchStrategy[Any]] = lambda contract, subject, world_size: (
        contract.cases(subject, world_size)
    )
    simulated: bool = True
    """Whether it may run in simulated worlds."""
    share: float = 1.0
    """Examples, as a share of those asked for: costly laws take fewer."""

    def fits(self, contract: Contract, world_size: int) -> bool:
        """Whether the law says anything about a contract in a world of this size."""
        sizes = {"any": True, "one": world_size == 1, "two": world_size == 2, "several": world_size > 1}
        return sizes[self.worlds] and world_size >= contract.smallest_world and self.applies(contract)


def run(world: World, function: Callable[..., T], *arguments: object) -> list[T]:
    """As `World.run`; what the function changes in the processes it runs in is put back."""
    with preserved():
        return world.run(_preserving, function, *arguments)


def _preserving(rank: int, world_size: int, function: Callable[..., T], *arguments: object) -> T:
    with preserved():
        return function(rank, world_size, *arguments)


def observe(
    contract: Contract, subject: Subject, world: World, steps: Iterable[Step | Case], fresh: bool = True
) -> list[list[Outcome]]:
    """Run the subject on every rank; return the outcomes of each step, rank by rank."""
    steps = [step if isinstance(step, Step) else Step(step) for step in steps]
    by_rank = run(world, run_steps, subject, contract, steps, fresh)
    return [list(outcomes) for outcomes in zip(*by_rank, strict=True)]


def compare(what: str, observed: ArrayLike, expected: ArrayLike, bound: ArrayLike) -> float:
    """Return the worst error over bound.

    Raises:
        Falsified: an error is over its bound, or a value is not a number.
    """
    seen, right, allowed = (np.asarray(value, dtype=np.float64) for value in (observed, expected, bound))
    if seen.shape != right.shape:
        raise Falsified(f"{what}: expected shape {list(right.shape)}, observed {list(seen.shape)}")
    if seen.size == 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = abs(seen - right)
        ratio = np.where(error == 0, 0.0, error / np.broadcast_to(allowed, error.shape))
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    if ratio[worst] > 1:
        place = f" at {[int(i) for i in worst]}" if seen.ndim else ""
        raise Falsified(
            f"{what}{place}: expected {right[worst]:.9g}, observed {seen[worst]:.9g}, "
            f"error {error[worst]:.3g} is {ratio[worst]:.3g} times its bound"
        )
    return float(ratio[worst])


def laws() -> list[Law]:
    """Return every law, the most telling first."""
    from . import communication, gradients, hygiene, metamorphic, values

    return [*values.LAWS, *gradients.LAWS, *communication.LAWS, *hygiene.LAWS, *metamorphic.LAWS]
