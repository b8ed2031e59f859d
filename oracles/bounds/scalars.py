"""Scales that follow from what a loss holds: exp(t), 1 / t, exp(-t), and softplus(t) or its inverse."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..complex_step import Array
from .precision import BASE_TWO, ELEMENTARY, Bounded, Magnitude, Precision, gamma
from .sums import inexact
from .tape import UFUNCS, NotSteps, Part, Traced

HELD_STORED = 4
"""What is stored of a held scalar's gradient: the slope's two factors, their product, and its with the
gradient."""
SLOPE = 2
"""Roundings of that: of the slope's product, and of its with the gradient."""
SLOPES: dict[str, Callable[[Any], Any]] = {
    "exp": lambda scale: scale,
    "inverse": lambda scale: scale**2,
    "exp_negative": lambda scale: scale,
    "softplus": lambda scale: -np.expm1(-scale),
    "inverse_softplus": lambda scale: -np.expm1(-1 / scale) * scale**2,
}
"""By what is held, how fast the scale moves as that does, but for the sign."""
STRAIGHT = 20.0
"""Beyond it torch's softplus returns its argument, whose slope is 1: either is off by less than exp(-20)."""


def holding(kind: str, scale: float, p: Precision) -> float:
    """Return the relative error of a scale that a loss computes from what it holds, a kind of `held.HELD`.

    A quotient rounds once. An exponential errs by `ELEMENTARY` roundings, and, taken to base two, by those of
    its exponent (Higham 2002, section 3.3: e^(t + d) errs by e^d - 1); its inverse may be taken. In half
    precision either is stored. An exponential of 0, and a power of two, are exact. A softplus may be the
    logarithm of 1 and an exponential, whose sum rounds relative to 1.
    """
    if kind in ("softplus", "inverse_softplus"):
        return _softplus(scale if kind == "softplus" else 1 / scale, p) + (
            float(gamma(1, p.accumulated) + gamma(1, p.narrowed)) if kind == "inverse_softplus" else 0.0
        )
    if not kind or scale == 1:
        return 0.0
    if kind == "inverse":
        return float((gamma(1, p.accumulated) + gamma(1, p.narrowed)) * inexact(scale))
    exponent = np.expm1(BASE_TWO * p.accumulated * abs(np.log(scale)))
    return float(exponent + gamma(ELEMENTARY + 1, p.accumulated) + gamma(1, p.narrowed))


def _softplus(result: float, p: Precision) -> float:
    """Return the relative error of a softplus: of an exponential, its sum with 1, and their logarithm."""
    exponent = np.expm1(BASE_TWO * p.accumulated * abs(result + np.log(-np.expm1(-result))))
    rounded = gamma(2 * ELEMENTARY + 1, p.accumulated) * (1 + 1 / result)
    straight = np.exp(-STRAIGHT) if result > STRAIGHT else 0.0
    return float(exponent + rounded + gamma(1, p.narrowed) + straight)


def through_held(kind: str, gradient: Magnitude, scale: Array, p: Precision) -> Magnitude:
    """Bound the gradient of what is held for a scale, given that of the scale.

    The scale moves as fast as its exponential, or its square; either is made of what errs as `holding` says,
    at most twice, multiplied, and in half precision stored, each time.
    """
    slope = SLOPES[kind](scale)
    factor = holding(kind, float(scale.reshape(())), p)
    relative = (1 + factor) ** 2 * (1 + gamma(SLOPE, p.accumulated)) * (
        1 + gamma(HELD_STORED, p.narrowed)
    ) - 1
    error = slope * ((1 + relative) * gradient.error + relative * gradient.size)
    return Magnitude(error + p.tiny * (1 + slope), slope * gradient.size)


def exp(held: Traced) -> Traced:
    """Trace the exponential of t."""
    return _scale("exp", np.exp(held.bounded.value), held)


def inverse(held: Traced) -> Traced:
    """Trace the inverse of t."""
    return _scale("inverse", 1 / held.bounded.value, held)


def exp_negative(held: Traced) -> Traced:
    """Trace the exponential of -t."""
    return _scale("exp_negative", 1 / np.exp(held.bounded.value), held)


def softplus(held: Traced) -> Traced:
    """Trace the softplus of t."""
    return _scale("softplus", np.logaddexp(0, held.bounded.value), held)


def inverse_softplus(held: Traced) -> Traced:
    """Trace the inverse of the softplus of t."""
    return _scale("inverse_softplus", 1 / np.logaddexp(0, held.bounded.value), held)


def _scale(kind: str, scale: Array, held: Traced) -> Traced:
    if held.size != 1 or np.any(held.bounded.error):
        raise NotSteps(f"{kind} of other than a scalar that is given")
    p = held.tape.p
    error = holding(kind, float(np.reshape(scale, ())), p) * abs(scale)

    def back(part: Part) -> None:
        part = part.counted(p.accumulated)
        gradient = through_held(kind, Magnitude(np.asarray(part.error), np.asarray(part.size)), abs(scale), p)
        held.give(Part(*gradient, part.parts))

    return held.tape.node(Bounded(np.asarray(scale), np.asarray(error)), back)


UFUNCS[np.exp] = exp
UFUNCS[np.reciprocal] = inverse
