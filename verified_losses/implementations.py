"""The implementations of the sums of `contrast`, and which is taken when."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import checks, contrast, memory, streamed

Implementation: TypeAlias = Literal["auto", "dense", "streamed"]
IMPLEMENTATIONS = ("auto", "dense", "streamed")
STREAMED_FROM = 1024
"""Pairs from which on tiles are no slower than all logits at once, in float32 on a CPU, as
benchmarks/losses.py measures."""

ELEMENTS = STREAMED_FROM**2
"""Token logits from which on chunks are no slower than all at once, on a CPU."""


class Sums(NamedTuple):
    """The functions of `contrast` that each implementation has, of one."""

    name: str
    why: str
    sum_symmetric: Callable[..., Tensor]
    sum_sigmoid: Callable[..., Tensor]
    sum_symmetric_distill: Callable[..., tuple[Tensor, Tensor]]


def choose(
    implementation: Implementation,
    pairs: int,
    dtype: torch.dtype,
    device: torch.device | str,
    tile: streamed.Tile = streamed.TILE,
) -> Sums:
    """Return the functions that an implementation stands for, and why.

    Args:
        implementation: "dense", "streamed", or "auto", which depends on the other arguments.
        pairs: how many pairs all ranks hold.
        dtype: of the features.
        device: where they are.
        tile: rows and columns of a tile.
    """
    if implementation != "auto":
        _check_transforms(implementation)
        return _sums(implementation, "as asked for", tile)
    if why := _why_dense(pairs, dtype, torch.device(device).type):
        return _sums("dense", why, tile)
    return _sums("streamed", f"{pairs} pairs are at least {STREAMED_FROM}, on a CPU", tile)


def _check_transforms(implementation: Implementation) -> None:
    """Raise TypeError where tiles are asked for inside of torch.func."""
    if implementation == "streamed" and checks.is_in_func():
        raise TypeError("implementation: 'streamed' is not for torch.func: use 'auto' or 'dense'")


def _why_dense(pairs: int, dtype: torch.dtype, kind: str) -> str:
    """Return why "auto" takes all logits at once; nothing where it takes tiles."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses what is in one graph"
    if kind != "cpu":
        return f"the streamed form has not been measured on {kind}"
    if pairs < STREAMED_FROM:
        return f"{pairs} pairs are fewer than {STREAMED_FROM}"
    if dtype.itemsize < 4 or checks.is_autocast_on(kind):
        return "products of half precision are faster than float32's, which tiles take"
    if checks.is_transformed():
        return "torch.func and forward-mode derivatives go through torch's own functions"
    return ""


def streams_tokens(implementation: Implementation, elements: int, device: torch.device) -> bool:
    """Return whether token logits, so many numbers, are taken a chunk at a time.

    Args:
        implementation: "dense", "streamed", or "auto", which depends on the other arguments.
        elements: how many numbers the logits of all tokens are.
        device: where they are.
    """
    if implementation != "auto":
        _check_transforms(implementation)
        return implementation == "streamed"
    compiled = torch.compiler.is_compiling()
    return not compiled and device.type == "cpu" and elements >= ELEMENTS and not checks.is_transformed()


def explain(
    implementation: Implementation,
    n: int,
    d: int,
    dtype: torch.dtype,
    device: torch.device | str,
    tile: streamed.Tile,
    kind: memory.Kind,
) -> str:
    """Return in words which implementation n pairs of width d are given to, and why, and its memory."""
    chosen = choose(implementation, n, dtype, device)
    stated = memory.of_pairs(chosen.name, kind, n, d, dtype, tile, d if kind == "distill" else 0)
    return f"{chosen.name}: {chosen.why}; {stated}"


_DENSE, _STREAMED = ([getattr(module, name) for name in Sums._fields[2:]] for module in (contrast, streamed))


def _sums(name: str, why: str, tile: streamed.Tile) -> Sums:
    if name == "dense":
        return Sums(name, why, *_DENSE)
    return Sums(name, why, *(partial(one, tile=tile) for one in _STREAMED))
