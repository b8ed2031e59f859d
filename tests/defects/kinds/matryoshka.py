"""InfoNCE of nested prefixes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .ranks import gather, own


def _infonce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    return F.cross_entropy(query @ key.T / temperature, torch.arange(len(query), device=query.device))


def matryoshka(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    return torch.stack([_infonce(query[:, :dim], key[:, :dim], temperature) for dim in dims]).sum()


def by_cosines(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    """Products of prefixes are divided by their norms."""
    total = 0.0
    for dim in dims:
        one, other = query[..., :dim], key[..., :dim]
        cosines = one @ other.T / (one.norm(dim=1)[:, None] * other.norm(dim=1))
        logits = cosines / temperature
        total = total + (logits.logsumexp(1) - logits.diagonal()).mean()
    return total  # type: ignore[return-value]


def gathered(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    """Own queries look among the keys of all ranks."""
    keys = gather(key)
    labels = torch.arange(len(keys), device=query.device)[own(len(keys), len(query))]
    losses = []
    for dim in dims:
        one, other = F.normalize(query[:, :dim]), F.normalize(keys[:, :dim])
        losses.append(F.cross_entropy(one @ other.T / temperature, labels))
    return torch.stack(losses).sum()


def normalized_once(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    query, key = F.normalize(query), F.normalize(key)
    places = torch.arange(len(query))
    return torch.stack(
        [F.cross_entropy(query[:, :dim] @ key[:, :dim].T / temperature, places) for dim in dims]
    ).sum()


def mean_over_prefixes(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    return matryoshka(query, key, temperature, dims) / len(dims)


def suffixes(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    return torch.stack([_infonce(query[:, -dim:], key[:, -dim:], temperature) for dim in dims]).sum()


def longest_alone(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    return _infonce(query[:, : max(dims)], key[:, : max(dims)], temperature)


def one_too_short(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    return matryoshka(query, key, temperature, [max(dim - 1, 1) for dim in dims])


def key_detached(query: Tensor, key: Tensor, temperature: float, dims: Sequence[int]) -> Tensor:
    return matryoshka(query, key.detach(), temperature, dims)
