"""The branches of a target that a process takes. Imports nothing but the standard library.

`sys.monitoring` tells of them, which Python has from 3.12 on.
"""

import contextlib
import os
import sys
from types import CodeType
from typing import Any

NAME = "verified-losses"
TOOL = 4
"""The number of the tool, of six: debuggers, coverage and profilers have others."""
SUITE = ("oracles", "properties")
MISSING = "branches of the target are not seen: sys.monitoring is in Python from 3.12 on"

_places: tuple[str, ...] = ()
"""What the names of the target's files begin with."""
_taken: dict[str, None] = {}
_directions: dict[tuple[CodeType, int], set[int]] = {}


def available() -> bool:
    """Whether branches can be seen."""
    return hasattr(sys, "monitoring")


def watch(rank: int, world_size: int, place: str) -> None:
    """From now on note the branches that a target takes.

    What is noted does not depend on what was noted before. Where another tool holds the number, or Python has
    no monitoring, nothing is noted.

    Args:
        rank: not used, as this may be run on every rank of a world.
        world_size: not used either.
        place: the target's file, which is watched, or its module: then all files of that module's folder are.
    """
    global _places
    _places = _files(place)
    _taken.clear()
    _directions.clear()
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is None:
        return
    if monitoring.get_tool(TOOL) is None:
        monitoring.use_tool_id(TOOL, NAME)
        for event in _events(monitoring):
            monitoring.register_callback(TOOL, event, _note)
    if monitoring.get_tool(TOOL) == NAME:
        monitoring.set_events(TOOL, sum(_events(monitoring)))
        monitoring.restart_events()


def taken(rank: int, world_size: int) -> list[str]:
    """Return the branches that were noted, and note no more."""
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is not None and monitoring.get_tool(TOOL) == NAME:
        monitoring.set_events(TOOL, 0)
    with contextlib.suppress(RuntimeError):  # a thread that the target left running adds one meanwhile
        return list(_taken)
    return []


def _files(place: str) -> tuple[str, ...]:
    """Return what the names of the target's files begin with."""
    if place.endswith(".py"):
        return (os.path.abspath(place),)
    file = getattr(sys.modules.get(place), "__file__", None)
    if not file:
        return ()
    folder = os.path.dirname(file)
    # a folder beside the losses holds this suite
    return tuple(os.path.join(folder, name) for name in os.listdir(folder) if name not in SUITE)


def _events(monitoring: Any) -> list[int]:
    """Return the events of a branch: from Python 3.14 on each direction is one."""
    known = monitoring.events
    if hasattr(known, "BRANCH_LEFT"):
        return [known.BRANCH_LEFT, known.BRANCH_RIGHT]
    return [known.BRANCH]


def _note(code: CodeType, instruction: int, destination: int) -> Any:
    disable: Any = vars(sys)["monitoring"].DISABLE
    if not code.co_filename.startswith(_places):
        return disable
    _taken[f"{code.co_qualname}:{instruction}>{destination}"] = None
    directions = _directions.setdefault((code, instruction), set())
    directions.add(destination)
    # before Python 3.14 both directions of a branch are switched off at once
    return disable if len(directions) > 1 else None
