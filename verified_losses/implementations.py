"""The implementations of the sums of `contrast`, and which is taken when."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import checks, contrast, memory, streamed
from .memory import Kind, Share, StatedMemory
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


class Batch(NamedTuple):
    """The pairs of all ranks, which a contrastive loss is given."""

    kind: Kind
    """Of the loss."""
    rows: Sequence[int]
    """Of each rank."""
    width: int
    """Of the features."""
    dtype: torch.dtype
    device: torch.device | str
    teacher: int = 0
    """The width of a teacher's features."""
    local: bool = True
    """A rank sums up the losses of its own rows alone."""
    with_grad: bool = True
    """Other ranks' rows get gradients."""

    def choose(
        self, implementation: Implementation, tile_size: int | None, most_rows: int | None = None
    ) -> Sums:
        """Return the functions that an implementation stands for, the same on every rank; see `choose`."""
        dense = self.memory("dense", TILE, self.rows.index(max(self.rows))).peak
        tile = (tile_size, tile_size) if tile_size else None
        return choose(implementation, sum(self.rows), self.dtype, self.device, tile, most_rows, dense)

    def memory(self, form: str, tile: Tile, rank: int) -> StatedMemory:
        """Return what a form, which is not "auto", takes on a rank."""
        of = self.width, self.dtype, tile, self.teacher
        if len(self.rows) == 1:
            return memory.of_pairs(form, self.kind, self.rows[0], *of)
        share = Share(self.rows, rank, self.local, self.with_grad)
        return memory.of_gathered(form, self.kind, share, *of)

    def explain(
        self,
        implementation: Implementation,
        tile_size: int | None,
        most_rows: int | None = None,
        overridden: Sequence[str] = (),
    ) -> str:
        """Return what is chosen, and why, and the memory that one process takes which holds all pairs.

        Args:
            implementation: see `choose`.
            tile_size: of a tile's rows and columns; None is what the implementation takes.
            most_rows: of a tile.
            overridden: the methods that a subclass has of its own, which are given all logits at once.
        """
        chosen = self.choose("dense" if overridden else implementation, tile_size, most_rows)
        if overridden:
            chosen = chosen._replace(why=f"with {' and '.join(overridden)} overridden, all logits are made")
        alone = self._replace(rows=[sum(self.rows)])
        return f"{chosen.name}: {chosen.why}; {alone.memory(chosen.name, chosen.tile, 0)}"


def split(pairs: int, world_size: int) -> list[int]:
    """Return how many pairs each rank has of so many, the first ranks one more than the last."""
    return [(pairs + rank) // world_size for rank in reversed(range(world_size))]


def of_large_batches(implementation: Implementation, dtype: torch.dtype, device: torch.device) -> str:
    """Return the form that large batches take, on which depends what ranks send each other."""
    return choose(implementation, sys.maxsize, dtype, device, dense_bytes=sys.maxsize).name


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
