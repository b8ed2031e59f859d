"""InfoNCE against a queue."""

import torch
import torch.nn.functional as F
from torch import Tensor


def moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    own = torch.einsum("nd,nd->n", query, key)[:, None]
    logits = torch.cat([own, query @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def by_log_sum_exp(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The key stands last."""
    own = (query * key).sum(1, keepdim=True) / temperature
    logits = torch.cat([query @ queue.T / temperature, own], 1)
    return (logits.logsumexp(1) - own[:, 0]).mean()


def label_is_the_last(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.full([len(query)], len(queue)))


def queue_unscaled(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([(query * key).sum(1, keepdim=True) / temperature, query @ queue.T], 1)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def mean_similarity(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([(query * key).mean(1, keepdim=True), query @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def without_its_key(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    own = (query * key).sum(1) / temperature
    return ((query @ queue.T / temperature).logsumexp(1) - own).mean()


def keys_of_the_batch_too(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = query @ torch.cat([key, queue]).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query)))


def newest_left_out(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    return moco(query, key, queue[:-1], temperature)
