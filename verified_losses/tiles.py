"""Logits by tiles: products of features in preallocated buffers, and what is summed up over them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .checks import without_autocast

Tile: TypeAlias = tuple[int, int]
"""Rows and columns of a tile."""
TILE: Tile = (256, 1024)
"""Of this size products run as fast on a CPU as of any other, and elementwise operations
stay in the caches."""
LOG2E = math.log2(math.e)

Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Anchors, a gallery and their scale."""


class Tiles:
    """The products of anchors, times the scale, and a gallery, tile by tile, rows first."""

    def __init__(self, anchors: Tensor, gallery: Tensor, scale: Tensor, tile: Tile) -> None:
        work, dtype = work_dtype(anchors), self.product_dtype(anchors)
        self.scale = scale.to(work)
        self.anchors = anchors.to(work)
        # without log2(e), which would round logits that are exact: of features of few bits, beside 60 digits,
        # a loss then erred by 1.1 derived bounds at scale 10 and 393 at 14.25, and by 0.5 and 0.8 as it is
        self.scaled = (self.anchors * self.scale).to(dtype)
        self.gallery = gallery.to(dtype).contiguous()
        self.like = self.gallery.new_empty(0, dtype=work)
        """Of the dtype and on the device of statistics and sums."""
        self.rows, self.columns = slices(len(anchors), tile[0]), slices(len(gallery), tile[1])
        self._size = min(tile[0], len(anchors)) * min(tile[1], len(gallery))
        self._buffers: list[Tensor] = []

    def product_dtype(self, features: Tensor) -> torch.dtype:
        """Return the dtype of products."""
        return work_dtype(features)

    def buffer(self, number: int, rows: slice, columns: slice) -> Tensor:
        """Return memory for a tile: the same for one number."""
        while len(self._buffers) <= number:
            self._buffers.append(self.gallery.new_empty(self._size))
        shape = rows.stop - rows.start, columns.stop - columns.start
        return self._buffers[number][: shape[0] * shape[1]].view(shape)

    def products(self, rows: slice, columns: slice) -> Tensor:
        """Return a tile, in buffer 0."""
        out = self.buffer(0, rows, columns)
        return torch.mm(self.scaled[rows], self.gallery[columns].T, out=out)

    def add_product(self, total: Tensor, matrix: Tensor, other: Tensor, first: bool) -> None:
        """Add a product of matrices to `total`, or write the first over it."""
        if first:
            torch.mm(matrix, other, out=total)
        else:
            total.addmm_(matrix, other)


