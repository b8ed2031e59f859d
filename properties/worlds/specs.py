"""Which worlds to verify in, as people name them: "1,sim:2-8,proc:2"."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from . import World
from .isolated import IsolatedWorld
from .processes import ProcessWorld, join_gloo, join_nothing
from .single import SingleWorld

RUN_SECONDS = 20.0
"""How long one call of a target may take on all its ranks; then it counts as hung."""
LARGEST = {"processes": 16, "simulated": 256}
_KINDS = {"proc": "processes", "sim": "simulated"}


@dataclass(frozen=True)
class WorldSpec:
    """One process, a pool of real processes, or simulated worlds of every size in a range."""

    kind: Literal["single", "processes", "simulated"]
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
        self._pools: dict[tuple[int, float], ProcessWorld] = {}

    def open(self, spec: WorldSpec, patience: float = 1.0) -> World:
        """Return the world of a kind that has one size; a simulated one is made for each case.

        Args:
            spec: the kind and the size.
            patience: how much longer than `RUN_SECONDS` a call may take.
        """
        if spec.kind == "single":
            return self.isolated(SingleWorld())
        return self._pool(spec.sizes[0], patience)

    def isolated(self, inner: World) -> World:
        """Return a world of one process, in a process of the target's."""
        return IsolatedWorld(inner, self._pool(0))

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools.values():
            pool.close()

    def _pool(self, size: int, patience: float = 1.0) -> ProcessWorld:
        """Return the pool of a size; of 0, the one process that joins no group."""
        if (size, patience) not in self._pools:
            join, limit = join_gloo if size else join_nothing, patience * RUN_SECONDS
            pool = ProcessWorld(max(size, 1), limit, join=join, prepare=self.prepare)
            self._pools[size, patience] = pool
        return self._pools[size, patience]


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
            over gloo, "proc:2-4" pools of two, three and four, "sim:2-8" simulated worlds of two to eight
            ranks.

    Raises:
        ValueError: a part reads otherwise, or asks for too many ranks.
    """
    specs: list[WorldSpec] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:(proc|sim):)?(\d+)(?:-(\d+))?", part.strip())
        if part.strip() == "single" or (match and match[0] == "1"):
            specs.append(SINGLE)
            continue
        if not match or (match[3] and not match[1]):
            raise ValueError(f"expected parts like 1, 3, proc:2-4 or sim:2-8, got {part.strip()!r}")
        kind = _KINDS[match[1] or "proc"]
        sizes = tuple(range(int(match[2]), int(match[3] or match[2]) + 1))
        if not sizes or sizes[0] < 2 or sizes[-1] > LARGEST[kind]:
            raise ValueError(f"expected from 2 to {LARGEST[kind]} ranks, got {part.strip()!r}")
        if kind == "simulated":
            specs.append(WorldSpec("simulated", sizes))
        else:
            specs += [WorldSpec("processes", (size,)) for size in sizes]
    return list(dict.fromkeys(specs))
