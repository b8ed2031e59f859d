"""How far rounding may take a correct implementation from the oracle, worked out from the case itself.

Forward error analysis after Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002:
section 2.2 (each operation errs by at most u, relative to what it gives), section 3.1 (gamma_n = n u /
(1 - n u)), section 3.3 (running error: what is rounded counts, not what it was made from) and section 4.2
(a sum in any order). Errors of logits pass through exponentials by expm1, not by their first order, so that
the bounds hold in half precision too.

Operations that are exact for this case add nothing: products with zero and with powers of two, and sums of
few enough bits. The other roundings are those that some right implementation makes:

- products and sums are taken in any order and association, with fused multiply-add or without;
- exponentials and logarithms err by `ELEMENTARY`, and may be taken to base two;
- a softmax may subtract its largest logit or its log-sum-exp, and be rescaled column by column;
- means may be sums that are divided, or means of parts that are multiplied again.

Half-precision tensors are modelled as the libraries compute them: what is stored is rounded to half
precision, what is accumulated is rounded to float32. How GPUs multiply matrices otherwise, `MATMULS` says.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .complex_step import Array
from .dtypes import DTYPES, MATMULS
from .held import SLOPES

FLOAT64 = 2.0**-53
FLOAT32 = 2.0**-24
ELEMENTARY = 4
"""Roundings that an exponential or a logarithm counts: two units in the last place."""
BASE_TWO = 1.25
"""Roundings of an exponent that is multiplied with log2(e): of the product, and a quarter in the constant."""
WEIGHING = 4
"""Roundings of a sum that is divided and multiplied by numbers of rows and ranks, one after another."""
SLICE = 16
"""Terms of a product of matrices that are in one part of its sum at least: those of one instruction."""
CAP = 100.0
"""Larger logit errors make the bound useless, so they are capped: their exponentials stay finite."""


def gamma(n: Any, u: float) -> Any:
    """Return n u / (1 - n u), the relative error of n roundings in a row; of an array elementwise."""
    relative = np.multiply(n, u)
    with np.errstate(divide="ignore"):
        return np.where(relative < 1, relative / (1 - relative), np.inf)[()]


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a dtype: its unit roundoffs, and what an underflow may lose."""

    stored: float
    accumulated: float
    tiny: float
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
    def of_given_logits(self) -> "Precision":
        """The arithmetic of a softmax of logits that are given in half precision.

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


class Weight(NamedTuple):
    """What a sum is multiplied with, in how many steps that round."""

    value: float
    roundings: int

    @staticmethod
    def of(value: float, *factors: float) -> "Weight":
        """Return a weight made of these numbers, which are multiplied with and divided by in any way."""
        return Weight(value, WEIGHING if inexact(np.array(factors)).any() else 0)

    def times(self, cotangent: Any) -> "Weight":
        """Return the weight of the gradient."""
        return Weight(self.value * float(cotangent), self.roundings + int(inexact(cotangent)))


def narrower(values: Array, u: float) -> Array:
    """Return which values have more bits than a unit roundoff of `u` keeps: none where that is 0."""
    rounds: Array = abs(values) * u >= spacing(values)
    return rounds


def summed(sizes: Array, u: float) -> Array:
    """Bound the rounding of a sum along the last axis, in any order, of terms of these magnitudes.

    An addition errs by u times what it gives, and by no more than the smaller of the two that it adds, as the
    larger would do as its result. So of terms below u times the sum, none counts for more than it is.
    """
    size = sizes.sum(-1, keepdims=True)
    small = sizes <= u * size
    lost = np.where(small, sizes, 0).sum(-1)
    additions = np.maximum(np.count_nonzero(~small, axis=-1) - 1, 0)
    result: Array = gamma(additions, u) * size[..., 0] + (1 + gamma(sizes.shape[-1], u)) * lost
    # the oracle loses them too, where they are below its own unit
    result += np.minimum(gamma(sizes.shape[-1], FLOAT64) * size[..., 0], lost)
    return result


def added(small: Array, result: Array, u: float) -> Array:
    """Bound the rounding of adding a small term to a float: no more than the term, nor than the result's."""
    by_oracle = np.minimum(FLOAT64 * abs(result), abs(small))
    rounded: Array = np.minimum(u * abs(result), abs(small)) + by_oracle
    return rounded


