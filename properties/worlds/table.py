"""The kinds of worlds, a row each: other code asks the row, and compares no names.

Imports no torch: the worlds that are asked for are read before torch is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import devices
from ..standalone.launch import GLOO, HOROVOD, NCCL
from . import Pool, World
from .horovod import HorovodWorld, horovod_missing
from .nccl import NcclWorld, nccl_missing, placed
from .processes import ProcessWorld, join_nothing
from .single import SingleWorld
from .torchrun import TorchrunWorld, ranks, torchrun_missing
from .torchrun import placed as torchrun_placed

if TYPE_CHECKING:
    from .simulated import Sends
    from .specs import WorldSpec

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
    processes: Callable[[int, float, Prepare, str], Pool]
    """Makes the processes of so many ranks, which may take so many seconds for a run, on a device."""
    inside: Callable[..., World] | None = None
    """Makes the world, of size, schedule, sends, seconds and device, where one process holds all ranks."""
    is_drawn: bool = False
    """Whether each example draws the number of ranks, and who runs next."""
    options: tuple[tuple[str, Any], ...] = ()
    """Constructor arguments that make a loss communicate over it."""
    over: str = "gloo"
    """The library that the ranks communicate over."""
    only_on: str = ""
    """The kind of device that it takes, whichever is asked for; empty where it runs on any."""
    talk: tuple[Callable[[str], Any], Callable[..., Any]] = GLOO
    """How the ranks of a counterexample are started, and exchange their results."""
    words: str = ""
    """Its ranks, in words, where the default has such."""
    title: str = ""
    """Its name in a certificate if no such world ran; empty for the kinds of the default."""
    missing: Callable[[], str | None] = lambda: None
    """Returns why there can be no such world here, or none any more, if so."""
    size: Callable[[], int] | None = None
    """Returns the number of ranks, where it is given by what started this process."""
    again: str = ""
    """The kind in which a counterexample is run again; empty for this one."""
    place: "Callable[[WorldSpec], WorldSpec]" = lambda spec: spec
    """Returns the world on the devices that its ranks have, or the world that takes its place."""

    @property
    def shares_process(self) -> bool:
        """Whether several ranks are threads of one process."""
        return self.inside is not None and self.largest > 1


def _one_process(size: int, seconds: float, prepare: Prepare, device: str) -> ProcessWorld:
    return ProcessWorld(1, seconds, join=join_nothing, prepare=prepare, device=device)


def _simulated(size: int, schedule: int | None, sends: "Sends", seconds: float, device: str) -> World:
    from .simulated import SimulatedWorld  # imports torch

    # what a job on GPUs finds, and asks for
    backend: Any = "nccl" if devices.kind_of(device) == "cuda" else "simulated"
    return SimulatedWorld(size, schedule, sends=sends, timeout=seconds, backend=backend)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "single", "single", 1, _one_process,
            inside=lambda size, schedule, sends, seconds, device: SingleWorld(),
        ),
        Kind(
            "processes", "proc", 16,
            lambda size, seconds, prepare, device: ProcessWorld(
                size, seconds, prepare=prepare, device=device
            ),
            words="processes over gloo",
        ),
        Kind(
            "simulated", "sim", 256, _one_process,
            inside=_simulated,
            is_drawn=True, words="simulated ranks",
        ),
        Kind(
            "horovod", "hvd", 16,
            lambda size, seconds, prepare, device: HorovodWorld(
                size, seconds, prepare=prepare, device=device
            ),
            options=(("use_horovod", True),), over="Horovod", talk=HOROVOD, title="Horovod",
            missing=lambda: horovod_missing(),
        ),
        Kind(
            "nccl", "nccl", 8,
            lambda size, seconds, prepare, device: NcclWorld(size, seconds, prepare=prepare, device=device),
            over="NCCL", only_on="cuda", talk=NCCL, title="NCCL",
            missing=lambda: nccl_missing(), place=lambda spec: placed(spec, "processes"),
        ),
        Kind(
            "torchrun", "torchrun", 1024,
            lambda size, seconds, prepare, device: TorchrunWorld(size, seconds),
            missing=lambda: torchrun_missing(),
            size=ranks, again="processes", place=lambda spec: torchrun_placed(spec),
        ),
    )
}  # fmt: skip
