"""A world of one process, run in a process of its own: the target cannot harm the caller."""

from collections.abc import Callable
from typing import Any, TypeVar

from . import World, WorldError

T = TypeVar("T")


class IsolatedWorld:
    """`inner`, in the one process of `host`. The process outlives an exception, but not a crash or a hang.

    After those, `host` starts another process by itself at the next run.

    Args:
        inner: a world that needs no process but the caller's.
        host: a world of one process, which joins nothing.

    Attributes:
        traffic: the volume of the last run, where `inner` counts it.
    """

    def __init__(self, inner: World, host: World) -> None:
        self.inner = inner
        self.host = host
        self.name, self.size = inner.name, inner.size
        self.traffic: dict[Any, Any] = {}

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Call `function(rank, size, *arguments)` on every rank; see `World.run`.

        Function, arguments and results travel pickled, as in `ProcessWorld`.
        """
        try:
            ((outcome, self.traffic),) = self.host.run(_run, self.inner, function, arguments)
        except WorldError as error:
            raise WorldError(self.name, error.ranks) from error
        if isinstance(outcome, WorldError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Nothing is held but the host, which others share."""


def _run(
    rank: int, size: int, inner: World, function: Callable[..., T], arguments: tuple[object, ...]
) -> tuple[list[T] | WorldError, dict[Any, Any]]:
    outcome: list[T] | WorldError
    try:
        outcome = inner.run(function, *arguments)
    except WorldError as error:
        outcome = error
    return outcome, getattr(inner, "traffic", {})