class Further(NamedTuple):
    """How far what logits are made of errs by itself, relative to it."""

    rows: float = 0.0
    """An element of a row of features."""
    scale: float = 0.0
    bias: float = 0.0

    @property
    def products(self) -> float:
        """A product of an element of one row and one of another."""
        return (1 + self.rows) ** 2 - 1

    @property
    def scaled(self) -> float:
        """An element of a row, multiplied with the scale."""
        return (1 + self.rows) * (1 + self.scale) - 1

    @property
    def logits(self) -> float:
        """A product of two such elements and the scale."""
        return (1 + self.products) * (1 + self.scale) - 1


NOTHING = Further()


def logits(
    scale: float, x: Array, y: Array, bias: float, p: Precision, further: Further = NOTHING
) -> Bounded:
    """Bound scale * x @ y.T + bias, [n, d] and [m, d] to [n, m].

    Of d terms p[k], whose magnitudes add up to P, each is computed as p[k] (1 + a) (1 + b) (1 + c), with a, b
    and c of its own: |a| <= gamma_d for the product and all but one addition, |b| for the scale, and |c| as
    `Precision.coarser` bounds it for matrices that are rounded first, and sums that are taken in parts. So
    the sum errs by at most ((1 + |a|) (1 + |b|) (1 + |c|) - 1) P.

    Rows and a scale that err by themselves, as `further` says, give each term one more such factor (Higham
    2002, lemma 3.1). Nothing is exact then, and an element of a normalised row may underflow: it meets one
    of at most 1.
    """
    plain = scale * x @ y.T
    products = abs(scale) * abs(x) @ abs(y).T
    # of what are all products multiples? then none of them rounds, nor does a sum that is short enough
    of_scale, of_x, of_y = spacing(np.asarray(scale)), spacing(x).min(1)[:, None], spacing(y).min(1)
    unit = of_scale * of_x * of_y
    least = np.minimum(unit, np.minimum(of_scale * of_x, of_x * of_y))
    rounds = (products * p.stored > unit) | (least < p.tiny)
    if p.factors:
        # the scale is multiplied with either matrix first, or with neither
        cut_x, cut_y = (
            np.any(narrower(matrix, p.kept) | narrower(scale * matrix, p.kept), axis=1, keepdims=True)
            for matrix in (x, y)
        )
        rounds |= cut_x | cut_y.T
    rounds = rounds | (further.logits > 0)
    # a rounding for each product that is not zero, and all but one addition; the scale is multiplied with
    # features or products, and cast where it is wider
    terms = (x != 0).astype(float) @ (y != 0).astype(float).T
    scaling = gamma(inexact(scale), p.accumulated) + gamma(2 * inexact(scale), p.narrowed)
    relative = (1 + gamma(terms, p.multiplied)) * (1 + scaling) * (1 + p.coarser(x.shape[1])) - 1
    relative = relative + (1 + relative) * further.logits
    error = np.where(rounds, relative * products, 0)
    error += np.where(rounds, p.narrowed * (abs(plain) + error), 0)
    value = plain + bias
    if bias:
        rounds |= (products + abs(bias)) * p.stored > np.minimum(unit, spacing(np.asarray(bias)))
        rounds |= further.bias > 0
        error += further.bias * abs(bias)
        error += np.where(rounds, p.stored * (abs(value) + error) + p.narrowed * abs(bias), 0)
    lost = p.tiny * (2 + abs(y).sum(1)[None, :] + abs(scale) * x.shape[1])
    if p.factors:
        lost = lost + p.tiny * abs(scale) * (abs(x).sum(1)[:, None] + abs(y).sum(1))
    if further.rows:
        lost = lost + p.tiny * 2 * x.shape[1] * abs(scale)
    return Bounded(value, error + np.where(rounds, lost, 0))


