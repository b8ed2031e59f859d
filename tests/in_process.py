"""A pytest plugin, `-p tests.in_process`: ranks run in the test's own process, several of them simulated.

What a tool sees of one process, mutmut say, it then sees of all that the tests call, and nothing waits for
processes to start.
"""

import gc
import importlib

import pytest

from verified_losses.properties.worlds import World, processes, specs
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.single import SingleWorld

SECONDS = 20.0


def _world(size: int, *_: object) -> World:
    return SingleWorld() if size == 1 else SimulatedWorld(size, timeout=SECONDS)


def pytest_configure(config: pytest.Config) -> None:
    """Put worlds of this process in the place of others, before test modules import those."""
    processes.shared_world = _world  # type: ignore[assignment]
    specs.Worlds.isolated = lambda self, inner, spec, patience=1.0: inner  # type: ignore[method-assign]
    specs.Worlds.start = lambda self, spec, patience=1.0: None  # type: ignore[method-assign]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where tests are only collected, which a process does before it forks, load what else they need."""
    if session.config.option.collectonly:
        importlib.import_module("torch.fx.experimental.symbolic_shapes")  # of tensors on the device "meta"
        gc.freeze()  # a fork is not to look through all of this again
