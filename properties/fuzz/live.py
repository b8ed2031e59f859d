"""What people see of a fuzz run: live on a terminal, else a line now and then."""

import math
import time
from collections import deque
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from ..examples import Example
from ..show.text import as_text, plain
from . import corpus
from .campaign import Campaign
from .lines import Find

LINE_SECONDS = 10.0
"""Between two lines, where there is no terminal."""
RATE_SECONDS = 30.0
"""Over which cases a second are counted."""


class Screen:
    """Shows a run. On a terminal it is a context: inside, the last line is kept up to date.

    Args:
        console: where.
        folder: of the run.
        deadline: what `time.monotonic()` is as its time is over.
    """

    def __init__(self, console: Console, folder: Path, deadline: float = math.inf) -> None:
        self.console, self.folder, self.deadline = console, folder, deadline
        # refreshed by hand: a thread would print into what this one prints
        live = Live(console=console, auto_refresh=False, transient=True)
        self._live = live if console.is_terminal else None
        self._announced: dict[str, str] = {}
        self._last = time.monotonic()
        self._rates: deque[tuple[float, int]] = deque([(self._last, 0)])

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            self._live.stop()

    def found(self, find: Find, known: str) -> None:
        """Print what was found; the second time, its smallest case."""
        if known:
            if find.is_small:
                self._print(f"[yellow]known[/] {escape(find.headline)} ({escape(plain(known))})")
        elif not find.is_new:
            self._print(f"[bold red]still there[/] {escape(find.headline)}")
        elif find.file not in self._announced:
            self._announced[find.file] = find.headline
            self._print(f"[bold red]FALSIFIED[/] {escape(find.headline)}")
        else:
            case = plain(str(Example.from_json(find.example)))
            so_far = "" if find.is_small else " so far"
            self._print(f"  smallest case{so_far}: {escape(case)}")
            if find.headline != self._announced[find.file]:
                self._print(f"  in it: {escape(find.headline)}")
            self._print(f"  run: python {escape(str(self.folder / corpus.FOLDER / find.file))}")

    def said(self, text: str) -> None:
        """Print a line."""
        self._print(f"[yellow]{escape(plain(text))}[/]")

    def tick(self, campaign: Campaign) -> None:
        """Show how far the run is."""
        now = time.monotonic()
        if self._live:
            self._live.update(Text(self.line(campaign, now)), refresh=True)
        elif now >= self._last + LINE_SECONDS:
            self._last = now
            self._print(escape(self.line(campaign, now)))

    def line(self, campaign: Campaign, now: float) -> str:
        """Return how far the run is, in a line."""
        self._rates.append((now, campaign.cases_now))
        while now - self._rates[0][0] > RATE_SECONDS and len(self._rates) > 2:
            self._rates.popleft()
        (since, before), (until, cases) = self._rates[0], self._rates[-1]
        rate = (cases - before) / max(until - since, 1e-9)
        seen, every = campaign.regions()
        parts = [
            f"{_clock(now - campaign.begun)} round {campaign.round + 1}",
            f"{campaign.cases:,} cases, {rate:.1f}/s",
            f"{seen} of {every} regions",
            *[f"{campaign.branches} branches"] * bool(campaign.branches),
            f"error/bound {as_text(campaign.worst)}" if campaign.cases else "",
            f"{len(campaign.finds)} {'find' if len(campaign.finds) == 1 else 'finds'}",
            "" if math.isinf(self.deadline) else f"{_clock(max(0.0, self.deadline - now))} left",
        ]
        return ", ".join(filter(None, parts))

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=not self.console.is_terminal)
        self.console.file.flush()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
