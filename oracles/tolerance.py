"""Tolerances for a test: how far rounding may take a result, derived for the inputs at hand. NumPy alone.

In the place of a guessed `atol`. Whoever can write a formula in NumPy gets the tolerance of a right
implementation in float64, float32, bfloat16 or float16, by Monte Carlo arithmetic: see `monte_carlo`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .complex_step import Array
from .dtypes import DTYPES
from .monte_carlo import SAMPLES, Roundoff, scatter


def rounding_bound(
    function: Callable[..., Any],
    *inputs: Any,
    dtype: str = "float32",
    widened: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Array:
    """Return how far a right implementation of a formula may be from it, elementwise.

    The formula is computed `samples` times, each time with every intermediate result moved at random by up to
    a rounding of `dtype` (Parker, Monte Carlo Arithmetic, 1997). With s, the root mean square of the
    deviations of an element, and t = 12, the two-sided quantile at 2e-13 of Student's t with 32 degrees of
    freedom, the bound is 2.5 t s: a right implementation's errors are taken to spread at most 2.5 times as
    far as the samples. Then the chance that a million comparisons accuse a right one is below 1e-6. Where
    it is less, the bound is what all roundings add up to, to first order, twice as many as the formula has.
    It is at least four units roundoff of the magnitudes that were added up: where terms cancel, another right
    formula may be left with as much. It is no worst-case bound.

    Args:
        function: of NumPy arrays, returning an array or a number; it is given float64. Not: loops that write
            into arrays, most of np.linalg, or what is no function of NumPy.
        *inputs: arrays, numbers, or torch tensors, as the implementation gets them: what they hold is exact.
        dtype: "float64", "float32", "bfloat16" or "float16", in which the implementation computes. In half
            precision results are stored, and sums accumulate in float32.
        widened: of half precision, the inputs alone are in it; all else is in float32.
        samples: how often the formula is computed.
        seed: the same seed gives the same bound.

    Returns:
        Bounds, of the result's shape; infinite where an intermediate result leaves the range of `dtype`.

    Raises:
        ValueError: an argument is unusable.
        TypeError: the formula uses a part of NumPy that has no rule; the message names it.

    Example:
        >>> import numpy as np
        >>> x = np.float32(np.linspace(1, 2, 1000))
        >>> bound = rounding_bound(np.sum, x, dtype="float32")
        >>> bool(abs(float(np.sum(x)) - np.sum(x, dtype=np.float64)) <= bound)
        True
    """
    return _scattered(function, inputs, dtype, widened, samples, seed)[1]


def assert_within_rounding(
    actual: Any,
    reference: Callable[..., Any],
    *inputs: Any,
    dtype: str | None = None,
    widened: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    err_msg: str = "",
) -> None:
    """Assert that a result is as near to a formula's as rounding allows: see `rounding_bound`.

    Args:
        actual: what an implementation gave, an array or a torch tensor.
        reference: the formula, a function of NumPy arrays.
        *inputs: what both are computed of.
        dtype: in which the implementation computes; that of `actual`, if not given.
        widened: of half precision, the inputs alone are in it, and the result where `actual` is.
        samples: how often the formula is computed.
        seed: the same seed gives the same bound.
        err_msg: what the error begins with.

    Raises:
        AssertionError: an element is farther away, or its shape another; the worst one is named.
        ValueError: an argument is unusable, or there is no bound, as an intermediate result leaves the range
            of `dtype`.
        TypeError: the formula uses a part of NumPy that has no rule.

    Example:
        >>> import numpy as np
        >>> x = np.float32(np.linspace(-3, 3, 100))
        >>> def softmax(x):
        ...     e = np.exp(x - np.max(x))
        ...     return e / np.sum(e)
        >>> assert_within_rounding(softmax(x), softmax, x)
        >>> assert_within_rounding(np.float32(np.float16(softmax(x))), softmax, x, dtype="float32")
        Traceback (most recent call last):
        ...
        AssertionError: ...
    """
    if dtype is None:
        dtype = dtype_of(actual)
    seen = to_array(actual, "actual")
    value, bound = _scattered(reference, inputs, dtype, widened, samples, seed)
    kind = DTYPES.get(_dtype_name(actual))
    if widened and kind and kind.accumulated != _dtype_name(actual):  # it is computed in float32, and stored
        bound = bound + 2.0**-kind.bits * (abs(value) + bound) + 2.0**kind.tiny
    said = f"{err_msg}: " if err_msg else ""
    if seen.shape != value.shape:
        raise AssertionError(f"{said}expected shape {list(value.shape)}, observed {list(seen.shape)}")
    if not seen.size:
        return
    if unknown := int(np.count_nonzero(np.isinf(bound) & np.isfinite(value))):
        raise ValueError(
            f"{said}reference: there is no bound for {unknown} of {seen.size} elements, as an intermediate "
            f"result leaves the range of {dtype}; expected one that keeps to it, or widened=True where the "
            "implementation computes in float32"
        )
    with np.errstate(all="ignore"):
        error = abs(seen - value)
        over = np.where((error == 0) | (seen == value), 0.0, error / bound)
    over = np.where(np.isnan(value) & np.isnan(seen), 0.0, np.where(np.isnan(over), np.inf, over))
    worst = np.unravel_index(np.argmax(over), over.shape)
    if over[worst] > 1:
        wrong, at = int(np.count_nonzero(over > 1)), f" at {list(map(int, worst))}" if worst else ""
        raise AssertionError(
            f"{said}{wrong} of {seen.size} elements are farther from the reference than rounding in {dtype} "
            f"takes them; the worst{at}: expected {value[worst]:.9g}, observed {seen[worst]:.9g}, error "
            f"{error[worst]:.3g} is {over[worst]:.3g} times its bound {bound[worst]:.3g}"
        )


def to_array(value: Any, argument: str) -> Array:
    """Return an array, a number or a torch tensor as an array; floats as float64.

    Raises:
        ValueError: it is none.
    """
    if hasattr(value, "detach"):  # a tensor: torch is not imported
        value = value.detach().cpu()
        floating = value.is_floating_point()
        value = (value.double() if floating else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{argument}: expected an array of numbers or a tensor, got {type(value).__name__}")
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def dtype_of(value: Any) -> str:
    """Return the dtype of a result by its name.

    Raises:
        ValueError: it is none of those with bounds.
    """
    name = _dtype_name(value)
    if name not in DTYPES:
        raise ValueError(f"actual: expected one of {', '.join(DTYPES)}, got {name}; or give dtype=")
    return name


def _dtype_name(value: Any) -> str:
    name = str(getattr(value, "dtype", "float64" if isinstance(value, float) else None))
    return name.removeprefix("torch.")


def _scattered(
    function: Callable[..., Any], inputs: tuple[Any, ...], dtype: str, widened: bool, samples: int, seed: int
) -> tuple[Array, Array]:
    if not callable(function):
        raise ValueError(f"reference: expected a function of NumPy arrays, got {type(function).__name__}")
    if samples < 8:
        raise ValueError(f"samples: expected at least 8, got {samples}")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    p = Roundoff.of(dtype, widened)
    given = [_given(one, f"inputs[{place}]") for place, one in enumerate(inputs)]
    found, _ = scatter(function, given, p, samples=samples, seed=seed)
    return np.asarray(found.value, dtype=np.float64), np.asarray(found.bound)


def _given(value: Any, argument: str) -> Any:
    """Return an input for a function of NumPy: options, as texts and lists, stay as they are."""
    if hasattr(value, "detach") or isinstance(value, np.ndarray | np.generic | float):
        return to_array(value, argument)
    return value


__all__ = ["assert_within_rounding", "rounding_bound"]
