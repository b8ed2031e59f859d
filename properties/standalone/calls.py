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
    return value if value.shape == like.shape else value.reshape(like.shape)


def row_labels(rows: torch.Tensor) -> torch.Tensor:
    """Return a label for each row, which no other row of any rank has."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(len(rows), device=rows.device) + 1_000_000 * rank


def as_it_is(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Return a target that is called itself."""
    return target
