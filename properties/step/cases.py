"""What is drawn for a training step: how the rows of a batch are split, and what else may not matter."""

from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec
from hypothesis import assume
from hypothesis import strategies as st

from ..standalone.steps import Plan, Rows
from .target import Trainer

MOST_MICRO = 3
MANY = 64
"""So many rows use every parameter: of 64 rows some reach every expert."""
STEPS = (2, 3)
"""How many are taken: what is wrong after the first shows there, too."""


@dataclass(frozen=True)
class StepCase:
    """One drawn input; the defaults are the simplest."""

    rows: Rows = ((1,), (1,))
    """Of each rank, the rows of each micro-batch."""
    dtype: str = "float64"
    steps: int = 2
    frozen: tuple[str, ...] = ()
    """The parameters that do not require grad."""
    seed: int = 0
    drawn: bool = False
    """Whether random numbers are drawn, where other cases have constants in their place."""

    def __str__(self) -> str:
        """List the fields that differ from the simplest case, and the rows."""
        shown = [
            one
            for one in fields(self)
            if one.name in ("rows", "dtype") or getattr(self, one.name) != one.default
        ]
        return f"StepCase({', '.join(f'{one.name}={getattr(self, one.name)!r}' for one in shown)})"

    def to_json(self) -> str:
        """Return it as JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "StepCase":
        """Return the case of such a text."""
        return msgspec.json.decode(text, type=cls)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.rows)

    @property
    def is_split(self) -> bool:
        """Whether there are several ranks or micro-batches."""
        return self.rows != ((sum(map(sum, self.rows)),),)

    def plan(self, trainer: Trainer, launched: bool) -> Plan:
        """Return what the ranks do."""
        options: tuple[tuple[str, Any], ...] = trainer.options
        if trainer.takes_frozen:
            options = (*options, ("frozen", self.frozen))
        constant = trainer.constant and not self.drawn
        return Plan(self.rows, self.dtype, self.steps, self.seed, options, launched, constant=constant)


@st.composite
def step_cases(
    draw: st.DrawFn, trainer: Trainer, sizes: list[int], uneven: bool = False, drawn: bool = False
) -> StepCase:
    """Draw a case, simplest first.

    Args:
        draw: given by Hypothesis.
        trainer: what is verified.
        sizes: the numbers of ranks to draw from.
        uneven: ranks, or micro-batches, differ in their rows.
        drawn: random numbers are drawn.
    """
    size = draw(st.sampled_from(sizes))
    # micro-batches are half of what goes wrong: they are drawn as often as not
    most = MOST_MICRO if trainer.accumulates else 1
    least = min(2, most) if size == 1 else 1  # one batch in one process is what others are compared with
    micro = draw(st.sampled_from(sorted({least, min(2, most), most})))
    count = st.sampled_from(trainer.counts)
    rows: Rows
    if uneven:
        rows = tuple(tuple(draw(count) for _ in range(micro)) for _ in range(size))
        if len({one for each in rows for one in each}) == 1:
            assume(len(trainer.counts) > 1)
            other = next(one for one in trainer.counts if one != rows[0][-1])
            rows = ((*rows[0][:-1], other), *rows[1:])
    else:
        rows = ((draw(count),) * micro,) * size
    frozen: tuple[str, ...] = ()
    if trainer.takes_frozen and len(trainer.names) > 1:
        several = st.lists(st.sampled_from(trainer.names), unique=True, max_size=len(trainer.names) - 1)
        frozen = tuple(sorted(draw(several), key=trainer.names.index))
    return StepCase(
        rows,
        draw(st.sampled_from(trainer.dtypes)),
        draw(st.sampled_from(STEPS)),
        frozen,
        draw(st.integers(0, 2**16)),
        drawn,
    )


def simplest(trainer: Trainer, size: int, **changed: Any) -> StepCase:
    """Return a plain case of so many ranks."""
    rows = 2 if 2 in trainer.counts else trainer.counts[-1]
    return replace(StepCase(((rows,),) * size, trainer.dtypes[0]), **changed)
