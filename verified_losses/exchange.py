"""Tensors passed between neighbours in a ring of ranks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from . import checks
from .backends import backend_of
from .transport import Transport, eager

_DTYPES = (
    *checks.DTYPES, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
    torch.complex64, torch.complex128,
)  # fmt: skip
_MAX_NDIM = 8
_NOTHING = [-1] * (2 + _MAX_NDIM)
"""Is sent in the place of a dimension, a dtype and a shape by a rank whose arguments are wrong."""

Shape = Sequence[int]


def neighbour_exchange(from_rank: int, to_rank: int, tensor: Tensor, group: Any = None) -> Tensor:
    """Send `tensor` to one rank and receive one from another, without gradient.

    Args:
        from_rank: the rank to receive from, counted within `group`; open_clip's is counted in the world.
        to_rank: the rank to send to, counted likewise; it must receive from this one.
        tensor: any strides, any shape of up to 8 dimensions, and a dtype of float16, bfloat16, float32,
            float64, uint8, int8, int16, int32, int64, bool, complex64 and complex128; ranks may differ in
            shape and dtype.
        group: the process group; None is the default one.

    Returns:
        The tensor that `from_rank` sent, contiguous, on the device of `tensor`.

    Raises:
        TypeError, ValueError: an argument is wrong; the rank that waits for `tensor` raises too. Where
            `from_rank` or `to_rank` is wrong, the other one tells which rank waits, as in a ring. Other ranks
            wait until their process group's timeout if both are wrong, or if the ranks are in no ring.
        RuntimeError: torch.distributed is not initialised.

    Example:
        >>> import torch
        >>> from verified_losses.properties.worlds.simulated import SimulatedWorld
        >>> def program(rank, size):
        ...     left_rank, right_rank = (rank - 1) % size, (rank + 1) % size
        ...     tensor = torch.tensor(float(rank))
        ...     return neighbour_exchange(left_rank, right_rank, tensor).item()
        >>> SimulatedWorld(3).run(program)  # three ranks, of this process
        [2.0, 0.0, 1.0]
    """
    (received,) = _swap(_one_way(from_rank, to_rank, tensor), _ranks(group))
    return received


def neighbour_exchange_bidir(
    left_rank: int, right_rank: int, tensor_to_left: Tensor, tensor_to_right: Tensor, group: Any = None
) -> tuple[Tensor, Tensor]:
    """Send one tensor to each of two neighbours and receive one from each, without gradient.

    Right for two ranks as well, where the left neighbour is the right one.

    Args:
        left_rank: the neighbour on the left, counted within `group`; open_clip's is counted in the world.
        right_rank: the neighbour on the right, counted likewise.
        tensor_to_left: the tensor for the left neighbour; strides, shape and dtype as in
            `neighbour_exchange`.
        tensor_to_right: the tensor for the right neighbour.
        group: the process group; None is the default one.

    Returns:
        The tensor from the right neighbour, then the tensor from the left one.

    Raises:
        TypeError, ValueError: an argument is wrong; the rank that waits for a tensor raises too, as it does
            in `neighbour_exchange`.
        RuntimeError: torch.distributed is not initialised.

    Example:
        >>> import torch
        >>> from verified_losses.properties.worlds.simulated import SimulatedWorld
        >>> def program(rank, size):
        ...     left_rank, right_rank = (rank - 1) % size, (rank + 1) % size
        ...     tensor = torch.tensor(float(rank))
        ...     right, left = neighbour_exchange_bidir(left_rank, right_rank, tensor, -tensor)
        ...     return right.item(), left.item()
        >>> SimulatedWorld(3).run(program)  # three ranks, of this process
        [(1.0, -2.0), (2.0, -0.0), (0.0, -1.0)]
    """
    call = _both_ways(left_rank, right_rank, tensor_to_left, tensor_to_right)
    from_left, from_right = _swap(call, _ranks(group))
    return from_right, from_left


def neighbour_exchange_with_grad(from_rank: int, to_rank: int, tensor: Tensor, group: Any = None) -> Tensor:
    """`neighbour_exchange`, differentiable any number of times: gradients travel the other way.

    The gradient of `tensor` is the gradient of the tensor that `to_rank` received. Every rank takes part in
    the backward, so the result requires grad wherever gradients are recorded, also on a rank whose own tensor
    does not.

    Args:
        from_rank: the rank to receive from, counted within `group`; open_clip's is counted in the world.
        to_rank: the rank to send to, counted likewise; it must receive from this one.
        tensor: any strides, any shape of up to 8 dimensions, and a dtype of float16, bfloat16, float32,
            float64, uint8, int8, int16, int32, int64, bool, complex64 and complex128; ranks may differ in
            shape and dtype.
        group: the process group; None is the default one.

    Returns:
        The tensor that `from_rank` sent, contiguous, on the device of `tensor`.

    Raises:
        TypeError, ValueError: an argument is wrong; the rank that waits for `tensor` raises too. Where
            `from_rank` or `to_rank` is wrong, the other one tells which rank waits, as in a ring. Other ranks
            wait until their process group's timeout if both are wrong, or if the ranks are in no ring.
        RuntimeError: torch.distributed is not initialised.

    Example:
        >>> import torch
        >>> from verified_losses.properties.worlds.simulated import SimulatedWorld
        >>> def program(rank, size):
        ...     left_rank, right_rank = (rank - 1) % size, (rank + 1) % size
        ...     tensor = torch.tensor(float(rank), requires_grad=True)
        ...     received = neighbour_exchange_with_grad(left_rank, right_rank, tensor)
        ...     (rank * received).backward()
        ...     return tensor.grad.item()  # comes back from the right
        >>> SimulatedWorld(3).run(program)  # three ranks, of this process
        [1.0, 2.0, 0.0]
    """
    transport = _ranks(group)
    ((shape, dtype),) = _receive_shapes(_one_way(from_rank, to_rank, tensor), transport)
    return exchange_with_grad(from_rank, to_rank, tensor, shape, transport, dtype)


def neighbour_exchange_bidir_with_grad(
    left_rank: int, right_rank: int, tensor_to_left: Tensor, tensor_to_right: Tensor, group: Any = None
) -> tuple[Tensor, Tensor]:
    """`neighbour_exchange_bidir`, differentiable any number of times; see `neighbour_exchange_with_grad`.

    Args:
        left_rank: the neighbour on the left, counted within `group`; open_clip's is counted in the world.
        right_rank: the neighbour on the right, counted likewise.
        tensor_to_left: the tensor for the left neighbour; strides, shape and dtype as in
            `neighbour_exchange`.
        tensor_to_right: the tensor for the right neighbour.
        group: the process group; None is the default one.

    Returns:
        The tensor from the right neighbour, then the tensor from the left one.

    Raises:
        TypeError, ValueError: an argument is wrong; the rank that waits for a tensor raises too, as it does
            in `neighbour_exchange`.
        RuntimeError: torch.distributed is not initialised.

    Example:
        >>> import torch
        >>> from verified_losses.properties.worlds.simulated import SimulatedWorld
        >>> def program(rank, size):
        ...     left_rank, right_rank = (rank - 1) % size, (rank + 1) % size
        ...     tensor = torch.tensor(float(rank), requires_grad=True)
        ...     right, left = neighbour_exchange_bidir_with_grad(left_rank, right_rank, tensor, tensor)
        ...     (rank * right + 10 * rank * left).backward()
        ...     return tensor.grad.item()  # the left rank's of its right, the right rank's of its left
        >>> SimulatedWorld(3).run(program)  # three ranks, of this process
        [12.0, 20.0, 1.0]
    """
    call = _both_ways(left_rank, right_rank, tensor_to_left, tensor_to_right)
    transport = _ranks(group)
    (left, left_dtype), (right, right_dtype) = _receive_shapes(call, transport)
    return exchange_bidir_with_grad(
        left_rank,
        right_rank,
        tensor_to_left,
        tensor_to_right,
        right,
        left,
        transport,
        right_dtype,
        left_dtype,
    )


@eager
def exchange_with_grad(
    from_rank: int,
    to_rank: int,
    tensor: Tensor,
    shape: Shape,
    transport: Transport,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Exchange with gradient where the shape that comes is known."""
    dtype = dtype or tensor.dtype
    received: Tensor = _Exchange.apply(from_rank, to_rank, transport, shape, dtype, _anchor(), tensor)
    return received


