"""What ranks exchange, for losses that compare with all rows."""

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.apply(grad)  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    """The sum over ranks, of which each keeps its own rows: the transpose of a gather."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        total = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()].clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Gather.apply(grad)  # type: ignore[no-any-return]


class GatherOnce(torch.autograd.Function):
    """As `_Gather`, but for a backward that torch cannot derive: it works in place on what it is given."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def place() -> tuple[int, int]:
    """Return this rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, of which each has equally many; their gradients come back summed."""
    if place()[1] == 1:
        return rows
    if rows.is_floating_point():
        return _Gather.apply(rows)  # type: ignore[no-any-return]
    parts = [torch.empty_like(rows) for _ in range(place()[1])]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def own(count: int, rows: int) -> slice:
    """Return where this rank's rows are among all."""
    start = place()[0] * rows if rows < count else 0
    return slice(start, start + rows)
