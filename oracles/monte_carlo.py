"""How far rounding takes a formula, by Monte Carlo arithmetic: for any formula that NumPy can compute.

Parker, Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic, UCLA CSD-970002, 1997,
chapter 5: a function is computed many times, and each time every intermediate result x is moved to
x (1 + u xi), where u is the unit roundoff and xi is drawn. How far results scatter shows how far rounding
takes them. Here the derivatives are computed in the same arithmetic, in reverse mode, as libraries do. All
samples are one computation: `Moved` is an array with an axis of samples before its own, the first of which
is not moved.

A right implementation may use another formula than the one at hand, so what is moved is more than the result:

- a sum of n terms moves relative to the sum of their magnitudes, by sqrt(n / 3): as far as sums of n terms of
  one sign, one after another, scatter (the k-th of n partial sums has k terms: u sqrt(sum k^2 / 3) / n);
- a sum of two moves relative to the larger, as one that was stored, or shifted, before; sums and products of
  whole numbers, as of masks, are exact;
- exponentials and logarithms move by two units, an exponential also by its argument, as those to base two do;
- what `np.logaddexp` gives, and its slopes, move relative to its arguments, and to 1: 1 - p may stand for p;
- a softmax may subtract its log-sum-exp, which is rounded relative to the shift: the slope of a logarithm,
  and a quotient, of exponentials move as often as the exponents were larger before they were shifted;
- in half precision what is stored is rounded to half precision, sums are accumulated in float32;
- xi has one part that an operation draws for each element, and one that it draws for all: equal elements
  round equally, so that their errors do not average out.

From scatter to tolerance. Let s be the root mean square of the k = `SAMPLES` deviations of an element. The
model: these deviations, and the error of a right implementation, are normal, the latter with a spread of at
most `SPREAD` times that of the former. Then error / (SPREAD s) is distributed as |t| with k degrees of
freedom (Student, The probable error of a mean, Biometrika 6, 1908), and exceeds `QUANTILE` with a chance of
2.2e-13. So does any of a million comparisons, more than a run has, with a chance below 1e-6: `CHANCE`. A
tolerance is `SPREAD` * `QUANTILE` * s, or what roundings add up to, where that is less, or what cancellation
leaves, where that is more.

What roundings add up to. `SPREAD` * `QUANTILE` is 30, and a sum of few roundings cannot scatter that far: n
of them, drawn as above, have a root mean square of sqrt(n / 3), and are at most n together, which is less for
n up to 300. So the most is computed too, by running error analysis (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd edition, 2002, section 3.3), forward, and backward for gradients: what each result
inherits from the errors of its operands, to first order, with magnitudes in the place of values, and its own
roundings, each whole. A sum of n terms rounds as any order may have it (section 4.2); of all others another
formula may have `OTHERWISE` as many. Where an error is too large for a first order, functions are taken at
both ends of it, and their exponentials by expm1. Nothing is known, and samples alone decide, where an eighth
of a divisor may be lost, or where errors may turn a comparison over: a tie scatters as far as it jumps. In
float64 it is twice as much, as the formula itself, and its complex steps, err too.

What cancellation leaves. Samples move one formula. Where a gradient cancels to nothing (rows that are all
equal, or of one element and normalised), its roundings may cancel too, and those of a right implementation
that is written otherwise need not. So a number has a size beside its value: the magnitudes that it was added
up from, as `bounds` and `hyper_dual` know them. The size of a sum is the sum of sizes, that of a product
their product; what a function that is not linear gives has its magnitude. A gradient goes back with its size
by the same rules. Whatever the order of a sum, and wherever sums are multiplied out, each summand that is
rounded errs by up to u times its magnitude (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
edition, 2002, section 4.2): a tolerance is never below `LEFT` u times the size.

What a tolerance rests on is `SPREAD`, `OTHERWISE`, and `LEFT` where terms cancel, which are measured, not
derived: over right variants of the shipped losses and of the kinds `benchmarks/tolerances.py` shows how large
error / tolerance was. It is no worst-case bound.

What limits it. Beside the derived bounds of the shipped losses it is at most 3.9 times looser in the median
over cases, of each contract and dtype (terms of clip in float32; of siglip 2.7, where samples alone gave 7 to
8), and right variants err by a third of it at most. Single cases are looser: derived bounds know which
operations of a case are exact, and in half precision that logits alone are stored: here every result is, as
torch stores it where a loss is written in single operations. A log-sum-exp of 100 that is stored errs by 0.4
in bfloat16, and all probabilities by that share. If only products of matrices and sums were stored, no median
would be above 3.7, and shipped losses and right variants would err by up to 8.4 times the tolerance.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .bounds import FLOAT64
from .complex_step import LOST, STEP, Array
from .dtypes import DTYPES

SAMPLES = 32
QUANTILE = 12.0
SPREAD = 2.5
LEFT = 4.0
"""How many units roundoff of the summands another formula may be left with where they cancel."""
CHANCE = 1e-6
"""Of accusing a right implementation in one run, if its errors are as assumed above."""
ELEMENTARY = 2.0
OTHERWISE = 2.0
"""How many roundings another formula may have for each of this one."""
UNKNOWN = 2.0**200
"""Stands for an unknown error: results that inherit it are larger than all that samples scatter."""
GROWTH = 100.0
"""The largest exponent of an error: beyond it nothing is known."""
FINEST = 2.0**-50
"""The least unit roundoff of samples, as float64 has three more bits. Scatter is scaled down again."""
MOST = 2**22
"""Numbers that a computation of several samples may hold at once."""


class Unsupported(TypeError):
    """A formula uses a function of NumPy that has no rule here."""


class Roundoff(NamedTuple):
    """The arithmetic that is sampled."""

    stored: float
    accumulated: float
    tiny: float
    """What an underflow may lose."""
    largest: float
    """What is beyond it overflows, and then nothing is known of the result."""

    @classmethod
    def of(cls, dtype: str, widened: bool = False) -> "Roundoff":
        """Return the arithmetic of a dtype; `widened` is where all but the inputs is in the dtype of sums.

        Raises:
            ValueError: there is no such dtype.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        kind = DTYPES[dtype]
        sums = DTYPES[kind.accumulated]
        stored = sums if widened else kind
        return cls(2.0**-stored.bits, 2.0**-sums.bits, 2.0**stored.tiny, stored.largest)


