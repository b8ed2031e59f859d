"""Fuzzing: what is run again, what is found, and that nothing is lost, however a run ends.

Most tests put a function in the place of the target's call: the rest is as it is. `make fuzz-test` runs the
command itself too, with planted defects, and kills it in several ways.
"""

import errno
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import msgspec
import psutil
import pytest
from hypothesis import Phase
from rich.console import Console

from verified_losses.properties import devices
from verified_losses.properties.ask import fuzz_run
from verified_losses.properties.ask.cli import main
from verified_losses.properties.ask.fuzz_cli import LOG
from verified_losses.properties.examples import Example
from verified_losses.properties.fuzz import corpus, failures, unit
from verified_losses.properties.fuzz.campaign import Campaign, Plan
from verified_losses.properties.fuzz.lines import Begun, Done, Ended, Failure, Find, Line, Unit
from verified_losses.properties.fuzz.live import Screen
from verified_losses.properties.fuzz.log import Busy, Log, read
from verified_losses.properties.fuzz.schedule import FIRST, MOST_DOUBLINGS, Course
from verified_losses.properties.fuzz.tally import SAMPLE, Tally
from verified_losses.properties.fuzz.workers import Event, Job, Lost, Processes, Scope, Told
from verified_losses.properties.laws import Falsified, Place
from verified_losses.properties.show.counterexample import MARK
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify import certifier, limits
from verified_losses.properties.verify.certifier import Check, Finding, verify
from verified_losses.properties.verify.fingerprints import fingerprint, not_finite
from verified_losses.properties.verify.known import Entry, Known
from verified_losses.properties.verify.plan import plan
from verified_losses.properties.worlds import RankState, WorldError
from verified_losses.properties.worlds.simulated import SimulationError

from .children import LIMIT_SECONDS, refused_early, started, wait_until

COMMAND = [sys.executable, "-m", "verified_losses.properties", "fuzz"]
WRONG = ["tests.defects.clip:OnlyImageToText", "--as", "clip", "--world", "1", "--jobs", "1"]
LAWS = ["terms equal the oracle", "inputs unchanged"]
CLIP = {"clip": SHIPPED["clip"]}


