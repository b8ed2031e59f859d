"""Processes that run units, each in worlds of its own."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, parent_process, process
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil

from ..devices import CPU
from ..verify.arguments import Subjects
from ..verify.plan import plan
from ..worlds import server
from .lines import Done, Find, Unit

REAP_SECONDS = 5.0
UNIT_SECONDS = 1800.0
"""How long one unit may take: then its process is ended. Calls of the target are cut off much earlier."""
AFTER_DEADLINE_SECONDS = 1.5
"""How long after the deadline a process may take to say what its cut unit came to."""


class Job(msgspec.Struct, frozen=True):
    """What a process is asked to do."""

    unit: Unit
    known: list[str]
    unmet: list[str]
    deadline: float


class Told(msgspec.Struct, frozen=True):
    """What a process says of a unit: a find, with its counterexample once that is small, or its end."""

    find: Find | None = None
    code: str = ""
    done: Done | None = None
    error: str = ""
    """Why the process cannot go on: a traceback."""
    said: str = ""
    """Something people should know."""


class Lost(msgspec.Struct, frozen=True):
    """A unit whose process ended, or had to be ended, before it was done."""

    unit: Unit
    why: str


Event = Told | Lost


@dataclass(frozen=True)
class Scope:
    """What every process plans for itself: checks do not travel."""

    subjects: Subjects
    world: str
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    places: tuple[str, ...] = (CPU,)
    """The devices."""

    def plan(self) -> list[Any]:
        """Return the checks, in the order in which units number them."""
        return plan(self.subjects, self.world, only=self.only, skip=self.skip, places=self.places)


class Workers(Protocol):
    """Run units, several at a time."""

    def idle(self) -> "list[int]":
        """Return the numbers of those that have nothing to do."""
        ...

    def start(self, number: int, job: Job) -> None:
        """Let one of them run a unit."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Return what has come of units, after at most so many seconds."""
        ...

    def close(self) -> None:
        """End them. Closing twice is harmless."""
        ...


class Processes:
    """Workers that are processes, which end with this one however it ends.

    Args:
        count: how many.
        scope: what they plan.
        folder: where counterexamples will lie.
        database: where failing cases are kept, to be tried first.
    """

    def __init__(self, count: int, scope: Scope, folder: Path, database: str | None = None) -> None:
        self._scope, self._folder, self._database = scope, folder, database
        self._temporary = tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True)
        self._workers: list[_Worker | None] = [None] * count
        self._jobs: dict[int, tuple[Job, float]] = {}

    def idle(self) -> list[int]:
        """Return the numbers of those that have nothing to do."""
        return [number for number in range(len(self._workers)) if number not in self._jobs]

    def start(self, number: int, job: Job) -> None:
        """Let one of them run a unit; its process starts with its first."""
        worker = self._workers[number]
        if worker is None:
            worker = self._workers[number] = _start(
                self._scope, self._folder, self._database, self._temporary.name
            )
        limit = min(time.monotonic() + UNIT_SECONDS, job.deadline + AFTER_DEADLINE_SECONDS)
        self._jobs[number] = job, limit
        with contextlib.suppress(OSError):  # it is dead, and found so below
            worker.pipe.send_bytes(msgspec.json.encode(job))

    def wait(self, seconds: float) -> list[Event]:
        """Return what has come of units, after at most so many seconds."""
        busy = {
            number: worker for number, worker in enumerate(self._workers) if worker and number in self._jobs
        }
        limits = [self._jobs[number][1] for number in busy]
        until = min([time.monotonic() + seconds, *limits])
        sources: list[Any] = [
            one for worker in busy.values() for one in (worker.pipe, worker.process.sentinel)
        ]
        ready = connection.wait(sources, max(0.0, until - time.monotonic()))
        events: list[Event] = []
        for number, worker in busy.items():
            if worker.pipe in ready:
                events += self._hear(number, worker)
            elif worker.process.sentinel in ready:
                worker.process.join(REAP_SECONDS)
                events += self._lose(number, f"its process ended with status {worker.process.exitcode}")
            elif time.monotonic() >= self._jobs[number][1]:
                events += self._lose(number, "it was not done in time")
        return events

    def close(self) -> None:
        """End them. Closing twice is harmless."""
        for worker in self._workers:
            if worker:
                _kill(worker.process)
        for number, worker in enumerate(self._workers):
            if worker:
                worker.process.join(REAP_SECONDS)
                worker.pipe.close()
                self._workers[number] = None
        self._temporary.cleanup()  # worlds of processes that are killed leave theirs in it

    def _hear(self, number: int, worker: "_Worker") -> list[Event]:
        try:
            told = msgspec.json.decode(worker.pipe.recv_bytes(), type=Told)
        except (EOFError, OSError):
            worker.process.join(REAP_SECONDS)
            return self._lose(number, f"its process ended with status {worker.process.exitcode}")
        if told.error:
            return self._lose(number, told.error)
        if told.done:
            del self._jobs[number]
        return [told]

    def _lose(self, number: int, why: str) -> list[Event]:
        """Give up a unit, and its process: the next unit gets another."""
        job, _ = self._jobs.pop(number)
        worker = self._workers[number]
        assert worker is not None
        self._workers[number] = None
        _kill(worker.process)
        worker.process.join(REAP_SECONDS)
        worker.pipe.close()
        return [Lost(job.unit, why)]


