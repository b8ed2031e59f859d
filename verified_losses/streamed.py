"""The sums of `contrast` by tiles of logits, of which one at a time is in memory.

A tile is computed again in the backward, and both gradients are formed from it: 8 N^2 d operations for N
pairs of width d (the sigmoid, whose value and gradients come from one sweep: 6 N^2 d). Exponentials are
powers of two, which are fast on a CPU where they underflow too, of logits less a running maximum. Products,
statistics and sums are in float32, or float64 for float64. The order of all sums is fixed. Second derivatives
are those of `contrast`.

Exponentials are not kept for the backward, in half precision say, which would save one product of four: on a
CPU that took 0.82 of the time, for 2 N^2 bytes; but their 8 bits err by 2^-9 where float32 may by some 2^-20,
and less a row's maximum they are 0 where a column has nothing larger (a text opposite to all images, at scale
100). In bfloat16, whose bounds are wider, the dense form is faster on a CPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import contrast
from .checks import Scalar
from .transport import eager

Tile: TypeAlias = tuple[int, int]
"""Rows and columns of a tile."""
TILE: Tile = (256, 1024)
"""Of this size products run as fast as of any other, and elementwise operations
stay in the caches."""
LOG2E = math.log2(math.e)

Pair: TypeAlias = tuple[Tensor, Tensor]
Side: TypeAlias = tuple[Pair, Scalar, Scalar | None]
"""A pair, its scale and its bias."""


@eager
def sum_infonce(
    anchors: Tensor,
    gallery: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    start: int,
    tile: Tile = TILE,
) -> Tensor:
    """Sum over anchors the cross-entropy of their logits; see `contrast.sum_infonce`."""
    scale = as_scalar(logit_scale, anchors)
    total: Tensor = _InfoNCE.apply(anchors, gallery, scale, start, False, tile)
    return with_bias(total, logit_bias)


@eager
def sum_symmetric(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    tile: Tile = TILE,
) -> Tensor:
    """Sum both directions' cross-entropies, from one product a tile; see `contrast.sum_symmetric`."""
    scale = as_scalar(logit_scale, image_features)
    total: Tensor = _InfoNCE.apply(image_features, text_features, scale, 0, True, tile)
    return with_bias(total, logit_bias)


@eager
def sum_sigmoid(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    start: int | None,
    tile: Tile = TILE,
) -> Tensor:
    """Sum the sigmoid's losses of all pairs; see `contrast.sum_sigmoid`."""
    scale = as_scalar(logit_scale, image_features)
    bias = as_scalar(0.0 if logit_bias is None else logit_bias, image_features)
    recorded = torch.is_grad_enabled()
    total: Tensor = _Sigmoid.apply(image_features, text_features, scale, bias, start, tile, recorded)
    return total


@eager
def sum_distill(
    student: Pair,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    teacher: Pair,
    dist_logit_scale: Scalar,
    dist_logit_bias: Scalar | None,
    start: int,
    tile: Tile = TILE,
) -> tuple[Tensor, Tensor]:
    """Sum cross-entropies with labels and under a constant teacher; see `contrast.sum_distill`."""
    sides = (student, logit_scale, logit_bias), (teacher, dist_logit_scale, dist_logit_bias)
    return _distilled(*sides, start, False, tile)


@eager
def sum_symmetric_distill(
    student: Pair,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    teacher: Pair,
    dist_logit_scale: Scalar,
    dist_logit_bias: Scalar | None,
    tile: Tile = TILE,
) -> tuple[Tensor, Tensor]:
    """Sum both directions of `sum_distill`; see `contrast.sum_symmetric_distill`."""
    sides = (student, logit_scale, logit_bias), (teacher, dist_logit_scale, dist_logit_bias)
    return _distilled(*sides, 0, True, tile)


