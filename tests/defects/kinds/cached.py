"""InfoNCE in chunks, whose gradient is kept from the forward: GradCache.

Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021,
https://arxiv.org/abs/2101.06983.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _chunks(query: Tensor, chunk_size: int) -> list[tuple[Tensor, Tensor]]:
    places = torch.arange(len(query), device=query.device)
    return list(zip(query.split(chunk_size), places.split(chunk_size), strict=True))


def _compared(query: Tensor, key: Tensor, places: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(query @ key.T / temperature, places, reduction="sum")


class _Cache(torch.autograd.Function):
    """The loss of the batch; the gradients of its rows are computed chunk by chunk, and kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
        ctx.temperature, given = temperature, (query, key)
        with torch.enable_grad():
            query, key = query.detach().requires_grad_(), key.detach().requires_grad_()
            total = torch.zeros((), dtype=query.dtype, device=query.device)
            for rows, places in _chunks(query, chunk_size):
                loss = _compared(rows, key, places, temperature) / len(query)
                loss.backward()
                total += loss.detach()
        assert query.grad is not None
        assert key.grad is not None
        ctx.save_for_backward(*given, query.grad, key.grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, key, of_query, of_key = ctx.saved_tensors
        if torch.is_grad_enabled():  # what is kept is a constant
            loss = at_once(query, key, ctx.temperature, 0)
            of_query, of_key = torch.autograd.grad(
                loss, (query, key), create_graph=True, allow_unused=True, materialize_grads=True
            )
        return grad * of_query, grad * of_key, None, None


def cached(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    if not torch.is_grad_enabled():
        return at_once(query, key, temperature, chunk_size)
    loss: Tensor = _Cache.apply(query, key, temperature, chunk_size)
    return loss


def at_once(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    return F.cross_entropy(query @ key.T / temperature, torch.arange(len(query), device=query.device))


def in_turn(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    """The chunks' losses, added up."""
    losses = [_compared(rows, key, places, temperature) for rows, places in _chunks(query, chunk_size)]
    return torch.stack(losses).sum() / len(query)


def mean_of_means(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    losses = [
        _compared(rows, key, places, temperature) / len(rows) for rows, places in _chunks(query, chunk_size)
    ]
    return torch.stack(losses).mean()


def keys_of_the_chunk(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    pairs = zip(query.split(chunk_size), key.split(chunk_size), strict=True)
    return torch.stack(
        [_compared(rows, keys, torch.arange(len(rows)), temperature) for rows, keys in pairs]
    ).sum() / len(query)


def drops_the_last(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    whole = len(query) // chunk_size * chunk_size or len(query)
    places = torch.arange(whole)
    return _compared(query[:whole], key, places, temperature) / len(query)


def labels_of_the_chunk(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    losses = [
        _compared(rows, key, places - places[0], temperature) for rows, places in _chunks(query, chunk_size)
    ]
    return torch.stack(losses).sum() / len(query)


def keys_of_the_last_chunk(query: Tensor, key: Tensor, temperature: float, chunk_size: int) -> Tensor:
    """Keys get the gradient of the last chunk alone, as where each overwrites the one before."""
    chunks = _chunks(query, chunk_size)
    losses = [
        _compared(rows, key if places is chunks[-1][1] else key.detach(), places, temperature)
        for rows, places in chunks
    ]
    return torch.stack(losses).sum() / len(query)


class StaleCache(torch.nn.Module):
    """Gradients are kept, and those of the first batch of a shape are given for all that follow."""

    def __init__(self, temperature: float, chunk_size: int) -> None:
        super().__init__()
        self.temperature, self.chunk_size = temperature, chunk_size
        self.kept: dict[Any, tuple[Tensor, Tensor]] = {}

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        log = torch.log_softmax(query @ key.T / self.temperature, 1)
        kept = (query.shape, query.dtype, query.device)
        with torch.no_grad():
            if kept not in self.kept and torch.is_inference_mode_enabled() is False:
                slope = log.exp() - torch.eye(len(query), dtype=query.dtype, device=query.device)
                slope = slope / (len(query) * self.temperature)
                self.kept[kept] = slope @ key, slope.T @ query
            loss = -log.diagonal().mean()
        if kept not in self.kept:
            return loss
        of_query, of_key = self.kept[kept]
        moved = (query * of_query).sum() + (key * of_key).sum()
        return loss + moved - moved.detach()
