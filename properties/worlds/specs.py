"""Which worlds to verify in, as people name them: "1,sim:2-8,proc:2,hvd:2,nccl:2"."""

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .. import devices
from . import OutOfTime, Pool, World, WorldError
from .isolated import IsolatedWorld
from .processes import COLLECTIVE_SHARE
from .table import KINDS, Kind, Prepare

if TYPE_CHECKING:
    from .simulated import Sends

RUN_SECONDS = 20.0
"""How long one call of a target may take on all its ranks; then it counts as hung."""


@dataclass(frozen=True)
class WorldSpec:
    """A kind of world and how many ranks it has: one number, or those that each example draws from."""

    kind: str
    sizes: tuple[int, ...]
    device: str = devices.CPU
    """Where the tensors are, or those devices that ranks have in turn: "cuda:0/cuda:1"."""
    found: str = field(default="", compare=False)
    """What was found as it was looked for where its ranks can be."""

    @property
    def row(self) -> Kind:
        """The kind's row of the table."""
        return KINDS[self.kind]

    @property
    def name(self) -> str:
        """As reports show it."""
        first, last = self.sizes[0], self.sizes[-1]
        ranks = f"{first}" if first == last else f"{first}-{last}"
        where = "" if self.device == devices.CPU or self.row.only_on else f" on {self.device}"
        return (self.kind if self.row.largest == 1 else f"{self.kind}:{ranks}") + where

    @property
    def alone(self) -> "WorldSpec":
        """One process on the same device, or on the first rank's."""
        return WorldSpec("single", (1,), devices.of_rank(self.device, 0))


SINGLE = WorldSpec("single", (1,))


class Worlds:
    """The worlds of one target, in processes that it shares with no other target and not with the caller.

    They start when first used.

    Args:
        target: whose worlds these are.
        prepare: imports the target, in each process as it starts.

    Attributes:
        until: when `time.monotonic()` is past it, what runs is given up.
    """

    def __init__(self, target: str, prepare: Prepare) -> None:
        self.target = target
        self.prepare = prepare
        self.until = math.inf
        self._pools: dict[tuple[str, int, float, str], Pool] = {}

    def open(
        self,
        spec: WorldSpec,
        patience: float = 1.0,
        size: int | None = None,
        schedule: int | None = None,
        sends: "Sends" = "rendezvous",
    ) -> World:
        """Return a world.

        Args:
            spec: its kind and size.
            patience: how much longer than `RUN_SECONDS` a call may take.
            size: the number of ranks, where each example draws it.
            schedule: who runs next, in a simulated world.
            sends: when a send ends, in a simulated world.
        """
        if spec.row.inside is None:
            return self._pool(spec, patience)
        # less than its process may take, so that it says itself where it hung
        seconds = COLLECTIVE_SHARE * RUN_SECONDS
        inner = spec.row.inside(size or spec.sizes[0], schedule, sends, seconds, spec.device)
        return self.isolated(inner, spec, patience)

    def start(self, spec: WorldSpec, patience: float = 1.0) -> None:
        """Start the processes in which a kind of world runs."""
        pool = self._pool(spec, patience) if spec.row.inside is None else self._pool(spec.alone)
        with contextlib.suppress(WorldError, OutOfTime):  # the first run meets it, and says so
            pool.start()

    def isolated(self, inner: World, spec: WorldSpec, patience: float = 1.0) -> World:
        """Return the world of a kind that takes one process, in a process of the target's."""
        return IsolatedWorld(inner, self._pool(spec.alone), spec.device, patience * RUN_SECONDS)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools.values():
            pool.close()

    def _pool(self, spec: WorldSpec, patience: float = 1.0) -> Pool:
        key = spec.kind, spec.sizes[0], patience, spec.device
        if key not in self._pools:
            seconds = patience * RUN_SECONDS
            self._pools[key] = spec.row.processes(spec.sizes[0], seconds, self.prepare, spec.device)
        self._pools[key].until = self.until
        return self._pools[key]


