"""Right losses, and wrong ones that derive from them, for the contracts beside this file."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn import functional as F


def several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def counts_of(rows: int) -> list[int]:
    found = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
    dist.all_gather(found, torch.tensor([rows]))
    return [int(one) for one in found]


class _Gather(Function):
    @staticmethod
    def forward(ctx, rows):
        ctx.counts = counts_of(len(rows))
        most = max(ctx.counts)
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = sum(ctx.counts[: dist.get_rank()])
        return gradient[start : start + ctx.counts[dist.get_rank()]]


def gather(rows: Tensor) -> Tensor:
    return _Gather.apply(rows) if several() else rows


def share(rows: int) -> float:
    """W n / N: what the mean over a rank's rows counts."""
    if not several():
        return 1.0
    counts = counts_of(rows)
    return len(counts) * rows / sum(counts)


class SupCon(nn.Module):
    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def gather(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return gather(features), gather(labels)

    def positives(self, labels: Tensor) -> Tensor:
        return (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)

    def log_softmax(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(1)

    def logits(self, x: Tensor) -> Tensor:
        return x @ x.T / self.temperature

    def mean(self, of_positives: Tensor, counts: Tensor) -> Tensor:
        return -(of_positives / counts.clamp(min=1)).mean()

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        x, labels = self.gather(features, targets)
        own = torch.eye(len(x), dtype=torch.bool)
        log_p = self.log_softmax(self.logits(x).masked_fill(own, -1e4))
        positives = self.positives(labels)
        return self.mean(torch.where(positives, log_p, 0).sum(1), positives.sum(1))


class SupConByHand(SupCon):
    """Another formulation: the log-sum-exp by hand, rows normalised again, sums from the back."""

    def logits(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        return (x / self.temperature) @ x.T

    def log_softmax(self, logits: Tensor) -> Tensor:
        top = logits.detach().amax(1, keepdim=True)
        return logits - (top + (logits - top).flip(1).exp().sum(1, keepdim=True).log())

    def mean(self, of_positives: Tensor, counts: Tensor) -> Tensor:
        return -(of_positives.flip(0) / counts.clamp(min=1).flip(0)).sum() / len(counts)


class SupConLocal(SupCon):
    """Each rank returns its own rows' share."""

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        x, labels = self.gather(features, targets)
        start = sum(counts_of(len(features))[: dist.get_rank()]) if several() else 0
        own = start + torch.arange(len(features))
        others = torch.ones(len(own), len(x), dtype=torch.bool)
        others[torch.arange(len(own)), own] = False
        log_p = (features @ x.T / self.temperature).masked_fill(~others, -1e4).log_softmax(1)
        positives = (targets[:, None] == labels) & others
        of_positives = torch.where(positives, log_p, 0).sum(1)
        return self.mean(of_positives, positives.sum(1)) * share(len(features))


class OffByOneMask(SupCon):
    def positives(self, labels: Tensor) -> Tensor:
        return super().positives(labels).roll(1, 1)


class OwnCounts(SupCon):
    def positives(self, labels: Tensor) -> Tensor:
        return labels[:, None] == labels


class MeanOverPositives(SupCon):
    """The mean over the rows that have a positive, instead of all."""

    def mean(self, of_positives: Tensor, counts: Tensor) -> Tensor:
        return super().mean(of_positives, counts) * len(counts) / (counts > 0).sum().clamp(min=1)


class LabelsNotGathered(SupCon):
    def gather(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = gather(features)
        return x, F.pad(labels, (0, len(x) - len(labels)), value=-1)


class GathersConstants(SupCon):
    """The gather carries no gradient to other ranks' losses."""

    def gather(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x, labels = super().gather(features, labels)
        if several():
            start = sum(counts_of(len(features))[: dist.get_rank()])
            x = torch.cat([x[:start].detach(), features, x[start + len(features) :].detach()])
        return x, labels


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    near, far = (anchor - positive).pow(2).sum(1), (anchor - negative).pow(2).sum(1)
    return (near - far + margin).relu().mean() * share(len(anchor))


def triplet_by_products(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Another formulation: one sum over both distances."""
    both = (anchor - positive) ** 2 - (anchor - negative) ** 2
    return F.relu(both.flip(1).sum(1) + margin).sum() / len(anchor) * share(len(anchor))


def triplet_of_distances(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    near, far = (anchor - positive).norm(dim=1), (anchor - negative).norm(dim=1)
    return (near - far + margin).relu().mean() * share(len(anchor))


def triplet_local_mean(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Each rank divides by the rows that violate the margin."""
    near, far = (anchor - positive).pow(2).sum(1), (anchor - negative).pow(2).sum(1)
    violated = (near - far + margin).relu()
    return violated.sum() / (violated > 0).sum().clamp(min=1)


class HardNegatives(nn.Module):
    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
        keys = gather(key)
        start = sum(counts_of(len(query))[: dist.get_rank()]) if several() else 0
        own = (query[:, None] * negatives).sum(2)
        logits = torch.cat([query @ keys.T, own], dim=1)
        return F.cross_entropy(self.scaled(logits, query), start + torch.arange(len(query))) * share(
            len(query)
        )

    def scaled(self, logits: Tensor, query: Tensor) -> Tensor:
        return logits / self.temperature


class NegativesNotScaled(HardNegatives):
    def scaled(self, logits: Tensor, query: Tensor) -> Tensor:
        rows = gather(query).shape[0]
        return torch.cat([logits[:, :rows] / self.temperature, logits[:, rows:]], dim=1)


def moco_loss(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)) * share(len(q))


class SoftTargets(nn.Module):
    def __init__(self, eps: float = 0.1) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, targets, label_smoothing=self.eps)
        return loss * share(len(logits))


def multi_positive_loss(first: Tensor, second: Tensor, pairs: Tensor, scale: float) -> Tensor:
    log_p = (scale * first @ gather(second).T).log_softmax(1)
    return -(log_p * pairs / pairs.sum(1, keepdim=True)).sum() / len(first) * share(len(first))


def own_logits(query: Tensor, key: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the logits of this rank's queries among all keys, and where each finds its own."""
    start = sum(counts_of(len(query))[: dist.get_rank()]) if several() else 0
    return query @ gather(key).T / temperature, start + torch.arange(len(query))


def focal_loss(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    loss = F.cross_entropy(*own_logits(query, key, temperature), reduction="none")
    return ((1 - torch.exp(-loss)).detach() ** 2 * loss).mean() * share(len(query))


def focal_by_softmax(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """The weight from the softmax, without a graph."""
    logits, own = own_logits(query, key, temperature)
    with torch.no_grad():
        weight = 1 - logits.softmax(1).gather(1, own[:, None])[:, 0]
    loss = logits.logsumexp(1) - logits.gather(1, own[:, None])[:, 0]
    return (weight * weight * loss).mean() * share(len(query))


def focal_not_detached(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    loss = F.cross_entropy(*own_logits(query, key, temperature), reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


def focal_all_detached(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """The loss is the constant, and its weight is not."""
    loss = F.cross_entropy(*own_logits(query, key, temperature), reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss.detach()).mean()