def _distilled(student: Side, teacher: Side, start: int, both: bool, tile: Tile) -> tuple[Tensor, Tensor]:
    (features, scale, bias), (dist_features, dist_scale, dist_bias) = student, teacher
    scales = as_scalar(scale, features[0]), as_scalar(dist_scale, dist_features[0])
    labelled, taught = _Distill.apply(*features, scales[0], *dist_features, scales[1], start, both, tile)
    return with_bias(labelled, bias), with_bias(with_bias(taught, bias), dist_bias)


def work_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of products, statistics and sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def as_scalar(value: Scalar, features: Tensor) -> Tensor:
    """Return a scalar as a tensor of no dimensions."""
    flat = contrast.flat(value)
    return flat if isinstance(flat, Tensor) else torch.tensor(flat, dtype=work_dtype(features))


def with_bias(total: Tensor, bias: Scalar | None) -> Tensor:
    """Add what a bias adds to a softmax's loss: nothing, unless it is not finite; its gradient is 0."""
    if bias is None:
        return total
    flat = contrast.flat(bias)
    nothing = flat - flat
    return total + (nothing.to(total.device, total.dtype) if isinstance(nothing, Tensor) else nothing)


class Tiles:
    """The logits of anchors against a gallery, tile by tile, rows first."""

    def __init__(self, anchors: Tensor, gallery: Tensor, scale: Tensor, tile: Tile) -> None:
        work = work_dtype(anchors)
        self.anchors = anchors.to(work)
        # without log2(e), which would round logits that are exact: of features of few bits, beside 60 digits,
        # a loss then erred by 1.1 derived bounds at scale 10 and 393 at 14.25, and by 0.5 and 0.8 as it is
        self.scaled = self.anchors * scale.to(work)
        self.gallery = gallery.to(work).contiguous()
        self.scale = scale.to(work)
        self.rows, self.columns = slices(len(anchors), tile[0]), slices(len(gallery), tile[1])
        self._size = min(tile[0], len(anchors)) * min(tile[1], len(gallery))
        self._buffers: list[Tensor] = []

    def buffer(self, number: int, rows: slice, columns: slice) -> Tensor:
        """Return memory for a tile: the same for one number."""
        while len(self._buffers) <= number:
            self._buffers.append(self.gallery.new_empty(self._size))
        shape = rows.stop - rows.start, columns.stop - columns.start
        return self._buffers[number][: shape[0] * shape[1]].view(shape)

    def logits(self, number: int, rows: slice, columns: slice) -> Tensor:
        """Return the logits of a tile in a buffer."""
        out = self.buffer(number, rows, columns)
        return torch.mm(self.scaled[rows], self.gallery[columns].T, out=out)


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

    def value(self) -> Tensor:
        """Return the logarithms of the sums of all exponentials."""
        return self.maximum + self.sum.log()


