"""`log.ndjson`: one JSON line after another, each written whole or not at all. Imports no torch."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from ..verify.arguments import Unusable
from .lines import Line, decode, encode


class Busy(Exception):
    """Another process writes the log."""


class Log:
    """A log that is only ever appended to.

    A line that cannot be written, as on a full disk, is kept, and written with the next one.

    Args:
        path: of the file, which is made where there is none.

    Attributes:
        lines: what it held as it was opened. A torn last line, which a kill may leave, is cut off.
        trouble: why lines that were appended are not in the file; empty if all are.

    Raises:
        Busy: another process has it open.
        ValueError: a line is not one of a log; the message gives its number.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble = ""
        self._pending = bytearray()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(str(path)) from error
            self.lines, self._size = read(path)
            os.ftruncate(self._file, self._size)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, line: Line) -> None:
        """Write a line, after those that could not be written before."""
        self._pending += encode(line) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Try again to write what could not be written."""
        self.trouble = ""
        written = 0
        try:
            while written < len(self._pending):
                written += os.pwrite(self._file, self._pending[written:], self._size + written)
        except OSError as error:
            self.trouble = f"{self.path}: {error.strerror or error}"
            written = self._pending.rfind(b"\n", 0, written) + 1  # the whole lines among it
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size + written)
        self._size += written
        del self._pending[:written]

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(path: Path) -> tuple[list[Line], int]:
    """Return the whole lines of a log, and how many bytes they take.

    Raises:
        ValueError: a line is not one of a log; the message gives its number.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    lines = []
    for number, text in enumerate(content[:whole].split(b"\n")[:-1], 1):
        try:
            lines.append(decode(text))
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}: line {number}: {error}") from error
    return lines, whole


def compare(prefix: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a run goes on as it began.

    Args:
        prefix: said before the name of what differs: an option's "--".
        before: values by name, of the run that is gone on with.
        now: of this one.

    Raises:
        Unusable: a value differs.
    """
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            what = f"{prefix}{name.replace('_', '-') if prefix == '--' else name}"
            both = f"the run in the folder has {before.get(name)!r}, this one {now.get(name)!r}"
            raise Unusable("resume", f"{what} differs: {both}")
