"""Text: made fit to be read, and written to files."""

import os
import re
from pathlib import Path

HERE = str(Path(__file__).parents[1])
LEADING = (
    "torch/nn/modules/module.py",
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
)
"""Files whose frames lead from here to a target, besides our own."""
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""The characters shown in place of control characters."""
REASON_LINES = 12
"""Of a reason on the terminal; the certificate has all."""
LINE = 600
"""Characters of a line of a reason on the terminal."""


def plain(text: str) -> str:
    """Return a target's text without control characters and without characters that cannot be encoded."""
    return text.encode(errors="backslashreplace").decode().translate(PICTURES)


def as_text(ratio: float) -> str:
    """Return an error over its bound as people read it."""
    if not ratio:
        return "exact"
    return f"{ratio:.3f}" if ratio >= 0.001 else f"{ratio:.0e}"


def shortened(reason: str) -> str:
    """Return a reason without the frames that lead from here to the target, and without a long middle."""
    lines = [
        line if len(line) <= LINE else f"{line[:LINE]} ... {len(line) - LINE} characters ..."
        for line in own(reason).splitlines()
    ]
    if len(lines) > REASON_LINES:
        half = REASON_LINES // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} lines ..."]
    return "\n".join(lines)


def own(reason: str) -> str:
    """Return a reason without the frames of a traceback that lead from here to the target."""
    lines: list[str] = []
    ours = False
    for line in reason.splitlines():
        if frame := re.match(r' +File "(.+?)", line \d+', line):
            ours = frame[1].startswith(HERE) or frame[1].endswith(LEADING)
        elif not line.startswith("    "):
            ours = False
        if not ours and not re.fullmatch(r"[ ~^]+", line):
            lines.append(line)
    return "\n".join(lines)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file: all of it, or nothing.

    Raises:
        OSError: it cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
