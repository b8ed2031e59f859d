"""Bounds of large matrices, found by blocks of rows: what a block needs stays in a cache."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .precision import Bounded

MANY = 2**20
"""The most elements of a matrix that is bounded at once."""
BLOCK = 2**16
"""About how many elements a block of a larger one has."""


def by_rows(function: Callable[..., Any], columns: int, *operands: Any) -> Any:
    """Return what a function gives of operands with n rows each, where it bounds each row by itself.

    Args:
        function: returns bounds of as many rows, one or several.
        columns: of the matrices that it bounds.
        operands: arrays and `Bounded` ones.
    """
    rows = len(operands[0].value if isinstance(operands[0], Bounded) else operands[0])
    if rows * columns <= MANY:
        return function(*operands)
    step = max(1, BLOCK // columns)
    blocks = [
        function(*(_rows(one, slice(start, start + step)) for one in operands))
        for start in range(0, rows, step)
    ]
    return _joined(blocks)


def _rows(operand: Any, rows: slice) -> Any:
    return Bounded(*(one[rows] for one in operand)) if isinstance(operand, Bounded) else operand[rows]


def _joined(blocks: list[Any]) -> Any:
    if isinstance(blocks[0], Bounded):
        return Bounded(*(np.concatenate([block[place] for block in blocks]) for place in range(2)))
    return tuple(_joined(list(parts)) for parts in zip(*blocks, strict=True))
