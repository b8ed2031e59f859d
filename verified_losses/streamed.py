"""The sums of `contrast` by tiles of logits, of which one at a time is in memory.

A tile is computed again in the backward, and both gradients are formed from it: 8 N^2 d operations for N
pairs of width d (the sigmoid, whose value and gradients come from one sweep: 6 N^2 d). Exponentials are
powers of two, which are fast on a CPU where they underflow too, of logits less a running maximum. Products
(but those of `kernels`), statistics and sums are in float32, or float64 for float64, also under autocast. The
order of all sums is fixed. Second derivatives are those of `contrast`.

Exponentials are not kept for the backward, in half precision say, which would save one product of four: on a
CPU that took 0.82 of the time, for 2 N^2 bytes; but their 8 bits err by 2^-9 where float32 may by some 2^-20,
and less a row's maximum they are 0 where a column has nothing larger (a text opposite to all images, at scale
100). In bfloat16, whose bounds are wider, the dense form is faster on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import contrast
from .checks import Scalar
from .tiles import TILE, Block, Direction, Gradients, Inputs, Statistics, Tile, work_dtype
from .transport import eager

Pair: TypeAlias = tuple[Tensor, Tensor]
Side: TypeAlias = tuple[Pair, Scalar, Scalar | None]
"""A pair, its scale and its bias."""


@eager
def sum_symmetric(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    tile: Tile = TILE,
    form: type[Block] = Block,
) -> Tensor:
    """Sum both directions' cross-entropies, from one product a tile; see `contrast.sum_symmetric`."""
    scale = as_scalar(logit_scale, image_features)
    total: Tensor = _InfoNCE.apply(*form.features(image_features, text_features), scale, tile, form)
    return with_biases(total, logit_bias)


@eager
def sum_sigmoid(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    start: int | None,
    tile: Tile = TILE,
    form: type[Block] = Block,
) -> Tensor:
    """Sum the sigmoid's losses of all pairs; see `contrast.sum_sigmoid`."""
    scale = as_scalar(logit_scale, image_features)
    bias = as_scalar(0.0 if logit_bias is None else logit_bias, image_features)
    recorded = torch.is_grad_enabled()
    pair = form.features(image_features, text_features)
    total: Tensor = _Sigmoid.apply(*pair, scale, bias, start, tile, form, recorded)
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
    form: type[Block] = Block,
) -> tuple[Tensor, Tensor]:
    """Sum cross-entropies with labels and under a constant teacher, of both directions.

    See `contrast.sum_symmetric_distill`.
    """
    scales = as_scalar(logit_scale, student[0]), as_scalar(dist_logit_scale, teacher[0])
    pair, taught_by = form.features(*student), form.features(*teacher)
    labelled, taught = _Distill.apply(*pair, scales[0], *taught_by, scales[1], tile, form)
    return with_biases(labelled, logit_bias), with_biases(taught, logit_bias, dist_logit_bias)


def as_scalar(value: Scalar, features: Tensor) -> Tensor:
    """Return a scalar as a tensor of no dimensions."""
    flat = contrast.flat(value)
    return flat if isinstance(flat, Tensor) else torch.tensor(flat, dtype=work_dtype(features))


def with_biases(total: Tensor, *biases: Scalar | None) -> Tensor:
    """Add what biases add to a softmax's loss: nothing, unless one is not finite; their gradients are 0."""
    for bias in biases:
        if bias is not None:
            flat = contrast.flat(bias)
            nothing = flat - flat
            if isinstance(nothing, Tensor):
                nothing = nothing.to(total.dtype)
            total = total + nothing
    return total


