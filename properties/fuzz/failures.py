"""Exceptions as they stand in the log, and back: what fingerprints, groups and hints are made of is kept."""

import math
import traceback
from dataclasses import fields
from typing import Any

from ..laws import Falsified, Place
from ..worlds import RankState, WorldError
from ..worlds.simulated import SimulationError
from .lines import Failure

DIGITS = ("expected", "observed")
"""Fields of a place that may hold infinities, which JSON has not."""


def recorded(error: Exception) -> Failure:
    """Return what the log keeps of an exception."""
    name = type(error).__name__
    if isinstance(error, Falsified):
        return Failure(name, str(error), None if error.place is None else _packed(error.place))
    if isinstance(error, WorldError):
        ranks: list[tuple[int, str, str]] = [(state.rank, state.state, state.detail) for state in error.ranks]
        if isinstance(error, SimulationError):
            return Failure(name, error.message, world=error.world, ranks=ranks, finding=error.finding)
        return Failure(name, "", world=error.world, ranks=ranks)
    return Failure(name, "".join(traceback.format_exception(error)))


def restored(failure: Failure) -> Exception:
    """Return an exception that has the fingerprint of the one that was recorded."""
    ranks = [RankState(rank, state, detail) for rank, state, detail in failure.ranks]  # type: ignore[arg-type]
    if failure.type == Falsified.__name__:
        return Falsified(failure.message, None if failure.place is None else _unpacked(failure.place))
    if failure.finding:
        return SimulationError(failure.world, ranks, failure.finding, failure.message, [])  # type: ignore[arg-type]
    if ranks:
        return WorldError(failure.world, ranks)
    return type(failure.type, (Exception,), {})(failure.message)  # type: ignore[no-any-return]


def _packed(place: Place) -> dict[str, Any]:
    kept = {one.name: getattr(place, one.name) for one in fields(place) if one.name != "along"}
    return kept | {name: _packed_number(kept[name]) for name in DIGITS}


def _unpacked(kept: dict[str, Any]) -> Place:
    numbers = {name: _unpacked_number(kept[name]) for name in DIGITS}
    return Place(**{**kept, **numbers, "index": tuple(kept["index"])})


def _packed_number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value if value is None or isinstance(value, str | int | float | list) else str(value)


def _unpacked_number(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value
