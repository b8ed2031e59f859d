"""Cross-entropies: of labels, of soft targets, and of the sigmoid."""

from typing import Any, NamedTuple

import numpy as np

from ..complex_step import Array
from .precision import BASE_TWO, CAP, ELEMENTARY, FLOAT64, Bounded, Precision, gamma
from .rows import by_rows
from .sums import Weight, added, inexact, spacing, summed, weighed
from .tape import Part, Traced, Traits, bounded, give, tape_of

RESCALED = ELEMENTARY + 1
"""Roundings of a term that is rescaled: the exponential that it is multiplied with, and the product. So many
has a probability too, that is an exponential divided by a sum."""
ENTROPY = ELEMENTARY + 3
"""Roundings of t log t: the logarithm, t itself before it is taken, the product, and the sum with another."""
LABEL = 2
"""Roundings of a log-probability that is found from differences with the label's logit: of that, and of
log-sum-exp."""
BACKWARD = 2
"""Roundings of a probability that is multiplied with the sum of all targets: of the sum's terms, and the
product."""
MEAN_STORED = 3
"""What half precision stores of the mean log-probability: both factors of each term, and their sum."""
SPREAD_STORED = 4
"""What is stored of a target's gradient: two products, or a difference and a product, and the factors of
each."""
SOFT_PARTS = 4
"""What is stored of values under soft targets: a row's divergence, its entropy, their sum, and the sum of
rows."""
SIGMOID = 3
"""Roundings of e / (1 + e): the sum, the quotient, and the product."""
SIGMOID_STORED = 2
"""What half precision stores of that: the exponential, and the result."""
COMPLEMENT = 2
"""Roundings of 1 - s relative to 1: of s, and of the difference."""
SMOOTHED = 3
"""Roundings of a smoothed label's probability: 1 less the share, the share of each class, their sum."""
SQUARED = 3
"""Roundings of the squared log-sum-exp: the square, the product with its factor, the sum with a loss."""
SQUARED_SLOPE = 4
"""And of its gradient: two products with the factor, that with a probability, the sum with that itself."""


def grown(log: Array, moved: Array) -> Array:
    """Bound how far an exponential moves as its exponent does: exp(log + moved) - exp(log).

    No first order of it holds where `moved` is large (Higham 2002, section 3.3). Beyond `CAP` the first of
    both alone is no less; it is cut at exp(CAP), far above all that a bound of it is compared with.
    """
    small: Array = np.exp(log) * np.expm1(np.minimum(moved, CAP))
    return np.where(moved <= CAP, small, np.exp(np.minimum(log + moved, CAP)))


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
    """Bound what cross-entropies are made of.

    Logits that err by e[j] move log q[k] = z[k] - log sum_j exp(z[j]) by (1 - q[k]) e[k] and the mean of the
    other q[j] e[j], to first order: `against_mean`. The rest is the excess of log-sum-exp over its tangent:
    with each logit moved by d[j] against the mean it is log(1 + sum_j q[j] (exp(d[j]) - 1 - d[j])), less than
    that sum, and less than twice the largest error, as neither log-sum-exp nor its tangent moves by more than
    that.

    The roundings, all relative to the sum of exponentials S, which is at least 1: each exponential's, with
    its exponent's (the difference with the largest logit, and the product of base two); `RESCALED` for each
    time that a term is rescaled; those of the sum (`summed`). A sum that errs by d has a logarithm that errs
    by -log(1 - d) at most, and by those of a logarithm. Then two differences round: with the largest logit,
    and with log S.
    """
    w = p.accumulated
    top = z.value.max(1, keepdims=True)
    shifted = z.value - top
    log_sum = np.log(np.exp(shifted).sum(1, keepdims=True))
    log = shifted - log_sum
    probability = np.exp(log)

    # what logits have in common cancels: each moves against their mean
    mean_error = (probability * z.error).sum(1, keepdims=True)
    against_mean = z.error + mean_error - 2 * probability * z.error
    beyond = grown(log, against_mean) - np.where(against_mean <= CAP, probability * against_mean, 0)
    curved = beyond.sum(1, keepdims=True)
    curved = np.minimum(curved, 2 * z.error.max(1, keepdims=True))
    moved = against_mean + curved

    # a difference of two floats is one itself, if it has few enough bits
    fits = (z.error == 0) & (abs(shifted) * w <= np.minimum(spacing(z.value), spacing(top)))
    shift = np.where(fits, 0, w * abs(shifted))
    exponent = shift + BASE_TWO * w * abs(shifted)
    # rescaling column by column multiplies a term once for every larger one that comes later
    larger = (-shifted).argsort(1).argsort(1)
    with np.errstate(divide="ignore"):
        ordered = np.log((probability * larger).sum(1, keepdims=True))
    # logits that err may come in another order
    swapped = np.exp(np.minimum(ordered + 2 * moved.max(1, keepdims=True), CAP))
    rescaled = np.minimum(swapped, z.value.shape[1] - 1)
    sum_error = (probability * (np.expm1(exponent) + ELEMENTARY * w * (shifted != 0))).sum(1, keepdims=True)
    sum_error += RESCALED * w * rescaled + summed(probability, w)[..., None]
    sum_error += p.exponentials + summed(probability, p.exponentials)[..., None]
    sum_error = (ELEMENTARY + BASE_TWO) * w * log_sum - np.log1p(-np.minimum(sum_error, 1 - FLOAT64))

    # the logarithm of the sum is subtracted, or added to the largest and the sum subtracted
    whole = added(log_sum, top + log_sum, w)
    place = np.maximum(shift, whole)
    last = np.where(fits, added(log_sum, log, w), w * abs(log))
    stored = p.narrowed * abs(log)
    log_rounded = sum_error + place + last + stored
    exponent = sum_error + place + (1 + BASE_TWO) * w * abs(log) + stored
    rounded = np.expm1(np.minimum(exponent, CAP)) + RESCALED * w + p.narrowed
    return Softmax(log, probability, moved, curved, log_rounded, rounded)


