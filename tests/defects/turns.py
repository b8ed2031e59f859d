"""Which laws tests ask of each right variant, where, and in turn every law; `make defects` asks each all."""

from verified_losses.properties.laws import laws

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


def world(turn: int) -> str:
    """Return the world in which the right variant of a number is asked."""
    return ("1", "sim:2-8")[turn // len(BY_TURNS) % 2]


def asked(turn: int) -> list[str]:
    """Return the laws that the right variant of a number is asked."""
    own, compiled = BY_TURNS[turn % len(BY_TURNS)], turn % COMPILING == 0
    names = [law.name for law in laws() if compiled or not law.name.startswith("compiled")]
    return [name for name in names if name == own or name not in BY_TURNS]
