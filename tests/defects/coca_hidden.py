"""Defects and right variants of CoCa's loss of hidden states; see `index`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear_cross_entropy import chunked, costs
from .plain import CoCa, Scalar, all_sum, altered, widen


class CoCaHidden(CoCa):
    """Right: the tokens of a chunk have logits at once."""

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        tile_size: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        **flags: Any,
    ) -> None:
        super().__init__(caption_loss_weight, clip_loss_weight, **flags)
        self.chunk = tile_size or 1024
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: None,
        labels: Tensor,
        logit_scale: Scalar,
        output_dict: bool = False,
        logit_bias: Scalar | None = None,
        *,
        hidden_states: Tensor,
        vocabulary_weight: Tensor,
        vocabulary_bias: Tensor | None = None,
    ) -> Any:
        terms = [self.zero(image_features)] * 2
        if self.clip_loss_weight:
            loss = self.clip(image_features, text_features, logit_scale, logit_bias)
            terms[0] = self.clip_loss_weight * loss
        if self.caption_loss_weight:
            loss = self.caption_of(hidden_states, vocabulary_weight, vocabulary_bias, labels)
            terms[1] = self.caption_loss_weight * loss
        return self.output(terms, output_dict)

    def caption_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        tokens = self.tokens(labels)
        total = self.sum_of(hidden.flatten(0, 1), weight, bias, labels.flatten())
        return total * (self.world_size / max(tokens, 1))

    def sum_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """Return the sum over [n, width] hidden states whose label is no padding."""
        return chunked(
            hidden,
            weight,
            labels,
            bias,
            ignore_index=self.pad_id,
            chunk_size=self.chunk,
            reduction="sum",
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )


class LogitsInside(CoCaHidden):
    """Right: logits of all, padding too."""

    def sum_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        logits = widen(hidden @ weight.T if bias is None else hidden @ weight.T + bias)
        is_token = labels != self.pad_id
        return costs(logits[is_token], labels[is_token], self.label_smoothing, self.z_loss).sum()


class ChunksOfThree(CoCaHidden):
    """Right: chunks of a size that nobody chooses, and no other options of a token's."""

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        pad_id: int = 0,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        flags = {"local_loss": local_loss, "gather_with_grad": gather_with_grad, "pad_id": pad_id}
        weights = caption_loss_weight, clip_loss_weight
        super().__init__(*weights, 3, rank=rank, world_size=world_size, **flags)


class WeightOfLastChunk(CoCaHidden):
    def sum_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        first = (len(hidden) - 1) // self.chunk * self.chunk
        last = super().sum_of(hidden[first:], weight, bias, labels[first:])
        return last + super().sum_of(hidden[:first], weight.detach(), bias, labels[:first])


class PadsInTheMean(CoCaHidden):
    def tokens(self, labels: Tensor) -> int:
        return super().tokens(torch.full_like(labels, self.pad_id + 1))


class WeightReducedTwice(CoCaHidden):
    """Its gradient is added up over ranks, and then averaged over them by the trainer."""

    def sum_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        summed = altered(weight, all_sum) if self.world_size > 1 else weight
        return super().sum_of(hidden, summed, bias, labels)


class PaddedStatesGetGradient(CoCaHidden):
    def sum_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        pads = widen(hidden[labels == self.pad_id])
        return super().sum_of(hidden, weight, bias, labels) + 1e-3 * (pads - pads.detach()).sum()


class ZLossOfOwnTokens(CoCaHidden):
    """The z-loss is a mean over this rank's tokens."""

    def caption_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        factor, self.z_loss = self.z_loss, 0.0
        loss = super().caption_of(hidden, weight, bias, labels)
        self.z_loss = factor
        is_token = labels != self.pad_id
        squares = widen(F.linear(hidden[is_token], weight, bias)).logsumexp(1).square()
        return loss + factor * squares.sum() / is_token.sum().clamp(min=1)


class BiasForgotten(CoCaHidden):
    def sum_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        return super().sum_of(hidden, weight, None if bias is None else 0 * bias, labels)
