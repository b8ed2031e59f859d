"""The softmax sums of `streamed` over several ranks: each logit is computed by one rank alone.

A rank with n of all N pairs takes its images against all texts, n x N logits, by tiles. The statistics of its
rows are complete; those of columns are combined: the largest logits first, then sums of exponentials less
these. So both directions come of one product. The derivative by the scale is a mean of products of features
under the softmaxes, which is summed up beside them; all ranks must hold one scale.

With `with_grad` the backward computes each tile once more: the gradient of this rank's images is complete,
those of all texts are parts, which are summed over the ranks and go to their owners. As ranks may weigh
their losses differently, they first tell one another their cotangents. Without it the backward sends nothing:
a rank computes the tiles of its images against all texts, and those of its texts against all images. Second
derivatives are those of `contrast`.

In operations of products, and bytes handed to a collective: v a number of features, w (4, or 8 for float64)
any other. Features have width d, a teacher's e; without one e is 0 and k is 1, with one k is 2. Each product
of bytes is a message::

                                 with_grad             without
    forward    operations        2 n N (d + e)         2 n N (d + e)
               all_gather        v n d, v n e          2 v n d, 2 v n e
               maximum           w N k                 w N k
               sum               w N (3 k - 1)         w N (3 k - 1), and w N k unless local
               sum, unless local 2 w k                 2 w k
    backward   operations        2 n N (3 d + e)       4 n N (2 d + e)
               all_gather        w k                   -
               sum_scatter       w N d                 -
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import contrast
from .checks import Scalar
from .gather import Rows, gather_pair, gather_rows, sum_rows
from .streamed import (
    TILE,
    Gradients,
    LogSumExp,
    Pair,
    Side,
    Tile,
    Tiles,
    as_scalar,
    cast_like,
    exponentials,
    partners_of,
    through,
    with_bias,
)
from .transport import Transport, eager


class Ranks(NamedTuple):
    """Who holds which pairs, and which sums and gradients a rank gets."""

    transport: Transport
    rows: Rows
    """Of each rank."""
    local: bool
    """This rank's rows and columns are summed up, else those of all ranks."""
    with_grad: bool
    """A rank's features get gradients of all ranks' sums, else of its own."""
    own_times: int = 1
    """How often they do, without `with_grad` and `local`."""

    @property
    def start(self) -> int:
        """The number of this rank's first pair."""
        return sum(self.rows[: self.transport.rank])

    @property
    def own(self) -> slice:
        """Which of all pairs this rank holds."""
        return slice(self.start, self.start + self.rows[self.transport.rank])


@eager
def sum_symmetric(
    pair: Pair, logit_scale: Scalar, logit_bias: Scalar | None, ranks: Ranks, tile: Tile = TILE
) -> Tensor:
    """Sum both directions' cross-entropies of all pairs, or of this rank's; collective.

    Args:
        pair: this rank's [n, d] images and texts.
        logit_scale: a number or a tensor of shape [] or [1], the same on all ranks.
        logit_bias: likewise; None adds nothing.
        ranks: who takes part.
        tile: rows and columns of a tile.
    """
    scale = as_scalar(logit_scale, pair[0])
    (total,) = _Blocks.apply(ranks, tile, *pair, scale, None, None, None).unbind()
    return with_bias(total, logit_bias)


@eager
def sum_symmetric_distill(
    student: Side, teacher: Side, ranks: Ranks, tile: Tile = TILE
) -> tuple[Tensor, Tensor]:
    """Sum cross-entropies with labels, and under a constant teacher, as `sum_symmetric`; collective."""
    (pair, scale, bias), (dist_pair, dist_scale, dist_bias) = student, teacher
    scales = as_scalar(scale, pair[0]), as_scalar(dist_scale, pair[0])
    labelled, taught = _Blocks.apply(ranks, tile, *pair, scales[0], *dist_pair, scales[1]).unbind()
    return with_bias(labelled, bias), with_bias(with_bias(taught, bias), dist_bias)


Gathered: TypeAlias = tuple[Tensor | None, Tensor]
"""All ranks' images, where they are needed, and texts."""


