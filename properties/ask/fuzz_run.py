"""A run of `verified-losses fuzz`, once its arguments are read."""

import time
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.markup import escape

from ..fuzz import branches, corpus, workers
from ..fuzz.campaign import Campaign, Plan, now
from ..fuzz.lines import Begun, Find, Replayed
from ..fuzz.live import Screen
from ..fuzz.log import Log, compare
from ..fuzz.tally import drawn
from ..fuzz.workers import Processes
from ..options import FuzzOptions
from ..show import replay
from ..show.certificate import Asked, source_hash, versions
from ..show.console import Console
from ..show.counterexample import file_name
from ..show.defects import Defect
from ..verify.arguments import Subjects, Unusable
from ..verify.certifier import Check, Finding
from ..verify.grouping import GROUP_SECONDS, group
from ..verify.plan import fitted, own_checks, working
from . import FALSIFIED, HOLDS, INTERRUPTED, TERMINATED, USAGE
from . import run as running
from .scope import Scope

CERTIFICATE, PAGE, JUNIT = "certificate.json", "report.html", "junit.xml"
VERSION = 1
RESERVE_SECONDS, RESERVE_SHARE = 5.0, 0.1
"""Of the time that is asked for, kept to write what was found: the smaller of the two."""
REPLAY_SECONDS = 120.0
REPLAY_SHARE = 0.5
"""Of the time that is asked for, the most that finds of earlier runs may take."""
SIGNAL_SECONDS = 5.0
"""How long cases are run again to group findings after a signal."""


@dataclass(frozen=True)
class Request:
    """The arguments of the command, read."""

    asked: Scope
    options: FuzzOptions
    arguments: dict[str, Any]
    """The options that choose the cases and the contract, as they were given."""
    jobs: int
    begun: float
    seconds: float
    """For everything; infinite if there is no end."""
    command: str

    def planned(self, subjects: Subjects, places: tuple[str, ...]) -> workers.Scope:
        """Return what is planned of these subjects, on these devices."""
        only, skip = tuple(self.options.only or ()), tuple(self.options.skip or ())
        return workers.Scope(subjects, self.options.world, only, skip, places)


def run(request: Request, log: Log) -> int:
    """Fuzz, and return the exit status.

    Raises:
        Unusable: an argument, a target, or the run to go on from is.
    """
    deadline = request.begun + request.seconds
    subjects = request.asked.subjects
    places = working(request.asked.devices)
    request.planned(subjects, places).plan()  # wrong arguments are refused before a target is imported
    if request.asked.are_strange:
        subjects = fitted(subjects, deadline, places[0])
    scope = request.planned(subjects, places)
    planned: list[Check] = scope.plan()
    mine = {id(check) for check in own_checks(planned, request.asked.shard)}
    own = {number: check for number, check in enumerate(planned) if id(check) in mine}
    console = running.printer()
    begun = _begun(request, subjects, log)
    states = _replay(request, console)
    if not log.lines:
        known = [name for name, one in states.items() if one.state != "fixed"]
        begun = msgspec.structs.replace(begun, corpus=known)
        log.append(begun)
    for name, one in states.items():
        log.append(Replayed(name, one.state))

    reserve = min(RESERVE_SECONDS, RESERVE_SHARE * request.seconds)
    plan = Plan(
        request.options.seed,
        request.options.max_examples,
        request.options.rounds,
        deadline - reserve,
        request.options.fail_fast,
    )
    report = _Report(request, subjects, planned, places)
    screen = Screen(console, request.options.folder, plan.deadline)
    campaign = Campaign(
        own, plan, log, request.options.folder, request.asked.known, set(begun.corpus),
        Processes(request.jobs, scope, request.options.folder, request.options.database), screen, report.save,
    )  # fmt: skip
    campaign.restore(log.lines)
    for find in _old_finds(request, states, own):
        campaign.take_old(find)
    _announce(console, request, subjects, campaign)
    with screen:
        campaign.run()
    return report.conclude(campaign, console, deadline)