class Softmax(NamedTuple):
    """The softmax of [n, c] logits, and how far errors take it."""

    log: Array
    probability: Array
    moved: Array
    """How far the logits' errors may move each log-probability."""
    curved: Array
    """What of that is of second order, [n, 1]: the excess of log-sum-exp over its tangent."""
    log_rounded: Array
    """What rounding adds to each log-probability."""
    rounded: Array
    """What rounding adds to each probability, relative to it."""


def _softmax(z: Bounded, p: Precision) -> Softmax:
    w = p.accumulated
    top = z.value.max(1, keepdims=True)
    shifted = z.value - top
    log_sum = np.log(np.exp(shifted).sum(1, keepdims=True))
    log = shifted - log_sum
    probability = np.exp(log)

    # what logits have in common cancels: each moves against their mean
    mean_error = (probability * z.error).sum(1, keepdims=True)
    against_mean = np.minimum(z.error + mean_error - 2 * probability * z.error, CAP)
    curved = (probability * (np.expm1(against_mean) - against_mean)).sum(1, keepdims=True)
    curved = np.minimum(curved, 2 * z.error.max(1, keepdims=True))
    moved = against_mean + curved

    # a difference of two floats is one itself, if it has few enough bits
    fits = (z.error == 0) & (abs(shifted) * w <= np.minimum(spacing(z.value), spacing(top)))
    shift = np.where(fits, 0, w * abs(shifted))
    exponent = shift + BASE_TWO * w * abs(shifted)
    # rescaling column by column multiplies a term once for every larger one that comes later
    larger = (-shifted).argsort(1).argsort(1)
    swaps = np.exp(np.minimum(2 * moved.max(1, keepdims=True), CAP))
    rescaled = np.minimum(swaps * (probability * larger).sum(1, keepdims=True), z.value.shape[1] - 1)
    sum_error = (probability * (np.expm1(exponent) + ELEMENTARY * w * (shifted != 0))).sum(1, keepdims=True)
    sum_error += (ELEMENTARY + 1) * w * rescaled + summed(probability, w)[..., None]
    sum_error += p.exponentials + summed(probability, p.exponentials)[..., None]
    sum_error = (ELEMENTARY + BASE_TWO) * w * log_sum - np.log1p(-np.minimum(sum_error, 1 - FLOAT64))

    # the logarithm of the sum is subtracted, or added to the largest and the sum subtracted
    whole = added(log_sum, top + log_sum, w)
    place = np.maximum(shift, whole)
    last = np.where(fits, added(log_sum, log, w), w * abs(log))
    stored = p.narrowed * abs(log)
    log_rounded = sum_error + place + last + stored
    exponent = sum_error + place + (1 + BASE_TWO) * w * abs(log) + stored
    rounded = np.expm1(np.minimum(exponent, CAP)) + (ELEMENTARY + 1) * w + p.narrowed
    return Softmax(log, probability, moved, curved, log_rounded, rounded)


def log_softmax(z: Bounded, p: Precision) -> Bounded:
    """Bound log softmax along the last axis of [n, c] logits."""
    parts = _softmax(z, p)
    return Bounded(parts.log, parts.moved + parts.log_rounded)


def softmax(z: Bounded, p: Precision) -> Bounded:
    """Bound the softmax along the last axis of [n, c] logits."""
    return _probability(_softmax(z, p), p)


def _probability(parts: Softmax, p: Precision) -> Bounded:
    relative = np.exp(np.minimum(parts.moved, CAP)) * (1 + parts.rounded) - 1
    # what is computed is a probability too, give or take its own rounding
    error = np.minimum(parts.probability * relative, 1 + parts.probability * parts.rounded)
    return Bounded(parts.probability, error + p.tiny)


def soft_targets(z: Bounded, p: Precision) -> tuple[Bounded, Array]:
    """Bound the softmax of [n, c] logits, and how far from 1 each of its rows sums up, [n]."""
    parts = _softmax(z, p)
    return _probability(parts, p), _excess(parts, p)


def _excess(parts: Softmax, p: Precision) -> Array:
    # whatever the logits' errors, the softmax sums up to 1: rounding alone takes it away
    largest = np.minimum(parts.probability * np.exp(np.minimum(parts.moved, CAP)), 1)
    excess: Array = (largest * parts.rounded + p.tiny).sum(1)
    return excess


