"""Linear arithmetic on traced values: sums with a weight, multiples by constants, rows joined."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .precision import Bounded, gamma
from .sums import Weight, inexact, total
from .tape import (
    FUNCTIONS,
    MADE,
    UFUNCS,
    Node,
    NotSteps,
    Part,
    Tape,
    Traced,
    Traits,
    bounded,
    give,
    nowhere,
    tape_of,
)


class Total(Node):
    """A sum of values times a weight, which each constant that it is multiplied with changes.

    Args:
        tape: where it is traced.
        values: what is summed, all elements of each.
        weight: what the sum is multiplied with.
        factors: the numbers that the weight is made of.
        parts: in how many parts, stored one by one, it is summed.
    """

    def __init__(
        self, tape: Tape, values: tuple[Traced, ...], weight: float, factors: tuple[float, ...], parts: int
    ) -> None:
        self.values, self.weight, self.factors, self.parts = values, weight, factors, parts
        self._weighing = Weight.of(weight, *factors)
        super().__init__(tape, self._bound, self._to_values, MADE)
        tape.append(self)

    def _bound(self) -> Bounded:
        joined = self.tape.once(_joined, [one.bounded for one in self.values])
        error = self.tape.once(total, joined, self._weighing, self.tape.p, self.parts)
        return Bounded(np.asarray(self.weight * joined.value.sum()), np.asarray(error))

    @staticmethod
    def of(values: Sequence[Traced], factors: tuple[float, ...] = ()) -> "Total":
        """Return the sum of several values; the implementation's weight is made of `factors` besides."""
        parts = max(one.traits.parts for one in values)
        return Total(values[0].tape, tuple(values), 1.0, factors, parts)

    def times(self, factor: float, weight: float) -> "Total":
        """Return the total with another weight, which a factor has made of its own."""
        return Total(self.tape, self.values, weight, (*self.factors, factor), self.parts)

    def plus(self, other: "Total") -> "Total":
        """Return the sum of two totals of one weight."""
        values, parts = self.values + other.values, self.parts + other.parts
        return Total(self.tape, values, self.weight, (*self.factors, *other.factors), parts)

    def _to_values(self, part: Part) -> None:
        weight = self._weighing.times(part.size)
        error, size = abs(self.weight) * part.error, abs(weight.value)
        for value in self.values:
            value.give(Part(error, size, roundings=int(weight.roundings) + part.roundings))


def _joined(values: Sequence[Bounded]) -> Bounded:
    return Bounded(*(np.concatenate([np.ravel(one) for one in both]) for both in zip(*values, strict=True)))


def add_up(values: Sequence[Traced], counts: Sequence[int]) -> Total:
    """Trace the sum of values; a mean is made of the counts, their sum, and how many there are."""
    return Total.of(values, (*counts, sum(counts), len(counts)))


def _add(first: Any, second: Any) -> Traced:
    if isinstance(first, Total) and isinstance(second, Total) and first.weight == second.weight:
        return first.plus(second)
    tape, sides = tape_of(first, second), (first, second)
    value = bounded(first).value + bounded(second).value
    error: Any = 0.0
    for one, other in (sides, sides[::-1]):
        if not isinstance(other, Traced):
            if np.ndim(other) == 0 and other == 0:
                return one  # type: ignore[no-any-return]
            error = error + tape.p.stored * abs(np.asarray(other))  # a constant is rounded as it is stored
        elif other.shape != value.shape:
            raise NotSteps("a sum of different shapes")
        error = error + bounded(other).error
    error = error + tape.p.stored * (abs(value) + error)

    def back(part: Part) -> None:
        give(first, part)
        give(second, part)

    return Traced(tape, Bounded(value, error), back, Traits())


def _subtract(first: Any, second: Any) -> Traced:
    return _add(first, _negative(second) if isinstance(second, Traced) else -second)


def _times(value: Any, factor: Any, divides: bool = False) -> Traced:
    if not isinstance(value, Traced):
        value, factor = factor, value
    if isinstance(factor, Traced):
        raise NotSteps("a product of two traced values")
    if isinstance(value, Total) and np.ndim(factor) == 0:
        number = float(factor)
        return value.times(number, value.weight / number if divides else value.weight * number)
    tape, before = value.tape, value.bounded
    size = 1 / abs(np.asarray(factor, float)) if divides else abs(np.asarray(factor, float))
    result = before.value / factor if divides else before.value * factor
    if result.shape != value.shape:
        raise NotSteps("a product of different shapes")
    # the constant is rounded as it is stored, and so is the product
    relative = gamma(2 * inexact(np.asarray(factor, float)), tape.p.stored)
    error = (
        size * before.error + relative * (abs(result) + size * before.error) + tape.p.tiny * (relative > 0)
    )

    def back(part: Part) -> None:
        counted = part.counted(tape.p.accumulated)
        grown = size * counted.error + relative * size * (counted.error + counted.size)
        value.give(Part(grown, size * counted.size, counted.parts, settled=False))

    return Traced(tape, Bounded(result, error), back, value.traits._replace(given=False))


def _divide(value: Any, factor: Any) -> Traced:
    if isinstance(factor, Traced):
        if np.ndim(value) == 0 and not isinstance(value, Traced) and value == 1:
            inverse: Traced = UFUNCS[np.reciprocal](factor)
            return inverse
        raise NotSteps("a quotient by a traced value")
    return _times(value, factor, divides=True)


def _negative(value: Traced) -> Traced:
    return _times(value, -1.0)


def _concatenate(values: Sequence[Any], axis: int = 0) -> Traced:
    if axis != 0:
        raise NotSteps(f"concatenate along axis {axis}")
    tape = tape_of(*values)
    both = tape.once(_stacked, [bounded(one) for one in values])
    starts = np.cumsum([0, *map(len, values)])

    def back(part: Part) -> None:
        for start, one in zip(starts, values, strict=False):
            if isinstance(one, Traced) and one.derived:
                one.give(part.map(_rows, slice(start, start + len(one))))

    traits = [one.traits for one in values if isinstance(one, Traced)]
    given, unit = (all(each) and len(traits) == len(values) for each in list(zip(*traits, strict=True))[:2])
    return Traced(tape, both, back, Traits(given, unit, max(one.parts for one in traits)))


def _rows(each: Any, rows: slice) -> Any:
    return each[rows] if np.ndim(each) else each


def _stacked(values: Sequence[Bounded]) -> Bounded:
    return Bounded(*(np.concatenate(each) for each in zip(*values, strict=True)))


def _real(value: Traced) -> Traced:
    return Traced(value.tape, value.bounded, nowhere, value.traits)


def _mean(value: Traced) -> Traced:
    return _times(Total.of([value], (float(value.size),)), float(value.size), divides=True)


UFUNCS.update(
    {
        np.add: _add,
        np.subtract: _subtract,
        np.multiply: _times,
        np.divide: _divide,
        np.negative: _negative,
    }
)
FUNCTIONS.update(
    {
        np.sum: lambda value: Total.of([value]),
        np.mean: _mean,
        np.concatenate: _concatenate,
        np.real: _real,
        np.reshape: Traced.reshape,
        np.transpose: lambda value: value.T,
        np.shape: lambda value: value.shape,
        np.ndim: lambda value: value.ndim,
        np.size: lambda value: value.size,
        np.iscomplexobj: lambda value: False,
    }
)
