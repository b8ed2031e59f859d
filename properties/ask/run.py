"""A run of `verified-losses certify`: its findings, its output and its exit status."""

import contextlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from ..laws.objects import OWNS_NOTHING, STATES_NOTHING
from ..show import certificate as records
from ..show import junit as junits
from ..show import terminal
from ..show.console import Console
from ..show.defects import AnyFinding, Defect, explain
from ..show.drawn import Drawn
from ..show.forms import described
from ..show.html import read_codes, render
from ..show.text import plain, write_whole
from ..standalone.acts import NO_MODES
from ..step.target import Trainer
from ..subjects import SHIPPED
from ..verify.arguments import Unusable
from ..verify.certifier import Check, Databases
from ..verify.database import of_check, open_database
from ..verify.known import Known
from ..verify.plan import left_out, not_verified, own_checks
from ..verify.shards import Shard
from ..worlds.specs import RUN_SECONDS
from . import FALSIFIED, HOLDS, INTERRUPTED, NOT_RUN
from .plans import AnyCheck, Targets, Verifier, divided, left

SAVE_SECONDS = 30.0
"""How often what was done so far is written."""
PATIENCE = 5.0
"""Seconds after which the output says that a first call is waited for."""
WIDTH = 100
"""Columns of output that goes into a file or a pipe."""
LOGGED = 60.0
"""Seconds after which such output says again how far a run is."""


@dataclass
class Run:
    """The checks of a run, and their findings so far.

    Attributes:
        own: those of its shard, which are all where it is whole.
    """

    subjects: Targets
    planned: Sequence[AnyCheck]
    asked: records.Asked
    known: Known
    findings: list[AnyFinding] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)
    interrupted: bool = False
    shard: Shard = field(default_factory=Shard)
    drawn: dict[str, Drawn] = field(default_factory=dict)
    """By name of the loss, where the findings do not hold all cases."""
    unasked: Sequence[str] = ()
    """What no check of a training step looks at."""

    def __post_init__(self) -> None:
        self.own = own_checks(self.planned, self.shard)
        labels = {check.label for check in self.planned}
        of_losses = [check for check in self.planned if isinstance(check, Check)]
        self.not_verified += not_verified(of_losses) if of_losses else []
        self.not_verified += self.unasked
        absent = [label for label in self.subjects if label not in labels]
        self.not_verified += [f"{label}: not in these worlds" for label in absent]
        self._shared = len(self.not_verified)  # by all shards

    @property
    def record(self) -> records.Certificate | records.Certificates:
        """The certificate."""
        labels = {check.label for check in self.planned}
        return records.together(
            [
                records.certificate(
                    subject,
                    contract,
                    [finding for finding in self.findings if finding.loss == label],
                    self.defects,
                    self.asked,
                    self.known,
                    self.not_verified,
                    complete=self.complete,
                    shard=records.part(
                        label,
                        subject,
                        self.shard,
                        self.planned,
                        self.findings,
                        self.not_verified[self._shared :],
                    ),
                    drawn=self.drawn.get(label),
                )
                for label, (contract, subject) in self.subjects.items()
                if label in labels
            ]
        )

    @property
    def complete(self) -> bool:
        """Whether every check of its shard has come to a finding."""
        return len({finding.key for finding in self.findings}) == len(self.own)

    @property
    def falsified(self) -> list[AnyFinding]:
        """The findings that are not accepted."""
        return [one for one in self.findings if one.verdict == "falsified" and not self.known.reason(one)]


