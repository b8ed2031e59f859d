"""Losses that take a process group, and gathers that some ranks alone derive; what is wrong is in `index`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from verified_losses.transport import eager

from .plain import Clip, all_gather, gather_rows


class _GatherInGroup(Function):
    """The rows of a group's ranks; backward sums over them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int], group: Any, back: Any) -> Tensor:
        ctx.rows, ctx.back, ctx.rank = rows, back, dist.get_rank(group)
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: len(tensor)] = tensor.detach()
        everyone = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(everyone, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(everyone, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _SumInGroup.apply(grad, ctx.rows, ctx.back, ctx.rank), None, None, None


class _SumInGroup(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, rows: list[int], group: Any, rank: int) -> Tensor:
        ctx.rows, ctx.group = rows, group
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.split(rows)[rank].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _GatherInGroup.apply(grad, ctx.rows, ctx.group, ctx.group), None, None, None


class InGroup(Clip):
    """Right: all that it does is in its group."""

    def __init__(self, group: Any = None, **flags: Any) -> None:
        super().__init__(**flags)
        self.group = self.back = group

    @eager
    def count(self, features: Tensor) -> list[int]:
        if self.world_size == 1:
            return [len(features)]
        everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(everyone, torch.tensor([len(features)]), group=self.group)
        return [int(rows) for rows in everyone]

    @eager
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _GatherInGroup.apply(features, rows, self.group, self.back)

    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        if self.world_size == 1 or self.gather_with_grad:
            return super().gather(features, rows)
        everyone = self.gather_grad(features.detach(), rows)
        return everyone if self.local_loss else self.insert(everyone, features, rows)


class GathersTheWorld(InGroup):
    def __init__(self, group: Any = None, **flags: Any) -> None:
        super().__init__(group, **flags)
        if dist.is_initialized():
            self.group = self.back = None
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()


class LabelsOfGlobalRank(InGroup):
    def offset(self, rows: list[int]) -> int:
        return sum(rows[: dist.get_rank()]) if self.local else 0


class WeighsByWorld(InGroup):
    def weight(self, rows: list[int]) -> float:
        size = dist.get_world_size() if dist.is_initialized() else 1
        return (size if self.local_loss else 1) / sum(rows)


class SumsOverTheWorld(InGroup):
    """The gather is in its group, and its backward is not."""

    def __init__(self, group: Any = None, **flags: Any) -> None:
        super().__init__(group, **flags)
        self.back = None


# Inputs that some ranks alone freeze


class EveryoneAnswers(Clip):
    """Right: a rank whose rows are constants takes part in the backward as all others do."""

    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        mine = features if features.requires_grad else features.detach().requires_grad_()
        return gather_rows(mine if torch.is_grad_enabled() else features, rows)


class WaitsForConstants(Clip):
    """The backward of a gather is a collective, which a rank whose rows are constants never calls."""


class GivesUpGradients(Clip):
    """Where a rank's rows are constants, all ranks drop what others' losses have found for their rows."""

    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        derived = torch.tensor([float(features.requires_grad)])
        dist.all_reduce(derived)
        if int(derived) in (0, self.world_size):
            return gather_rows(features, rows)
        return torch.cat(
            [
                features if rank == self.rank else part
                for rank, part in enumerate(all_gather(features, rows).split(rows))
            ]
        )
