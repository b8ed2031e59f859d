"""Losses over ranks that share one product: a rank compares its images with all texts; see `index`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from .plain import Clip, Scalar, SumRows, all_gather, all_sum, flat, gather_rows, widen


class AllSum(Function):
    """The sum over ranks, on each of them; backward sums too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return AllSum.apply(grad)


class Shared(Clip):
    """Right, with local_loss and gather_with_grad: columns' statistics are combined over the ranks."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if not self.local:
            return super().clip(image, text, scale, bias)
        rows = self.count(image)
        start = sum(rows[: self.rank])
        products = self.products(image, self.everyone(text, rows))
        logits = widen(products * flat(scale) if bias is None else products * flat(scale) + flat(bias))
        per_image = logits.logsumexp(1) - logits.diagonal(start)
        # to a bias columns are indifferent; each has the scale of the rank that its loss is of
        scales = torch.as_tensor(scale, dtype=products.dtype).reshape(1, 1)
        of_columns = widen(products * torch.cat(self.repeated(gather_rows(scales, [1] * len(rows)), rows), 1))
        per_text = self.columns(of_columns, rows) - of_columns.diagonal(start)
        return (per_image.sum() + per_text.sum()) * (self.weight(rows) / 2)

    def everyone(self, text: Tensor, rows: list[int]) -> Tensor:
        return gather_rows(text, rows)

    def products(self, image: Tensor, everyone: Tensor) -> Tensor:
        return image @ everyone.T

    def repeated(self, values: Tensor, rows: list[int]) -> list[Tensor]:
        return [value.expand(1, count) for value, count in zip(values.unbind(), rows, strict=True)]

    def columns(self, logits: Tensor, rows: list[int]) -> Tensor:
        """Return the log-sum-exp of this rank's own columns, of which every rank has some rows."""
        largest = self.largest(logits)
        sums = self.sums(torch.exp(logits - largest).sum(0), largest, rows)
        return (sums.log() + largest).split(rows)[self.rank]

    def largest(self, logits: Tensor) -> Tensor:
        everyone = all_gather(self.own_largest(logits).unsqueeze(0), [1] * self.world_size)
        return everyone.amax(0)

    def own_largest(self, logits: Tensor) -> Tensor:
        nothing = logits.new_full((1, logits.shape[1]), torch.finfo(logits.dtype).min)
        return torch.cat([logits.detach(), nothing]).amax(0)

    def sums(self, sums: Tensor, largest: Tensor, rows: list[int]) -> Tensor:
        total: Tensor = AllSum.apply(sums)
        return total


class PartsGathered(Shared):
    """Right: every rank's log-sum-exp of its rows travels, and is summed up again."""

    def columns(self, logits: Tensor, rows: list[int]) -> Tensor:
        nothing = logits.new_full((1, logits.shape[1]), -1e30)  # as a row, for a rank that has none
        parts = torch.cat([logits, nothing]).logsumexp(0)
        everyone = gather_rows(parts.unsqueeze(0), [1] * self.world_size)
        return everyone.logsumexp(0).split(rows)[self.rank]


class ScaleOfThisRank(Shared):
    """Right: a rank computes all with its own scale, whose gradients have the right mean over ranks."""

    def repeated(self, values: Tensor, rows: list[int]) -> list[Tensor]:
        return [values[self.rank].expand(1, count) for count in rows]


class MaximumOfThisRank(Shared):
    def columns(self, logits: Tensor, rows: list[int]) -> Tensor:
        # sums are less this rank's own maxima, and are taken to be less those of all
        sums = torch.exp(logits - self.own_largest(logits)).sum(0)
        return (AllSum.apply(sums).log() + self.largest(logits)).split(rows)[self.rank]


class ColumnsOfThisRank(Shared):
    def sums(self, sums: Tensor, largest: Tensor, rows: list[int]) -> Tensor:
        return sums


class OwnColumnsTwice(Shared):
    def sums(self, sums: Tensor, largest: Tensor, rows: list[int]) -> Tensor:
        parts = list(super().sums(sums, largest, rows).split(rows))
        parts[self.rank] = parts[self.rank] + sums.split(rows)[self.rank]
        return torch.cat(parts)


class _Parts(Function):
    """The rows of all ranks; backward sums parts as one of the defects does."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int], loss: Any) -> Tensor:
        ctx.rows, ctx.loss = rows, loss
        return all_gather(tensor, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.loss.scatter(grad, ctx.rows), None, None


class _Scatters(Shared):
    def everyone(self, text: Tensor, rows: list[int]) -> Tensor:
        gathered: Tensor = _Parts.apply(text, rows, self)
        return gathered


class ScatterAverages(_Scatters):
    def scatter(self, grad: Tensor, rows: list[int]) -> Tensor:
        own: Tensor = SumRows.apply(grad, rows)
        return own / self.world_size


class OwnPartAlone(_Scatters):
    def scatter(self, grad: Tensor, rows: list[int]) -> Tensor:
        return grad.split(rows)[self.rank].clone()


class PartsOfEmptyRanksDropped(_Scatters):
    def scatter(self, grad: Tensor, rows: list[int]) -> Tensor:
        # each rank with rows takes a part, counted among all ranks
        parts = [part for part in all_sum(grad).split(rows) if len(part)]
        part = parts[min(self.rank, len(parts) - 1)]
        own = grad.new_zeros(rows[self.rank], grad.shape[1])
        count = min(len(own), len(part))
        own[:count] = part[:count]
        return own


class EmptyRankSendsNoPart(_Scatters):
    def scatter(self, grad: Tensor, rows: list[int]) -> Tensor:
        if not rows[self.rank]:
            return grad[:0]
        own: Tensor = SumRows.apply(grad, rows)
        return own


class _OwnWeight(Function):
    """The sum over ranks; backward weighs all columns as this rank's own."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.total, ctx.rows = all_sum(tensor), rows
        return ctx.total.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        all_sum(grad)
        own = (grad * ctx.total).split(ctx.rows)[dist.get_rank()]
        return own.sum() / max(len(own), 1) / ctx.total, None


class CotangentOfThisRank(Shared):
    def sums(self, sums: Tensor, largest: Tensor, rows: list[int]) -> Tensor:
        total: Tensor = _OwnWeight.apply(sums, rows)
        return total
