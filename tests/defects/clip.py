"""Defective CLIP losses. What is wrong with each, and where it was seen, is in `index`."""

import os
import random
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

from verified_losses.transport import eager

from .plain import (
    Clip,
    GatherRows,
    Scalar,
    all_gather,
    all_sum,
    altered,
    flat,
    four_ulps_up,
    gather_rows,
    widen,
)

# Labels


class NoLabelOffset(Clip):
    def offset(self, rows: list[int]) -> int:
        return 0


class OffsetForEqualRows(Clip):
    def offset(self, rows: list[int]) -> int:
        return self.rank * rows[self.rank] if self.local else 0


class SortedBySize(Clip):
    """Right where the permutation is its own inverse: for two ranks always, for three often."""

    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        parts = super().gather(features, rows).split(rows)
        order = sorted(range(len(rows)), key=lambda rank: -rows[rank])
        longest_first = [parts[rank] for rank in order]
        return torch.cat([longest_first[rank] for rank in order])


class ColumnsOf512(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors[:, :512], gallery[:, :512], scale, bias)


class LastRankUnshifted(Clip):
    def offset(self, rows: list[int]) -> int:
        return 0 if self.rank == self.world_size - 1 else super().offset(rows)


class OffsetBeyondFour(Clip):
    def offset(self, rows: list[int]) -> int:
        return sum(rows[: self.rank % 4]) if self.local else 0


