"""Contrastive losses of pairs that share labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ranks import gather


def multi_positive(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    positive = (labels[:, None] == labels).to(image.dtype)
    targets = positive / positive.sum(1, keepdim=True)
    logits = image @ text.T / temperature
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def by_log_sum_exp(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The targets' weights sum up to 1, so log-sum-exp stands alone."""
    logits = (image / temperature) @ text.T
    positive = labels[:, None] == labels
    mean = torch.where(positive, logits, 0).sum(1) / positive.sum(1)
    other = torch.where(positive, logits, 0).sum(0) / positive.sum(0)
    return (logits.logsumexp(1) - mean + logits.logsumexp(0) - other).mean() / 2


def gathered(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Own rows are compared with those of all ranks, in both directions."""
    targets = (labels[:, None] == gather(labels)).to(image.dtype)
    targets = targets / targets.sum(1, keepdim=True)
    of_images = F.cross_entropy(image @ gather(text).T / temperature, targets)
    return (of_images + F.cross_entropy(text @ gather(image).T / temperature, targets)) / 2


def not_normalized(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    targets = (labels[:, None] == labels).to(image.dtype)
    logits = image @ text.T / temperature
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def one_direction(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    positive = (labels[:, None] == labels).to(image.dtype)
    return F.cross_entropy(image @ text.T / temperature, positive / positive.sum(1, keepdim=True))


def diagonal_alone(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    logits = image @ text.T / temperature
    places = torch.arange(len(image))
    return (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2


def softmax_of_the_mask(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    targets = (labels[:, None] == labels).to(image.dtype).softmax(1)
    logits = image @ text.T / temperature
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def temperature_once(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    positive = (labels[:, None] == labels).to(image.dtype)
    targets = positive / positive.sum(1, keepdim=True)
    logits = image @ text.T
    return (F.cross_entropy(logits / temperature, targets) + F.cross_entropy(logits.T, targets)) / 2


def mean_over_pairs(image: Tensor, text: Tensor, labels: Tensor, temperature: float) -> Tensor:
    positive = labels[:, None] == labels
    logits = image @ text.T / temperature
    both = torch.log_softmax(logits, 1) + torch.log_softmax(logits, 0)
    return -torch.where(positive, both, 0).sum() / positive.sum() / 2