def cross_entropy(
    z: Bounded, targets: Bounded, p: Precision, excess: Array | float = 0.0
) -> tuple[Bounded, Bounded]:
    """Bound the cross-entropy of [n, c] logits under [n, c] target probabilities.

    Args:
        z: the logits.
        targets: the probabilities.
        p: the arithmetic.
        excess: how far from 1 the targets that are computed may sum up, [n].

    Returns:
        The [n] values, and their [n, c] gradients with respect to the logits.
    """
    w = p.accumulated
    parts = _softmax(z, p)
    off = np.asarray(excess)[..., None]
    t = targets.value
    largest = t + targets.error
    slope = parts.probability - t
    products = t * abs(parts.log)
    # logits that err by e move log-sum-exp by p e and what is of second order; those of the targets may be
    # computed apart, and move the value by t e, which need not cancel
    moved = (parts.probability * z.error).sum(1, keepdims=True) + parts.curved
    error = ((1 + off) * moved)[..., 0] + (largest * z.error).sum(1)
    error += (largest * parts.log_rounded + targets.error * abs(parts.log)).sum(1)
    error += (inexact(t) * (w + p.narrowed) * products).sum(1) + summed(products, w) + p.tiny
    # of computed targets, the divergence and the entropy, for which logarithms are taken anew, give it too
    own = t * abs(np.log(np.where(t > 0, t, 1)))
    entropy = ((ELEMENTARY + 3) * (w + p.narrowed) * (own + t)).sum(1) + 2 * summed(own, w)
    error += np.where(np.asarray(excess) > 0, entropy, 0)
    probability = _probability(parts, p)
    slope_error = (1 + off) * probability.error + targets.error + w * abs(slope)
    # torch's own cross-entropy in bfloat16 takes a label's 1 from a probability that is rounded already
    slope_error += p.narrowed * (t + abs(slope))
    # a label's logit may be taken from all others first: a difference rounds, log-sum-exp is then the value,
    # and the label's 1 what the probabilities sum up to
    further = np.expm1(np.minimum(2 * w * products.sum(1, keepdims=True), CAP)) * (off == 0)
    slope_error += t * _excess(parts, p)[..., None] + (parts.probability + t) * further
    # of targets that are no labels, the backward of log softmax sums up
    slope_error += probability.value * (off + summed(t, w)[..., None] + 2 * w * inexact(t).any())
    return Bounded(products.sum(1), error), Bounded(slope, slope_error)


def cross_entropy_targets(z: Bounded, target_logits: Bounded, p: Precision) -> Bounded:
    """Bound the gradient of `cross_entropy` with respect to the logits of its targets."""
    logp = log_softmax(z, p)
    target = softmax(target_logits, p)
    mean = (target.value * logp.value).sum(1, keepdims=True)
    mean_error = (target.value * logp.error + target.error * abs(logp.value)).sum(1, keepdims=True)
    mean_error += (gamma(z.value.shape[1], p.accumulated) + 3 * p.stored) * abs(mean)
    spread = logp.value - mean
    error = target.error * abs(spread) + target.value * (logp.error + mean_error)
    error += 4 * p.stored * target.value * (abs(logp.value) + abs(mean)) + p.tiny
    return Bounded(-target.value * spread, error)


def sigmoid_cross_entropy(z: Bounded, labels: Array, p: Precision) -> tuple[Bounded, Bounded]:
    """Bound -log sigmoid(labels * logits) for labels of 1 and -1, and its gradient by the logits."""
    w = p.accumulated
    margin = labels * z.value
    tail = np.log1p(np.exp(-abs(margin)))
    value = np.maximum(-margin, 0) + tail
    slope = np.exp(-np.logaddexp(0, margin))
    moved = slope * np.expm1(np.minimum(z.error, CAP))
    exponential = np.expm1(BASE_TWO * w * abs(margin)) + ELEMENTARY * w
    # |margin| + tail, from which |margin| may be taken away again: log sigmoid(z) - z for a negative
    error = np.minimum(moved, z.error) + tail * (exponential + ELEMENTARY * w)
    error += added(tail, abs(margin) + tail, w)
    error += p.narrowed * value + p.tiny
    # as 1 - 1 / (1 + exp(-z)) it errs by two roundings of what is near 1, however small it is
    slope_error = np.minimum(moved, 1) + slope * (exponential + 3 * w + 2 * p.narrowed) + 2 * w + p.tiny
    # torch's binary cross-entropy stores the sigmoid before it takes 1 from it, where the label is 1
    slope_error += np.where(labels > 0, p.exponentials, 0.0)
    return Bounded(value, error), Bounded(-labels * slope, slope_error)