@dataclass(frozen=True)
class _Worker:
    process: process.BaseProcess
    pipe: connection.Connection


def _start(scope: Scope, folder: Path, database: str | None, temporary: str) -> _Worker:
    here = server.rank_environment(), list(sys.path)
    with server.launching() as context:
        ours, theirs = context.Pipe()
        # not a daemon: those may start no processes of their own, which ranks are
        child = context.Process(
            target=_work, args=(theirs, scope, folder, database, temporary, *here), daemon=False
        )
        child.start()
        theirs.close()
    return _Worker(child, ours)


def _kill(worker: process.BaseProcess) -> None:
    """Kill a process and its fork server, which may be importing torch; its ranks end by themselves."""
    helpers: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        helpers = psutil.Process(worker.pid).children()
    worker.kill()
    for helper in helpers:
        with contextlib.suppress(psutil.Error):
            helper.kill()


def _work(
    pipe: connection.Connection,
    scope: Scope,
    folder: Path,
    database: str | None,
    temporary: str,
    environment: dict[str, str],
    path: Sequence[str],
) -> None:
    """Run units until the one who asks is gone."""
    tempfile.tempdir = temporary
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # the fork server of a process that is ended may live some seconds longer: it must hold no one's pipe open
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path

    lock = threading.Lock()  # a database is written, and fails, in a thread of its own

    def send(told: Told) -> None:
        with lock:
            pipe.send_bytes(msgspec.json.encode(told))

    try:
        _run_units(pipe, scope, folder, database, send)
    except Exception:
        send(Told(error=traceback.format_exc()))


def _run_units(
    pipe: connection.Connection,
    scope: Scope,
    folder: Path,
    database: str | None,
    send: Callable[[Told], None],
) -> None:
    import torch

    from ..verify.database import of_check, open_database
    from .unit import run

    torch.set_num_threads(1)
    checks = scope.plan()
    kept = database and open_database(database, lambda trouble: send(Told(said=trouble)))
    while True:
        job = msgspec.json.decode(pipe.recv_bytes(), type=Job)
        check = checks[job.unit.check]

        def tell(find: Find, code: str) -> None:
            send(Told(find=find, code=code))

        own = of_check(kept, check) if kept else None
        send(Told(done=run(job.unit, check, job.known, job.unmet, job.deadline, folder, tell, own)))


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    os.read(parent.sentinel, 1)  # nothing is ever written: this returns when the parent is gone
    os._exit(1)
