"""Losses whose form was once refused or misread, one a kind."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from verified_losses.properties import contract, ids, positive, rows, shared


class Configured(nn.Module):
    """Constructed by a class method; its tensors default to None, as those of transformers' models."""

    def __init__(self, config: dict[str, float]) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(config["init"]))

    @classmethod
    def from_config(cls, config: dict[str, float] | None = None) -> "Configured":
        return cls(config or {"init": 2.6592})

    def forward(self, image_embeds: Tensor | None = None, text_embeds: Tensor | None = None) -> Any:
        assert image_embeds is not None
        assert text_embeds is not None
        logits = self.logit_scale.exp() * image_embeds @ text_embeds.T
        at = torch.arange(len(logits))
        return {"loss": (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2}


def all_default(logits_per_image: Tensor | None = None, logits_per_text: Tensor | None = None) -> Tensor:
    assert logits_per_image is not None
    assert logits_per_text is not None
    at = torch.arange(len(logits_per_image))
    return (F.cross_entropy(logits_per_image, at) + F.cross_entropy(logits_per_text, at)) / 2


def labels_last(image_feats: Tensor, text_feats: Tensor, tau: float, targets: Tensor) -> Tensor:
    """UniCL, with its temperature before its labels."""
    same = (targets[None] == targets[:, None]).to(image_feats.dtype)
    share = same / same.sum(1, keepdim=True)
    logits = image_feats @ text_feats.T / tau
    rows, columns = logits.log_softmax(1), logits.T.log_softmax(1)
    return -((share * rows).sum(1) + (share * columns).sum(1)).mean() / 2


class Queue(nn.Module):
    """MoCo's, with the names of its sizes."""

    queue: Tensor
    pointer: Tensor

    def __init__(self, dim: int = 128, K: int = 65536, T: float = 0.07) -> None:
        super().__init__()
        self.T, self.K = T, K
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        k = k.detach()
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone()], 1) / self.T
        with torch.no_grad():
            at = (int(self.pointer) + torch.arange(len(k))) % self.K
            self.queue[:, at] = k.T.to(self.queue.dtype)
            self.pointer[0] = (int(self.pointer) + len(k)) % self.K
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


class NewestFirst(Queue):
    """Its newest keys come first, where MoCo's pointer says which are the oldest."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        logits = torch.cat([(q * k.detach()).sum(1, keepdim=True), q @ self.queue], 1) / self.T
        self.queue = torch.cat([k.detach().T, self.queue], 1)[:, : self.K]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


class DropsNewest(NewestFirst):
    """Wrong: its newest keys are put beside the oldest, and are the first to go."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        logits = torch.cat([(q * k.detach()).sum(1, keepdim=True), q @ self.queue], 1) / self.T
        self.queue = torch.cat([self.queue[:, : -len(k)], k.detach().T], 1)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


class Captions(nn.Module):
    """Masks its padding after the cross-entropy: it must be in the vocabulary. The scale comes last."""

    def __init__(self, pad_token_id: int = 0) -> None:
        super().__init__()
        self.pad = pad_token_id

    def forward(
        self, img_feat: Tensor, txt_feat: Tensor, cap_logits: Tensor, cap_labels: Tensor, temp_scale: Tensor
    ) -> dict[str, Tensor]:
        sim = temp_scale * img_feat @ txt_feat.T
        at = torch.arange(len(sim))
        each = F.cross_entropy(cap_logits.transpose(1, 2), cap_labels, reduction="none")
        keep = (cap_labels != self.pad).to(each.dtype)
        return {
            "contrastive": (F.cross_entropy(sim, at) + F.cross_entropy(sim.T, at)) / 2,
            "caption": (each * keep).sum() / keep.sum().clamp(min=1),
        }


class HeadInChunks(nn.Module):
    """A class for linear cross-entropy, with names of its own."""

    def __init__(self, ignore_index: int = -100, tokens: int = 512) -> None:
        super().__init__()
        self.ignore_index, self.tokens = ignore_index, tokens

    def forward(self, hidden_states: Tensor, lm_head_weight: Tensor, labels: Tensor) -> Tensor:
        total = sum(
            F.cross_entropy(h @ lm_head_weight.T, y, ignore_index=self.ignore_index, reduction="sum")
            for h, y in zip(hidden_states.split(self.tokens), labels.split(self.tokens), strict=True)
        )
        return total / (labels != self.ignore_index).sum()  # type: ignore[return-value]


