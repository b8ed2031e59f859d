"""Which checks tests ask of each right variant, in turn every law; `make defects` asks each variant all."""

from collections.abc import Iterable

from verified_losses.properties.laws import laws
from verified_losses.properties.verify.certifier import Check

from .index import (
    COPIED,
    EVAL,
    FREEZING,
    FUNC,
    GROUP,
    LIVE,
    MAPPED,
    NUMBERS,
    REPLICATED,
    SAME,
    SUBCLASSED,
    TO_BFLOAT16,
    TO_FLOAT16,
    TRACE,
)

BY_TURNS = (
    *(NUMBERS, TO_BFLOAT16, TO_FLOAT16, FREEZING, GROUP, COPIED, EVAL, LIVE, SAME, TRACE),
    *(FUNC, MAPPED, SUBCLASSED, REPLICATED),
)
"""A right variant is asked one of them."""
COMPILING = 12
"""One right variant of so many is compiled: that takes seconds."""


def asked(turn: int) -> list[str]:
    """Return the laws that the right variant of a number is asked."""
    own, compiled = BY_TURNS[turn % len(BY_TURNS)], turn % COMPILING == 0
    names = [law.name for law in laws() if compiled or not law.name.startswith("compiled")]
    return [name for name in names if name == own or name not in BY_TURNS]


def in_turn(turn: int, planned: Iterable[Check]) -> list[Check]:
    """Return, for each law that the right variant of a number is asked, the check in one of its worlds."""
    names = asked(turn)
    chosen: dict[str, list[Check]] = {}
    for check in planned:
        if check.law.name in names:
            chosen.setdefault(check.law.name, []).append(check)
    first = turn + turn // len(BY_TURNS)  # else one of BY_TURNS would be asked in the same world each time
    return [checks[(first + number) % len(checks)] for number, checks in enumerate(chosen.values())]
