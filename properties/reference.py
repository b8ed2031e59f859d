"""The oracle's side of an example: terms, derivatives, and their rounding bounds."""

from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from verified_losses.oracles.bounds import FLOAT64, WEIGHING
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.dtypes import DTYPES
from verified_losses.oracles.hyper_dual import HyperDual

from .cases import Case, spoil
from .contracts import Bounds, Contract, Cotangents, Inputs
from .examples import Example
from .standalone.judges import derivative, total


class Reference:
    """The oracle's side of an example. Each part is worked out once, when it is first asked for.

    Args:
        contract: the subject's contract.
        example: the input of the run.
    """

    def __init__(self, contract: Contract, example: Example) -> None:
        self.contract = contract
        self.example = example

    def __reduce__(self) -> tuple[Any, ...]:
        # the arrays follow from the example: a rank recomputes those it needs
        return reference, (self.contract, self.example)

    @property
    def case(self) -> Case:
        """The call that is compared."""
        return self.example.case

    @cached_property
    def inputs(self) -> Inputs:
        """Every rank's inputs."""
        return spoil(self.case, self.contract.inputs(self.case))

    @cached_property
    def cotangents(self) -> Cotangents:
        """The cotangents of every rank's terms."""
        return self.contract.cotangents(self.case)

    @cached_property
    def terms(self) -> Cotangents:
        """Every rank's terms."""
        everyone = self._oracle(self.inputs)
        return [{name: np.real(value) for name, value in terms.items()} for terms in everyone]

    @cached_property
    def bounds(self) -> Bounds:
        """The error bounds of every term and gradient."""
        return self.contract.bounds(self.case, self.inputs, self.cotangents)

    @property
    def slack(self) -> float:
        """The factor of a bound that covers the oracle's own rounding."""
        return 1 + FLOAT64 / self.case.precision.accumulated

    @property
    def largest(self) -> float:
        """The largest value of the case's dtype: what exceeds it a right implementation cannot return."""
        return DTYPES[self.case.dtype].largest

    def value(self, kind: str, name: str, rank: int, index: tuple[int, ...], shape: tuple[int, ...]) -> float:
        """Return one element of a term, or of a gradient of this shape."""
        if kind == "term":
            return float(np.broadcast_to(self.terms[rank][name], shape)[index])
        along = np.zeros(shape)
        along[index] = 1
        return self.derivative(rank, name, along)

    def total(self, inputs: Inputs) -> Any:
        """Return the sum over ranks and terms of cotangent times term, which all ranks' backwards derive."""
        return total(self._oracle(inputs), self.cotangents)

    def _oracle(self, inputs: Inputs) -> list[dict[str, Any]]:
        return self.contract.oracle(self.case, self.contract.prepared(self.case, inputs))

    def derivative(self, rank: int, name: str, along: Array) -> float:
        """Return the derivative of `total` as one input of one rank moves along a direction."""
        return derivative(self.total, self.inputs, rank, name, along)

    def second_derivatives(
        self, moves: Inputs, directions: list[tuple[int, str, Array]]
    ) -> tuple[Array, Array]:
        """Return the second derivatives of `total`, and how far rounding may take a right implementation's.

        The case's dtype is one that accumulates in itself: float64 or float32.

        Args:
            moves: how all inputs that are moved move together.
            directions: a rank, the name of one of its inputs and how that moves, for each second derivative.
        """
        found = self.contract.second_derivatives(self.case, self.inputs, self.cotangents, moves)
        if found is not None:
            values, bounds = found
            summed = [(values[rank][name] * along, bounds[rank][name] * abs(along))
                      for rank, name, along in directions]  # fmt: skip
            expected, allowed = (np.array([np.sum(one[part]) for one in summed]) for part in (0, 1))
            return expected, allowed
        p = self.case.precision
        moved: list[dict[str, Any]] = []
        for place, given in enumerate(self.inputs):
            numbers: dict[str, Any] = dict(given)
            for key, array in given.items():
                if np.issubdtype(array.dtype, np.floating):
                    along = np.zeros((len(directions), *array.shape))
                    for k, (rank, name, direction) in enumerate(directions):
                        if (rank, name) == (place, key):
                            along[k] = direction
                    still = np.zeros(array.shape)
                    numbers[key] = HyperDual.at(array, moves[place].get(key, still), along, p)
            moved.append(numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            total = self.total(moved)
        if not isinstance(total, HyperDual):  # no term counts
            return np.zeros(len(directions)), np.zeros(len(directions))
        # reverse mode adds up a part for each term of each rank, once for its own rows and once for all
        uses = 2 * self.case.world_size * self.contract.summands
        return total.second(WEIGHING + uses)


class Part(Reference):
    """The oracle's side of some ranks of a case, which are a world of their own.

    Args:
        contract: the subject's contract.
        example: the input of all ranks.
        members: the ranks.
    """

    def __init__(self, contract: Contract, example: Example, members: tuple[int, ...]) -> None:
        rows = tuple(example.case.rows[rank] for rank in members)
        super().__init__(contract, replace(example, case=replace(example.case, rows=rows)))
        self._whole, self._members = reference(contract, example), members

    def __reduce__(self) -> tuple[Any, ...]:
        return part, (self.contract, self._whole.example, self._members)

    @cached_property
    def inputs(self) -> Inputs:
        return [self._whole.inputs[rank] for rank in self._members]


def part(contract: Contract, example: Example, members: tuple[int, ...]) -> Part:
    """Return the reference of some ranks of an example."""
    return Part(contract, example, members)


@lru_cache(maxsize=8)
def reference(contract: Contract, example: Example) -> Reference:
    """Return the reference of an example; ranks that are threads of one process share it."""
    return Reference(contract, example)