class Scatter(NamedTuple):
    """A value, and how far rounding takes it."""

    value: Array
    spread: Array
    """The root mean square of the deviations of the samples; no number where there are none."""
    size: Array
    """One unit roundoff of the magnitudes that it was added up from."""
    most: Array
    """The most that roundings add up to, to first order; infinite where that is not known."""

    @property
    def bound(self) -> Array:
        """How far a right implementation may be from the value."""
        sampled = SPREAD * QUANTILE * self.spread
        least = np.where(np.isinf(sampled), np.inf, np.fmin(sampled, self.most))
        larger: Array = np.maximum(least, LEFT * self.size)
        return larger


class Tape:
    """One computation of several samples: the arithmetic, and what was computed, in order.

    Args:
        p: the arithmetic.
        samples: how many.
        seed: of what is drawn.
        sized: there is one, that is not moved, and its size in the place of a second one.
        errs: beside the size goes, as a complex step, the most that roundings add up to.
    """

    def __init__(self, p: Roundoff, samples: int, seed: int, sized: bool = False, errs: bool = False) -> None:
        self.p, self.samples, self.sized, self.errs = p, 2 if sized else samples, sized, errs
        self.decided = True
        """No error is large enough to turn a comparison over."""
        self.generator = np.random.default_rng(seed)
        self.numbers: list[Moved] = []
        self.size = 0
        self.largest = 0.0
        """Of what was multiplied, added up or put into a function: masks that are huge do not count."""
        self.infinite = np.inf
        """What an infinite result counts as: it has left the range, unless inputs are infinite."""

    def leaf(self, value: Any, along: Any = None) -> "Moved":
        """Return an input, exact in every sample; where it moves, by a complex step along something."""
        array = np.asarray(value, dtype=float)
        if np.isinf(array).any():
            self.infinite = 0.0
        return Moved(self.constant(array if along is None else array + 1j * STEP * along), self)

    def constant(self, array: Array) -> Array:
        """Return the same array in every sample."""
        if self.sized:
            return np.stack([array, _magnitude(array)])
        return np.broadcast_to(array, (self.samples, *array.shape))

    def negative(self, value: Array) -> Array:
        """Return -x, whose size is that of x."""
        return np.concatenate([-value[:1], value[1:]]) if self.sized else -value

    def made(self, function: Callable[[Array], Array], x: Array) -> Array:
        """Return what a function that is not linear gives: its size is its magnitude.

        How far it moves is linear in how far its argument does, and so are their sizes.
        """
        if not self.sized:
            return function(x)
        value = function(x[:1])
        if not np.iscomplexobj(x):
            return np.concatenate([value, abs(value)])
        middle = np.real(x[:1])
        slope = np.imag(function(middle + 1j * STEP)) / STEP
        error = abs(slope) * np.imag(x[1:])
        if self.errs:  # no first order holds where an error is large
            far = self.error(x)
            ends = (np.real(function(middle + one)) - np.real(value) for one in (far, -far))
            farthest = np.maximum(*(abs(one) for one in ends)) - FINEST * abs(np.real(value))
            error = np.maximum(error, STEP * np.minimum(farthest, UNKNOWN))
            error = np.nan_to_num(error, nan=STEP * UNKNOWN, posinf=STEP * UNKNOWN)
        return np.concatenate([value, abs(np.real(value)) + 1j * error])

    def error(self, value: Array) -> Array:
        """Return the most that roundings add up to in a value."""
        return np.asarray(np.imag(value[1:]) / STEP if self.errs and np.iscomplexobj(value) else 0.0)

    def decide(self, function: Callable[..., Array], *values: Array) -> None:
        """Note whether errors may turn a comparison over: it is made at both ends of them."""
        if not self.errs or not any(map(np.iscomplexobj, values)):
            return
        signs = [1, -1][: len(values)]
        found = [
            function(*(np.real(one[:1]) + way * sign * self.error(one)
                       for one, sign in zip(values, signs, strict=True)))
            for way in (0, 1, -1)
        ]  # fmt: skip
        self.decided = self.decided and all(np.array_equal(found[0], one) for one in found)

    def first(self, value: Any) -> Any:
        """Return what decides: the samples, without sizes."""
        return value[:1] if self.sized and np.ndim(value) else value

    def drawn(self, shape: tuple[int, ...]) -> Array:
        """Return xi for values of a shape: nothing for the first sample."""
        samples, ones = self.samples, (1,) * (len(shape) - 1)
        common = self.generator.uniform(-1, 1, (samples, *ones))
        own = self.generator.random(shape, dtype=np.float32) * 2 - 1
        xi: Array = (common + own) * np.sqrt(0.5)
        xi[:1] = 0
        return xi

    def decide_extreme(self, value: Array, extreme: Array, axis: int) -> None:
        """Note whether errors may make other elements the largest, or the least, along an axis."""
        if not self.errs or not np.iscomplexobj(value):
            return
        far = self.error(value) + self.error(extreme)
        near = (abs(np.real(value[:1]) - np.real(extreme[:1])) <= far) & (far > 0)
        self.decided = self.decided and not (np.count_nonzero(near, axis=axis) > 1).any()

    def moved(
        self, value: Array, size: Array | None = None, times: Any = 1.0, terms: Any = None, each: float = 0.0
    ) -> Array:
        """Move results at random.

        Args:
            value: results.
            size: what they are rounded relative to, if not to themselves.
            times: how many roundings.
            terms: how many terms were accumulated, whose magnitudes are `size`; the result is then stored.
            each: how many roundings each of the terms has.
        """
        if self.sized:
            if (size is None or terms is not None) and value.size:
                largest = float(np.max(np.nan_to_num(abs(np.real(value[:1])), posinf=self.infinite)))
                self.largest = max(self.largest, largest)
            return self.erred(value, size, times, terms, each) if self.errs else value
        if np.iscomplexobj(value):  # what is moved along rounds by itself
            sizes = (None, None) if size is None else (np.real(size), np.imag(size) / STEP)
            ahead = self.moved(np.imag(value) / STEP, sizes[1], times, terms, each)
            return self.moved(np.real(value), sizes[0], times, terms, each) + 1j * STEP * ahead
        sums = None if terms is None else np.sqrt(terms / 3) + each
        how_far = self.rounding(value, size, times, sums)
        with np.errstate(invalid="ignore"):
            result: Array = value + self.drawn(value.shape) * how_far
        return np.where(np.isfinite(value), result, value)

    def combined(self, value: Array, operands: Sequence[Array], size: Array | None = None) -> Array:
        """Move sums and products of two, but for those of whole numbers, which are exact where they fit."""
        result = self.moved(value, size)
        if np.iscomplexobj(value) and not self.errs:
            return result
        exact = abs(np.real(value[:1])) <= 1 / self.p.stored
        for first in (np.real(one[:1]) for one in operands):
            exact = exact & (first == np.rint(first))
        if not exact.any():
            return result
        for one in operands:
            same = np.imag(one[1:]) == 0 if self.sized else (one == one[:1]).all(axis=0, keepdims=True)
            exact = exact & same
        return np.where(exact, value, result)

    def rounding(self, value: Array, size: Array | None, times: Any, sums: Any) -> Array:
        """Return how far results round: `times` as they are stored, `sums` times as they are accumulated."""
        magnitude = abs(value)
        how_far = (
            self.p.stored * times * (magnitude if size is None or sums is not None else size) + self.p.tiny
        )
        if sums is not None and size is not None:
            how_far = how_far + self.p.accumulated * sums * size
        with np.errstate(invalid="ignore"):
            # as of the exponential of minus infinity, which is 0
            return np.where(np.isfinite(how_far), how_far, self.p.tiny)

    def erred(self, value: Array, size: Array | None, times: Any, terms: Any, each: float) -> Array:
        """Add to what roundings add up to those of a result, `OTHERWISE` as many as the formula has."""
        if np.ndim(times) == value.ndim:
            times = times[:1]
        sums = None if terms is None else np.asarray(terms) + each
        own = None if size is None else np.real(size[:1])
        how_far = self.rounding(np.real(value[:1]), own, OTHERWISE * times, sums)
        return np.concatenate([value[:1], value[1:] + 1j * STEP * how_far])

    def gradients(self, output: "Moved", cotangent: Array, leaves: Sequence["Moved"]) -> list[Array]:
        """Return the gradients of <output, cotangent> by leaves, in every sample."""
        found: dict[int, Array] = {id(output): self.constant(cotangent)}
        for number in reversed(self.numbers):
            given = found.pop(id(number), None)
            if given is None:
                continue
            for parent, back in number.parents:
                part = _summed_to(self, back(given), parent.value.shape)
                before = found.get(id(parent))
                found[id(parent)] = (
                    part if before is None else self.moved(before + part, _larger_of(before, part))
                )
        return [found.get(id(leaf), np.zeros(leaf.value.shape)) for leaf in leaves]


