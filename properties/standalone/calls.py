"""How a form calls a loss: functions that counterexamples quote."""

from typing import Any

import torch
import torch.distributed as dist


def call_holding(
    loss: torch.nn.Module, held: dict[str, torch.Tensor], /, *arguments: Any, **named: Any
) -> Any:
    """Call a module with these tensors in place of its parameters."""
    owned = dict(loss.named_parameters())
    # torch.compile puts a prefix before their names
    paths = {name.removeprefix("_orig_mod."): name for name in owned}
    placed = {paths[path]: _shaped(value, owned[paths[path]]) for path, value in held.items()}
    return torch.func.functional_call(loss, placed, arguments, named)


def _shaped(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if value.shape == like.shape and not value._is_view():
        return value
    # a view that a loss clamps in its place loses its gradient, as no parameter does
    return value.reshape(like.shape).clone()


def in_turn(loss: torch.nn.Module, held: torch.Tensor, /, *arguments: Any, **named: Any) -> Any:
    """Fill what a module holds, call it with one column of its arguments after another, and add up.

    Args:
        loss: it holds a queue of [m, d] or [d, m], the oldest first, and maybe where to write next.
        held: what it is filled with, [n, m / n, d]: the rows of earlier batches of n.
        *arguments: [n, calls, d] each.
        **named: likewise.

    Raises:
        TypeError: it holds nothing of this shape.
    """
    queue = held.detach().transpose(0, 1).flatten(0, 1)
    filled = False
    for owner in loss.modules():
        # in their place, not into them: an earlier call may have been under inference mode
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.shape in (queue.shape, queue.T.shape):
                setattr(owner, name, (queue if buffer.shape == queue.shape else queue.T).clone())
                filled = True
            elif not buffer.is_floating_point():
                setattr(owner, name, torch.zeros_like(buffer))
    if not filled:
        raise TypeError(f"expected a module with a buffer of shape {list(queue.shape)} or its transpose")
    calls = next(iter([*arguments, *named.values()])).shape[1]
    losses = [
        loss(*(one[:, turn] for one in arguments), **{name: one[:, turn] for name, one in named.items()})
        for turn in range(calls)
    ]
    return torch.stack(losses).sum()


def row_labels(rows: torch.Tensor) -> torch.Tensor:
    """Return a label for each row, which no other row of any rank has."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(len(rows), device=rows.device) + 1_000_000 * rank


def as_it_is(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Return a target that is called itself."""
    return target
