"""Defective sigmoid losses. What is wrong with each, and where it was seen, is in `index`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from .plain import Exchange, Scalar, SigLip, all_gather, altered, exchange, four_ulps_up, transfer, widen

# Pairs


class BiasUnused(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(image, text, scale, None if bias is None else 0 * bias)


class BiasOrDefault(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(image, text, scale, bias or -10.0)


class BiasTwice(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(image, text, scale, bias) + (0 if bias is None else bias)


class BiasScaled(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(image, text, scale, None if bias is None else scale * bias)


class OwnSignTurned(SigLip):
    def get_labels(self, logits: Tensor, own: bool) -> Tensor:
        return -super().get_labels(logits, own)


class PartnersEverywhere(SigLip):
    def get_labels(self, logits: Tensor, own: bool) -> Tensor:
        return super().get_labels(logits, True)


class SquareLabels(SigLip):
    def get_labels(self, logits: Tensor, own: bool) -> Tensor:
        n = len(logits)
        return 2 * torch.eye(n, dtype=logits.dtype) * own - torch.ones(n, n, dtype=logits.dtype)


class NegativesWeighted(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        # as a mean over positives and a mean over negatives
        losses = -F.logsigmoid(widen(labels) * widen(logits))
        return losses[labels > 0].sum() + losses[labels < 0].sum() / max(len(logits) - 1, 1)


class StacksRows(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        rows = zip(logits, labels, strict=True)
        return torch.stack([super(StacksRows, self).log_sigmoid(z, y) for z, y in rows]).sum()


# What an image counts


class LocalCount(SigLip):
    def weight(self, rows: list[int]) -> float:
        return 1 / rows[self.rank]


class AllPairs(SigLip):
    def weight(self, rows: list[int]) -> float:
        return self.world_size / sum(rows) ** 2


class GlobalMean(SigLip):
    def weight(self, rows: list[int]) -> float:
        return 1 / sum(rows)


# Precision


class HalfSum(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        total = super().log_sigmoid(logits, labels)
        return total.half().to(total.dtype)


class Float16Sum(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        total = super().log_sigmoid(logits, labels)
        return total.half().float() if logits.dtype == torch.float16 else total


class SoftplusThreshold(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.softplus(-widen(labels) * widen(logits)).sum()


class LogOfSigmoid(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(widen(labels) * widen(logits)).sigmoid().log().sum()


class BFloat16Logits(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = super().product(image, text, scale, bias)
        return logits.bfloat16().to(logits.dtype)


class LogitsFourUlpsUp(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return four_ulps_up(super().product(image, text, scale, bias))


class NoSlopeAtZero(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        margin = widen(labels) * widen(logits)
        return (margin.neg().relu() + margin.abs().neg().exp().log1p()).sum()


class ClampedSigmoid(SigLip):
    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(widen(labels) * widen(logits)).sigmoid().clamp(min=1e-7).log().sum()


class PathsDifferInDtype(SigLip):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if self.dist_impl != "gather":
            return output
        return {k: v.double() for k, v in output.items()} if isinstance(output, dict) else output.double()


# Chunks


class Chunked(SigLip):
    """Right: own pairs a few images at a time."""

    chunk = 32

    def pairs(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool) -> Tensor:
        starts = range(0, len(image), self.chunk)
        return torch.stack([self.part(image, text, scale, bias, own, start) for start in starts]).sum()

    def part(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool, start: int
    ) -> Tensor:
        logits = self.product(image[start : start + self.chunk], text, scale, bias)
        return self.log_sigmoid(logits, self.chunk_labels(logits, own, start))

    def chunk_labels(self, logits: Tensor, own: bool, start: int) -> Tensor:
        labels = -torch.ones_like(logits)
        if own:
            labels[torch.arange(len(logits)), start + torch.arange(len(logits))] = 1
        return labels


class ChunkRemainderDropped(Chunked):
    def pairs(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool) -> Tensor:
        kept = len(image) if len(image) < self.chunk else len(image) // self.chunk * self.chunk
        return super().pairs(image[:kept], text, scale, bias, own)


class ChunkLabelsUnshifted(Chunked):
    def chunk_labels(self, logits: Tensor, own: bool, start: int) -> Tensor:
        return super().chunk_labels(logits, own, 0)


class ChunkLabelsSquare(Chunked):
    def chunk_labels(self, logits: Tensor, own: bool, start: int) -> Tensor:
        n = len(logits)
        labels = -torch.ones(n, n, dtype=logits.dtype)
        labels = labels.fill_diagonal_(1) if own else labels
        return labels if n == logits.shape[1] else F.pad(labels, (0, logits.shape[1] - n), value=-1.0)


class ChunkOverlaps(Chunked):
    def part(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool, start: int
    ) -> Tensor:
        # the last chunk is moved back to be whole
        if start and start + self.chunk > len(image):
            start = len(image) - self.chunk
        return super().part(image, text, scale, bias, own, start)


# How texts travel


class SkipsANeighbour(SigLip):
    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        texts = super().others(text, rows)
        return [*texts[:-1], texts[0] + 0 * texts[-1].sum()] if texts else texts


class RingStopsShort(SigLip):
    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        # both ways, without the odd one out
        return super().others(text, rows)[: (self.world_size - 1) // 2 * 2]


class RingOfFour(SigLip):
    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        texts = super().others(text, rows)
        return [*texts[:3], *(block.detach() for block in texts[3:])]


class RingWithoutGradient(SigLip):
    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        return [block.detach() for block in super().ring(text, rows)]


class RingBackwardOnward(SigLip):
    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        left, right = (self.rank - 1) % self.world_size, (self.rank + 1) % self.world_size
        texts = []
        for hop in range(1, self.world_size):
            text = _Onward.apply(text, left, right, rows[(self.rank - hop) % self.world_size])
            texts.append(text)
        return texts


class _Onward(Exchange):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return exchange(grad, *ctx.ranks, ctx.rows), None, None, None


class RingOfOwnShape(SigLip):
    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        return super().ring(text, [len(text)] * self.world_size)


class RingReusesBuffer(SigLip):
    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        left, right = (self.rank - 1) % self.world_size, (self.rank + 1) % self.world_size
        buffers: dict[int, Tensor] = {}
        texts = []
        for hop in range(1, self.world_size):
            n = rows[(self.rank - hop) % self.world_size]
            buffer = buffers.setdefault((hop % 2) * 1000 + n, text.new_empty(n, text.shape[1]))
            text = _Into.apply(text, left, right, buffer.data)
            texts.append(text)
        return texts


class _Into(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, buffer: Tensor) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        transfer([(tensor, to_rank)], [(buffer, from_rank)])
        return buffer.view_as(buffer)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return exchange(grad, *reversed(ctx.ranks), ctx.rows), None, None, None


class BlockingRing(SigLip):
    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        left, right = (self.rank - 1) % self.world_size, (self.rank + 1) % self.world_size
        texts = []
        for hop in range(1, self.world_size):
            text = _Blocking.apply(text, left, right, rows[(self.rank - hop) % self.world_size])
            texts.append(text)
        return texts


class _Blocking(Exchange):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        received = tensor.new_empty(rows, *tensor.shape[1:])
        dist.send(tensor.contiguous(), to_rank)
        dist.recv(received, from_rank)
        return received


class GatherStopsGradient(SigLip):
    def gathered(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        return [block for rank, block in enumerate(all_gather(text, rows).split(rows)) if rank != self.rank]


class GatherKeepsOwn(SigLip):
    def gathered(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        # the last rank's block is left out, whoever asks
        texts = super().gathered(text, rows)
        return [*texts[:-1], text] if self.rank == 0 else texts


class ReduceCountsOwnTwice(SigLip):
    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        texts = super().others(text, rows)
        return [*texts, text] if self.dist_impl == "reduce" and texts else texts


class RefusesReduce(SigLip):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.dist_impl == "reduce":
            raise ValueError("dist_impl: expected bidir, shift or gather")


class OtherBlocksDetachImages(SigLip):
    def pairs(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool) -> Tensor:
        return super().pairs(image if own else image.detach(), text, scale, bias, own)


class FrozenTextsStayHome(SigLip):
    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        return super().others(text, rows) if text.requires_grad else []


class TextGradientTwice(SigLip):
    def pairs(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool) -> Tensor:
        if self.rank == self.world_size - 1 and not own:
            text = altered(text, lambda grad: 2 * grad)
        return super().pairs(image, text, scale, bias, own)