class _Report:
    """Certificate, page and JUnit XML of a run."""

    def __init__(
        self, request: Request, subjects: Subjects, planned: list[Check], places: tuple[str, ...]
    ) -> None:
        asked = Asked(
            request.options.seed,
            request.options.max_examples,
            request.options.world,
            request.command,
            ",".join(places),
        )
        self.folder = request.options.folder
        self.run = running.Run(subjects, planned, asked, request.asked.known, shard=request.asked.shard)
        self._basis = list(self.run.not_verified)
        if not branches.available():
            self._basis.append(branches.MISSING)

    def save(self, campaign: Campaign, seconds: float = 0.0) -> bool:
        """Write what was found so far, grouped for at most so many seconds; return whether it was written."""
        run = self.run
        findings, run.drawn = campaign.findings(), drawn(campaign.tallies.values())
        wrong = [finding for finding in findings if finding.verdict == "falsified"]
        groups = group(wrong, seconds) if seconds > 0 else [[one] for one in wrong]
        groups = [_once_a_check(members) for members in groups]
        shown = {id(one) for members in groups for one in members}
        run.findings = [one for one in findings if one.verdict != "falsified" or id(one) in shown]
        finds = self.folder / corpus.FOLDER
        run.defects = [
            Defect(leader, tuple(others), finds / file_name(leader.check, leader.fingerprint))
            for leader, *others in groups
        ]
        run.not_verified = [*self._basis, *campaign.missed()]
        run.interrupted = campaign.why.startswith("SIG")
        try:
            running.save(run.record, *(self.folder / name for name in (CERTIFICATE, PAGE, JUNIT)))
        except Unusable as error:
            campaign.view.said(error.problem)
            return False
        return True

    def conclude(self, campaign: Campaign, console: Console, deadline: float) -> int:
        """Write and print what was found, and return the exit status."""
        run = self.run
        is_written = self.save(campaign)  # before cases are run again, which takes time
        left = min(SIGNAL_SECONDS if run.interrupted else GROUP_SECONDS, deadline - time.monotonic())
        if run.defects and left > 0:
            is_written = self.save(campaign, left)
        for _, subject in run.subjects.values():
            subject.worlds().close()
        running.show(run, console)
        status = running.conclude(run, run.record.verdict, console)
        if campaign.plan.fail_fast and not any(campaign.is_new(find) for find in campaign.finds):
            status = HOLDS if status == FALSIFIED else status
            console.print("nothing new was found", highlight=False)
        status = {"SIGINT": INTERRUPTED, "SIGTERM": TERMINATED}.get(campaign.why, status)
        campaign.end(status)
        running.show_files(console, *(self.folder / name for name in (CERTIFICATE, PAGE, JUNIT)))
        console.print(f"log: {escape(str(campaign.log.path))}", soft_wrap=True, highlight=False)
        if run.interrupted:
            console.print("to go on: the same command with --resume", highlight=False)
        unwritten = [f"{path}: {why}" for path, why in campaign.trouble.items()]
        unwritten += [campaign.log.trouble] * bool(campaign.log.trouble)
        for line in unwritten:
            console.print(f"[bold red]not written[/] {escape(line)}", soft_wrap=True, highlight=False)
        return USAGE if unwritten or not is_written else status


def _once_a_check(findings: list[Finding]) -> list[Finding]:
    """Return the findings of one defect, of several of one check the first, which has its cases."""
    first: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        first.setdefault(finding.key, finding)
    return list(first.values())


def _begun(request: Request, subjects: Subjects, log: Log) -> Begun:
    """Return the first line of the log; of one that is gone on with, once nothing differs."""
    targets = {label: subject.target for label, (_, subject) in subjects.items()}
    sources = {label: source_hash(subject) for label, (_, subject) in subjects.items()}
    shard, versioned = str(request.asked.shard), versions()
    begun = Begun(VERSION, targets, request.arguments, shard, [], sources, versioned, now(), request.command)
    for first in log.lines[:1]:
        assert isinstance(first, Begun)
        compare("the source of ", first.sources, sources)
        compare("the version of ", first.versions, versioned)
        return first
    return begun


def _replay(request: Request, console: Console) -> dict[str, replay.Replayed]:
    """Run the finds of earlier runs again; return what came of each, by its name."""
    until = request.begun + REPLAY_SHARE * request.seconds
    states: dict[str, replay.Replayed] = {}
    for file in corpus.files(request.options.folder / corpus.FOLDER):
        left = until - time.monotonic()
        one = replay.Replayed(file, "cannot run", "no time was left")
        if left > 0:
            (one,) = replay.replay([file], min(REPLAY_SECONDS, left))
        states[file.name] = one
        why = one.output.splitlines()[-1] if one.state == "cannot run" and one.output else ""
        said = f"{one.state}: {file}" + f" ({why})" * bool(why)
        console.print(escape(said), highlight=False, soft_wrap=True)
    return states


def _old_finds(request: Request, states: dict[str, replay.Replayed], own: dict[int, Check]) -> list[Find]:
    """Return the finds of earlier runs that failed again."""
    there = [one for one in states.values() if one.state in ("still there", "flaky")]
    finds = (corpus.still_there(one.file, one.output, own, request.options.seed) for one in there)
    return [find for find in finds if find is not None]


def _announce(console: Console, request: Request, subjects: Subjects, campaign: Campaign) -> None:
    parts = [f"{len(campaign.own)} checks", f"seed {request.options.seed}", f"jobs {request.jobs}"]
    if request.asked.shard.count > 1:
        parts.insert(0, f"shard {request.asked.shard}")
    if campaign.cases:
        parts.append(f"going on from {campaign.cases:,} cases in round {campaign.round + 1}")
    said = f"fuzzing {', '.join(subjects)}: {', '.join(parts)}"
    console.print(escape(said), highlight=False, soft_wrap=True)
