"""The kinds of inputs that a formula may have: what is drawn of them, and how ranks share them. NumPy alone.

Sizes are numbers, or names: inputs that name the same size have the same one in a case, and "width" is that
of the rows. Rows, ids, masks and matrices have the N rows of the batch first, and each rank holds its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Size = int | str
WIDTH = "width"
MOST_OF_A_SIZE = 7
"""Of a size that has a name and no number."""


class WrongKind(ValueError):
    """What was said of an input cannot be."""


@dataclass(frozen=True)
class Kind:
    """What an input is."""

    title: ClassVar[str] = "an input"

    @property
    def is_split(self) -> bool:
        """Whether each rank holds its own rows of it."""
        return True

    @property
    def is_tensor(self) -> bool:
        """Whether a loss gets it as a tensor."""
        return True

    @property
    def is_derived(self) -> bool:
        """Whether it gets a gradient."""
        return False

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Its sizes after the rows."""
        return ()


@dataclass(frozen=True)
class Rows(Kind):
    """Features, [N, width]."""

    unit: bool = False
    like: str = ""
    width: Size = WIDTH
    constant: bool = False

    @property
    def is_derived(self) -> bool:
        return not self.constant

    @property
    def sizes(self) -> tuple[Size, ...]:
        return (self.width,)


@dataclass(frozen=True)
class Ids(Kind):
    """Whole numbers, [N]."""

    below: Size = 8
    repeated: bool = False
    large: bool = False


@dataclass(frozen=True)
class Mask(Kind):
    """Which pairs of rows belong together, [N, N] booleans."""

    symmetric: bool = False
    reflexive: bool = False
    share: float = 0.3


@dataclass(frozen=True)
class Matrix(Kind):
    """Numbers of each row, [N, ...]."""

    columns: tuple[Size, ...]
    values: str = "normal"
    unit: bool = False
    constant: bool = False
    detached: bool = False

    @property
    def is_derived(self) -> bool:
        return not self.constant and self.values == "normal"

    @property
    def sizes(self) -> tuple[Size, ...]:
        return self.columns


@dataclass(frozen=True)
class Shared(Kind):
    """Numbers that every rank holds alike, as a queue or prototypes."""

    shape: tuple[Size, ...]
    unit: bool = False
    learned: bool = False

    @property
    def is_split(self) -> bool:
        return False

    @property
    def is_derived(self) -> bool:
        return self.learned

    @property
    def sizes(self) -> tuple[Size, ...]:
        return self.shape


@dataclass(frozen=True)
class Positive(Kind):
    """A number above 0."""

    low: float
    high: float
    learned: bool = False

    @property
    def is_split(self) -> bool:
        return False

    @property
    def is_tensor(self) -> bool:
        return self.learned

    @property
    def is_derived(self) -> bool:
        return self.learned


@dataclass(frozen=True)
class Choice(Kind):
    """One of some values."""

    values: tuple[Any, ...] = field(default=())

    @property
    def is_split(self) -> bool:
        return False

    @property
    def is_tensor(self) -> bool:
        return False


def rows(unit: bool = False, like: str = "", width: Size = WIDTH, constant: bool = False) -> Rows:
    """Features, [N, width]; each rank holds its rows.

    Args:
        unit: the formula and the loss get rows of length 1; gradients are those of the rows before.
        like: another input of rows; these are its partners: equal, opposite or unrelated. Of
            several that are like one, the first is its partner, the others are of its width and drawn apart.
        width: its columns; "width", by default, are those of all rows.
        constant: no gradient is asked for.
    """
    _check_size("width", width)
    return Rows(bool(unit), like, width, constant)


def ids(below: Size = 8, repeated: bool = False, large: bool = False) -> Ids:
    """Whole numbers from 0, [N], as labels.

    Args:
        below: which they are below; it may name a size, as the columns of a matrix.
        repeated: each that occurs stands on two rows or more.
        large: some cases have 2,048 more, from where on half precision skips numbers. It is for labels that
            are compared with one another alone.

    Raises:
        WrongKind: there are none below it; or `large` is given where `below` names a size.
    """
    _check_size("below", below)
    if large and isinstance(below, str):
        raise WrongKind(f"large: expected it where below is a number, got below={below!r}, a size")
    return Ids(below, repeated, large)