def printer() -> Console:
    """Return the console."""
    console = Console(emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


def say(console: Console, line: str, markup: str = "") -> None:
    """Print a line: broken between words on a terminal, in one piece elsewhere, where it is searched for."""
    console.print(f"{markup}{escape(line)}", highlight=False, soft_wrap=not console.is_terminal)


class Log:
    """Says now and then how far a run is, where no line of progress can be seen."""

    def __init__(self, console: Console, total: int, what: str) -> None:
        self._console, self._total, self._what = console, total, what
        self._begun = self._said = time.monotonic()

    def reached(self, done: int) -> None:
        """Print how much is done, if that was last printed `LOGGED` seconds ago."""
        now = time.monotonic()
        if self._console.is_terminal or now - self._said < LOGGED:
            return
        self._said = now
        minutes = (now - self._begun) / 60
        say(self._console, f"{done} of {self._total} {self._what} in {minutes:.0f} min")


def verify(
    run: Run,
    console: Console,
    counterexamples: Path,
    deadline: float = math.inf,
    fail_fast: bool = False,
    save: Callable[[], None] = lambda: None,
    database: str | None = None,
) -> None:
    """Run the checks, and print each finding as its first case fails.

    Args:
        run: the checks.
        console: where to print.
        counterexamples: where to write the smallest case of each defect.
        deadline: what `time.monotonic()` is when no time is left.
        fail_fast: stop at the first finding that is not known.
        save: called after each check.
        database: where failing cases are kept, to be tried first.
    """
    if not console.is_terminal:
        label, *others = dict.fromkeys(check.label for check in run.planned)
        whom = f"{1 + len(others)} losses" if others else escape(label)
        checks, most = counted(len(run.own), "check"), counted(run.asked.max_examples, "case")
        if run.shard.count > 1:
            checks = f"shard {run.shard}, {len(run.own)} of {counted(len(run.planned), 'check')}"
        what = f"{checks}, up to {most} each, seed {run.asked.seed}"
        console.print(f"verifying {whom}: {what}", highlight=False)
    for label, (contract, subject) in run.subjects.items():
        lines = subject.described if isinstance(subject, Trainer) else described(contract, subject)
        for line in lines if label not in SHIPPED else []:
            say(console, plain(f"{label}: {line}"))
    losses, _ = divided(run.subjects)
    for line in terminal.loaded(subject for _, subject in losses.values()):
        say(console, plain(line))
    torch.set_num_threads(1)
    announced: dict[tuple[str, str, str], AnyFinding] = {}

    def announce(finding: AnyFinding) -> None:
        if finding.key not in announced and not run.known.reason(finding):
            announced[finding.key] = finding
            say(console, terminal.headline(finding), "[bold red]FALSIFIED[/] ")

    def note(trouble: str) -> None:
        say(console, plain(trouble), "[yellow]note[/] ")

    with Progress(*columns(console.width), console=console, transient=True, expand=True) as progress:
        task = progress.add_task("", total=len(run.own))
        asked, kept = run.asked, databases(database, note)
        verifier = Verifier(asked.max_examples, asked.seed, deadline, announce, kept)
        findings, log = verifier.verify_all(run.own), Log(console, len(run.own), "checks")
        try:
            for check in run.own:
                what = f"{check.label}: {check.law.name} ({check.world.name})"
                progress.update(task, description=what)
                finding = next(findings)
                run.findings.append(finding)
                progress.advance(task)
                log.reached(len(run.findings))
                save()
                if finding.verdict == "falsified":
                    announce(finding)  # unless it was
                    reason = run.known.reason(finding)
                    if finding.key in announced:
                        ends = [f"known: {reason}"] if reason else smallest(finding, announced[finding.key])
                        for end in ends:
                            say(console, f"  {plain(end)}")
                    if fail_fast and not reason:
                        run.not_verified += left_out(run.own[len(run.findings) :])
                        break
        except KeyboardInterrupt:
            run.interrupted = True
            done = f"{len(run.findings)} of {len(run.own)}"
            run.not_verified.append(f"interrupted after {done} checks")
            concluded = {finding.key for finding in run.findings}
            run.findings += [finding for key, finding in announced.items() if key not in concluded]
    run.not_verified += [*left_unsaid(run.findings), *left(verifier.benches)]
    reasons = Counter(finding.reason for finding in run.findings if finding.not_run)
    run.not_verified += [f"{counted(n, 'check')} could not run: {reason}" for reason, n in reasons.items()]
    run.defects = explain(run.findings, counterexamples, deadline, verifier.benches)


def columns(width: int) -> list[ProgressColumn]:
    """Return what a line of progress shows: what is verified, how much is done, the time gone and left."""
    what = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return [
        TextColumn("{task.description}", table_column=what), BarColumn(20 if width >= WIDTH else 6),
        TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(compact=True),
    ]  # fmt: skip


def smallest(finding: AnyFinding, announced: AnyFinding) -> list[str]:
    """Return the smallest case, and what was seen in it, where that is not what was said before."""
    seen = terminal.how(finding.error, finding.reason)
    other = [f"in it: {seen}"] if seen != terminal.how(announced.error, announced.reason) else []
    return [f"smallest case: {finding.counterexample}", *other]


LACKS = {
    NO_MODES: "no eval mode",
    OWNS_NOTHING: "no parameter of its own that requires grad",
    STATES_NOTHING: "no stated memory",
}
"""What a target has not, by the reason for which a law says nothing of it."""


def left_unsaid(findings: Sequence[AnyFinding]) -> list[str]:
    """Return what laws say nothing about, and of what holds what was not drawn, each once."""
    said = [one for one in findings if one.verdict == "skipped" and not one.not_run]
    worlds: dict[tuple[str, str, str], list[str]] = {}
    for one in said:
        if one.reason not in LACKS:
            worlds.setdefault((one.loss, one.law, one.reason), []).append(one.world)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (loss, law, reason), names in worlds.items():
        place = f"world{'s' * (len(names) > 1)} {', '.join(names)}"
        alike.setdefault((law, place, reason), []).append(loss)
    lines = [f"{', '.join(named)}: {law} in {place}: {why}" for (law, place, why), named in alike.items()]
    losses: dict[tuple[str, ...], list[str]] = {}
    for loss in dict.fromkeys(one.loss for one in said):
        lacks = dict.fromkeys(LACKS[one.reason] for one in said if one.loss == loss and one.reason in LACKS)
        losses.setdefault(tuple(lacks), []).append(loss)
    lines += [f"{', '.join(named)}: {' and '.join(lacks)}" for lacks, named in losses.items() if lacks]
    narrower = Counter((one.loss, one.reason) for one in findings if one.verdict == "holds" and one.reason)
    return lines + [f"{loss}: {counted(n, 'check')} {why}" for (loss, why), n in narrower.items()]


@contextlib.contextmanager
def waiting(console: Console, names: Iterable[str]) -> Iterator[None]:
    """Say that a first call is waited for, where it takes longer than `PATIENCE`."""
    said = f"{', '.join(names)}: waits for the first calls, up to {RUN_SECONDS:g} s for each that hangs"
    timer = threading.Timer(PATIENCE, console.print, [escape(plain(said))], {"highlight": False})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def show(run: Run, console: Console) -> None:
    """Print a line a check, then each defect once, then what is not verified."""
    console.print(terminal.table(run.findings, run.known))
    for line in terminal.devices(records.used(run.findings, run.asked, run.known, run.complete)):
        console.print(escape(plain(line)), highlight=False)
    if run.falsified:
        wrong = [defect for defect in run.defects if not terminal.accepted(defect, run.known)]
        found = f"{counted(len(run.falsified), 'finding')}, {counted(len(wrong), 'defect')}:"
        console.print(f"\n{found}", highlight=False)
    terminal.show(console, run.defects, run.known)
    if lines := terminal.limits(run.findings, "--"):
        console.print(f"\n[bold]{escape(plain(lines[0]))}[/]", highlight=False)
        say(console, plain("\n".join(lines[1:])))
    for line in run.not_verified:
        console.print(f"not verified: {line}", highlight=False)
    if run.shard.count > 1:
        others = counted(len(run.planned) - len(run.own), "check")
        console.print(f"left to the other shards: {others}; the certificate lists them", highlight=False)
    for entry in run.known.unmatched(run.findings):
        unmet = escape(plain(f"{entry.property} ({entry.reason})"))
        console.print(f"[yellow]known finding did not occur:[/] {unmet}", highlight=False)


def conclude(run: Run, verdict: str, console: Console) -> int:
    """Print the verdict, and return the exit status."""
    bad = len({finding.key for finding in run.falsified})
    failed = {finding.key for finding in run.findings if finding.verdict == "falsified"}
    known, ran = len(failed) - bad, len({finding.key for finding in run.findings})
    hold = sum(finding.verdict == "holds" for finding in run.findings)
    said, colour, status = {
        "holds": (f"{counted(hold, 'check')} hold" + ("s" if hold == 1 else ""), "green", HOLDS),
        "falsified": (f"{bad} of {counted(ran, 'check')} falsified", "red", FALSIFIED),
        "incomplete": (f"incomplete: {hold} of {counted(len(run.own), 'check')} hold", "yellow", NOT_RUN),
    }[verdict]
    if known:
        said += f", {known} known to fail"
    if named := dict.fromkeys(finding.limit for finding in run.findings if finding.limit):
        said += f"{', but for: ' if status == HOLDS else '; limits: '}{', '.join(named)}"
    where = f" in shard {run.shard}" if run.shard.count > 1 else ""
    over = counted(sum(finding.examples for finding in run.findings), "case")
    console.print(f"\n[bold {colour}]{said}{where}[/] over {over}, seed {run.asked.seed}", highlight=False)
    return INTERRUPTED if run.interrupted else status


def save(
    record: records.Certificate | records.Certificates,
    json: Path | None,
    html: Path | None,
    junit: Path | None,
) -> None:
    """Write the certificate, its page and its JUnit XML, where they are asked for.

    Raises:
        Unusable: it cannot be written there.
    """
    try:
        if json:
            records.write(record, json)
    except OSError as error:
        raise Unusable("json", f"cannot write {json}: {error.strerror or error}") from error
    try:
        if html:
            write_whole(html, render(record, read_codes(record)).encode())
    except OSError as error:
        raise Unusable("html", f"cannot write {html}: {error.strerror or error}") from error
    try:
        if junit:
            junits.write(record, junit)
    except OSError as error:
        raise Unusable("junit", f"cannot write {junit}: {error.strerror or error}") from error


def show_files(console: Console, json: Path, html: Path | None, junit: Path | None) -> None:
    """Print where the certificate lies; the lines are not broken, so that they can be copied."""
    for name, path in (("certificate", json), ("page", html), ("JUnit XML", junit)):
        if path:
            console.print(f"{name}: {escape(str(path))}", soft_wrap=True, highlight=False)


def databases(database: str | None, say: Callable[[str], None]) -> Databases:
    """Return where the failing cases of a check are kept; troubles are said."""
    if database is None:
        return lambda check: None
    opened = open_database(database, say)
    return lambda check: of_check(opened, check)


def saver(run: Run, json: Path) -> Callable[[], None]:
    """Return what writes the certificate so far, at most every `SAVE_SECONDS`: a machine may go any time.

    Nothing is raised where it cannot be written: at the end it is written again.
    """
    last = time.monotonic()

    def save_so_far() -> None:
        nonlocal last
        if time.monotonic() > last + SAVE_SECONDS:
            with contextlib.suppress(OSError):
                records.write(run.record, json)
            last = time.monotonic()

    return save_so_far


def last_words(run: Run, json: Path) -> Callable[[str], None]:
    """Return what writes the certificate so far where the process has to end."""

    def write_so_far(why: str) -> None:
        run.not_verified.append(why)
        records.write(run.record, json)

    return write_so_far


def counted(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
