"""The softmax sums of `streamed` over several ranks: each logit is computed by one rank alone.

A rank with n of all N pairs takes its images against all texts, n x N logits, by tiles. The statistics of its
rows are complete; those of columns are combined: the largest logits first, then sums of exponentials less
these. So both directions come of one product. The derivative by the scale is a mean of products of features
under the softmaxes, which is summed up beside them; all ranks must hold one scale, which is checked.

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
               maximum           w (N + 2) k           w (N + 2) k
               sum               w N (3 k - 1)         w N (3 k - 1), and w N k unless local
               sum, unless local 2 w k                 2 w k
    backward   operations        2 n N (3 d + e)       4 n N (2 d + e)
               all_gather        w k                   -
               sum_scatter       w N d                 -

For the backward a rank keeps, beyond its arguments, all texts, without `with_grad` all images too, and the
log-sum-exps of its rows (without either flag, of all) and of all columns: v N (d + e) or 2 v N (d + e), and
w k (n + N) or 2 w k N bytes, and w 2 k besides.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import contrast
from .checks import Scalar
from .gather import Rows, gather_both, gather_rows, sum_rows
from .streamed import Pair, Side, as_scalar, through, with_biases
from .tiles import TILE, Block, Direction, Gradients, Statistics, Tile, slices
from .transport import Transport, eager

T = TypeVar("T")

ROUNDINGS = 8
"""By as many the scales of ranks may differ."""


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
    pair: Pair,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    ranks: Ranks,
    tile: Tile = TILE,
    form: type[Block] = Block,
) -> Tensor:
    """Sum both directions' cross-entropies of all pairs, or of this rank's; collective.

    Args:
        pair: this rank's [n, d] images and texts.
        logit_scale: a number or a tensor of shape [] or [1], the same on all ranks.
        logit_bias: likewise; None adds nothing.
        ranks: who takes part.
        tile: rows and columns of a tile.
        form: what passes over tiles.
    """
    scale = as_scalar(logit_scale, pair[0])
    (total,) = _Blocks.apply(ranks, tile, form, *form.features(*pair), scale, None, None, None).unbind()
    return with_biases(total, logit_bias)


@eager
def sum_symmetric_distill(
    student: Side, teacher: Side, ranks: Ranks, tile: Tile = TILE, form: type[Block] = Block
) -> tuple[Tensor, Tensor]:
    """Sum cross-entropies with labels, and under a constant teacher, as `sum_symmetric`; collective."""
    (pair, scale, bias), (dist_pair, dist_scale, dist_bias) = student, teacher
    scales = as_scalar(scale, pair[0]), as_scalar(dist_scale, pair[0])
    features, taught_by = form.features(*pair), form.features(*dist_pair)
    given = *features, scales[0], *taught_by, scales[1]
    labelled, taught = _Blocks.apply(ranks, tile, form, *given).unbind()
    return with_biases(labelled, bias), with_biases(taught, bias, dist_bias)


class _Features(NamedTuple):
    """A student's, or a teacher's: of this rank, and of all."""

    images: Tensor
    texts: Tensor
    scale: Tensor
    all_images: Tensor | None
    all_texts: Tensor


def _block(ranks: Ranks, form: type[Block], tile: Tile, given: list[_Features], own_images: bool) -> Block:
    """Return the products of features and the logits of images against texts, and a teacher's, by tiles.

    Tiles end where a rank's rows end, and features are contiguous: so the tiles of one rank's images and
    another's texts are the same, bit for bit, on whichever rank. A probability near 1 needs that:
    it is e to a difference of large logits.
    """
    rows: Rows = (ranks.rows[ranks.transport.rank],)
    columns = ranks.rows
    pairs = [(one.images, one.all_texts) for one in given]
    if not own_images:
        rows, columns = columns, rows
        pairs = [(_there(one.all_images), one.texts) for one in given]
    scales = [given[0].scale.new_ones(()), *(one.scale for one in given[1:])]
    inputs = [
        (images.contiguous(), texts.contiguous(), scale)
        for (images, texts), scale in zip(pairs, scales, strict=True)
    ]
    block = form(inputs, tile, ranks.start if own_images else -ranks.start, given[0].scale)
    block.tiles.rows, block.tiles.columns = _cut(rows, tile[0]), _cut(columns, tile[1])
    return block


class _Statistics(Statistics):
    """Of the rows (dim 1) or the columns (dim 0) of all tiles: sums of exponentials, and what they weigh."""

    def __init__(self, count: int, dim: int, block: Block) -> None:
        super().__init__(count, dim, block.tiles.like, block.taught is not None, weighted=True)

    def combine(self, transport: Transport, scales: list[Tensor], *more: Tensor) -> list[Tensor]:
        """Become the statistics of all ranks' tiles; return `more`, summed over the ranks.

        Raises:
            ValueError: ranks hold other scales; every rank raises.
        """
        sides = self.sides
        own = torch.stack([scale.to(self.products) for scale in scales])
        found = transport.maximum(torch.cat([*(side.maximum for side in sides), own, -own]))
        *largest, highest, lowest = found.split([len(self.products)] * len(sides) + [len(own)] * 2)
        _check_scales(highest, -lowest)
        rescales = [torch.exp(side.maximum - most) for side, most in zip(sides, largest, strict=True)]
        parts = [self.student.sum * rescales[0], self.products * rescales[0]]
        if self.taught:
            moment = self.moment + self.teacher.sum * (self.student.maximum - largest[0])
            parts += [each * rescales[1] for each in (self.teacher.sum, self.dist_products, moment)]
        sums = transport.sum(torch.stack([*parts, *more])).unbind()
        for side, most in zip(sides, largest, strict=True):
            side.maximum = most
        self.student.sum, self.products = sums[:2]
        if self.taught:
            self.teacher.sum, self.dist_products, self.moment = sums[2:5]
        # copied: what is kept of them is not to keep the others
        return [each.clone() for each in sums[len(parts) :]]

    def sums(self, where: slice, partner: Tensor, partner_product: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropies of some rows or columns, and their derivatives by the scale.

        Returns:
            Of those with labels, and under the teacher: [1 or 2] each.
        """
        product = self.products[where] / self.student.sum[where]
        slopes = [product - partner_product]
        if self.taught:
            slopes.append(product - self.dist_products[where] / self.teacher.sum[where])
        return torch.stack(self.losses(where, partner)).sum(1), torch.stack(slopes).sum(1)


