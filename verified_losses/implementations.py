"""The implementations of the sums of `contrast`, and which is taken when."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import checks, contrast, memory, streamed
from .tiles import TILE, Block, Tile

Implementation: TypeAlias = Literal["auto", "dense", "streamed", "triton"]
IMPLEMENTATIONS = ("auto", "dense", "streamed", "triton")
STREAMED_FROM = 1024
"""Pairs from which on tiles are no slower than all logits at once, in float32 on a CPU, as
benchmarks/losses.py measures."""

ELEMENTS = STREAMED_FROM**2
"""Token logits from which on chunks are no slower than all at once, on a CPU."""
LARGE_TILE: Tile = (8192, 8192)
"""For a GPU, not yet measured on one: a quarter of a GB in float32."""
MOST_BYTES = 2**35
"""That all logits may take at once on a GPU, whatever it has: ranks must choose the same."""


class Sums(NamedTuple):
    """The functions of `contrast` that each implementation has, of one."""

    name: str
    why: str
    tile: Tile
    """Rows and columns of a tile."""
    form: type[Block]
    """What passes over tiles."""
    sum_symmetric: Callable[..., Tensor]
    sum_sigmoid: Callable[..., Tensor]
    sum_symmetric_distill: Callable[..., tuple[Tensor, Tensor]]


def choose(
    implementation: Implementation,
    pairs: int,
    dtype: torch.dtype,
    device: torch.device | str,
    tile: Tile | None = None,
    most_rows: int | None = None,
    dense_bytes: int = 0,
) -> Sums:
    """Return the functions that an implementation stands for, and why.

    Args:
        implementation: "dense", "streamed", "triton", or "auto", which depends on the other arguments.
        pairs: how many pairs all ranks hold.
        dtype: of the features.
        device: where they are.
        tile: rows and columns of a tile; None is what the implementation takes.
        most_rows: of a tile.
        dense_bytes: what the dense form takes at most on some rank; the same number on each.

    Raises:
        TypeError: tiles are asked for inside of torch.func.
        ValueError: kernels are asked for where there are none.
    """
    name, why = implementation, "as asked for"
    if implementation == "auto":
        name, why = _fastest(pairs, dense_bytes, dtype, torch.device(device).type)
    else:
        _check_transforms(implementation)
    form = _kernels(torch.device(device)) if name == "triton" else Block
    rows, columns = tile or (TILE if torch.device(device).type == "cpu" else LARGE_TILE)
    tile = min(rows, most_rows or rows), columns
    if name == "dense":
        return Sums(name, why, tile, form, *_DENSE)
    return Sums(name, why, tile, form, *(partial(one, tile=tile, form=form) for one in _STREAMED))


def _check_transforms(implementation: Implementation) -> None:
    """Raise TypeError where tiles are asked for inside of torch.func."""
    if implementation != "dense" and checks.is_in_func():
        raise TypeError(f"implementation: {implementation!r} is not for torch.func: use 'auto' or 'dense'")


def _kernels(device: torch.device) -> type[Block]:
    """Return what passes over tiles by kernels; raise ValueError where they do not run."""
    if find_spec("triton") is None:
        raise ValueError("implementation: 'triton' needs the package triton: pip install triton")
    from . import kernels

    if device.type != "cuda" and not kernels.INTERPRETED:
        raise ValueError(
            f"implementation: 'triton' is for tensors on cuda, got {device.type}: use 'auto' or 'streamed'; "
            "TRITON_INTERPRET=1, set before triton is imported, runs its kernels on a CPU, slowly"
        )
    return kernels.Kernels


def _fastest(pairs: int, dense_bytes: int, dtype: torch.dtype, kind: str) -> tuple[Implementation, str]:
    """Return what "auto" takes on a kind of device, and why."""
    large = kind == "cuda" and dense_bytes > MOST_BYTES
    if torch.compiler.is_compiling():
        return "dense", "torch.compile fuses what is in one graph"
    if kind != "cpu" and not large:
        return "dense", f"tiles have not been measured on {kind}"
    if kind == "cpu" and pairs < STREAMED_FROM:
        return "dense", f"{pairs} pairs are fewer than {STREAMED_FROM}"
    if kind == "cpu" and (dtype.itemsize < 4 or checks.is_autocast_on(kind)):
        return "dense", "products of half precision are faster than float32's, which tiles take"
    if checks.is_transformed():
        return "dense", "torch.func and forward-mode derivatives go through torch's own functions"
    if large:
        name: Implementation = "triton" if find_spec("triton") else "streamed"
        return name, f"all logits at once would take {memory.size(dense_bytes)}"
    return "streamed", f"{pairs} pairs are at least {STREAMED_FROM}, on a CPU"


def streams_tokens(implementation: Implementation, elements: int, device: torch.device) -> bool:
    """Return whether token logits, so many numbers, are taken a chunk at a time.

    Args:
        implementation: "dense", "streamed", "triton", or "auto", which depends on the other arguments.
        elements: how many numbers the logits of all tokens are.
        device: where they are.
    """
    if implementation != "auto":
        _check_transforms(implementation)
        return implementation != "dense"
    compiled = torch.compiler.is_compiling()
    return not compiled and device.type == "cpu" and elements >= ELEMENTS and not checks.is_transformed()


_DENSE, _STREAMED = (
    [getattr(module, name) for name in ("sum_symmetric", "sum_sigmoid", "sum_symmetric_distill")]
    for module in (contrast, streamed)
)
