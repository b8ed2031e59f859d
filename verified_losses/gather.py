"""Every rank's rows on every rank, with or without their gradients."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import checks
from .checks import Convention, Facts
from .horovod import choose_transport
from .transport import Transport, eager

Rows = tuple[int, ...]
"""How many rows each rank holds."""


def gather_features(
    image_features: Tensor,
    text_features: Tensor,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int | None = 0,
    world_size: int | None = 1,
    use_horovod: bool = False,
    *,
    convention: Convention = "exact",
    group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Gather both features from all ranks, in rank order.

    With this rank's rows x[r] and W ranks::

        X = [x[0]; x[1]; ...; x[W - 1]]

    With `gather_with_grad` the backward sums every rank's gradient for this rank's rows. Without it
    the other ranks' rows are constants, and this rank's rows are constants too if `local_loss`; else
    they carry gradient `world_size` times (convention "exact", so that a mean over ranks is the true
    gradient) or once (convention "open_clip").

    Args:
        image_features: [n, d], floating; ranks may differ in n.
        text_features: [n, d], on the same device; dtypes may differ under autocast.
        local_loss: whether the loss compares this rank's rows alone with the gathered ones.
        gather_with_grad: whether gradients flow back to the ranks that the rows came from.
        rank: this rank, counted within `group`; None takes it from there.
        world_size: the number of ranks in `group`; None takes it from there.
        use_horovod: the ranks are those of Horovod, which runs already, instead of a process group.
        convention: which gradient `gather_with_grad=False, local_loss=False` gives.
        group: the process group; None is the default one.

    Returns:
        All image features and all text features, each [sum of n, d].

    Raises:
        TypeError, ValueError: an argument is wrong on some rank; every rank raises.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: neither torch.distributed nor, with `use_horovod`, Horovod is initialised.

    Warns:
        UserWarning: `world_size=1` is one of several ranks of the process group.

    Example:
        >>> import torch
        >>> from verified_losses.properties.worlds.simulated import SimulatedWorld
        >>> def program(rank, size):
        ...     mine = torch.full((1, 2), float(rank))
        ...     image_features, text_features = gather_features(mine, -mine, rank=rank, world_size=size)
        ...     return text_features.tolist()
        >>> SimulatedWorld(2).run(program)  # two ranks, of this process
        [[[-0.0, -0.0], [-1.0, -1.0]], [[-0.0, -0.0], [-1.0, -1.0]]]
    """
    checks.one_of("convention", convention, ("exact", "open_clip"))
    transport = choose_transport(rank, world_size, group, use_horovod)

    def check() -> Facts:
        image, text = checks.pairs(image_features, text_features)
        return Facts(image.shape[0], common=describe(gather_with_grad, image, text))

    call = f"gather_features({local_loss=}, {gather_with_grad=}, {convention=})"
    rows = tuple(facts.rows for facts in checks.agree(transport, call, check))
    return gather_pair(
        image_features, text_features, rows, local_loss, gather_with_grad, convention, transport
    )


def describe(with_grad: bool, *tensors: Tensor) -> str:
    """Return what all ranks must agree on before a gather: width, dtype, and which gradients flow back."""
    grads = [t.requires_grad and torch.is_grad_enabled() for t in tensors] if with_grad else "any"
    dtypes = " and ".join(dict.fromkeys(str(t.dtype) for t in tensors))
    return f"widths {[list(t.shape[1:]) for t in tensors]} {dtypes} requires_grad {grads}"


def gather_pair(
    image_features: Tensor,
    text_features: Tensor,
    rows: Rows,
    local_loss: bool,
    gather_with_grad: bool,
    convention: Convention,
    transport: Transport,
) -> tuple[Tensor, Tensor]:
    """Gather checked features; see `gather_features`."""
    if transport.world_size == 1:
        return image_features, text_features
    mine, own_times = [image_features, text_features], None
    if local_loss and not gather_with_grad:
        mine = [tensor.detach() for tensor in mine]
    elif not gather_with_grad:
        own_times = transport.world_size if convention == "exact" else 1
    return gather_both(transport, rows, mine, own_times)


def gather_both(
    transport: Transport, rows: Rows, pair: Sequence[Tensor], own_times: int | None = None
) -> tuple[Tensor, Tensor]:
    """Gather two matrices as `gather_rows` does, which may differ in dtype."""
    if pair[0].dtype == pair[1].dtype:
        first, second = gather_rows(transport, rows, pair, own_times)
    else:
        (first,), (second,) = (gather_rows(transport, rows, [tensor], own_times) for tensor in pair)
    return first, second


