"""Supervised contrastive losses."""

import torch
import torch.distributed as dist
from torch import Tensor

from .ranks import GatherOnce, gather, own


def supcon(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    log = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    return -(torch.where(positive, log, 0).sum(1) / positive.sum(1)).mean()


def labels_in_their_dtype(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return supcon(features, labels.to(features.dtype), temperature)


def by_anchor(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """A loop over anchors, each of which picks what it is compared with."""
    losses = []
    for place in range(len(features)):
        others = torch.arange(len(features), device=features.device) != place
        logits = (features[others] * features[place]).sum(1) / temperature
        log = torch.log_softmax(logits, 0)
        losses.append(-log[labels[others] == labels[place]].mean())
    return torch.stack(losses).mean()


def gathered(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Own rows are compared with those of all ranks."""
    everyone, every_label = gather(features), gather(labels)
    place = own(len(everyone), len(features))
    itself = torch.zeros(len(features), len(everyone), dtype=torch.bool, device=features.device)
    itself[:, place] = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logits = features @ everyone.T / temperature
    logits = logits - logits.detach().masked_fill(itself, -torch.inf).amax(1, keepdim=True)
    total = logits.masked_fill(itself, -torch.inf).exp().sum(1, keepdim=True)
    positive = (labels[:, None] == every_label) & ~itself
    return -((logits - total.log()) * positive).sum(1).div(positive.sum(1)).mean()


def gathered_once(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """As `gathered`, with a gather whose backward has no derivative."""
    everyone = GatherOnce.apply(features) if dist.is_initialized() else features
    every_label = gather(labels)
    itself = torch.zeros(len(features), len(everyone), dtype=torch.bool)
    itself[:, own(len(everyone), len(features))] = torch.eye(len(features), dtype=torch.bool)
    log = (features @ everyone.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    positive = (labels[:, None] == every_label) & ~itself
    return -(torch.where(positive, log, 0).sum(1) / positive.sum(1)).mean()


def largest_with_itself(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    logits = logits - logits.detach().amax(1, keepdim=True)
    others = 1 - torch.eye(len(features), dtype=logits.dtype)
    log = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    positive = (labels[:, None] == labels) * others
    return -((log * positive).sum(1) / positive.sum(1)).mean()


def counts_itself(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    log = torch.log_softmax(logits, 1)
    positive = (labels[:, None] == labels) & ~torch.eye(len(features), dtype=torch.bool)
    return -((log * positive).sum(1) / positive.sum(1)).mean()


def is_its_own_positive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool)
    log = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
    positive = labels[:, None] == labels
    return -((log * positive).sum(1) / positive.sum(1)).mean()


def over_negatives_alone(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool)
    same = labels[:, None] == labels
    negatives = logits.masked_fill(same, -torch.inf).exp().sum(1, keepdim=True) + 1e-8
    positive = same & ~itself
    return -(((logits - negatives.log()) * positive).sum(1) / positive.sum(1)).mean()


def log_of_the_mean(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool)
    log = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    inside = torch.logsumexp(log.masked_fill(~positive, -torch.inf), 1) - positive.sum(1).log()
    return -inside.mean()


def over_all_positives(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool)
    log = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    return -torch.where(positive, log, 0).sum() / positive.sum()


def base_temperature(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return supcon(features, labels, temperature) * (temperature / 0.07)


def epsilon_in_log(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = features @ features.T / temperature
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = 1 - torch.eye(len(features), dtype=logits.dtype)
    log = logits - ((logits.exp() * others).sum(1, keepdim=True) + 1e-4).log()
    positive = (labels[:, None] == labels) * others
    return -((log * positive).sum(1) / positive.sum(1)).mean()


def own_rows_alone(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    gather(features)
    return supcon(features, labels, temperature)


def no_offset(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    everyone, every_label = gather(features), gather(labels)
    itself = torch.eye(len(features), len(everyone), dtype=torch.bool)
    logits = features @ everyone.T / temperature
    log = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
    positive = (labels[:, None] == every_label) & ~itself
    return -(torch.where(positive, log, 0).sum(1) / positive.sum(1).clamp(min=1)).mean()
