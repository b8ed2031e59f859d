"""The losses once more, plainly, in pieces that a defect or a variant replaces one at a time.

Right as they stand, for the exact convention, and independent of the shipped ones. Not tuned.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn import functional as F

from verified_losses.transport import eager

Scalar = Tensor | float


def widen(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def flat(value: Scalar) -> Scalar:
    """Give a scalar no dimensions, so that it leaves the features' dtype as it is."""
    return value.reshape(()) if isinstance(value, Tensor) else value


@eager
def count(features: Tensor, world_size: int) -> list[int]:
    """Return how many rows each rank holds."""
    if world_size == 1:
        return [len(features)]
    everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size)]
    dist.all_gather(everyone, torch.tensor([len(features)]))
    return [int(rows) for rows in everyone]


@eager
def all_gather(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Return the rows of all ranks, which hold `rows` each, without gradient."""
    padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    everyone = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(everyone, padded)
    return torch.cat([part[:n] for part, n in zip(everyone, rows, strict=True)])


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum over ranks, without gradient."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class GatherRows(Function):
    """The rows of all ranks; backward sums over the ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        return all_gather(tensor, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return SumRows.apply(grad, ctx.rows), None


class SumRows(Function):
    """The sum over ranks, of which each keeps its own rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        return all_sum(tensor).split(rows)[dist.get_rank()].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return GatherRows.apply(grad, ctx.rows), None


@eager
def gather_rows(tensor: Tensor, rows: list[int]) -> Tensor:
    return GatherRows.apply(tensor, rows)


def transfer(sends: list[tuple[Tensor, int]], receives: list[tuple[Tensor, int]]) -> None:
    """Send and receive; between two ranks, in the order given."""
    ops = [dist.P2POp(dist.isend, tensor.detach().contiguous(), rank) for tensor, rank in sends]
    ops += [dist.P2POp(dist.irecv, tensor, rank) for tensor, rank in receives]
    for work in dist.batch_isend_irecv(ops):
        work.wait()


class Exchange(Function):
    """What `from_rank` sent; gradients travel the other way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
        ctx.ranks, ctx.rows = (from_rank, to_rank), len(tensor)
        received = tensor.new_empty(rows, *tensor.shape[1:])
        transfer([(tensor, to_rank)], [(received, from_rank)])
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Exchange.apply(grad, *reversed(ctx.ranks), ctx.rows), None, None, None


@eager
def exchange(tensor: Tensor, from_rank: int, to_rank: int, rows: int) -> Tensor:
    return Exchange.apply(tensor, from_rank, to_rank, rows)


class Carry(Function):
    """The tensor itself, whose gradient counts `times`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, times: float) -> Tensor:
        ctx.times = times
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Carry.apply(grad, ctx.times) * ctx.times if ctx.times != 1 else grad, None


class Clip(nn.Module):
    """Symmetric InfoNCE."""

    names: tuple[str, ...] = ("contrastive_loss",)

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        convention: str = "exact",
    ) -> None:
        super().__init__()
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.cached: dict[Any, Tensor] = {}

    @property
    def local(self) -> bool:
        return self.local_loss and self.world_size > 1

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
        output_dict: bool = False,
    ) -> Any:
        loss = self.clip(image_features, text_features, logit_scale, logit_bias)
        return self.output([loss], output_dict)

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        rows = self.count(image)
        per_image, per_text = self.get_logits(image, text, scale, bias, rows)
        return self.contrastive(per_image, per_text, rows)

    def get_logits(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        all_image, all_text = self.gather(image, rows), self.gather(text, rows)
        if self.local:
            return self.product(image, all_text, scale, bias), self.product(text, all_image, scale, bias)
        per_image = self.product(all_image, all_text, scale, bias)
        return per_image, per_image.T

    def count(self, features: Tensor) -> list[int]:
        return count(features, self.world_size)

    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        """Return the rows of all ranks, with the gradient that the flags say."""
        if self.world_size == 1:
            return features
        if self.gather_with_grad:
            return self.gather_grad(features, rows)
        everyone = all_gather(features.detach(), rows)
        return everyone if self.local_loss else self.insert(everyone, features, rows)

    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return gather_rows(features, rows)

    def insert(self, everyone: Tensor, own: Tensor, rows: list[int]) -> Tensor:
        """Put this rank's own rows, with gradient, among the constant ones."""
        parts = list(everyone.split(rows))
        parts[self.rank] = Carry.apply(own, self.world_size)
        return torch.cat(parts)

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = flat(scale) * anchors @ gallery.T
        return logits if bias is None else logits + flat(bias)

    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        labels = self.get_labels(len(per_image), rows)
        total = self.cross_entropy(per_image, labels) + self.cross_entropy(per_text, labels)
        return total * (self.weight(rows) / 2)

    def get_labels(self, n: int, rows: list[int]) -> Tensor:
        """Return the column of each row's partner."""
        return torch.arange(n) + self.offset(rows)

    def offset(self, rows: list[int]) -> int:
        return sum(rows[: self.rank]) if self.local else 0

    def weight(self, rows: list[int]) -> float:
        """Return what one row counts."""
        return (self.world_size if self.local_loss else 1) / sum(rows)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over the rows."""
        return F.cross_entropy(widen(logits), labels, reduction="sum")

    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        if output_dict:
            return dict(zip(self.names, terms, strict=True))
        return terms[0] if len(terms) == 1 else tuple(terms)


class CoCa(Clip):
    """A contrastive term and a caption term."""

    names = ("contrastive_loss", "caption_loss")

    def __init__(
        self, caption_loss_weight: float, clip_loss_weight: float, pad_id: int = 0, **flags: Any
    ) -> None:
        super().__init__(**flags)
        self.caption_loss_weight = caption_loss_weight
        self.clip_loss_weight = clip_loss_weight
        self.pad_id = pad_id

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: Scalar,
        output_dict: bool = False,
        logit_bias: Scalar | None = None,
    ) -> Any:
        terms = [self.zero(image_features)] * 2
        if self.clip_loss_weight:
            loss = self.clip(image_features, text_features, logit_scale, logit_bias)
            terms[0] = self.clip_loss_weight * loss
        if self.caption_loss_weight:
            terms[1] = self.caption_loss_weight * self.caption(logits, labels)
        return self.output(terms, output_dict)

    def zero(self, like: Tensor) -> Tensor:
        return widen(like.new_zeros(()))

    def caption(self, logits: Tensor, labels: Tensor) -> Tensor:
        tokens = self.tokens(labels)
        return self.token_sum(logits, labels) * (self.world_size / max(tokens, 1))

    def tokens(self, labels: Tensor) -> int:
        """Return the number of tokens of all ranks that are not padding."""
        own = (labels != self.pad_id).sum()
        return int(own if self.world_size == 1 else all_sum(own))

    def token_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        flat_logits = widen(logits.flatten(0, 1))
        return F.cross_entropy(flat_logits, labels.flatten(), ignore_index=self.pad_id, reduction="sum")


class Distill(Clip):
    """A contrastive term, and the cross-entropy under a teacher, which is a constant."""

    names = ("contrastive_loss", "distill_loss")

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Scalar,
        output_dict: bool = False,
        logit_bias: Scalar | None = None,
        dist_logit_bias: Scalar | None = None,
    ) -> Any:
        rows = self.count(image_features)
        student = self.get_logits(image_features, text_features, logit_scale, logit_bias, rows)
        teacher = self.teach(dist_image_features, dist_text_features, dist_logit_scale, dist_logit_bias, rows)
        contrastive = self.contrastive(*student, rows)
        total = sum(self.distill(t, s) for t, s in zip(teacher, student, strict=True))
        return self.output([contrastive, total * (self.weight(rows) / 2)], output_dict)

    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.get_logits(*arguments)

    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the sum over the rows."""
        return -(widen(teacher).softmax(-1) * widen(student).log_softmax(-1)).sum()


class SigLip(nn.Module):
    """A sigmoid for every pair. `dist_impl` "gather" gathers all texts; all others pass them to the right."""

    def __init__(self, rank: int = 0, world_size: int = 1, dist_impl: str | None = None) -> None:
        super().__init__()
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
        output_dict: bool = False,
    ) -> Any:
        rows = self.count(image_features)
        total = self.pairs(image_features, text_features, logit_scale, logit_bias, True)
        for text in self.others(text_features, rows):
            total = total + self.pairs(image_features, text, logit_scale, logit_bias, False)
        loss = total * self.weight(rows)
        return {"contrastive_loss": loss} if output_dict else loss

    def count(self, features: Tensor) -> list[int]:
        return count(features, self.world_size)

    def weight(self, rows: list[int]) -> float:
        return self.world_size / sum(rows)

    def others(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        """Return the texts of all other ranks."""
        if self.world_size == 1:
            return []
        return self.gathered(text, rows) if self.dist_impl == "gather" else self.ring(text, rows)

    def gathered(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        blocks = gather_rows(text, rows).split(rows)
        return [block for rank, block in enumerate(blocks) if rank != self.rank]

    def ring(self, text: Tensor, rows: list[int]) -> list[Tensor]:
        left, right = (self.rank - 1) % self.world_size, (self.rank + 1) % self.world_size
        texts = []
        for hop in range(1, self.world_size):
            text = exchange(text, left, right, rows[(self.rank - hop) % self.world_size])
            texts.append(text)
        return texts

    def pairs(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, own: bool) -> Tensor:
        """Return the sum over all pairs of a block; in this rank's own one partners are on the diagonal."""
        logits = self.product(image, text, scale, bias)
        return self.log_sigmoid(logits, self.get_labels(logits, own))

    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = flat(scale) * image @ text.T
        return logits if bias is None else logits + flat(bias)

    def get_labels(self, logits: Tensor, own: bool) -> Tensor:
        labels = -torch.ones_like(logits)
        return labels.fill_diagonal_(1) if own else labels

    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -F.logsigmoid(widen(labels) * widen(logits)).sum()


def gather_features(
    image_features: Tensor,
    text_features: Tensor,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int = 0,
    world_size: int = 1,
    clip: type[Clip] = Clip,
    convention: str = "exact",
) -> tuple[Tensor, Tensor]:
    loss = clip(local_loss, gather_with_grad, rank=rank, world_size=world_size)
    rows = loss.count(image_features)
    return loss.gather(image_features, rows), loss.gather(text_features, rows)


def announce(tensor: Tensor, from_rank: int, to_rank: int) -> int:
    """Tell a neighbour how many rows come, and hear how many come here."""
    coming = torch.zeros(1, dtype=torch.int64)
    transfer([(torch.tensor([len(tensor)]), to_rank)], [(coming, from_rank)])
    return int(coming)


def neighbour_exchange(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return exchange(tensor, from_rank, to_rank, announce(tensor, from_rank, to_rank))


def neighbour_exchange_bidir(
    left_rank: int, right_rank: int, tensor_to_left: Tensor, tensor_to_right: Tensor
) -> tuple[Tensor, Tensor]:
    """Two exchanges, one after the other: what came from the right, then what came from the left."""
    from_right = neighbour_exchange(right_rank, left_rank, tensor_to_left)
    return from_right, neighbour_exchange(left_rank, right_rank, tensor_to_right)


class Altered(Function):
    """The tensor itself, whose gradient a function alters."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, alter: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.alter = alter
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.alter(grad), None


def four_ulps_up(logits: Tensor) -> Tensor:
    """Return float32 logits moved up by four units in the last place; their gradient is as it was."""
    if logits.dtype != torch.float32:
        return logits
    moved = logits.detach()
    for _ in range(4):
        moved = moved.nextafter(torch.full_like(moved, torch.inf))
    return logits + (moved - logits.detach())


def altered(tensor: Tensor, alter: Callable[[Tensor], Tensor]) -> Tensor:
    return Altered.apply(tensor, alter)