def mean_of_chunks(h: Tensor, w: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Wrong: the mean of the means of two tokens each."""
    parts = [
        F.cross_entropy(one @ w.T, y, ignore_index=ignore_index)
        for one, y in zip(h.split(2), target.split(2), strict=True)
        if (y != ignore_index).any()
    ]
    return torch.stack(parts).mean()


class OwnRowsCarryAll(nn.Module):
    """Others' rows are constants; the gradient of its own is multiplied by the number of ranks."""

    def __init__(self, tau: float = 0.05) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, queries: Tensor, passages: Tensor) -> Tensor:
        world = dist.get_world_size() if dist.is_initialized() else 1
        q, p = (self.everyone(F.normalize(one, dim=-1), world) for one in (queries, passages))
        logits = q @ p.T / self.tau
        loss = F.cross_entropy(logits, torch.arange(len(logits)))
        return loss.detach() + world * (loss - loss.detach())

    def everyone(self, rows: Tensor, world: int) -> Tensor:
        if world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[dist.get_rank()] = rows
        return torch.cat(parts)


def stale_maximum(u: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Wrong beyond 300 rows: a sum is not rescaled where the maximum rises."""

    def lse(q: Tensor, k: Tensor) -> Tensor:
        first, *others = (scale * q @ part.T for part in k.split(300))
        top = first.amax(1, keepdim=True)
        mass = (first - top).exp().sum(1, keepdim=True)
        for part in others:
            top = torch.maximum(top, part.amax(1, keepdim=True))
            mass = mass + (part - top).exp().sum(1, keepdim=True)
        return (top + mass.log()).squeeze(1)

    return (lse(u, v) + lse(v, u) - 2 * scale * (u * v).sum(1)).mean() / 2


@contract(
    any_order=True,
    features=rows(unit=True),
    weight=shared("classes", "width", unit=True, learned=True),
    labels=ids(below="classes"),
    s=positive(4.0, 64.0),
    m=positive(0.05, 0.5),
)
def arcface(features: Any, weight: Any, labels: Any, s: float, m: float) -> Any:
    """Deng et al. 2019, equation 3."""
    cosine = features @ weight.T
    target = labels[:, None] == np.arange(len(weight))
    sine = np.sqrt(np.maximum(1 - cosine * cosine, 1e-3))
    logits = s * np.where(target, cosine * np.cos(m) - sine * np.sin(m), cosine)
    top = np.max(np.real(logits), axis=1, keepdims=True)
    lse = np.log(np.sum(np.exp(logits - top), axis=1)) + top[:, 0]
    return np.mean(lse - np.sum(np.where(target, logits, 0), axis=1))


class ArcFace(nn.Module):
    """Owns the centres of its classes."""

    def __init__(self, num_classes: int, embedding_size: int, s: float = 30.0, m: float = 0.5) -> None:
        super().__init__()
        self.s, self.m = s, m
        self.weight = nn.Parameter(torch.randn(num_classes, embedding_size))

    def margin(self, cosine: Tensor) -> Tensor:
        sine = (1 - cosine.pow(2)).clamp(min=1e-3).sqrt()
        return cosine * math.cos(self.m) - sine * math.sin(self.m)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        cosine = F.linear(features, F.normalize(self.weight))
        hot = F.one_hot(labels, len(self.weight)).bool()
        return F.cross_entropy(self.s * torch.where(hot, self.margin(cosine), cosine), labels)


class CosFace(ArcFace):
    """Wrong: its margin is one of the cosine."""

    def margin(self, cosine: Tensor) -> Tensor:
        return cosine - self.m


def _scripted(function: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


@_scripted
def scripted(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """torch.jit.script hides its parameters."""
    z = F.normalize(torch.cat([z1, z2]), p=2.0, dim=1)
    own = torch.eye(z.size(0), dtype=torch.bool, device=z.device)
    similarity = (z @ z.t() / temperature).masked_fill(own, -float("inf"))
    return F.cross_entropy(similarity, torch.arange(z.size(0)).roll(z1.size(0)))


class ByKeyword(nn.Module):
    """Reads its options of **kwargs, and raises for others."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.tau = kwargs.pop("tau", 0.1)
        self.reduction = kwargs.pop("reduction", "mean")
        if kwargs:
            raise TypeError(f"unexpected {sorted(kwargs)}")

    def forward(self, z_i: Tensor, z_j: Tensor, **unused: Any) -> Tensor:
        logits = F.normalize(z_i, dim=-1) @ F.normalize(z_j, dim=-1).T / self.tau
        return F.cross_entropy(logits, torch.arange(len(z_i)), reduction=self.reduction)


def of_batch(batch: dict[str, Tensor], logit_scale: Tensor) -> dict[str, Tensor]:
    """Its features in a dict, its scale beside them."""
    logits = logit_scale * batch["image_features"] @ batch["text_features"].T
    at = torch.arange(len(logits))
    return {"loss": (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2}


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


def returns_an_object(temperature: float = 0.1) -> Any:
    """Wrong: each tower is divided by the temperature."""

    def criterion(q: Tensor, k: Tensor) -> Output:
        logits = (F.normalize(q, dim=-1) / temperature) @ (F.normalize(k, dim=-1) / temperature).T
        return Output(F.cross_entropy(logits, torch.arange(len(q))), logits)

    return criterion


@contract(any_order=True, online=rows(), target=rows(like="online", constant=True))
def byol(online: Any, target: Any) -> Any:
    """Grill et al. 2020, equation 2; an input of it is called as an expression calls the loss."""
    online, target = (x / np.sqrt(np.sum(x * x, axis=1, keepdims=True)) for x in (online, target))
    return np.mean(2 - 2 * np.sum(online * target, axis=1))


class Regression(nn.Sequential):
    """BYOL's loss behind an empty projection."""

    def forward(self, preds: Tensor, targets: Tensor) -> Tensor:
        for layer in self:
            preds = layer(preds)
        cosine = (F.normalize(preds, dim=-1) * F.normalize(targets.detach(), dim=-1)).sum(-1)
        return (2 - 2 * cosine).mean()


@contract(any_order=True, x=rows(), y=rows(like="x"))
def covariance(x: Any, y: Any) -> Any:
    """The invariance and covariance terms of VICReg (Bardes et al. 2022)."""
    if len(x) < 2:
        raise ValueError("two rows")
    total = np.mean((x - y) ** 2)
    for z in (x, y):
        z = z - np.mean(z, axis=0)
        c = z.T @ z / (len(z) - 1)
        total = total + (np.sum(c * c) - np.sum(np.diagonal(c) ** 2)) / len(c)
    return total


@torch.compile(backend="aot_eager", dynamic=True)
def compiled_covariance(x: Tensor, y: Tensor) -> Tensor:
    """Compiled where it is defined: torch then runs its backward once."""
    total = F.mse_loss(x, y)
    for z in (x, y):
        z = z - z.mean(0)
        c = z.T @ z / (len(z) - 1)
        total = total + (c.pow(2).sum() - c.diagonal().pow(2).sum()) / len(c)
    return total


class Soft(nn.Module):
    """Its temperature is positive by softplus, by its formula."""

    def __init__(self, init_tau: float = 0.07) -> None:
        super().__init__()
        self.raw_tau = nn.Parameter(torch.tensor(init_tau).expm1().log())

    def forward(self, img_emb: Tensor, txt_emb: Tensor) -> Tensor:
        logits = img_emb @ txt_emb.T / torch.log(1 + torch.exp(self.raw_tau))
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class SoftScale(Soft):
    """What softplus makes is the scale, which may be large."""

    def forward(self, img_emb: Tensor, txt_emb: Tensor) -> Tensor:
        logits = img_emb @ txt_emb.T * F.softplus(self.raw_tau)
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class HardScale(Soft):
    """Wrong: its scale is no function of what it learns."""

    def forward(self, img_emb: Tensor, txt_emb: Tensor) -> Tensor:
        logits = img_emb @ txt_emb.T * F.softplus(self.raw_tau).detach()
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class Trainer:
    """Its loss is a method."""

    def __init__(self, temperature: float = 0.1) -> None:
        self.temperature = temperature

    def compute_loss(self, query: Tensor, passage: Tensor) -> Tensor:
        scores = F.normalize(query, dim=-1) @ F.normalize(passage, dim=-1).T / self.temperature
        return F.cross_entropy(scores, torch.arange(len(scores)))


class Blocks(nn.Module):
    """Wrong beyond 1,024 rows: blocks are added up in bfloat16."""

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, query: Tensor, positive: Tensor) -> Tensor:
        query, positive = F.normalize(query, dim=-1), F.normalize(positive, dim=-1)
        labels, total = torch.arange(len(query)), torch.zeros(())
        for part, at in zip(query.split(1024), labels.split(1024), strict=True):
            summed = F.cross_entropy(part @ positive.T / self.temperature, at, reduction="sum")
            total = total + (summed.bfloat16() if len(query) > 1024 else summed)
        return total.to(query.dtype) / len(query)


def one_by_one(query: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Asks for the memory of all pairs of pairs."""
    if len(query) > 1024:
        raise MemoryError("pairs of pairs")
    scores = F.normalize(query, dim=-1) @ F.normalize(positive, dim=-1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores)))


def stable_sigmoid(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    """Cross-entropy without overflow: autograd takes one side's derivative of relu and abs at 0."""
    logits = logit_scale * image_features @ text_features.T + logit_bias
    pairs = torch.eye(len(logits), dtype=logits.dtype)
    each = F.relu(logits) - logits * pairs + torch.log1p(torch.exp(-logits.abs()))
    return each.sum() / len(logits)


def bias_unless_zero(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    """Wrong: a bias of 0 gets a gradient of 0, and never learns."""
    logits = logit_scale * image_features @ text_features.T
    logits = logits + (logit_bias if logit_bias != 0 else 0 * logit_bias)
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


class CalledItself(nn.Module):
    """A module without forward, whose call is its own."""

    def __init__(self, T: float) -> None:
        super().__init__()
        self.T = T
        self.divergence = nn.KLDivLoss(reduction="batchmean", log_target=True)

    def __call__(self, y_s: Tensor, y_t: Tensor) -> Any:
        student, teacher = (F.log_softmax(one / self.T, dim=1) for one in (y_s, y_t.detach()))
        return self.divergence(student, teacher) * self.T**2


class Prefixes(nn.Module):
    """Sizes of prefixes under another name, before other arguments."""

    def __init__(
        self,
        matryoshka_dims: tuple[int, ...] = (64, 32),
        temperature: float = 0.05,
        weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.dims, self.temperature = matryoshka_dims, temperature
        self.weights = weights or [1.0] * len(matryoshka_dims)

    def forward(self, anchors: Tensor, positives: Tensor) -> Tensor:
        total = anchors.new_zeros(())
        for weight, dim in zip(self.weights, self.dims, strict=True):
            first, second = (F.normalize(one[..., :dim], dim=-1) for one in (anchors, positives))
            scores = first @ second.T / self.temperature
            total = total + weight * F.cross_entropy(scores, torch.arange(len(scores)))
        return total


class ClampedInPlace(nn.Module):
    """Clamps its parameter in its place, as CLIP's training does."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(100))
        logits = self.logit_scale.exp() * image_embeds @ text_embeds.T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


class ClampedTemperature(nn.Module):
    """Clamps its temperature in its place, as ALBEF and BLIP do."""

    def __init__(self) -> None:
        super().__init__()
        self.temp = nn.Parameter(0.07 * torch.ones([]))

    def forward(self, image_feat: Tensor, text_feat: Tensor) -> Tensor:
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        return _two_ways(_cosines(image_feat, text_feat) / self.temp)


class ShrinksTemperature(ClampedTemperature):
    """Wrong: each call makes the temperature smaller for the next."""

    def forward(self, image_feat: Tensor, text_feat: Tensor) -> Tensor:
        loss = _two_ways(_cosines(image_feat, text_feat) / self.temp.clone())
        with torch.no_grad():
            self.temp.mul_(0.5)
        return loss


class StaleTargets(nn.Module):
    """Wrong after a larger batch, whose targets it slices; after inference mode, too, a backward raises."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.targets = torch.zeros(0, dtype=torch.long)
        self.itself = torch.zeros(0, 0, dtype=torch.bool)

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        n = len(z_i)
        if len(self.targets) < 2 * n:
            self.targets = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
            self.itself = torch.eye(2 * n, dtype=torch.bool)
        rows = F.normalize(torch.cat([z_i, z_j]), dim=1)
        logits = rows @ rows.T / self.temperature
        logits = logits.masked_fill(self.itself[: 2 * n, : 2 * n], -math.inf)
        return F.cross_entropy(logits, self.targets[: 2 * n].clamp(max=2 * n - 1))


def _two_ways(logits: Tensor) -> Tensor:
    at = torch.arange(len(logits))
    return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    return F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T


def _sigmoid(logits: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


class TimesT(nn.Module):
    """Its t is the scale itself, where SigLIP's is a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(10.0))

    def forward(self, img: Tensor, txt: Tensor) -> Tensor:
        return _two_ways(self.t * _cosines(img, txt))


class DividesByT(TimesT):
    """Its t is a temperature."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        logits = _cosines(q, k) / self.t
        return F.cross_entropy(logits, torch.arange(len(q)))


class TimesTPlusB(TimesT):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(-10.0))

    def forward(self, img: Tensor, txt: Tensor) -> Tensor:
        return _sigmoid(self.t * _cosines(img, txt) + self.b)


class ForgetsB(TimesTPlusB):
    """Wrong: its bias is not added."""

    def forward(self, img: Tensor, txt: Tensor) -> Tensor:
        return _sigmoid(self.t * _cosines(img, txt))


class AlphaBeta(nn.Module):
    """The logarithm of its scale, and its bias, which elsewhere is a scale by this name."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(10.0).log())
        self.beta = nn.Parameter(torch.tensor(-10.0))

    def forward(self, img: Tensor, txt: Tensor) -> Tensor:
        return _sigmoid(self.alpha.exp() * _cosines(img, txt) + self.beta)


class ForgetsExponential(nn.Module):
    """Wrong: t' is SigLIP's name of a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.t_prime = nn.Parameter(torch.tensor(10.0).log())
        self.b = nn.Parameter(torch.tensor(-10.0))

    def forward(self, img: Tensor, txt: Tensor) -> Tensor:
        return _sigmoid(self.t_prime * _cosines(img, txt) + self.b)


def parts_and_total(img: Tensor, txt: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
    logits = logit_scale * img @ txt.T
    at = torch.arange(len(logits))
    parts = F.cross_entropy(logits, at), F.cross_entropy(logits.T, at)
    return {"loss_i2t": parts[0], "loss_t2i": parts[1], "total_loss": (parts[0] + parts[1]) / 2}


def parts_first(img: Tensor, txt: Tensor, logit_scale: Tensor) -> tuple[Tensor, ...]:
    """No name says which of its numbers is the loss."""
    return tuple(parts_and_total(img, txt, logit_scale).values())


def scale_beside(img: Tensor, txt: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
    """It returns what it was given, and what it makes of it, for a log."""
    scale = 1.0 * logit_scale
    return {"given": logit_scale, "logit_scale": scale, "nll": _two_ways(scale * img @ txt.T)}


class Lazy:
    """What was not computed raises where it is asked for."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss

    @property
    def attentions(self) -> Tensor:
        raise ValueError("not computed")


def lazy(img: Tensor, txt: Tensor, logit_scale: Tensor) -> Lazy:
    return Lazy(_two_ways(logit_scale * img @ txt.T))


def quoted(img: Tensor, txt: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
    return {'train "loss"': _two_ways(logit_scale * img @ txt.T)}


def numbered(img: Tensor, txt: Tensor, logit_scale: Tensor) -> dict[int, Tensor]:
    return {0: _two_ways(logit_scale * img @ txt.T)}


def signs_by_default(
    img: Tensor, txt: Tensor, scale: Tensor, bias: Tensor, targets: Tensor | None = None
) -> Tensor:
    """Its targets are signs, which it makes itself where it is given none."""
    logits = scale * img @ txt.T + bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1 if targets is None else targets
    return -F.logsigmoid(signs * logits).sum() / len(logits)


class Unguarded(nn.Module):
    """Asks for its rank where there may be no group."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = dist.get_rank()

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        return _two_ways(logit_scale * image_features @ text_features.T)


def of_views(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    if features.ndim < 3:
        raise ValueError("three dimensions")
    return features.sum() * 0


class BeginsAt(nn.Module):
    """What it begins with is an argument by default, which prints in two lines."""

    def __init__(self, init: nn.Parameter = nn.Parameter(torch.tensor(0.07))) -> None:  # noqa: B008
        super().__init__()
        self.temperature = init

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return F.cross_entropy(_cosines(q, k) / self.temperature, torch.arange(len(q)))
