"""Injects a fault into a fresh world of processes, and looks at what is left behind."""

import contextlib
import functools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil

from ..worlds import RankState, WorldError, server
from ..worlds.processes import ProcessWorld
from . import Fault, Result
from .inject import Note, join_gloo_within, meet, read
from .judge import judge

GROUP_SECONDS = 2.0
"""How long a collective may take."""
HANG_SECONDS = 15.0
"""How long a run may take, which then counts as hung: several times as long as any collective."""
AGAIN = 3.0
"""How much more time there is for both at a second try."""
START_SECONDS = 120.0
LEFT_SECONDS = 2.0
"""How long processes that were killed may take to end."""
POLL_SECONDS = 0.02


def inject(fault: Fault) -> Result:
    """Inject a fault. What hangs, or does not run, is tried again with more time: a machine may be busy."""
    result = _inject(fault)
    if result.not_run or result.verdict == "hang":
        result = _inject(fault, AGAIN)
    return result


def _inject(fault: Fault, patience: float = 1.0) -> Result:
    begun = time.monotonic()
    server.start(compiles=False)  # it has a folder for as long as it runs
    with tempfile.TemporaryDirectory() as notes_folder, _own_folder() as place:
        folder = Path(notes_folder)
        join = functools.partial(join_gloo_within, seconds=patience * GROUP_SECONDS)
        # the others get all of the time once a rank has failed: they may have to wait for a collective's end
        limit = patience * HANG_SECONDS
        world = ProcessWorld(fault.world_size, limit, START_SECONDS, grace=limit, join=join)
        try:
            with _ended(fault, folder):
                world.run(meet, fault, folder)
            states = [RankState(rank, "returned", "") for rank in range(fault.world_size)]
        except WorldError as error:
            states = error.ranks
        finally:
            world.close()
        notes = [read(folder, rank) for rank in range(fault.world_size)]
        seconds = time.monotonic() - begun
        found = [note for note in notes if note]
        if len(found) < len(notes) or not all(note.is_ready for note in found):
            failed = [state for state in states if state.state != "returned"]
            # a process that died tells more than those that lost it
            first = min(failed, key=lambda state: state.state == "raised", default=None)
            why = first.said[:300] if first else "a rank wrote no note"
            return Result(fault, not_run=f"without the fault too, {why}", seconds=seconds)
        left = _left_in_the_end([note.process for note in found], place)
        return Result(
            fault, judge(fault, found, states), found[fault.rank].collectives, left, seconds=seconds
        )


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Give this process a folder of its own for temporary files."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, mock.patch("tempfile.tempdir", folder):
        yield Path(folder)


@contextlib.contextmanager
def _ended(fault: Fault, folder: Path) -> Iterator[None]:
    """Kill a stopped rank once every other rank has got something: the world waits for it until then."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            notes = [read(folder, rank) for rank in range(fault.world_size)]
            if all(_has_ended(note) for rank, note in enumerate(notes) if rank != fault.rank):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(notes[fault.rank].process, 9)  # type: ignore[union-attr]
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if fault.kind == "stopped":
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()


def _has_ended(note: Note | None) -> bool:
    return note is not None and (bool(note.raised) or note.backward is not None)


def _left_in_the_end(ranks: list[int], folder: Path) -> tuple[str, ...]:
    deadline = time.monotonic() + LEFT_SECONDS
    while (left := leftovers(ranks, folder)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def leftovers(ranks: list[int], folder: Path) -> tuple[str, ...]:
    """Return what a world has left behind: processes, ports on which they listen, temporary files.

    Args:
        ranks: the processes that the ranks were, each the leader of a session.
        folder: in which temporary files were made.
    """
    left = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(pid) not in ranks:
                continue
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"process {pid}, {process.name()}, {process.status()}")
                ports = [one.laddr.port for one in process.net_connections() if one.status == "LISTEN"]
                left += [f"port {port} of process {pid}" for port in ports]
    left += [f"file {file.name}" for file in sorted(folder.iterdir())]
    return tuple(left)
