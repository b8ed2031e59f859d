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
Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""A pair and its scale."""


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
    total: Tensor = _InfoNCE.apply(image_features, text_features, scale, tile)
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
def sum_symmetric_distill(
    student: Pair,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    teacher: Pair,
    dist_logit_scale: Scalar,
    dist_logit_bias: Scalar | None,
    tile: Tile = TILE,
) -> tuple[Tensor, Tensor]:
    """Sum cross-entropies with labels and under a constant teacher, of both directions.

    See `contrast.sum_symmetric_distill`.
    """
    scales = as_scalar(logit_scale, student[0]), as_scalar(dist_logit_scale, teacher[0])
    labelled, taught = _Distill.apply(*student, scales[0], *teacher, scales[1], tile)
    return with_bias(labelled, logit_bias), with_bias(with_bias(taught, logit_bias), dist_logit_bias)


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
    """The sum over rows and columns of log-sum-exp less the partner's logit."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, tile: Tile) -> Tensor:
        tiles = Tiles(images, texts, scale, tile)
        rows, columns = (LogSumExp(len(images), dim, tiles.gallery) for dim in (1, 0))
        partner = torch.empty_like(rows.sum)
        for i in tiles.rows:
            for j in tiles.columns:
                logits, spare = tiles.logits(0, i, j), tiles.buffer(1, i, j)
                own, diagonal = partners_of(logits, i, j, 0)
                partner[own] = diagonal
                rows.add(logits, i, spare)
                columns.add(logits, j, spare)
        ctx.save_for_backward(images, texts, scale, rows.value(), columns.value())
        ctx.tile = tile
        return _losses(rows, partner).sum() + _losses(columns, partner).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inputs: Inputs = ctx.saved_tensors[:3]
        log_sums = ctx.saved_tensors[3:]
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():

            def dense(images: Tensor, texts: Tensor, scale: Tensor) -> list[Tensor]:
                return [contrast.sum_symmetric(images, texts, scale, None)]

            return *through(dense, inputs, wanted, [grad]), None
        tiles = Tiles(*inputs, ctx.tile)

        def slope(i: slice, j: slice) -> Tensor:
            logits, out, spare = (tiles.logits(0, i, j), tiles.buffer(1, i, j), tiles.buffer(2, i, j))
            exponentials(logits, log_sums[0][i], 1, out).add_(exponentials(logits, log_sums[1][j], 0, spare))
            partners_of(out, i, j, 0)[1].sub_(2)
            return out

        gradients = Gradients(tiles, wanted)
        gradients.sweep(slope)
        return *cast_like(gradients.times(grad), inputs), None


class _Distill(Function):
    """The sum of `_InfoNCE`, and of cross-entropies under a teacher's softmax, which is a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        dist_images: Tensor,
        dist_texts: Tensor,
        dist_scale: Tensor,
        tile: Tile,
    ) -> tuple[Tensor, Tensor]:
        tiles = Tiles(images, texts, scale, tile)
        taught = Tiles(dist_images, dist_texts, dist_scale, tile)
        sides = [_Taught(len(images), dim, tiles.gallery) for dim in (1, 0)]
        partner = torch.empty_like(sides[0].student.sum)
        for i in tiles.rows:
            for j in tiles.columns:
                logits, dist_logits = tiles.logits(0, i, j), taught.logits(0, i, j)
                own, diagonal = partners_of(logits, i, j, 0)
                partner[own] = diagonal
                for side, where in zip(sides, (i, j), strict=True):
                    side.add(logits, dist_logits, where, tiles.buffer(1, i, j), tiles.buffer(2, i, j))
        labelled = torch.stack([_losses(side.student, partner).sum() for side in sides]).sum()
        under_teacher = torch.stack([side.losses().sum() for side in sides]).sum()
        log_sums = [each.value() for side in sides for each in (side.student, side.teacher)]
        inputs = images, texts, scale, dist_images, dist_texts, dist_scale
        ctx.save_for_backward(*inputs, *log_sums)
        ctx.tile = tile
        return labelled, under_teacher

    @staticmethod
    def backward(ctx: Any, grad_labelled: Tensor, grad_taught: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        student: Inputs = saved[:3]
        teacher: Inputs = saved[3:6]
        log_sums = saved[6:]
        wanted, no_more = ctx.needs_input_grad[:3], (None,) * 4
        if torch.is_grad_enabled():

            def dense(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
                return contrast.sum_symmetric_distill(
                    (images, texts), scale, None, teacher[:2], teacher[2], None
                )

            return *through(dense, student, wanted, [grad_labelled, grad_taught]), *no_more
        tiles, taught = Tiles(*student, ctx.tile), Tiles(*teacher, ctx.tile)

        def slope(i: slice, j: slice) -> Tensor:
            logits, dist_logits = tiles.logits(0, i, j), taught.logits(0, i, j)
            out, spare = tiles.buffer(1, i, j), tiles.buffer(2, i, j)
            exponentials(logits, log_sums[0][i], 1, out).add_(exponentials(logits, log_sums[2][j], 0, spare))
            dist_slope = exponentials(dist_logits, log_sums[1][i], 1, taught.buffer(1, i, j))
            dist_slope.add_(exponentials(dist_logits, log_sums[3][j], 0, spare))
            # grad_labelled (p - y) + grad_taught (p - q), each difference before the sum: both may vanish
            spare.copy_(out).sub_(dist_slope).mul_(grad_taught)
            partners_of(out, i, j, 0)[1].sub_(2)
            return out.mul_(grad_labelled).add_(spare)

        gradients = Gradients(tiles, wanted)
        gradients.sweep(slope)
        found = gradients.times(torch.ones_like(grad_taught))
        return *cast_like(found, student), *no_more


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
        totals = tiles.gallery.new_zeros(len(images))
        slopes = torch.zeros_like(totals)

        def slope(i: slice, j: slice) -> Tensor:
            logits, spare = tiles.logits(0, i, j).add_(bias), tiles.buffer(1, i, j)
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
        if torch.is_grad_enabled():

            def dense(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> list[Tensor]:
                return [contrast.sum_sigmoid(images, texts, scale, bias, ctx.start)]

            return *through(dense, inputs, ctx.needs_input_grad[:4], [grad]), None, None, None
        gradients = [next(found) * grad if there else None for there in ctx.found]
        return *cast_like(gradients, inputs), None, None, None


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


def cast_like(found: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return gradients in the dtypes of their inputs, on their devices."""
    return [
        None if gradient is None else gradient.to(tensor.device, tensor.dtype)
        for gradient, tensor in zip(found, inputs, strict=True)
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
    found = iter(torch.autograd.grad(dense(*own), needed, grads, create_graph=True))
    return [next(found) if need else None for need in wanted]
