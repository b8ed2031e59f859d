"""The arithmetic that bounds are of: unit roundoffs, and the relative error of several roundings in a row."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..complex_step import Array
from ..dtypes import DTYPES, MATMULS

FLOAT64 = 2.0**-53
FLOAT32 = 2.0**-24
ELEMENTARY = 4
"""Roundings that an exponential or a logarithm counts: two units in the last place."""
BASE_TWO = 1.25
"""Roundings of an exponent that is multiplied with log2(e): of the product, and a quarter in the constant."""
SLICE = 16
"""Terms of a product of matrices that are in one part of its sum at least: those of one instruction."""
CAP = 100.0
"""The largest exponent of an error: beyond it a bound is useless, and capped its exponential stays finite."""


def gamma(n: Any, u: float) -> Any:
    """Return n u / (1 - n u), which bounds the relative error of n roundings in a row, elementwise.

    Of factors (1 + d) or 1 / (1 + d) with |d| <= u, n in all, the product is 1 + t with |t| <= gamma_n
    (Higham 2002, lemma 3.1). A factor under a square root counts half: (1 - u)^-r <= 1 / (1 - r u) for any
    real r >= 1, by Bernoulli's inequality. Several gammas are combined by lemma 3.3: (1 + gamma_k) (1 +
    gamma_n) is at most 1 + gamma_(k + n), and gamma_k + gamma_n is less.
    """
    if isinstance(n, int | float):
        return n * u / (1 - n * u) if n * u < 1 else math.inf
    relative = np.multiply(n, u)
    with np.errstate(divide="ignore"):
        return np.where(relative < 1, relative / (1 - relative), np.inf)[()]


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a dtype: its unit roundoffs, and what an underflow may lose.

    Half-precision tensors are modelled as the libraries compute them: what is stored is rounded to half
    precision, what is accumulated is rounded to float32.
    """

    stored: float
    accumulated: float
    tiny: float
    """What an underflow may lose. Of float64, float32 and bfloat16 it is the smallest normal number, as GPUs,
    and threads of a CPU that were told so, flush to zero what is smaller. Of float16 it is the smallest
    subnormal one: no library flushes those, as features of length 1 have many, and rounding to a multiple of
    it loses half of it at most."""
    exponentials: float = 0.0
    """The unit roundoff in which a softmax stores exponentials and adds them; 0 if that is `accumulated`."""
    factors: float = 0.0
    """How far the elements of both matrices of a product may be cut first, relative to them; else 0."""
    additions: float = 0.0
    """The unit roundoff of an addition in a product of matrices; 0 if that is `accumulated`."""
    parts: float = 0.0
    """The unit roundoff in which parts of such a sum are stored, and added up; 0 if they are not."""

    @staticmethod
    def of(dtype: str, matmul: str = "exact") -> "Precision":
        """Return the arithmetic of one of `DTYPES` whose matrices are multiplied as one of `MATMULS` says."""
        kind, how = DTYPES[dtype], MATMULS[matmul]
        p = Precision(2.0**-kind.bits, 2.0 ** -DTYPES[kind.accumulated].bits, 2.0**kind.tiny)
        if dtype not in how.dtypes:
            return p
        return replace(
            p,
            factors=2.0 ** (1 - how.factors) if how.factors else 0.0,
            additions=2.0**-how.additions if how.additions else 0.0,
            parts=p.stored if how.splits else 0.0,
        )

    @property
    def kept(self) -> float:
        """The unit roundoff of the bits that elements of matrices keep: what has no more is not cut."""
        return self.factors / 2

    @property
    def multiplied(self) -> float:
        """The unit roundoff of an addition in a product of matrices."""
        return self.additions or self.accumulated

    def coarser(self, terms: int) -> float:
        """Bound what a product of matrices errs by besides the rounding of `terms` products and their sum.

        A product of two factors that are cut is x (1 + d) y (1 + e) with |d|, |e| <= `factors`, so it errs by
        gamma_2 of that, relative to |x y| (Higham 2002, lemma 3.1). A sum that is taken in s parts, each
        stored and then added up, rounds each term at most s times more: once as its part is stored, s - 1
        times as parts are added in whichever order; that is gamma_s of `parts`. The errors of both multiply,
        as in the proof of lemma 3.3. Each part holds `SLICE` terms or more but for the last, so s is at most
        the quotient of both, rounded up; a single part is the sum itself.

        Returns:
            The error relative to the sum of the magnitudes.
        """
        parts = -(-terms // SLICE)
        split = gamma(parts if parts > 1 else 0, self.parts)
        rounded = gamma(2, self.factors)
        return float(rounded + (1 + rounded) * split)

    @property
    def narrowed(self) -> float:
        """The unit roundoff of storing what was accumulated: 0 where that is no rounding of its own."""
        return self.stored if self.stored > self.accumulated else 0.0

    @property
    def of_half_logits(self) -> "Precision":
        """The arithmetic of a softmax of logits that are stored in half precision.

        torch's CPU kernel keeps their exponentials and the sum of those in half precision: over 2 to 4,000
        classes its log-softmax errs by 1 to 4.7 units of half precision, which no caller can avoid.
        """
        return replace(self, exponentials=self.narrowed)


class Bounded(NamedTuple):
    """A value and how far a computed one may be from it."""

    value: Array
    error: Array


class Magnitude(NamedTuple):
    """The error of a gradient, and the magnitudes that it was summed from, as far as they may be computed."""

    error: Array
    size: Array