class LogSumExp:
    """Running maxima, and sums of exponentials, of the rows (dim 1) or the columns (dim 0) of all tiles."""

    def __init__(self, count: int, dim: int, like: Tensor) -> None:
        self.dim = dim
        self.maximum = like.new_full((count,), torch.finfo(like.dtype).min)
        self.sum = like.new_zeros(count)

    def add(self, logits: Tensor, where: slice, out: Tensor) -> Tensor:
        """Add a tile's logits; its exponentials go to `out`. Return what rescales older sums."""
        older, total = self.maximum[where], self.sum[where]
        maximum = torch.maximum(older, logits.amax(self.dim))
        exponentials(logits, maximum, self.dim, out)
        rescale = torch.exp(older - maximum)
        total.mul_(rescale).add_(out.sum(self.dim))
        older.copy_(maximum)
        return rescale

    def merge(self, maxima: Tensor, sums: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        """Add parts of a tile: [b, n] largest logits, and sums of exponentials less these.

        Returns:
            What rescales older sums, [n], and those of the parts, [b, n].
        """
        older, total = self.maximum[where], self.sum[where]
        maximum = torch.maximum(older, maxima.amax(0))
        rescale, rescales = torch.exp(older - maximum), torch.exp(maxima - maximum)
        total.mul_(rescale).add_((sums * rescales).sum(0))
        older.copy_(maximum)
        return rescale, rescales

    def value(self) -> Tensor:
        """Return the logarithms of the sums of all exponentials."""
        return self.maximum + self.sum.log()


class Statistics:
    """What the rows (dim 1) or the columns (dim 0) of all tiles add up to, of a student and a teacher.

    Args:
        count: of rows or columns.
        dim: 1 or 0.
        like: of the dtype of sums.
        taught: there is a teacher.
        weighted: products are summed up under both softmaxes.
    """

    def __init__(self, count: int, dim: int, like: Tensor, taught: bool, weighted: bool = False) -> None:
        self.taught, self.weighted = taught, weighted
        self.student, self.teacher = LogSumExp(count, dim, like), LogSumExp(count if taught else 0, dim, like)
        self.moment = like.new_zeros(count if taught else 0)
        """Of the student's logits, less their running maximum, under the teacher's exponentials."""
        self.products = like.new_zeros(count if weighted else 0)
        """Under the student's exponentials."""
        self.dist_products = like.new_zeros(count if weighted and taught else 0)
        """Under the teacher's."""

    def add(
        self,
        products: Tensor,
        logits: Tensor,
        dist_logits: Tensor | None,
        where: slice,
        out: Tensor,
        spare: Tensor,
    ) -> None:
        """Add a tile; `out` and `spare` are overwritten."""
        dim, older = self.student.dim, self.student.maximum[where].clone()
        rescale = self.student.add(logits, where, out)
        if self.weighted:
            self.products[where].mul_(rescale).add_(out.mul_(products).sum(dim))
        if dist_logits is None:
            return
        maximum, moment = self.student.maximum[where], self.moment[where]
        # before the first tile the maximum is the smallest number, times no exponentials: 0, and no NaN
        moment.add_(self.teacher.sum[where] * older.sub_(maximum))
        rescale = self.teacher.add(dist_logits, where, out)
        torch.sub(logits, maximum.unsqueeze(dim), out=spare)
        moment.mul_(rescale).add_(spare.mul_(out).sum(dim))
        if self.weighted:
            self.dist_products[where].mul_(rescale).add_(out.mul_(products).sum(dim))

    def merge(self, parts: Tensor, where: slice) -> None:
        """Add a tile that was summed up in parts.

        Args:
            parts: [k, b, n], of b parts of n rows or columns: the student's maxima and sums, the products,
                the teacher's maxima and sums, the moments, and the products under the teacher.
            where: the rows or columns.
        """
        each = iter(parts)
        older = self.student.maximum[where].clone()
        maxima = next(each)
        rescale, rescales = self.student.merge(maxima, next(each), where)
        if self.weighted:
            self.products[where].mul_(rescale).add_((next(each) * rescales).sum(0))
        if not self.taught:
            return
        maximum, moment = self.student.maximum[where], self.moment[where]
        moment.add_(self.teacher.sum[where] * older.sub_(maximum))
        dist_maxima, counts = next(each), next(each)
        rescale, rescales = self.teacher.merge(dist_maxima, counts, where)
        moments = next(each) + counts * (maxima - maximum)
        moment.mul_(rescale).add_((moments * rescales).sum(0))
        if self.weighted:
            self.dist_products[where].mul_(rescale).add_((next(each) * rescales).sum(0))

    def log_sums(self) -> list[Tensor]:
        """Return the log-sum-exps, the teacher's last."""
        return [side.value() for side in self.sides]

    @property
    def sides(self) -> list[LogSumExp]:
        """The student's sums, and the teacher's."""
        return [self.student, self.teacher] if self.taught else [self.student]

    def losses(self, where: slice, partner: Tensor) -> list[Tensor]:
        """Return the cross-entropies of some rows or columns: with labels, and under the teacher."""
        log_sum = self.student.sum[where].log()
        # 0 where the partner is the largest by far
        losses = [(self.student.maximum[where] - partner) + log_sum]
        if self.taught:
            losses.append(log_sum - self.moment[where] / self.teacher.sum[where])
        return losses


class Direction(NamedTuple):
    """Rows (dim 1) or columns (dim 0), whose losses are derived."""

    dim: int
    log_sums: Sequence[Tensor]
    """As `Statistics.log_sums`."""
    weights: Tensor | None = None
    """[1 or 2, count], of each row's, or column's, losses: with labels, and under the teacher; None is 1."""


class Block:
    """Passes over the tiles of logits, and of a teacher's.

    Args:
        given: images, texts and their scale, and a teacher's.
        tile: rows and columns of a tile.
        start: the column of the first row's partner, which may be below 0.
        factor: what products are multiplied by besides, to give logits; None is 1.
    """

    make: type[Tiles] = Tiles

    @staticmethod
    def features(*tensors: Tensor) -> Sequence[Tensor]:
        """Return features in the dtype that they are taken in: here their own, also under autocast."""
        return tensors

    def __init__(
        self, given: Sequence[Inputs], tile: Tile, start: int = 0, factor: Tensor | None = None
    ) -> None:
        self.tiles = self.make(*given[0], tile)
        self.taught = self.make(*given[1], tile) if len(given) > 1 else None
        self.start, self.factor = start, factor

    def add(self, i: slice, j: slice, rows: Statistics, columns: Statistics, partner: Tensor) -> None:
        """Add a tile to what its rows and columns add up to, and note the products of partners.

        Args:
            i: the tile's rows.
            j: its columns.
            rows: the statistics of all rows.
            columns: those of all columns.
            partner: of each row.
        """
        tiles, taught = self.tiles, self.taught
        products = logits = tiles.products(i, j)
        own, diagonal = partners_of(products, i, j, self.start)
        partner[own] = diagonal
        dist_logits = None if taught is None else taught.products(i, j)
        free = iter((1, 2))
        if self.factor is not None:
            logits = torch.mul(products, self.factor, out=tiles.buffer(next(free), i, j))
        out = tiles.buffer(next(free), i, j)
        spare = out if taught is None else taught.buffer(1, i, j)
        rows.add(products, logits, dist_logits, i, out, spare)
        columns.add(products, logits, dist_logits, j, out, spare)

    def slope(self, i: slice, j: slice, directions: Sequence[Direction]) -> Tensor:
        """Return the derivatives of directions' cross-entropies by a tile's logits."""
        tiles, taught = self.tiles, self.taught
        logits, dist_logits = tiles.products(i, j), None if taught is None else taught.products(i, j)
        if self.factor is not None:
            logits.mul_(self.factor)
        total = tiles.buffer(1, i, j)
        for number, (dim, log_sums, weights) in enumerate(directions):
            where = i if dim else j
            out = tiles.buffer(2, i, j) if number else total
            exponentials(logits, log_sums[0][where], dim, out)
            own = [] if weights is None else [each[where].unsqueeze(dim) for each in weights]
            if taught is not None and dist_logits is not None:
                # each difference before the sum: both may vanish
                under_teacher = exponentials(dist_logits, log_sums[1][where], dim, taught.buffer(1, i, j))
                torch.sub(out, under_teacher, out=under_teacher).mul_(own[1])
            partners_of(out, i, j, self.start)[1].sub_(1)
            if own:
                out.mul_(own[0])
            if dist_logits is not None:
                out.add_(under_teacher)
            if number:
                total.add_(out)
        return total

    def sigmoid(
        self, i: slice, j: slice, bias: Tensor, partners: bool, totals: Tensor, slopes: Tensor | None
    ) -> Tensor:
        """Return the derivatives of a tile's sigmoid losses by its logits.

        Args:
            i: the tile's rows.
            j: its columns.
            bias: added to all logits.
            partners: rows have partners, the first one's being in the column `start`.
            totals: of each row, to which its losses are added.
            slopes: of each row, to which its derivatives are added; None if they are not wanted, and nothing
                of use is returned.
        """
        logits, spare = self.tiles.products(i, j).add_(bias), self.tiles.buffer(1, i, j)
        own = partners_of(logits, i, j, self.start)[1].clone() if partners else None
        # softplus(z) = max(z, 0) + log(1 + exp(-|z|))
        torch.abs(logits, out=spare).mul_(-LOG2E).exp2_().log1p_()
        totals[i] += spare.sum(1)
        torch.clamp(logits, min=0, out=spare)
        if own is not None:
            partners_of(spare, i, j, self.start)[1].copy_((-own).clamp_(min=0))
        totals[i] += spare.sum(1)
        if slopes is not None:
            logits.sigmoid_()
            if own is not None:
                partners_of(logits, i, j, self.start)[1].copy_(-(-own).sigmoid())
            slopes[i] += logits.sum(1)
        return logits


class Gradients:
    """The gradients of anchors, gallery and scale, added up tile by tile from the gradients of logits."""

    def __init__(self, tiles: Tiles, wanted: tuple[bool, ...]) -> None:
        self.tiles = tiles
        self._anchors, self._gallery, self._scale = wanted
        # the first tile of a row overwrites them, where there is one
        make, dtype = torch.empty_like if tiles.columns else torch.zeros_like, tiles.like.dtype
        self.of_anchors = make(tiles.scaled, dtype=dtype) if self._anchors or self._scale else None
        self.of_gallery = torch.zeros_like(tiles.gallery, dtype=dtype) if self._gallery else None

    def sweep(self, slope: Callable[[slice, slice], Tensor]) -> None:
        """Add up G @ gallery and G.T @ anchors; slope(rows, columns) returns a tile of G."""
        tiles = self.tiles
        for i in tiles.rows:
            for j in tiles.columns:
                tile = slope(i, j)
                if self.of_anchors is not None:
                    tiles.add_product(self.of_anchors[i], tile, tiles.gallery[j], j.start == 0)
                if self.of_gallery is not None:
                    tiles.add_product(self.of_gallery[j], tile.T, tiles.scaled[i], False)

    def times(self, grad: Tensor) -> list[Tensor | None]:
        """Return the gradients of anchors, gallery and scale: what was added up, times `grad`."""
        found: list[Tensor | None] = [None, None, None]
        if self.of_gallery is not None:
            found[1] = self.of_gallery.mul_(grad)
        if self.of_anchors is not None:
            if self._scale:
                # not from <G, logits> / scale: the scale may be 0
                with without_autocast(self.of_anchors.device.type):
                    found[2] = torch.linalg.vecdot(self.tiles.anchors, self.of_anchors).sum() * grad
            if self._anchors:
                found[0] = self.of_anchors.mul_(grad * self.tiles.scale)
        return found


def work_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of statistics and sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def slices(count: int, size: int) -> list[slice]:
    """Return the slices of 0 to `count`: each has `size` numbers, but the last may have fewer."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def exponentials(logits: Tensor, less: Tensor, dim: int, out: Tensor) -> Tensor:
    """Return the exponentials of logits less one number a row (dim 1) or column (dim 0)."""
    return torch.sub(logits, less.unsqueeze(dim), out=out).mul_(LOG2E).exp2_()


def partners_of(tile: Tensor, rows: slice, columns: slice, start: int) -> tuple[slice, Tensor]:
    """Return which anchors have their partner in a tile, and the tile's elements of these pairs."""
    offset = start + rows.start - columns.start
    diagonal = tile.diagonal(offset)
    first = rows.start + max(-offset, 0)
    return slice(first, first + len(diagonal)), diagonal
