"""Which worlds to verify in, as people name them: "1,sim:2-8,proc:2,hvd:2"."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from . import World
from .horovod import HorovodWorld, horovod_missing
from .processes import ProcessWorld, shared_world
from .single import SingleWorld

Kind: TypeAlias = Literal["single", "processes", "horovod", "simulated"]

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

    def open(self) -> World:
        """Return the world; a simulated one is made for each case instead."""
        if self.kind == "single":
            return SingleWorld()
        return shared_world(self.sizes[0], HorovodWorld if self.kind == "horovod" else ProcessWorld)


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
            specs.append(WorldSpec("single", (1,)))
            continue
        if not match or (match[3] and not match[1]):
            raise ValueError(f"expected parts like 1, 3, proc:2-4, hvd:2 or sim:2-8, got {part.strip()!r}")
        kind = _KINDS[match[1] or "proc"]
        sizes = tuple(range(int(match[2]), int(match[3] or match[2]) + 1))
        if not sizes or sizes[0] < 2 or sizes[-1] > LARGEST[kind]:
            raise ValueError(f"expected from 2 to {LARGEST[kind]} ranks, got {part.strip()!r}")
        if kind == "horovod" and (missing := horovod_missing()):
            raise ValueError(f"{part.strip()}: {missing}")
        specs += [WorldSpec(kind, sizes)] if kind == "simulated" else [WorldSpec(kind, (n,)) for n in sizes]
    return list(dict.fromkeys(specs))