def log_softmax(z: Bounded, p: Precision) -> Bounded:
    """Bound log softmax along the last axis of [n, c] logits."""
    parts = _softmax(z, p)
    return Bounded(parts.log, parts.moved + parts.log_rounded)


def softmax(z: Bounded, p: Precision) -> Bounded:
    """Bound the softmax along the last axis of [n, c] logits."""
    return _probability(_softmax(z, p), p)


def _probability(parts: Softmax, p: Precision) -> Bounded:
    error = grown(parts.log, parts.moved) * (1 + parts.rounded) + parts.probability * parts.rounded
    # what is computed is a probability too, give or take its own rounding
    error = np.minimum(error, 1 + parts.probability * parts.rounded)
    return Bounded(parts.probability, error + p.tiny)


def soft_targets(z: Bounded, p: Precision) -> tuple[Bounded, Array]:
    """Bound the softmax of [n, c] logits, and how far from 1 each of its rows sums up, [n]."""
    parts = _softmax(z, p)
    return _probability(parts, p), _excess(parts, p)


def _excess(parts: Softmax, p: Precision) -> Array:
    # whatever the logits' errors, the softmax sums up to 1: rounding alone takes it away
    largest = np.exp(np.minimum(parts.log + parts.moved, 0))
    excess: Array = (largest * parts.rounded + p.tiny).sum(1)
    return excess


