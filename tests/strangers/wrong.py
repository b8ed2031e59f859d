"""Forty defective losses, each in a form of its own; `index` says what is wrong with each."""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .right import AllGather, is_distributed

# CLIP.


class EveryRankFromZero(nn.Module):
    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        images, texts = image_features, text_features
        if self.world_size > 1:
            images, texts = AllGather.apply(image_features), AllGather.apply(text_features)
        targets = torch.arange(len(image_features), device=image_features.device)
        a = F.cross_entropy(logit_scale * image_features @ texts.T, targets)
        b = F.cross_entropy(logit_scale * text_features @ images.T, targets)
        return (a + b) / 2


def one_direction_unscaled(image_embeds: Tensor, text_embeds: Tensor, temperature: float) -> Tensor:
    similarity = image_embeds @ text_embeds.T
    targets = torch.arange(len(similarity))
    return (F.cross_entropy(similarity / temperature, targets) + F.cross_entropy(similarity.T, targets)) / 2


class SameDirectionTwice(nn.Module):
    def forward(self, img: Tensor, txt: Tensor, logit_scale: Tensor) -> Tensor:
        logits = logit_scale * img @ txt.T
        i2t = F.log_softmax(logits, dim=0).diag().mean()
        t2i = F.log_softmax(logits.T, dim=1).diag().mean()
        return -(i2t + t2i) / 2


class GathersConstants(nn.Module):
    """Its own rows are not put back."""

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        start, images, texts = 0, image_embeds, text_embeds
        if is_distributed():
            start = dist.get_rank() * len(image_embeds)
            images, texts = self.collect(image_embeds), self.collect(text_embeds)
        labels = torch.arange(len(image_embeds)) + start
        per_image = F.cross_entropy(logit_scale * image_embeds @ texts.T, labels)
        return (per_image + F.cross_entropy(logit_scale * text_embeds @ images.T, labels)) / 2

    @torch.no_grad()
    def collect(self, x: Tensor) -> Tensor:
        out = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(out, x.contiguous())
        return torch.cat(out)


class ScalesTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        s = self.logit_scale.exp()
        image = F.normalize(image_features, dim=-1) * s
        logits = s * image @ F.normalize(text_features, dim=-1).T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


