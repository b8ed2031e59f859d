"""Losses over cosines and over class labels in plain torch, right ones and defective ones.

The right ones show that the contracts can be met: nothing in `verified_losses` is of their kind.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from verified_losses import gather_features


class InfoNCE:
    """Right: each query's key among all keys."""

    def __init__(self, temperature: float, rank: int = 0, world_size: int = 1, **flags: Any) -> None:
        self.temperature, self.rank, self.world_size = temperature, rank, world_size
        self.flags = {name: flag for name, flag in flags.items() if name != "cache_labels"}

    def gathered(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self.world_size == 1:
            return first, second
        return gather_features(first, second, rank=self.rank, world_size=self.world_size, **self.flags)

    def start(self, total: int, own: int) -> tuple[slice, float]:
        """Return which of all rows are anchors, and what each weighs."""
        if self.world_size == 1 or not self.flags.get("local_loss"):
            return slice(0, total), 1 / total
        # of shape [1]: torch.compile raises for tensors of no dimensions (torch 2.13)
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.world_size)]
        torch.distributed.all_gather(counts, torch.tensor([own]))
        # of all counts: torch.compile drops a collective on a rank that uses nothing of it, and others hang
        before = int(torch.cat(counts)[: self.rank].sum())
        return slice(before, before + own), self.world_size / total

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        everyone, all_keys = self.gathered(queries, keys)
        rows, weight = self.start(len(all_keys), len(queries))
        local = rows.stop - rows.start < len(all_keys)
        anchors = queries if local else everyone
        return self.loss(F.normalize(anchors), F.normalize(all_keys), rows, weight)

    def loss(self, queries: Tensor, keys: Tensor, rows: slice, weight: float) -> Tensor:
        logits = queries @ keys.T / self.temperature
        labels = torch.arange(rows.start, rows.stop)
        return weight * F.cross_entropy(logits, labels, reduction="sum")


class NoTemperature(InfoNCE):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "temperature": 0.07})


class OwnKeysOnly(InfoNCE):
    def gathered(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first, second

    def start(self, total: int, own: int) -> tuple[slice, float]:
        return slice(0, own), 1 / own


class FirstOrderOnly(InfoNCE):
    def loss(self, queries: Tensor, keys: Tensor, rows: slice, weight: float) -> Tensor:
        value = super().loss(queries, keys, rows, weight)
        learns = [features for features in (queries, keys) if features.requires_grad]
        if not learns:
            return value
        slopes = torch.autograd.grad(value, learns, retain_graph=True)
        linear = sum((x * slope).sum() for x, slope in zip(learns, slopes, strict=True))
        return value.detach() + linear - linear.detach()


class NTXent(InfoNCE):
    """Right: each view's partner among all other views."""

    def __call__(self, out0: Tensor, out1: Tensor) -> Tensor:
        everyone = self.gathered(out0, out1)
        total = len(everyone[0])
        rows, weight = self.start(total, len(out0))
        local = rows.stop - rows.start < total
        views = F.normalize(torch.cat(everyone))
        anchors = F.normalize(torch.cat((out0, out1))) if local else views
        here = torch.arange(rows.start, rows.stop)
        return self.pairs(anchors @ views.T / self.temperature, here, total, weight)

    def pairs(self, logits: Tensor, here: Tensor, total: int, weight: float) -> Tensor:
        own, labels = torch.cat((here, total + here)), torch.cat((total + here, here))
        masked = logits.scatter(1, own[:, None], -torch.inf)
        return weight / 2 * F.cross_entropy(masked, labels, reduction="sum")


class CountsItself(NTXent):
    def pairs(self, logits: Tensor, here: Tensor, total: int, weight: float) -> Tensor:
        labels = torch.cat((total + here, here))
        return weight / 2 * F.cross_entropy(logits, labels, reduction="sum")


class OneViewOnly(NTXent):
    def pairs(self, logits: Tensor, here: Tensor, total: int, weight: float) -> Tensor:
        half = len(logits) // 2
        masked = logits[:half].scatter(1, here[:, None], -torch.inf)
        return weight * F.cross_entropy(masked, total + here, reduction="sum")


class Underflows(NTXent):
    def pairs(self, logits: Tensor, here: Tensor, total: int, weight: float) -> Tensor:
        own, labels = torch.cat((here, total + here)), torch.cat((total + here, here))
        probability = logits.scatter(1, own[:, None], -torch.inf).softmax(1).gather(1, labels[:, None])
        return -weight / 2 * (probability + torch.finfo(logits.dtype).tiny).log().sum()


class CrossEntropy(torch.nn.CrossEntropyLoss):
    """Right."""


class EveryLabelCounts(torch.nn.Module):
    """Right, for labels that all count."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return -input.log_softmax(1).gather(1, target[:, None]).mean()


class CountsIgnored(CrossEntropy):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) * (target != self.ignore_index).sum() / len(target)


class OverwritesLogits(CrossEntropy):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = super().forward(input, target)
        with torch.no_grad():
            input.copy_(input.softmax(1))
        return loss