@eager
def exchange_bidir_with_grad(
    left_rank: int,
    right_rank: int,
    tensor_to_left: Tensor,
    tensor_to_right: Tensor,
    shape_from_right: Shape,
    shape_from_left: Shape,
    transport: Transport,
    dtype_from_right: torch.dtype | None = None,
    dtype_from_left: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Exchange in both directions with gradient where the shapes that come are known."""
    shapes = (shape_from_right, shape_from_left)
    dtypes = (dtype_from_right or tensor_to_left.dtype, dtype_from_left or tensor_to_right.dtype)
    received: tuple[Tensor, Tensor] = _ExchangeBidir.apply(
        left_rank, right_rank, transport, shapes, dtypes, _anchor(), tensor_to_left, tensor_to_right
    )
    return received


@eager
def _ranks(group: Any) -> Transport:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "neighbour exchange needs torch.distributed, as Horovod sends no messages from one rank to "
            "another: call init_process_group() first"
        )
    return Transport(dist.get_rank(group), dist.get_world_size(group), group)


def _anchor() -> Tensor:
    # a rank whose own tensor needs no gradient must still send its neighbour's back
    return torch.empty(0, requires_grad=True)


class _Exchange(Function):
    @staticmethod
    def forward(
        ctx: Any,
        from_rank: int,
        to_rank: int,
        transport: Transport,
        shape: Shape,
        dtype: Any,
        anchor: Tensor,
        tensor: Tensor,
    ) -> Tensor:
        ctx.from_rank, ctx.to_rank, ctx.transport = from_rank, to_rank, transport
        ctx.sent = tensor.shape, tensor.dtype
        received = tensor.new_empty(shape, dtype=dtype)
        transport.exchange([(tensor, to_rank)], [(received, from_rank)])
        if not received.is_floating_point():
            ctx.mark_non_differentiable(received)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        back = _Exchange.apply(ctx.to_rank, ctx.from_rank, ctx.transport, *ctx.sent, _anchor(), grad)
        return None, None, None, None, None, None, back


class _ExchangeBidir(Function):
    @staticmethod
    def forward(
        ctx: Any,
        left_rank: int,
        right_rank: int,
        transport: Transport,
        shapes: tuple[Shape, Shape],
        dtypes: tuple[Any, Any],
        anchor: Tensor,
        to_left: Tensor,
        to_right: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.left_rank, ctx.right_rank, ctx.transport = left_rank, right_rank, transport
        ctx.sent = (to_left.shape, to_right.shape), (to_left.dtype, to_right.dtype)
        from_right = to_left.new_empty(shapes[0], dtype=dtypes[0])
        from_left = to_right.new_empty(shapes[1], dtype=dtypes[1])
        # between two ranks messages pair up in the order posted: the first I send to the right is
        # the first my neighbour receives from its left
        sends = [(to_right, right_rank), (to_left, left_rank)]
        transport.exchange(sends, [(from_left, left_rank), (from_right, right_rank)])
        ctx.mark_non_differentiable(*(t for t in (from_right, from_left) if not t.is_floating_point()))
        return from_right, from_left

    @staticmethod
    def backward(ctx: Any, grad_from_right: Tensor, grad_from_left: Tensor) -> tuple[Any, ...]:
        # the gradient of the tensor sent to the left comes back from the left
        (left, right), (left_dtype, right_dtype) = ctx.sent
        grad_to_right, grad_to_left = _ExchangeBidir.apply(
            ctx.left_rank, ctx.right_rank, ctx.transport, (right, left), (right_dtype, left_dtype), _anchor(),
            grad_from_left, grad_from_right,
        )  # fmt: skip
        return None, None, None, None, None, None, grad_to_left, grad_to_right


class _Call(NamedTuple):
    """What a call sends and awaits, by the names of its arguments."""

    ranks: dict[str, int]
    """The two that it names."""
    sends: list[tuple[str, Tensor, str]]
    """The name of each tensor, the tensor, and the name of the rank that it goes to."""
    sources: list[str]
    """The names of the ranks to receive from, in order."""


def _one_way(from_rank: int, to_rank: int, tensor: Tensor) -> _Call:
    ranks = {"from_rank": from_rank, "to_rank": to_rank}
    return _Call(ranks, [("tensor", tensor, "to_rank")], ["from_rank"])


def _both_ways(left_rank: int, right_rank: int, to_left: Tensor, to_right: Tensor) -> _Call:
    ranks = {"left_rank": left_rank, "right_rank": right_rank}
    sends = [("tensor_to_right", to_right, "right_rank"), ("tensor_to_left", to_left, "left_rank")]
    return _Call(ranks, sends, ["left_rank", "right_rank"])


def _swap(call: _Call, transport: Transport) -> list[Tensor]:
    shapes = _receive_shapes(call, transport)
    receives = [
        (sent.new_empty(shape, dtype=dtype), call.ranks[source])
        for (shape, dtype), source, (_, sent, _) in zip(shapes, call.sources, call.sends, strict=True)
    ]
    transport.exchange([(tensor.detach(), call.ranks[to]) for _, tensor, to in call.sends], receives)
    return [tensor for tensor, _ in receives]


def _peers(ranks: dict[str, int], transport: Transport) -> tuple[dict[str, int], Exception | None]:
    """Return the two ranks of a call, and the error of the one that is wrong; raise if both are.

    The wrong one is replaced by the rank that is as far from this one as the other, on the other side of the
    ring, where a rank waits to be told.
    """
    size = transport.world_size
    valid = {name: peer for name, peer in ranks.items() if isinstance(peer, int) and 0 <= peer < size}
    if len(valid) == len(ranks):
        return ranks, None
    name = next(name for name in ranks if name not in valid)
    error = ValueError(f"{name}: expected an int in [0, {size}), got {ranks[name]!r}")
    if not valid:
        raise error
    (other,) = valid.values()
    return valid | {name: (2 * transport.rank - other) % size}, error


def _header(name: str, tensor: object) -> tuple[list[int], Exception | None]:
    """Return what tells the shape and dtype of a tensor, and the error of one that cannot be sent."""
    wrong: Exception
    if not isinstance(tensor, Tensor):
        wrong = TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    elif tensor.dtype not in _DTYPES:
        wrong = TypeError(f"{name}: expected one of {_DTYPES}, got {tensor.dtype}")
    elif tensor.ndim > _MAX_NDIM:
        wrong = ValueError(f"{name}: expected at most {_MAX_NDIM} dimensions, got {tensor.ndim}")
    else:
        unused = [-1] * (_MAX_NDIM - tensor.ndim)
        return [tensor.ndim, _DTYPES.index(tensor.dtype), *tensor.shape, *unused], None
    return _NOTHING, wrong


def _swap_headers(call: _Call, transport: Transport) -> list[tuple[list[int], torch.dtype]]:
    """Send each receiver the shape and dtype of its tensor; return those of the tensors to come."""
    peers, wrong_rank = _peers(call.ranks, transport)
    device = "cuda" if backend_of(transport.group, "cuda") == "nccl" else "cpu"
    wrong, good, headers = wrong_rank, [], []
    for name, tensor, to in call.sends:
        header, error = _header(name, tensor)
        wrong = wrong or error
        if wrong_rank:
            header = _NOTHING
        elif error is None:
            good.append((tensor.detach(), peers[to]))
        headers.append((torch.tensor(header, device=device), peers[to]))
    coming = [
        (torch.empty(len(_NOTHING), dtype=torch.int64, device=device), peers[source])
        for source in call.sources
    ]
    try:
        transport.exchange(headers, coming)
    except RuntimeError as lost:
        if wrong_rank:  # the ranks are in no ring
            raise wrong_rank from lost
        raise
    announced = []
    for told, source in coming:
        ndim, dtype, *shape = told.tolist()
        if ndim < 0 and wrong is None:
            wrong = ValueError(f"rank {source} could not send its tensor: see the exception on rank {source}")
        announced.append((shape[: max(ndim, 0)], _DTYPES[dtype]))
    if wrong is not None:
        # send and receive the valid tensors, so that no neighbour waits for ever
        ignored = [
            (torch.empty(shape, dtype=dtype, device=device), source)
            for (shape, dtype), (told, source) in zip(announced, coming, strict=True)
            if told[0] >= 0
        ]
        transport.exchange(good, ignored)
        raise wrong
    return announced


_receive_shapes = eager(_swap_headers)