class _InfoNCE(Function):
    """The sum over rows and columns of log-sum-exp less the partner's logit."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, tile: Tile, form: type[Block]
    ) -> Tensor:
        rows, columns, partner = _add_up(form([(images, texts, scale)], tile))
        ctx.save_for_backward(images, texts, scale, *rows.log_sums(), *columns.log_sums())
        ctx.tile, ctx.form = tile, form
        (labelled,), (other,) = (side.losses(slice(None), partner) for side in (rows, columns))
        return labelled.sum() + other.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inputs: Inputs = ctx.saved_tensors[:3]
        of_rows, of_columns = ctx.saved_tensors[3:5]
        wanted, no_more = ctx.needs_input_grad[:3], (None,) * 2
        if torch.is_grad_enabled():

            def dense(images: Tensor, texts: Tensor, scale: Tensor) -> list[Tensor]:
                return [contrast.sum_symmetric(images, texts, scale, None)]

            return *through(dense, inputs, wanted, [grad]), *no_more
        block: Block = ctx.form([inputs], ctx.tile)
        directions = Direction(1, [of_rows]), Direction(0, [of_columns])
        gradients = Gradients(block.tiles, wanted)
        gradients.sweep(lambda i, j: block.slope(i, j, directions))
        return *gradients.times(grad), *no_more


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
        form: type[Block],
    ) -> tuple[Tensor, Tensor]:
        inputs = images, texts, scale, dist_images, dist_texts, dist_scale
        rows, columns, partner = _add_up(form([inputs[:3], inputs[3:]], tile))
        ctx.save_for_backward(*inputs, *rows.log_sums(), *columns.log_sums())
        ctx.tile, ctx.form = tile, form
        losses = [side.losses(slice(None), partner) for side in (rows, columns)]
        labelled, under_teacher = (torch.stack(both).sum() for both in zip(*losses, strict=True))
        return labelled, under_teacher

    @staticmethod
    def backward(ctx: Any, grad_labelled: Tensor, grad_taught: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        student: Inputs = saved[:3]
        teacher: Inputs = saved[3:6]
        wanted, no_more = ctx.needs_input_grad[:3], (None,) * 5
        if torch.is_grad_enabled():

            def dense(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
                return contrast.sum_symmetric_distill(
                    (images, texts), scale, None, teacher[:2], teacher[2], None
                )

            return *through(dense, student, wanted, [grad_labelled, grad_taught]), *no_more
        block: Block = ctx.form([student, teacher], ctx.tile)
        weights = torch.stack([grad_labelled, grad_taught]).unsqueeze(1).expand(-1, len(student[0]))
        directions = Direction(1, saved[6:8], weights), Direction(0, saved[8:], weights)
        gradients = Gradients(block.tiles, wanted)
        gradients.sweep(lambda i, j: block.slope(i, j, directions))
        return *gradients.times(torch.ones_like(grad_taught)), *no_more


def _add_up(block: Block) -> tuple[Statistics, Statistics, Tensor]:
    """Return the statistics of all rows and of all columns, and the logits of partners."""
    tiles = block.tiles
    count, taught = len(tiles.anchors), block.taught is not None
    rows, columns = (Statistics(count, dim, tiles.like, taught) for dim in (1, 0))
    partner = tiles.like.new_empty(count)
    for i in tiles.rows:
        for j in tiles.columns:
            block.add(i, j, rows, columns, partner)
    return rows, columns, partner


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
        form: type[Block],
        recorded: bool,
    ) -> Tensor:
        block = form([(images, texts, scale)], tile, start or 0)
        partners, totals = start is not None, block.tiles.like.new_zeros(len(images))
        slopes = torch.zeros_like(totals) if recorded else None
        gradients = Gradients(block.tiles, ctx.needs_input_grad[:3] if recorded else (False, False, False))
        gradients.sweep(lambda i, j: block.sigmoid(i, j, bias, partners, totals, slopes))
        ctx.start = start
        if slopes is not None:
            found = *gradients.times(totals.new_ones(())), slopes.sum()
            ctx.found = [each is not None for each in found]
            ctx.save_for_backward(images, texts, scale, bias, *(each for each in found if each is not None))
        return totals.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inputs, found = ctx.saved_tensors[:4], iter(ctx.saved_tensors[4:])
        no_more = (None,) * 4
        if torch.is_grad_enabled():

            def dense(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> list[Tensor]:
                return [contrast.sum_sigmoid(images, texts, scale, bias, ctx.start)]

            return *through(dense, inputs, ctx.needs_input_grad[:4], [grad]), *no_more
        gradients = [next(found) * grad if there else None for there in ctx.found]
        return *gradients, *no_more


def through(
    dense: Callable[..., Any], inputs: Sequence[Tensor], wanted: Sequence[bool], grads: list[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of inputs of a function, differentiable themselves."""
    # views: an input that another depends on gets its own part alone
    own = [tensor.view_as(tensor) for tensor in inputs]
    needed = [tensor for tensor, need in zip(own, wanted, strict=True) if need]
    found = iter(torch.autograd.grad(dense(*own), needed, grads, create_graph=True))
    return [next(found) if need else None for need in wanted]
