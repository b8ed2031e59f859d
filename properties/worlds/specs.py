"""Which worlds to verify in, as people name them: "1,sim:2-8,proc:2,hvd:2"."""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from . import World, WorldError
from .horovod import HorovodWorld, horovod_missing
from .isolated import IsolatedWorld
from .processes import ProcessWorld, join_gloo, join_nothing
from .single import SingleWorld

Kind: TypeAlias = Literal["single", "processes", "horovod", "simulated"]

RUN_SECONDS = 20.0
"""How long one call of a target may take on all its ranks; then it counts as hung."""
LARGEST = {"processes": 16, "horovod": 16, "simulated": 256}
_KINDS: dict[str, Kind] = {"proc": "processes", "hvd": "horovod", "sim": "simulated"}


@dataclass(frozen=True)
class WorldSpec:
    """One process, a pool of real processes or of Horovod ranks, or simulated worlds of a range of sizes."""

    kind: Kind
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """As reports show it."""
        if self.kind == "single":
            return "single"
        first, last = self.sizes[0], self.sizes[-1]
        return f"{self.kind}:{first}" if first == last else f"{self.kind}:{first}-{last}"


SINGLE = WorldSpec("single", (1,))


class Worlds:
    """The worlds of one target, in processes that it shares with no other target and not with the caller.

    They start when first used.

    Args:
        target: whose worlds these are.
        prepare: imports the target, in each process as it starts.
    """

    def __init__(self, target: str, prepare: Callable[[], object]) -> None:
        self.target = target
        self.prepare = prepare
        self._pools: dict[tuple[Kind, int, float], ProcessWorld] = {}

    def open(self, spec: WorldSpec, patience: float = 1.0) -> World:
        """Return the world of a kind that has one size; a simulated one is made for each case.

        Args:
            spec: the kind and the size.
            patience: how much longer than `RUN_SECONDS` a call may take.
        """
        if spec.kind == "single":
            return self.isolated(SingleWorld())
        return self._pool(spec.kind, spec.sizes[0], patience)

    def start(self, spec: WorldSpec, patience: float = 1.0) -> None:
        """Start the processes in which a kind of world runs."""
        real = spec.kind in ("processes", "horovod")
        pool = self._pool(spec.kind, spec.sizes[0], patience) if real else self._pool("single", 1)
        with contextlib.suppress(WorldError):  # the first run meets it, and says so
            pool.start()

    def isolated(self, inner: World) -> World:
        """Return a world of one process, in a process of the target's."""
        return IsolatedWorld(inner, self._pool("single", 1))

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools.values():
            pool.close()

    def _pool(self, kind: Kind, size: int, patience: float = 1.0) -> ProcessWorld:
        """Return the pool of a kind and size; the single process joins no group."""
        key, limit = (kind, size, patience), patience * RUN_SECONDS
        if key not in self._pools:
            if kind == "horovod":
                self._pools[key] = HorovodWorld(size, limit, prepare=self.prepare)
            else:
                join = join_nothing if kind == "single" else join_gloo
                self._pools[key] = ProcessWorld(size, limit, join=join, prepare=self.prepare)
        return self._pools[key]


_current: dict[int, Worlds] = {}


def worlds_of(target: str, prepare: Callable[[], object]) -> Worlds:
    """Return the worlds of a target, which `prepare` imports. Those of the target before it are closed."""
    worlds = _current.get(os.getpid())
    if worlds is None or worlds.target != target:
        if worlds is not None:
            worlds.close()
        worlds = _current[os.getpid()] = Worlds(target, prepare)
    return worlds


def parse(text: str) -> list[WorldSpec]:
    """Return the worlds that `text` lists.

    Args:
        text: parts separated by commas: "1" or "single" is this process, "3" and "proc:3" are three processes
            over gloo, "proc:2-4" pools of two, three and four, "hvd:2-3" pools of two and three Horovod
            ranks, "sim:2-8" simulated worlds of two to eight ranks.

    Raises:
        ValueError: a part reads otherwise, asks for too many ranks, or for Horovod where it is not installed.
    """
    specs: list[WorldSpec] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:(proc|sim|hvd):)?(\d+)(?:-(\d+))?", part.strip())
        if part.strip() == "single" or (match and match[0] == "1"):
            specs.append(SINGLE)
            continue
        if not match or (match[3] and not match[1]):
            raise ValueError(f"expected parts like 1, 3, proc:2-4, hvd:2 or sim:2-8, got {part.strip()!r}")
        kind = _KINDS[match[1] or "proc"]
        if match[3] and int(match[3]) < int(match[2]):
            raise ValueError(f"expected the smaller number of ranks first, got {part.strip()!r}")
        sizes = tuple(range(int(match[2]), int(match[3] or match[2]) + 1))
        if sizes[0] < 2 or sizes[-1] > LARGEST[kind]:
            raise ValueError(f"expected from 2 to {LARGEST[kind]} ranks, got {part.strip()!r}")
        if kind == "horovod" and (missing := horovod_missing()):
            raise ValueError(f"{part.strip()}: {missing}")
        specs += [WorldSpec(kind, sizes)] if kind == "simulated" else [WorldSpec(kind, (n,)) for n in sizes]
    return list(dict.fromkeys(specs))
