"""The call of an oracle as data: its values, its gradients' bounds and its source follow from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from verified_losses.oracles.complex_step import Array

Inputs = list[dict[str, Array]]
"""Every rank's inputs by name."""


@dataclass(frozen=True)
class Call:
    """The call of an oracle that gives a term.

    Args:
        function: the oracle.
        columns: its first arguments. A name stands for every rank's input of that name, and a tuple for
            several; anything else for itself.
        arguments: its last arguments.
        asked: "rank": the rank comes between both; "own": the oracle takes the rank's own inputs alone;
            "all": it returns a list of what is every rank's.
        place: which part of what is returned the term is; None where it is all.
    """

    function: Callable[..., Any]
    columns: tuple[Any, ...]
    arguments: tuple[Any, ...] = ()
    asked: Literal["rank", "own", "all"] = "rank"
    place: int | None = None

    def result(self, inputs: Inputs, rank: int) -> Any:
        """Return what the oracle returns for a rank; inputs may be complex, or traced."""

        def given(column: Any) -> Any:
            if isinstance(column, tuple):
                return tuple(map(given, column))
            if not isinstance(column, str):
                return column
            every = [one[column] for one in inputs]
            return every[rank] if self.asked == "own" else every

        columns = list(map(given, self.columns))
        if self.asked == "rank":
            return self.function(*columns, rank, *self.arguments)
        result = self.function(*columns, *self.arguments)
        return result[rank] if self.asked == "all" else result

    def source(self, world_size: int, absent: dict[str, float]) -> str:
        """Return the call as Python: each input is a list of every rank's, and `rank` is whose term it is.

        Args:
            world_size: the number of ranks.
            absent: the values of inputs that the case lacks.
        """

        def shown(column: Any) -> str:
            if isinstance(column, tuple):
                return f"({', '.join(map(shown, column))})"
            if not isinstance(column, str):
                return repr(column)
            every = f"[{absent[column]}] * {world_size}" if column in absent else column
            if self.asked != "own":
                return every
            return f"({every})[rank]" if column in absent else f"{every}[rank]"

        columns = [*map(shown, self.columns), *["rank"] * (self.asked == "rank")]
        arguments = [f'"{value}"' if isinstance(value, str) else repr(value) for value in self.arguments]
        call = f"{self.function.__name__}({', '.join([*columns, *arguments])})"
        if self.asked == "all":
            call += "[rank]"
        return call if self.place is None else f"{call}[{self.place}]"