def mask(symmetric: bool = False, reflexive: bool = False, share: float = 0.3) -> Mask:
    """Pairs of rows, [N, N] booleans: each rank gets its rows, against all.

    Args:
        symmetric: it equals its transpose.
        reflexive: each row belongs to itself.
        share: of pairs that are drawn true.
    """
    if not 0 <= share <= 1:
        raise WrongKind(f"share: expected a number from 0 to 1, got {share}")
    return Mask(symmetric, reflexive, share)


def matrix(
    columns: Size | tuple[Size, ...],
    values: Literal["normal", "probabilities", "weights"] = "normal",
    unit: bool = False,
    constant: bool = False,
    detached: bool = False,
) -> Matrix:
    """Numbers of each row, [N, *columns]: as logits, ("negatives", "width") or soft targets.

    Args:
        columns: sizes after the rows.
        values: "normal"; "probabilities", which add up to 1; or "weights", from 0 to 1. The latter two get no
            gradient.
        unit: the last axis has length 1, as that of rows.
        constant: no gradient is asked for.
        detached: a gradient is asked for, and none, or zeros, must come.

    Raises:
        WrongKind: a size or the values are none.
    """
    sizes = columns if isinstance(columns, tuple) else (columns,)
    for size in sizes:
        _check_size("columns", size)
    if values not in ("normal", "probabilities", "weights"):
        raise WrongKind(f'values: expected "normal", "probabilities" or "weights", got {values!r}')
    return Matrix(sizes, values, unit, constant, detached)


def shared(*shape: Size, unit: bool = False, learned: bool = False) -> Shared:
    """Numbers that every rank holds alike: `shared("queue", "width")` is a matrix.

    Args:
        *shape: its sizes.
        unit: the last axis has length 1, as that of rows.
        learned: it gets a gradient, whose mean over ranks is that of one process.
    """
    if not shape:
        raise WrongKind('shape: expected sizes, as shared("queue", "width"), got none')
    for size in shape:
        _check_size("shape", size)
    return Shared(shape, unit, learned)


def positive(low: float, high: float, learned: bool = False) -> Positive:
    """A number from `low` to `high`, as a temperature.

    Args:
        low: above 0.
        high: at least `low`.
        learned: a tensor that gets a gradient; else a number.

    Raises:
        WrongKind: they are no such numbers.
    """
    given = (low, high)
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in given) or not 0 < low <= high:
        raise WrongKind(f"positive: expected 0 < low <= high, got {low!r} and {high!r}")
    return Positive(float(low), float(high), learned)


def choice(*values: Any) -> Choice:
    """One of some values, as an option of a constructor.

    Raises:
        WrongKind: there are none, or not of JSON.
    """
    plain = bool | int | float | str | None
    if not values or not all(
        isinstance(one, plain) or (isinstance(one, tuple) and all(isinstance(part, plain) for part in one))
        for one in values
    ):
        raise WrongKind(f"choice: expected numbers, texts, booleans, None or tuples of them, got {values!r}")
    return Choice(values)


def named_sizes(inputs: Mapping[str, Kind]) -> tuple[str, ...]:
    """Return the names of sizes that are drawn, besides the width."""
    found = []
    for kind in inputs.values():
        below = (kind.below,) if isinstance(kind, Ids) else ()
        found += [size for size in (*kind.sizes, *below) if isinstance(size, str) and size != WIDTH]
    return tuple(dict.fromkeys(found))


def _check_size(argument: str, size: Any) -> None:
    fits = (
        size >= 1 if isinstance(size, int) and not isinstance(size, bool) else size and isinstance(size, str)
    )
    if not fits:
        raise WrongKind(f"{argument}: expected a number from 1 or the name of a size, got {size!r}")