def entropy_of(
    z: Bounded, targets: Bounded, p: Precision, excess: Array | float = 0.0
) -> tuple[Bounded, Bounded]:
    """Bound the cross-entropy of [n, c] logits under [n, c] target probabilities: -sum_j t[j] log q[j].

    The value errs by t[j] times what log q[j] errs by, by the targets' errors times |log q[j]|, by a rounding
    of each product and by those of their sum. Its gradient is q - t: it errs by both, and by the rounding of
    their difference; an implementation may find it in other ways, whose roundings are added one by one below.

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
    entropy = (ENTROPY * (w + p.narrowed) * (own + t)).sum(1) + 2 * summed(own, w)
    error += np.where(np.asarray(excess) > 0, entropy, 0)
    probability = _probability(parts, p)
    slope_error = (1 + off) * probability.error + targets.error + w * abs(slope)
    # torch's own cross-entropy in bfloat16 takes a label's 1 from a probability that is rounded already
    slope_error += p.narrowed * (t + abs(slope))
    # a label's logit may be taken from all others first: a difference rounds, log-sum-exp is then the value,
    # and the label's 1 what the probabilities sum up to
    further = np.expm1(np.minimum(LABEL * w * products.sum(1, keepdims=True), CAP)) * (off == 0)
    slope_error += t * _excess(parts, p)[..., None] + (parts.probability + t) * further
    # of targets that are no labels, the backward of log softmax sums up
    slope_error += probability.value * (off + summed(t, w)[..., None] + BACKWARD * w * inexact(t).any())
    return Bounded(products.sum(1), error), Bounded(slope, slope_error)


def cross_entropy_targets(z: Bounded, target_logits: Bounded, p: Precision) -> Bounded:
    """Bound the gradient of a cross-entropy with respect to the logits of its targets.

    It is -t[j] (log q[j] - m) with the mean m = sum_k t[k] log q[k], a sum of c products (Higham 2002,
    section 3.1), `MEAN_STORED` besides. It errs by what its factors err by, and by `SPREAD_STORED` roundings
    of t[j] log q[j] and of t[j] m, which may be taken apart.
    """
    found: Bounded = by_rows(lambda z, t: _targets_back(z, t, p), z.value.shape[1], z, target_logits)
    return found


def _targets_back(z: Bounded, target_logits: Bounded, p: Precision) -> Bounded:
    logp = log_softmax(z, p)
    target = softmax(target_logits, p)
    mean = (target.value * logp.value).sum(1, keepdims=True)
    mean_error = (target.value * logp.error + target.error * abs(logp.value)).sum(1, keepdims=True)
    mean_error += (gamma(z.value.shape[1], p.accumulated) + MEAN_STORED * p.stored) * abs(mean)
    spread = logp.value - mean
    error = target.error * abs(spread) + target.value * (logp.error + mean_error)
    error += SPREAD_STORED * p.stored * target.value * (abs(logp.value) + abs(mean)) + p.tiny
    return Bounded(-target.value * spread, error)


def sigmoid_entropy(z: Bounded, labels: Array, p: Precision) -> tuple[Bounded, Bounded]:
    """Bound -log sigmoid(labels * logits) for labels of 1 and -1, and its gradient by the logits.

    With a margin m it is max(-m, 0) + log(1 + exp(-|m|)). As the logit errs by e, the slope s = 1 / (1 +
    exp(m)) grows by exp(e) at most, so the value moves by no more than s (exp(e) - 1), nor than e. The tail
    errs by its exponential, to base two or not, and by its logarithm; the sum by its rounding.
    """
    w = p.accumulated
    margin = labels * z.value
    tail = np.log1p(np.exp(-abs(margin)))
    value = np.maximum(-margin, 0) + tail
    log_slope = -np.logaddexp(0, margin)
    slope = np.exp(log_slope)
    moved = grown(log_slope, z.error)
    exponential = np.expm1(BASE_TWO * w * abs(margin)) + ELEMENTARY * w
    # |margin| + tail, from which |margin| may be taken away again: log sigmoid(z) - z for a negative
    error = np.minimum(moved, z.error) + tail * (exponential + ELEMENTARY * w)
    error += added(tail, abs(margin) + tail, w)
    error += p.narrowed * value + p.tiny
    # as 1 - 1 / (1 + exp(-z)) it errs by roundings of what is near 1, however small it is
    relative = exponential + SIGMOID * w + SIGMOID_STORED * p.narrowed
    slope_error = np.minimum(moved, 1) + slope * relative + COMPLEMENT * w + p.tiny
    # torch's binary cross-entropy stores the sigmoid before it takes 1 from it, where the label is 1
    slope_error += np.where(labels > 0, p.exponentials, 0.0)
    return Bounded(value, error), Bounded(-labels * slope, slope_error)


def _of_signs(z: Bounded, labels: Array, p: Precision) -> tuple[Bounded, Bounded]:
    def of_rows(z: Bounded, labels: Array) -> tuple[Bounded, Bounded]:
        return sigmoid_entropy(z, labels, p)

    shape = z.value.shape
    found: tuple[Bounded, Bounded] = by_rows(of_rows, shape[-1], z, np.broadcast_to(labels, shape))
    return found


def one_hot(labels: Array, classes: int) -> Bounded:
    """Return [n] labels as exact probabilities, [n, c]."""
    hot = np.zeros((len(labels), classes))
    hot[np.arange(len(labels)), labels] = 1
    return Bounded(hot, np.zeros(hot.shape))


def _of_labels(z: Bounded, labels: Array, p: Precision) -> tuple[Bounded, Bounded]:
    def of_rows(z: Bounded, labels: Array) -> tuple[Bounded, Bounded]:
        return entropy_of(z, one_hot(labels, z.value.shape[1]), p)

    found: tuple[Bounded, Bounded] = by_rows(of_rows, z.value.shape[1], z, labels)
    return found


def _of_targets(z: Bounded, t: Bounded, p: Precision) -> tuple[Bounded, Bounded]:
    def of_rows(z: Bounded, t: Bounded) -> tuple[Bounded, Bounded]:
        targets, excess = soft_targets(t, p)
        return entropy_of(z, targets, p, excess)

    found: tuple[Bounded, Bounded] = by_rows(of_rows, z.value.shape[1], z, t)
    return found


def cross_entropy(logits: Traced, labels: Array) -> Traced:
    """Trace -log softmax(z)_label for each row."""
    tape = logits.tape
    value, slope = tape.once(_of_labels, logits.bounded, np.asarray(labels), tape.p.of_half_logits)
    return tape.node(value, lambda part: _slope_back(logits, slope, part, tape.p), _traits(logits))


def smoothed_targets(labels: Array, classes: int, smoothing: float, p: Precision) -> Bounded:
    """Bound the probabilities of [n] labels whose share `smoothing` all classes have alike, [n, c]."""
    value = (1 - smoothing) * one_hot(labels, classes).value + smoothing / classes
    return Bounded(value, gamma(SMOOTHED, p.accumulated) * value)


def squared_log_sum_exp(z: Bounded, factor: float, p: Precision) -> tuple[Bounded, Bounded]:
    """Bound factor * L^2, with the log-sum-exp L of each of [n, c] logits, and the gradient by the logits.

    L moves by the mean of the logits' errors under the softmax, and by what is of second order (`_softmax`).
    It is part of every log-probability, so it rounds no more than the least of them. As L errs by e, the
    square errs by e (2 |L| + e). The gradient is 2 factor L q; it may be added to the probability q of the
    loss, which then rounds with it: `SQUARED_SLOPE`.
    """
    w = p.accumulated
    parts = _softmax(z, p)
    top = z.value.max(1, keepdims=True)
    sums = top + np.log(np.exp(z.value - top).sum(1, keepdims=True))
    moved = (parts.probability * z.error).sum(1, keepdims=True) + parts.curved
    error = moved + parts.log_rounded.min(1, keepdims=True) + (w + p.narrowed) * abs(sums)
    value = factor * sums**2
    value_error = factor * error * (2 * abs(sums) + error)
    value_error += gamma(SQUARED, w + p.narrowed) * (value + value_error) + p.tiny
    probability = _probability(parts, p)
    computed = probability.value + probability.error
    slope = 2 * factor * sums * parts.probability
    slope_error = 2 * factor * (error * computed + abs(sums) * probability.error)
    slope_error += gamma(SQUARED_SLOPE, w + p.narrowed) * (2 * factor * (abs(sums) + error) + 1) * computed
    return Bounded(value[:, 0], value_error[:, 0]), Bounded(slope, slope_error + p.tiny)


def _of_smoothed(z: Bounded, labels: Array, smoothing: float, p: Precision) -> tuple[Bounded, Bounded]:
    targets = smoothed_targets(labels, z.value.shape[1], smoothing, p)
    return entropy_of(z, targets, p, targets.error.sum(1))


def smoothed_cross_entropy(logits: Traced, labels: Array, smoothing: float) -> Traced:
    """Trace the cross-entropy of each row with labels that are smoothed."""
    tape = logits.tape
    operands = logits.bounded, np.asarray(labels), smoothing, tape.p.of_half_logits
    value, slope = tape.once(_of_smoothed, *operands)
    return tape.node(value, lambda part: _slope_back(logits, slope, part, tape.p), _traits(logits))


def z_loss(logits: Traced, factor: float) -> Traced:
    """Trace factor * log-sum-exp squared for each row."""
    tape = logits.tape
    value, slope = tape.once(squared_log_sum_exp, logits.bounded, factor, tape.p.of_half_logits)
    return tape.node(value, lambda part: _slope_back(logits, slope, part, tape.p), _traits(logits))


def soft_cross_entropy(teacher_logits: Any, student_logits: Any) -> Traced:
    """Trace -sum_j softmax(t)_j log softmax(s)_j for each row."""
    tape = tape_of(teacher_logits, student_logits)
    p = tape.p.of_half_logits
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
    p = tape.p.of_half_logits
    value, slope = tape.once(_of_signs, logits.bounded, np.asarray(labels, float), p)
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
