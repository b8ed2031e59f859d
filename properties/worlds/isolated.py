"""A world of one process, run in a process of its own: the target cannot harm the caller."""

from collections.abc import Callable
from typing import Any, TypeVar

from .. import devices
from . import Pool, World, WorldError

T = TypeVar("T")


class IsolatedWorld:
    """`inner`, in the one process of `host`. The process outlives an exception, but not a crash or a hang.

    After those, `host` starts another process by itself at the next run. So it does where a run has raised
    and left the device unusable: the error of a kernel is raised by all later calls of its process.

    Args:
        inner: a world that needs no process but the caller's.
        host: a world of one process, which joins nothing.
        device: where the tensors are.
        seconds: how long a run may take; None for as long as `host` lets each.

    Attributes:
        traffic: the volume of the last run, where `inner` counts it.
    """

    def __init__(
        self, inner: World, host: Pool, device: str = devices.CPU, seconds: float | None = None
    ) -> None:
        self.inner = inner
        self.host = host
        self.device = device
        self.seconds = seconds
        self.name, self.size = inner.name, inner.size
        self.traffic: dict[Any, Any] = {}

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Call `function(rank, size, *arguments)` on every rank; see `World.run`.

        Function, arguments and results travel pickled, as in `ProcessWorld`.
        """
        if self.seconds is not None:
            self.host.timeout = self.seconds
        try:
            ((outcome, self.traffic, works),) = self.host.run(
                _run, self.inner, function, arguments, self.device
            )
        except WorldError as error:
            raise WorldError(self.name, error.ranks) from error
        if isinstance(outcome, WorldError):
            if not works:
                self.host.close()
            raise outcome
        return outcome

    def close(self) -> None:
        """Nothing is held but the host, which others share."""


def _run(
    rank: int,
    size: int,
    inner: World,
    function: Callable[..., T],
    arguments: tuple[object, ...],
    device: str,
) -> tuple[list[T] | WorldError, dict[Any, Any], bool]:
    outcome: list[T] | WorldError
    works = True
    try:
        outcome = inner.run(function, *arguments)
    except WorldError as error:
        outcome, works = error, devices.works(device)
    return outcome, getattr(inner, "traffic", {}), works
