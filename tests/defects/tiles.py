"""Defects of losses that look at one tile of logits at a time; see `index`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .plain import Clip, Scalar, widen

State = tuple[Tensor, Tensor] | None
"""The largest logits so far, and the sums of exponentials; of rows or of columns."""


class Tiled(Clip):
    """Right: both directions' log-sum-exp from one sweep over tiles, with running maxima."""

    size = 16

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        rows = self.count(image)
        all_image, all_text = self.gather(image, rows), self.gather(text, rows)
        if self.local:
            start = self.offset(rows)
            images = self.sweep(image, all_text, scale, bias, start, both=False)
            total = images + self.sweep(text, all_image, scale, bias, start, both=False)
        else:
            total = self.sweep(all_image, all_text, scale, bias, 0, both=True)
        return total * (self.weight(rows) / 2)

    def sweep(
        self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None, start: int, both: bool
    ) -> Tensor:
        """Sum log-sum-exp less the partner's logit over rows, and over columns if `both`."""
        columns: list[State] = [None for _ in self.slices(len(gallery))]
        rows, partners = [], []
        for i in self.slices(len(anchors)):
            row: State = None
            for k, j in enumerate(self.slices(len(gallery))):
                logits = widen(self.product(anchors[i], gallery[j], scale, bias))
                partners.append(logits.diagonal(self.shift(start, i, j)))
                if self.counts(j, len(gallery)):
                    row = self.add(row, logits, 1, scale)
                    if both:
                        place = self.place(k, i, columns, logits)
                        columns[place] = self.add(columns[place], logits, 0, scale)
            assert row is not None
            rows.append(row)
        own = torch.cat(partners)
        total = self.losses(rows, own)
        return total + self.losses([each for each in columns if each], own) if both else total

    def losses(self, states: list[tuple[Tensor, Tensor]], own: Tensor) -> Tensor:
        largest, sums = (torch.cat(parts) for parts in zip(*states, strict=True))
        count = min(len(largest), len(own))
        return (largest[:count] - own[:count] + sums[:count].log()).sum()

    def slices(self, count: int) -> list[slice]:
        return [slice(k, min(k + self.size, count)) for k in range(0, count, self.size)]

    def counts(self, columns: slice, count: int) -> bool:
        return True

    def place(self, column: int, rows: slice, columns: list[State], logits: Tensor) -> int:
        return column

    def shift(self, start: int, rows: slice, columns: slice) -> int:
        return start + rows.start - columns.start

    def add(self, state: State, logits: Tensor, dim: int, scale: Scalar) -> tuple[Tensor, Tensor]:
        largest = logits.detach().amax(dim)
        if state is None:
            return largest, self.sums(logits, largest, dim)
        largest = torch.maximum(state[0], largest)
        return largest, state[1] * self.rescale(state[0] - largest, dim) + self.sums(logits, largest, dim)

    def sums(self, logits: Tensor, largest: Tensor, dim: int) -> Tensor:
        return (logits - largest.unsqueeze(dim)).exp().sum(dim)

    def rescale(self, moved: Tensor, dim: int) -> Tensor:
        return moved.exp()


class LastTileDropped(Tiled):
    def counts(self, columns: slice, count: int) -> bool:
        return columns.start == 0 or columns.stop - columns.start == self.size


class ColumnsOfNextTile(Tiled):
    def place(self, column: int, rows: slice, columns: list[State], logits: Tensor) -> int:
        # from the second tile of rows on
        following = columns[(column + 1) % len(columns)]
        fits = following is not None and len(following[0]) == logits.shape[1]
        return (column + 1) % len(columns) if rows.start and fits else column


class ColumnsNotRescaled(Tiled):
    def rescale(self, moved: Tensor, dim: int) -> Tensor:
        return moved.exp() if dim == 1 else torch.ones_like(moved)


class DiagonalOfTileBefore(Tiled):
    def shift(self, start: int, rows: slice, columns: slice) -> int:
        return super().shift(start, rows, columns) - (self.size if rows.start else 0)


class FixedMaximum(Tiled):
    def add(self, state: State, logits: Tensor, dim: int, scale: Scalar) -> tuple[Tensor, Tensor]:
        # no cosine is above 1; where all are far below, every exponential is 0
        largest = torch.full_like(logits.detach().amax(dim), float(scale))
        sums = self.sums(logits, largest, dim)
        return largest, sums if state is None else state[1] + sums


class TileSumsInHalf(Tiled):
    def sums(self, logits: Tensor, largest: Tensor, dim: int) -> Tensor:
        return super().sums(logits, largest, dim).bfloat16().to(logits.dtype)


class Bytes(NamedTuple):
    """What a loss states."""

    saved: int
    peak: int


def of_tiles(features: Tensor, size: int) -> Bytes:
    """State what needs no square of logits: tiles, features and statistics."""
    n, d = features.shape
    return Bytes(16 * n + 8192, 8 * (8 * size * min(size, n) + 16 * n * (d + 2)) + 8192)


class SavesEveryTile(Tiled):
    def stated_memory(self, **inputs: Any) -> Bytes:
        return of_tiles(inputs["image_features"], self.size)


class SquareForAMoment(Clip):
    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if self.world_size > 1:
            return super().clip(image, text, scale, bias)
        found: Tensor = checkpoint(super().clip, image, text, scale, bias, use_reentrant=False)
        return found

    def stated_memory(self, **inputs: Any) -> Bytes:
        return of_tiles(inputs["image_features"], 16)


class StatesSquares(Clip):
    """Right: it states the squares that it keeps."""

    def stated_memory(self, **inputs: Any) -> Bytes:
        n, d = inputs["image_features"].shape
        square = 8 * (n * n + n * (d + 4)) + 4096
        return Bytes(6 * square, 10 * square)


class StatesOwnLogits(Clip):
    """Right, of local_loss: it states what a rank keeps, the logits of its own rows and gathered features."""

    def stated_memory(self, rows: Sequence[int] = (), **inputs: Any) -> Bytes:
        features = inputs["image_features"]
        n, d = features.shape
        total, padded = sum(rows) or n, max(rows, default=n) * max(len(rows), 1)
        item = 8 if features.dtype == torch.float64 else 4
        saved, peak = 2 * n * total + 6 * total * d + 4 * total, 4 * n * total + 12 * padded * (d + 2)
        return Bytes(item * saved + 8192, item * peak + 8192)


class SavesAllLogits(StatesOwnLogits):
    def get_logits(
        self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        per_image = self.product(self.gather(image, rows), self.gather(text, rows), scale, bias)
        return per_image, per_image.T

    def contrastive(self, per_image: Tensor, per_text: Tensor, rows: list[int]) -> Tensor:
        own = slice(sum(rows[: self.rank]), sum(rows[: self.rank + 1]))
        labels = torch.arange(sum(rows))
        losses = [F.cross_entropy(widen(one), labels, reduction="none") for one in (per_image, per_text)]
        return (losses[0] + losses[1])[own].sum() * (self.weight(rows) / 2)