def _terms(note: str = "", observed: float = 2.0) -> Falsified:
    name = f"contrastive_loss{note}"
    place = Place("term", name, 0, index=(0,), expected=1.0, observed=observed, bound=0.1)
    return Falsified(f"{place}: expected 1, observed {observed}", place)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a function in the place of what runs a law on an example, and of what explains findings."""

    def judge_by(judge: Callable[[Check, Example], float], shrink: bool = False) -> None:
        monkeypatch.setattr(certifier, "falsify", judge)
        if not shrink:  # which takes most of the time
            phases = {name: Phase[name] for name in ("reuse", "generate", "target")}
            monkeypatch.setattr(certifier, "Phase", SimpleNamespace(**phases, shrink=Phase.reuse))
        monkeypatch.setattr(unit, "render", lambda finding, path: f"{MARK} {fingerprint(finding)}\n")
        monkeypatch.setattr("verified_losses.properties.verify.grouping.falsify", judge)

    return judge_by


class _Inline:
    """Workers that run a unit at once, in this process.

    Args:
        checks: all that are planned.
        folder: of the run.
        after: called with the number of units that are done.
    """

    def __init__(self, checks: list[Check], folder: Path, after: Callable[[int], object] = lambda done: None):
        self.checks, self.folder, self.after = checks, folder, after
        self.events: list[Event] = []
        self.jobs: list[Job] = []
        self.closed = False

    def idle(self) -> list[int]:
        return [] if self.events else [0]

    def start(self, number: int, job: Job) -> None:
        self.jobs.append(job)

        def tell(find: Find, code: str) -> None:
            self._send(Told(find=find, code=code))

        done = unit.run(
            job.unit, self.checks[job.unit.check], job.known, job.unmet, job.deadline, self.folder, tell
        )
        self._send(Told(done=done))

    def wait(self, seconds: float) -> list[Event]:
        events, self.events = self.events, []
        self.after(len(self.jobs))
        return events

    def close(self) -> None:
        self.closed = True

    def _send(self, told: Told) -> None:
        self.events.append(msgspec.json.decode(msgspec.json.encode(told), type=Told))  # as over a pipe


class _Seen:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.finds: list[Find] = []
        self.texts: list[str] = []
        self.ticks = 0

    def found(self, find: Find, known: str) -> None:
        self.finds.append(find)

    def said(self, text: str) -> None:
        self.texts.append(text)

    def tick(self, campaign: Campaign) -> None:
        self.ticks += 1


def _planned() -> list[Check]:
    return plan(CLIP, "1", only=LAWS)


def _campaign(folder: Path, rounds: int | None = 3, **changed: Any) -> Campaign:
    planned = _planned()
    workers = changed.pop("workers", None) or _Inline(planned, folder)
    log = Log(folder / LOG)
    campaign = Campaign(
        dict(enumerate(planned)),
        Plan(0, 12, rounds, changed.pop("deadline", math.inf), changed.pop("fail_fast", False)),
        log,
        folder,
        changed.pop("known", Known()),
        changed.pop("corpus", set()),
        workers,
        changed.pop("view", _Seen()),
        lambda campaign: None,
    )
    assert not changed
    if not log.lines:
        log.append(Begun(1, {}, {}, "1/1", [], {}, {}, "", ""))
    campaign.restore(log.lines)
    return campaign


def _outcome(campaign: Campaign) -> list[Any]:
    """Return all that a certificate says, but for seconds."""
    return [
        (one.key, one.verdict, one.examples, one.ratios, one.reason, one.counterexample, one.fingerprint)
        for one in campaign.findings()
    ]


def _two_defects(check: Check, example: Example) -> float:
    case = example.case
    if check.law.name == LAWS[0] and case.dtype == "float16":
        raise _terms()
    if check.law.name == LAWS[0] and case.pattern == "zeros":
        raise _terms(observed=math.nan)
    return (case.seed % 100) / 100


# The schedule


def test_a_check_that_shows_something_new_is_given_more_and_none_starves() -> None:
    course = Course()
    given = []
    for number in range(12):
        given.append(course.examples(FIRST))
        course.take({f"region {min(number, 4)}"}, [], 0.0, [], hung=False)
    assert given[0] == FIRST
    assert max(given) == FIRST << MOST_DOUBLINGS
    assert given[-1] == min(given) == FIRST


@pytest.mark.parametrize(
    ("second", "is_new"),
    [
        (({"a"}, ["x"], 0.5), False),
        (({"a", "b"}, ["x"], 0.5), True),
        (({"a"}, ["x", "y"], 0.5), True),
        (({"a"}, ["x"], 0.51), False),
        (({"a"}, ["x"], 0.6), True),
    ],
)
def test_regions_branches_and_records_are_new(
    second: tuple[set[str], list[str], float], is_new: bool
) -> None:
    course = Course()
    course.take({"a"}, ["x"], 0.5, [], hung=False)
    assert course.doublings == 1
    course.take(*second, [], hung=False)
    assert course.doublings == (2 if is_new else 0)


def test_branches_give_nobody_more_where_rounds_must_be_the_same_again() -> None:
    course = Course(by_branches=False)
    course.take(set(), ["x"], 0.0, [], hung=False)
    assert course.doublings == 0
    assert course.branches == {"x"}


def test_the_first_rounds_are_short() -> None:
    assert [Course(round=at).examples(100) for at in range(5)] == [10, 20, 40, 80, 100]


def test_a_check_that_hangs_sits_out_twice_as_long_each_time() -> None:
    course, rounds = Course(), []
    for _ in range(4):
        rounds.append(course.round)
        course.take([], [], 0.0, ["f"], hung=True)
    assert rounds == [0, 2, 5, 10]


# The log


def _line(number: int) -> Ended:
    return Ended(number, "time", "")


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / LOG
    log = Log(path)
    for number in range(3):
        log.append(_line(number))
    log.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        log = Log(path)
        assert log.lines == [_line(0), _line(1)]
        log.append(_line(2))
        log.close()
        assert path.read_bytes() == whole


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.write_bytes(b'{"kind":"ended","status":0,"why":"","time":""}\n{"kind":"unit"}\n')
    with pytest.raises(ValueError, match=r"log\.ndjson: line 2: .* missing required field"):
        Log(path)


def test_one_process_writes_a_log(tmp_path: Path) -> None:
    log = Log(tmp_path / LOG)
    with pytest.raises(Busy):
        Log(tmp_path / LOG)
    log.close()
    Log(tmp_path / LOG).close()


def test_lines_wait_for_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 60
    write = os.pwrite

    def limited(file: int, content: bytes, place: int) -> int:
        if place >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content[: room - place], place)

    path = tmp_path / LOG
    log = Log(path)
    monkeypatch.setattr(os, "pwrite", limited)
    for number in range(4):
        log.append(_line(number))
        assert path.read_bytes() == b"".join(msgspec.json.encode(_line(0)) + b"\n" for _ in range(1))
    assert "No space left on device" in log.trouble
    monkeypatch.setattr(os, "pwrite", write)
    log.append(_line(4))
    assert log.trouble == ""
    assert read(path)[0] == [_line(number) for number in range(5)]
    log.close()


# Failures in the log

TRACE = 'Traceback:\n  File "/x/verified_losses/clip.py", line 3, in forward\nValueError: no'
WHERE = RankState(1, "raised", TRACE)
ERRORS: list[Exception] = [
    _terms(),
    _terms(observed=math.nan),
    _terms(observed=-math.inf),
    Falsified("without a place 3"),
    Falsified("x", Place("shape", "loss", 1, expected=[2], observed=[3])),
    WorldError("processes:2", [RankState(0, "returned", ""), WHERE]),
    WorldError("single", [RankState(0, "killed", "SIGSEGV\nlast words")]),
    SimulationError("simulated:2", [WHERE], "deadlock", "nobody runs", [1, 2]),
    TypeError("cannot be pickled"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_that_is_read_from_the_log_has_its_fingerprint(error: Exception) -> None:
    kept = msgspec.json.decode(msgspec.json.encode(failures.recorded(error)), type=Failure)
    check, back = _planned()[0], failures.restored(kept)
    before = Finding(check, 0, "falsified", error=error)
    assert fingerprint(before) == fingerprint(Finding(check, 0, "falsified", error=back))
    assert not_finite(error) == not_finite(back)
    if not isinstance(error, TypeError):
        assert type(back) is type(error)


# A unit


def _unit(known: set[str], unmet: set[str] | None = None) -> tuple[Done, list[Find]]:
    check = _planned()[0]
    told: list[Find] = []
    asked = Unit(0, "clip", check.law.name, check.world.name, 0, 0, 100)
    folder = Path("build/fuzz")
    done = unit.run(asked, check, known, unmet or (), math.inf, folder, lambda find, code: told.append(find))
    return done, told


def test_a_known_failure_is_counted_and_another_found(judged: Any) -> None:
    judged(_two_defects)
    done, (early, first) = _unit(set())
    assert (early.is_small, first.is_small) == (False, True)
    assert done.finds == {first.fingerprint: 1}
    done, (_, second) = _unit({first.fingerprint})
    assert second.fingerprint != first.fingerprint
    assert done.finds.keys() == {first.fingerprint, second.fingerprint}
    kinds = {one.fingerprint: one for one in (first, second)}
    done, told = _unit(set(kinds))
    assert told == []
    assert all(done.finds[kind] > 1 for kind in kinds)
    assert len(done.ratios) + sum(done.finds.values()) == 100


def test_a_find_keeps_its_fingerprint_as_it_is_made_smaller(judged: Any) -> None:
    def judge(check: Check, example: Example) -> float:
        # whatever is smaller fails otherwise
        raise _terms(f" of {min(sum(example.case.rows), 3)} rows")

    judged(judge, shrink=True)
    _, (early, find) = _unit(set())
    assert find.fingerprint == early.fingerprint
    assert find.failure.message.partition(":")[0] == early.failure.message.partition(":")[0]


def test_known_failures_that_cost_processes_end_the_unit(judged: Any) -> None:
    killed = WorldError("single", [RankState(0, "killed", "SIGSEGV")])
    kind = fingerprint(Finding(_planned()[0], 0, "falsified", error=killed))

    def judge(check: Check, example: Example) -> float:
        raise killed

    judged(judge)
    done, told = _unit({kind})
    assert done.finds == {kind: unit.COSTLY_FAILURES}
    assert told == []


def test_a_failure_known_of_an_earlier_run_is_told_of_once(judged: Any) -> None:
    judged(_two_defects)
    _, (_, first) = _unit(set())
    _, told = _unit({first.fingerprint}, unmet={first.fingerprint})
    (old,) = [find for find in told if not find.is_new]
    assert old.fingerprint == first.fingerprint


def test_cases_are_drawn_after_a_large_error(judged: Any) -> None:
    def judge(check: Check, example: Example) -> float:
        return min(example.case.width, 250) / 250

    judged(judge)
    check = _planned()[0]
    plain = verify(check, 100, 3).ratios
    aimed = verify(check, 100, 3, aim=True).ratios
    assert plain[:40] == aimed[:40]
    assert sum(aimed[60:]) > sum(plain[60:])


# A run


def test_rounds_give_the_same_finds_however_they_are_interrupted(tmp_path: Path, judged: Any) -> None:
    judged(_two_defects)
    whole = tmp_path / "whole"
    campaign = _campaign(whole)
    campaign.run()
    assert campaign.why == "rounds"
    campaign.log.close()
    expected = _outcome(campaign)
    assert len(campaign.finds) == 2
    content = (whole / LOG).read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == 10]
    cuts = [ends[1], ends[len(ends) // 2], ends[-2], ends[2] + 30]  # after a find, in between, and in a line
    for number, cut in enumerate(cuts):
        folder = tmp_path / f"cut{number}"
        folder.mkdir()
        (folder / LOG).write_bytes(content[:cut])
        resumed = _campaign(folder)
        resumed.run()
        resumed.log.close()
        assert _outcome(resumed) == expected, f"cut at byte {cut}"


def test_shards_find_together_what_one_run_finds(tmp_path: Path, judged: Any) -> None:
    judged(_two_defects)
    whole = _campaign(tmp_path / "whole")
    whole.run()
    outcomes = []
    for number in range(2):
        shard = _campaign(tmp_path / f"shard{number}")
        shard.own = {place: check for place, check in shard.own.items() if place % 2 == number}
        shard.tallies = {place: tally for place, tally in shard.tallies.items() if place in shard.own}
        shard.run()
        outcomes += _outcome(shard)
    assert outcomes == _outcome(whole)


def test_a_find_is_written_at_once_and_said_once(tmp_path: Path, judged: Any) -> None:
    judged(_two_defects)
    view = _Seen()
    campaign = _campaign(tmp_path, view=view)
    campaign.run()
    assert [find.is_small for find in view.finds] == [False, True] * 2
    names = {find.file for find in campaign.finds}
    assert {path.name for path in (tmp_path / "finds").iterdir()} == names
    logged = [line.file for line in read(tmp_path / LOG)[0] if isinstance(line, Find)]
    assert sorted(logged) == sorted(names)


def test_the_first_new_find_ends_a_run_that_fails_fast_and_known_ones_do_not(
    tmp_path: Path, judged: Any
) -> None:
    judged(_two_defects)
    campaign = _campaign(tmp_path / "a", fail_fast=True)
    campaign.run()
    (first,) = campaign.finds
    assert (campaign.why, campaign.round) == ("find", 0)

    campaign = _campaign(tmp_path / "b", fail_fast=True, corpus={first.file})
    campaign.run()
    old, second = campaign.finds
    assert (old.file, old.is_new, campaign.why) == (first.file, False, "find")
    assert second.file != first.file

    accepted = Known([Entry(LAWS[0], "as agreed", fingerprint=second.fingerprint)])
    campaign = _campaign(tmp_path / "c", fail_fast=True, corpus={first.file}, known=accepted)
    campaign.run()
    assert campaign.why == "rounds"
    assert not any(campaign.is_new(find) for find in campaign.finds)
    assert len(campaign.finds) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_between_two_units(tmp_path: Path, judged: Any, number: signal.Signals) -> None:
    judged(_two_defects)
    workers = _Inline(_planned(), tmp_path, lambda done: done == 2 and os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    campaign = _campaign(tmp_path, rounds=None, workers=workers)
    campaign.run()
    assert signal.getsignal(number) is before
    assert campaign.why == number.name
    assert workers.closed
    lines = read(tmp_path / LOG)[0]
    assert sum(isinstance(line, Done) for line in lines) == len(workers.jobs) == 2


def test_a_find_whose_case_is_not_small_yet_is_kept_as_the_run_ends(tmp_path: Path, judged: Any) -> None:
    judged(_two_defects)

    class Slow(_Inline):
        def wait(self, seconds: float) -> list[Event]:
            if any(isinstance(event, Told) and event.find for event in self.events):
                (self.events,) = [self.events[:1]]  # what is small has not come yet
                os.kill(os.getpid(), signal.SIGTERM)
            return super().wait(seconds)

    campaign = _campaign(tmp_path, workers=Slow(_planned(), tmp_path))
    campaign.run()
    (find,) = campaign.finds
    assert (find.is_small, campaign.why) == (False, "SIGTERM")
    path = tmp_path / "finds" / find.file
    assert path.read_text().startswith(MARK)
    path.write_text("")
    campaign.log.close()
    resumed = _campaign(tmp_path, rounds=1)
    resumed.run()
    (small,) = resumed.finds
    assert (small.is_small, small.fingerprint) == (True, find.fingerprint)
    assert path.read_text().startswith(MARK)


def test_a_unit_whose_process_is_lost_is_run_again_and_then_left_out(tmp_path: Path, judged: Any) -> None:
    judged(lambda check, example: 0.0)

    class Losing(_Inline):
        def start(self, number: int, job: Job) -> None:
            if job.unit.check == 0:
                self.jobs.append(job)
                self.events.append(Lost(job.unit, "its process ended with status -9"))
            else:
                super().start(number, job)

    view = _Seen()
    workers = Losing(_planned(), tmp_path)
    campaign = _campaign(tmp_path, rounds=1, view=view, workers=workers)
    campaign.run()
    assert [job.unit.check for job in workers.jobs] == [0, 0, 1]
    assert "run once more" in view.texts[0]
    assert "left out" in view.texts[1]
    left_out, other = campaign.findings()
    assert (left_out.verdict, left_out.not_run, other.verdict) == ("skipped", True, "holds")
    assert "its process ended with status -9" in campaign.missed()[0]


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(_two_defects)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*arguments: Any) -> Any:
        raise full

    view = _Seen()
    campaign = _campaign(tmp_path, view=view)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        patched.setattr("verified_losses.properties.fuzz.campaign.write_whole", refuse)
        campaign.run()
    assert len([text for text in view.texts if "cannot write" in text]) == 1 + len(campaign.finds)
    assert campaign.log.trouble
    assert campaign.trouble
    assert len(read(tmp_path / LOG)[0]) == 1
    campaign.end(0)
    assert not campaign.log.trouble
    assert not campaign.trouble
    assert {path.name for path in (tmp_path / "finds").iterdir()} == {find.file for find in campaign.finds}
    campaign.log.close()
    again = _campaign(tmp_path)
    assert _outcome(again) == _outcome(campaign)


def test_time_that_is_over_ends_a_run(tmp_path: Path, judged: Any) -> None:
    judged(lambda check, example: 0.0)
    campaign = _campaign(tmp_path, deadline=0.0)
    campaign.run()
    assert campaign.why == "time"
    assert {one.reason for one in campaign.findings()} == {"out of time"}


def test_a_failing_case_that_no_time_was_left_to_judge_accuses_nobody(
    tmp_path: Path, judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(check: Check, example: Example) -> float:
        if example.case.dtype == "float64":
            time.sleep(max(0, deadline - time.monotonic()))
            raise _terms()
        return 0.5

    judged(judge)
    monkeypatch.setattr(limits, "may_be_limit", lambda *_: True)
    deadline = time.monotonic() + 1
    campaign = _campaign(tmp_path, deadline=deadline)
    campaign.run()
    assert campaign.finds == []
    unjudged = [one for one in campaign.findings() if one.reason == certifier.UNJUDGED]
    assert [(one.verdict, one.not_run) for one in unjudged] == [("skipped", True)]
    assert campaign.missed() == [
        f"clip: {unjudged[0].law} in world single: {certifier.UNJUDGED}",
        *campaign.missed()[1:],
    ]


def test_of_very_many_errors_a_sample_is_kept_that_holds_the_worst() -> None:
    check = _planned()[0]
    tally = Tally(0, check, 0, Course())
    ratios = [place / 10**4 for place in range(5000)]
    tally.take(Done(tally.unit(1), 1.0, [*ratios, 0.9, *ratios], {"dtype": {"float64": 10001}}, [], {}))
    (finding,) = tally.findings()
    assert finding.examples == 10001
    assert SAMPLE / 2 <= len(finding.ratios) <= SAMPLE
    assert finding.worst_error_over_bound == 0.9
    assert abs(sum(finding.ratios) / len(finding.ratios) - 0.25) < 0.01
    assert tally.drawn == {"dtype": {"float64": 10001}}


# What people see


def test_lines_come_now_and_then_where_there_is_no_terminal(
    tmp_path: Path, judged: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(_two_defects)
    monkeypatch.setattr("verified_losses.properties.fuzz.live.LINE_SECONDS", 0.0)
    screen = Screen(Console(width=200, emoji=False), tmp_path, math.inf)
    campaign = _campaign(tmp_path, view=screen)
    with screen:
        campaign.run()
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.count("FALSIFIED") == printed.count("smallest case:") == 2
    said = r"0:00:\d\d round \d, \d+ cases, \d+\.\d/s, \d+ of 46 regions, error/bound 0\.\d+, \d finds?"
    assert re.search(said, printed)
    monkeypatch.undo()
    screen.tick(campaign)
    assert capsys.readouterr().out == ""


# The corpus

FAKE = """{mark} {kind}
import os, pathlib, sys
TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "{target}")
WORLD_SIZE = 1
print("expected 1, observed 2")
sys.exit(pathlib.Path({state!r}).read_text() == "wrong")
"""


def _saved(folder: Path, name: str, kind: str, state: Path, target: str = "a:A", more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{kind}.py"
    path.write_text(FAKE.format(mark=MARK, kind=kind, target=target, state=str(state)) + more)
    return path


def test_the_corpus_is_fixed_once_the_target_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, finds = tmp_path / "target", tmp_path / "finds"
    state.write_text("wrong")
    kept = _saved(finds, "clip-terms", "0" * 12, state)
    _saved(finds, "clip-terms-again", "0" * 12, state, more="# longer\n")
    other = _saved(finds, "siglip-terms", "0" * 12, state, target="b:B")

    def ask(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["fuzz", *arguments, "--folder", str(tmp_path)])
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    status, printed = ask("prune")
    assert status == 0
    assert "clip-terms-again-000000000000.py: there is a smaller one" in printed
    assert sorted(finds.iterdir()) == [kept, other]
    assert ask("replay")[0] == 1
    state.write_text("right")
    status, printed = ask("replay")
    assert (status, printed.count("fixed ")) == (0, 2)
    status, printed = ask("prune")
    assert printed.count(": fixed\n") == 2
    assert list(finds.iterdir()) == []
    assert ask("replay") == (0, f"no finds in {tmp_path}\n")


def test_a_find_that_is_still_there_is_a_finding_of_its_check(tmp_path: Path) -> None:
    planned = dict(enumerate(_planned()))
    kind = "a" * 12
    path = _saved(tmp_path, "clip-inputs-unchanged", kind, tmp_path / "target")
    find = corpus.still_there(path, "one\nexpected 1, observed 2\n", planned, 0)
    assert find is not None
    assert (find.unit.law, find.fingerprint, find.is_new) == ("inputs unchanged", kind, False)
    assert find.headline == "clip: inputs unchanged in world single: expected 1, observed 2"
    assert corpus.still_there(_saved(tmp_path, "coca-x", kind, tmp_path), "", planned, 0) is None


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loss", "clap"], "--loss: expected some of clip"),
        (["a:A"], "--as: expected one of clip"),
        (["--as", "clip"], "--as: expected a target before it"),
        (["a:A", "a:A", "--as", "clip"], "expected each target once, got a:A as clip several times"),
        (["--jobs", "0"], "--jobs: expected auto, or a number of processes from 1 on, got '0'"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--rounds", "x"], "error --rounds: expected a whole number, got 'x'"),
        (["--rounds", "1.5"], "error --rounds: expected a whole number, got '1.5'"),
        (["--max-time", "-1s"], "--max-time: expected seconds, or a time like 60s, 5m or 1h, got '-1s'"),
        (["--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (["--only", "beauty"], "--only: expected some of terms equal the oracle"),
        (["no_such_file.py:A", "--as", "clip"], "no_such_file.py:A: there is no file no_such_file.py"),
        (["--max-time", "soon"], "--max-time: expected seconds"),
        (["--max-examples", "0"], "--max-examples: expected at least 1"),
        (["--shard", "3/2"], "--shard: expected i/n"),
        (["--world", "0"], "--world: expected"),
        (["--world", "torchrun"], "--world: torchrun: "),
        (["--known", "tests/no_such_file.toml"], "--known: cannot read tests/no_such_file.toml"),
        (["--folder", "/proc/no/such"], "--folder: cannot write into /proc/no/such"),
        (["replay", "--folder", "build/no/such"], "--folder: there is no folder build/no/such"),
        (["prune", "--folder", "build/no/such"], "--folder: there is no folder build/no/such"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = [] if "--folder" in arguments else ["--folder", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", *arguments, *folder])
    assert (ended.value.code, capsys.readouterr().err.count(said)) == (2, 1)


def test_a_wrong_argument_costs_no_import_and_no_process(tmp_path: Path) -> None:
    _started(tmp_path)
    wrong = [
        ["--loss", "clap"], ["--jobs", "0"], ["--world", "0"], ["--resume", "--seed", "4"], ["--seed", "-1"],
        ["--only", "beauty"], [],
    ]  # fmt: skip
    if devices.absent("cuda:0"):
        wrong.append(["--device", "cuda"])
    given = ["--world", "1", "--loss", "clip", "--folder", str(tmp_path)]
    targets = [["no_such_file.py:A", "--as", "clip"], ["no_such_module:A", "--as", "clip"]]
    asked = [*targets, *([*given, *arguments] for arguments in wrong)]
    assert refused_early("fuzz", asked) == ["2"] * len(asked) + [""]


def _started(folder: Path, *lines: Line, **arguments: Any) -> None:
    log = Log(folder / LOG)
    given = {
        "target": [], "as": None, "convention": "exact", "config": "", "equal_rows": False, "strict": False,
        "call": "", "parameter": [], "features": "", "interpret": False, "large": False, "loss": ["clip"],
        "widths": "", "empty_ranks": False, "inductor": False,
        "only": [], "skip": [], "world": "1", "device": "cpu",
        "dtype": "float64,float32,bfloat16,float16", "seed": 0,
        "max_examples": 100,
    }  # fmt: skip
    log.append(Begun(1, {}, given | arguments, "1/1", [], {"clip": "other"}, {}, "", ""))
    for line in lines:
        log.append(line)
    log.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "has a run that did not end, of 0 units and finds: go on with --resume"),
        (["--resume", "--seed", "4"], "--resume: --seed differs: the run in the folder has 0, this one 4"),
        (["--resume", "--max-examples", "3"], "--max-examples differs: the run in the folder has 100"),
        (["--resume", "--shard", "1/2"], "--shard differs: the run in the folder has '1/1', this one '1/2'"),
        (["--resume"], "--resume: the source of clip differs: the run in the folder has 'other', this one"),
    ],
)
def test_a_run_is_not_written_over_and_goes_on_as_it_began(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _started(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", "--loss", "clip", "--world", "1", "--folder", str(tmp_path), *arguments])
    shown = capsys.readouterr().err
    assert (ended.value.code, said in shown) == (2, True), shown


@pytest.mark.parametrize(
    ("why", "is_kept"), [("rounds", True), ("time", True), ("SIGINT", False), ("SIGTERM", False)]
)
def test_a_run_that_ended_makes_room_for_the_next(
    why: str, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_run, "run", lambda request, log: len(log.lines))
    _started(tmp_path, Ended(0, why, ""))
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", "--loss", "clip", "--world", "1", "--folder", str(tmp_path)])
    assert ended.value.code == (0 if is_kept else 2)
    assert (tmp_path / "log-1.ndjson").exists() == is_kept


def test_the_folder_holds_what_was_found(
    tmp_path: Path, judged: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(_two_defects)
    monkeypatch.setattr(
        fuzz_run, "Processes", lambda jobs, scope, folder, kept: _Inline(scope.plan(), folder)
    )
    few = ["--max-examples", "12", "--rounds", "3"]
    asked = ["fuzz", "--loss", "clip", "--world", "1", "--only", *LAWS, *few]

    def ask(*arguments: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as ended:
            main([*asked, "--folder", str(tmp_path), *arguments])
        return ended.value.code, capsys.readouterr().out

    status, printed = ask("--known", _accept(tmp_path, "inputs unchanged"))
    assert status == 1, printed
    assert "1 of 2 checks falsified over" in printed
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert [(one["property"], one["verdict"]) for one in record["properties"]] == [
        (LAWS[0], "falsified"), (LAWS[0], "falsified"), (LAWS[1], "holds"),
    ]  # fmt: skip
    for one in record["properties"][:2]:
        assert Path(one["counterexample"]).exists()
        assert one["fingerprint"] in one["counterexample"]
    assert sum(record["drawn"]["dtype"].values()) == sum(one["examples"] for one in record["properties"])
    assert record["properties"][0]["examples"] == len(record["properties"][0]["errors_over_bound"])
    _check_junit(tmp_path / "junit.xml", failures=2, tests=3)
    assert "Counterexamples" in (tmp_path / "report.html").read_text()
    last = read(tmp_path / LOG)[0][-1]
    assert isinstance(last, Ended)
    assert (last.status, last.why) == (1, "rounds")

    # the finds that were written here exit with 0: they are fixed, and found anew
    status, printed = ask("--fail-fast")
    assert (status, printed.count("fixed: ")) == (1, 2)
    for path in (tmp_path / "finds").iterdir():
        path.write_text(path.read_text() + "print('expected 1, observed 2')\nraise SystemExit(1)\n")
    status, printed = ask("--fail-fast")
    assert (status, printed.count("still there: ")) == (0, 2), printed
    assert "nothing new was found" in printed


def test_a_check_has_one_row_for_each_defect(
    tmp_path: Path, judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(check: Check, example: Example) -> float:
        if check.law.name == LAWS[0]:
            raise _terms(" of float64" if example.case.dtype == "float64" else "")
        return 0.0

    judged(judge)
    monkeypatch.setattr(
        fuzz_run, "Processes", lambda jobs, scope, folder, kept: _Inline(scope.plan(), folder)
    )
    asked = [
        "fuzz",
        "--loss",
        "clip",
        "--world",
        "1",
        "--only",
        *LAWS,
        "--max-examples",
        "9",
        "--rounds",
        "3",
    ]
    with pytest.raises(SystemExit, match="1"):
        main([*asked, "--folder", str(tmp_path)])
    assert len(list((tmp_path / "finds").iterdir())) == 2
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert [(one["property"], one["verdict"]) for one in record["properties"]] == [
        (LAWS[0], "falsified"), (LAWS[1], "holds"),
    ]  # fmt: skip


def _accept(folder: Path, law: str) -> str:
    path = folder / "known.toml"
    path.write_text(f'[[known]]\nproperty = "{law}"\nreason = "as agreed"\n')
    return str(path)


def _check_junit(path: Path, failures: int, tests: int) -> None:
    root = ElementTree.parse(path).getroot()
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    assert (suite.get("tests"), suite.get("failures")) == (str(tests), str(failures))
    for case in suite.findall("testcase"):
        for failure in case.findall("failure"):
            assert "expected 1, observed" in str(failure.get("message"))
            assert ".py" in str(failure.get("message"))


def test_a_signal_as_the_first_certificate_is_written_ends_a_run_as_any_later(
    tmp_path: Path, judged: Any
) -> None:
    judged(lambda check, example: 0.0)
    campaign = _campaign(tmp_path)
    campaign.save = lambda campaign: os.kill(os.getpid(), signal.SIGTERM)
    campaign.run()
    assert campaign.why == "SIGTERM"
    assert "SIGTERM in round 1" in campaign.missed()


def test_a_killed_run_leaves_a_whole_log_and_nothing_running(tmp_path: Path) -> None:
    log = tmp_path / LOG
    asked = [*WRONG, "--only", "terms*", "inputs*", "--rounds", "1000", "--folder", str(tmp_path)]

    def units() -> int:
        return sum(isinstance(line, Done) for line in read(log)[0]) if log.exists() else 0

    with started([*COMMAND, *asked], stdout=subprocess.PIPE) as running:
        wait_until(lambda: units() >= 3, running)
        family = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        printed, _ = running.communicate(timeout=LIMIT_SECONDS)
        gone, alive = psutil.wait_procs(family, 20)
    assert "FALSIFIED OnlyImageToText: terms equal the oracle" in printed
    assert not alive
    assert len(gone) >= 3  # the fork server, a process that draws, its fork server and a rank among them
    (find,) = (tmp_path / "finds").iterdir()
    assert find.read_text().startswith(MARK)
    lines, size = read(log)
    assert sum(isinstance(line, Find) for line in lines) == 1
    with log.open("ab") as torn:
        torn.write(b'{"kind":"unit","un')
    assert Log(log).lines == lines
    assert log.stat().st_size == size
    assert json.loads((tmp_path / "certificate.json").read_text())["verdict"] == "incomplete"


# The command itself: minutes

long = pytest.mark.skipif(
    not os.environ.get("FUZZ_TESTS"), reason="takes minutes: `make fuzz-test` runs the command and kills it"
)


def _fuzz(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [*COMMAND, *arguments, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    return done.returncode, done.stdout + done.stderr


def _units(folder: Path) -> dict[tuple[str, int], tuple[list[float], dict[str, int]]]:
    lines = read(folder / LOG)[0] if (folder / LOG).exists() else []
    done = [line for line in lines if isinstance(line, Done) and line.is_whole]
    return {(one.unit.law, one.unit.round): (one.ratios, one.finds) for one in done}


@long
def test_a_run_that_is_killed_over_and_over_finds_what_one_run_finds(tmp_path: Path) -> None:
    asked = [*WRONG, "--rounds", "3", "--max-examples", "20", "--only", "terms*", "gradients*", "inputs*"]
    assert _fuzz(tmp_path / "whole", *asked)[0] == 1
    folder, resume = tmp_path / "killed", []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        before = len(_units(folder))
        with started([*COMMAND, *asked, *resume, "--folder", str(folder)], stdout=subprocess.PIPE) as running:
            wait_until(lambda before=before: len(_units(folder)) > before, running)  # type: ignore[misc]
            running.send_signal(number)
            printed, _ = running.communicate(timeout=LIMIT_SECONDS)
        status = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        assert running.returncode == status, printed
        if number != signal.SIGKILL:
            assert "to go on: the same command with --resume" in printed
            assert json.loads((folder / "certificate.json").read_text())["verdict"] == "falsified"
            last = read(folder / LOG)[0][-1]
            assert isinstance(last, Ended)
            assert last.why == number.name
        resume = ["--resume"]
    status, printed = _fuzz(folder, *asked, *resume)
    assert status == 1, printed
    assert _units(folder) == _units(tmp_path / "whole")
    finds = [sorted(path.name for path in (one / "finds").iterdir()) for one in (folder, tmp_path / "whole")]
    assert finds[0] == finds[1]


@long
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    few = ["--rounds", "2", "--max-examples", "20"]
    asked = [*WRONG[:-2], *few, "--only", "terms*", "gradients*", "inputs*"]
    for jobs in ("1", "2"):
        assert _fuzz(tmp_path / jobs, *asked, "--jobs", jobs)[0] == 1
    assert _units(tmp_path / "1") == _units(tmp_path / "2")


@long
@pytest.mark.parametrize("name", ["Exits", "Hangs"])
def test_a_target_that_takes_its_process_down_is_found_and_the_rest_goes_on(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine.py").write_text("""
import os, time, verified_losses
class Exits(verified_losses.ClipLoss):
    def forward(self, image_features, *given, **named):
        if image_features.shape[0] == 3:
            os._exit(7)
        return super().forward(image_features, *given, **named)
