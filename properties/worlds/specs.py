"""Which worlds to verify in, as people name them: "1,sim:2-8,proc:2"."""

import re
from dataclasses import dataclass
from typing import Literal

from . import World
from .processes import shared_world
from .single import SingleWorld

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

    def open(self) -> World:
        """Return the world; a simulated one is made for each case instead."""
        return SingleWorld() if self.kind == "single" else shared_world(self.sizes[0])


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
            specs.append(WorldSpec("single", (1,)))
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
