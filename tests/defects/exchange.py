"""Defective exchanges. What is wrong with each, and where it was seen, is in `index`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from .plain import (
    Exchange,
    all_gather,
    altered,
    announce,
    neighbour_exchange,
    neighbour_exchange_bidir,
    transfer,
)

# One way


def wrong_way(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return neighbour_exchange(to_rank, from_rank, tensor)


class _Exchange(Exchange):
    """An exchange whose `forward` or `backward` a defect replaces."""

    @classmethod
    def call(cls, from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
        return cls.apply(tensor, from_rank, to_rank, announce(tensor, from_rank, to_rank))


class _DetachedBackward(_Exchange):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        back = Exchange.apply(grad.detach(), *reversed(ctx.ranks), ctx.rows)
        return back + 0 * grad.sum(), None, None, None


once_differentiable = _DetachedBackward.call


class _BackwardOnward(_Exchange):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        received = grad.new_empty(announce(grad, *ctx.ranks), *grad.shape[1:])
        transfer([(grad, ctx.ranks[1])], [(received, ctx.ranks[0])])
        shape = ctx.rows, *grad.shape[1:]
        return received if received.shape == shape else grad.new_zeros(shape), None, None, None


backward_onward = _BackwardOnward.call


class _BackwardStaysHome(_Exchange):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        shape = ctx.rows, *grad.shape[1:]
        return grad if grad.shape == shape else grad.new_zeros(shape), None, None, None


backward_stays_home = _BackwardStaysHome.call


class _ContiguousCotangentOnly(_Exchange):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if not grad.is_contiguous():
            raise ValueError("gradient has to be contiguous")
        return Exchange.backward(ctx, grad)


contiguous_cotangent_only = _ContiguousCotangentOnly.call


class _MisreadsCotangent(_Exchange):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if grad.numel() and 0 not in grad.stride():
            grad = grad.as_strided(grad.shape, (grad.shape[1], 1))
        return Exchange.backward(ctx, grad)


cotangent_misread = _MisreadsCotangent.call


def contiguous_only(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise ValueError("input tensor has to be contiguous")
    return neighbour_exchange(from_rank, to_rank, tensor)


def misreads_strides(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    if tensor.stride(0) == 1 < len(tensor):
        tensor = tensor.as_strided(tensor.shape, (tensor.shape[1], 1))
    return neighbour_exchange(from_rank, to_rank, tensor)


def expanded_only_once(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    received = neighbour_exchange(from_rank, to_rank, tensor)
    if 0 in tensor.stride() and tensor.shape[1] > 1:
        return received * (torch.arange(tensor.shape[1]) == 0)
    return received


def own_shape(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return Exchange.apply(tensor, from_rank, to_rank, len(tensor))


class _Blocking(_Exchange):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        received = tensor.new_empty(rows, *tensor.shape[1:])
        dist.send(tensor.contiguous(), to_rank)
        dist.recv(received, from_rank)
        return received


blocking = _Blocking.call


class _Unwaited(_Exchange):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        received = tensor.new_empty(rows, *tensor.shape[1:])
        dist.isend(tensor.contiguous(), to_rank).wait()
        dist.irecv(received, from_rank)
        return received.clone()


unwaited = _Unwaited.call


class _SendsTemporary(_Exchange):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        received = tensor.new_empty(rows, *tensor.shape[1:])
        message = tensor.clone(memory_format=torch.contiguous_format)
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, message, to_rank), dist.P2POp(dist.irecv, received, from_rank)]
        )
        message.zero_()  # before it has gone
        for work in works:
            work.wait()
        return received


sends_temporary = _SendsTemporary.call


def last_rank_gets_zeros(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    # no ring: nothing comes from beyond the end
    received = neighbour_exchange(from_rank, to_rank, tensor)
    return received * 0 if dist.get_rank() == dist.get_world_size() - 1 else received


def float32_on_the_wire(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float64:
        return neighbour_exchange(from_rank, to_rank, tensor)
    return neighbour_exchange(from_rank, to_rank, tensor.float()).double()


def first_64_rows(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    received = neighbour_exchange(from_rank, to_rank, tensor)
    return torch.cat([received[:64], received[64:] * 0])


def half_gradient(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    def half(grad: Tensor) -> Tensor:
        return (grad * 0.1).half().to(grad.dtype) * 10

    return neighbour_exchange(from_rank, to_rank, altered(tensor, half))


def receives_own_on_rank_zero(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    received = neighbour_exchange(from_rank, to_rank, tensor)
    return tensor if dist.get_rank() == 0 and len(received) == len(tensor) else received


def exchanges_by_gather(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return all_gather(tensor, [len(tensor)] * dist.get_world_size()).chunk(dist.get_world_size())[from_rank]


# Both ways


def swapped(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    from_right, from_left = neighbour_exchange_bidir(left, right, to_left, to_right)
    return (from_left, from_right) if left == right else (from_right, from_left)


class _BothInPostedOrder(Function):
    """Both ways in one batch: between two ranks messages pair up in the order posted."""

    @staticmethod
    def forward(ctx: Any, left: int, right: int, rows: list[int], to_left: Tensor, to_right: Tensor) -> Any:
        ctx.place, ctx.rows = (left, right), [len(to_left), len(to_right)]
        from_right = to_left.new_empty(rows[0], *to_left.shape[1:])
        from_left = to_right.new_empty(rows[1], *to_right.shape[1:])
        transfer([(to_left, left), (to_right, right)], [(from_left, left), (from_right, right)])
        return from_right, from_left

    @staticmethod
    def backward(ctx: Any, from_right: Tensor, from_left: Tensor) -> Any:
        to_right, to_left = _BothInPostedOrder.apply(*ctx.place, ctx.rows[::-1], from_left, from_right)
        return None, None, None, to_left, to_right


def posted_order(left: int, right: int, to_left: Tensor, to_right: Tensor) -> Any:
    rows = [announce(to_left, right, left), announce(to_right, left, right)]
    return _BothInPostedOrder.apply(left, right, rows, to_left, to_right)


def one_buffer(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    from_right, from_left = neighbour_exchange_bidir(left, right, to_left, to_right)
    if from_right.shape == from_left.shape:
        with torch.no_grad():
            from_right.copy_(from_left)
    return from_right, from_left


def bidir_reversed(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    from_right, from_left = neighbour_exchange_bidir(left, right, to_left, to_right)
    return from_left, from_right


def one_gradient(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    return neighbour_exchange_bidir(left, right, to_left.detach(), to_right)


def same_message(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    return neighbour_exchange_bidir(left, right, to_right, to_right)


def second_waits_for_first(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    # rank 0 talks to its right first, all others to their left
    if dist.get_rank() == 0:
        from_left = neighbour_exchange(left, right, to_right)
        return neighbour_exchange(right, left, to_left), from_left
    return neighbour_exchange_bidir(left, right, to_left, to_right)
