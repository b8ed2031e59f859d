"""Forty right losses, each in a form of its own."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

# Of distributed training: what ranks have in common.


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class AllGather(torch.autograd.Function):
    """Rows of all ranks; every rank's gradient comes back to whom the rows belong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rank, ctx.n = dist.get_rank(), x.shape[0]
        out = [torch.zeros_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(out, x.contiguous())
        return torch.cat(out, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return SumOfRanks.apply(grad)[ctx.rank * ctx.n : (ctx.rank + 1) * ctx.n]


class SumOfRanks(torch.autograd.Function):
    """A sum over ranks that may be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return SumOfRanks.apply(grad)


def concat_all_gather(x: Tensor) -> Tensor:
    """As in MoCo: no gradient but to this rank's own rows."""
    if not is_distributed():
        return x
    with torch.no_grad():
        parts = [torch.ones_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


# CLIP.


def clip_from_vectors(img_vecs: Tensor, cap_vecs: Tensor, tau: Tensor) -> Tensor:
    """Names of our own; the temperature is a tensor."""
    sim = torch.einsum("id,jd->ij", img_vecs, cap_vecs).div(tau)
    target = torch.arange(sim.size(0), device=sim.device)
    return 0.5 * F.cross_entropy(sim, target) + 0.5 * F.cross_entropy(sim.T, target)


class CLIPHead(nn.Module):
    """Normalises, and learns the logarithm of its temperature."""

    def __init__(self, embed_dim: int = 512, learn_temperature: bool = True) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.log_temp = nn.Parameter(torch.tensor(math.log(0.07)), requires_grad=learn_temperature)

    def forward(self, vision: Tensor, language: Tensor) -> Tensor:
        vision = F.normalize(vision, p=2, dim=1)
        language = F.normalize(language, p=2, dim=1)
        logits = vision.matmul(language.transpose(0, 1)) * torch.exp(-self.log_temp)
        n = logits.shape[0]
        log_probs = F.log_softmax(logits, dim=1), F.log_softmax(logits, dim=0)
        return -sum(torch.diagonal(one).sum() for one in log_probs) / (2 * n)  # type: ignore[return-value]


class KeywordOnly(nn.Module):
    """Everything by keyword, and a dict back."""

    def forward(
        self, *, image_features: Tensor, text_features: Tensor, logit_scale: Tensor
    ) -> dict[str, Tensor]:
        scores = logit_scale * (image_features @ text_features.mT)
        positive = scores.diag()
        return {
            "contrastive_loss": (scores.logsumexp(0) + scores.logsumexp(1) - 2 * positive).mean().div(2),
        }


class GlobalBatch(nn.Module):
    """Every rank computes the loss of the whole batch, with gradient through the gather."""

    def __init__(self) -> None:
        super().__init__()
        self.ce = nn.CrossEntropyLoss()

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        if is_distributed():
            image_embeds, text_embeds = AllGather.apply(image_embeds), AllGather.apply(text_embeds)
        logits = image_embeds @ text_embeds.t() * logit_scale
        labels = torch.arange(len(logits), device=logits.device)
        return (self.ce(logits, labels) + self.ce(logits.t(), labels)) / 2


class ShardedRows(nn.Module):
    """Its own rows against all, with labels that start where its rows do."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        every_image, every_text = image_features, text_features
        if self.world_size > 1:
            both = AllGather.apply(torch.cat([image_features, text_features], dim=-1))
            every_image, every_text = both.chunk(2, dim=-1)
        b = image_features.shape[0]
        labels = b * self.rank + torch.arange(b, device=image_features.device)
        i2t = F.cross_entropy(logit_scale * image_features @ every_text.T, labels)
        t2i = F.cross_entropy(logit_scale * text_features @ every_image.T, labels)
        return (i2t + t2i) / 2


class OwnRowsCarryGradient(nn.Module):
    """As open_clip by default: a gather without gradient, its own rows put back."""

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        images, texts = concat_all_gather(image_features), concat_all_gather(text_features)
        logits = logit_scale * images @ texts.T
        labels = torch.arange(logits.shape[0], device=logits.device)
        return torch.stack([F.cross_entropy(one, labels) for one in (logits, logits.T)]).mean()


class Streamed(nn.Module):
    """Log-sum-exp of rows and columns, chunk after chunk, in float32 at least."""

    def __init__(self, chunk: int = 4) -> None:
        super().__init__()
        self.chunk = chunk

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        n = len(image)
        rows, diagonal = [], []
        columns = torch.full((n,), -math.inf, dtype=torch.promote_types(image.dtype, torch.float32))
        for start in range(0, n, self.chunk):
            part = (image[start : start + self.chunk] @ text.T).to(columns.dtype) * scale
            rows.append(torch.logsumexp(part, 1))
            columns = torch.logaddexp(columns, torch.logsumexp(part, 0))
            diagonal.append(part.diagonal(start))
        positive = torch.cat(diagonal)
        return (torch.cat(rows) - positive).mean() / 2 + (columns - positive).mean() / 2


class CachesLabels(nn.Module):
    """Labels are a buffer that is not saved, made anew when the batch or the mode changes."""

    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("labels", torch.empty(0, dtype=torch.long), persistent=False)

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        n = image_features.size(0)
        if self.labels.size(0) != n or self.labels.is_inference():
            self.labels = torch.arange(n, device=image_features.device)
        logits = logit_scale * image_features @ text_features.t()
        return (F.cross_entropy(logits, self.labels) + F.cross_entropy(logits.t(), self.labels)) * 0.5


class FullPrecision(nn.Module):
    """Computes in float32, autocast or not."""

    def forward(self, image_feats: Tensor, text_feats: Tensor, logit_scale: Tensor) -> Tensor:
        with torch.autocast(device_type=image_feats.device.type, enabled=False):
            logits = image_feats.float() @ text_feats.float().T * logit_scale.float()
            label = torch.arange(logits.size(0), dtype=torch.long, device=logits.device)
            return (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2


@dataclass
class ClipOutput:
    """As the models of transformers return one."""

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    temperature: float = 1.0


class ReturnsObject(nn.Module):
    def __init__(self, logit_scale_init_value: float = 2.6592) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale_init_value))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, return_loss: bool = True) -> ClipOutput:
        image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
        per_text = torch.matmul(text_embeds, image_embeds.t()) * self.logit_scale.exp()
        at = torch.arange(len(per_text), device=per_text.device)
        loss = (F.cross_entropy(per_text, at) + F.cross_entropy(per_text.t(), at)) / 2.0
        return ClipOutput(loss if return_loss else None, per_text.t(), per_text)


class TakesBias(nn.Module):
    """With the whole signature of open_clip's."""

    def get_logits(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        per_image = logit_scale * image_features @ text_features.T
        per_text = logit_scale * text_features @ image_features.T
        if logit_bias is not None:
            per_image, per_text = per_image + logit_bias, per_text + logit_bias
        return per_image, per_text

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        both = self.get_logits(image_features, text_features, logit_scale, logit_bias)
        loss = sum(F.cross_entropy(one, torch.arange(len(one))) for one in both) / 2
        return {"contrastive_loss": loss} if output_dict else loss


def soft_targets(vision_out: Tensor, text_out: Tensor, scale: float = 1.0) -> Tensor:
    """Targets are a matrix, so that they may be smoothed one day."""
    logits = vision_out @ text_out.T * scale
    targets = torch.eye(logits.shape[0], dtype=logits.dtype, device=logits.device)
    image_loss = (-targets * F.log_softmax(logits, dim=-1)).sum(-1)
    text_loss = (-targets.T * F.log_softmax(logits.T, dim=-1)).sum(-1)
    return ((image_loss + text_loss) / 2.0).mean()


class _Symmetric(torch.autograd.Function):
    """A loss whose backward is written by hand, of what may itself be derived."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return -(logits.log_softmax(1) + logits.log_softmax(0)).diagonal().sum() / (2 * len(logits))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (logits,) = ctx.saved_tensors
        slope = logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(len(logits), dtype=logits.dtype)
        return slope / (2 * len(logits)) * gradient


def by_hand(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    return _Symmetric.apply(logit_scale * image @ text.T)


class OfBatch(nn.Module):
    """Gets the batch as the model returns it."""

    def forward(self, model_out: dict[str, Tensor]) -> dict[str, Tensor]:
        img, txt = model_out["img_features"], model_out["txt_features"]
        i, t = F.normalize(img, dim=-1), F.normalize(txt, dim=-1)
        sim = model_out["logit_scale"] * i @ t.T
        ground_truth = torch.arange(len(sim), device=sim.device)
        loss_i, loss_t = F.cross_entropy(sim, ground_truth), F.cross_entropy(sim.T, ground_truth)
        with torch.no_grad():
            top1 = (sim.argmax(-1) == ground_truth).float().mean()
        return {"loss": (loss_i + loss_t) / 2, "i2t_top1": top1}


class ShiftsByMaximum(nn.Module):
    """Writes its softmax out, and asks the group for its size."""

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, img_emb: Tensor, txt_emb: Tensor) -> Tensor:
        img_emb, txt_emb = F.normalize(img_emb, dim=-1), F.normalize(txt_emb, dim=-1)
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world > 1:
            img_emb, txt_emb = AllGather.apply(img_emb), AllGather.apply(txt_emb)
        logits = img_emb @ txt_emb.T / self.temperature
        total = torch.zeros_like(logits[0])
        for dim in (0, 1):
            shifted = logits - logits.max(dim, keepdim=True).values.detach()
            total = total - (shifted - shifted.exp().sum(dim, keepdim=True).log()).diag()
        return total.mean() / 2


class OfLogits(nn.Module):
    """Both matrices are made elsewhere; the labels are cast to what the logits lie on."""

    def forward(self, logits_per_image: Tensor, logits_per_text: Tensor) -> dict[str, Tensor]:
        gt = torch.arange(logits_per_image.shape[0]).to(logits_per_image.device)
        pair = [F.cross_entropy(one, gt) for one in (logits_per_image, logits_per_text)]
        return {
            "loss/image": pair[0].detach(),
            "loss/text": pair[1].detach(),
            "loss": (pair[0] + pair[1]) / 2,
        }


# SigLIP.


class SigmoidLoss(nn.Module):
    """With t' and b of its own, by torch's binary cross-entropy."""

    def __init__(self, init_t: float = 10.0, init_b: float = -10.0) -> None:
        super().__init__()
        self.t_prime = nn.Parameter(torch.tensor(float(init_t)).log())
        self.bias = nn.Parameter(torch.tensor(float(init_b)))

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        x, y = F.normalize(image_embeddings, dim=-1), F.normalize(text_embeddings, dim=-1)
        logits = torch.exp(self.t_prime) * torch.mm(x, y.t()) + self.bias
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # halves overflow in the sum
        truth = torch.eye(*logits.shape, dtype=logits.dtype, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / x.shape[0]


def sigmoid_pairs(zimg: Tensor, ztxt: Tensor, t: Tensor, b: Tensor) -> Tensor:
    """The pseudocode of the paper, with log(1 + exp(-x)) spelt out."""
    logits = zimg @ ztxt.T * t + b
    labels = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - torch.ones_like(logits)
    return torch.logaddexp(torch.zeros_like(logits), -labels * logits).sum(1).mean()


class SigmoidGathered(nn.Module):
    """Its own images with the texts of all ranks."""

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
    ) -> Tensor:
        n, rank = len(image_features), 0
        if is_distributed():
            rank, text_features = dist.get_rank(), AllGather.apply(text_features)
        logits = logit_scale * image_features @ text_features.T
        if logit_bias is not None:
            logits = logits + logit_bias
        labels = -torch.ones_like(logits)
        labels[:, rank * n : (rank + 1) * n].fill_diagonal_(1.0)
        return -F.logsigmoid(labels * logits).sum(dim=-1).mean()


class SigmoidChunks(nn.Module):
    """Texts come in chunks, as their matrix does not fit."""

    def __init__(self, text_chunk: int = 3) -> None:
        super().__init__()
        self.text_chunk = text_chunk

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.promote_types(image_features.dtype, torch.float32))
        positions = torch.arange(len(image_features))
        for start in range(0, len(text_features), self.text_chunk):
            texts = text_features[start : start + self.text_chunk]
            logits = (image_features @ texts.T).to(total.dtype) * logit_scale + logit_bias
            sign = torch.where(positions[:, None] == positions[None, start : start + len(texts)], 1.0, -1.0)
            total = total - F.logsigmoid(sign.to(total.dtype) * logits).sum()
        return total / len(image_features)


def positives_and_negatives(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    z = logit_scale * (image_features @ text_features.T) + logit_bias
    negative = ~torch.eye(z.shape[0], dtype=torch.bool, device=z.device)
    pos = F.logsigmoid(z.diagonal())
    neg = F.logsigmoid(-z).masked_fill(~negative, 0.0).sum(1)
    return -(pos + neg).mean()


def from_logits(logits: Tensor) -> Tensor:
    """Logits that hold scale and bias already."""
    target = torch.diag(torch.ones(len(logits), dtype=logits.dtype))
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return each.sum(dim=1).mean()


# CoCa.


class Captioner(nn.Module):
    """CLIP's term and the captions' term; padding is left out of the mean."""

    def __init__(self, pad_id: int = 0, caption_weight: float = 1.0) -> None:
        super().__init__()
        self.pad_id, self.caption_weight = pad_id, caption_weight

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sim = logit_scale * image_features @ text_features.T
        at = torch.arange(len(sim), device=sim.device)
        contrastive = (F.cross_entropy(sim, at) + F.cross_entropy(sim.T, at)) / 2
        keep = labels.ne(self.pad_id)
        nll = (
            -logits.log_softmax(-1)
            .gather(-1, labels.where(keep, torch.zeros_like(labels)).unsqueeze(-1))
            .squeeze(-1)
        )
        caption = (nll * keep).sum() / keep.sum().clamp(min=1)
        return contrastive, self.caption_weight * caption


class CaptionerOfTokens(nn.Module):
    """Returns its terms by name; tokens are picked before the cross-entropy."""

    def __init__(
        self, clip_loss_weight: float = 1.0, caption_loss_weight: float = 2.0, pad_id: int = 0
    ) -> None:
        super().__init__()
        self.clip_loss_weight, self.caption_loss_weight = clip_loss_weight, caption_loss_weight
        self.pad_id = pad_id

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: Tensor,
        output_dict: bool = True,
    ) -> Any:
        sim = logit_scale * image_features @ text_features.T
        at = torch.arange(len(sim), device=sim.device)
        clip = (F.cross_entropy(sim, at) + F.cross_entropy(sim.T, at)) / 2 * self.clip_loss_weight
        token = labels.flatten() != self.pad_id
        picked, wanted = logits.flatten(0, 1)[token], labels.flatten()[token]
        caption = F.cross_entropy(picked, wanted, reduction="sum") / max(len(wanted), 1)
        terms = {"contrastive_loss": clip, "caption_loss": caption * self.caption_loss_weight}
        return terms if output_dict else tuple(terms.values())


# distillation.


class DistilledClip(nn.Module):
    """The student's cross-entropy under the teacher's softmax, in both directions."""

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        student = logit_scale * image_features @ text_features.T
        with torch.no_grad():
            teacher = dist_logit_scale * dist_image_features @ dist_text_features.T
        hard = (self.ce(student, None) + self.ce(student.T, None)) / 2
        soft = (self.ce(student, teacher) + self.ce(student.T, teacher.T)) / 2
        return hard, soft

    def ce(self, logits: Tensor, teacher: Tensor | None) -> Tensor:
        if teacher is None:
            return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        return -(teacher.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def distill_by_dict(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: Tensor,
) -> dict[str, Tensor]:
    s = logit_scale * image_features @ text_features.t()
    t = (teacher_logit_scale * teacher_image_features @ teacher_text_features.t()).detach()
    labels = torch.arange(len(s))
    return {
        "contrastive_loss": F.cross_entropy(s, labels).add(F.cross_entropy(s.t(), labels)).mul(0.5),
        "distill_loss": F.cross_entropy(s, t.softmax(1))
        .add(F.cross_entropy(s.t(), t.t().softmax(1)))
        .mul(0.5),
    }


# InfoNCE.


def info_nce_loss(anchor_vectors: Tensor, positive_vectors: Tensor, temperature: float = 0.1) -> Tensor:
    """Queries and keys by other names."""
    a, p = F.normalize(anchor_vectors, dim=-1), F.normalize(positive_vectors, dim=-1)
    logits = torch.einsum("nc,kc->nk", a, p) / temperature
    return (torch.logsumexp(logits, dim=1) - logits.diagonal()).mean()


class QueryKey(nn.Module):
    """Positive apart from negatives, as MoCo has them."""

    def __init__(self, T: float = 0.07) -> None:
        super().__init__()
        self.T = T

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        l_pos = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        l_all = torch.einsum("nc,kc->nk", [q, k])
        l_neg = l_all.masked_fill(torch.eye(len(q), dtype=torch.bool), -math.inf)
        logits = torch.cat([l_pos, l_neg], dim=1) / self.T
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


class Retrieval(nn.Module):
    """Dot products of embeddings as they are; passages of all ranks."""

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature
        self.cross_entropy = nn.CrossEntropyLoss(reduction="mean")

    def compute_similarity(self, q_reps: Tensor, p_reps: Tensor) -> Tensor:
        return torch.matmul(q_reps, p_reps.transpose(0, 1))

    def forward(self, query_reps: Tensor, passage_reps: Tensor) -> Tensor:
        first = 0
        if is_distributed():
            first = dist.get_rank() * passage_reps.shape[0]
            passage_reps = AllGather.apply(passage_reps)
        scores = self.compute_similarity(query_reps, passage_reps) / self.temperature
        target = torch.arange(first, first + scores.size(0), device=scores.device, dtype=torch.long)
        return self.cross_entropy(scores, target)


def per_example(query: Tensor, doc: Tensor, tau: float) -> Tensor:
    """One loss an example: whoever calls it averages."""
    cos = F.normalize(query, dim=-1) @ F.normalize(doc, dim=-1).T
    return F.cross_entropy(cos / tau, torch.arange(len(cos)), reduction="none")


class CrossBatch(nn.Module):
    """Queries one at a time, in a loop."""

    def __init__(self, temperature: float = 0.2, normalize: bool = True) -> None:
        super().__init__()
        self.temperature, self.normalize = temperature, normalize

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        if self.normalize:
            queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        losses = []
        for i, query in enumerate(queries):
            scores = keys @ query / self.temperature
            losses.append(scores.logsumexp(0) - scores[i])
        return torch.stack(losses).mean()


# SimCLR.


class SimCLRCriterion(nn.Module):
    """Two views; every row without its own column."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, view_a: Tensor, view_b: Tensor) -> Tensor:
        n = len(view_a)
        z = F.normalize(torch.cat([view_a, view_b], dim=0), dim=1)
        sim = z @ z.T / self.temperature
        off = ~torch.eye(2 * n, dtype=torch.bool, device=z.device)
        others = sim[off].view(2 * n, 2 * n - 1)
        positive = torch.cat([sim.diag(n), sim.diag(-n)])
        return (others.logsumexp(1) - positive).mean()


def nt_xent_interleaved(proj: Tensor, temperature: float = 0.1) -> Tensor:
    """Rows 2k and 2k + 1 are two views of one image."""
    x = proj / proj.norm(dim=1, keepdim=True)
    logits = x.mm(x.t()) / temperature
    logits.fill_diagonal_(float("-inf"))
    labels = torch.arange(len(x)).view(-1, 2).flip(1).reshape(-1)
    return F.nll_loss(logits.log_softmax(1), labels)


class NTXentHalfSafe(nn.Module):
    """Similarities in float32 at least, masked by the smallest number there is."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z_i: Tensor, z_j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = torch.cat([z_i, z_j]).to(torch.promote_types(z_i.dtype, torch.float32))
        z = F.normalize(z, dim=-1)
        sim = torch.matmul(z, z.T) / self.temperature
        sim = sim.masked_fill(
            torch.eye(len(z), dtype=torch.bool, device=z.device), torch.finfo(sim.dtype).min
        )
        labels = torch.arange(len(z), device=z.device).roll(len(z_i))
        return F.cross_entropy(sim, labels), sim, labels


class NTXentGathered(nn.Module):
    """Own views are anchors, views of all ranks their candidates."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, h1: Tensor, h2: Tensor) -> Tensor:
        h1, h2 = F.normalize(h1, dim=1), F.normalize(h2, dim=1)
        rank, n = 0, len(h1)
        all1, all2 = h1, h2
        if is_distributed():
            rank, all1, all2 = dist.get_rank(), AllGather.apply(h1), AllGather.apply(h2)
        mask = F.one_hot(torch.arange(n) + rank * n, len(all1)).bool()
        aa = (h1 @ all1.T / self.temperature).masked_fill(mask, -math.inf)
        bb = (h2 @ all2.T / self.temperature).masked_fill(mask, -math.inf)
        ab, ba = h1 @ all2.T / self.temperature, h2 @ all1.T / self.temperature
        labels = torch.arange(n) + rank * n
        a = F.cross_entropy(torch.cat([ab, aa], 1), labels)
        b = F.cross_entropy(torch.cat([ba, bb], 1), labels)
        return (a + b) / 2


class SupervisedContrast(nn.Module):
    """Positives by label, of [batch, views, width]."""

    def __init__(self, temperature: float = 0.1, base_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.base_temperature = base_temperature or temperature

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        features = F.normalize(features, dim=-1)
        flat, y = features.reshape(-1, features.shape[-1]), labels.repeat_interleave(features.shape[1])
        logits = flat @ flat.T / self.temperature
        self_mask = torch.eye(len(flat), dtype=torch.bool)
        log_prob = logits - logits.masked_fill(self_mask, -math.inf).logsumexp(1, keepdim=True)
        pos = (y[:, None] == y[None, :]) & ~self_mask
        mean_log_prob_pos = (log_prob * pos).sum(1) / pos.sum(1)
        return -(self.temperature / self.base_temperature) * mean_log_prob_pos.mean()


# cross-entropy.


def token_loss(pred_logits: Tensor, target_ids: Tensor, ignore_index: int = -100) -> Tensor:
    """A language model's."""
    flat, target = pred_logits.reshape(-1, pred_logits.shape[-1]), target_ids.reshape(-1)
    valid = target != ignore_index
    if not valid.any():
        return flat.sum() * 0.0
    return -F.log_softmax(flat[valid], -1)[torch.arange(int(valid.sum())), target[valid]].mean()


class VocabularyInChunks(nn.Module):
    """Log-sum-exp over parts of the classes."""

    def __init__(self, ignore_index: int = -100, parts: int = 2) -> None:
        super().__init__()
        self.ignore_index, self.parts = ignore_index, parts

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, labels = logits.flatten(0, -2), labels.flatten()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        lse = torch.stack([part.logsumexp(-1) for part in logits.chunk(self.parts, dim=-1)]).logsumexp(0)
        keep = labels != self.ignore_index
        picked = logits.gather(-1, labels.masked_fill(~keep, 0)[:, None])[:, 0]
        return torch.where(keep, lse - picked, 0).sum() / keep.sum()


class Scored(NamedTuple):
    """What a ranking head returns."""

    scores: Tensor
    loss: Tensor


def ranking(query_vec: Tensor, item_vec: Tensor, temperature: float = 0.05) -> Scored:
    """Returns the scores first."""
    scores = query_vec @ item_vec.T / temperature
    return Scored(scores, F.cross_entropy(scores, torch.arange(len(scores))))


def gather_features(
    image_features: Tensor,
    text_features: Tensor,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Rows of both towers, of all ranks, with gradient."""
    if world_size == 1:
        return image_features, text_features
    return AllGather.apply(image_features), AllGather.apply(text_features)
