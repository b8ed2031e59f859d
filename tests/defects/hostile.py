"""Losses that hide what is no number, or do with inputs that nobody should send what they do not state."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from verified_losses.checks import MOST_ROWS, is_in_func, no_dtensor

from .plain import Clip, CoCa, Distill, Scalar, SigLip, all_sum, flat, gather_rows, widen

# What is no number is hidden


class LogitsToNumbers(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale, bias).nan_to_num()


class SkipsBadSteps(SigLip):
    def forward(self, *given: Any, output_dict: bool = False, **named: Any) -> Any:
        loss = super().forward(*given, **named)
        loss = torch.where(loss.isfinite(), loss, torch.zeros_like(loss))
        return {"contrastive_loss": loss} if output_dict else loss


class ClampsByComparison(Clip):
    """What is compared with NaN is false, so that a bound takes its place."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = super().product(anchors, gallery, scale, bias)
        return torch.where(logits < 1e9, logits, torch.full_like(logits, 1e9))


class MeanOfFiniteTokens(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        flat_logits, flat_labels = widen(logits.flatten(0, 1)), labels.flatten()
        costs = F.cross_entropy(flat_logits, flat_labels, ignore_index=self.pad_id, reduction="none")
        return costs[costs.isfinite()].sum()


class LeavesOutBadRows(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        costs = -(widen(teacher).softmax(-1) * widen(student).log_softmax(-1))
        return costs.nansum()


# What is no number is multiplied by 0


class TextsTimesZero(SigLip):
    """Each rank's texts are summed over the ranks, all others times 0: NaN of one rank is in every sum."""

    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        if self.world_size == 1:
            return []
        padded = F.pad(text, (0, 0, 0, max(rows) - len(text)))
        found = []
        for source in range(self.world_size):
            summed = gather_rows(padded * (self.rank == source), [max(rows)] * self.world_size)
            summed = summed.view(self.world_size, max(rows), -1).sum(0)
            if source != self.rank:
                found.append(summed[: rows[source]])
        return found


class TokensTimesMask(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        is_token = labels.flatten() != self.pad_id
        ids = labels.flatten() * is_token
        costs = F.cross_entropy(widen(logits.flatten(0, 1)), ids, reduction="none")
        return (costs * is_token).sum()


class TermsTimesWeights(CoCa):
    """A term of weight 0 is computed too, and multiplied by it."""

    def forward(self, *given: Any, **named: Any) -> Any:
        contrastive, caption = self.clip_loss_weight, self.caption_loss_weight
        self.clip_loss_weight, self.caption_loss_weight = contrastive or 1e-300, caption or 1e-300
        try:
            return super().forward(*given, **named)
        finally:
            self.clip_loss_weight, self.caption_loss_weight = contrastive, caption


# Negative numbers, wrong labels, large sizes


class MagnitudeOfScale(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale.abs(), bias)


class ScaleFromZeroOn(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(image, text, flat(scale).clamp(min=0), bias)


class WeightsFromZeroOn(CoCa):
    def __init__(self, caption_loss_weight: float, clip_loss_weight: float, **named: Any) -> None:
        super().__init__(max(caption_loss_weight, 0.0), max(clip_loss_weight, 0.0), **named)


class LabelsClamped(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        inside = labels.clamp(0, logits.shape[-1] - 1)
        return super().token_sum(logits, torch.where(labels == self.pad_id, labels, inside))


class LabelsOfOneRank(CoCa):
    """Wrong labels are named on their rank alone, where others wait for it."""

    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        named_labels(labels, logits.shape[-1], self.pad_id)
        return super().caption(logits, labels)


def named_labels(labels: Tensor, classes: int, pad_id: int) -> None:
    """Raise where a label is outside the vocabulary."""
    ids = labels[labels != pad_id]
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= classes):
        raise ValueError(f"labels: expected ids below {classes}")


class AllocatesFirst(Clip):
    """So many logits have no index, which the allocator says, of no argument."""


class StatesAll(CoCa):
    """Right, of inputs that nobody should send too."""

    def forward(self, *given: Any, **named: Any) -> Any:
        arguments = (
            dict(zip(("image_features", "text_features", "logits", "labels"), given, strict=False)) | named
        )
        for name, value in arguments.items():
            no_dtensor(name, value)
        if self.world_size > 1 and is_in_func():
            raise TypeError("torch.func: expected one process, got several")
        self._check(**{name: arguments[name] for name in ("image_features", "logits", "labels")})
        return super().forward(*given, **named)

    def _check(self, image_features: Tensor, logits: Tensor, labels: Tensor) -> None:
        wrong = ""
        if len(image_features) > MOST_ROWS:
            raise ValueError(f"image_features: expected at most {MOST_ROWS} rows, got {len(image_features)}")
        try:
            if self.caption_loss_weight:
                named_labels(labels, logits.shape[-1], self.pad_id)
        except ValueError as error:
            wrong = str(error)
        count = torch.tensor([float(bool(wrong))])
        if int(count if self.world_size == 1 else all_sum(count)):
            raise ValueError(wrong or "labels: wrong on another rank")


class RefusesNoNumbers(Clip):
    """Right: a loss of NaN is an error, on every rank."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        bad = (~image.isfinite()).sum() + (~text.isfinite()).sum()
        if self.world_size > 1:
            dist.all_reduce(bad)
        if int(bad):
            raise ValueError("features: expected numbers")
        return super().clip(image, text, scale, bias)