Back = Callable[[Array], Array]
"""Given the gradient of a result, returns that of what it was made of."""


class Moved(NDArrayOperatorsMixin):
    """An array in Monte Carlo arithmetic: NumPy's functions take it as they take arrays.

    Args:
        value: [samples, ...].
        tape: of the computation.
        parents: the numbers that it was made of, each with what leads gradients back.
    """

    __array_priority__ = 100

    def __init__(self, value: Array, tape: Tape, parents: Iterable[tuple["Moved", Back]] = ()) -> None:
        self.value, self.tape, self.parents = value, tape, tuple(parents)
        if self.parents:
            tape.numbers.append(self)
        tape.size += value.size
        self.before: Array | None = None
        """Of a difference: how large its operands were."""
        self.shifts: Array | None = None
        """Of exponentials: how large their exponents were before they were shifted."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.value.shape[1:]

    @property
    def ndim(self) -> int:
        """The array's."""
        return self.value.ndim - 1

    @property
    def size(self) -> int:
        """The array's."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> Any:
        """That of the values: a mask is a number too, where samples differ in it."""
        return self.value.dtype

    @property
    def T(self) -> "Moved":
        """The transposed matrix."""
        return _rearranged(lambda one: one.T, self)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a number without dimensions")
        return self.shape[0]

    def __getitem__(self, index: Any) -> "Moved":
        plain = tuple(map(_exact, index)) if isinstance(index, tuple) else _exact(index)
        return _rearranged(lambda one: one[plain], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise Unsupported("the formula writes into an array: use np.where, or make a new one")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise Unsupported(
            "the formula makes a plain array of what it computed (by np.asarray, float or an assignment): "
            "keep to functions of NumPy"
        )

    def __float__(self) -> float:
        return float(self.__array__())

    def __bool__(self) -> bool:
        return bool(_exact(self))

    def __hash__(self) -> int:
        return id(self)

    def sum(self, *args: Any, **options: Any) -> "Moved":
        """As NumPy's."""
        return _sum(self, *args, **options)

    def mean(self, *args: Any, **options: Any) -> "Moved":
        """As NumPy's."""
        return _mean(self, *args, **options)

    def max(self, *args: Any, **options: Any) -> "Moved":
        """As NumPy's."""
        return _extreme(np.argmax, self, *args, **options)

    def min(self, *args: Any, **options: Any) -> "Moved":
        """As NumPy's."""
        return _extreme(np.argmin, self, *args, **options)

    def dot(self, other: Any) -> "Moved":
        """As NumPy's."""
        return _matmul(self.tape, self, other)

    def reshape(self, *shape: Any) -> "Moved":
        """As NumPy's."""
        sizes = shape[0] if len(shape) == 1 else shape
        return _rearranged(lambda one: one.reshape(sizes), self)

    def transpose(self, *axes: Any) -> "Moved":
        """As NumPy's."""
        return _rearranged(lambda one: one.transpose(*axes), self)

    def __getattr__(self, name: str) -> Any:
        if name in ("ravel", "flatten", "swapaxes", "squeeze", "diagonal", "take", "repeat", "copy"):
            return lambda *args, **kwargs: _gathered(lambda one: getattr(one, name)(*args, **kwargs), self)
        if name in ("argmax", "argmin", "argsort"):
            return lambda *args, **kwargs: getattr(_exact(self), name)(*args, **kwargs)
        if name in ("trace", "clip", "any", "all", "var", "std"):
            return lambda *args, **kwargs: getattr(np, name)(self, *args, **kwargs)
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unsupported(
            f"the formula uses .{name} of an array, for which Monte Carlo arithmetic has no rule"
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if value is not None or key == "axis"}
        if "out" in kwargs:
            raise Unsupported("the formula writes into an array: use np.where, or make a new one")
        if method == "reduce" and ufunc in _REDUCED:
            return _REDUCED[ufunc](inputs[0], **kwargs)
        if method != "__call__" or kwargs.keys() - {"dtype", "casting"}:
            raise Unsupported(f"the formula uses np.{ufunc.__name__}.{method} with {sorted(kwargs)}, which "
                              "Monte Carlo arithmetic has no rule for")  # fmt: skip
        if ufunc in _PLAIN:
            return _plain(ufunc, self.tape, *inputs)
        rule = _UFUNCS.get(ufunc)
        if rule is None:
            known = ", ".join(sorted(one.__name__ for one in _UFUNCS))
            raise Unsupported(
                f"the formula uses np.{ufunc.__name__}, which has no rule here; there is one for: {known}"
            )
        return rule(self.tape, *inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function in _FUNCTIONS:
            return _FUNCTIONS[function](*args, **kwargs)
        if function in _GATHERS:
            return _gathered(function, *args, **kwargs)
        if function in _EXACT:
            return function(*(_exact(one) for one in args), **kwargs)
        raise Unsupported(
            f"the formula uses np.{function.__name__}, which has no rule here; there is one for: "
            f"{', '.join(sorted(one.__name__ for one in {*_FUNCTIONS, *_GATHERS, *_EXACT}))}"
        )


def _exact(value: Any) -> Any:
    """Return a number as it is in the first sample, which is not moved; other values as they are."""
    return np.real(value.value[0]) if isinstance(value, Moved) else value


def _magnitude(value: Array) -> Array:
    """Return the magnitudes of values and, apart from those, of how far they move."""
    if not np.iscomplexobj(value):
        return np.asarray(abs(value))
    magnitude: Array = abs(np.real(value)) + 1j * abs(np.imag(value))
    return magnitude


def _size_of(tape: Tape, value: Array) -> Array:
    """Return what a product of matrices rounds relative to the product of."""
    return abs(np.real(value)) if tape.sized else _magnitude(value)


def _larger_of(one: Array, other: Array) -> Array:
    """Return the larger of their magnitudes."""
    one, other = _magnitude(one), _magnitude(other)
    if not np.iscomplexobj(one) and not np.iscomplexobj(other):
        return np.asarray(np.maximum(one, other))
    larger: Array = np.maximum(np.real(one), np.real(other)) + 1j * np.maximum(np.imag(one), np.imag(other))
    return larger


def _constant(tape: Tape, value: Any) -> Array:
    """Return the values of a number, or of a constant, whose axes of samples is 1 long."""
    if isinstance(value, Moved):
        return value.value
    array = np.asarray(value)
    if np.iscomplexobj(array):
        raise Unsupported("the formula computes with complex numbers")
    return tape.constant(array) if tape.sized else array[None]


def _operands(tape: Tape, *inputs: Any) -> list[Array]:
    """Return the values of inputs, whose own axes broadcast."""
    values = [_constant(tape, one) for one in inputs]
    ndim = max(one.ndim for one in values)
    return [one.reshape(one.shape[0], *(1,) * (ndim - one.ndim), *one.shape[1:]) for one in values]


def _summed_to(tape: Tape, gradient: Array, shape: tuple[int, ...]) -> Array:
    """Return the gradient of what was broadcast from a shape: the sum over its uses."""
    if gradient.shape == shape:
        return gradient
    own = shape[1:]
    longer = gradient.ndim - 1 - len(own)
    axes = tuple(range(1, 1 + longer)) + tuple(
        1 + longer + axis
        for axis, size in enumerate(own)
        if size == 1 and gradient.shape[1 + longer + axis] > 1
    )
    count = int(np.prod([gradient.shape[axis] for axis in axes]))
    total = gradient.sum(axis=axes).reshape(-1, *own)
    if count > 1:
        size = _magnitude(gradient).sum(axis=axes).reshape(total.shape)
        total = tape.moved(total, size, terms=count)
    return np.broadcast_to(total, shape)


def _made(tape: Tape, value: Array, *parents: tuple[Any, Back]) -> Moved:
    """Return a result, of those parents that are numbers and have gradients."""
    shape = (tape.samples, *value.shape[1:])
    kept = [(one, back) for one, back in parents if isinstance(one, Moved)]
    return Moved(np.broadcast_to(value, shape), tape, kept)


def _plain(ufunc: np.ufunc, tape: Tape, *inputs: Any) -> Any:
    """Compare: a plain array where all samples agree, else a mask of each sample."""
    operands = _operands(tape, *inputs)
    tape.decide(ufunc, *operands)
    value = ufunc(*map(np.real, operands))
    if tape.sized or (value == value[:1]).all():
        return value[0]
    return _made(tape, value)


def _add(tape: Tape, first: Any, second: Any) -> Moved:
    one, other = _operands(tape, first, second)
    with np.errstate(invalid="ignore"):
        size = _larger_of(one, other)
        value = tape.combined(one + other, (one, other), size)
    return _after(_made(tape, value, (first, lambda g: g), (second, lambda g: g)), size)


def _subtract(tape: Tape, first: Any, second: Any) -> Moved:
    one, other = _operands(tape, first, second)
    with np.errstate(invalid="ignore"):
        size = _larger_of(one, other)
        value = tape.combined(one + tape.negative(other), (one, other), size)
    return _after(_made(tape, value, (first, lambda g: g), (second, tape.negative)), size)


def _after(number: Moved, before: Array) -> Moved:
    """Note how large the operands of a difference were, as far as they are finite."""
    first = np.real(before[0])
    number.before = np.where(np.isfinite(first), first, 0.0)
    return number


def _noted(result: Moved, how: Callable[..., Array], *inputs: Any) -> Moved:
    """Pass on to a result what was noted of its inputs."""
    for name in ("before", "shifts"):
        notes = [getattr(one, name, None) for one in inputs]
        if any(note is not None for note in notes):
            filled = [np.zeros(np.shape(_exact(one))) if note is None else note
                      for one, note in zip(inputs, notes, strict=True)]  # fmt: skip
            setattr(result, name, how(*filled))
    return result


def _larger(first: Array, second: Array) -> Array:
    larger: Array = np.maximum(first, second)
    return larger


def _multiply(tape: Tape, first: Any, second: Any) -> Moved:
    one, other = _operands(tape, first, second)
    value = tape.combined(one * other, (one, other))
    made = _made(
        tape, value, (first, lambda g: tape.moved(g * other)), (second, lambda g: tape.moved(g * one))
    )
    made = _noted(made, _larger, first, second)
    made.before = None  # it is of another size
    return made


def _divide(tape: Tape, first: Any, second: Any) -> Moved:
    one, other = _operands(tape, first, second)
    shifts = 0.0 if getattr(second, "shifts", None) is None else second.shifts
    if tape.sized:  # how far it moves adds to the size of how far the quotient does
        size: Array = abs(np.real(other[:1]))
        if np.iscomplexobj(other):
            error = np.imag(other[1:])
            if tape.errs:  # no first order holds near 0
                error = np.where(error > STEP * size / 8, STEP * UNKNOWN * size, error)
            size = size - 1j * error
        other = np.concatenate([other[:1], size])

    def over(x: Array, times: float = 1.5) -> Array:
        return tape.moved(x / other, times=times + shifts)

    value = over(one)
    return _made(
        tape,
        value,
        (first, over),
        (second, lambda g: over(tape.negative(g) * value, 2.5)),
    )


def _power(tape: Tape, base: Any, exponent: Any) -> Moved:
    if isinstance(exponent, Moved):
        return np.exp(exponent * np.log(base))  # type: ignore[no-any-return]
    one, power = _operands(tape, base, exponent)
    power = tape.first(power)

    def raised(power: Array, times: Array) -> Array:
        value = tape.made(lambda x: np.asarray(times * x**power), one)
        if tape.sized:  # a whole power multiplies sums out, as a product does
            whole = (power >= 0) & (power == np.rint(power))
            size = np.where(whole, abs(times) * np.real(one[1:]) ** power, np.real(value[1:]))
            value[1:] = size + 1j * np.imag(value[1:]) if np.iscomplexobj(value) else size
        return value

    slope = raised(power - 1, power)
    return _made(
        tape,
        tape.moved(raised(power, np.ones(())), times=ELEMENTARY),
        (base, lambda g: tape.moved(g * slope, times=ELEMENTARY + 1)),
    )


def _elementwise(
    tape: Tape,
    number: Moved,
    function: Callable[[Array], Array],
    slope: Callable[[Array, Array], Array],
    times: Callable[[Array], Any] = lambda x: ELEMENTARY,
    slope_size: float = 0.0,
    exponential: bool = False,
) -> Moved:
    """Apply an elementwise function.

    Args:
        tape: of the computation.
        number: the argument.
        function: itself.
        slope: its derivative, given argument and value.
        times: how many units its value moves by, given its argument.
        exponential: what its argument was before is noted.
        slope_size: what its slope is rounded relative to, if that is larger than the slope.
    """
    x = number.value
    often = times(np.real(x))
    value = tape.moved(tape.made(function, x), times=often)
    rate = tape.made(lambda x: slope(x, function(x)), x) if tape.sized else slope(x, value)
    shifts = 0.0 if number.shifts is None else number.shifts
    least = slope_size * (1 + 1j * abs(np.imag(x)) if np.iscomplexobj(x) else np.ones(x.shape))
    rate = tape.moved(rate, _larger_of(rate, least) if slope_size else None, often + shifts)
    made = _made(tape, value, (number, lambda g: tape.moved(g * rate)))
    if exponential:
        shifted = np.nan_to_num(abs(np.real(x[0])), posinf=0.0) if number.before is None else number.before
        # what is 0 takes no part in a sum, however large its exponent was: a masked logit is huge
        made.shifts = np.where(np.real(value[0]) == 0, 0.0, shifted)
    return made


def _logaddexp(tape: Tape, first: Any, second: Any) -> Moved:
    one, other = _operands(tape, first, second)
    least, most = (np.where(np.real(one) < np.real(other), *pair) for pair in ((one, other), (other, one)))
    # the same as np.logaddexp, which takes no complex numbers
    value = np.where(least == most, most + np.log(2), most + np.log1p(np.exp(least - most)))
    shares = [np.exp(one - value), np.exp(other - value)]
    size = _larger_of(_larger_of(one, other), np.asarray(1.0))
    if tape.sized:
        value, *shares = (np.concatenate([part[:1], _magnitude(part[:1])]) for part in (value, *shares))
    if tape.sized and np.iscomplexobj(value):
        one, other = np.imag(one[1:]), np.imag(other[1:])
        first_share, second_share = (np.real(share[1:]) for share in shares)
        both = one + other
        if tape.errs:  # no first order of exponentials holds
            one, other, both = (
                STEP * np.expm1(np.minimum(part / STEP, GROWTH)) for part in (one, other, both)
            )
        value[1:] = np.real(value[1:]) + 1j * (first_share * one + second_share * other)
        for share in shares:
            share[1:] = np.real(share[1:]) + 1j * first_share * second_share * both
    ones = np.ones(value.shape)
    if np.iscomplexobj(value):
        ones = ones + 1j * (abs(np.imag(one)) + abs(np.imag(other)))
    slopes = [tape.moved(part, ones, times=ELEMENTARY + 1) for part in shares]
    return _made(
        tape,
        tape.moved(value, size, ELEMENTARY),
        (first, lambda g: tape.moved(g * slopes[0])),
        (second, lambda g: tape.moved(g * slopes[1])),
    )


def _chosen(tape: Tape, first: Any, second: Any, by: np.ufunc) -> Moved:
    """Return the first elements where a comparison holds, else the second ones."""
    one, other = _operands(tape, first, second)
    tape.decide(by, one, other)
    return _where(_made(tape, by(np.real(one), np.real(other))), first, second, tape=tape)


def _where(condition: Any, first: Any, second: Any, tape: Tape | None = None) -> Moved:
    """As np.where, in each sample by its own condition."""
    if tape is None:
        tape = next(one.tape for one in (condition, first, second) if isinstance(one, Moved))
    mask, one, other = _operands(tape, condition, first, second)
    mask = tape.first(mask)
    made = _made(
        tape,
        np.where(mask, one, other),
        (first, lambda g: np.where(mask, g, 0.0)),
        (second, lambda g: np.where(mask, 0.0, g)),
    )
    return _noted(made, _chosen_by(mask[0]), first, second)


def _chosen_by(mask: Array) -> Callable[[Array, Array], Array]:
    return lambda one, other: np.asarray(np.where(mask, one, other))


def _matmul(tape: Tape, first: Any, second: Any) -> Moved:
    one, other = _constant(tape, first), _constant(tape, second)
    if one.ndim < 2 or other.ndim < 2:
        raise ValueError("matmul: expected arrays, got a number")
    left = one[..., None, :] if one.ndim == 2 else one
    right = other[..., None] if other.ndim == 2 else other
    ndim = max(left.ndim, right.ndim)
    left, right = (
        part.reshape(part.shape[0], *(1,) * (ndim - part.ndim), *part.shape[1:]) for part in (left, right)
    )

    def product(x: Array, y: Array) -> Array:
        size = _size_of(tape, x) @ _size_of(tape, y)
        return tape.moved(x @ y, size, terms=x.shape[-1], each=1)

    value = product(left, right)
    shape = value.shape

    def back(to_first: bool) -> Back:
        given, operand = (left, one) if to_first else (right, other)

        def gradient(g: Array) -> Array:
            g = g.reshape(g.shape[0], *shape[1:])
            made = product(g, right.swapaxes(-1, -2)) if to_first else product(left.swapaxes(-1, -2), g)
            made = _summed_to(tape, made, (tape.samples, *given.shape[1:]))
            return made.reshape(tape.samples, *operand.shape[1:])

        return gradient

    kept = value
    if one.ndim == 2:
        kept = kept[..., 0, :]
    if other.ndim == 2:
        kept = kept[..., 0]
    return _made(tape, kept, (first, back(True)), (second, back(False)))


def _einsum(subscripts: Any, *operands: Any, **_: Any) -> Moved:
    """As NumPy's, of one or two operands with an explicit result and no letter twice in one of them."""
    letters = isinstance(subscripts, str) and subscripts.replace(" ", "").replace("->", ",").split(",")
    if not letters or "->" not in subscripts or "." in subscripts or len(operands) > 2:
        raise Unsupported("np.einsum: expected one or two operands and an explicit result, as 'id,jd->ij'")
    *given, result = letters
    if any(len(set(one)) < len(one) for one in letters):
        raise Unsupported(f"np.einsum: expected no letter twice in one operand, got {subscripts!r}")
    tape = next(one.tape for one in operands if isinstance(one, Moved))
    values = [_constant(tape, one) for one in operands]
    sizes = {
        letter: n
        for name, one in zip(given, values, strict=True)
        for letter, n in zip(name, one.shape[1:], strict=True)
    }

    def product(names: list[str], arrays: list[Array], to: str) -> Array:
        rule = f"{','.join('Z' + name for name in names)}->Z{to}"
        arrays = [np.broadcast_to(one, (tape.samples, *one.shape[1:])) for one in arrays]
        count = int(np.prod([sizes[letter] for letter in set("".join(names)) - set(to)]))
        size = np.einsum(rule, *(_size_of(tape, one) for one in arrays), optimize=True)
        return tape.moved(np.einsum(rule, *arrays, optimize=True), size, terms=count, each=1)

    def back(place: int) -> Back:
        others = [k for k in range(len(given)) if k != place]

        def gradient(g: Array) -> Array:
            names, arrays = [result, *(given[k] for k in others)], [g, *(values[k] for k in others)]
            if absent := [letter for letter in given[place] if letter not in "".join(names)]:
                names.append("".join(absent))
                arrays.append(_constant(tape, np.ones([sizes[letter] for letter in absent])))
            return product(names, arrays, given[place])

        return gradient

    value = product(given, values, result)
    return _made(tape, value, *((one, back(place)) for place, one in enumerate(operands)))


def _check(options: dict[str, Any]) -> None:
    """Refuse an option that changes what NumPy's function returns.

    Raises:
        Unsupported: there is one.
    """
    if unknown := [name for name, value in options.items() if name != "dtype" and value is not None]:
        raise Unsupported(
            f"the formula uses {', '.join(unknown)} of a function of NumPy, which has no rule here"
        )


def _axes(number: Moved, axis: Any) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(1, number.ndim + 1))
    return tuple(1 + one % number.ndim for one in (axis if isinstance(axis, tuple) else (axis,)))