@eager
def gather_rows(
    transport: Transport, rows: Rows, tensors: Sequence[Tensor], own_times: int | None = None
) -> list[Tensor]:
    """Concatenate every rank's rows of each matrix.

    The backward sums every rank's gradient; with `own_times` it takes this rank's alone, that many times,
    and sends nothing.
    """
    return list(_GatherRows.apply(transport, rows, own_times, *tensors))


@eager
def sum_rows(transport: Transport, rows: Rows, matrix: Tensor) -> Tensor:
    """Sum [sum(rows), d] over the ranks and keep this rank's rows; the backward gathers."""
    (mine,) = _SumRows.apply(transport, rows, matrix)
    return cast(Tensor, mine)


@eager
def broadcast_rows(transport: Transport, rows: Rows, tensor: Tensor, source: int) -> Tensor:
    """Return the rows of rank `source`; the backward sums every rank's gradient there."""
    received: Tensor = _BroadcastRows.apply(transport, rows, source, tensor)
    return received


def _apart(matrix: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The columns of `matrix` that stand where those of `tensors` do, one beside the other."""
    columns = matrix.split([tensor.shape[1] for tensor in tensors], dim=1)
    # cloned: the outputs of a Function must not be views of one another
    return tuple(part.clone() for part in columns)


def _pad(matrix: Tensor, length: int) -> Tensor:
    missing = length - matrix.shape[0]
    return torch.cat([matrix, matrix.new_zeros(missing, matrix.shape[1])]) if missing else matrix


class _GatherRows(Function):
    """Gather [rows[rank], d] of each matrix to [sum(rows), d]; all matrices travel in one message."""

    @staticmethod
    def forward(
        ctx: Any, transport: Transport, rows: Rows, own_times: int | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.transport, ctx.rows, ctx.own_times = transport, rows, own_times
        everyone = transport.all_gather(_pad(torch.cat(tensors, dim=1), max(rows)))
        if min(rows) == max(rows):
            return _apart(everyone.view(-1, everyone.shape[2]), tensors)
        return _apart(torch.cat([part[:n] for n, part in zip(rows, everyone, strict=True)]), tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        wanted = [grad for k, grad in enumerate(grads) if ctx.needs_input_grad[3 + k]]
        if ctx.own_times is None:
            summed = iter(_SumRows.apply(ctx.transport, ctx.rows, *wanted))
        else:
            rank = ctx.transport.rank
            start = sum(ctx.rows[:rank])
            end = start + ctx.rows[rank]
            summed = iter([grad[start:end] * ctx.own_times for grad in wanted])
        return None, None, None, *(next(summed) if need else None for need in ctx.needs_input_grad[3:])


class _SumRows(Function):
    """[sum(rows), d] of each matrix, summed over the ranks, to this rank's [rows[rank], d]."""

    @staticmethod
    def forward(ctx: Any, transport: Transport, rows: Rows, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.transport, ctx.rows = transport, rows
        matrix = torch.cat(tensors, dim=1)
        if min(rows) == max(rows):
            parts = matrix.view(len(rows), rows[0], matrix.shape[1])
        else:
            parts = torch.stack([_pad(part, max(rows)) for part in matrix.split(rows)])
        return _apart(transport.sum_scatter(parts)[: rows[transport.rank]], tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, *_GatherRows.apply(ctx.transport, ctx.rows, None, *grads)


class _BroadcastRows(Function):
    @staticmethod
    def forward(ctx: Any, transport: Transport, rows: Rows, source: int, tensor: Tensor) -> Tensor:
        ctx.transport, ctx.rows, ctx.source = transport, rows, source
        if source != transport.rank:
            tensor = tensor.new_empty(rows[source], *tensor.shape[1:])
        return transport.broadcast(tensor, source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, None, _SumToRows.apply(ctx.transport, ctx.rows, ctx.source, grad)


class _SumToRows(Function):
    """The sum over the ranks on rank `source`, zeros in this rank's shape on the others."""

    @staticmethod
    def forward(ctx: Any, transport: Transport, rows: Rows, source: int, tensor: Tensor) -> Tensor:
        ctx.transport, ctx.rows, ctx.source = transport, rows, source
        total = transport.sum(tensor)
        if source == transport.rank:
            return total
        return total.new_zeros(rows[transport.rank], *tensor.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, None, _BroadcastRows.apply(ctx.transport, ctx.rows, ctx.source, grad)