def texts_are_constants(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    at = torch.arange(len(image))
    i2t = F.cross_entropy(scale * image @ text.detach().T, at)
    t2i = F.cross_entropy(scale * text @ image.T, at)
    return (i2t + t2i) / 2


class DividesByRanksToo(nn.Module):
    """The gather's backward sums, DDP averages, and the loss is divided once more."""

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        world = 1
        if is_distributed():
            world = dist.get_world_size()
            image_features, text_features = AllGather.apply(image_features), AllGather.apply(text_features)
        logits = logit_scale * image_features @ text_features.T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2 / world


class ScaleWithoutGradient(nn.Module):
    def __init__(self, init: float = 2.6592) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(init))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        scale = torch.clamp(self.logit_scale.data.exp(), max=100.0)
        logits = scale * F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class LogarithmAsScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        logits = self.log_logit_scale * image_embeds @ text_embeds.T
        at = torch.arange(len(logits))
        return {"loss": (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2}


class EpsilonUnderRoot(nn.Module):
    def forward(self, v: Tensor, t: Tensor, logit_scale: Tensor) -> Tensor:
        v = v * torch.rsqrt(v.pow(2).sum(-1, keepdim=True) + 1e-6)
        t = t * torch.rsqrt(t.pow(2).sum(-1, keepdim=True) + 1e-6)
        logits = logit_scale * v @ t.T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class DropsOut(nn.Module):
    """F.dropout drops in evaluation as well."""

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        image_features = F.dropout(image_features, p=0.05)
        logits = logit_scale * image_features @ text_features.T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class NormalizesInPlace(nn.Module):
    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        for x in (image_features, text_features):
            x.data.div_(x.data.norm(dim=-1, keepdim=True))
        logits = logit_scale * image_features @ text_features.T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


def image_to_text_alone(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric, it says."""
    logits_per_image = logit_scale * image_features @ text_features.t()
    return F.cross_entropy(logits_per_image, torch.arange(len(logits_per_image)))


class OwnRowsFirst(nn.Module):
    """Its own rows come first, and the labels are those of the order of ranks."""

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        n, rank = len(image_features), 0
        images, texts = image_features, text_features
        if is_distributed():
            rank = dist.get_rank()
            images, texts = self.everyone(image_features), self.everyone(text_features)
        at = torch.arange(n) + rank * n
        per_image, per_text = logit_scale * image_features @ texts.T, logit_scale * text_features @ images.T
        return (F.cross_entropy(per_image, at) + F.cross_entropy(per_text, at)) / 2

    def everyone(self, x: Tensor) -> Tensor:
        parts = list(AllGather.apply(x).chunk(dist.get_world_size()))
        return torch.cat([parts.pop(dist.get_rank()), *parts])


def normalizes_columns(img_emb: Tensor, txt_emb: Tensor, logit_scale: Tensor) -> Tensor:
    img_emb, txt_emb = F.normalize(img_emb, dim=0), F.normalize(txt_emb, dim=0)
    logits = logit_scale * img_emb @ txt_emb.T
    at = torch.arange(len(logits))
    return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class _OwnSlice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.n = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient[dist.get_rank() * ctx.n :][: ctx.n]


class KeepsOwnGradient(nn.Module):
    """Backward of the gather takes this rank's part of this rank's gradient."""

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        n, rank, images, texts = len(image_features), 0, image_features, text_features
        if is_distributed():
            rank, images, texts = dist.get_rank(), _OwnSlice.apply(images), _OwnSlice.apply(texts)
        at = torch.arange(n) + rank * n
        per_image, per_text = logit_scale * image_features @ texts.T, logit_scale * text_features @ images.T
        return (F.cross_entropy(per_image, at) + F.cross_entropy(per_text, at)) / 2


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        rows, columns = logits.log_softmax(1), logits.log_softmax(0)
        ctx.save_for_backward(rows, columns)
        return -(rows.diagonal() + columns.diagonal()).mean() / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        rows, columns = ctx.saved_tensors
        n = len(rows)
        return (rows.exp() + columns.exp() - 2 * torch.eye(n, dtype=rows.dtype)) / (2 * n)


def incoming_gradient_forgotten(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    return _Symmetric.apply(logit_scale * image @ text.T)


def exponentials_as_they_are(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    e = torch.exp(logit_scale * image_embeds @ text_embeds.T)
    i2t = -torch.log(e.diagonal() / e.sum(dim=1))
    t2i = -torch.log(e.diagonal() / e.sum(dim=0))
    return ((i2t + t2i) / 2).mean()


class Smoothes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, img_features: Tensor, txt_features: Tensor, scale: Tensor) -> Tensor:
        logits = scale * img_features @ txt_features.T
        at = torch.arange(len(logits))
        return (self.criterion(logits, at) + self.criterion(logits.T, at)) / 2


class RunningMean(nn.Module):
    """Divides by a running mean of its own losses, as a balancer of several losses does."""

    mean: Tensor

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.ones([]))

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        logits = logit_scale * image_features @ text_features.T
        at = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2
        loss = loss / self.mean
        self.mean = self.momentum * self.mean + (1 - self.momentum) * loss.detach()
        return loss


class LastChunkDropped(nn.Module):
    def __init__(self, chunk: int = 4) -> None:
        super().__init__()
        self.chunk = chunk

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        n, c = len(image_features), min(self.chunk, len(image_features))
        losses = []
        for a, b in ((image_features, text_features), (text_features, image_features)):
            for k in range(n // c):
                logits = logit_scale * a[k * c : (k + 1) * c] @ b.T
                losses.append(F.cross_entropy(logits, torch.arange(k * c, (k + 1) * c), reduction="sum"))
        return torch.stack(losses).sum() / (2 * n)


def not_transposed(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    logits = logit_scale * image_features @ text_features.T
    at = torch.arange(len(logits))
    mean = F.cross_entropy(logits, at) + F.cross_entropy(logits, at)
    return mean / 2


# SigLIP.


class SignsSwapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t_prime = nn.Parameter(torch.tensor(10.0).log())
        self.b = nn.Parameter(torch.tensor(-10.0))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        x, y = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
        logits = self.t_prime.exp() * x @ y.T + self.b
        labels = torch.ones_like(logits) - 2 * torch.eye(len(logits), dtype=logits.dtype)
        return -F.logsigmoid(labels * logits).sum() / len(logits)


class BiasForgotten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, img_emb: Tensor, txt_emb: Tensor) -> Tensor:
        x, y = F.normalize(img_emb, dim=-1), F.normalize(txt_emb, dim=-1)
        logits = self.logit_scale.exp() * x @ y.T
        target = torch.eye(len(logits), dtype=logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()


class TextsOfOneRank(nn.Module):
    """All texts are gathered; the positives of rank 0's place are taken on every rank."""

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
    ) -> Tensor:
        if is_distributed():
            text_features = AllGather.apply(text_features)
        logits = logit_scale * image_features @ text_features.T + logit_bias
        labels = 2 * torch.eye(*logits.shape, dtype=logits.dtype) - 1
        return -F.logsigmoid(labels * logits).sum() / len(image_features)


def sigmoid_of_mean(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    logits = logit_scale * image_features @ text_features.T + logit_bias
    target = torch.eye(len(logits), dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target)


class AccumulatesInHalf(nn.Module):
    """Sums up image after image, in the precision of the features."""

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
    ) -> Tensor:
        total = image_features.new_zeros(())
        for i, image in enumerate(image_features):
            logits = logit_scale * (text_features @ image) + logit_bias
            sign = torch.full_like(logits, -1.0)
            sign[i] = 1.0
            total = total - F.logsigmoid(sign * logits).sum()
        return total / len(image_features)


# CoCa.


class MeanOverPads(nn.Module):
    def __init__(self, pad_id: int = 0) -> None:
        super().__init__()
        self.pad_id = pad_id

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sim = logit_scale * image_features @ text_features.T
        at = torch.arange(len(sim))
        contrastive = (F.cross_entropy(sim, at) + F.cross_entropy(sim.T, at)) / 2
        each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=self.pad_id, reduction="none")
        return contrastive, each.mean()


