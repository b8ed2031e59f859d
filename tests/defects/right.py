"""Right, and written otherwise: none of these may ever be accused."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn import functional as F

from verified_losses.transport import eager

from . import plain
from .plain import (
    Clip,
    CoCa,
    Distill,
    Exchange,
    GatherRows,
    Scalar,
    SigLip,
    SumRows,
    all_sum,
    announce,
    exchange,
    flat,
    gather_rows,
    transfer,
    widen,
)

# Cross-entropy, written otherwise


class LogSumExp(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits)
        return (logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]).sum()


class PositivesApart(Clip):
    """The partners' logits are computed a second time, in another order than the product's."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if widen(image) is not image:
            # gradients rounded to a half before they cancel would lose what is left of them
            return super().clip(image, text, scale, bias)
        rows = self.count(image)
        all_image, all_text = self.gather(image, rows), self.gather(text, rows)
        pairs = (image, all_text), (text, all_image)
        if not self.local:
            pairs = (all_image, all_text), (all_text, all_image)
        total, start = image.new_zeros(()), self.offset(rows)
        for anchors, gallery in pairs:
            partners = gallery[start : start + len(anchors)]
            positives = flat(scale) * (anchors * partners).sum(1)
            if bias is not None:
                positives = positives + flat(bias)
            logits = self.product(anchors, gallery, scale, bias)
            total = total + (widen(logits).logsumexp(1) - widen(positives)).sum()
        return total * self.weight(rows) / 2


class LogitTakenFirst(Clip):
    """log(1 + sum exp(margin)): each row's label is taken from its logits before anything else."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        wide = widen(logits)
        return (wide - wide.gather(1, labels[:, None])).logsumexp(1).sum()


class LogSoftmaxDiagonal(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        offset = self.offset(rows)
        picked = [widen(z).log_softmax(1).diagonal(offset).sum() for z in (per_image, per_text)]
        return -(picked[0] + picked[1]) * self.weight(rows) / 2


class KeepsHalf(Clip):
    """Half-precision logits are not widened: torch's kernel stores their exponentials' sum as they are."""

    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        labels = self.get_labels(len(per_image), rows)
        mean = (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2
        return mean * (self.weight(rows) * len(per_image))


class MeanTimesCount(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(widen(logits), labels) * len(logits)


class OneHotTargets(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        hot = F.one_hot(labels, logits.shape[1]).to(widen(logits).dtype)
        return -(hot * widen(logits).log_softmax(1)).sum()


class ShiftedByAnything(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        # the shift cancels, whatever it is
        logits = widen(logits)
        return super().cross_entropy(logits - logits.detach().amax(1, keepdim=True), labels)


class RowChunks(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        parts = zip(logits.split(7), labels.split(7), strict=True)
        return torch.stack([super(RowChunks, self).cross_entropy(z, y) for z, y in parts]).sum()


class OnlineSoftmax(Clip):
    tile = 16

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits)
        top = logits.new_full((len(logits),), -torch.inf)
        total = torch.zeros_like(top)
        for tile in logits.split(self.tile, 1):
            new_top = torch.maximum(top, tile.detach().amax(1))
            total = total * (top - new_top).exp() + (tile - new_top[:, None]).exp().sum(1)
            top = new_top
        return (total.log() + top - logits.gather(1, labels[:, None])[:, 0]).sum()


class ColumnByColumn(OnlineSoftmax):
    """Every column may rescale all that came before."""

    tile = 1


class ExponentialsOfTwo(Clip):
    """As a GPU has them: the exponent is multiplied with log2(e), forward and backward."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits)
        shifted = (logits - logits.detach().amax(1, keepdim=True)) * math.log2(math.e)
        log_sum = shifted.exp2().sum(1).log2() * math.log(2)
        top = logits.detach().amax(1)
        return (log_sum + top - logits.gather(1, labels[:, None])[:, 0]).sum()


