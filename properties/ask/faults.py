"""What `certify --faults` asks for, read and checked. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from ..options import WORLDS, CommandOptions
from ..verify.arguments import Unusable, refuse, some_worlds

SIZES = (2, 3, 4)
"""How many ranks the worlds have, if no others are asked for."""
RESULTS = Path("build/faults.json")


@dataclass(frozen=True)
class Faults:
    """How many faults to draw, and where their ranks run; or the file of one to inject again."""

    number: int = 0
    again: Path | None = None
    sizes: tuple[int, ...] = SIZES
    results: Path = RESULTS


def ask_faults(options: CommandOptions) -> Faults:
    """Return what is asked for.

    Raises:
        Unusable: an option is, or says nothing of a fault.
    """
    unused = {
        "only": options.only, "skip": options.skip, "html": options.html, "junit": options.junit,
        "known": options.known, "shard": options.shard, "database": options.database,
        "large": options.large, "format": options.format != "text", "device": options.device != "cpu",
    }  # fmt: skip
    refuse(unused, "says nothing of faults: leave it out with --faults")
    is_default = options.json == CommandOptions().json
    results = RESULTS if is_default else options.json
    asked = str(options.faults)
    if not asked.isdecimal():
        if not Path(asked).is_file():
            raise Unusable("faults", f"expected a number, or the file of a fault, got {asked!r}")
        return Faults(again=Path(asked), results=results)
    if int(asked) < 1:
        raise Unusable("faults", f"expected at least 1, got {asked}")
    sizes: tuple[int, ...] = SIZES
    if options.world != WORLDS:
        found = some_worlds(options.world)
        for spec in found:
            if spec.kind != "processes":
                raise Unusable("world", f"faults are those of real processes, proc:2-4, not of {spec.name}")
        sizes = tuple(sorted({size for spec in found for size in spec.sizes}))
    return Faults(int(asked), None, sizes, results)
