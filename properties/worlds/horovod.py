"""A world of real Horovod ranks over gloo, under the same dispatcher as the other processes."""

import contextlib
import functools
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import devices
from .processes import ProcessWorld

LOCALHOST = "127.0.0.1"
CYCLE_MILLISECONDS = "5"
"""How often a rank's thread looks for collectives, unless HOROVOD_CYCLE_TIME says: at Horovod's own 1 ms each
takes a quarter of a core at rest."""


def horovod_missing() -> str | None:
    """Return why there can be no Horovod world, if so."""
    if importlib.util.find_spec("horovod") is None:
        return "Horovod is not installed; `make horovod` of the repository builds it"
    return None


class HorovodWorld(ProcessWorld):
    """`size` real processes joined by `hvd.init()`; torch.distributed is not initialised in them.

    Over gloo, Horovod's own stall check sees nothing, so a rank that waits for ever is for the dispatcher.

    Args: as for `ProcessWorld`, but for `join`.

    Raises:
        ImportError: Horovod is not installed.
        ValueError: as `ProcessWorld`.
    """

    kind = "horovod"

    def __init__(
        self,
        size: int,
        timeout: float = 60.0,
        start_timeout: float = 120.0,
        grace: float = 3.0,
        prepare: Callable[[], object] | None = None,
        device: str = devices.CPU,
    ) -> None:
        super().__init__(size, timeout, start_timeout, grace, prepare=prepare, device=device)
        if missing := horovod_missing():
            raise ImportError(missing)

    def _start(self) -> None:
        with _rendezvous(self.size) as port:
            self.join = self._placed(functools.partial(_join, port=port))
            super()._start()


@contextlib.contextmanager
def _rendezvous(size: int) -> Iterator[int]:
    """Serve, as Horovod's launcher does, the store through which ranks find one another; yield its port."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    with RendezvousHTTPServer((LOCALHOST, 0), RendezvousHandler, verbose=0) as server:
        server.daemon_threads = True
        server.init(get_host_assignments([HostInfo("localhost", size)], size))
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def _join(rank: int, size: int, folder: Path, collective_timeout: float, port: int) -> None:
    limit = max(1, math.floor(collective_timeout))
    os.environ.update(
        {
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_CROSS_RANK": "0",
            "HOROVOD_CROSS_SIZE": "1",
            "HOROVOD_CYCLE_TIME": os.environ.get("HOROVOD_CYCLE_TIME", CYCLE_MILLISECONDS),
            "HOROVOD_GLOO_IFACE": "lo",
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": LOCALHOST,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(limit),
            "HOROVOD_HOSTNAME": "localhost",
            "HOROVOD_LOCAL_RANK": str(rank),
            "HOROVOD_LOCAL_SIZE": str(size),
            "HOROVOD_RANK": str(rank),
            "HOROVOD_SIZE": str(size),
            "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(limit),
        }
    )
    import horovod.torch as hvd

    hvd.init()
