"""A training step under test: what was asked of it, and what an inspection has found out."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..subjects import Subject
from ..worlds.specs import Worlds, WorldSpec


@dataclass(frozen=True)
class Trainer:
    """A target, `make_step`, and what it takes.

    Args:
        subject: where it is imported from.
        options: what it is given besides rank and world size.
        dtypes: default dtypes in which it runs.
        names: of the parameters that require grad.
        accumulates: its `step` takes several micro-batches.
        takes_frozen: it takes the names of parameters that are to be frozen.
        scales: it makes a GradScaler.
        draws: what changes with the random numbers that `step` draws; empty where nothing does.
        constant: steps get constants in the place of random numbers, unless they are what is verified.
        unreached: the parameters that get no gradient with those constants, and get one without.
        promises: what it promises: "rng".
        buffers: what else a checkpoint holds: buffers, and tensors of other modules.
        passing: the buffers that no checkpoint holds, and that are not compared.
        counts: the rows of a micro-batch to draw from: those that one process takes.
        unresumed: why a new trainer cannot be given the checkpoint of another.
        simulated: it runs in simulated worlds.
        unsimulated: why it does not.
        strict: rows that are split unequally are a defect, and no limit.
        even: rows are split equally alone.
        notes: what is not drawn, and why.
        seconds: how long one process took for a step.
    """

    subject: Subject
    options: tuple[tuple[str, Any], ...] = ()
    dtypes: tuple[str, ...] = ("float64", "float32")
    names: tuple[str, ...] = ()
    accumulates: bool = False
    takes_frozen: bool = False
    scales: bool = False
    draws: str = ""
    constant: bool = False
    unreached: tuple[str, ...] = ()
    promises: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()
    unresumed: str = ""
    counts: tuple[int, ...] = (1, 2, 3, 4)
    simulated: bool = True
    unsimulated: str = ""
    strict: bool = False
    even: bool = False
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def target(self) -> str:
        """Where it is imported from."""
        return self.subject.target

    def worlds(self) -> Worlds:
        """Return the worlds of the target."""
        return self.subject.worlds()

    def places(self, worlds: Iterable[WorldSpec]) -> list[WorldSpec]:
        """Return those of some worlds in which it is verified."""
        return [one for one in worlds if self.simulated or not one.row.is_drawn]

    @property
    def able(self) -> "Trainer":
        """The same, as if it were known to do all that a trainer can."""
        return replace(
            self, accumulates=True, scales=True, constant=True, promises=("rng",), buffers=("any",)
        )

    @property
    def described(self) -> list[str]:
        """What was found out, a line each."""
        several = "several micro-batches" if self.accumulates else "one batch: no accumulation is drawn"
        lines = [f"step takes {several}", f"{len(self.names)} parameters require grad"]
        if self.takes_frozen:
            lines.append("frozen parameters are drawn")
        if self.scales:
            lines.append("makes a GradScaler")
        if self.buffers:
            lines.append(f"a checkpoint holds {len(self.buffers)} buffers, averages and the like")
        if self.constant:
            lines.append(
                f"step draws random numbers that change {self.draws}: they are constants, but where a "
                "property is about them"
            )
        if self.promises:
            lines.append(f"promises {', '.join(self.promises)}")
        return [*lines, *self.notes]
