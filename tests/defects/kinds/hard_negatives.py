"""InfoNCE with negatives of its own for every query."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ranks import gather, own


def hard_negatives(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    passages = torch.cat([positive, negatives.flatten(0, 1)])
    return F.cross_entropy(query @ passages.T / temperature, torch.arange(len(query), device=query.device))


def interleaved(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Each positive stands before its negatives, and labels count by groups."""
    groups = torch.cat([positive[:, None], negatives], dim=1)
    logits = torch.einsum("nd,mkd->nmk", query, groups).flatten(1) / temperature
    labels = torch.arange(len(query), device=query.device) * groups.shape[1]
    return F.cross_entropy(logits, labels)


def gathered(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Own queries look among the passages of all ranks."""
    positives = gather(positive)
    passages = torch.cat([positives, gather(negatives).flatten(0, 1)])
    labels = torch.arange(len(positives), device=query.device)[own(len(positives), len(query))]
    return F.cross_entropy(query @ passages.T / temperature, labels)


def own_negatives_alone(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    hard = torch.einsum("nd,nkd->nk", query, negatives)
    logits = torch.cat([query @ positive.T, hard], 1) / temperature
    return F.cross_entropy(logits, torch.arange(len(query)))


def labels_hit_negatives(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    passages = torch.cat([positive[:, None], negatives], 1).flatten(0, 1)
    return F.cross_entropy(query @ passages.T / temperature, torch.arange(len(query)))


def negatives_unscaled(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([query @ positive.T / temperature, query @ negatives.flatten(0, 1).T], 1)
    return F.cross_entropy(logits, torch.arange(len(query)))


def negatives_detached(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    return hard_negatives(query, positive, negatives.detach(), temperature)


def first_negative_alone(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    return hard_negatives(query, positive, negatives[:, :1], temperature)


def sum_over_queries(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    return hard_negatives(query, positive, negatives, temperature) * len(query)