def _sum(
    number: Any, axis: Any = None, dtype: Any = None, *, keepdims: bool = False, where: Any = True,
    **options: Any,
) -> Moved:  # fmt: skip
    _check(options)
    if where is not True:
        number = _where(where, number, 0.0)
    axes, tape = _axes(number, axis), number.tape
    value = number.value.sum(axis=axes, keepdims=True)
    count = int(np.prod([number.value.shape[one] for one in axes]))
    if count > 1:
        size = _magnitude(number.value).sum(axis=axes, keepdims=True)
        value = tape.moved(value, size, terms=count)
    kept = value if keepdims else value.reshape([n for k, n in enumerate(value.shape) if k not in axes])

    def back(g: Array) -> Array:
        return np.broadcast_to(g.reshape(g.shape[0], *value.shape[1:]), number.value.shape)

    made = _made(tape, kept, (number, back))
    own = tuple(k - 1 for k in axes)
    return _noted(made, lambda note: note.max(axis=own, keepdims=keepdims, initial=0), number)


def _mean(
    number: Any, axis: Any = None, dtype: Any = None, *, keepdims: bool = False, where: Any = True,
    **options: Any,
) -> Moved:  # fmt: skip
    _check(options)
    total = _sum(number, axis, keepdims=keepdims, where=where)
    mean: Moved = total / np.sum(np.broadcast_to(_exact(where), number.shape), axis, keepdims=keepdims)
    return mean


