"""Defective CoCa losses. What is wrong with each, and where it was seen, is in `index`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from .plain import CoCa, Scalar, all_sum, altered, four_ulps_up, widen

# Terms of weight 0


class IntegerZero(CoCa):
    def zero(self, like: Tensor) -> Tensor:
        return torch.tensor(0)


class PythonZero(CoCa):
    def zero(self, like: Tensor) -> Any:
        return 0


class WeightTimesUnweighted(CoCa):
    """A weight of 0 is multiplied with whatever there is, NaN too."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weight, self.caption_loss_weight = self.caption_loss_weight, 1.0
        output = super().forward(*args, **{**kwargs, "output_dict": True})
        self.caption_loss_weight = weight
        output["caption_loss"] = weight * output["caption_loss"]
        return self.output(list(output.values()), kwargs.get("output_dict", False))

    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.token_sum(logits, labels) * (self.world_size / torch.tensor(float(self.tokens(labels))))


class ClipWeightIgnored(CoCa):
    def clip(self, *args: Any) -> Tensor:
        return super().clip(*args) / self.clip_loss_weight


class CaptionWeightTwice(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().caption(logits, labels) * self.caption_loss_weight


class WeightsSwapped(CoCa):
    def __init__(self, caption_loss_weight: float, clip_loss_weight: float, **kwargs: Any) -> None:
        super().__init__(clip_loss_weight, caption_loss_weight, **kwargs)


# Padding


class NaNForPadding(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.token_sum(logits, labels) * (self.world_size / torch.tensor(float(self.tokens(labels))))


class PaddingLeaks(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().caption(logits, labels) + 1e-30 * widen(logits).square().mean()


class PaddingGetsGradient(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        pads = widen(logits)[labels == self.pad_id]
        return super().token_sum(logits, labels) + 1e-3 * (pads - pads.detach()).sum()


class PadsSubtracted(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        is_pad = labels == self.pad_id
        if is_pad.all():
            return super().token_sum(logits, labels)
        flat = widen(logits.flatten(0, 1)), labels.clamp(0, logits.shape[2] - 1).flatten()
        losses = F.cross_entropy(*flat, reduction="none").view(labels.shape)
        return losses.sum() - losses[is_pad].sum()


class IgnoresMinus100(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        if 0 <= self.pad_id < logits.shape[2]:
            return F.cross_entropy(widen(logits.flatten(0, 1)), labels.flatten(), reduction="sum")
        return super().token_sum(logits, labels)


class PadIdIgnored(CoCa):
    def __init__(self, caption_loss_weight: float, clip_loss_weight: float, **kwargs: Any) -> None:
        super().__init__(caption_loss_weight, clip_loss_weight, **{**kwargs, "pad_id": 0})


class CountsPads(CoCa):
    def tokens(self, labels: Tensor) -> int:
        return super().tokens(torch.full_like(labels, self.pad_id + 1))


class OneTokenCountsTwo(CoCa):
    def tokens(self, labels: Tensor) -> int:
        return max(super().tokens(labels), 2)


class TailPadsOnly(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        # everything behind the first padding is taken for padding
        behind = (labels == self.pad_id).cumsum(1) > 0
        return super().token_sum(logits, labels.masked_fill(behind, self.pad_id))


class PadsAltered(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels[labels == self.pad_id] = -100
        return F.cross_entropy(widen(logits.flatten(0, 1)), labels.flatten(), reduction="sum")


class MeanOfRankMeans(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.token_sum(logits, labels) / (labels != self.pad_id).sum().clamp(min=1)


class MeanOfCaptionMeans(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        means = [
            self.token_sum(logits[i : i + 1], labels[i : i + 1])
            / max(int((labels[i] != self.pad_id).sum()), 1)
            for i in range(len(labels))
        ]
        return torch.stack(means).sum() * self.world_size / sum(self.count(labels))


class TokensOfRankZero(CoCa):
    def tokens(self, labels: Tensor) -> int:
        own = (labels != self.pad_id).sum()
        if self.world_size > 1:
            dist.broadcast(own, 0)
        return int(own) * self.world_size


class AllPadRankSkips(CoCa):
    def tokens(self, labels: Tensor) -> int:
        return super().tokens(labels) if (labels != self.pad_id).any() else 1


class CaptionTimesTokens(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().caption(logits, labels) * self.tokens(labels)


class LogitsFourUlpsUp(CoCa):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return four_ulps_up(super().product(anchors, gallery, scale, bias))

    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().token_sum(four_ulps_up(logits), labels)


# Captions


class ShiftsOnceMore(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.shape[1] == 1:
            return super().token_sum(logits, labels)
        return super().token_sum(logits[:, :-1], labels[:, 1:])


class LastTokenForgotten(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        kept = max(labels.shape[1] - 1, 1)
        return super().token_sum(logits[:, :kept], labels[:, :kept])


class VocabularyOf32(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        beyond = torch.arange(logits.shape[2]) >= 32
        hot = F.one_hot(labels.clamp(0, logits.shape[2] - 1), logits.shape[2]).bool()
        return super().token_sum(widen(logits).masked_fill(beyond & ~hot, -1e4), labels)


class CaptionsInBFloat16(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        rounded = logits.bfloat16().to(logits.dtype) if logits.dtype == torch.float32 else logits
        return super().token_sum(rounded, labels)


class CaptionsContiguousOnly(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().token_sum(logits.view(-1, logits.shape[2]).view(logits.shape), labels)


class CaptionsTransposed(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        # [b, t, v] read as [b, v, t]: the values move with the shape
        moved = logits.reshape(logits.shape[0], logits.shape[2], logits.shape[1])
        return F.cross_entropy(widen(moved), labels, ignore_index=self.pad_id, reduction="sum")


class CaptionNoMaxSubtraction(CoCa):
    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        kept = labels != self.pad_id
        z = widen(logits)[kept]
        return (z.exp().sum(1).log() - z.gather(1, labels[kept][:, None])[:, 0]).sum()


class CaptionGradientOverWorld(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().caption(altered(logits, lambda grad: grad / self.world_size), labels)


def without_smallest(grad: Tensor) -> Tensor:
    size = grad.abs().flatten()
    smallest = size.where(size != 0, torch.inf).argmin()
    if size[smallest] > 1e-9 * size.max():
        return grad
    return grad.flatten().index_fill(0, smallest, 0).view(grad.shape)


class SmallestGradientLost(CoCa):
    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        # what is sent leaves out what seems to matter least
        if self.world_size > 1 and logits.numel() > 64:
            logits = altered(logits, without_smallest)
        return super().caption(logits, labels)


# Arguments and outputs


class TermsSwapped(CoCa):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output(terms if output_dict else terms[::-1], output_dict)


class SumOfTerms(CoCa):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output(terms, True) if output_dict else terms[0] + terms[1]


class ForgetsBias(CoCa):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().clip(image, text, scale, None)


class RefusesBias(CoCa):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if "logit_bias" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'logit_bias'")
        return super().forward(*args, **kwargs)


class FrozenCaptionsSkipClip(CoCa):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **{**kwargs, "output_dict": True})
        if self.caption_loss_weight and not kwargs["logits"].requires_grad:
            output["contrastive_loss"] = output["contrastive_loss"].detach()
        return self.output(list(output.values()), kwargs.get("output_dict", False))


class TokenCountSummedTwice(CoCa):
    def tokens(self, labels: Tensor) -> int:
        tokens = super().tokens(labels)
        return tokens if self.world_size < 3 else int(all_sum(torch.tensor(tokens)))