def _check_scales(highest: Tensor, lowest: Tensor) -> None:
    """Check that ranks hold one scale, and one teacher's, up to what devices differ by in an exponential."""
    apart = highest - lowest > ROUNDINGS * torch.finfo(highest.dtype).eps * highest.abs()
    for number, name in enumerate(("logit_scale", "dist_logit_scale")[: len(highest)]):
        if apart[number]:
            low, high = float(lowest[number]), float(highest[number])
            raise ValueError(
                f"{name}: expected the same number on all ranks, got {low:g} to {high:g}: by tiles each "
                'logit is computed by one rank alone; implementation="dense" takes different ones'
            )


class _Blocks(Function):
    """The sums over rows and columns of cross-entropies with labels, and under a teacher, [1 or 2]."""

    @staticmethod
    def forward(
        ctx: Any,
        ranks: Ranks,
        tile: Tile,
        form: type[Block],
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        dist_images: Tensor | None,
        dist_texts: Tensor | None,
        dist_scale: Tensor | None,
    ) -> Tensor:
        given = [_gathered(ranks, images, texts, scale)]
        if dist_images is not None:
            given.append(_gathered(ranks, dist_images, _there(dist_texts), _there(dist_scale)))
        block = _block(ranks, form, tile, given, own_images=True)
        rows, columns = _Statistics(len(images), 1, block), _Statistics(sum(ranks.rows), 0, block)
        partner_product = torch.empty_like(rows.student.sum)
        for i in block.tiles.rows:
            for j in block.tiles.columns:
                block.add(i, j, rows, columns, partner_product)
        kept, scales = rows.log_sums(), [one.scale for one in given]
        if ranks.with_grad or ranks.local:
            columns.combine(ranks.transport, scales)
        else:
            kept = columns.combine(ranks.transport, scales, *(_placed(ranks, each) for each in kept))
        partners = partner_product * given[0].scale, partner_product
        totals = torch.stack(rows.sums(slice(None), *partners))
        totals += torch.stack(columns.sums(ranks.own, *partners))
        if not ranks.local:
            totals = ranks.transport.sum(totals)
        ctx.ranks, ctx.tile, ctx.form = ranks, tile, form
        ctx.counts = len(_Features._fields) * len(given), len(kept)
        ctx.save_for_backward(*itertools.chain(*given), *kept, *columns.log_sums(), totals[1])
        return totals[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved, (features, count) = ctx.saved_tensors, ctx.counts
        size = len(_Features._fields)
        given = [_Features(*saved[first : first + size]) for first in range(0, features, size)]
        of_rows, of_columns = saved[features : features + count], saved[features + count : -1]
        ranks, wanted, slopes = ctx.ranks, ctx.needs_input_grad[3:6], saved[-1]
        inputs = given[0][:3]
        if torch.is_grad_enabled():
            return None, None, None, *through(_dense(ranks, given), inputs, wanted, [grad]), None, None, None
        found = [None, None, (grad * slopes).sum()]
        if ranks.with_grad and (wanted[0] or wanted[1]):
            weights = _weights(ranks, grad)
            rows = Direction(1, of_rows, weights[:, ranks.own])
            block = _block(ranks, ctx.form, ctx.tile, given, own_images=True)
            found[:2] = _sweep(block, [rows, Direction(0, of_columns, weights)], wanted[:2])
            if found[1] is not None:
                found[1] = sum_rows(ranks.transport, ranks.rows, found[1])
        elif not ranks.with_grad:
            weights = (grad if ranks.local else grad * ranks.own_times).unsqueeze(1)
            weights = weights.expand(-1, sum(ranks.rows))
            if wanted[0]:
                own = of_rows if ranks.local else [each[ranks.own] for each in of_rows]
                rows, columns = Direction(1, own, weights), Direction(0, of_columns, weights)
                block = _block(ranks, ctx.form, ctx.tile, given, own_images=True)
                found[0], _ = _sweep(block, [rows] if ranks.local else [rows, columns], (True, False))
            if wanted[1]:
                own = [each[ranks.own] for each in of_columns]
                rows, columns = Direction(1, of_rows, weights), Direction(0, own, weights)
                block = _block(ranks, ctx.form, ctx.tile, given, own_images=False)
                _, found[1] = _sweep(block, [columns] if ranks.local else [rows, columns], (False, True))
        return None, None, None, *found, None, None, None


def _gathered(ranks: Ranks, images: Tensor, texts: Tensor, scale: Tensor) -> _Features:
    """Gather all ranks' texts, and images where the backward, which is silent, needs them."""
    if ranks.with_grad:
        (every,) = gather_rows(ranks.transport, ranks.rows, [texts])
        return _Features(images, texts, scale, None, every)
    everyone = gather_both(ranks.transport, ranks.rows, (images, texts))
    return _Features(images, texts, scale, *everyone)


def _there(value: T | None) -> T:
    assert value is not None
    return value


def _cut(rows: Rows, size: int) -> list[slice]:
    """Return the rows of all ranks in slices of a size; the last of each rank may be shorter."""
    starts = itertools.accumulate(rows, initial=0)
    return [
        slice(start + part.start, start + part.stop)
        for start, count in zip(starts, rows, strict=False)
        for part in slices(count, size)
    ]


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
    block: Block, directions: list[Direction], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a block's images and texts, in the dtype of statistics."""
    gradients = Gradients(block.tiles, (*wanted, False))
    gradients.sweep(lambda i, j: block.slope(i, j, directions))
    assert block.factor is not None
    of_images, of_texts, _ = gradients.times(block.factor)
    return of_images, of_texts


def _dense(ranks: Ranks, given: list[_Features]) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
    """Return the function that a rank's result is, with all logits at once."""

    def pairs(images: Tensor, texts: Tensor, known: _Features) -> list[Pair]:
        if ranks.with_grad:
            all_images, all_texts = gather_both(ranks.transport, ranks.rows, (images, texts))
        else:
            all_images, all_texts = _there(known.all_images), known.all_texts
        if ranks.local:
            return [(images, all_texts), (texts, all_images)]
        if not ranks.with_grad:
            all_images, all_texts = _with_own(ranks, all_images, images), _with_own(ranks, all_texts, texts)
        return [(all_images, all_texts)]

    def sums(images: Tensor, texts: Tensor, scale: Tensor) -> list[Tensor]:
        student = pairs(images, texts, given[0])
        if len(given) == 1:
            if not ranks.local:
                return [contrast.sum_symmetric(*student[0], scale, None).reshape(1)]
            one, other = (contrast.sum_infonce(*pair, scale, None, ranks.start) for pair in student)
            return [(one + other).reshape(1)]
        taught, dist_scale = pairs(given[1].images, given[1].texts, given[1]), given[1].scale
        if not ranks.local:
            found = contrast.sum_symmetric_distill(student[0], scale, None, taught[0], dist_scale, None)
            return [torch.stack(found)]
        one, other = (
            torch.stack(contrast.sum_distill(pair, scale, None, dist_pair, dist_scale, None, ranks.start))
            for pair, dist_pair in zip(student, taught, strict=True)
        )
        return [one + other]

    return sums


def _with_own(ranks: Ranks, matrix: Tensor, own: Tensor) -> Tensor:
    """Return the rows of all ranks, this rank's being variables, as `gather_rows` does."""
    variables: Tensor = _Times.apply(own, ranks.own_times)
    return torch.cat([matrix[: ranks.own.start], variables, matrix[ranks.own.stop :]])


class _Times(Function):
    """A tensor as it is, whose gradient is multiplied, at every order."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
