"""Passes of Triton kernels over tiles of logits, which are products in the features' dtype: for GPUs.

A kernel reads a tile once: to sum up its rows and its columns, or to write over it the derivatives of the
losses by its logits, which the products of the backward then take. It computes in float32, or float64 for
float64. A program has a block of a tile; its sums are stored apart from those of others, and torch adds them
in a fixed order, without atomic operations. Gradients are added up over tiles in float32 or float64.

Needs the package triton, which PyTorch's builds for CUDA bring along. With TRITON_INTERPRET=1 in the
environment as that is imported, kernels run on a CPU, slowly, as in tests.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import is_autocast_on, without_autocast
from .tiles import Block, Direction, Inputs, Statistics, Tile, Tiles, partners_of

ROWS, COLUMNS, WARPS = 64, 64, 8
"""Of a program and of its block: what it computes with stays in registers, but in float64 with a teacher."""
OPTIONS = {"enable_fp_fusion": True}
"""Of Triton's compiler, which warns where it is to choose."""
TERMS = {torch.float32: 8, torch.float64: 18}
"""Of the series of a logarithm: more change no bit."""

# what follows is Triton's language, which has no types for mypy
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"


@triton.jit
def _place(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the rows and columns of a program's block, the places of its elements, and which exist."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    places = i.to(tl.int64)[:, None] * columns + j[None, :]
    return i, j, places, (i[:, None] < rows) & (j[None, :] < columns)


@triton.jit
def _store_sums(
    parts, place, stride, there, inside, products, logits, dist_logits,
    LOWEST: tl.constexpr, TAUGHT: tl.constexpr, WEIGHTED: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Store what a block's rows (axis 1) or columns (axis 0) add up to, for `Statistics.merge`."""
    largest = tl.maximum(tl.max(logits, AXIS), LOWEST)  # of infinities too
    less = logits - tl.expand_dims(largest, AXIS)
    weights = tl.where(inside, tl.exp(less), 0)
    tl.store(parts + place, largest, mask=there)
    tl.store(parts + stride + place, tl.sum(weights, AXIS), mask=there)
    parts += 2 * stride
    if WEIGHTED:
        tl.store(parts + place, tl.sum(weights * products, AXIS), mask=there)
        parts += stride
    if TAUGHT:
        largest = tl.maximum(tl.max(dist_logits, AXIS), LOWEST)
        weights = tl.where(inside, tl.exp(dist_logits - tl.expand_dims(largest, AXIS)), 0)
        moment = tl.where(inside, weights * less, 0)
        tl.store(parts + place, largest, mask=there)
        tl.store(parts + stride + place, tl.sum(weights, AXIS), mask=there)
        tl.store(parts + 2 * stride + place, tl.sum(moment, AXIS), mask=there)
        if WEIGHTED:
            tl.store(parts + 3 * stride + place, tl.sum(weights * products, AXIS), mask=there)


@triton.jit
def _sums(
    tile, dist_tile, factor, of_rows, of_columns, rows, columns,
    LOWEST: tl.constexpr, TAUGHT: tl.constexpr, WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store what the rows and columns of a block of products, and of a teacher's logits, add up to."""
    dtype: tl.constexpr = of_rows.dtype.element_ty
    i, j, places, inside = _place(rows, columns, ROWS, COLUMNS)
    products = tl.load(tile + places, mask=inside, other=0).to(dtype)
    logits = products
    if WEIGHTED:
        logits *= tl.load(factor)
    logits = tl.where(inside, logits, LOWEST)
    dist_logits = logits
    if TAUGHT:
        dist_logits = tl.load(dist_tile + places, mask=inside, other=0).to(dtype)
        dist_logits = tl.where(inside, dist_logits, LOWEST)
    down, across = tl.num_programs(0), tl.num_programs(1)
    _store_sums(
        of_rows, tl.program_id(1) * rows + i, across * rows, i < rows, inside, products, logits, dist_logits,
        LOWEST, TAUGHT, WEIGHTED, 1,
    )  # fmt: skip
    _store_sums(
        of_columns, tl.program_id(0) * columns + j, down * columns, j < columns, inside, products, logits,
        dist_logits, LOWEST, TAUGHT, WEIGHTED, 0,
    )  # fmt: skip


@triton.jit
def _slope_of(
    log_sums, weights, place, count, logits, dist_logits, partner,
    TAUGHT: tl.constexpr, WEIGHTED: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Return the derivatives by logits of the cross-entropies of rows (axis 1) or columns (axis 0)."""
    there = place < count
    log_sum = tl.load(log_sums + place, mask=there, other=0)
    share = tl.exp(logits - tl.expand_dims(log_sum, AXIS))
    slope = tl.where(partner, share - 1, share)
    if WEIGHTED:
        slope *= tl.expand_dims(tl.load(weights + place, mask=there, other=0), AXIS)
    if TAUGHT:
        log_sum = tl.load(log_sums + count + place, mask=there, other=0)
        taught = share - tl.exp(dist_logits - tl.expand_dims(log_sum, AXIS))
        slope += taught * tl.expand_dims(tl.load(weights + count + place, mask=there, other=0), AXIS)
    return slope


@triton.jit
def _slope(
    tile, dist_tile, factor, of_rows, row_weights, of_columns, column_weights, rows, columns, offset,
    FACTOR: tl.constexpr, BY_ROWS: tl.constexpr, BY_COLUMNS: tl.constexpr, TAUGHT: tl.constexpr,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Write over a block of products the derivatives by its logits of cross-entropies."""
    i, j, places, inside = _place(rows, columns, ROWS, COLUMNS)
    logits = tl.load(tile + places, mask=inside, other=0).to(dtype)
    if FACTOR:
        logits *= tl.load(factor)
    dist_logits = logits
    if TAUGHT:
        dist_logits = tl.load(dist_tile + places, mask=inside, other=0).to(dtype)
    partner = j[None, :] - i[:, None] == offset
    slope = tl.zeros_like(logits)
    if BY_ROWS:
        slope = _slope_of(of_rows, row_weights, i, rows, logits, dist_logits, partner, TAUGHT, WEIGHTED, 1)
    if BY_COLUMNS:
        slope += _slope_of(
            of_columns, column_weights, j, columns, logits, dist_logits, partner, TAUGHT, WEIGHTED, 0
        )
    tl.store(tile + places, slope.to(tile.dtype.element_ty), mask=inside)


@triton.jit
def _sigmoid(
    tile, bias, totals, slopes, rows, columns, offset,
    PARTNERS: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write over a block of products the derivatives by its logits of sigmoid losses; sum up both in rows."""
    dtype: tl.constexpr = totals.dtype.element_ty
    i, j, places, inside = _place(rows, columns, ROWS, COLUMNS)
    logits = tl.load(tile + places, mask=inside, other=0).to(dtype) + tl.load(bias)
    partner = (j[None, :] - i[:, None] == offset) & PARTNERS
    logits = tl.where(partner, -logits, logits)
    exponential = tl.exp(-tl.abs(logits))
    # log(1 + e) = 2 (s + s^3 / 3 + s^5 / 5 + ...), s being e / (2 + e): of a small e all digits
    s = exponential / (2 + exponential)
    square = s * s
    one = tl.full((1, 1), 1, dtype)
    series = one / (2 * TERMS - 1) + square * 0
    for term in tl.static_range(1, TERMS):
        series = series * square + one / (2 * (TERMS - term) - 1)
    loss = tl.maximum(logits, 0) + 2 * s * series
    slope = tl.where(logits >= 0, 1, exponential) / (1 + exponential)
    slope = tl.where(partner, -slope, slope)
    tl.store(tile + places, slope.to(tile.dtype.element_ty), mask=inside)
    place = tl.program_id(1) * rows + i
    tl.store(totals + place, tl.sum(tl.where(inside, loss, 0), 1), mask=i < rows)
    tl.store(slopes + place, tl.sum(tl.where(inside, slope, 0), 1), mask=i < rows)


INTERPRETED = not any(isinstance(one, triton.JITFunction) for one in (_sums, tl.max))
"""Kernels run on a CPU, in Triton's interpreter."""


class _Products(Tiles):
    """Tiles in the features' dtype."""

    def product_dtype(self, features: Tensor) -> torch.dtype:
        """Return the features' dtype."""
        return features.dtype

    def add_product(self, total: Tensor, matrix: Tensor, other: Tensor, first: bool) -> None:
        """Add a product of matrices to `total`, or write the first over it."""
        if matrix.dtype == total.dtype:
            super().add_product(total, matrix, other, first)
            return
        # in the dtype of sums: a column's derivatives may add up to more than float16 holds
        product = _wide_product(matrix, other, total.dtype)
        if first:
            total.copy_(product)
        else:
            total.add_(product)


def _wide_product(matrix: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a product of matrices of half precision in a wider dtype."""
    kind = matrix.device.type
    with without_autocast(kind):
        if kind != "cpu":
            return torch.mm(matrix, other, out_dtype=dtype)
        return matrix.to(dtype) @ other.to(dtype)  # there is no such product on a CPU


class Kernels(Block):
    """One pass of a kernel over each tile."""

    make = _Products

    @staticmethod
    def features(*tensors: Tensor) -> Sequence[Tensor]:
        """Return features in the dtype that products of theirs have: that of autocast where it is on."""
        kind = tensors[0].device.type
        if not is_autocast_on(kind) or any(tensor.dtype == torch.float64 for tensor in tensors):
            return tensors
        return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]

    def __init__(
        self, given: Sequence[Inputs], tile: Tile, start: int = 0, factor: Tensor | None = None
    ) -> None:
        super().__init__(given, tile, start)
        if factor is not None:
            self.factor = self._on_device(factor)

    def add(self, i: slice, j: slice, rows: Statistics, columns: Statistics, partner: Tensor) -> None:
        """Add a tile to what its rows and columns add up to, and note the products of partners."""
        products, dist_logits = self._tiles(i, j)
        own, diagonal = partners_of(products, i, j, self.start)
        partner[own] = diagonal
        like, (down, across) = self.tiles.like, _blocks(products)
        numbers = 2 + rows.weighted + rows.taught * (3 + rows.weighted)
        of_rows = like.new_empty(numbers, across, products.shape[0])
        of_columns = like.new_empty(numbers, down, products.shape[1])
        _launch(
            _sums, products, dist_logits, self.factor, of_rows, of_columns, *products.shape,
            LOWEST=torch.finfo(like.dtype).min, TAUGHT=rows.taught, WEIGHTED=rows.weighted,
        )  # fmt: skip
        rows.merge(of_rows, i)
        columns.merge(of_columns, j)

    def slope(self, i: slice, j: slice, directions: Sequence[Direction]) -> Tensor:
        """Return the derivatives of directions' cross-entropies by a tile's logits."""
        products, dist_logits = self._tiles(i, j)
        given: dict[int, tuple[Tensor | None, Tensor | None]] = {0: (None, None), 1: (None, None)}
        for dim, log_sums, weights in directions:
            where = i if dim else j
            own = None if weights is None else weights[:, where].contiguous()
            given[dim] = torch.stack([each[where] for each in log_sums]), own
        weighted = any(each.weights is not None for each in directions)
        _launch(
            _slope, products, dist_logits, self.factor, *given[1], *given[0],
            *products.shape, self._offset(i, j),
            FACTOR=self.factor is not None, BY_ROWS=given[1][0] is not None,
            BY_COLUMNS=given[0][0] is not None, TAUGHT=self.taught is not None, WEIGHTED=weighted,
            dtype=tl.float64 if self.tiles.like.dtype == torch.float64 else tl.float32,
        )  # fmt: skip
        return products

    def sigmoid(
        self, i: slice, j: slice, bias: Tensor, partners: bool, totals: Tensor, slopes: Tensor | None
    ) -> Tensor:
        """Return the derivatives of a tile's sigmoid losses by its logits, and add up both."""
        logits, like = self.tiles.products(i, j), self.tiles.like
        _, across = _blocks(logits)
        parts = like.new_empty(2, across, len(logits))
        _launch(
            _sigmoid, logits, self._on_device(bias), *parts, *logits.shape, self._offset(i, j),
            PARTNERS=partners, TERMS=TERMS[like.dtype],
        )  # fmt: skip
        totals[i] += parts[0].sum(0)
        if slopes is not None:
            slopes[i] += parts[1].sum(0)
        return logits

    def _tiles(self, i: slice, j: slice) -> tuple[Tensor, Tensor | None]:
        return self.tiles.products(i, j), None if self.taught is None else self.taught.products(i, j)

    def _offset(self, i: slice, j: slice) -> int:
        """Return the column, within a tile, of its first row's partner."""
        offset: int = self.start + i.start - j.start
        return offset

    def _on_device(self, scalar: Tensor) -> Tensor:
        """Return a scalar where kernels read it, in the dtype that they compute in."""
        like = self.tiles.like
        if scalar.device == like.device:
            return scalar.detach().to(like.dtype)
        return like.new_full((), float(scalar))  # of the host: no GPU is waited for


def _blocks(tile: Tensor) -> tuple[int, int]:
    """Return how many blocks a tile has down and across."""
    return triton.cdiv(tile.shape[0], ROWS), triton.cdiv(tile.shape[1], COLUMNS)


def _launch(kernel: Any, tile: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel over a tile's blocks, on the tile's device."""
    with torch.cuda.device_of(tile):
        kernel[_blocks(tile)](
            tile, *arguments, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS, **OPTIONS, **constants
        )
