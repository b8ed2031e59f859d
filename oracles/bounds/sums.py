"""Sums of many terms: what is exact, what rounds in any order, and weights that sums are multiplied with."""

from typing import Any, NamedTuple

import numpy as np

from ..complex_step import Array
from .precision import FLOAT64, Bounded, Magnitude, Precision, gamma

WEIGHING = 4
"""Roundings of a sum that is divided and multiplied by numbers of rows and ranks, one after another: its
mean over rows, that times the rows and over all rows, and times the ranks."""
TOTAL_STORED = 4
"""How often a sum is stored on its way, besides its parts: each quotient and product of `WEIGHING` once."""
SLOPE_STORED = 4
"""How often a gradient of logits is stored: the slope, the weight, their product, and the label's 1 less."""


def spacing(values: Array) -> Array:
    """Return the largest power of two that each value is a multiple of; infinity for 0.

    Multiples of q whose magnitudes add up to at most q / u are added without rounding, in any order: every
    partial sum is a multiple of q of at most 1 / u units.
    """
    mantissa, exponent = np.frexp(values)
    whole = abs(mantissa * 2.0**53).astype(np.int64)
    lowest: Array = np.ldexp((whole & -whole).astype(float), exponent - 53)
    return np.where(np.equal(values, 0), np.inf, lowest)


def inexact(factors: Array | float) -> Array:
    """Return which factors round what they are multiplied with: all but zero and powers of two."""
    mantissa = abs(np.frexp(factors)[0])
    rounds: Array = np.asarray((mantissa != 0.5) & (mantissa != 0))
    return rounds


def narrower(values: Array, u: float) -> Array:
    """Return which values have more bits than a unit roundoff of `u` keeps: none where that is 0."""
    rounds: Array = abs(values) * u >= spacing(values)
    return rounds


def summed(sizes: Array, u: float) -> Array:
    """Bound the rounding of a sum along the last axis, in any order, of terms of these magnitudes.

    An addition errs by u times what it gives (Higham 2002, section 2.2), and by no more than the smaller of
    the two that it adds, as the larger one would do as its result.

    Of n terms of magnitude S let k be large, and the m others, L in all, be at most u S each. The order is a
    tree of additions. Those of two sums that both hold a large term are k - 1, and err by gamma_(k - 1) S
    (section 4.2). Any small term is in just one largest part of the tree of small terms alone, of l
    magnitudes in all, say. That part's sum s errs by gamma_(m - 1) l, and so is at most (1 + gamma_(m - 1))
    l; where it is added to a sum that holds a large term, that errs by s at most. So both err by (1 + 2
    gamma_(m - 1)) l, and all such parts by (1 + 2 gamma_(m - 1)) L, which is in the later sums, and grows by
    gamma_(k - 1) of it.
    """
    size = sizes.sum(-1, keepdims=True)
    small = sizes <= u * size
    lost = np.where(small, sizes, 0).sum(-1)
    large = gamma(np.maximum(np.count_nonzero(~small, axis=-1) - 1, 0), u)
    among = gamma(np.maximum(np.count_nonzero(small & (sizes > 0), axis=-1) - 1, 0), u)
    result: Array = large * size[..., 0] + np.where(lost > 0, (1 + large) * (1 + 2 * among), 0) * lost
    # the oracle loses them too, where they are below its own unit
    result += np.minimum(gamma(sizes.shape[-1], FLOAT64) * size[..., 0], lost)
    return result


def added(small: Array, result: Array, u: float) -> Array:
    """Bound the rounding of adding a small term to a float: no more than the term, nor than the result's."""
    by_oracle = np.minimum(FLOAT64 * abs(result), abs(small))
    rounded: Array = np.minimum(u * abs(result), abs(small)) + by_oracle
    return rounded


class Weight(NamedTuple):
    """What a sum is multiplied with, in how many steps that round; both may be arrays."""

    value: Any
    roundings: Any

    @staticmethod
    def of(value: float, *factors: float) -> "Weight":
        """Return a weight made of these numbers, which are multiplied with and divided by in any way."""
        return Weight(value, WEIGHING if inexact(np.array(factors)).any() else 0)

    def times(self, factor: Any) -> "Weight":
        """Return the weight of the gradient, given that of what the sum is used for."""
        return Weight(self.value * factor, self.roundings + inexact(factor).astype(int))


def total(values: Bounded, weight: Weight, p: Precision, parts: int = 1) -> float:
    """Bound `weight` times the sum of all values, summed in `parts` that are stored one by one.

    The sum errs by the errors of the values, and as `summed` says. Its weight rounds it in `weight.roundings`
    steps, and in half precision each part and each of `TOTAL_STORED` results is stored (Higham 2002, lemma
    3.1).
    """
    size = abs(values.value).sum()
    error = values.error.sum() + summed(abs(values.value).ravel(), p.accumulated)
    error += (gamma(weight.roundings, p.accumulated) + gamma(parts + TOTAL_STORED, p.narrowed)) * size
    return float(abs(weight.value) * error + p.tiny)


def weighed(slope: Bounded, weight: Weight, p: Precision, error: Array | float = 0.0) -> Magnitude:
    """Bound the gradient of logits, `weight` times `slope`, where the weight errs by `error` besides.

    The product is w (1 + d) s with |d| <= gamma of the weight's roundings and one of the last product, which
    is exact where the weight is zero or a power of two; `SLOPE_STORED` are of half precision.
    """
    computed = abs(slope.value) + slope.error
    size = abs(weight.value) * computed
    roundings = weight.roundings + inexact(weight.value).astype(int)
    rounded = (gamma(roundings, p.accumulated) + SLOPE_STORED * p.narrowed) * size
    erring = abs(weight.value) * slope.error + error * computed
    return Magnitude(erring + rounded + p.tiny, size)
