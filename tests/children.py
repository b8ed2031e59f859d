"""Commands that run while a test does something to them."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

LIMIT_SECONDS = 240


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command which SIGINT interrupts; kill it and all that it started at the end.

    pytest itself may ignore SIGINT, as `nohup pytest &` does, which the command would inherit.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_with_descendants(psutil.Process(process.pid))


def refused_early(command: str, wrong: Sequence[Sequence[str]]) -> list[str]:
    """Return what a process prints that is given wrong arguments one after another.

    It is a line each with the exit status, and one with the costly modules that it has imported and the
    processes that it has started.
    """
    script = f"""
import sys, psutil
from verified_losses.properties.__main__ import main
for arguments in {[list(one) for one in wrong]}:
    sys.argv = ["verified-losses", {command!r}, *arguments]
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
print(*sys.modules.keys() & {{"torch", "numpy", "hypothesis"}}, *psutil.Process().children())
"""
    asked = [sys.executable, "-c", script]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    return [*done.stdout.splitlines(), *([done.stderr] if done.returncode else [])]


def kill_with_descendants(process: psutil.Process) -> None:
    """Kill a process and what it started, in sessions of their own too."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, LIMIT_SECONDS)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something is true; fail if the process ends before it, or it takes too long."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process.poll() is None, "the process ended before"
        assert time.monotonic() < deadline, f"not within {LIMIT_SECONDS} s"
        time.sleep(0.05)
