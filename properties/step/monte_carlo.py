"""How far rounding takes a training step, by Monte Carlo arithmetic: the step itself is run many times.

Parker, Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic, UCLA CSD-970002, 1997.
`oracles.monte_carlo` does so for formulas in NumPy; here a dispatch mode moves the results of torch's
operations, forward, backward and in the optimizer, while one process takes steps on the whole batch.

A right trainer of several ranks computes other intermediate results: sums over a part of the rows, which
are scaled and added up. So what is moved is more than the result:

- a result moves by up to `UNITS` units in the last place, of its own dtype;
- a sum of two, and a function that is not in `OF_RESULT`, move relative to the larger of the result and
  the operands; the derivative of a function relative to what comes from above;
- an operation that may add up elements (products of matrices, sums, norms, convolutions, softmax) moves
  each operand and each result by sqrt(1 + n / 3) times as much: as far as sums of n terms, added one after
  another, scatter. n is the most elements that one result can depend on;
- what only moves, selects or compares elements is exact, and so are single powers of two, as a loss scale,
  and small whole numbers, as counts, lengths and targets: sums and products of those are not rounded;
- xi has one part that an operation draws for each element, and one that it draws for all.

From scatter to tolerance. Let s be the root mean square of two numbers: that of the k = `SAMPLES` deviations
of an element, and half a unit in its last place, the rounding of the result itself. The model is that of
`oracles.monte_carlo`: the deviations, and the error of a right trainer, are normal, the latter with a
spread of at most `SPREAD` times that of the former. Then error / (SPREAD s) exceeds `QUANTILE` with a
chance of 2.2e-13 (Student's t with k degrees of freedom), so that the chance of accusing a right trainer
is below 1e-6 in a million comparisons. It rests on `SPREAD`, which is measured, not derived:
`tests/defects/steps/report.py` prints the largest error over tolerance of right trainers. It is no
worst-case bound.
"""

import math
import random
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SAMPLES = 8
QUANTILE = 91.9
"""Of Student's t with `SAMPLES` degrees of freedom, beyond which lie 2.2e-13 on both sides together."""
SPREAD = 2.5
UNITS = {torch.float64: 2.0, torch.float32: 2.0, torch.bfloat16: 1.0, torch.float16: 1.0}
"""Units in the last place that a result moves by, so that few moves are rounded away again."""

EXACT = {
    "_amp_update_scale_", "_local_scalar_dense", "_unsafe_view", "abs", "amax", "amin", "arange",
    "argmax", "argmin", "bernoulli", "bernoulli_", "bitwise_and", "cat", "clamp", "clamp_", "clamp_max",
    "clamp_min", "clone", "constant_pad_nd", "contiguous", "copy", "copy_", "embedding", "empty",
    "empty_like", "empty_strided", "equal", "eye", "fill", "fill_", "flip", "full", "full_like",
    "gather", "index", "index_select", "isinf", "isnan", "item", "linspace", "masked_fill",
    "masked_fill_", "masked_select", "max", "max_pool2d_with_indices", "maximum", "min", "minimum",
    "native_dropout", "neg", "neg_", "new_empty", "new_empty_strided", "new_full", "new_ones",
    "new_zeros", "normal_", "ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like",
    "random_", "relu", "relu_", "repeat", "roll", "scalar_tensor", "select_backward", "sign",
    "slice_backward", "sort", "stack", "threshold_backward", "topk", "tril", "triu", "uniform_",
    "where", "zero_", "zeros", "zeros_like",
}  # fmt: skip
"""Operations that round nothing: they make, move, select or compare elements."""
OF_RESULT = {
    "mul", "mul_", "div", "div_", "reciprocal", "reciprocal_", "sqrt", "sqrt_", "rsqrt", "rsqrt_", "square",
    "pow", "pow_", "_to_copy", "_amp_foreach_non_finite_check_and_unscale_",
}  # fmt: skip
"""Functions of elements whose rounding is relative to the result; one that narrows is among them."""
OWN = ("aten", "torchvision", "prims")
"""Namespaces of operations that compute; those of others, as c10d, communicate."""


