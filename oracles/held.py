"""What losses hold in the place of a scale: its logarithm, its inverse, the logarithm of that, or what
softplus makes one of them.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.5,
https://arxiv.org/abs/2103.00020, hold the logarithm t of the scale exp(t).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import siglip
from .bounds import scalars, step


@step(scalars.exp)
def exp(held: Any) -> Any:
    """Return the scale whose logarithm is held."""
    return np.exp(held)


@step(scalars.inverse)
def inverse(held: Any) -> Any:
    """Return the scale whose inverse, a temperature, is held."""
    return 1 / held


@step(scalars.exp_negative)
def exp_negative(held: Any) -> Any:
    """Return the scale where the logarithm of its inverse is held."""
    return 1 / np.exp(held)


@step(scalars.softplus)
def softplus(held: Any) -> Any:
    """Return the scale that softplus makes of what is held."""
    return siglip.softplus(held)


@step(scalars.inverse_softplus)
def inverse_softplus(held: Any) -> Any:
    """Return the scale whose inverse softplus makes of what is held."""
    return 1 / siglip.softplus(held)


HELD: dict[str, Callable[[Any], Any]] = {
    one.__name__: one for one in (exp, inverse, exp_negative, softplus, inverse_softplus)
}
"""By what is held, the scale."""
OF_SCALE: dict[str, Callable[[Any], Any]] = {
    "exp": np.log,
    "inverse": inverse,
    "exp_negative": lambda scale: -np.log(scale),
    "softplus": lambda scale: scale + np.log(-np.expm1(-scale)),
    "inverse_softplus": lambda scale: 1 / scale + np.log(-np.expm1(-1 / scale)),
}
"""By the same names, what is held for a scale above 0."""