def total(values: Bounded, weight: Weight, p: Precision, parts: int = 1) -> float:
    """Bound `weight` times the sum of all values, summed in `parts` that are stored one by one."""
    size = abs(values.value).sum()
    error = values.error.sum() + summed(abs(values.value).ravel(), p.accumulated)
    error += (gamma(weight.roundings, p.accumulated) + gamma(parts + 4, p.narrowed)) * size
    return float(abs(weight.value) * error + p.tiny)


def weighed(slope: Bounded, weight: Weight, p: Precision) -> Magnitude:
    """Bound the gradient of logits, `weight` times `slope`."""
    size = abs(weight.value) * (abs(slope.value) + slope.error)
    # the last step multiplies with the slope
    roundings = weight.roundings + int(inexact(weight.value))
    error = abs(weight.value) * slope.error + (gamma(roundings, p.accumulated) + 4 * p.narrowed) * size
    return Magnitude(error + p.tiny, size)


def through_logits(
    slope: Bounded,
    weight: Weight,
    scale: float,
    x: Array,
    y: Array,
    p: Precision,
    further: Further = NOTHING,
) -> dict[str, Magnitude]:
    """Bound the gradients of x, y, scale and bias where `weight * slope` is the gradient of the logits.

    Those of x and y are products of matrices, and that of the scale is a sum over one: they err as `logits`
    does, the gradient of the logits being one of the matrices that are rounded first. What rows and scale err
    by themselves counts as in `logits`, one row less for the gradient of a row, the scale less for its own.
    """
    w = p.accumulated
    e, g = weighed(slope, weight, p)
    bounds = {}
    additions = {}
    for name, features, error, size in (("x", y, e, g), ("y", x, e.T, g.T)):
        products = abs(scale) * size @ abs(features)
        terms = (size != 0).astype(float) @ (features != 0).astype(float)
        additions[name] = np.maximum(terms - 1, 0) + (inexact(features).any(0) | (further.rows > 0))
        rounded = gamma(additions[name] + inexact(scale), p.multiplied) + gamma(5, p.narrowed)
        coarser = p.coarser(len(features))
        rounded = rounded + (1 + rounded) * coarser
        rounded = (rounded + (1 + rounded) * further.scaled) * products
        lost = p.tiny * (2 + abs(features).sum(0))[None, :] * max(abs(scale), 1)
        if p.factors or further.rows:
            lost = lost + p.tiny * abs(scale) * size.sum(1)[:, None]
        erring = abs(scale) * error @ abs(features)
        bounds[name] = Magnitude(erring * (1 + further.scaled) + rounded + lost, products)
    products = (abs(x) * (g @ abs(y))).sum()
    error = (abs(x) * (e @ abs(y))).sum() + p.tiny * (2 + abs(x).sum() + abs(y).sum())
    # features are multiplied with features first, or either with the gradient
    first = [
        (x.shape[1], x.shape[1] + 1, g * (abs(x) @ abs(y).T)),
        (len(y), additions["x"].max() + 1, abs(x) * (g @ abs(y))),
        (len(x), additions["y"].max() + 1, abs(y) * (g.T @ abs(x))),
    ]
    error += max(
        (gamma(count, p.multiplied) + p.coarser(terms)) * products + summed(sizes.ravel(), w)
        for terms, count, sizes in first
    )
    error += gamma(6, p.narrowed) * products
    error = error * (1 + further.products) + further.products * products
    bounds["scale"] = Magnitude(np.asarray(error), np.asarray(products))
    error = e.sum() + summed(g.ravel(), w) + gamma(3, p.narrowed) * g.sum()
    bounds["bias"] = Magnitude(np.asarray(error), np.asarray(g.sum()))
    return bounds


