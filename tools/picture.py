"""Draws a finding as the terminal shows it: `make picture` writes docs/finding.svg.

It certifies the loss that the tutorial begins with, and keeps what is printed.
"""

import functools
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.terminal_theme import DIMMED_MONOKAI

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "finding.svg"
COMMAND = ["certify", "losses.py:clip_loss", "--as", "clip", "--world", "1,sim:2-4", "--only", "terms*"]
WIDTH = 100


def drawn() -> str:
    """Return the picture."""
    sys.path.insert(0, str(ROOT))
    from verified_losses.properties.ask import cli, run

    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        emoji=False,
    )
    shown = " ".join(f"'{part}'" if "*" in part else part for part in COMMAND)
    console.print(f"[bold]$ verified-losses {shown}[/]\n", highlight=False, soft_wrap=True)
    run.printer = lambda: console
    run.Progress = functools.partial(Progress, disable=True)  # type: ignore[misc, assignment]
    run.not_verified = lambda planned: []  # type: ignore[assignment]  # the machine's, not the loss's
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("losses.py").write_text((ROOT / "docs" / "snippets" / "first.py").read_text())
        try:
            cli.main(COMMAND)
        except SystemExit as ended:
            if ended.code != 1:
                raise RuntimeError(f"expected a finding, exit status 1, got {ended.code}") from ended
        os.chdir(ROOT)
    picture = console.export_svg(title="verified-losses", theme=DIMMED_MONOKAI, unique_id="finding")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # no requests to others


if __name__ == "__main__":
    FILE.write_text(drawn())
    print(FILE.relative_to(ROOT))
