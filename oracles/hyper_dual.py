"""Second derivatives without a step, and how far rounding may take them.

Fike & Alonso, The Development of Hyper-Dual Numbers for Exact Second-Derivative Calculations, AIAA 2011-886:
a function of x + v e1 + w e2, where e1^2 = e2^2 = 0, has its derivatives along v and w as the coefficients
of e1 and e2, and its second derivative along both as that of e1 e2. Nothing is truncated.

Each coefficient is a sum of products. Beside its value a number holds its size, the same sum of the products'
magnitudes, and an error bound: how far from the value a right implementation may be. The bound is a running
one (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, section 3.3) with sizes in the
place of computed values. It holds whatever the order in which an implementation multiplies and adds up the
products, so it holds for reverse mode too, which adds up the same ones: where the function uses an element n
times, reverse mode adds n terms, and where the function adds, it copies. Each operation here counts both.

A size is larger than the value wherever terms cancel. Three such places are not in the oracle's formulas, and
are added because right implementations have them:

- a softmax may subtract any logit, derived or not: a maximum has the largest size of all;
- a sum of exponentials may be rescaled at each term, as an online softmax does;
- a sigmoid s and its slope s (1 - s) may come from differences of numbers near 1, so both err relative to 1.

An implementation whose formula has other terms, larger than the oracle's and cancelling, has no bound here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .bounds import BASE_TWO, CAP, ELEMENTARY, Precision, gamma
from .complex_step import Array

VALUE, SIZE, ERROR = range(3)
RESCALED = ELEMENTARY + 1
"""Roundings of a rescaled term: of the exponential, and of the product with it."""


class HyperDual(NDArrayOperatorsMixin):
    """An array of hyper-dual numbers, along one v and several w at once.

    Args:
        parts: [3, 2, 1 + k, ...]: value, size and error; without and with a derivative along v; without, and
            with one along each of k directions w.
        p: the arithmetic that the error is bounded for; what is stored in it is also accumulated in it.
    """

    def __init__(self, parts: Array, p: Precision) -> None:
        self.parts, self.p = parts, p

    @staticmethod
    def at(point: Array, v: Array, w: Array, p: Precision) -> "HyperDual":
        """Return `point`, exact, as it moves along `v`, of its shape, and along `w`, [k, ...]."""
        value = np.zeros((2, 1 + len(w), *point.shape))
        value[0, 0], value[1, 0], value[0, 1:] = point, v, w
        return HyperDual(np.stack([value, abs(value), np.zeros(value.shape)]), p)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.parts.shape[3:]

    @property
    def T(self) -> "HyperDual":
        """The transposed matrix."""
        return self._with(self.parts.swapaxes(-1, -2))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> "HyperDual":
        indices = index if isinstance(index, tuple) else (index,)
        return self._with(self.parts[:, :, :, *indices])

    def reshape(self, *shape: Any) -> "HyperDual":
        """As NumPy's."""
        sizes = shape[0] if shape and isinstance(shape[0], tuple) else shape
        return self._with(self.parts.reshape(*self.parts.shape[:3], *sizes))

    def sum(self, axis: int | None = None, keepdims: bool = False) -> "HyperDual":
        """As NumPy's."""
        total = self.parts.sum(self._axes(axis), keepdims=keepdims)
        count = math.prod(self.shape) // max(math.prod(total.shape[3:]), 1)
        total[ERROR] += gamma((1 + RESCALED) * count, self.p.stored) * (total[SIZE] + total[ERROR])
        return self._with(total)

    def second(self, roundings: int = 0) -> tuple[Array, Array]:
        """Return the [k, ...] second derivatives along v and each w, and their bounds.

        Args:
            roundings: how often the whole rounds besides, as it is weighed and its parts are added up.
        """
        value, size, error = self.parts[:, 1, 1:]
        bound = error + gamma(roundings, self.p.stored) * (size + error)
        # a bound that overflowed on its way says nothing
        return value, np.where(np.isnan(bound), np.inf, bound)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs:
            return NotImplemented
        numbers = [x if isinstance(x, HyperDual) else self._constant(x) for x in inputs]
        if ufunc is np.logaddexp:
            # no zero but a constant one: the softplus
            return numbers[1]._softplus() if np.array_equal(inputs[0], 0) else NotImplemented
        rule = _UFUNCS.get(ufunc)
        return NotImplemented if rule is None else rule(*numbers)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        rule = _FUNCTIONS.get(function)
        return NotImplemented if rule is None else rule(*args, **kwargs)

    def _with(self, parts: Array) -> "HyperDual":
        return HyperDual(parts, self.p)

    def _constant(self, value: Any) -> "HyperDual":
        value = np.asarray(np.real(value), float)
        return self.at(
            value, np.zeros(value.shape), np.zeros((self.parts.shape[2] - 1, *value.shape)), self.p
        )

    def _axes(self, axis: int | None) -> tuple[int, ...]:
        if axis is None:
            return tuple(range(3, self.parts.ndim))
        return (axis + 3 if axis >= 0 else axis,)

    def _negative(self) -> "HyperDual":
        parts = self.parts.copy()
        parts[VALUE] *= -1
        return self._with(parts)

    def _add(self, other: "HyperDual") -> "HyperDual":
        first, second = _aligned(self.parts, other.parts)
        return self._with(_sum([first, second], _uses(self, other), self.p))

    def _multiply(self, other: "HyperDual") -> "HyperDual":
        first, second = _aligned(self.parts, other.parts)
        return self._with(_products(first, second, np.multiply, _uses(self, other), self.p))

    def _matmul(self, other: "HyperDual") -> "HyperDual":
        # a factor of all products may be derived by adding up all pairs of rows at once
        count = self.shape[1] + self.shape[0] * other.shape[1]
        # reverse mode multiplies the matrices of each pair of axes
        terms = max(*self.shape, other.shape[1])
        further = self.p.coarser(terms) + gamma(count, self.p.additions)
        return self._with(_products(self.parts, other.parts, np.matmul, count, self.p, further))

    def _divide(self, other: "HyperDual") -> "HyperDual":
        return self._multiply(other._of_power(-1.0))

    def _of_power(self, power: float) -> "HyperDual":
        value = self.parts[VALUE, 0, 0]
        derivatives = [
            value**power,
            power * value ** (power - 1),
            power * (power - 1) * value ** (power - 2),
        ]
        return self._function(derivatives, self._relative())

    def _log(self) -> "HyperDual":
        value = self.parts[VALUE, 0, 0]
        derivatives = [np.log(value), 1 / value, -1 / value**2]
        # a relative error of the argument is an absolute one of its logarithm
        return self._function(derivatives, self._relative(), [1 + abs(derivatives[0]), *derivatives[1:]])

    def _exp(self) -> "HyperDual":
        derivatives = [np.exp(self.parts[VALUE, 0, 0])] * 3
        return self._function(derivatives, self._exponential())

    def _softplus(self) -> "HyperDual":
        value = self.parts[VALUE, 0, 0]
        one, other = np.exp(-np.logaddexp(0, -value)), np.exp(-np.logaddexp(0, value))
        ones = np.ones(value.shape)
        derivatives = [np.logaddexp(0, value), one, one * other]
        return self._function(derivatives, self._exponential(), [derivatives[0] + abs(value), ones, ones])

    def _relative(self) -> Array:
        """Return how far the argument may err, relative to what is left of it."""
        value, error = abs(self.parts[VALUE, 0, 0]), self.parts[ERROR, 0, 0]
        with np.errstate(divide="ignore"):
            relative = error / np.maximum(value - error, 0)
        capped: Array = np.minimum(relative, math.exp(CAP))
        return capped

    def _exponential(self) -> Array:
        """Return how far the exponential may err, relative to it."""
        exponent = self.parts[ERROR, 0, 0] + BASE_TWO * self.p.stored * self.parts[SIZE, 0, 0]
        relative: Array = np.expm1(np.minimum(exponent, CAP))
        return relative

    def _function(
        self, derivatives: list[Array], relative: Array, rounded: list[Array] | None = None
    ) -> "HyperDual":
        """Apply a function, given itself and its two derivatives, to the value.

        Each derivative is a product or a quotient of one elementary function more than the one before. It
        errs by as many times `relative`, and by their roundings, relative to what is `rounded`.
        """
        triples = []
        for order, derivative in enumerate(derivatives, 1):
            moved = abs(derivative) * np.expm1(order * np.log1p(relative))
            size = abs(derivative) + moved if rounded is None else abs(rounded[order - 1]) * (1 + relative)
            error = moved + gamma(order * ELEMENTARY, self.p.stored) * size + self.p.tiny
            triples.append(np.stack([derivative, abs(derivative), error]))
        result = np.empty_like(self.parts)
        result[:, 0, 0] = triples[0]
        along_v, along_w = self.parts[:, 1, 0], self.parts[:, 0, 1:]
        slope, curvature = triples[1], triples[2][:, None]
        result[:, 1, 0] = _product(slope, along_v, self.p)
        result[:, 0, 1:] = _product(slope[:, None], along_w, self.p)
        straight = _product(slope[:, None], self.parts[:, 1, 1:], self.p)
        curved = _product(curvature, _product(along_v[:, None], along_w, self.p), self.p)
        result[:, 1, 1:] = _sum([straight, curved], 1, self.p)
        return self._with(result)


