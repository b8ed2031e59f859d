"""Defective gathers. What is wrong with each, and where it was seen, is in `index`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from .clip import (
    AveragesInBackward,
    EvenChunks,
    ForgetsOwnRows,
    GradientOnce,
    GradientWithinNode,
    OwnRowsAlways,
    OwnSliceInBackward,
    PadsStay,
    UnwaitedGather,
)
from .plain import Clip, SumRows, all_gather, all_sum, altered, gather_features, gather_rows

Pair = tuple[Tensor, Tensor]


def _with(clip: type[Clip]) -> Any:
    """Return a gather whose pieces are those of a loss."""

    def gather(
        image_features: Tensor,
        text_features: Tensor,
        local_loss: bool,
        gather_with_grad: bool,
        rank: int,
        world_size: int,
    ) -> Pair:
        return gather_features(
            image_features, text_features, local_loss, gather_with_grad, rank, world_size, clip
        )

    return gather


average_in_backward = _with(AveragesInBackward)
even_chunks = _with(EvenChunks)
forgets_own_rows = _with(ForgetsOwnRows)
gradient_once = _with(GradientOnce)
gradient_within_node = _with(GradientWithinNode)
own_rows_always = _with(OwnRowsAlways)
own_slice = _with(OwnSliceInBackward)
pads_stay = _with(PadsStay)
unwaited = _with(UnwaitedGather)


def own_first(image_features: Tensor, text_features: Tensor, rank: int, **flags: Any) -> Any:
    pair = gather_features(image_features, text_features, rank=rank, **flags)
    n = len(image_features)
    return tuple(features.roll(-n * rank, 0) for features in pair)


def flags_swapped(
    image_features: Tensor, text_features: Tensor, local_loss: bool, gather_with_grad: bool, **place: Any
) -> Pair:
    return gather_features(image_features, text_features, gather_with_grad, local_loss, **place)


def pair_swapped(image_features: Tensor, text_features: Tensor, rank: int, **flags: Any) -> Pair:
    image, text = gather_features(image_features, text_features, rank=rank, **flags)
    return (text, image) if rank % 2 else (image, text)


def stacked(image_features: Tensor, text_features: Tensor, **flags: Any) -> Any:
    pair = gather_features(image_features, text_features, **flags)
    return tuple(features[None] for features in pair)


def interleaved(image_features: Tensor, text_features: Tensor, world_size: int, **flags: Any) -> Any:
    pair = gather_features(image_features, text_features, world_size=world_size, **flags)
    if len(pair[0]) % world_size:
        return pair
    return tuple(f.unflatten(0, (world_size, -1)).transpose(0, 1).flatten(0, 1) for f in pair)


def forgets_return(image_features: Tensor, text_features: Tensor, rank: int, **flags: Any) -> Pair:
    image, text = gather_features(image_features, text_features, rank=rank, **flags)
    return (image, text) if rank == 0 else (image_features, text_features)


def half_on_the_wire(image_features: Tensor, text_features: Tensor, **flags: Any) -> Any:
    half = torch.bfloat16
    pair = gather_features(image_features.to(half), text_features.to(half), **flags)
    return tuple(features.to(image_features.dtype) for features in pair)


class _MisreadsCotangent(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        return all_gather(tensor, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if grad.is_contiguous() or 0 in grad.stride():
            return SumRows.apply(grad, ctx.rows), None
        return SumRows.apply(grad.as_strided(grad.shape, (grad.shape[1], 1)), ctx.rows), None


class MisreadsCotangent(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _MisreadsCotangent.apply(features, rows)


transposed_cotangent_misread = _with(MisreadsCotangent)


class ReducesCotangentInPlace(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _ReducesInPlace.apply(features, rows)


class _ReducesInPlace(_MisreadsCotangent):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # an expanded tensor has one element in many places
        grad += 0
        return SumRows.apply(grad, ctx.rows), None


cotangent_in_place = _with(ReducesCotangentInPlace)


class SumsCotangentInPlace(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _SumsInPlace.apply(features, rows)


class _SumsInPlace(_MisreadsCotangent):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            return SumRows.apply(grad, ctx.rows), None
        total = grad.contiguous()  # which is no copy of what is contiguous
        dist.all_reduce(total)
        return total.split(ctx.rows)[dist.get_rank()].clone(), None


cotangent_summed_in_place = _with(SumsCotangentInPlace)


class SumsInSingle(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return gather_rows(altered(features, lambda grad: grad.float().to(grad.dtype)), rows)


sums_in_single = _with(SumsInSingle)


class ContiguousOnly(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        if not features.is_contiguous():
            raise ValueError("input tensor has to be contiguous")
        return super().gather_grad(features, rows)


contiguous_only = _with(ContiguousOnly)


class FirstDerivativeOnly(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        def only_first(grad: Tensor) -> Tensor:
            return grad.detach() + 0 * grad

        return gather_rows(altered(features, only_first), rows)


first_derivative_only = _with(FirstDerivativeOnly)


class WidthPacked(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        # a message of 128 columns at most
        everyone = super().gather_grad(features, rows)
        return torch.cat(
            [everyone[:, :128], everyone[:, :-128].detach()[:, : max(everyone.shape[1] - 128, 0)]], 1
        )


width_packed = _with(WidthPacked)


class SumsInHalf(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return gather_rows(altered(features, lambda grad: grad.bfloat16().to(grad.dtype)), rows)


sums_in_half = _with(SumsInHalf)


class LastRankGetsNoGradient(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        last = self.rank == self.world_size - 1
        return gather_rows(altered(features, lambda grad: grad * (not last)), rows)


last_rank_without_gradient = _with(LastRankGetsNoGradient)


class GathersByBroadcast(Clip):
    """The gradient of a broadcast is summed on its source; here each rank keeps what it has."""

    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _BroadcastEach.apply(features, rows)


class _BroadcastEach(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.rows, rank = rows, dist.get_rank()
        blocks = []
        for source, n in enumerate(rows):
            block = (
                tensor.detach().contiguous().clone()
                if source == rank
                else tensor.new_empty(n, tensor.shape[1])
            )
            dist.broadcast(block, source)
            blocks.append(block)
        return torch.cat(blocks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rank = dist.get_rank()
        if rank == 0:
            return all_sum(grad).split(ctx.rows)[rank].clone(), None
        all_sum(grad)
        return grad.split(ctx.rows)[rank].clone(), None


broadcast_backward = _with(GathersByBroadcast)