class CaptionByCaption(nn.Module):
    """The mean of captions' means, which weighs the tokens of short captions more."""

    def __init__(self, pad_id: int = 0) -> None:
        super().__init__()
        self.pad_id = pad_id

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sim = logit_scale * image_features @ text_features.T
        at = torch.arange(len(sim))
        contrastive = (F.cross_entropy(sim, at) + F.cross_entropy(sim.T, at)) / 2
        keep = (labels != self.pad_id).to(logits.dtype)
        each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=self.pad_id, reduction="none")
        return contrastive, ((each * keep).sum(1) / keep.sum(1).clamp(min=1)).mean()


# Distillation.


class DivergenceForCrossEntropy(nn.Module):
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        s = logit_scale * image_features @ text_features.T
        t = (dist_logit_scale * dist_image_features @ dist_text_features.T).detach()
        at = torch.arange(len(s))
        hard = (F.cross_entropy(s, at) + F.cross_entropy(s.T, at)) / 2
        soft = [
            F.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="batchmean") for a, b in ((s, t), (s.T, t.T))
        ]
        return hard, (soft[0] + soft[1]) / 2


class TeacherLearns(nn.Module):
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        s = logit_scale * image_features @ text_features.T
        t = dist_logit_scale * dist_image_features @ dist_text_features.T
        at = torch.arange(len(s))
        hard = (F.cross_entropy(s, at) + F.cross_entropy(s.T, at)) / 2
        return hard, (F.cross_entropy(s, t.softmax(1)) + F.cross_entropy(s.T, t.T.softmax(1))) / 2


# InfoNCE.


def wrong_axis(queries: Tensor, keys: Tensor, temperature: float = 0.1) -> Tensor:
    sim = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / temperature
    return -F.log_softmax(sim, dim=0).diagonal().mean()


class PositiveTwice(nn.Module):
    """The positive stands among the negatives too."""

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        pos = (q * k).sum(1, keepdim=True)
        logits = torch.cat([pos, q @ k.T], 1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def times_temperature(query: Tensor, positive: Tensor, temperature: float = 0.05) -> Tensor:
    sim = F.cosine_similarity(query[:, None], positive[None], dim=-1) * temperature
    return F.cross_entropy(sim, torch.arange(len(sim)))


class EpsilonInLogarithm(nn.Module):
    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, anchor: Tensor, positive: Tensor) -> Tensor:
        sim = F.normalize(anchor, dim=-1) @ F.normalize(positive, dim=-1).T / self.temperature
        return -torch.log(sim.softmax(-1).diagonal() + 1e-6).mean()


# SimCLR.


class PartnersOfFirstBatch(nn.Module):
    """Partners and mask are kept of the first batch, and cut to a smaller one."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.partner: Tensor | None = None

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        z = F.normalize(torch.cat([z_i, z_j]), dim=1)
        if self.partner is None or len(self.partner) < len(z):
            self.partner = torch.arange(len(z)).roll(len(z_i))
        sim = (z @ z.T / self.temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
        return F.cross_entropy(sim, self.partner[: len(z)] % len(z))


def mask_is_off_by_one(z: Tensor, temperature: float = 0.5) -> Tensor:
    z = F.normalize(z, dim=-1)
    n = len(z) // 2
    sim = z @ z.T / temperature
    mask = torch.eye(len(z), dtype=torch.bool).roll(1, 0)
    partner = torch.arange(len(z)).roll(n)
    mask[torch.arange(len(z)), partner] = False
    return F.cross_entropy(sim.masked_fill(mask, -math.inf), partner)


class ComparesWithItself(nn.Module):
    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        z = F.normalize(torch.cat([z1, z2]), dim=-1)
        return F.cross_entropy(z @ z.T / self.temperature, torch.arange(len(z)).roll(len(z1)))


class MaskedByTen(nn.Module):
    """Ten is taken off the similarity with itself: too little where the temperature is low."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, out_1: Tensor, out_2: Tensor) -> Tensor:
        z = F.normalize(torch.cat([out_1, out_2]), dim=-1)
        sim = z @ z.T / self.temperature - 10 * torch.eye(len(z), dtype=z.dtype)
        return F.cross_entropy(sim, torch.arange(len(z)).roll(len(out_1)))


# Cross-entropy.


def ignored_labels_count(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    each = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return each.sum() / labels.numel()