_current: dict[int, Worlds] = {}


def worlds_of(target: str, prepare: Prepare) -> Worlds:
    """Return the worlds of a target, which `prepare` imports. Those of the target before it are closed."""
    worlds = _current.get(os.getpid())
    if worlds is None or worlds.target != target:
        if worlds is not None:
            worlds.close()
        worlds = _current[os.getpid()] = Worlds(target, prepare)
    return worlds


def parse(text: str, places: Sequence[str] = (devices.CPU,)) -> list[WorldSpec]:
    """Return the worlds that `text` lists, on each of some devices.

    Args:
        text: parts separated by commas: "1" or "single" is this process, "3" and "proc:3" are three processes
            over gloo, "proc:2-4" pools of two, three and four, "hvd:2-3" pools of two and three Horovod
            ranks, "nccl:2" two processes over NCCL, on GPUs whichever devices are asked for, "sim:2-8"
            simulated worlds of two to eight ranks, "torchrun" the processes that it started.
        places: the devices.

    Raises:
        ValueError: a part reads otherwise, asks for too many ranks, or for Horovod or NCCL where it is not.
    """
    specs: list[WorldSpec] = []
    given = {kind.prefix: kind for kind in KINDS.values() if kind.size}
    parts: dict[str, str] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(?:([a-z]+):)?(\d+)(?:-(\d+))?", part.strip())
        if part.strip() == "single" or (match and match[0] == "1"):
            specs.append(SINGLE)
            continue
        if match and match[0] == "0":
            raise ValueError("expected a number of ranks from 1, got '0'")
        if part.strip() in given:
            specs.append(_given(given[part.strip()]))
            continue
        rows = {kind.prefix: kind for kind in KINDS.values() if kind.largest > 1 and not kind.size}
        if not match or (match[3] and not match[1]) or (match[1] or "proc") not in rows:
            raise ValueError(
                "expected parts like 1, 3, proc:2-4, hvd:2, nccl:2, sim:2-8 or torchrun, "
                f"got {part.strip()!r}"
            )
        kind = rows[match[1] or "proc"]
        if match[3] and int(match[3]) < int(match[2]):
            raise ValueError(f"expected the smaller number of ranks first, got {part.strip()!r}")
        sizes = tuple(range(int(match[2]), int(match[3] or match[2]) + 1))
        if sizes[0] < 2 or sizes[-1] > kind.largest:
            raise ValueError(f"expected from 2 to {kind.largest} ranks, got {part.strip()!r}")
        parts.setdefault(kind.name, part.strip())
        specs += [WorldSpec(kind.name, one) for one in ([sizes] if kind.is_drawn else [(n,) for n in sizes])]
    for name, part in parts.items():  # once all are read: to look for NCCL imports torch
        if missing := KINDS[name].missing():
            raise ValueError(f"{part}: {missing}")
    everywhere = [replace(spec, device=spec.row.only_on or place) for place in places for spec in specs]
    return list(dict.fromkeys(everywhere))


def placed(specs: Sequence[WorldSpec]) -> list[WorldSpec]:
    """Return the worlds on the devices that their ranks have: NCCL is tried, once for each size."""
    found: dict[WorldSpec, WorldSpec] = {}
    for spec in (one.row.place(one) for one in specs):
        if spec.found or spec not in found:  # what was asked for may also take another's place
            found[spec] = spec
    return list(found.values())


def _given(kind: Kind) -> WorldSpec:
    """Return the world whose number of ranks torchrun, which started this process, gives."""
    if missing := kind.missing():
        raise ValueError(f"{kind.prefix}: {missing}")
    assert kind.size is not None
    if not 2 <= kind.size() <= kind.largest:
        raise ValueError(f"{kind.prefix}: expected from 2 to {kind.largest} ranks, got {kind.size()}")
    return WorldSpec(kind.name, (kind.size(),))
