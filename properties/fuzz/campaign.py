"""A fuzz run: deals out units, keeps what comes of them, and writes it down at once."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from ..show.counterexample import file_name, render
from ..show.drawn import every_region
from ..show.text import write_whole
from ..verify.certifier import UNJUDGED, Check, Finding
from ..verify.known import Known
from . import corpus
from .lines import Done, Ended, Find, Line
from .log import Log
from .schedule import Course
from .tally import Tally, found
from .workers import Job, Lost, Told, Workers

TICK_SECONDS = 0.25
SAVE_SECONDS = 60.0
"""How often what was done so far is written, besides the log."""
TRIES = 2
"""A unit whose process is lost so often is left out."""
FOREVER = 1e12


class View(Protocol):
    """What people see of a run while it runs."""

    def found(self, find: Find, known: str) -> None:
        """A failure was met that was not met before, or, the second time, its smallest case found."""
        ...

    def said(self, text: str) -> None:
        """Something people should know."""
        ...

    def tick(self, campaign: "Campaign") -> None:
        """Some time has passed."""
        ...


@dataclass
class Plan:
    """How a run is to go.

    Args:
        seed: the same seed and rounds give the same finds.
        most: the cases of a unit in which nothing is new.
        rounds: after so many it ends; None never.
        deadline: when `time.monotonic()` is past it, it ends.
        fail_fast: it ends with the first new find.
    """

    seed: int
    most: int
    rounds: int | None = None
    deadline: float = math.inf
    fail_fast: bool = False


@dataclass
class Campaign:
    """The state of a run.

    Args:
        own: its checks, by their number among all that are planned.
        plan: how it is to go.
        log: where it is written down.
        folder: where finds go.
        known: what is accepted.
        corpus: names of the finds that are known of earlier runs.
        workers: run units.
        view: what people see.
        save: writes certificate and reports.
    """

    own: dict[int, Check]
    plan: Plan
    log: Log
    folder: Path
    known: Known
    corpus: set[str]
    workers: Workers
    view: View
    save: Callable[["Campaign"], object]
    tallies: dict[int, Tally] = field(init=False)
    begun: float = field(default_factory=time.monotonic)
    why: str = ""
    """Why it ended."""
    cases_now: int = 0
    """Of this process; the tallies have those of the runs that it goes on from too."""
    trouble: dict[Path, str] = field(default_factory=dict)
    """Files that could not be written, and why."""

    def __post_init__(self) -> None:
        steered = self.plan.rounds is None
        self.tallies = {
            number: Tally(number, check, self.plan.seed, Course(by_branches=steered))
            for number, check in self.own.items()
        }
        for tally in self.tallies.values():
            tally.course.known |= self._of_corpus(tally.check)
        self._loss_of: dict[int, str] = {}
        self._hung: set[tuple[str, str]] = set()
        self._early: dict[int, Find] = {}
        self._said: set[str] = set()
        self._unwritten: dict[Path, bytes] = {}
        self._signal = 0
        labels = {check.label for check in self.own.values()}
        self._regions = {(label, region) for label in labels for region in self._all(label)}

    # what was seen

    @property
    def cases(self) -> int:
        """How many cases were checked."""
        return sum(tally.examples for tally in self.tallies.values())

    @property
    def round(self) -> int:
        """The round in which some check is, from 0; at the end the last."""
        first = min((tally.course.round for tally in self.tallies.values()), default=0)
        return first if self.plan.rounds is None else min(first, self.plan.rounds - 1)

    @property
    def finds(self) -> list[Find]:
        """What was found, each file once."""
        by_file = {one.file: one for tally in self.tallies.values() for one in tally.finds.values()}
        return list(by_file.values())

    @property
    def worst(self) -> float:
        """The largest error over bound of a case that holds."""
        return max((tally.worst for tally in self.tallies.values()), default=0.0)

    @property
    def branches(self) -> int:
        """How many branches of the targets were taken."""
        return len({(t.check.label, one) for t in self.tallies.values() for one in t.course.branches})

    def regions(self, label: str = "") -> tuple[int, int]:
        """Return how many regions were drawn, and how many there are, of one loss or of all."""
        seen = {(t.check.label, name) for t in self.tallies.values() for name in t.course.regions}
        every = {one for one in self._regions if label in ("", one[0])}
        return len(seen & every), len(every)

    def findings(self) -> list[Finding]:
        """Return what is reported of every check."""
        return [finding for tally in self.tallies.values() for finding in tally.findings()]

    def is_new(self, find: Find) -> bool:
        """Whether a find was neither among the corpus nor is accepted."""
        return find.file not in self.corpus and not self._reason(find)

    # going on

    def restore(self, lines: Sequence[Line]) -> None:
        """Take up what a log holds. Units that were cut short are not counted, and run again."""
        for line in lines:
            if isinstance(line, Find):
                self.tallies[line.unit.check].keep(line)
            elif isinstance(line, Done) and line.is_whole:
                self.tallies[line.unit.check].take(line)

    def missed(self) -> list[str]:
        """Return what was asked for and did not run, and why."""
        lines = [
            f"{one.check.label}: {one.check.law.name} in world {one.check.world.name}: {one.lost}"
            for one in self.tallies.values()
            if one.lost
        ]
        lines += [
            f"{one.check.label}: {one.check.law.name} in world {one.check.world.name}: {UNJUDGED}"
            for one in self.tallies.values()
            if one.is_unjudged
        ]
        behind = [tally for tally in self.tallies.values() if self.plan.rounds and self._is_due(tally)]
        if behind and self.why:
            lines.append(f"{len(behind)} checks did not get to the end of round {self.plan.rounds}")
        if self.why.startswith("SIG"):
            lines.append(f"{self.why} in round {self.round + 1}")
        return lines

    def take_old(self, find: Find) -> None:
        """Take a find of an earlier run that is still there."""
        tally = self.tallies[find.unit.check]
        if tally.keep(find):
            self._write_line(find)

    def run(self) -> None:
        """Run units until the rounds or the time are over, a find ends it, or a signal does."""
        saved = self.begun
        with self._signals():
            try:
                self.save(self)  # from here on there is something to say of a run that is ended
                while not self.why:
                    self.step()
                    self.view.tick(self)
                    if time.monotonic() > saved + SAVE_SECONDS:
                        saved = time.monotonic()
                        self.save(self)
                if self.why == "time":
                    self._collect()
            finally:
                self.workers.close()
            for find in list(self._early.values()):
                self._keep_unfinished(find)

    def step(self) -> None:
        """Deal out units, and take what has come of some."""
        self.why = self._over()
        if not self.why:
            self._deal()
            for event in self.workers.wait(TICK_SECONDS):
                self._take(event)

    def end(self, status: int) -> None:
        """Write the last line, and once more what could not be written."""
        self.log.append(Ended(status, self.why, now()))
        self._retry()

    def _over(self) -> str:
        if self._signal:
            return signal.Signals(self._signal).name
        if time.monotonic() >= self.plan.deadline:
            return "time"
        waiting = [tally for tally in self.tallies.values() if self._is_due(tally) or tally.is_busy]
        return "" if waiting else "rounds"

    def _is_due(self, tally: Tally) -> bool:
        return self.plan.rounds is None or tally.course.round < self.plan.rounds

    def _deal(self) -> None:
        """Give every idle worker a unit: of the earliest round, and if possible of the loss that it has."""
        for worker in self.workers.idle():
            free = [one for one in self.tallies.values() if not one.is_busy and self._is_due(one)]
            if not free:
                return
            mine = self._loss_of.get(worker)
            others = {loss for number, loss in self._loss_of.items() if number != worker}

            def order(tally: Tally) -> tuple[int, bool, bool, bool, int]:
                loss = tally.check.label
                hung = (loss, tally.check.world.name) in self._hung
                return tally.course.round, hung, loss != mine, loss in others, tally.number  # noqa: B023

            tally = min(free, key=order)
            tally.is_busy = True
            self._loss_of[worker] = tally.check.label
            course = tally.course
            unmet = sorted(self._of_corpus(tally.check) - set(tally.finds))
            deadline = min(self.plan.deadline, FOREVER)
            self.workers.start(worker, Job(tally.unit(self.plan.most), sorted(course.known), unmet, deadline))

    def _take(self, event: Told | Lost) -> None:
        if isinstance(event, Lost):
            self._take_lost(event)
        elif event.find is not None:
            self._take_find(event.find, event.code)
        elif event.done is not None:
            self._take_done(event.done)
        elif event.said and event.said not in self._said:  # every process has the same trouble
            self._said.add(event.said)
            self.view.said(event.said)

    def _take_done(self, done: Done) -> None:
        tally = self.tallies[done.unit.check]
        tally.is_busy = False
        self._early.pop(tally.number, None)
        new = tally.take(done)
        self.cases_now += len(done.ratios)
        if done.hung:
            self._hung.add((done.unit.loss, done.unit.world))
        seen, every = self.regions(done.unit.loss)
        of_check = f"{len(tally.course.regions)} regions, {len(tally.course.branches)} branches"
        told = {"loss": f"{seen} of {every} regions", "check": of_check, "error/bound": f"{tally.worst:.3g}"}
        self._write_line(msgspec.structs.replace(done, branches=new, seen=told))

    def _take_find(self, find: Find, code: str) -> None:
        if find.is_small or not find.is_new:
            self._keep(find, code)
            return
        self._early[find.unit.check] = find  # it is being made smaller
        if all(one.file != find.file for one in self.finds):
            self.view.found(find, self._reason(find))

    def _keep(self, find: Find, code: str) -> None:
        tally = self.tallies[find.unit.check]
        self._early.pop(tally.number, None)
        files = {one.file for one in self.finds}
        is_small = all(one.is_small for one in self.finds if one.file == find.file)
        if code:
            self._write_find(find, code, find.file in files and is_small)
        if tally.keep(find):
            self._write_line(find)
        if find.file not in files:
            self.view.found(find, self._reason(find))
        if self.plan.fail_fast and self.is_new(find):
            self.why = self.why or "find"

    def _take_lost(self, lost: Lost) -> None:
        tally = self.tallies[lost.unit.check]
        tally.is_busy = False
        if time.monotonic() >= self.plan.deadline:
            return
        tally.losses += 1
        where = f"{lost.unit.loss}: {lost.unit.law} in world {lost.unit.world}, round {lost.unit.round}"
        if tally.losses < TRIES:
            self.view.said(f"{where}: {lost.why}; it is run once more")
            return
        self.view.said(f"{where}: {lost.why}; it is left out")
        tally.lost, tally.losses = f"a unit was given up: {lost.why}", 0
        tally.course.round += 1
        if early := self._early.pop(tally.number, None):
            self._keep_unfinished(early)

    def _collect(self) -> None:
        """Take what units that the end of the time has cut short came to."""
        while any(tally.is_busy for tally in self.tallies.values()):
            for event in self.workers.wait(TICK_SECONDS):
                self._take(event)

    def _keep_unfinished(self, find: Find) -> None:
        """Keep a find whose case has not been made small."""
        finding = found(self.tallies[find.unit.check].check, find)
        try:
            code = render(finding, self.folder / corpus.FOLDER / find.file)
        except Exception as error:  # of an error that is not all there any more
            self.view.said(f"{find.file} was not written: {type(error).__name__}: {error}")
            code = ""
        self._keep(find, code)

    def _of_corpus(self, check: Check) -> set[str]:
        """Return the fingerprints of a check's finds of earlier runs."""
        kinds = {name.removesuffix(".py").rpartition("-")[2] for name in self.corpus}
        return {kind for kind in kinds if file_name(check, kind) in self.corpus}

    def _reason(self, find: Find) -> str:
        return self.known.reason(found(self.tallies[find.unit.check].check, find))

    def _all(self, label: str) -> set[str]:
        own = [check for check in self.own.values() if check.label == label]
        return set().union(*(every_region(one.contract, one.subject, one.sizes) for one in own))

    # writing

    def _write_line(self, line: Line) -> None:
        before = self.log.trouble
        self.log.append(line)
        if self.log.trouble and not before:
            self.view.said(f"cannot write {self.log.trouble}; the run goes on, and tries again")
        self._retry()

    def _write_find(self, find: Find, code: str, is_there: bool) -> None:
        path, content = self.folder / corpus.FOLDER / find.file, code.encode()
        with contextlib.suppress(OSError):
            old = path.read_bytes()
            if is_there and (len(old), old) <= (len(content), content):
                return
        self._write(path, content)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_whole(path, content)
        except OSError as error:
            self._unwritten[path] = content
            if path not in self.trouble:
                why = error.strerror or error
                self.view.said(f"cannot write {path}: {why}; the run goes on, and tries again")
            self.trouble[path] = error.strerror or str(error)
        else:
            self._unwritten.pop(path, None)
            self.trouble.pop(path, None)

    def _retry(self) -> None:
        self.log.flush()
        for path, content in list(self._unwritten.items()):
            self._write(path, content)

    # signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the run after what is being written; a second Ctrl-C ends it at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._signal == number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def now() -> str:
    """Return the time as the log has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
