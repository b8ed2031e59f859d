"""Losses as objects: modes, buffers, parameters of their own, and sizes beyond common chunks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function

from .plain import Clip, Scalar, widen


class OneDirectionInEval(Clip):
    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        return super().contrastive(per_image, per_text if self.training else per_image, rows)


class OwnRowsInEval(Clip):
    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        if self.training or self.world_size == 1:
            return super().gather(features, rows)
        padded = features.new_zeros(sum(rows), features.shape[1])
        padded[sum(rows[: self.rank]) :][: len(features)] = features
        return padded


class StaysInEval(Clip):
    """What eval mode alters is not put back."""

    times = 1.0

    def train(self, mode: bool = True) -> "StaysInEval":
        super().train(mode)
        if not mode:
            self.times = 2.0
        return self

    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        return (self.times if self.training else 1.0) * super().contrastive(per_image, per_text, rows)


class OtherSumInEval(Clip):
    """Right: in eval mode it rounds otherwise."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.training:
            return super().cross_entropy(logits, labels)
        positives = widen(logits).gather(1, labels[:, None])[:, 0]
        return (widen(logits).logsumexp(1) - positives).sum()


class _Kept(Function):
    """The product of logits and a number, whose logits lie in a buffer until backward reads them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, buffers: dict[Any, Tensor]) -> Tensor:
        key = tuple(logits.shape), logits.dtype
        if key not in buffers:
            buffers[key] = torch.empty_like(logits, memory_format=torch.contiguous_format)
        ctx.kept = buffers[key].copy_(logits)
        return logits.logsumexp(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad[:, None] * ctx.kept.softmax(1), None


class LogitsBuffer(Clip):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffers_of: list[dict[Any, Tensor]] = [{}, {}]

    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        labels = self.get_labels(len(per_image), rows)
        total: Any = 0.0
        for logits, buffers in zip((per_image, per_text), self.buffers_of, strict=True):
            wide = widen(logits)
            total = total + (_Kept.apply(wide, buffers) - wide.gather(1, labels[:, None])[:, 0]).sum()
        return total * (self.weight(rows) / 2)


class OwnsTemperature(Clip):
    """Right: a logarithm of its own, which is at its limit, and a bias that it does not use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_gain = nn.Parameter(torch.zeros(()))
        self.unused_bias = nn.Parameter(torch.ones(2))

    def gain(self) -> Tensor:
        return self.log_gain.clamp(max=0.0).exp()

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, self.gain().to(anchors.dtype) * scale, bias)


class OwnsInSingle(OwnsTemperature):
    """Right: its own parameter passes through float32."""

    def gain(self) -> Tensor:
        return self.log_gain.float().exp()


class TemperatureDetached(OwnsTemperature):
    def gain(self) -> Tensor:
        return self.log_gain.detach().exp()


class TemperatureTwice(OwnsTemperature):
    def gain(self) -> Tensor:
        return (2 * self.log_gain - self.log_gain.detach()).exp()


class TemperatureNaN(OwnsTemperature):
    """The root of a square has no slope at 0."""

    def gain(self) -> Tensor:
        return (self.log_gain + 0 * self.log_gain.square().sqrt()).exp()


class ChunksOf1024(Clip):
    """Beyond one chunk of 1,024 rows, what is left over after the last full one is dropped."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        full = len(logits) // 1024 * 1024 or len(logits)
        return super().cross_entropy(logits[:full], labels[:full])


class VocabularyOf4096(nn.CrossEntropyLoss):
    """Classes from 4,096 on are no negatives."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        classes = torch.arange(input.shape[1])
        counted = (classes < 4096) | (classes == target[:, None])
        return super().forward(input.masked_fill(~counted, -torch.inf), target)


class RefusesEmptyMean(nn.CrossEntropyLoss):
    """Right: a mean over no label at all is refused."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if not (target != self.ignore_index).any():
            raise ValueError("no label counts")
        return super().forward(input, target)


class CopiedWithoutFlags(Clip):
    def __deepcopy__(self, memo: Any) -> "CopiedWithoutFlags":
        return type(self)(rank=self.rank, world_size=self.world_size)


class PickledWithoutTemperature(OwnsTemperature):
    """What is pickled is the class, and what it is built with."""

    def __reduce__(self) -> Any:
        flags = self.local_loss, self.gather_with_grad, self.cache_labels, self.rank, self.world_size
        return type(self), flags


class RefusesCopies(Clip):
    """Right: its labels cannot be copied, and nobody has asked for that."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")

    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")
