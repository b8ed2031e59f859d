"""Cross-entropies: of labels, of soft targets, and of the sigmoid."""

from typing import Any, NamedTuple

import numpy as np

from ..complex_step import Array
from .precision import BASE_TWO, CAP, ELEMENTARY, FLOAT64, Bounded, Precision, gamma
from .sums import Weight, added, inexact, spacing, summed, weighed
from .tape import Part, Traced, Traits, bounded, give, tape_of


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


def entropy_of(
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


def sigmoid_entropy(z: Bounded, labels: Array, p: Precision) -> tuple[Bounded, Bounded]:
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
    return Bounded(value, error), Bounded(-labels * slope, slope_error)


SOFT_PARTS = 4
"""What is stored of the values under soft targets: a row's divergence, its entropy, their sum, and the sum of rows."""


def one_hot(labels: Array, classes: int) -> Bounded:
    """Return [n] labels as exact probabilities, [n, c]."""
    hot = np.zeros((len(labels), classes))
    hot[np.arange(len(labels)), labels] = 1
    return Bounded(hot, np.zeros(hot.shape))


def _of_labels(z: Bounded, labels: Array, p: Precision) -> tuple[Bounded, Bounded]:
    return entropy_of(z, one_hot(labels, z.value.shape[1]), p)


def _of_targets(z: Bounded, t: Bounded, p: Precision) -> tuple[Bounded, Bounded]:
    targets, excess = soft_targets(t, p)
    return entropy_of(z, targets, p, excess)


def cross_entropy(logits: Traced, labels: Array) -> Traced:
    """Trace -log softmax(z)_label for each row."""
    tape = logits.tape
    p = tape.p.of_given_logits if logits.traits.given else tape.p
    value, slope = tape.once(_of_labels, logits.bounded, np.asarray(labels), p)
    return tape.node(value, lambda part: _slope_back(logits, slope, part, tape.p), _traits(logits))


def soft_cross_entropy(teacher_logits: Any, student_logits: Any) -> Traced:
    """Trace -sum_j softmax(t)_j log softmax(s)_j for each row."""
    tape = tape_of(teacher_logits, student_logits)
    given = [one.traits.given for one in (teacher_logits, student_logits) if isinstance(one, Traced)]
    p = tape.p.of_given_logits if any(given) else tape.p
    t, z = bounded(teacher_logits), bounded(student_logits)
    value, slope = tape.once(_of_targets, z, t, p)

    def back(part: Part) -> None:
        _slope_back(student_logits, slope, part, tape.p)
        if isinstance(teacher_logits, Traced) and teacher_logits.derived:
            _slope_back(teacher_logits, tape.once(cross_entropy_targets, z, t, p), part, tape.p)

    return tape.node(value, back, Traits(parts=SOFT_PARTS))


def sigmoid_cross_entropy(logits: Traced, labels: Array) -> Traced:
    """Trace -log sigmoid(labels * logits) for labels of 1 and -1."""
    tape = logits.tape
    value, slope = tape.once(sigmoid_entropy, logits.bounded, np.asarray(labels, float), tape.p)
    return tape.node(value, lambda part: _slope_back(logits, slope, part, tape.p), _traits(logits))


def _traits(logits: Traced) -> Traits:
    return Traits(parts=logits.traits.parts)


def _slope_back(logits: Any, slope: Bounded, part: Part, p: Precision) -> None:
    """Give logits their gradient: the slope, times the part of each row or element."""

    def fit(one: Any) -> Any:
        return one if np.ndim(one) in (0, slope.value.ndim) else np.expand_dims(one, -1)

    weight = Weight(fit(part.size), part.roundings)
    error, size = weighed(slope, weight, p, fit(part.error))
    # what was given has its gradient stored in the case's dtype
    given = isinstance(logits, Traced) and logits.traits.given
    give(logits, Part(error, size, settled=not given))
