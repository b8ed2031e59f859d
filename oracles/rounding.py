"""How far rounding may take a correct implementation from the oracle, worked out from the case itself.

Forward error analysis after Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002,
section 3.1 (gamma_n = n u / (1 - n u)) and section 3.3 (running error): every bound is a sum of the
magnitudes that are really there, valid for any order of summation. Errors of logits pass through
exponentials by expm1, not by their first order, so that the bounds hold in half precision too.

Half-precision tensors are modelled as the libraries compute them: what is stored is rounded to half
precision, what is accumulated is rounded to float32.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .complex_step import Array

FLOAT64 = 2.0**-53
FLOAT32 = 2.0**-24
CAP = 100.0
"""Errors of logits beyond this say nothing any more; capped so that their exponentials stay finite."""


def gamma(n: float, u: float) -> float:
    """Return n u / (1 - n u), the relative error of n roundings in a row."""
    return n * u / (1 - n * u) if n * u < 1 else float("inf")


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a dtype: its unit roundoffs, and what an underflow may lose."""

    stored: float
    accumulated: float
    tiny: float

    @staticmethod
    def of(dtype: str) -> "Precision":
        """Return the arithmetic of "float64", "float32", "bfloat16" or "float16"."""
        return {
            "float64": Precision(FLOAT64, FLOAT64, 2.0**-1022),
            "float32": Precision(FLOAT32, FLOAT32, 2.0**-126),
            "bfloat16": Precision(2.0**-8, FLOAT32, 2.0**-126),
            "float16": Precision(2.0**-11, FLOAT32, 2.0**-24),
        }[dtype]


class Bounded(NamedTuple):
    """A value and how far a computed one may be from it."""

    value: Array
    error: Array


class Magnitude(NamedTuple):
    """The error of a gradient, and the sum of the magnitudes that it was summed from."""

    error: Array
    size: Array


def logits(scale: float, x: Array, y: Array, bias: float, p: Precision) -> Bounded:
    """Bound scale * x @ y.T + bias, [n, d] and [m, d] to [n, m]."""
    value = scale * x @ y.T + bias
    products = abs(scale) * abs(x) @ abs(y).T
    # stored: the cast scale, scaled features, the product, and the sum with the bias
    error = (gamma(x.shape[1] + 1, p.accumulated) + gamma(4, p.stored)) * products
    error += 2 * p.stored * (abs(bias) + abs(value))
    error += p.tiny * (2 + abs(y).sum(1)[None, :] + abs(scale) * x.shape[1])
    return Bounded(value, error)


def log_softmax(z: Bounded, p: Precision) -> Bounded:
    """Bound log softmax along the last axis of [n, c] logits."""
    w = p.accumulated
    top = z.value.max(-1, keepdims=True)
    shifted = z.value - top
    log_sum = np.log(np.exp(shifted).sum(-1, keepdims=True))
    value = shifted - log_sum
    probability = np.exp(value)
    # how far log-sum-exp moves with its logits (Jensen for the lower side), then its own rounding
    moved = (probability * np.expm1(np.minimum(z.error, CAP))).sum(-1, keepdims=True)
    moved = np.minimum(moved, z.error.max(-1, keepdims=True))
    rounded = (probability * (w * abs(shifted) + 3 * w)).sum(-1, keepdims=True)
    rounded += gamma(z.value.shape[-1], w) + 3 * w * log_sum + w * abs(top + log_sum)
    error = z.error + moved + rounded + w * (abs(shifted) + abs(value)) + p.stored * abs(value)
    return Bounded(value, error)


def softmax(log_probability: Bounded, p: Precision) -> Bounded:
    """Bound the exponential of `log_softmax`."""
    value = np.exp(log_probability.value)
    error = value * np.expm1(np.minimum(log_probability.error + 3 * p.stored, CAP))
    # what is computed is a probability too, give or take its own rounding
    return Bounded(value, np.minimum(error, 1 + 8 * p.stored) + p.tiny)


def cross_entropy(z: Bounded, targets: Bounded, p: Precision) -> tuple[Bounded, Bounded]:
    """Bound the cross-entropy of [n, c] logits under [n, c] target probabilities.

    Returns:
        The [n] values, and their [n, c] gradients with respect to the logits.
    """
    logp = log_softmax(z, p)
    probability = softmax(logp, p)
    terms = np.max(np.count_nonzero(targets.value, axis=-1), initial=1)
    products = targets.value * abs(logp.value)
    error = targets.value * logp.error + targets.error * abs(logp.value)
    error += (gamma(terms, p.accumulated) + 2 * p.stored) * products + p.tiny
    slope_error = probability.error + targets.error + 2 * p.stored * (probability.value + targets.value)
    return (
        Bounded(products.sum(-1), error.sum(-1)),
        Bounded(probability.value - targets.value, slope_error),
    )