def normalization(width: int, p: Precision) -> float:
    """Return the relative error of an element of x / |x|: half of the sum's, the root and the quotient."""
    return float(gamma(width / 2 + 2, p.accumulated) + gamma(3, p.stored))


def renormalization(width: int, p: Precision) -> float:
    """Return the same where x / |x| was stored, and may have been normalised again.

    What was stored is c x[k] (1 + a[k]) / |x|, |a[k]| at most u for the quotient, with a c that all elements
    share: the error of the norm. A second normalisation divides by c |x (1 + a)| / |x|, so c cancels, and
    what is left of the first are the a[k], once as they are and once in the norm. Without a second one, what
    is stored errs as `normalization` says.
    """
    first = float(gamma(2, p.stored))
    return first + (1 + first) * normalization(width, p)


def holding(kind: str, scale: float, p: Precision) -> float:
    """Return the relative error of a scale that a loss computes from what it holds, a kind of `held.HELD`.

    A quotient rounds once. An exponential errs by `ELEMENTARY` roundings, and, taken to base two, by those of
    its exponent (Higham 2002, section 3.3: e^(t + d) errs by e^d - 1); its inverse may be taken. In half
    precision either is stored. An exponential of 0, and a power of two, are exact.
    """
    if not kind or scale == 1:
        return 0.0
    if kind == "inverse":
        return float((gamma(1, p.accumulated) + gamma(1, p.narrowed)) * inexact(scale))
    exponent = np.expm1(BASE_TWO * p.accumulated * abs(np.log(scale)))
    return float(exponent + gamma(ELEMENTARY + 1, p.accumulated) + gamma(1, p.narrowed))


def through_held(kind: str, gradient: Magnitude, scale: Array, p: Precision) -> Magnitude:
    """Bound the gradient of what is held for a scale, given that of the scale.

    The scale moves as fast as its exponential, or its square; either is made of what errs as `holding` says,
    at most twice, multiplied, and in half precision stored, each time.
    """
    slope = SLOPES[kind](scale)
    factor = holding(kind, float(scale.reshape(())), p)
    relative = (1 + factor) ** 2 * (1 + gamma(2, p.accumulated)) * (1 + gamma(4, p.narrowed)) - 1
    error = slope * ((1 + relative) * gradient.error + relative * gradient.size)
    return Magnitude(error + p.tiny * (1 + slope), slope * gradient.size)


def through_normalize(
    gradient: Magnitude, features: Array, p: Precision, parts: Array | float = 1
) -> Magnitude:
    """Bound the gradient of [n, d] features through x / |x|: (g - x (x.g) / |x|^2) / |x|.

    It is linear in g: what g is summed from may be taken through it in `parts`, which are then summed.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = abs(features) / norms
    width = features.shape[1]

    def projected(part: Array) -> Array:
        moved: Array = (part + unit * (unit * part).sum(1, keepdims=True)) / norms
        return moved

    size = projected(gradient.size)
    rounded = (gamma(2 * width + 8, p.accumulated) + gamma(14, p.stored)) * size
    lost = p.tiny * (4 + 2 * width) * (1 + 1 / norms) ** 2 * np.maximum(parts, 1)
    return Magnitude(projected(gradient.error) + rounded + lost, size)


def through_renormalize(
    gradient: Magnitude, features: Array, p: Precision, parts: Array | float = 1
) -> Magnitude:
    """Bound the gradient of [n, d] features through one or two normalisations.

    The second one's rows err by two roundings, and are twice in its gradient; their norm errs as
    `normalization` says. Where it is missing, the first is given no more than what it would be.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    error, size = through_normalize(gradient, unit, p, parts)
    further = normalization(features.shape[1], p) + gamma(4, p.stored)
    return through_normalize(Magnitude(error + further * (error + size), size), features, p, parts)
