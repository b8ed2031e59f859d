"""Shards: a run split over machines that know nothing of one another. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .arguments import Unusable

NAME = "certificate.json"
"""Of a shard's certificate, in its folder."""
VARIABLE = "VERIFIED_LOSSES_SHARD"
"""The environment variable that names a shard as the option does."""
SLURM = "SLURM_ARRAY_TASK_"
EXPECTED = "expected i/n, with i from 1 to n, as 1/4"


@dataclass(frozen=True)
class Shard:
    """One of the parts of a run. Units of work are numbered alike in every part, and dealt round.

    Args:
        index: which part, from 0.
        count: of how many.
    """

    index: int = 0
    count: int = 1

    def takes(self, number: int) -> bool:
        """Whether a unit of work, numbered from 0, is this part's."""
        return taker(number, self.count) == self.index

    def __str__(self) -> str:
        """Return it as people write it: i/n, from 1."""
        return f"{self.index + 1}/{self.count}"


class Unreadable(ValueError):
    """A file holds no certificate."""


def found(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the certificates that paths name, each once, and why some paths name none."""
    files: dict[Path, Path] = {}
    troubles = []
    for path in paths:
        try:
            files |= {file.resolve(): file for file in find(path)}
        except Unreadable as error:
            troubles.append(str(error))
    return list(files.values()), troubles


def find(path: Path) -> list[Path]:
    """Return the certificates that a path names: a file, that in a folder, or those in the folders in it.

    Raises:
        Unreadable: there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise Unreadable(f"{path}: there is no such file or folder")
        return [path]
    if (path / NAME).is_file():
        return [path / NAME]
    below = sorted(path.glob(f"*/{NAME}"))
    if not below:
        raise Unreadable(f"{path}: it holds no {NAME}, nor does a folder in it")
    return below


def taker(number: int, count: int) -> int:
    """Return which of so many shards, from 0, takes a unit of work."""
    return number % count


def read_shard(text: str | None, environ: Mapping[str, str]) -> Shard:
    """Return the shard that is asked for; the whole run, if none is.

    Args:
        text: i/n, with i from 1; it overrides the environment.
        environ: the environment: Slurm's variables of a job array, else VERIFIED_LOSSES_SHARD, which reads as
            `text` does.

    Raises:
        Unusable: it reads otherwise, or the environment names two different shards.
    """
    if text is not None:
        return _read(text)
    named = _read(environ[VARIABLE], f"{VARIABLE}: ") if environ.get(VARIABLE) else None
    slurm = _array_task(environ) if environ.get(f"{SLURM}ID") else None
    if named and slurm and named != slurm:
        both = f"{VARIABLE} says {named}, Slurm's job array says {slurm}"
        raise Unusable("shard", f"expected one, or the option, which overrides both: {both}")
    return slurm or named or Shard()


def _read(text: str, source: str = "") -> Shard:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise Unusable("shard", f"{source}{EXPECTED}, got {text!r}")
    return Shard(int(match[1]) - 1, int(match[2]))


def _array_task(environ: Mapping[str, str]) -> Shard:
    """Return the shard of a task of a Slurm job array, whose tasks may be numbered from m in steps of s."""
    given = {name: environ.get(SLURM + name, "") for name in ("ID", "COUNT", "MIN", "MAX", "STEP")}
    given["STEP"] = given["STEP"] or "1"
    said = ", ".join(f"{SLURM}{name}={value}" for name, value in given.items() if value)
    required = {name: value for name, value in given.items() if name in ("ID", "COUNT") or value}
    if not all(re.fullmatch(r"[0-9]{1,9}", value) for value in required.values()):
        raise Unusable("shard", f"expected whole numbers in Slurm's {SLURM}ID and {SLURM}COUNT, got {said}")
    numbers = {name: int(value) for name, value in required.items()}
    count, step, first = numbers["COUNT"], numbers["STEP"], numbers.get("MIN", 0)
    last = first + (count - 1) * step
    index, rest = divmod(numbers["ID"] - first, step or 1)
    if not step or rest or not 0 <= index < count or numbers.get("MAX", last) != last:
        regular = "expected a job array whose tasks are numbered in equal steps, as --array 0-3 or 1-7:2"
        raise Unusable("shard", f"{regular}; got {said}: give the shard by the option")
    return Shard(index, count)
