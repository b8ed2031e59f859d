"""The world of one rank: the calling process itself, without torch.distributed."""

import traceback
from collections.abc import Callable
from typing import TypeVar

from . import RankState, WorldError

T = TypeVar("T")


class SingleWorld:
    """One rank, in the caller's process."""

    name = "single"
    size = 1

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Call `function(0, 1, *arguments)`; see `World.run`."""
        try:
            return [function(0, 1, *arguments)]
        except Exception as error:
            raise WorldError(self.name, [RankState(0, "raised", traceback.format_exc())]) from error

    def close(self) -> None:
        """Nothing is held."""