class _InfoNCE(Function):
    """The sum over rows, and over columns if `both`, of log-sum-exp less the partner's logit."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, gallery: Tensor, scale: Tensor, start: int, both: bool, tile: Tile
    ) -> Tensor:
        tiles = Tiles(anchors, gallery, scale, tile)
        rows = LogSumExp(len(anchors), 1, tiles.gallery)
        columns = LogSumExp(len(gallery), 0, tiles.gallery) if both else None
        partner = torch.empty_like(rows.sum)
        for i in tiles.rows:
            for j in tiles.columns:
                logits, spare = tiles.logits(0, i, j), tiles.buffer(1, i, j)
                own, diagonal = partners_of(logits, i, j, start)
                partner[own] = diagonal
                rows.add(logits, i, spare)
                if columns is not None:
                    columns.add(logits, j, spare)
        total = _losses(rows, partner).sum()
        saved = [rows.value()]
        if columns is not None:
            total = total + _losses(columns, partner).sum()
            saved.append(columns.value())
        ctx.save_for_backward(anchors, gallery, scale, *saved)
        ctx.start, ctx.both, ctx.tile = start, both, tile
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        anchors, gallery, scale, *log_sums = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():

            def dense(anchors: Tensor, gallery: Tensor, scale: Tensor) -> list[Tensor]:
                if ctx.both:
                    return [contrast.sum_symmetric(anchors, gallery, scale, None)]
                return [contrast.sum_infonce(anchors, gallery, scale, None, ctx.start)]

            return *through(dense, (anchors, gallery, scale), wanted, [grad]), None, None, None
        tiles = Tiles(anchors, gallery, scale, ctx.tile)

        def slope(i: slice, j: slice) -> Tensor:
            logits, out, spare = (tiles.logits(0, i, j), tiles.buffer(1, i, j), tiles.buffer(2, i, j))
            exponentials(logits, log_sums[0][i], 1, out)
            if ctx.both:
                out.add_(exponentials(logits, log_sums[1][j], 0, spare))
            partners_of(out, i, j, ctx.start)[1].sub_(1 + ctx.both)
            return out

        gradients = Gradients(tiles, wanted)
        gradients.sweep(slope)
        return *cast_like(gradients.times(grad), (anchors, gallery, scale)), None, None, None


class _Distill(Function):
    """The sums of `_InfoNCE`, and of cross-entropies under a teacher's softmax, which is a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        gallery: Tensor,
        scale: Tensor,
        dist_anchors: Tensor,
        dist_gallery: Tensor,
        dist_scale: Tensor,
        start: int,
        both: bool,
        tile: Tile,
    ) -> tuple[Tensor, Tensor]:
        tiles = Tiles(anchors, gallery, scale, tile)
        taught = Tiles(dist_anchors, dist_gallery, dist_scale, tile)
        sides = [_Taught(len(anchors), 1, tiles.gallery)]
        if both:
            sides.append(_Taught(len(gallery), 0, tiles.gallery))
        partner = torch.empty_like(sides[0].student.sum)
        for i in tiles.rows:
            for j in tiles.columns:
                logits, dist_logits = tiles.logits(0, i, j), taught.logits(0, i, j)
                own, diagonal = partners_of(logits, i, j, start)
                partner[own] = diagonal
                for side, where in zip(sides, (i, j), strict=False):
                    side.add(logits, dist_logits, where, tiles.buffer(1, i, j), tiles.buffer(2, i, j))
        labelled = torch.stack([_losses(side.student, partner).sum() for side in sides]).sum()
        under_teacher = torch.stack([side.losses().sum() for side in sides]).sum()
        log_sums = [each.value() for side in sides for each in (side.student, side.teacher)]
        inputs = anchors, gallery, scale, dist_anchors, dist_gallery, dist_scale
        ctx.save_for_backward(*inputs, *log_sums)
        ctx.start, ctx.both, ctx.tile = start, both, tile
        return labelled, under_teacher

    @staticmethod
    def backward(ctx: Any, grad_labelled: Tensor, grad_taught: Tensor) -> tuple[Any, ...]:
        anchors, gallery, scale, *dist = ctx.saved_tensors[:6]
        teacher = dist[0], dist[1], dist[2]
        log_sums = ctx.saved_tensors[6:]
        wanted, no_more = ctx.needs_input_grad[:3], (None,) * 6
        if torch.is_grad_enabled():

            def dense(anchors: Tensor, gallery: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
                both = (anchors, gallery), scale, None, (teacher[0], teacher[1]), teacher[2], None
                if ctx.both:
                    return contrast.sum_symmetric_distill(*both)
                return contrast.sum_distill(*both, ctx.start)

            grads = [grad_labelled, grad_taught]
            return *through(dense, (anchors, gallery, scale), wanted, grads), *no_more
        tiles = Tiles(anchors, gallery, scale, ctx.tile)
        taught = Tiles(*teacher, ctx.tile)

        def slope(i: slice, j: slice) -> Tensor:
            logits, dist_logits = tiles.logits(0, i, j), taught.logits(0, i, j)
            out, spare = tiles.buffer(1, i, j), tiles.buffer(2, i, j)
            exponentials(logits, log_sums[0][i], 1, out)
            dist_slope = exponentials(dist_logits, log_sums[1][i], 1, taught.buffer(1, i, j))
            if ctx.both:
                out.add_(exponentials(logits, log_sums[2][j], 0, spare))
                dist_slope.add_(exponentials(dist_logits, log_sums[3][j], 0, spare))
            # grad_labelled (p - y) + grad_taught (p - q), each difference before the sum: both may vanish
            spare.copy_(out).sub_(dist_slope).mul_(grad_taught)
            partners_of(out, i, j, ctx.start)[1].sub_(1 + ctx.both)
            return out.mul_(grad_labelled).add_(spare)

        gradients = Gradients(tiles, wanted)
        gradients.sweep(slope)
        found = gradients.times(torch.ones_like(grad_taught))
        return *cast_like(found, (anchors, gallery, scale)), *no_more


class _Taught:
    """A row's or column's log-sum-exp, the teacher's, and the teacher's mean of the student's logits."""

    def __init__(self, count: int, dim: int, like: Tensor) -> None:
        self.student, self.teacher = LogSumExp(count, dim, like), LogSumExp(count, dim, like)
        self.moment = like.new_zeros(count)
        """Of the student's logits, less their running maximum, under the teacher's exponentials."""

    def add(self, logits: Tensor, dist_logits: Tensor, where: slice, out: Tensor, spare: Tensor) -> None:
        """Add a tile's logits of both; `out` and `spare` are overwritten."""
        dim, moment = self.student.dim, self.moment[where]
        older, count = self.student.maximum[where].clone(), self.teacher.sum[where].clone()
        self.student.add(logits, where, out)
        maximum = self.student.maximum[where]
        # before the first tile the maximum is the smallest number, times no exponentials: 0, and no NaN
        moment.add_(count.mul_(older.sub_(maximum)))
        moment.mul_(self.teacher.add(dist_logits, where, out))
        torch.sub(logits, maximum.unsqueeze(dim), out=spare)
        moment.add_(spare.mul_(out).sum(dim))

    def losses(self) -> Tensor:
        """Return the cross-entropies under the teacher."""
        return self.student.sum.log() - self.moment / self.teacher.sum


class _Sigmoid(Function):
    """The sum over all pairs of softplus(z), or softplus(-z) for partners; gradients are formed with it."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor,
        start: int | None,
        tile: Tile,
        recorded: bool,
    ) -> Tensor:
        tiles = Tiles(images, texts, scale, tile)
        offset = bias.to(tiles.gallery.dtype)
        totals = tiles.gallery.new_zeros(len(images))
        slopes = torch.zeros_like(totals)

        def slope(i: slice, j: slice) -> Tensor:
            logits, spare = tiles.logits(0, i, j).add_(offset), tiles.buffer(1, i, j)
            if start is not None:
                partners = partners_of(logits, i, j, start)[1].clone()
            # softplus(z) = max(z, 0) + log(1 + exp(-|z|))
            torch.abs(logits, out=spare).mul_(-LOG2E).exp2_().log1p_()
            totals[i] += spare.sum(1)
            torch.clamp(logits, min=0, out=spare)
            if start is not None:
                partners_of(spare, i, j, start)[1].copy_((-partners).clamp_(min=0))
            totals[i] += spare.sum(1)
            if recorded:
                logits.sigmoid_()
                if start is not None:
                    partners_of(logits, i, j, start)[1].copy_(-(-partners).sigmoid())
                slopes[i] += logits.sum(1)
            return logits

        gradients = Gradients(tiles, ctx.needs_input_grad[:3] if recorded else (False, False, False))
        gradients.sweep(slope)
        ctx.start = start
        if recorded:
            found = *gradients.times(totals.new_ones(())), slopes.sum()
            ctx.found = [each is not None for each in found]
            ctx.save_for_backward(images, texts, scale, bias, *(each for each in found if each is not None))
        return totals.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inputs, found = ctx.saved_tensors[:4], iter(ctx.saved_tensors[4:])
        wanted = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():

            def dense(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> list[Tensor]:
                return [contrast.sum_sigmoid(images, texts, scale, bias, ctx.start)]

            return *through(dense, inputs, wanted, [grad]), None, None, None
        gradients = [next(found) * grad if there else None for there in ctx.found]
        return *cast_like(gradients, inputs, wanted), None, None, None


class Gradients:
    """The gradients of anchors, gallery and scale, added up tile by tile from the gradients of logits."""

    def __init__(self, tiles: Tiles, wanted: tuple[bool, ...]) -> None:
        self.tiles = tiles
        self._anchors, self._gallery, self._scale = wanted
        # the first tile of a row overwrites them, where there is one
        make = torch.empty_like if tiles.columns else torch.zeros_like
        self.of_anchors = make(tiles.scaled) if self._anchors or self._scale else None
        self.of_gallery = torch.zeros_like(tiles.gallery) if self._gallery else None

    def sweep(self, slope: Callable[[slice, slice], Tensor]) -> None:
        """Add up G @ gallery and G.T @ anchors; slope(rows, columns) returns a tile of G."""
        tiles = self.tiles
        for i in tiles.rows:
            for j in tiles.columns:
                tile = slope(i, j)
                if self.of_anchors is not None:
                    if j.start == 0:
                        torch.mm(tile, tiles.gallery[j], out=self.of_anchors[i])
                    else:
                        self.of_anchors[i].addmm_(tile, tiles.gallery[j])
                if self.of_gallery is not None:
                    self.of_gallery[j].addmm_(tile.T, tiles.scaled[i])

    def times(self, grad: Tensor) -> list[Tensor | None]:
        """Return the gradients of anchors, gallery and scale: what was added up, times `grad`."""
        found: list[Tensor | None] = [None, None, None]
        if self.of_gallery is not None:
            found[1] = self.of_gallery.mul_(grad)
        if self.of_anchors is not None:
            if self._scale:
                # not from <G, logits> / scale: the scale may be 0
                found[2] = torch.linalg.vecdot(self.tiles.anchors, self.of_anchors).sum() * grad
            if self._anchors:
                found[0] = self.of_anchors.mul_(grad * self.tiles.scale)
        return found


def cast_like(
    found: Sequence[Tensor | None], inputs: Sequence[Tensor], wanted: Sequence[bool] | None = None
) -> list[Tensor | None]:
    """Return gradients in the dtypes of their inputs, on their devices."""
    kept = wanted or [True] * len(inputs)
    return [
        gradient.to(tensor.device, tensor.dtype) if gradient is not None and keep else None
        for gradient, tensor, keep in zip(found, inputs, kept, strict=True)
    ]


def slices(count: int, size: int) -> list[slice]:
    """Return 0 to count in slices of a size, the last of which may be shorter."""
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


def _losses(sums: LogSumExp, partner: Tensor) -> Tensor:
    """Return the cross-entropies; 0 where the partner is the largest by far."""
    return (sums.maximum - partner) + sums.sum.log()


def through(
    dense: Callable[..., Any], inputs: Sequence[Tensor], wanted: Sequence[bool], grads: list[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of inputs of a function, differentiable themselves."""
    # views: an input that another depends on gets its own part alone
    own = [tensor.view_as(tensor) for tensor in inputs]
    needed = [tensor for tensor, need in zip(own, wanted, strict=True) if need]
    terms = [term.to(grad.dtype) for term, grad in zip(dense(*own), grads, strict=True)]
    found = iter(torch.autograd.grad(terms, needed, grads, create_graph=True))
    return [next(found) if need else None for need in wanted]
