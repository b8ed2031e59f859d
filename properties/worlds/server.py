"""The fork server: a process that has imported the modules that ranks need; ranks are forked from it.

Imports no torch itself: the server may start while its caller does.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import context, forkserver, resource_tracker
from pathlib import Path

import verified_losses

PRELOAD = [
    "numpy",
    "torch",
    "torch.distributed",
    "verified_losses.properties.worlds.processes",
    "verified_losses.properties.running",
]
"""Modules that every rank imports, which takes seconds."""
COMPILER = ["torch._dynamo", "torch._dynamo.backends.debugging", "torch._inductor.lowering"]
"""What a rank imports that compiles, whatever the backend, which takes seconds too."""
RANK_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


TORCHRUN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"""What torchrun tells its processes, besides TORCHELASTIC_*: nothing of it is true of a rank of ours."""


def rank_environment() -> dict[str, str]:
    """Return the environment of a rank."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in TORCHRUN and not name.startswith("TORCHELASTIC_")
    }
    return {**own, **RANK_ENVIRONMENT}


def _server_environment() -> dict[str, str]:
    """Return what the server starts with: of the folder that it starts in it imports the suite alone."""
    root, path = Path(verified_losses.__file__).parents[1], os.environ.get("PYTHONPATH", "")
    if root != Path.cwd():
        return {**RANK_ENVIRONMENT, "PYTHONSAFEPATH": "1"}
    places = os.pathsep.join([str(root), *[path] * bool(path)])
    return {**RANK_ENVIRONMENT, "PYTHONSAFEPATH": "1", "PYTHONPATH": places}


def start(compiles: bool = True) -> None:
    """Start the server, unless it runs, and do not wait for it: the first rank does.

    Args:
        compiles: some rank will compile: the server imports the compiler, so that no rank has to.
    """
    with launching(compiles):
        pass


@contextlib.contextmanager
def launching(compiles: bool = True) -> Iterator[context.ForkServerContext]:
    """While processes are started, change the state that they would copy from this one.

    With an empty `__main__` they do not run the caller's script again. Where the fork server itself is
    started, its libraries read the number of threads as they load, as only one thread forks safely, and
    Ctrl-C does not interrupt them: the caller decides.
    """
    chosen = multiprocessing.get_context("forkserver")
    main, changed = sys.modules["__main__"], _server_environment()
    before = {name: os.environ.get(name) for name in changed}
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ.update(changed)
    try:
        chosen.set_forkserver_preload([*PRELOAD, *COMPILER * compiles])
        _ensure_running()
        yield chosen
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _ensure_running() -> None:
    resource_tracker.ensure_running()  # the server asks for it too; starting it lets signals through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