def _var(
    number: Any, axis: Any = None, dtype: Any = None, *, ddof: int = 0, keepdims: bool = False, **options: Any
) -> Any:
    _check(options)
    count = int(np.prod([number.value.shape[one] for one in _axes(number, axis)]))
    centred = number - _mean(number, axis, keepdims=True)
    return _sum(centred * centred, axis, keepdims=keepdims) / (count - ddof)


def _norm(number: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    if ord not in (None, 2) or (ord == 2 and axis is None and number.ndim > 1):
        raise Unsupported(f"np.linalg.norm: expected that of vectors, got ord={ord!r}, axis={axis!r}")
    return np.sqrt(_sum(number * number, axis, keepdims=keepdims))


def _extreme(which: Any, number: Any, axis: Any = None, *, keepdims: bool = False, **options: Any) -> Moved:
    """Return the largest or least, which in each sample is another element."""
    _check(options)
    if axis is None:
        flat = number.reshape(-1)
        found = _extreme(which, flat, 0)
        return found.reshape((1,) * number.ndim) if keepdims else found
    along = axis % number.ndim
    places = np.expand_dims(which(np.real(number.tape.first(number.value)), axis=1 + along), 1 + along)
    places = np.broadcast_to(places, (len(number.value), *places.shape[1:]))
    value = np.take_along_axis(number.value, places, 1 + along)
    number.tape.decide_extreme(number.value, value, 1 + along)

    def back(g: Array) -> Array:
        result = np.zeros(number.value.shape, g.dtype)
        np.put_along_axis(result, places, g.reshape(g.shape[0], *value.shape[1:]), 1 + along)
        return result

    return _made(number.tape, value if keepdims else value.squeeze(1 + along), (number, back))


def _clip(
    number: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None, **options: Any
) -> Any:
    _check(options)
    for limit, choose in ((a_min, np.maximum), (min, np.maximum), (a_max, np.minimum), (max, np.minimum)):
        number = number if limit is None else choose(number, limit)
    return number


def _logaddexp_reduced(number: Any, axis: Any = 0, *, keepdims: bool = False, **options: Any) -> Any:
    _check(options)
    top = _extreme(np.argmax, _real(number), axis, keepdims=True)
    total = np.log(_sum(np.exp(number - top), axis, keepdims=True)) + top
    if keepdims:
        return total
    return _gathered(lambda one: np.squeeze(one, axis) if axis is not None else one.reshape(()), total)


def _rearranged(function: Callable[[Any], Any], number: Moved) -> Moved:
    """As `_gathered`, of one number."""
    made: Moved = _gathered(function, number)
    return made


def _gathered(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a function that moves elements, and puts zeros: numbers and constants stay as they are."""
    numbers: list[Moved] = []
    constants: list[Array] = [np.zeros((1, 1))]
    offset = 1
    placed: list[tuple[int, Moved]] = []

    def numbered(value: Any) -> Any:
        nonlocal offset
        if isinstance(value, Moved):
            numbers.append(value)
            placed.append((offset, value))
            constants.append(value.value.reshape(value.value.shape[0], -1))
            offset += value.size
            return np.arange(offset - value.size, offset).reshape(value.shape)
        if isinstance(value, list | tuple) and _holds(value):
            return type(value)(_number(one) for one in value)
        return value

    def _number(value: Any) -> Any:
        nonlocal offset
        if isinstance(value, Moved) or (isinstance(value, list | tuple) and _holds(value)):
            return numbered(value)
        array = np.asarray(value, dtype=float)
        constants.append(array.reshape(1, -1))
        offset += array.size
        return np.arange(offset - array.size, offset).reshape(array.shape)

    places = function(*map(numbered, args), **kwargs)
    tape = numbers[0].tape
    everything = np.concatenate([one if len(one) > 1 else tape.constant(one[0]) for one in constants], axis=1)

    def taken(where: Any) -> Moved:
        index = np.asarray(where)

        def back_to(start: int, number: Moved) -> Back:
            def back(g: Array) -> Array:
                own = (index >= start) & (index < start + number.size)
                return _scattered(
                    tape, g.reshape(g.shape[0], *index.shape)[:, own], index[own] - start, number
                )

            return back

        value = everything[:, index.reshape(-1)].reshape(tape.samples, *index.shape)
        made = _made(tape, value, *((one, back_to(start, one)) for start, one in placed))
        if len(placed) == 1:
            ((start, number),) = placed
            own = (index >= start) & (index < start + number.size)
            _noted(made, lambda note: np.where(own, note.reshape(-1)[(index - start) * own], 0.0), number)
        return made

    if isinstance(places, list | tuple):
        return type(places)(taken(one) for one in places)
    return taken(places)


def _holds(values: Any) -> bool:
    return any(isinstance(one, Moved) or (isinstance(one, list | tuple) and _holds(one)) for one in values)


def _scattered(tape: Tape, gradient: Array, index: Array, number: Moved) -> Array:
    """Return the gradient of a number, given that of elements taken from it, each once or more."""
    counts = np.bincount(index, minlength=number.size)
    result = np.zeros((gradient.shape[0], number.size), gradient.dtype)
    if counts.max(initial=0) <= 1:
        result[:, index] = gradient
    else:
        size = np.zeros(result.shape, gradient.dtype)
        for sample, (total, sizes) in enumerate(zip(result, size, strict=True)):
            np.add.at(total, index, gradient[sample])
            np.add.at(sizes, index, _magnitude(gradient[sample]))
        result = tape.moved(result, size, terms=counts)
    return result.reshape(-1, *number.shape)


def _real(number: Any) -> Any:
    """Return a constant, which errs as the number does."""
    if not isinstance(number, Moved):
        return np.real(number)
    return _made(number.tape, number.value if number.tape.errs else np.real(number.value))


_UFUNCS: dict[Any, Callable[..., Any]] = {
    np.add: _add,
    np.subtract: _subtract,
    np.multiply: _multiply,
    np.divide: _divide,
    np.power: _power,
    np.float_power: _power,
    np.matmul: _matmul,
    np.logaddexp: _logaddexp,
    np.maximum: partial(_chosen, by=np.greater_equal),
    np.fmax: partial(_chosen, by=np.greater_equal),
    np.minimum: partial(_chosen, by=np.less_equal),
    np.fmin: partial(_chosen, by=np.less_equal),
    np.negative: lambda tape, number: _made(tape, tape.negative(number.value), (number, tape.negative)),
    np.positive: lambda tape, number: number,
    np.reciprocal: lambda tape, number: _divide(tape, 1.0, number),
    np.square: lambda tape, number: _multiply(tape, number, number),
    np.absolute: partial(
        _elementwise,
        function=lambda x: x * np.sign(np.real(x)),
        slope=lambda x, value: np.sign(np.real(x)),
        times=lambda x: 0.0,
    ),
    np.sqrt: partial(_elementwise, function=np.sqrt, slope=lambda x, value: 0.5 / value),
    np.exp: partial(
        _elementwise,
        function=np.exp,
        slope=lambda x, value: value,
        times=lambda x: ELEMENTARY + abs(x),
        exponential=True,
    ),
    np.exp2: partial(
        _elementwise,
        function=np.exp2,
        slope=lambda x, value: value * np.log(2),
        times=lambda x: ELEMENTARY + abs(x),
        exponential=True,
    ),
    np.expm1: partial(
        _elementwise, function=np.expm1, slope=lambda x, value: 1 + value, times=lambda x: ELEMENTARY + abs(x)
    ),
    np.log: partial(_elementwise, function=np.log, slope=lambda x, value: 1 / x),
    np.log2: partial(_elementwise, function=np.log2, slope=lambda x, value: 1 / (x * np.log(2))),
    np.log10: partial(_elementwise, function=np.log10, slope=lambda x, value: 1 / (x * np.log(10))),
    np.log1p: partial(_elementwise, function=np.log1p, slope=lambda x, value: 1 / (1 + x)),
    np.tanh: partial(
        _elementwise, function=np.tanh, slope=lambda x, value: 1 - value * value, slope_size=1.0
    ),
    np.sin: partial(_elementwise, function=np.sin, slope=lambda x, value: np.cos(x), slope_size=1.0),
    np.cos: partial(_elementwise, function=np.cos, slope=lambda x, value: -np.sin(x), slope_size=1.0),
    np.arctan: partial(_elementwise, function=np.arctan, slope=lambda x, value: 1 / (1 + x * x)),
}
_PLAIN = {
    np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal, np.logical_and,
    np.logical_or, np.logical_not, np.logical_xor, np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.invert,
    np.isfinite, np.isnan, np.isinf, np.sign, np.floor, np.ceil, np.rint,
}  # fmt: skip
"""Those whose results are constants."""
_REDUCED: dict[Any, Callable[..., Any]] = {
    np.add: lambda number, axis=0, **options: _sum(number, axis, **options),
    np.maximum: lambda number, axis=0, **options: _extreme(np.argmax, number, axis, **options),
    np.minimum: lambda number, axis=0, **options: _extreme(np.argmin, number, axis, **options),
    np.logaddexp: _logaddexp_reduced,
}
_GATHERS = {
    np.transpose, np.reshape, np.ravel, np.swapaxes, np.moveaxis, np.expand_dims, np.squeeze, np.diagonal,
    np.diag, np.take, np.take_along_axis, np.broadcast_to, np.repeat, np.tile, np.roll, np.flip, np.fliplr,
    np.flipud, np.rot90, np.delete, np.tril, np.triu, np.concatenate, np.stack, np.vstack, np.hstack,
    np.column_stack, np.split, np.array_split, np.vsplit, np.hsplit, np.compress, np.extract, np.copy,
    np.atleast_1d, np.atleast_2d,
}  # fmt: skip
_EXACT = {
    np.argmax, np.argmin, np.argsort, np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.full_like,
    np.nonzero, np.flatnonzero, np.any, np.all, np.count_nonzero, np.isclose, np.array_equal,
}  # fmt: skip
"""Those whose results are constants, taken from the first sample."""
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: _sum,
    np.mean: _mean,
    np.var: _var,
    np.std: lambda number, *args, **options: np.sqrt(_var(number, *args, **options)),
    np.max: lambda number, *args, **options: _extreme(np.argmax, number, *args, **options),
    np.min: lambda number, *args, **options: _extreme(np.argmin, number, *args, **options),
    np.where: _where,
    np.clip: _clip,
    np.dot: lambda first, second: first @ second,
    np.inner: lambda first, second: first @ second.T,
    np.outer: lambda first, second: first.reshape(-1)[:, None] * second.reshape(-1)[None, :],
    np.einsum: _einsum,
    np.trace: lambda number, *args, **options: _sum(np.diagonal(number, *args, **options), -1),
    np.sort: lambda number, axis=-1, **_: np.take_along_axis(number, np.argsort(_exact(number), axis), axis),
    np.real: _real,
    np.iscomplexobj: lambda number: False,
}
_FUNCTIONS[np.linalg.norm] = _norm
_FUNCTIONS[np.amax], _FUNCTIONS[np.amin] = _FUNCTIONS[np.max], _FUNCTIONS[np.min]


def scatter(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    p: Roundoff,
    derived: Sequence[int] = (),
    cotangent: Any = 1.0,
    samples: int = SAMPLES,
    seed: int = 0,
    along: dict[int, Any] | None = None,
) -> tuple[Scatter, list[Scatter]]:
    """Return how far rounding scatters what a function of arrays gives, and its derivatives.

    Args:
        function: computes an array or a number with NumPy; the same inputs, the same result.
        inputs: arrays and numbers; those of floats are exact, and what is computed with them rounds.
        p: the arithmetic.
        derived: the places of inputs by which <result, cotangent> is derived.
        cotangent: of the result's shape.
        samples: how often it is computed; 0: what roundings add up to is all that bounds it.
        seed: the same seed gives the same.
        along: how inputs move, by their places: of the derivatives how far they move then is returned, which
            are second derivatives, by complex steps through reverse mode.

    Raises:
        Unsupported: the function uses a part of NumPy that has no rule.
    """
    finer = max(1.0, FINEST / p.stored)
    coarse = p._replace(stored=p.stored * finer, accumulated=p.accumulated * finer)

    def computed(count: int, stream: int, sized: bool = False) -> tuple[list[Array], Tape]:
        tape = Tape(coarse, count, seed * 1_000_003 + stream, sized, errs=sized and along is None)
        moves = along or {}
        given = [
            tape.leaf(one, moves.get(place)) if _is_float(one) else one for place, one in enumerate(inputs)
        ]
        with np.errstate(all="ignore"):
            output = function(*given)
            if not isinstance(output, Moved):
                return [
                    tape.constant(np.asarray(output, float)),
                    *(tape.constant(np.zeros(np.shape(inputs[place]))) for place in derived),
                ], tape
            weights = np.broadcast_to(np.asarray(cotangent, float), output.shape)
            grads = tape.gradients(output, weights, [given[place] for place in derived]) if derived else []
            if along is not None:
                grads = [np.imag(one) / STEP for one in grads]
        return [output.value, *grads], tape

    results, tape = computed(1, 0, sized=True)
    exact = [np.real(one[0]) for one in results]
    # a complex step errs by its square times the next derivative but one: nothing is known of what is less
    # than the step
    least = 0.0 if along is None else STEP
    sizes = [np.nan_to_num(p.stored * np.real(one[1]), posinf=0.0) + least for one in results]
    known = tape.errs and tape.decided and tape.largest <= p.largest
    both = 1 + FLOAT64 / p.stored  # what it is compared with is computed in float64, and errs too
    most = [both / finer * _most(one) if known else np.full(np.shape(one[0]), np.inf) for one in results]
    lengths = [np.full(one.shape, 0.0 if samples else np.nan) for one in exact]
    part = int(np.clip(MOST // max(tape.size, 1), 1, samples))
    done = 0
    while done < samples:
        count = min(part, samples - done)
        results, _ = computed(1 + count, 1 + done)
        with np.errstate(all="ignore"):
            for length, middle, moved in zip(lengths, exact, results, strict=True):
                deviation = np.real(moved[1:]) - middle
                # what leaves the range says nothing but that it may
                lost = np.where(np.isnan(deviation), np.inf, deviation)
                # squares of the least would underflow
                length[...] = np.hypot(length, np.hypot.reduce(lost, axis=0))
        done += count
    if tape.largest > p.largest:
        lengths = [np.full(length.shape, np.inf) for length in lengths]
    found = [
        Scatter(middle, length / np.sqrt(max(samples, 1)) / finer, size, add)
        for middle, length, size, add in zip(exact, lengths, sizes, most, strict=True)
    ]
    return found[0], found[1:]


def _most(result: Array) -> Array:
    """Return what roundings add up to in a result: infinity where it is not known, or lost its digits."""
    error = np.imag(result[1]) / STEP
    return np.where((error > LOST) & (error < np.sqrt(UNKNOWN)), error, np.inf)


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or np.issubdtype(getattr(value, "dtype", np.bool_), np.floating)