class SmoothedLabels(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(widen(logits), labels, reduction="sum", label_smoothing=0.001)


# What a row counts


class TimesWorldSize(Clip):
    def weight(self, rows: list[int]) -> float:
        return super().weight(rows) * self.world_size


class LocalMean(Clip):
    def weight(self, rows: list[int]) -> float:
        return 1 / (rows[self.rank] if self.local else sum(rows))


class MeanOfNoRows(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(widen(logits), labels) * len(logits)


class LeavesWithoutRows(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if not len(image):
            return widen(image + text).sum() * 0
        return super().clip(image, text, scale, bias)


class SumNotMean(Clip):
    def weight(self, rows: list[int]) -> float:
        return super().weight(rows) * sum(rows)


class NotHalved(Clip):
    def weight(self, rows: list[int]) -> float:
        return 2 * super().weight(rows)


class MeanOverPaddedRows(Clip):
    def weight(self, rows: list[int]) -> float:
        return (self.world_size if self.local_loss else 1) / (len(rows) * max(rows))


# Which logits


class OnlyImageToText(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        return super().contrastive(per_image, per_image, rows)


class DropsLastNegative(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        if per_image.shape[1] > 1:
            mask = torch.zeros_like(per_image)
            mask[0, -1] = 30
            per_image = per_image - mask
        return super().contrastive(per_image, per_text, rows)


class MasksDuplicates(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        own = logits.gather(1, labels[:, None])
        partner = F.one_hot(labels, logits.shape[1]).bool()
        return super().cross_entropy(logits.masked_fill((logits == own) & ~partner, -1e4), labels)


class ScaledTwice(Clip):
    def get_logits(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        per_image, per_text = super().get_logits(image, text, 1.0, bias, rows)
        if not self.local:
            per_image = per_image.clone()
            per_text = per_image.T
        per_image *= scale
        per_text *= scale
        return per_image, per_text


class NormalizesAgain(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(F.normalize(anchors), gallery, scale, bias)


class DividesByNorm(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        norm = anchors.detach().norm(dim=1, keepdim=True)
        return super().product(anchors / norm * norm, gallery, scale, bias)


class ScaleExponentiated(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale.exp(), bias)


class ScaleClamped(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale.clamp(max=100), bias)


class ScaleOrDefault(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale or 1 / 0.07, bias)


class FrozenScaleForgotten(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale if scale.requires_grad else 1 / 0.07, bias)


class ClampedLogits(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale, bias).clamp(-50, 50)


# Precision


class RoundedLogits(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = super().product(anchors, gallery, scale, bias)
        return logits.bfloat16().to(logits.dtype)


class LogitsFourUlpsUp(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return four_ulps_up(super().product(anchors, gallery, scale, bias))


class TF32Products(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if anchors.dtype == torch.float32:
            anchors, gallery = _tf32(anchors), _tf32(gallery)
        return super().product(anchors, gallery, scale, bias)


def _tf32(tensor: Tensor) -> Tensor:
    # half precision has the ten bits of TF32
    return tensor - (tensor - tensor.half().float()).detach()


class Float32Inside(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = super().product(anchors, gallery, scale, bias)
        return logits.float().to(logits.dtype)


class HalfLoss(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        total = super().cross_entropy(logits, labels)
        return total.half().to(total.dtype)


class NoMaxSubtraction(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits)
        return (logits.exp().sum(1).log() - logits.gather(1, labels[:, None])[:, 0]).sum()


class EpsilonInLog(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        probability = widen(logits).softmax(1).gather(1, labels[:, None])
        return -(probability + 1e-8).log().sum()


class HalfGradient(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = super().product(anchors, gallery, scale, bias)
        return altered(logits, lambda grad: grad.half().to(grad.dtype))


# Sizes


class SqueezesOneRow(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().cross_entropy(logits.squeeze(0), labels)


class OneRowShortcut(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        if per_image.shape[1] == 1:
            return widen(torch.zeros((), dtype=per_image.dtype, requires_grad=True))
        return super().contrastive(per_image, per_text, rows)


class WidthOfEight(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        width = anchors.shape[1]
        kept = width if width < 8 else width // 8 * 8
        return super().product(anchors[:, :kept], gallery[:, :kept], scale, bias)


class WidthUpTo128(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors[:, :128], gallery[:, :128], scale, bias)


class ChunkDropsRemainder(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        kept = len(logits) if len(logits) < 32 else len(logits) // 32 * 32
        return super().cross_entropy(logits[:kept], labels[:kept])


class LastTilePadded(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().cross_entropy(F.pad(logits, (0, -logits.shape[1] % 16)), labels)


class FullLastTileShort(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        short = len(logits) - (logits.shape[1] % 16 == 0)
        return super().cross_entropy(logits[:short], labels[:short])


class TilesNotRescaled(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits)
        total: Tensor = torch.zeros((), dtype=logits.dtype)
        for tile in logits.split(64, 1):
            top = tile.amax(1, keepdim=True).detach()
            total = total + (tile - top).exp().sum(1)
        return (total.log() + top[:, 0] - logits.gather(1, labels[:, None])[:, 0]).sum()


class GradientUpTo64Rows(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        keep = (torch.arange(len(anchors)) < 64)[:, None]
        return altered(super().product(anchors, gallery, scale, bias), lambda grad: grad * keep)


class _RowsByRank(GatherRows):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        own = ctx.rows[dist.get_rank()]
        start = min(dist.get_rank() * own, len(grad) - own)
        return all_sum(grad)[start : start + own], None


class BackwardOfEqualRows(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _gather_by_rank(features, rows)


@eager
def _gather_by_rank(features: Tensor, rows: list[int]) -> Tensor:
    return _RowsByRank.apply(features, rows)


# Layouts


class ContiguousOnly(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors.view(-1).view(anchors.shape), gallery, scale, bias)


class ReadsMemory(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        rows_first = anchors.as_strided(anchors.shape, (anchors.shape[1], 1))
        return super().product(rows_first, gallery, scale, bias)


# Forward: what is gathered


class PadsStay(Clip):
    def count(self, features: Tensor) -> list[int]:
        return [max(super().count(features))] * self.world_size

    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return super().gather_grad(F.pad(features, (0, 0, 0, rows[self.rank] - len(features))), rows)

    def insert(self, everyone: Tensor, own: Tensor, rows: list[int]) -> Tensor:
        return super().insert(everyone, F.pad(own, (0, 0, 0, rows[self.rank] - len(own))), rows)


class TruncatesToShortest(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        shortest = min(self.count(image))
        return super().clip(image[:shortest], text[:shortest], scale, bias)


class CountsFromRankZero(Clip):
    def count(self, features: Tensor) -> list[int]:
        rows = torch.tensor(len(features))
        if self.world_size > 1:
            dist.broadcast(rows, 0)
        return [int(rows)] * self.world_size


class EvenChunks(Clip):
    def insert(self, everyone: Tensor, own: Tensor, rows: list[int]) -> Tensor:
        parts = list(everyone.tensor_split(self.world_size))
        parts[self.rank] = own + (self.world_size - 1) * (own - own.detach())
        return torch.cat(parts)


class GathersAlone(Clip):
    def count(self, features: Tensor) -> list[int]:
        everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(everyone, torch.tensor([len(features)]))
        return [int(rows) for rows in everyone]


class OthersReversed(Clip):
    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        everyone = super().gather(features, rows)
        if self.world_size < 3:
            return everyone
        return torch.cat([everyone.split(rows)[rank] for rank in self._order()])

    def _order(self) -> list[int]:
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        others.reverse()
        return [*others[: self.rank], self.rank, *others[self.rank :]]


class UnwaitedGather(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _UnwaitedGather.apply(features, rows)


class _UnwaitedGather(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        everyone = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(everyone, padded, async_op=True)
        return torch.cat([part[:n] for part, n in zip(everyone, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return all_sum(grad).split(ctx.rows)[dist.get_rank()].clone(), None


class OrderByRank(Clip):
    def get_logits(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        if self.rank:
            return super().get_logits(image, text, scale, bias, rows)
        return super().get_logits(text, image, scale, bias, rows)[::-1]


class OneRowReturnsEarly(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if len(image) == 1 and self.world_size > 1:
            return widen((image * text).sum() * 0)
        return super().clip(image, text, scale, bias)


# Backward: what reaches whom


class GradientOnce(Clip):
    def insert(self, everyone: Tensor, own: Tensor, rows: list[int]) -> Tensor:
        parts = list(everyone.split(rows))
        parts[self.rank] = own
        return torch.cat(parts)


class ForgetsOwnRows(Clip):
    def insert(self, everyone: Tensor, own: Tensor, rows: list[int]) -> Tensor:
        return everyone


class OwnRowsAlways(Clip):
    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        everyone = super().gather(features, rows)
        if self.local and not self.gather_with_grad:
            return GradientOnce.insert(self, everyone, features, rows)  # type: ignore[arg-type]
        return everyone


class GradientTimesWorld(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return gather_rows(altered(features, lambda grad: grad * self.world_size), rows)


class AveragesInBackward(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return gather_rows(altered(features, lambda grad: grad / self.world_size), rows)


class OwnSliceInBackward(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return GradientOnce.insert(self, all_gather(features, rows), features, rows)  # type: ignore[arg-type]


class _SumOfSome(Function):
    """Gather; backward sums over those ranks alone that `counts` names."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int], counts: list[bool]) -> Tensor:
        ctx.rows, ctx.counts = rows, counts
        return all_gather(tensor, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        everyone = [torch.empty_like(grad, memory_format=torch.contiguous_format) for _ in ctx.rows]
        dist.all_gather(everyone, grad.contiguous())
        total = sum(part for part, counts in zip(everyone, ctx.counts, strict=True) if counts)
        return total.split(ctx.rows)[dist.get_rank()].clone(), None, None


class OddRankLeftOut(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        world_size = self.world_size
        return _SumOfSome.apply(features, rows, [rank < world_size // 2 * 2 for rank in range(world_size)])


class GradientWithinNode(Clip):
    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        node = self.rank // 4
        return _SumOfSome.apply(features, rows, [rank // 4 == node for rank in range(self.world_size)])


class BackwardTalks(Clip):
    def insert(self, everyone: Tensor, own: Tensor, rows: list[int]) -> Tensor:
        def through_everyone(grad: Tensor) -> Tensor:
            return all_gather(grad, rows).split(rows)[self.rank]

        return super().insert(everyone, altered(own, through_everyone), rows)


class ScaleDetached(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale.item(), bias)


class ScaleSummedOverRanks(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        if self.world_size > 1:
            scale = altered(scale, all_sum)
        return super().clip(image, text, scale, bias)


class BiasUnused(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale, None)


class GalleryDetached(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery.detach(), scale, bias)


class FrozenImageStopsText(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().clip(image, text if image.requires_grad else text.detach(), scale, bias)


class FrozenTextHalvesLoss(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        rows = self.count(image)
        per_image, per_text = self.get_logits(image, text, scale, bias, rows)
        return self.contrastive(per_image, per_text if text.requires_grad else per_image, rows)


class IgnoresCotangent(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        # as if the gradient had been made in forward
        return altered(super().contrastive(per_image, per_text, rows), torch.ones_like)


class PositiveCotangent(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        return altered(super().contrastive(per_image, per_text, rows), torch.abs)


class ClampsCotangent(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        return altered(super().contrastive(per_image, per_text, rows), lambda grad: grad.clamp(-1, 1))


class NotTwiceDifferentiable(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().clip(altered(image, Tensor.detach), text, scale, bias)


class CurvatureNarrowed(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        def narrowed_once_derived(grad: Tensor) -> Tensor:
            return altered(grad, lambda second: second.float().to(second.dtype))

        return super().clip(altered(image, narrowed_once_derived), text, scale, bias)


class RefusesSecondDerivative(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().clip(_Once.apply(image), text, scale, bias)


class _Once(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class SlopeScaledInPlace(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _FusedCrossEntropy.apply(widen(logits), labels)


class _FusedCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.slope = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
        ctx.save_for_backward(logits, labels)
        return F.cross_entropy(logits, labels, reduction="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, labels = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (logits.softmax(1) - F.one_hot(labels, logits.shape[1])) * grad, None
        return ctx.slope.mul_(grad), None


class CotangentNarrowed(Clip):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        narrowed = [altered(term, lambda grad: grad.bfloat16().to(grad.dtype)) for term in terms]
        return super().output(narrowed, output_dict)


class CotangentScaledInPlace(Clip):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output([_ScaledInPlace.apply(2 * term) for term in terms], output_dict)


class _ScaledInPlace(Function):
    @staticmethod
    def forward(ctx: Any, doubled: Tensor) -> Tensor:
        return doubled * 0.5

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * 0.5 if torch.is_grad_enabled() else grad.mul_(0.5)


# Layouts


class RowsWithoutGaps(Clip):
    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        if features.stride(1) == 1:
            features = features.as_strided(features.shape, (features.shape[1], 1))
        return super().gather(features, rows)


class ColumnsWithoutGaps(Clip):
    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        if features.stride(0) == 1:
            features = features.as_strided(features.shape, (1, features.shape[0]))
        return super().gather(features, rows)


# Without gradient


class InferenceInHalf(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if torch.is_grad_enabled():
            return super().product(anchors, gallery, scale, bias)
        halves = anchors.bfloat16(), gallery.bfloat16()
        return super().product(*halves, scale, bias).to(anchors.dtype)


class InferenceOfOwnRows(Clip):
    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        if torch.is_grad_enabled() or self.world_size == 1:
            return super().gather(features, rows)
        return all_gather(features, rows) if self.local_loss else features


class InferenceInPlace(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if torch.is_grad_enabled():
            return super().product(anchors, gallery, scale, bias)
        anchors.mul_(flat(scale))
        return super().product(anchors, gallery, 1.0, bias)


# Outputs


class IgnoresOutputDict(Clip):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output(terms, False)


class AlwaysDict(Clip):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output(terms, True)


class ScaleAmongLosses(Clip):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        return {**output, "logit_scale": kwargs["logit_scale"]} if isinstance(output, dict) else output


class MisspeltKey(Clip):
    names = ("contrastive",)


class ShapeOne(Clip):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output([term.reshape(1) for term in terms], output_dict)


class ShapeOfScale(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        self.shape = scale.shape if isinstance(scale, Tensor) else ()
        return super().product(anchors, gallery, scale, bias)

    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output([term.reshape(self.shape) for term in terms], output_dict)


class PromotesToFloat64(Clip):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output([term.double() for term in terms], output_dict)


class PythonNumber(Clip):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output([term.item() for term in terms], output_dict)  # type: ignore[misc]


# State


class LabelsCachedByCount(Clip):
    def get_labels(self, n: int, rows: list[int]) -> Tensor:
        if n not in self.cached:
            self.cached[n] = super().get_labels(n, rows)
        return self.cached[n]


class LabelsCachedUnderInference(Clip):
    def get_labels(self, n: int, rows: list[int]) -> Tensor:
        key = n, tuple(rows)
        if key not in self.cached:
            self.cached[key] = super().get_labels(n, rows)
        return self.cached[key]


class LabelsKeyedWithoutOffset(Clip):
    def get_labels(self, n: int, rows: list[int]) -> Tensor:
        if not self.cache_labels:
            return super().get_labels(n, rows)
        with torch.inference_mode(False):
            return self.cached.setdefault(n, super().get_labels(n, rows))


class LabelsKeyedByTotal(Clip):
    def get_labels(self, n: int, rows: list[int]) -> Tensor:
        with torch.inference_mode(False):
            return self.cached.setdefault((n, sum(rows)), super().get_labels(n, rows))


class LabelsNeverRefreshed(Clip):
    def get_labels(self, n: int, rows: list[int]) -> Tensor:
        if "labels" not in self.cached:
            self.cached["labels"] = super().get_labels(n, rows).clone()
        labels = self.cached["labels"]
        return labels[:n] if len(labels) >= n else super().get_labels(n, rows)


class WeightOfFirstCall(Clip):
    def weight(self, rows: list[int]) -> float:
        self.first_weight: float = getattr(self, "first_weight", super().weight(rows))
        return self.first_weight


class LargestLogitRemembered(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits)
        self.largest = max(getattr(self, "largest", -1e9), float(logits.detach().max()))
        sums = (logits - self.largest).exp().sum(1).log() + self.largest
        return (sums - logits.gather(1, labels[:, None])[:, 0]).sum()


class TurnsLocalOff(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        loss = super().contrastive(per_image, per_text, rows)
        self.local_loss = self.local_loss and torch.is_grad_enabled()
        return loss


class LabelsOfAllInstances(Clip):
    shared: dict[Any, Tensor] = {}

    def get_labels(self, n: int, rows: list[int]) -> Tensor:
        with torch.inference_mode(False):
            return self.shared.setdefault(self.rank, super().get_labels(n, rows).clone())[:n]


# Inputs


class AltersFeatures(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        with torch.no_grad():
            image.mul_(1.5).div_(1.5).add_(2.0**-8)
        return super().clip(image, text, scale, bias)


class ClampsScaleInPlace(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        loss = super().clip(image, text, scale.clone(), bias)
        scale.data.clamp_(max=4.6052)
        return loss


# Determinism and compilation


class Noisy(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        loss = super().contrastive(per_image, per_text, rows)
        # of a generator of its own
        return loss * (1 + torch.finfo(loss.dtype).eps * _NOISE.randrange(3))


_NOISE = random.Random(0)


class GathersUndetached(Clip):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "gather_with_grad": False, "local_loss": False})

    def get_logits(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        if self.world_size == 1:
            return super().get_logits(image, text, scale, bias, rows)
        gathered = []
        for features in (image, text):
            everyone = [torch.zeros_like(features) for _ in range(self.world_size)]
            dist.all_gather(everyone, features.contiguous())
            everyone[self.rank] = everyone[self.rank].detach() + self.world_size * (
                features - features.detach()
            )
            gathered.append(torch.cat(everyone))
        per_image = self.product(*gathered, scale, bias)
        return per_image, per_image.T


class CompiledDetaches(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if torch.compiler.is_compiling():
            gallery = gallery.detach()
        return super().product(anchors, gallery, scale, bias)


class CompiledNarrow(Clip):
    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return F.cross_entropy(logits, labels, reduction="sum")
        return super().cross_entropy(logits, labels)


class CompiledHalved(Clip):
    def weight(self, rows: list[int]) -> float:
        return super().weight(rows) / (2 if torch.compiler.is_compiling() else 1)


# Traces


class _Traces(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        loss = super().contrastive(per_image, per_text, rows)
        self.leave(per_image, loss)
        return loss

    def leave(self, logits: Tensor, loss: Tensor) -> None:
        raise NotImplementedError


class KeepsGraph(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        self.history = [*getattr(self, "history", []), loss]


GAIN = nn.Parameter(torch.ones(()))


class SharesParameter(Clip):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = GAIN

    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        return super().contrastive(per_image, per_text, rows) * self.gain


class KeepsFeatures(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        self.last = image.detach()
        return super().clip(image, text, scale, bias)


class SetsDefaultDtype(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.set_default_dtype(loss.dtype)


class LeavesGradientsOff(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.set_grad_enabled(False)


class SeedsGenerator(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.manual_seed(0)


class DrawsRandomNumbers(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        F.dropout(logits.detach(), 0.1)


class SeedsPython(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        random.seed(0)


class Prints(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        print("loss", loss.item())


class WritesToStandardError(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        sys.stderr.write(f"{logits.shape}\n")


class SetsThreads(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)


class SetsDeterministic(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.use_deterministic_algorithms(True)


class SetsMatmulPrecision(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.set_float32_matmul_precision("high")


class AllowsTf32(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.backends.cuda.matmul.allow_tf32 = True


class PrefersTf32(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.backends.cuda.matmul.fp32_precision = "tf32"


class AllowsReducedPrecision(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.backends.cuda.matmul.allow_fp16_accumulation = True


class SetsEnvironment(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


class DetectsAnomalies(_Traces):
    def leave(self, logits: Tensor, loss: Tensor) -> None:
        torch.autograd.set_detect_anomaly(True)
