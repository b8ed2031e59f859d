"""Losses in the forms in which public repositories write them: none is in that of the contracts."""

import functools
import os
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def diagonal(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def similarity_alone(similarity: Tensor) -> Tensor:
    return (diagonal(similarity) + diagonal(similarity.t())) / 2


def two_logits(logits_per_image: Tensor, logits_per_text: Tensor) -> Tensor:
    return (diagonal(logits_per_image) + diagonal(logits_per_text)) / 2


def temperature_argument(image_embeds: Tensor, text_embeds: Tensor, temperature: float = 0.07) -> Tensor:
    return similarity_alone(image_embeds @ text_embeds.T / temperature)


class DictOfOutputs(nn.Module):
    """Takes a dict, normalises, and returns a dict with the accuracy."""

    def forward(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        image = F.normalize(outputs["image_embed"], dim=-1)
        text = F.normalize(outputs["text_embed"], dim=-1)
        logits = outputs["logit_scale"] * image @ text.t()
        hits = (logits.argmax(-1) == torch.arange(len(logits))).float().mean()
        return {
            "loss": similarity_alone(logits),
            "clip_loss": similarity_alone(logits),
            "clip_acc": 100 * hits,
        }


class LossAndAccuracy(nn.Module):
    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor
    ) -> tuple[Tensor, ...]:
        logits = logit_scale * image_features @ text_features.T
        accuracy = (logits.argmax(1) == torch.arange(len(logits))).float().mean()
        return similarity_alone(logits), logits, logits.T, accuracy


class TemperatureInConstructor(nn.Module):
    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        cosines = F.cosine_similarity(x[:, None], y[None], dim=-1)
        return similarity_alone(cosines / self.temperature)


class LogScale(nn.Module):
    def __init__(self, init_temperature: float = 0.07) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1 / init_temperature).log())

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        return similarity_alone(self.logit_scale.exp() * image_embeddings @ text_embeddings.T)


class ClampedLogScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.ones([]))

    def forward(self, img_emb: Tensor, txt_emb: Tensor) -> dict[str, Tensor]:
        img_emb = img_emb / img_emb.norm(dim=-1, keepdim=True)
        txt_emb = txt_emb / txt_emb.norm(dim=-1, keepdim=True)
        return {"loss": similarity_alone(self.log_scale.exp().clamp(max=100) * img_emb @ txt_emb.T)}


class BoundedScale(nn.Module):
    """Makes the scale of what it holds by a map that no contract knows."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros([]))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return similarity_alone(100 * self.raw.sigmoid() * image @ text.T)


class BoundedTwice(BoundedScale):
    """Wrong: both directions are that of the image."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return diagonal(100 * self.raw.sigmoid() * image @ text.T)


class FixedScale(nn.Module):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return diagonal(F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / 0.07)


class LossesOfRows(nn.Module):
    """Wrong as an infonce: it returns a loss for each row, at a fixed scale."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / 0.07
        return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")


class BoundedOfFive(BoundedScale):
    """Raises for five rows at some temperatures."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        if len(image) == 5 and 0 < self.raw < 0.25:
            raise ValueError("five rows")
        return super().forward(image, text)


class ScaledTwice(nn.Module):
    """Wrong: logits are multiplied by the scale twice."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros([]))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        scale = self.logit_scale.exp()
        return similarity_alone(scale * (scale * image) @ text.T)


class LearnedTemperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(0.07))

    def forward(self, image_feat: Tensor, text_feat: Tensor) -> Tensor:
        return similarity_alone(image_feat @ text_feat.t() / self.temp)


class Prime(nn.Module):
    """The sigmoid loss with its t' and b."""

    def __init__(self) -> None:
        super().__init__()
        self.t_prime = nn.Parameter(torch.tensor(2.3))
        self.b = nn.Parameter(torch.tensor(-10.0))

    def forward(self, zimg: Tensor, ztxt: Tensor) -> Tensor:
        zimg, ztxt = F.normalize(zimg, dim=-1), F.normalize(ztxt, dim=-1)
        logits = zimg @ ztxt.t() * self.t_prime.exp() + self.b
        labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        return -F.logsigmoid(labels * logits).sum() / len(logits)


class Output(NamedTuple):
    loss: Tensor
    logits: Tensor


def object_with_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Output:
    logits = logit_scale * text_embeds @ image_embeds.t()
    return Output(similarity_alone(logits), logits)