class Moved(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
    """Moves what floating-point operations give, at random.

    Args:
        seed: the same seed moves the same results alike.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.own = torch.Generator().manual_seed(seed)
        self.common = random.Random(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and move its operands and results; those of a subclass are its parts' own."""
        if not {torch.Tensor, torch.nn.Parameter}.issuperset(types):
            return NotImplemented  # as of a DTensor, which runs it on what this rank holds
        kwargs = kwargs or {}
        rule = _rule(func)
        if rule == "exact":
            return func(*args, **kwargs)
        given = [one for one in tree_leaves((args, kwargs)) if _moves(one)]
        written = _written(func, args, kwargs)
        factor, sizes = 1.0, []
        if rule == "adds":
            factor = math.sqrt(1 + _terms(given) / 3)
            stay = {id(one) for one in written}
            args, kwargs = tree_map(
                lambda one: self.moved(one, [], factor) if _moves(one) and id(one) not in stay else one,
                (args, kwargs),
            )
        else:
            sizes = [abs(one) for one in _compared(func, given)]
        results = func(*args, **kwargs)
        for one in {id(one): one for one in tree_leaves((results, written))}.values():
            if _moves(one) and not (rule == "pointwise" and _is_factor(func, one)):
                _move(one, self.moved(one, sizes, factor))
        return results

    def moved(self, value: torch.Tensor, sizes: list[torch.Tensor], factor: float) -> torch.Tensor:
        """Return a value, moved relative to the largest of itself and of some sizes."""
        size = abs(value)
        for other in sizes:
            if other.shape == size.shape or other.ndim == 0:
                size = torch.maximum(size, other.to(size.dtype))
        dtype = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.float32
        how_far = UNITS[value.dtype] * torch.finfo(value.dtype).eps * factor
        xi = torch.rand(value.shape, generator=self.own, dtype=dtype)
        # the halves of xi: one for each element, one for all
        xi.mul_(2 * math.sqrt(0.5)).add_((self.common.uniform(-1, 1) - 1) * math.sqrt(0.5))
        result = (value.to(dtype) + xi.mul_(how_far).mul_(size)).to(value.dtype)
        return torch.where(torch.isfinite(value) & ~_is_whole(value), result, value)


def _is_whole(value: torch.Tensor) -> torch.Tensor:
    """Return where elements are small whole numbers; few are so by accident."""
    small = value.abs() <= torch.finfo(value.dtype).eps ** -0.5
    whole: torch.Tensor = small & (value == value.round())
    return whole


def _moves(one: Any) -> bool:
    return (
        isinstance(one, torch.Tensor)
        and one.dtype in UNITS
        and one.layout == torch.strided
        and one.device.type == "cpu"
        and one.numel() > 0
    )


def _move(one: torch.Tensor, to: torch.Tensor) -> None:
    """Write into a result; one whose elements share memory stays."""
    if all(step or size == 1 for step, size in zip(one.stride(), one.shape, strict=True)):
        one.copy_(to)


@cache
def _rule(func: Any) -> str:
    """Return how an operation is moved: "exact", "adds" or "pointwise"."""
    namespace, _, name = func._schema.name.rpartition("::")
    is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
    if namespace not in OWN or name in EXACT or is_view:
        return "exact"
    return "pointwise" if torch.Tag.pointwise in func.tags or name in OF_RESULT else "adds"


def _is_factor(func: Any, one: torch.Tensor) -> bool:
    """Whether a result is a power of two by which something is scaled: such products are exact."""
    name = func._schema.name.rpartition("::")[2]
    return name in OF_RESULT and one.numel() == 1 and abs(math.frexp(one.item())[0]) == 0.5


def _compared(func: Any, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the operands that an operation on elements rounds relative to, besides its result."""
    name = func._schema.name.rpartition("::")[2]
    if name in OF_RESULT:
        return []
    return given[:1] if name.endswith("_backward") or name.strip("_") in ("addcmul", "addcdiv") else given


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes into."""
    found = []
    is_backward = func._schema.name.endswith("backward")
    for place, one in enumerate(func._schema.arguments):
        # BatchNorm writes its statistics, which its schema does not say
        of_norm = one.name in ("running_mean", "running_var") and not is_backward
        if of_norm or (one.alias_info is not None and one.alias_info.is_write):
            value = kwargs.get(one.name) if place >= len(args) or one.kwarg_only else args[place]
            found += [value] if isinstance(value, torch.Tensor) else list(value or [])
    return found


def _terms(given: list[torch.Tensor]) -> int:
    """Return how many elements one result can depend on, at most."""
    return max(
        (max(one.numel() // max(min(one.shape, default=1), 1), *one.shape, 1) for one in given), default=1
    )