def cross_entropy_targets(z: Bounded, target_logits: Bounded, p: Precision) -> Bounded:
    """Bound the gradient of `cross_entropy` with respect to the logits of its targets."""
    logp = log_softmax(z, p)
    target = softmax(log_softmax(target_logits, p), p)
    mean = (target.value * logp.value).sum(-1, keepdims=True)
    mean_error = (target.value * logp.error + target.error * abs(logp.value)).sum(-1, keepdims=True)
    mean_error += (gamma(z.value.shape[-1], p.accumulated) + 3 * p.stored) * abs(mean)
    spread = logp.value - mean
    error = target.error * abs(spread) + target.value * (logp.error + mean_error)
    error += 4 * p.stored * target.value * (abs(logp.value) + abs(mean)) + p.tiny
    return Bounded(-target.value * spread, error)


def sigmoid_cross_entropy(z: Bounded, labels: Array, p: Precision) -> tuple[Bounded, Bounded]:
    """Bound -log sigmoid(labels * logits) for labels of 1 and -1, and its gradient by the logits."""
    margin = labels * z.value
    value = np.logaddexp(0, -margin)
    slope = np.exp(-np.logaddexp(0, margin))
    moved = slope * np.expm1(np.minimum(z.error, CAP))
    error = np.minimum(moved, z.error) + (5 * p.accumulated + p.stored) * value + p.tiny
    slope_error = np.minimum(moved, 1) + slope * (5 * p.accumulated + 2 * p.stored) + p.tiny
    return Bounded(value, error), Bounded(-labels * slope, slope_error)


def total(values: Bounded, weight: float, p: Precision, parts: int = 1) -> float:
    """Bound `weight` times the sum of all values, summed in `parts` that are stored one by one."""
    size = abs(values.value).sum()
    error = values.error.sum() + gamma(values.value.size, p.accumulated) * size
    return float(abs(weight) * (error + gamma(parts + 4, p.stored) * size) + p.tiny)


def through_logits(
    slope: Bounded, weight: float, scale: float, x: Array, y: Array, p: Precision
) -> dict[str, Magnitude]:
    """Bound the gradients of x, y, scale and bias where `weight * slope` is the gradient of the logits."""
    g = abs(weight) * abs(slope.value)
    e = abs(weight) * slope.error + 4 * p.stored * g + p.tiny
    bounds = {}
    for name, features, error, size in (("x", y, e, g), ("y", x, e.T, g.T)):
        products = abs(scale) * size @ abs(features)
        rounded = (gamma(len(features) + 1, p.accumulated) + gamma(5, p.stored)) * products
        lost = p.tiny * (2 + abs(features).sum(0))[None, :] * max(abs(scale), 1)
        bounds[name] = Magnitude(abs(scale) * error @ abs(features) + rounded + lost, products)
    products = (abs(x) * (g @ abs(y))).sum()
    error = (abs(x) * (e @ abs(y))).sum() + p.tiny * (2 + abs(x).sum() + abs(y).sum())
    error += (gamma(x.size + y.size, p.accumulated) + gamma(6, p.stored)) * products
    bounds["scale"] = Magnitude(np.asarray(error), np.asarray(products))
    error = e.sum() + (gamma(g.size, p.accumulated) + gamma(3, p.stored)) * g.sum()
    bounds["bias"] = Magnitude(np.asarray(error), np.asarray(g.sum()))
    return bounds


def _normalization(width: int, p: Precision) -> float:
    """Return the relative error of an element of x / |x|: half of the sum's, the root and the quotient."""
    return gamma(width / 2 + 2, p.accumulated) + gamma(3, p.stored)


def cosine_logits(temperature: float, x: Array, y: Array, p: Precision) -> Bounded:
    """Bound x @ y.T / temperature, where the rows of x and y were normalised by the subject."""
    plain = logits(1 / temperature, x, y, 0.0, p)
    products = abs(x) @ abs(y).T / temperature
    # a quotient may be a product with the reciprocal; an element that underflows meets one of at most 1
    further = 2 * _normalization(x.shape[1], p) + 3 * p.accumulated
    return Bounded(plain.value, plain.error + further * products + p.tiny * 2 * x.shape[1] / temperature)


def through_cosine(
    slope: Bounded, weight: float, temperature: float, x: Array, y: Array, p: Precision
) -> tuple[Magnitude, Magnitude]:
    """Bound the gradients of the [n, d] and [m, d] normalised rows; `weight * slope` is the logits'."""
    parts = through_logits(slope, weight, 1 / temperature, x, y, p)
    further = _normalization(x.shape[1], p) + 3 * p.accumulated
    first, second = (
        Magnitude(part.error + further * part.size, part.size) for part in (parts["x"], parts["y"])
    )
    return first, second


def through_normalize(gradient: Magnitude, features: Array, p: Precision) -> Magnitude:
    """Bound the gradient of [n, d] features through x / |x|: (g - x (x.g) / |x|^2) / |x|."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = abs(features) / norms
    width = features.shape[1]

    def projected(part: Array) -> Array:
        moved: Array = (part + unit * (unit * part).sum(1, keepdims=True)) / norms
        return moved

    size = projected(gradient.size)
    rounded = (gamma(2 * width + 8, p.accumulated) + gamma(14, p.stored)) * size
    lost = p.tiny * (4 + 2 * width) * (1 + 1 / norms) ** 2
    return Magnitude(projected(gradient.error) + rounded + lost, size)