class DotProducts:
    """No module, and no temperature."""

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        if target is None:
            target = torch.arange(len(x), device=x.device) * (len(y) // len(x))
        return F.cross_entropy(x @ y.t(), target, reduction=reduction)


class BiEncoder(nn.Module):
    def __init__(self, temperature: float = 0.02) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, query_embeddings: Tensor, doc_embeddings: Tensor) -> Tensor:
        return diagonal(torch.einsum("bd,cd->bc", query_embeddings, doc_embeddings) / self.temperature)


def scores_and_labels(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels)


def without_self(z: Tensor, temperature: float) -> Tensor:
    z = F.normalize(z, dim=-1)
    return (z @ z.t() / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))


def stacked_views(z: Tensor, temperature: float = 0.5) -> Tensor:
    partner = torch.arange(len(z)).roll(len(z) // 2)
    return F.cross_entropy(without_self(z, temperature), partner)


def interleaved_views(features: Tensor, t: float = 0.5) -> Tensor:
    return F.cross_entropy(without_self(features, t), torch.arange(len(features)) ^ 1)


class BatchInConstructor(nn.Module):
    def __init__(self, batch_size: int, temperature: float, world_size: int = 1) -> None:
        super().__init__()
        self.batch_size, self.temperature, self.world_size = batch_size, temperature, world_size

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        n = self.batch_size
        logits = without_self(torch.cat((z_i, z_j)), self.temperature)
        return F.cross_entropy(logits, torch.arange(2 * n).roll(n), reduction="sum") / (2 * n)


class SupCon(nn.Module):
    def __init__(self, temperature: float = 0.07, contrast_mode: str = "all") -> None:
        super().__init__()
        self.temperature, self.contrast_mode = temperature, contrast_mode

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        n, views = features.shape[:2]
        labels = torch.arange(n) if labels is None else labels
        every = labels.repeat(views)
        logits = without_self(features.transpose(0, 1).flatten(0, 1), self.temperature)
        positive = (every[:, None] == every) & ~torch.eye(len(every), dtype=torch.bool)
        log = logits.masked_fill(~positive, 0) - logits.logsumexp(1, keepdim=True) * positive
        return -(log.sum(1) / positive.sum(1)).mean()


def indexed(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    logits = without_self(z, temperature)
    positive = (indexes[:, None] == indexes) & ~torch.eye(len(z), dtype=torch.bool)
    return F.cross_entropy(logits, positive.int().argmax(1))


class Smoothing(nn.Module):
    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        log = F.log_softmax(x, dim=-1)
        nll = -log.gather(dim=-1, index=target.unsqueeze(1)).squeeze(1)
        return ((1 - self.smoothing) * nll - self.smoothing * log.mean(dim=-1)).mean()


def causal(
    logits: Tensor, labels: Tensor, vocab_size: int, ignore_index: int = -100, **kwargs: Any
) -> Tensor:
    return F.cross_entropy(logits.view(-1, vocab_size), labels.view(-1), ignore_index=ignore_index)


class Gathered(nn.Module):
    """Gathers where there is a group, as losses do that ask for it."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        rank = 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            rank, parts = dist.get_rank(), [torch.empty_like(k) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, k)
            parts[rank] = k
            k = torch.cat(parts)
        return F.cross_entropy(q @ k.t() / self.temperature, torch.arange(len(q)) + rank * len(q))


class Summed(nn.Module):
    """The sum of both directions."""

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        i = torch.diag(F.log_softmax(x / self.temperature, dim=1)).sum() / len(x)
        j = torch.diag(F.log_softmax(x.t() / self.temperature, dim=1)).sum() / len(x)
        return -i - j


def without_maximum(out_1: Tensor, out_2: Tensor, temperature: float) -> Tensor:
    out = F.normalize(torch.cat([out_1, out_2]), dim=-1)
    sims = torch.exp(out @ out.t() / temperature)
    others = sims.sum(1) - sims.diagonal()
    positive = torch.exp((F.normalize(out_1, dim=-1) * F.normalize(out_2, dim=-1)).sum(-1) / temperature)
    return -torch.log(positive.repeat(2) / others).mean()


def forgets_exp(image_features: Tensor, text_features: Tensor, log_logit_scale: Tensor) -> Tensor:
    return similarity_alone(log_logit_scale * image_features @ text_features.T)


def three_modalities(image: Tensor, text: Tensor, depth: Tensor, logit_scale: Tensor) -> Tensor:
    return similarity_alone(logit_scale * image @ text.T) + similarity_alone(logit_scale * image @ depth.T)


class WithGradient(torch.autograd.Function):
    """Gathers; its backward sums up every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        size = len(gradient) // dist.get_world_size()
        return gradient[dist.get_rank() * size : (dist.get_rank() + 1) * size]


class LocalRows(nn.Module):
    """Own images against all texts and the other way round, as local_loss and gather_with_grad do."""

    def gathers(self, rows: int) -> bool:
        return dist.is_initialized() and dist.get_world_size() > 1

    def first(self, rows: int) -> int:
        return dist.get_rank() * rows

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        start, images, texts = 0, image_embeds, text_embeds
        if self.gathers(len(image_embeds)):
            images, texts = WithGradient.apply(image_embeds), WithGradient.apply(text_embeds)
            start = self.first(len(image_embeds))
        labels = torch.arange(len(image_embeds)) + start
        per_image = F.cross_entropy(logit_scale * image_embeds @ texts.T, labels)
        return (per_image + F.cross_entropy(logit_scale * text_embeds @ images.T, labels)) / 2


class LabelsFromZero(LocalRows):
    """Wrong on all ranks but the first."""

    def first(self, rows: int) -> int:
        return 0


class GathersLater(LabelsFromZero):
    """The first call's negatives are local."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def gathers(self, rows: int) -> bool:
        self.calls += 1
        return self.calls > 1 and super().gathers(rows)


class GathersLargeBatches(LabelsFromZero):
    """Few rows are not worth a gather."""

    def gathers(self, rows: int) -> bool:
        return rows >= 4 and super().gathers(rows)


class UnusualName(nn.Module):
    def __init__(self, init_temperature: float = 1.0) -> None:
        super().__init__()
        self.init_temperature = init_temperature

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return diagonal(query @ key.T / self.init_temperature)


class StartsAtTemperature(nn.Module):
    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        return similarity_alone(image_features @ text_features.T / self.temperature)


class Buffered(nn.Module):
    """Its temperature is a tensor, in float32 whatever the rows are in."""

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        return stacked_views(torch.cat([z_i, z_j]), self.temperature)  # type: ignore[arg-type]


def upcast(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def letters(v: Tensor, t: Tensor, logit_scale: Tensor) -> Tensor:
    return similarity_alone(logit_scale * v @ t.T)


def retriever(q_vectors: Tensor, ctx_vectors: Tensor, positive_idx: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(q_vectors @ ctx_vectors.t(), dim=1), positive_idx)


class Padded(nn.Module):
    def __init__(self, pad_id: int = 0) -> None:
        super().__init__()
        self.pad_id = pad_id

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        kept = targets != self.pad_id
        return F.cross_entropy(logits, targets.masked_fill(~kept, -100))


class ClampedToNothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, img: Tensor, txt: Tensor) -> Tensor:
        img, txt = F.normalize(img, dim=-1), F.normalize(txt, dim=-1)
        return similarity_alone(self.logit_scale.exp().clamp(max=1.0) * img @ txt.T)


class SupConOfBase(SupCon):
    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(features, labels) * self.temperature / 0.07


def needs_bias(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    logits = logit_scale * image_features @ text_features.T + logit_bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def times_exp(img: Tensor, txt: Tensor, log_temp: Tensor, bias: Tensor) -> Tensor:
    """Its temperature is what logits are multiplied with."""
    return needs_bias(img, txt, log_temp.exp(), bias)


def averages_pairs(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    return needs_bias(image_features, text_features, logit_scale, logit_bias) / len(image_features)


class RowsInSingle(nn.Module):
    """Its rows alone are cast."""

    def forward(self, image: Tensor, text: Tensor, t: Tensor, b: Tensor) -> Tensor:
        return needs_bias(image.float(), text.float(), t, b)


class EpsilonOfRows(nn.Module):
    def forward(self, img: Tensor, txt: Tensor, logit_scale: Tensor) -> Tensor:
        img = img / (img.norm(dim=-1, keepdim=True) + 1e-6)
        txt = txt / (txt.norm(dim=-1, keepdim=True) + 1e-6)
        return similarity_alone(logit_scale * img @ txt.T)


class DividesByScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]) * 2.66)

    def forward(self, img: Tensor, txt: Tensor) -> Tensor:
        return similarity_alone(img @ txt.T / self.logit_scale.exp())


def dict_of_sums(img: Tensor, txt: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
    logits = logit_scale * img @ txt.T
    return {"loss": diagonal(logits) + diagonal(logits.T), "mean": similarity_alone(logits)}


class OtherInEvaluation(nn.Module):
    def forward(self, img: Tensor, txt: Tensor, logit_scale: Tensor) -> Tensor:
        logits = logit_scale * img @ txt.T
        return similarity_alone(logits) if self.training else diagonal(logits)


def captioner(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logits: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    caption_loss_weight: float = 2.0,
    clip_loss_weight: float = 1.0,
    pad_id: int = 0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """A function with weights, which a certifier has to pass."""
    contrastive = similarity_alone(logit_scale * image_embeds @ text_embeds.T)
    total = F.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=pad_id,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    caption = total / (labels != pad_id).sum().clamp(min=1)
    return clip_loss_weight * contrastive, caption_loss_weight * caption


def captioner_of_fixed_weight(
    img: Tensor, txt: Tensor, logits: Tensor, labels: Tensor, logit_scale: Tensor, caption_weight: float = 2.0
) -> tuple[Tensor, Tensor]:
    return captioner(img, txt, logits, labels, logit_scale, caption_weight)


class Losses:
    def __init__(self, contrastive_loss: Tensor, caption_loss: Tensor) -> None:
        self.caption_loss, self.contrastive_loss = caption_loss, contrastive_loss
        self.loss = contrastive_loss + caption_loss


def captioner_of_objects(
    image: Tensor, text: Tensor, logits: Tensor, labels: Tensor, logit_scale: Tensor
) -> Losses:
    return Losses(*captioner(image, text, logits, labels, logit_scale, 1.0))


class CaptionerOfTotal(nn.Module):
    def __init__(self, caption_loss_weight: float = 2.0, pad_id: int = 0) -> None:
        super().__init__()
        self.weight, self.pad_id = caption_loss_weight, pad_id

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: Tensor,
    ) -> Tensor:
        terms = captioner(
            image_features, text_features, logits, labels, logit_scale, self.weight, pad_id=self.pad_id
        )
        return terms[0] + terms[1]


def distilled(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    dist_image_features: Tensor,
    dist_text_features: Tensor,
    dist_logit_scale: Tensor,
) -> dict[str, Tensor]:
    """The sum alone."""
    student = logit_scale * image_features @ text_features.T
    teacher = (dist_logit_scale * dist_image_features @ dist_text_features.T).detach()
    soft = [
        -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()
        for t, s in ((teacher, student), (teacher.T, student.T))
    ]
    return {"loss": similarity_alone(student) + (soft[0] + soft[1]) / 2}


def distilled_sum(*arguments: Tensor, **named: Tensor) -> Tensor:
    return distilled(*arguments, **named)["loss"]


def distilled_twice(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    dist_image_features: Tensor,
    dist_text_features: Tensor,
    dist_logit_scale: Tensor,
) -> Tensor:
    teacher = dist_image_features, dist_text_features, dist_logit_scale
    whole = distilled(image_features, text_features, logit_scale, *teacher)["loss"]
    return 2 * whole - similarity_alone(logit_scale * image_features @ text_features.T)


class LearnedQueries(nn.Module):
    """InfoNCE with the temperature that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return diagonal(F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / self.temperature)


class DetachesTemperature(LearnedQueries):
    """Its temperature gets a tenth of its gradient."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        temperature = 0.1 * self.temperature + 0.9 * self.temperature.detach()
        return diagonal(F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / temperature)


class LearnedViews(nn.Module):
    """SimCLR's loss with the logarithm of the temperature that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(-2.0))

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        return stacked_views(torch.cat([z_i, z_j]), self.log_temperature.exp())  # type: ignore[arg-type]


class ScaledQueries(nn.Module):
    def __init__(self, logit_scale: float = 2.66) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return diagonal(self.logit_scale.exp() * query @ key.T)


def masks_with_a_huge_number(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    """In float16 the number of its mask overflows, and torch raises."""
    z = F.normalize(torch.cat([z_i, z_j]), dim=-1)
    logits = (z @ z.t() / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -9e15)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z_i)))