class Hangs(verified_losses.ClipLoss):
    def forward(self, image_features, *given, **named):
        if image_features.shape[0] == 3:
            time.sleep(600)
        return super().forward(image_features, *given, **named)
""")
    asked = [f"{tmp_path / 'mine.py'}:{name}", "--as", "clip", "--world", "1", "--jobs", "1"]
    few = ["--rounds", "4", "--max-examples", "30"]
    status, printed = _fuzz(tmp_path, *asked, *few, "--only", "terms*", "inputs*")
    assert status == 1, printed
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert {one["verdict"] for one in record["properties"]} == {"falsified"}
    assert all(one["examples"] > 10 for one in record["properties"]), printed


@long
def test_a_process_that_dies_is_replaced_and_says_why_it_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    scope = Scope(CLIP, "1", tuple(LAWS))

    def ended(workers: Processes) -> Event:
        for _ in range(LIMIT_SECONDS):
            if events := workers.wait(1.0):
                return events[-1]
        raise AssertionError("no answer")

    asked = Job(Unit(0, "clip", LAWS[0], "single", 0, 0, 3), [], [], time.monotonic() + LIMIT_SECONDS)
    workers = Processes(1, scope, tmp_path)
    try:
        workers.start(0, asked)
        assert workers.idle() == []
        (drawing,) = [one for one in multiprocessing.active_children() if not one.daemon]
        drawing.kill()
        assert ended(workers) == Lost(asked.unit, "its process ended with status -9")
        assert workers.idle() == [0]
        workers.start(0, asked)
        done = ended(workers)
        assert isinstance(done, Told)
        assert done.done is not None
        assert len(done.done.ratios) == 3
    finally:
        workers.close()
    workers = Processes(1, Scope(CLIP, "no such world"), tmp_path)
    try:
        workers.start(0, asked)
        lost = ended(workers)
        assert isinstance(lost, Lost)
        assert "Unusable: world: expected parts like" in lost.why
    finally:
        workers.close()
    assert not list(temporary.glob("fuzz-*"))


@long
def test_all_of_it_takes_the_time_that_was_asked_for(tmp_path: Path) -> None:
    for seconds in (20, 40):
        begun = time.monotonic()
        asked = ["--loss", "clip", "siglip", "--max-time", f"{seconds}s"]
        status, printed = _fuzz(tmp_path / str(seconds), *asked)
        assert status in (0, 3), printed
        assert abs(time.monotonic() - begun - seconds) < 5 + 1  # Python takes one second to start


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount a tmpfs, as root has")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], timeout=60, check=True)


@long
@pytest.mark.parametrize(("small_disk", "status"), [(4, 2), (24, 2), (800, 1)], indirect=["small_disk"])
def test_a_disk_that_fills_up_is_said_and_what_was_written_is_whole(small_disk: Path, status: int) -> None:
    few = ["--rounds", "2", "--max-examples", "20", "--only", "terms*", "inputs*"]
    ended, printed = _fuzz(small_disk, *WRONG, *few)
    assert ended == status, printed
    assert ("No space left on device" in printed) == (status == 2)
    read(small_disk / LOG)
    for path in (small_disk / "finds").glob("*.py"):
        compile(path.read_text(), path, "exec")
    for path in small_disk.glob("*.json"):
        json.loads(path.read_text())
    assert not list(small_disk.glob(".*")), "half of a file was left"