class _Block:
    """The products of features and the logits of anchors against a gallery, and a teacher's, by tiles."""

    def __init__(
        self, pair: Pair, scale: Tensor, teacher: Pair | None, dist_scale: Tensor | None, tile: Tile
    ) -> None:
        self.tiles = Tiles(*pair, scale.new_ones(()), tile)
        self.scale = scale.to(self.tiles.gallery.dtype)
        self.taught = Tiles(*teacher, dist_scale, tile) if teacher and dist_scale is not None else None

    def products(self, rows: slice, columns: slice) -> Tensor:
        """Return a tile of products of features, in buffer 0."""
        return self.tiles.logits(0, rows, columns)

    def dist_logits(self, rows: slice, columns: slice) -> Tensor | None:
        """Return a tile of the teacher's logits, in its buffer 0."""
        return self.taught.logits(0, rows, columns) if self.taught else None


class _Statistics:
    """Of the rows (dim 1) or the columns (dim 0) of all tiles: sums of exponentials, and what they weigh."""

    def __init__(self, count: int, dim: int, block: _Block) -> None:
        like = block.tiles.gallery
        self.student = LogSumExp(count, dim, like)
        self.teacher = LogSumExp(count, dim, like) if block.taught else None
        # products under the student's exponentials; under the teacher's, and there the student's logits, less
        # their maximum
        self.products, self.dist_products, self.moment = like.new_zeros(3, count).unbind()

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
        self.products[where].mul_(rescale).add_(out.mul_(products).sum(dim))
        if self.teacher is None or dist_logits is None:
            return
        maximum, moment = self.student.maximum[where], self.moment[where]
        moment.add_(self.teacher.sum[where] * (older - maximum))
        rescale = self.teacher.add(dist_logits, where, out)
        torch.sub(logits, maximum.unsqueeze(dim), out=spare)
        moment.mul_(rescale).add_(spare.mul_(out).sum(dim))
        self.dist_products[where].mul_(rescale).add_(out.mul_(products).sum(dim))

    def combine(self, transport: Transport, *more: Tensor) -> list[Tensor]:
        """Become the statistics of all ranks' tiles; return `more`, summed over the ranks."""
        sides = [side for side in (self.student, self.teacher) if side is not None]
        largest = transport.maximum(torch.stack([side.maximum for side in sides])).unbind()
        rescales = [torch.exp(side.maximum - most) for side, most in zip(sides, largest, strict=True)]
        parts = [self.student.sum * rescales[0], self.products * rescales[0]]
        if self.teacher is not None:
            moment = self.moment + self.teacher.sum * (self.student.maximum - largest[0])
            parts += [each * rescales[1] for each in (self.teacher.sum, self.dist_products, moment)]
        found = transport.sum(torch.stack([*parts, *more])).unbind()
        for side, most in zip(sides, largest, strict=True):
            side.maximum = most
        self.student.sum, self.products = found[:2]
        if self.teacher is not None:
            self.teacher.sum, self.dist_products, self.moment = found[2:5]
        return list(found[len(parts) :])

    def log_sums(self) -> list[Tensor]:
        """Return the log-sum-exps, the teacher's last."""
        return [side.value() for side in (self.student, self.teacher) if side is not None]

    def sums(self, where: slice, partner: Tensor, partner_product: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropies of some rows or columns, and their derivatives by the scale.

        Returns:
            Of those with labels, and under the teacher: [1 or 2] each.
        """
        log_sum = self.student.sum[where].log()
        product = self.products[where] / self.student.sum[where]
        losses = [(self.student.maximum[where] - partner) + log_sum]
        slopes = [product - partner_product]
        if self.teacher is not None:
            count = self.teacher.sum[where]
            losses.append(log_sum - self.moment[where] / count)
            slopes.append(product - self.dist_products[where] / count)
        return torch.stack(losses).sum(1), torch.stack(slopes).sum(1)


class _Direction(NamedTuple):
    """Rows (dim 1) or columns (dim 0), whose losses are derived."""

    dim: int
    log_sums: Sequence[Tensor]
    """As `_Statistics.log_sums`."""
    weights: Sequence[Tensor]
    """Of each row's, or column's, losses: with labels, and under the teacher."""


class _Blocks(Function):
    """The sums over rows and columns of cross-entropies with labels, and under a teacher, [1 or 2]."""

    @staticmethod
    def forward(
        ctx: Any,
        ranks: Ranks,
        tile: Tile,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        dist_images: Tensor | None,
        dist_texts: Tensor | None,
        dist_scale: Tensor | None,
    ) -> Tensor:
        every = _gathered(ranks, images, texts)
        dist: tuple[Tensor | None, Tensor | None] = None, None
        if dist_images is not None and dist_texts is not None:
            dist = _gathered(ranks, dist_images, dist_texts)
        block = _Block((images, every[1]), scale, _pair(dist_images, dist[1]), dist_scale, tile)
        rows, columns = _Statistics(len(images), 1, block), _Statistics(sum(ranks.rows), 0, block)
        partner_product = torch.empty_like(rows.student.sum)
        for i in block.tiles.rows:
            for j in block.tiles.columns:
                products, dist_logits = block.products(i, j), block.dist_logits(i, j)
                own, diagonal = partners_of(products, i, j, ranks.start)
                partner_product[own] = diagonal
                logits, out = (block.tiles.buffer(number, i, j) for number in (1, 2))
                torch.mul(products, block.scale, out=logits)
                spare = out if block.taught is None else block.taught.buffer(1, i, j)
                rows.add(products, logits, dist_logits, i, out, spare)
                columns.add(products, logits, dist_logits, j, out, spare)
        kept = [*rows.log_sums()]
        if ranks.with_grad or ranks.local:
            columns.combine(ranks.transport)
        else:
            kept = columns.combine(ranks.transport, *(_placed(ranks, each) for each in kept))
        partners = partner_product * block.scale, partner_product
        totals = torch.stack([*rows.sums(slice(None), *partners)])
        totals += torch.stack([*columns.sums(ranks.own, *partners)])
        if not ranks.local:
            totals = ranks.transport.sum(totals)
        ctx.ranks, ctx.tile, ctx.count = ranks, tile, len(kept)
        ctx.save_for_backward(
            images, texts, scale, dist_images, dist_texts, dist_scale, *every, *dist, totals[1],
            *kept, *columns.log_sums(),
        )  # fmt: skip
        return totals[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        images, texts, scale, dist_images, dist_texts, dist_scale, *saved = ctx.saved_tensors
        every, dist, slopes, log_sums = saved[:2], saved[2:4], saved[4], saved[5:]
        ranks, tile, wanted = ctx.ranks, ctx.tile, ctx.needs_input_grad[2:5]
        inputs, teacher = (images, texts, scale), (dist_images, dist_texts, dist_scale)
        if torch.is_grad_enabled():
            dense = _dense(ranks, every, teacher, dist)
            found = through(dense, inputs, wanted, [grad])
            if not ranks.with_grad and not ranks.local:
                found[:2] = [None if each is None else each * ranks.own_times for each in found[:2]]
            return None, None, *found, None, None, None
        of_scale = (grad * slopes).sum() if wanted[2] else None
        of_rows, of_columns = log_sums[: ctx.count], log_sums[ctx.count :]

        def block(anchors: Tensor, gallery: Tensor, dist_anchors: Any, dist_gallery: Any) -> _Block:
            return _Block((anchors, gallery), scale, _pair(dist_anchors, dist_gallery), dist_scale, tile)

        of_images = of_texts = None
        if ranks.with_grad and (wanted[0] or wanted[1]):
            weights = _weights(ranks, grad)
            directions = [_Direction(1, of_rows, weights[:, ranks.own]), _Direction(0, of_columns, weights)]
            against_texts = block(images, every[1], dist_images, dist[1])
            of_images, parts = _sweep(against_texts, directions, ranks.start, wanted[:2])
            if parts is not None:
                of_texts = sum_rows(ranks.transport, ranks.rows, parts)
        elif not ranks.with_grad:
            own_columns = [each[ranks.own] for each in of_columns]
            own_rows = of_rows if ranks.local else [each[ranks.own] for each in of_rows]
            times = 1 if ranks.local else ranks.own_times
            weights = (grad * times).unsqueeze(1).expand(-1, sum(ranks.rows))
            along, across = partial(_Direction, 1, weights=weights), partial(_Direction, 0, weights=weights)
            if wanted[0]:
                directions = [along(own_rows)] if ranks.local else [along(own_rows), across(of_columns)]
                against_texts = block(images, every[1], dist_images, dist[1])
                of_images, _ = _sweep(against_texts, directions, ranks.start, (True, False))
            if wanted[1]:
                directions = [along(own_columns)] if ranks.local else [along(own_columns), across(of_rows)]
                against_images = block(texts, every[0], dist_texts, dist[0])
                of_texts, _ = _sweep(against_images, directions, ranks.start, (True, False))
        return None, None, *cast_like([of_images, of_texts, of_scale], inputs), None, None, None


def _gathered(ranks: Ranks, images: Tensor, texts: Tensor) -> Gathered:
    """Return all ranks' texts, and images where the backward, which is silent, needs them."""
    if ranks.with_grad:
        return None, gather_rows(ranks.transport, ranks.rows, [texts])[0]
    return gather_pair(images, texts, ranks.rows, False, True, "exact", ranks.transport)


def _pair(one: Tensor | None, other: Tensor | None) -> Pair | None:
    return None if one is None or other is None else (one, other)


def _placed(ranks: Ranks, values: Tensor) -> Tensor:
    """Return what a rank knows of its rows among zeros for all others."""
    every = values.new_zeros(sum(ranks.rows))
    every[ranks.own] = values
    return every


def _weights(ranks: Ranks, grad: Tensor) -> Tensor:
    """Return how every pair's losses weigh in the sum of all ranks' results, [1 or 2, N]; collective."""
    grads = ranks.transport.all_gather(grad)
    if not ranks.local:
        grads = grads.sum(0).expand_as(grads)
    return torch.cat([one.expand(count, -1) for one, count in zip(grads, ranks.rows, strict=True)]).T


def _sweep(
    block: _Block, directions: list[_Direction], start: int, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of anchors and of the gallery, in the dtype of statistics."""
    tiles, taught = block.tiles, block.taught

    def slope(i: slice, j: slice) -> Tensor:
        logits, dist_logits = block.products(i, j).mul_(block.scale), block.dist_logits(i, j)
        total = tiles.buffer(1, i, j)
        for number, (dim, log_sums, weights) in enumerate(directions):
            where = i if dim else j
            out = tiles.buffer(2, i, j) if number else total
            exponentials(logits, log_sums[0][where], dim, out)
            if taught is not None and dist_logits is not None:
                # each difference before the sum: both may vanish
                under_teacher = exponentials(dist_logits, log_sums[1][where], dim, taught.buffer(1, i, j))
                torch.sub(out, under_teacher, out=under_teacher).mul_(weights[1][where].unsqueeze(dim))
            partners_of(out, i, j, start)[1].sub_(1)
            out.mul_(weights[0][where].unsqueeze(dim))
            if taught is not None:
                out.add_(under_teacher)
            if number:
                total.add_(out)
        return total

    gradients = Gradients(tiles, (*wanted, False))
    gradients.sweep(slope)
    of_anchors, of_gallery, _ = gradients.times(block.scale)
    return of_anchors, of_gallery


def _dense(
    ranks: Ranks, every: Sequence[Tensor], teacher: Sequence[Tensor | None], dist: Sequence[Tensor]
) -> Callable[..., list[Tensor]]:
    """Return the function that a rank's result is, with all logits at once."""
    start = ranks.start if ranks.local else 0

    def pairs(images: Tensor, texts: Tensor, known: Sequence[Tensor]) -> list[Pair]:
        if ranks.with_grad:
            whole = gather_pair(images, texts, ranks.rows, False, True, "exact", ranks.transport)
        elif ranks.local:
            whole = known[0], known[1]
        else:
            first, last = ranks.own.start, ranks.own.stop
            whole = tuple(
                torch.cat([matrix[:first], own, matrix[last:]])
                for matrix, own in zip(known, (images, texts), strict=True)
            )
        return [(images, whole[1]), (texts, whole[0])] if ranks.local else [whole]

    def sums(images: Tensor, texts: Tensor, scale: Tensor) -> list[Tensor]:
        student = pairs(images, texts, every)
        if teacher[0] is None:
            if not ranks.local:
                return [contrast.sum_symmetric(*student[0], scale, None).reshape(1)]
            one, other = (contrast.sum_infonce(*pair, scale, None, start) for pair in student)
            return [(one + other).reshape(1)]
        taught = pairs(teacher[0], teacher[1], dist)
        if not ranks.local:
            both = student[0], scale, None, taught[0], teacher[2], None
            return [torch.stack(contrast.sum_symmetric_distill(*both))]
        one, other = (
            torch.stack(contrast.sum_distill(pair, scale, None, dist_pair, teacher[2], None, start))
            for pair, dist_pair in zip(student, taught, strict=True)
        )
        return [one + other]

    return sums
