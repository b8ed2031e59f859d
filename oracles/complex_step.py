"""Gradients without gradient code: the derivative of an analytic f is Im f(x + ih) / h.

Squire & Trapp, Using Complex Variables to Estimate Derivatives of Real Functions, SIAM Review 40(1),
1998, equation 5. No difference is taken, so h may be tiny and the result is exact to rounding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STEP = 2.0**-332
"""A power of two: what it is multiplied with, and divided by again, stays as it is."""
LOST = float(np.finfo(np.float64).tiny) / STEP
"""Imaginary parts of smaller derivatives are subnormal, and have lost digits."""


def directional_derivative(function: Callable[[Array], complex], point: Array, direction: Array) -> float:
    """Return the derivative of `function` at `point` along `direction`, of the same shape."""
    return float(np.imag(function(point + 1j * STEP * direction)) / STEP)


def gradient(function: Callable[[Array], complex], point: Array) -> Array:
    """Return every partial derivative of `function` at `point`, in its shape."""
    partials = np.zeros(point.shape)
    for index in np.ndindex(*point.shape):
        unit = np.zeros(point.shape)
        unit[index] = 1.0
        partials[index] = directional_derivative(function, point, unit)
    return partials


def constant(value: Array) -> Array:
    """Return `value` as a constant, as torch's `detach` does."""
    return np.real(value)
