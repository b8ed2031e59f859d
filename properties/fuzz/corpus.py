"""The corpus: the counterexamples that fuzzing has left, by name."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..show.counterexample import MARK, file_name
from ..show.text import plain
from ..verify.certifier import Check
from .lines import Failure, Find, Unit

FOLDER = "finds"
SIZE = re.compile(r"^WORLD_SIZE = (\d+)$", re.MULTILINE)
LAST_WORDS = 1500
"""Characters of the output of a find that is still there."""
TARGET = re.compile(r'^TARGET = os\.environ\.get\("VERIFIED_LOSSES_TARGET", (.+)\)$', re.MULTILINE)


def files(folder: Path) -> list[Path]:
    """Return the counterexamples in a folder."""
    return [path for path in sorted(folder.glob("*.py")) if path.is_file()]


def larger_ones(paths: Sequence[Path]) -> list[Path]:
    """Return the counterexamples that have a smaller one of the same target and fingerprint."""
    smallest: dict[tuple[str, str], Path] = {}
    larger = []
    for path in sorted(paths, key=lambda path: (path.stat().st_size, path.name)):
        text = path.read_text(errors="replace")
        first = text.partition("\n")[0]
        named = TARGET.search(text)
        key = first.removeprefix(MARK).strip(), named[1] if named else ""
        if not first.startswith(MARK) or not key[0]:
            continue  # not one of ours: nothing is known of it
        if key in smallest:
            larger.append(path)
        else:
            smallest[key] = path
    return larger


def still_there(path: Path, output: str, planned: dict[int, Check], seed: int) -> Find | None:
    """Return a counterexample that failed again as a find of the check that it was written for.

    None if that is not among those planned.

    Args:
        path: of the file.
        output: what it printed.
        planned: checks, by number.
        seed: of the run.
    """
    kind = path.stem.rpartition("-")[2]
    size = SIZE.search(path.read_text(errors="replace"))
    several = size is not None and int(size[1]) > 1
    for number, check in planned.items():
        if file_name(check, kind) == path.name and (max(check.sizes) > 1) == several:
            said = plain(output[-LAST_WORDS:].strip()) or "it ended without a word"
            where = f"{check.label}: {check.law.name} in world {check.world.name}"
            return Find(
                Unit(number, check.label, check.law.name, check.world.name, 0, seed, 0),
                kind,
                path.name,
                f"{where}: {said.splitlines()[-1]}",
                f"found by an earlier run, and still there:\n{said}",
                "",
                Failure(f"StillThere_{kind}", said),  # a type of its own: output tells no causes apart
                hung=False,
                is_new=False,
            )
    return None
