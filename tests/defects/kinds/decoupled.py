"""SimCLR's loss without its positive among the negatives, and without the bias of the negatives."""

import math

import torch
from torch import Tensor

from .ranks import gather, own


def _views(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return each view's logit with its partner, all logits, and which of them are of negatives."""
    views, count = torch.cat([first, second]), len(first)
    logits = views @ views.T / temperature
    places = torch.arange(2 * count, device=first.device) % count
    return torch.cat([logits.diagonal(count), logits.diagonal(-count)]), logits, places[:, None] != places


def decoupled(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    positive, logits, negative = _views(first, second, temperature)
    return (logits.masked_fill(~negative, -torch.inf).logsumexp(1) - positive).mean()


def by_direction(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Each view apart: its negatives are of the other view, and of its own."""
    others = ~torch.eye(len(first), dtype=torch.bool, device=first.device)
    total = 0.0
    for one, other in ((first, second), (second, first)):
        logits = torch.cat([one @ other.T, one @ one.T], 1) / temperature
        negative = logits.masked_fill(~torch.cat([others, others], 1), -torch.inf)
        total = total + (negative.logsumexp(1) - (one * other).sum(1) / temperature).mean()
    return total / 2  # type: ignore[return-value]


def gathered(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Own views look among those of all ranks."""
    views = gather(first), gather(second)
    places = torch.arange(len(views[0]), device=first.device)
    mine = places[own(len(places), len(first))]
    negative = (mine[:, None] != places).repeat(1, 2)
    total = 0.0
    for one, other in ((first, second), (second, first)):
        logits = (one @ torch.cat(views).T / temperature).masked_fill(~negative, -torch.inf)
        total = total + (logits.logsumexp(1) - (one * other).sum(1) / temperature).mean()
    return total / 2  # type: ignore[return-value]


def coupled(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    positive, logits, _ = _views(first, second, temperature)
    itself = torch.eye(len(logits), dtype=torch.bool)
    return (logits.masked_fill(itself, -torch.inf).logsumexp(1) - positive).mean()


def two_log_sum_exps(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    itself = torch.eye(len(first), dtype=torch.bool)
    total = 0.0
    for one, other in ((first, second), (second, first)):
        across = (one @ other.T / temperature).masked_fill(itself, -torch.inf).logsumexp(1)
        within = (one @ one.T / temperature).masked_fill(itself, -torch.inf).logsumexp(1)
        total = total + (across + within - (one * other).sum(1) / temperature).mean()
    return total / 2  # type: ignore[return-value]


def other_view_alone(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    itself = torch.eye(len(first), dtype=torch.bool)
    logits = first @ second.T / temperature
    negative = logits.masked_fill(itself, -torch.inf)
    return (negative.logsumexp(1) + negative.logsumexp(0) - 2 * logits.diagonal()).mean() / 2


def first_view_alone(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    positive, logits, negative = _views(first, second, temperature)
    return (logits.masked_fill(~negative, -torch.inf).logsumexp(1) - positive)[: len(first)].mean()


def counts_itself(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    positive, logits, negative = _views(first, second, temperature)
    kept = negative | torch.eye(len(logits), dtype=torch.bool)
    return (logits.masked_fill(~kept, -torch.inf).logsumexp(1) - positive).mean()


def positive_unscaled(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    positive, logits, negative = _views(first, second, temperature)
    return (logits.masked_fill(~negative, -torch.inf).logsumexp(1) - positive * temperature).mean()


def _parts(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor, int]:
    """Return exponentials of the positives, sums of those of the negatives, and how many these are."""
    positive, logits, negative = _views(first, second, temperature)
    return positive.exp(), (logits.exp() * negative).sum(1), 2 * len(first) - 2


def debiased(first: Tensor, second: Tensor, temperature: float, tau_plus: float) -> Tensor:
    positive, negative, count = _parts(first, second, temperature)
    others = (negative - tau_plus * count * positive) / (1 - tau_plus)
    others = others.clamp(min=count * math.exp(-1 / temperature))
    return -(positive / (positive + others)).log().mean()


def debiased_by_log_sum_exp(first: Tensor, second: Tensor, temperature: float, tau_plus: float) -> Tensor:
    """The loss as log(1 + others / positive), in float32 at least: a square of the positive may underflow."""
    if first.dtype in (torch.bfloat16, torch.float16):
        first, second = first.float(), second.float()
    positive, negative, count = _parts(first, second, temperature)
    mean = (negative / count - tau_plus * positive) / (1 - tau_plus)
    return torch.log1p(count * mean.clamp(min=math.exp(-1 / temperature)) / positive).mean()


def biased(first: Tensor, second: Tensor, temperature: float, tau_plus: float) -> Tensor:
    positive, negative, _ = _parts(first, second, temperature)
    return -(positive / (positive + negative)).log().mean()


def least_without_count(first: Tensor, second: Tensor, temperature: float, tau_plus: float) -> Tensor:
    positive, negative, count = _parts(first, second, temperature)
    others = (negative - tau_plus * count * positive) / (1 - tau_plus)
    return -(positive / (positive + others.clamp(min=math.exp(-1 / temperature)))).log().mean()


def not_divided(first: Tensor, second: Tensor, temperature: float, tau_plus: float) -> Tensor:
    positive, negative, count = _parts(first, second, temperature)
    others = (negative - tau_plus * count * positive).clamp(min=count * math.exp(-1 / temperature))
    return -(positive / (positive + others)).log().mean()


def one_positive_taken(first: Tensor, second: Tensor, temperature: float, tau_plus: float) -> Tensor:
    positive, negative, count = _parts(first, second, temperature)
    others = (negative - tau_plus * positive) / (1 - tau_plus)
    others = others.clamp(min=count * math.exp(-1 / temperature))
    return -(positive / (positive + others)).log().mean()


def share_of_a_tenth(first: Tensor, second: Tensor, temperature: float, tau_plus: float) -> Tensor:
    return debiased(first, second, temperature, 0.1)
