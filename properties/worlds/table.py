"""The kinds of worlds, a row each: other code asks the row, and compares no names.

Imports no torch: the worlds that are asked for are read before torch is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..standalone.launch import GLOO, HOROVOD
from . import Pool, World
from .horovod import HorovodWorld, horovod_missing
from .processes import ProcessWorld, join_nothing
from .single import SingleWorld
from .torchrun import TorchrunWorld, ranks, torchrun_missing

if TYPE_CHECKING:
    from .simulated import Sends

Prepare = Callable[[], object]
"""Imports the target, in each process as it starts."""


@dataclass(frozen=True)
class Kind:
    """One kind of world."""

    name: str
    """As reports show it: processes:2. The module that has the class is named so too."""
    prefix: str
    """As people write it: proc:2."""
    largest: int
    """The most ranks."""
    processes: Callable[[int, float, Prepare], Pool]
    """Makes the processes of so many ranks, which may take so many seconds for a run."""
    inside: Callable[..., World] | None = None
    """Makes the world, of size, schedule, sends and seconds, where one process holds all ranks."""
    is_drawn: bool = False
    """Whether each example draws the number of ranks, and who runs next."""
    options: tuple[tuple[str, Any], ...] = ()
    """Constructor arguments that make a loss communicate over it."""
    over: str = "gloo"
    """The library that the ranks communicate over."""
    talk: tuple[Callable[[], Any], Callable[..., Any]] = GLOO
    """How the ranks of a counterexample are started, and exchange their results."""
    title: str = ""
    """Its name in a certificate if no such world ran; empty for the kinds of the default."""
    missing: Callable[[], str | None] = lambda: None
    """Returns why there can be no such world here, or none any more, if so."""
    size: Callable[[], int] | None = None
    """Returns the number of ranks, where it is given by what started this process."""
    again: str = ""
    """The kind in which a counterexample is run again; empty for this one."""

    @property
    def shares_process(self) -> bool:
        """Whether several ranks are threads of one process."""
        return self.inside is not None and self.largest > 1


def _one_process(size: int, seconds: float, prepare: Prepare) -> ProcessWorld:
    return ProcessWorld(1, seconds, join=join_nothing, prepare=prepare)


def _simulated(size: int, schedule: int | None, sends: "Sends", seconds: float) -> World:
    from .simulated import SimulatedWorld  # imports torch

    return SimulatedWorld(size, schedule, sends=sends, timeout=seconds)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "single", "single", 1, _one_process,
            inside=lambda size, schedule, sends, seconds: SingleWorld(),
        ),
        Kind(
            "processes", "proc", 16,
            lambda size, seconds, prepare: ProcessWorld(size, seconds, prepare=prepare),
        ),
        Kind(
            "simulated", "sim", 256, _one_process,
            inside=_simulated,
            is_drawn=True,
        ),
        Kind(
            "horovod", "hvd", 16,
            lambda size, seconds, prepare: HorovodWorld(size, seconds, prepare=prepare),
            options=(("use_horovod", True),), over="Horovod", talk=HOROVOD, title="Horovod",
            missing=lambda: horovod_missing(),
        ),
        Kind(
            "torchrun", "torchrun", 1024,
            lambda size, seconds, prepare: TorchrunWorld(size, seconds),
            missing=lambda: torchrun_missing(),
            size=ranks, again="processes",
        ),
    )
}  # fmt: skip
