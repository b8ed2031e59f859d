"""Saved counterexamples run again: which of them are fixed, and which fail now and then."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import psutil

from .counterexample import MARK

RUNS = 3
"""How often a file must pass to be fixed."""
TAIL = 4000
"""Bytes of output that are kept of a run."""
REAP_SECONDS = 5.0


@dataclass(frozen=True)
class Replayed:
    """The outcome of one file."""

    file: Path
    state: Literal["fixed", "flaky", "still there", "cannot run"]
    """"flaky" where it failed after it had passed."""
    output: str
    """The end of the last run's."""


def replay(files: Sequence[Path], timeout: float) -> list[Replayed]:
    """Run counterexamples one after another, every run in processes of its own for at most `timeout` seconds.

    A file is run until it fails, and at most `RUNS` times. A file that does not read as a counterexample is
    not run.
    """
    return [_replay(file, timeout) for file in files]


def _replay(file: Path, timeout: float) -> Replayed:
    try:
        with file.open(errors="replace") as text:
            if not text.readline().startswith(MARK):
                return Replayed(file, "cannot run", "not a counterexample")
    except OSError as error:
        return Replayed(file, "cannot run", f"{type(error).__name__}: {error}")
    output = ""
    for passed in range(RUNS):
        status, output = _run([sys.executable, str(file)], timeout)
        if status is None:
            return Replayed(file, "cannot run", f"{output}\nno verdict in {timeout:g} s".lstrip())
        # a signal: the target took the process with it
        if status == 1 or status < 0:
            return Replayed(file, "flaky" if passed else "still there", output)
        if status:
            return Replayed(file, "cannot run", output)
    return Replayed(file, "fixed", output)


def _run(command: list[str], timeout: float) -> tuple[int | None, str]:
    """Return a command's exit status, None where it had none in time, and the end of what it printed."""
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    tail = bytearray()
    # in a thread of its own: endless output must not fill the pipe, the memory or a disk
    reader = threading.Thread(target=_drain, args=(process.stdout, tail), daemon=True)
    reader.start()
    status: int | None = None
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _kill(process)
        reader.join(REAP_SECONDS)
        if not reader.is_alive():
            process.stdout.close()
    return status, bytes(tail).decode(errors="replace").strip()


def _drain(stream: IO[bytes], tail: bytearray) -> None:
    while chunk := os.read(stream.fileno(), 65536):
        tail += chunk
        del tail[:-TAIL]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, ranks in sessions of their own too."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(family, REAP_SECONDS)
    process.wait(REAP_SECONDS)