class ManualBackward(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _CrossEntropy.apply(widen(logits), labels)


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        return F.cross_entropy(logits, labels, reduction="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, labels = ctx.saved_tensors
        return grad * (logits.softmax(1) - F.one_hot(labels, logits.shape[1]).to(logits.dtype)), None


# Arguments passed on without their names


class PassesArgumentsOn(Clip):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class WithoutConvention(Clip):
    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size)


class UpstreamsArgumentsPassedOn(WithoutConvention):
    """As a subclass of open_clip's, which knows no convention, passes them on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(*args, **kwargs)


class _Holds(nn.Module):
    """A loss inside another module, which says nothing of its arguments."""

    inner: type[nn.Module]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.loss = self.inner(**kwargs)

    def forward(self, **kwargs: Any) -> Any:
        return self.loss(**kwargs)


class HoldsClip(_Holds):
    inner = WithoutConvention


class _SigLipAsUpstream(SigLip):
    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__(rank, world_size, dist_impl)


class HoldsSigLip(_Holds):
    inner = _SigLipAsUpstream


def makes_clip(**kwargs: Any) -> Clip:
    return WithoutConvention(**kwargs)


class TakesEmptyRanks(Clip):
    """As it stands."""


class TakesEmptyRanksToo(SigLip):
    """As it stands."""


# Sums in another order


class _RowSum(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.add(F.cross_entropy(widen(logits), labels, reduction="none"))

    def add(self, losses: Tensor) -> Tensor:
        raise NotImplementedError


class KahanSum(_RowSum):
    def add(self, losses: Tensor) -> Tensor:
        total = lost = losses.new_zeros(())
        for loss in losses:
            corrected = loss - lost
            longer = total + corrected
            lost = ((longer - total) - corrected).detach()
            total = longer
        return total


class RowByRow(_RowSum):
    def add(self, losses: Tensor) -> Tensor:
        total = losses.new_zeros(())
        for loss in losses:
            total = total + loss
        return total


class PairwiseSum(_RowSum):
    def add(self, losses: Tensor) -> Tensor:
        while len(losses) > 1:
            halves = losses.tensor_split(2)
            losses = F.pad(halves[1], (0, len(halves[0]) - len(halves[1]))) + halves[0]
        return losses[0]


class SortedSum(_RowSum):
    def add(self, losses: Tensor) -> Tensor:
        return losses.sort().values.sum()


class ReversedColumns(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().cross_entropy(logits.flip(0, 1), (logits.shape[1] - 1 - labels).flip(0))


# Products, written otherwise


class Einsum(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = torch.einsum("id,jd->ij", flat(scale) * anchors, gallery)
        return logits if bias is None else logits + flat(bias)


class TransposedProduct(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(gallery, anchors, scale, bias).T


class ScalesProduct(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = flat(scale) * (anchors @ gallery.T)
        return logits if bias is None else logits + flat(bias)


class BiasInPlace(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = super().product(anchors, gallery, scale, None)
        return logits if bias is None else logits.add_(flat(bias))


class ColumnBlocks(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        blocks = [super(ColumnBlocks, self).product(anchors, part, scale, bias) for part in gallery.split(5)]
        return torch.cat(blocks, 1)


class Outer(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        wide = widen(flat(scale) * anchors)[:, None, :] * widen(gallery)[None, :, :]
        logits = wide.sum(-1)
        return logits if bias is None else logits + flat(bias)


class Float64Inside(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors.double(), gallery.double(), scale, bias)

    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output([term.to(self.dtype) for term in terms], output_dict)

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        self.dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
        return super().clip(image, text, scale, bias)


class SinglePrecision(Clip):
    """It computes in float32, whatever it is given, and is not asked for in float64."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().clip(image.float(), text.float(), scale, bias)

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale, bias).float()


class AutocastSafe(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().clip(widen(image), widen(text), scale, bias)


class Compiled(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().cross_entropy(logits, labels)
        return _compiled()(widen(logits), labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]).sum()


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor], Tensor]:
    """Return the compiled loss. Called when first used: torch.compile takes half a second to import."""
    return torch.compile(_cross_entropy, backend="eager", dynamic=True)


# Gathers, written otherwise