def _aligned(*arrays: Array) -> list[Array]:
    """Return arrays of parts whose shapes broadcast."""
    ndim = max(array.ndim for array in arrays)
    return [
        array.reshape(*array.shape[:3], *(1,) * (ndim - array.ndim), *array.shape[3:]) for array in arrays
    ]


def _uses(*numbers: HyperDual) -> int:
    """Return how often broadcasting uses an element: reverse mode adds as many terms."""
    size = math.prod(np.broadcast_shapes(*(number.shape for number in numbers)))
    return max(size // max(math.prod(number.shape), 1) for number in numbers)


def _product(
    first: Array, second: Array, p: Precision, times: Callable[[Array, Array], Array] = np.multiply,
    roundings: int = 1, further: float = 0.0,
) -> Array:  # fmt: skip
    """Return the product of two triples of value, size and error; `further` is what else it errs by."""
    (value, size, error), (other_value, other_size, other_error) = first, second
    result = times(size, other_size)
    erring = times(size + error, other_error) + times(error, other_size)
    return np.stack([
        times(value, other_value), result,
        erring + (gamma(roundings, p.stored) + further) * (result + erring) + p.tiny,
    ])  # fmt: skip


def _sum(triples: Sequence[Array], roundings: int, p: Precision) -> Array:
    """Return the sum of triples of value, size and error."""
    total: Array = sum(triples[1:], start=triples[0])
    total[ERROR] += gamma(roundings, p.stored) * (total[SIZE] + total[ERROR])
    return total


def _products(
    first: Array, second: Array, times: Callable[[Array, Array], Array], roundings: int, p: Precision,
    further: float = 0.0,
) -> Array:  # fmt: skip
    """Return the parts of the product of two arrays of parts, by the rule of Leibniz."""

    def product(one: Array, other: Array) -> Array:
        return _product(one, other, p, times, roundings, further)

    x, y = first[:, :, :1], second[:, :, :1]
    along_x, along_y = first[:, :, 1:], second[:, :, 1:]
    value = product(x[:, 0], y[:, 0])
    along_v = _sum([product(x[:, 1], y[:, 0]), product(x[:, 0], y[:, 1])], 1, p)
    along_w = _sum([product(along_x[:, 0], y[:, 0]), product(x[:, 0], along_y[:, 0])], 1, p)
    pairs = (
        (along_x[:, 1], y[:, 0]),
        (along_x[:, 0], y[:, 1]),
        (x[:, 1], along_y[:, 0]),
        (x[:, 0], along_y[:, 1]),
    )
    along_both = _sum([product(one, other) for one, other in pairs], 3, p)
    return np.stack([
        np.concatenate([value, along_w], axis=1), np.concatenate([along_v, along_both], axis=1)
    ], axis=1)  # fmt: skip


def _real(number: HyperDual) -> HyperDual:
    """Return a constant: an implementation may derive it, where that cancels, so the sizes stay."""
    parts = number.parts.copy()
    parts[VALUE, 1, :] = parts[VALUE, :, 1:] = 0
    return number._with(parts)


def _max(number: HyperDual, axis: int | None = None, keepdims: bool = False) -> HyperDual:
    if number.parts[VALUE, 1].any() or number.parts[VALUE, 0, 1:].any():
        raise TypeError("max: expected a constant, as np.real returns, got what is derived")
    return number._with(number.parts.max(number._axes(axis), keepdims=keepdims))


def _concatenate(numbers: Sequence[HyperDual], axis: int = 0) -> HyperDual:
    return numbers[0]._with(np.concatenate([one.parts for one in numbers], numbers[0]._axes(axis)[0]))


def _split(number: HyperDual, cuts: Any, axis: int = 0) -> list[HyperDual]:
    return [number._with(parts) for parts in np.split(number.parts, cuts, number._axes(axis)[0])]


_UFUNCS: dict[Any, Callable[..., HyperDual]] = {
    np.negative: HyperDual._negative,
    np.add: HyperDual._add,
    np.subtract: lambda first, second: first._add(second._negative()),
    np.multiply: HyperDual._multiply,
    np.divide: HyperDual._divide,
    np.matmul: HyperDual._matmul,
    np.exp: HyperDual._exp,
    np.log: HyperDual._log,
    np.sqrt: lambda number: number._of_power(0.5),
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: HyperDual.sum,
    np.max: _max,
    np.concatenate: _concatenate,
    np.split: _split,
    np.real: _real,
    np.iscomplexobj: lambda number: False,
}