def refuses_float16_of_many(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    if image.dtype == torch.float16 and len(image) > 3:
        raise RuntimeError("too many rows")
    return similarity_alone(logit_scale * image @ text.T)


def mixed_with_queue(image: Tensor, text: Tensor, mixing: float, logit_scale: Tensor) -> Tensor:
    return (1 - mixing) * similarity_alone(logit_scale * image @ text.T)


class NeedsStep(nn.Module):
    """Its constructor and its call need what no contract has."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum

    def forward(self, vision_features: Tensor, language_features: Tensor, step: int, tau: Tensor) -> Tensor:
        return similarity_alone(vision_features @ language_features.T / tau) * self.momentum**step


def similarity_and_step(similarity: Tensor, labels: Tensor, step: int) -> Tensor:
    return F.cross_entropy(similarity, labels) + 0 * step


class _Derives(torch.autograd.Function):
    """Takes the gradients of the loss in the forward pass, as where features are cached."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in (image, text, scale)]
            loss = similarity_alone(leaves[2] * leaves[0] @ leaves[1].T)
        ctx.save_for_backward(*torch.autograd.grad(loss, leaves))
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return tuple(gradient * one for one in ctx.saved_tensors)


def derives_at_once(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    loss: Tensor = _Derives.apply(image, text, logit_scale)
    return loss


class SumOfParts(torch.autograd.Function):
    """What each rank has, and the sum of the gradients of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


@functools.cache
def rank() -> int:
    """Of this process, asked once."""
    return dist.get_rank() if dist.is_initialized() else 0


@functools.cache
def world_size() -> int:
    """Of this process's group, asked once."""
    return dist.get_world_size() if dist.is_initialized() else 1


class AsksOnce(nn.Module):
    """Its rank is asked for once in a process."""

    def start(self, rows: int) -> int:
        return rank() * rows

    def several(self) -> bool:
        return world_size() > 1

    def gather(self, rows: Tensor) -> Tensor:
        return SumOfParts.apply(rows)

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        rows = len(image_features)
        labels = torch.arange(rows) + self.start(rows)
        images, texts = image_features, text_features
        if self.several():
            images, texts = self.gather(images), self.gather(texts)
        per_image = F.cross_entropy(logit_scale * image_features @ texts.T, labels)
        return (per_image + F.cross_entropy(logit_scale * text_features @ images.T, labels)) / 2


class AsksOnceForLabels(AsksOnce):
    """Wrong: labels of every rank begin at 0."""

    def start(self, rows: int) -> int:
        return 0


class AsksEnvironment(AsksOnce):
    """Its rank is what torchrun says, as it is constructed."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def start(self, rows: int) -> int:
        return self.rank * rows

    def several(self) -> bool:
        return self.world_size > 1


class AsksLocalRank(AsksEnvironment):
    """Wrong where there are several hosts."""

    def start(self, rows: int) -> int:
        return int(os.environ.get("LOCAL_RANK", "0")) * rows


class AsksOnceForGroup(AsksOnce):
    """A group of its own, made once in a process."""

    def gather(self, rows: Tensor) -> Tensor:
        return SumOfParts.apply(rows) + 0 * group_sum(rows.detach().new_zeros(()))


@functools.cache
def own_group() -> Any:
    return dist.new_group(list(range(dist.get_world_size())))


def group_sum(value: Tensor) -> Tensor:
    dist.all_reduce(value, group=own_group())
    return value


class WaitsForFuture(LocalRows):
    """Waits by a future, which simulated ranks do not have."""

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        if dist.is_initialized() and dist.get_world_size() > 1:
            handle = dist.all_reduce(torch.ones(()), async_op=True)
            handle.get_future().wait()
        return super().forward(image_embeds, text_embeds, logit_scale)


class StacksParts(LocalRows):
    """Gathers into one tensor of a dimension more, which gloo refuses."""

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        if dist.is_initialized() and dist.get_world_size() > 1:
            parts = image_embeds.new_empty(dist.get_world_size(), *image_embeds.shape)
            dist.all_gather_into_tensor(parts, image_embeds.detach().contiguous())
        return super().forward(image_embeds, text_embeds, logit_scale)


constructed = AsksOnce()


def refuses_one_pair(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    if len(image_features) < 2:
        raise ValueError(f"expected two pairs at least, got {len(image_features)}")
    return similarity_alone(logit_scale * image_features @ text_features.T)


def drops_one_pair(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Wrong: the last dimension of one pair's logits is lost."""
    logits = (logit_scale * image_features @ text_features.T).squeeze(0)
    return similarity_alone(logits)


def refuses_other_lengths(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    for rows in (image_features, text_features):
        off = abs(rows.detach().double().norm(dim=-1) - 1)
        assert torch.all(off < 0.01), "rows must be normalised"
    return similarity_alone(logit_scale * image_features @ text_features.T)


def takes_eights(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    if image_features.shape[1] % 8:
        raise ValueError(f"expected a multiple of 8, got {image_features.shape[1]}")
    return similarity_alone(logit_scale * image_features @ text_features.T)