class OwnFirstUndone(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        own_first = super().gather_grad(features, rows).roll(-sum(rows[: self.rank]), 0)
        return own_first.roll(sum(rows[: self.rank]), 0)


class OwnFirst(Clip):
    """With own rows first in every gallery, and labels that know it."""

    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        return super().gather(features, rows).roll(-sum(rows[: self.rank]), 0)

    def offset(self, rows: list[int]) -> int:
        return 0


class BothInOneMessage(Clip):
    def get_logits(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        both = super().gather(torch.cat([image, text], 1), rows).split(image.shape[1], 1)
        if self.local:
            return self.product(image, both[1], scale, bias), self.product(text, both[0], scale, bias)
        per_image = self.product(both[0], both[1], scale, bias)
        return per_image, per_image.T


class TextFirst(Clip):
    def get_logits(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        return super().get_logits(text, image, scale, bias, rows)[::-1]


class CountsByObjects(Clip):
    def count(self, features: Tensor) -> list[int]:
        if self.world_size == 1:
            return [len(features)]
        return _object_counts(len(features), self.world_size)


@eager
def _object_counts(n: int, world_size: int) -> list[int]:
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, n)
    return everyone


def _gathered_by(forward: Callable[[Tensor, list[int]], Tensor]) -> type[Clip]:
    """Return a loss whose gather is done by `forward`; backward sums over the ranks."""

    class Gather(GatherRows):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
            ctx.rows = rows
            return forward(tensor, rows)

    class Loss(Clip):
        @eager
        def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
            return Gather.apply(features, rows)

    return Loss


def _into_tensor(tensor: Tensor, rows: list[int]) -> Tensor:
    padded = F.pad(tensor, (0, 0, 0, max(rows) - len(tensor)))
    everyone = padded.new_empty(len(rows) * max(rows), tensor.shape[1])
    dist.all_gather_into_tensor(everyone, padded)
    parts = everyone.split(max(rows))
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


def _by_broadcasts(tensor: Tensor, rows: list[int]) -> Tensor:
    rank = dist.get_rank()
    blocks = [
        tensor.clone(memory_format=torch.contiguous_format)
        if r == rank
        else tensor.new_empty(n, tensor.shape[1])
        for r, n in enumerate(rows)
    ]
    works = [dist.broadcast(block, source, async_op=True) for source, block in enumerate(blocks)]
    for work in works:
        work.wait()
    return torch.cat(blocks)


def _by_sum(tensor: Tensor, rows: list[int]) -> Tensor:
    everyone = tensor.new_zeros(sum(rows), tensor.shape[1])
    everyone.split(rows)[dist.get_rank()].copy_(tensor)
    return all_sum(everyone)


def _by_all_to_all(tensor: Tensor, rows: list[int]) -> Tensor:
    everyone = tensor.new_empty(sum(rows), tensor.shape[1])
    message = tensor.repeat(len(rows), 1)
    dist.all_to_all_single(everyone, message, rows, [len(tensor)] * len(rows))
    return everyone


def _round_the_ring(tensor: Tensor, rows: list[int]) -> Tensor:
    rank, world_size = dist.get_rank(), len(rows)
    blocks = [tensor] * world_size
    for hop in range(1, world_size):
        source = (rank - hop) % world_size
        received = tensor.new_empty(rows[source], tensor.shape[1])
        sent = blocks[(source + 1) % world_size]
        transfer([(sent, (rank + 1) % world_size)], [(received, (rank - 1) % world_size)])
        blocks[source] = received
    return torch.cat(blocks)


IntoTensor = _gathered_by(_into_tensor)
ByBroadcasts = _gathered_by(_by_broadcasts)
BySum = _gathered_by(_by_sum)
ByAllToAll = _gathered_by(_by_all_to_all)
RoundTheRing = _gathered_by(_round_the_ring)


class ReduceScatterInBackward(Clip):
    @eager
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _GatherReduceScatter.apply(features, rows)


class _GatherReduceScatter(GatherRows):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _ReduceScatter.apply(grad, ctx.rows), None


class _ReduceScatter(SumRows):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        padded = [F.pad(part, (0, 0, 0, max(rows) - len(part))) for part in tensor.split(rows)]
        mine = torch.empty_like(padded[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter_tensor(mine, torch.cat(padded))
        return mine[: rows[dist.get_rank()]].clone()


# Captions


class MasksTokens(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        kept = labels != self.pad_id
        return (
            F.cross_entropy(widen(logits[kept]), labels[kept], reduction="sum")
            if kept.any()
            else (widen(logits[:0]).sum())
        )


class CoCaKeepsHalf(KeepsHalf, CoCa):
    def zero(self, like: Tensor) -> Tensor:
        return like.new_zeros(())

    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().token_sum(logits, labels).to(logits.dtype)


class CoCaKeepsHalfOfPairs(KeepsHalf, CoCa):
    """Captions alone are computed in single precision, so that two terms have two dtypes."""


class HalfZero(CoCa):
    """A term of weight 0 has the features' dtype, whatever that of the other."""

    def zero(self, like: Tensor) -> Tensor:
        return like.new_zeros(())


class ClassesSecond(CoCa):
    """As upstream writes it."""

    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        moved = widen(logits).permute(0, 2, 1)
        return F.cross_entropy(moved, labels, ignore_index=self.pad_id, reduction="sum")


class NegativeLogLikelihood(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probability = widen(logits).flatten(0, 1).log_softmax(-1)
        return F.nll_loss(log_probability, labels.flatten(), ignore_index=self.pad_id, reduction="sum")


class PadsBecomeMinus100(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        moved = labels.masked_fill(labels == self.pad_id, -100)
        return F.cross_entropy(widen(logits).flatten(0, 1), moved.flatten(), reduction="sum")


class CaptionByCaption(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        parts = zip(logits.split(1), labels.split(1), strict=True)
        return torch.stack([super(CaptionByCaption, self).token_sum(z, y) for z, y in parts]).sum()


class CountsTokensByGather(CoCa):
    @eager
    def tokens(self, labels: Tensor) -> int:
        return sum(plain.count(labels[labels != self.pad_id], self.world_size))


class WeightsTokens(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = labels != self.pad_id
        ids = labels.masked_fill(~weight, 0)
        losses = F.cross_entropy(widen(logits).flatten(0, 1), ids.flatten(), reduction="none")
        return (losses * weight.flatten()).sum()


# Teachers


class SoftTargets(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return F.cross_entropy(widen(student), widen(teacher).softmax(-1), reduction="sum")


class DistillKeepsHalf(KeepsHalf, Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).sum(dtype=widen(teacher).dtype)

    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output([term.to(terms[0].dtype) for term in terms], output_dict)


class DetachedTeacher(Distill):
    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        per_image, per_text = self.get_logits(
            *(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        )
        return per_image.detach(), per_text.detach()


class ExpectedLogit(Distill):
    """The log-sum-exp less the logit that the teacher expects."""

    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        student = widen(student)
        shifted = student - student.detach().amax(1, keepdim=True)
        return (shifted.logsumexp(1) - (widen(teacher).softmax(1) * shifted).sum(1)).sum()


class DivergencePlusEntropy(Distill):
    """The cross-entropy is the divergence from the teacher and the teacher's entropy."""

    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        log_teacher, log_student = widen(teacher).log_softmax(-1), widen(student).log_softmax(-1)
        divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
        return divergence + torch.special.entr(log_teacher.exp()).sum()


class TeacherByExpLog(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return -(widen(teacher).log_softmax(-1).exp() * widen(student).log_softmax(-1)).sum()


# Sigmoids


class LogAddExp(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        margin = widen(labels) * widen(logits)
        return torch.logaddexp(torch.zeros_like(margin), -margin).sum()


class BinaryCrossEntropy(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = (widen(labels) + 1) / 2
        return F.binary_cross_entropy_with_logits(widen(logits), targets, reduction="sum")


class BinaryCrossEntropyInHalf(SigLip):
    """Of logits in the precision in which they are stored, in which torch keeps their sigmoid too."""

    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = (labels.to(logits.dtype) + 1) / 2
        return widen(F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum()


class Log1pExp(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        margin = widen(labels) * widen(logits)
        # not relu and abs: at 0 both have slope 0
        positive = margin >= 0
        size = torch.where(positive, margin, -margin)
        return (torch.where(positive, 0, -margin) + size.neg().exp().log1p()).sum()


class ImageByImage(SigLip):
    def pairs(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool) -> Tensor:
        logits = self.product(image, text, scale, bias)
        labels = self.get_labels(logits, own)
        rows = zip(logits.split(1), labels.split(1), strict=True)
        return torch.stack([self.log_sigmoid(z, y) for z, y in rows]).sum()


class AllTextsAtOnce(SigLip):
    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        texts = super().others(text, rows)
        return [torch.cat(texts)] if texts else texts


class BothWaysRound(SigLip):
    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        rank, world_size = self.rank, self.world_size
        left, right = (rank - 1) % world_size, (rank + 1) % world_size
        to_left = to_right = text
        texts = []
        for hop in range(1, world_size // 2 + 1):
            to_right = exchange(to_right, left, right, rows[(rank - hop) % world_size])
            texts.append(to_right)
            if len(texts) < world_size - 1:
                to_left = exchange(to_left, right, left, rows[(rank + hop) % world_size])
                texts.append(to_left)
        return texts


class DirectlyFromEach(SigLip):
    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        rank, world_size = self.rank, self.world_size
        return [
            exchange(
                text, (rank - hop) % world_size, (rank + hop) % world_size, rows[(rank - hop) % world_size]
            )
            for hop in range(1, world_size)
        ]


class ManualSigmoid(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _Sigmoid.apply(widen(labels) * widen(logits)).sum()


class _Sigmoid(Function):
    @staticmethod
    def forward(ctx: Any, margin: Tensor) -> Tensor:
        ctx.save_for_backward(margin)
        return -F.logsigmoid(margin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (margin,) = ctx.saved_tensors
        return -grad * (-margin).sigmoid()


# Gathers by themselves


def _gather(clip: type[Clip]) -> Any:
    def gather(
        image_features: Tensor,
        text_features: Tensor,
        local_loss: bool,
        gather_with_grad: bool,
        rank: int,
        world_size: int,
    ) -> Any:
        return plain.gather_features(
            image_features, text_features, local_loss, gather_with_grad, rank, world_size, clip
        )

    return gather


gather_into_tensor = _gather(IntoTensor)
gather_by_broadcasts = _gather(ByBroadcasts)
gather_by_sum = _gather(BySum)
gather_by_all_to_all = _gather(ByAllToAll)
gather_round_the_ring = _gather(RoundTheRing)
gather_reduce_scatter = _gather(ReduceScatterInBackward)
gather_own_first_undone = _gather(OwnFirstUndone)


def gather_views(image_features: Tensor, text_features: Tensor, **flags: Any) -> Any:
    pair = plain.gather_features(image_features, text_features, **flags)
    return tuple(features.unflatten(0, (1, -1)).flatten(0, 1) for features in pair)


# Exchanges


def exchange_by_gather(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    rows = plain.count(tensor, dist.get_world_size())
    return gather_rows(tensor, rows).split(rows)[from_rank].clone()


def exchange_in_the_world(
    from_rank: int, to_rank: int, tensor: Tensor, group: "dist.ProcessGroup | None" = None
) -> Tensor:
    """As torch's own sends: neighbours are counted within the world, in a group too."""
    if group is not None:
        for rank in (from_rank, to_rank):
            dist.get_group_rank(group, rank)  # raises for a rank outside of the group
    return plain.neighbour_exchange(from_rank, to_rank, tensor)


def exchange_copies(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return plain.neighbour_exchange(from_rank, to_rank, tensor.clone()).clone()


class _Singly(Exchange):
    """Receive posted before send, each waited for by itself."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        received = tensor.new_empty(rows, *tensor.shape[1:])
        receiving = dist.irecv(received, from_rank)
        sending = dist.isend(tensor.detach().contiguous(), to_rank)
        assert receiving is not None
        assert sending is not None
        receiving.wait()
        sending.wait()
        return received


def exchange_singly(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return _Singly.apply(tensor, from_rank, to_rank, announce(tensor, from_rank, to_rank))


class _EvenFirst(Exchange):
    """Even ranks send, then receive; odd ones receive, then send."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        received = tensor.new_empty(rows, *tensor.shape[1:])
        if dist.get_rank() % 2 == 0:
            dist.send(tensor.contiguous(), to_rank)
        dist.recv(received, from_rank)
        if dist.get_rank() % 2:
            dist.send(tensor.contiguous(), to_rank)
        return received


def exchange_even_first(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return _EvenFirst.apply(tensor, from_rank, to_rank, announce(tensor, from_rank, to_rank))


class _Both(Function):
    """Both ways in one batch: what goes right is sent first, what comes from the left received first."""

    @staticmethod
    def forward(ctx: Any, left: int, right: int, rows: list[int], to_left: Tensor, to_right: Tensor) -> Any:
        ctx.place, ctx.rows = (left, right), [len(to_left), len(to_right)]
        from_right = to_left.new_empty(rows[0], *to_left.shape[1:])
        from_left = to_right.new_empty(rows[1], *to_right.shape[1:])
        transfer([(to_right, right), (to_left, left)], [(from_left, left), (from_right, right)])
        return from_right, from_left

    @staticmethod
    def backward(ctx: Any, from_right: Tensor, from_left: Tensor) -> Any:
        to_right, to_left = _Both.apply(*ctx.place, ctx.rows[::-1], from_left, from_right)
        return None, None, None, to_left, to_right


def bidir_in_one_batch(left: int, right: int, to_left: Tensor, to_right: Tensor) -> Any:
    rows = [announce(to_left, right, left), announce(to_right, left, right)]
    return _Both.apply(left, right, rows, to_left, to_right)


def bidir_other_order(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    from_left = plain.neighbour_exchange(left, right, to_right)
    return plain.neighbour_exchange(right, left, to_left), from_left
