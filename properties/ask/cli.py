"""The command `verified-losses`."""

import json as json_text
import math
import os
import re
import shlex
import sys
from collections import Counter
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..cases import DTYPES, Convention
from ..show import certificate as records
from ..show import terminal
from ..show.defects import Defect, explain
from ..show.html import read_codes, render
from ..show.replay import replay
from ..show.text import own, plain, write_whole
from ..subjects import Target
from ..verify.certifier import SHIPPED, Check, Finding, verify_all
from ..verify.known import Known
from ..verify.plan import (
    COUNTEREXAMPLES,
    MAX_EXAMPLES,
    WORLDS,
    Subjects,
    Unusable,
    ask,
    check_config,
    fitted,
    not_verified,
    plan,
    read_config,
    some_dtypes,
)

WIDTH = 100
"""Columns of what is printed into a file or a pipe."""
HOLDS, FALSIFIED, USAGE, NOT_RUN, INTERRUPTED = 0, 1, 2, 3, 130

Several = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]

app = App(
    name="verified-losses",
    version=lambda: metadata.version("verified-losses"),
    help="Verify contrastive losses against their oracles, over drawn cases and real process worlds.",
)


class UsageError(Exception):
    """An argument is unusable; the message names it."""


@app.command
def certify(
    target: str | None = None,
    *,
    contract: Annotated[str | None, Parameter(name="--as")] = None,
    convention: Convention = "exact",
    config: str = "",
    equal_rows: bool = False,
    loss: Several = None,
    only: Several = None,
    skip: Several = None,
    world: str = WORLDS,
    dtype: str = ",".join(DTYPES),
    max_examples: int = MAX_EXAMPLES,
    max_time: str | None = None,
    seed: int = 0,
    known: Path | None = None,
    json: Path = Path("build/certificate.json"),
    counterexamples: Path = COUNTEREXAMPLES,
    html: Path | None = None,
) -> int:
    """Verify losses, yours or the shipped ones: every property, in every world, over drawn cases.

    Prints one line a property and writes the certificate. A property that does not hold is shown with
    the smallest case found. Exit status: 0 everything holds, 1 something is falsified, 2 the target or an
    argument is unusable, 3 nothing is falsified but something that was asked for could not run,
    130 interrupted (what was done is written).

    For example, `verified-losses certify --loss clip siglip --world proc:2 --max-examples 200
    --seed 7` looks harder at two losses in two processes, and `verified-losses certify
    mypackage.losses:MyLoss --as clip` verifies a loss of your own.

    Parameters
    ----------
    target
        An implementation, package.module:Name or path/to/file.py:Name: a class, or a function that returns
        an object, with open_clip's constructor and call arguments by keyword. Arguments that it does not
        take are left out. It runs in processes of its own; a call of more than 20 s counts as hung.
    contract
        What the target must do: clip, coca, distill, siglip, gather or exchange; or, called with two tensors
        in order, infonce, ntxent or cross_entropy.
    convention
        Which gradients the target is held to: exact, or those of open_clip. The contracts siglip, exchange
        and cross_entropy have none.
    config
        Options to pin, as local_loss=true,gather_with_grad=true. The target is given, and held to, no other
        value of them; all values are drawn of those that are not pinned.
    equal_rows
        Give every rank equally many rows, for a target that cannot do otherwise.
    loss
        Which shipped losses: clip, coca, distill, siglip, gather, exchange, exchange_bidir. Else all.
    only
        Which properties, by name; * and ? stand for any text and any letter.
    skip
        Which properties not.
    world
        Where ranks run, separated by commas: 1 is one process, proc:2 (or 2) two real processes over gloo,
        proc:2-4 pools of two to four, hvd:2 two processes over Horovod, sim:2-8 simulated ranks whose number
        and schedule are drawn.
    dtype
        Of the inputs, separated by commas: float64, float32, bfloat16, float16.
    max_examples
        Cases drawn for each property; costly properties take a share of it.
    max_time
        Seconds for everything, as 60s or 5m: fewer cases are drawn where it is short.
    seed
        The same seed draws the same cases.
    known
        A TOML file of findings to accept: [[known]] entries with property and reason, and, where it is to be
        narrower, world and target. An entry that matches nothing is reported.
    json
        Where to write the certificate.
    counterexamples
        Where to write the smallest failing case of every defect, as a program to run.
    html
        Where to write the certificate as a page that shows it, with what was drawn and every counterexample.
    """
    seconds = _seconds(max_time)
    _check_folder(counterexamples)
    accept = _read_known(known)
    dtypes = dtype.split(",")
    if target is None and contract is None:
        subjects = _shipped(loss, config, dtypes)
    else:
        name = _stranger(target, loss)
        asked = ask(name, contract, convention, read_config(config), equal_rows, dtypes)
        subjects = {Target.of(name).name: asked}
        plan(subjects, world, max_examples, only, skip)  # what is wrong with an argument is said at once
        subjects = fitted(subjects)
    planned = plan(subjects, world, max_examples, only, skip)
    command = shlex.join([*app.name, *sys.argv[1:]])
    asked_for = records.Asked(seed, max_examples, world, command)
    run = _Run(subjects, planned, asked_for, accept, json, html, counterexamples)
    run.write()
    return run.go(seconds)


@app.command(name="schema")
def print_schema() -> int:
    """Print the JSON schema of certificates."""
    print(json_text.dumps(records.schema(), indent=2))
    return HOLDS


@app.command(name="replay")
def replay_saved(paths: list[Path] | None = None, *, timeout: float = 120.0) -> int:
    """Run saved counterexamples again, and say which are fixed.

    One that passes three times is fixed; one that passes and then fails is flaky. Exit status: 0 all are
    fixed, 1 some are still there or flaky, 2 there is nothing to run, 3 some cannot run.

    Parameters
    ----------
    paths
        Files, or folders of them; build/counterexamples, if not given.
    timeout
        Seconds that each run may take.
    """
    files: list[Path] = []
    for path in paths or [COUNTEREXAMPLES]:
        found = sorted(path.glob("*.py")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise UsageError(f"{path}: expected a counterexample, or a folder of them")
        files += found
    if not timeout > 0:
        raise UsageError(f"--timeout: expected a number of seconds, got {timeout}")
    console = Console(emoji=False)
    states: Counter[str] = Counter()
    for file in files:
        (replayed,) = replay([file], timeout)
        states[replayed.state] += 1
        colour = {"fixed": "green", "still there": "bold red", "flaky": "bold red"}.get(
            replayed.state, "yellow"
        )
        console.print(f"[{colour}]{replayed.state}[/] {escape(str(file))}", highlight=False, soft_wrap=True)
        if replayed.state == "cannot run":
            console.print(escape(replayed.output), highlight=False, soft_wrap=True)
    if states["still there"] or states["flaky"]:
        return FALSIFIED
    return NOT_RUN if states["cannot run"] else HOLDS


class _Run:
    """One run of the checks: shown as it goes, and written when it ends, however it ends."""

    def __init__(
        self,
        subjects: Subjects,
        planned: list[Check],
        asked: records.Asked,
        known: Known,
        json: Path,
        html: Path | None,
        counterexamples: Path,
    ) -> None:
        labels = {check.label for check in planned}
        self.subjects = {label: subject for label, subject in subjects.items() if label in labels}
        self.planned = planned
        self.asked = asked
        self.known = known
        self.json = json
        self.counterexamples = counterexamples
        self.defects: list[Defect] = []
        self.html = html
        self.findings: list[Finding] = []
        self.not_verified = not_verified(planned)
        self.not_verified += [f"{label}: not in these worlds" for label in subjects if label not in labels]

    def record(self) -> records.Certificate | records.Certificates:
        complete = len(self.findings) == len(self.planned)
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
                    complete,
                )
                for label, (contract, subject) in self.subjects.items()
            ]
        )

    def write(self) -> None:
        record = self.record()
        try:
            records.write(record, self.json)
        except OSError as error:
            raise UsageError(f"--json: cannot write {self.json}: {error.strerror or error}") from error
        try:
            if self.html:
                write_whole(self.html, render(record, read_codes(record)).encode())
        except OSError as error:
            raise UsageError(f"--html: cannot write {self.html}: {error.strerror or error}") from error

    def go(self, max_time: float) -> int:
        console = Console(emoji=False)
        if not console.is_terminal:
            console.width = WIDTH
            label, *others = self.subjects
            whom = f"{1 + len(others)} losses" if others else escape(label)
            checks, most = len(self.planned), _counted(self.asked.max_examples, "case")
            what = f"{_counted(checks, 'check')}, up to {most} each, seed {self.asked.seed}"
            console.print(f"verifying {whom}: {what}", highlight=False)
        torch.set_num_threads(1)
        interrupted = False
        columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.completed}/{task.total}")
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            task = progress.add_task("", total=len(self.planned))
            findings = verify_all(self.planned, self.asked.max_examples, self.asked.seed, max_time)
            try:
                for check in self.planned:
                    what = f"{check.label}: {check.law.name} ({check.world.name})"
                    progress.update(task, description=what)
                    self.findings.append(next(findings))
                    progress.advance(task)
            except KeyboardInterrupt:
                interrupted = True
                done = f"{len(self.findings)} of {len(self.planned)}"
                self.not_verified.append(f"interrupted after {done} checks")
        self.not_verified += [
            f"{finding.loss}: {finding.law} in world {finding.world}: {finding.reason}"
            for finding in self.findings
            if finding.verdict == "skipped" and not finding.not_run
        ]
        skipped = sum(finding.not_run for finding in self.findings)
        if skipped:
            self.not_verified.append(f"{_counted(skipped, 'check')} could not run")
        self.defects = explain(self.findings, self.counterexamples)
        console.print(terminal.table(self.findings, self.known))
        terminal.show(console, self.defects, self.known)
        for line in self.not_verified:
            console.print(f"not verified: {line}", highlight=False)
        for entry in self.known.unmatched(self.findings):
            unmet = escape(plain(f"{entry.property} ({entry.reason})"))
            console.print(f"[yellow]known finding not met:[/] {unmet}", highlight=False)
        self.write()
        record = self.record()
        hold = sum(finding.verdict == "holds" for finding in self.findings)
        bad = [one for one in self.findings if one.verdict == "falsified" and not self.known.reason(one)]
        said = {
            "holds": f"{_counted(hold, 'check')} hold" + ("s" if hold == 1 else ""),
            "falsified": f"{len(bad)} of {_counted(len(self.findings), 'check')} falsified",
            "incomplete": f"incomplete: {hold} of {_counted(len(self.planned), 'check')} hold",
        }[record.verdict]
        cases = sum(finding.examples for finding in self.findings)
        colour = {"holds": "bold green", "falsified": "bold red", "incomplete": "bold yellow"}[record.verdict]
        accepted = sum(finding.verdict == "falsified" for finding in self.findings) - len(bad)
        said += f", {accepted} known to fail" if accepted else ""
        over = _counted(cases, "case")
        console.print(f"\n[{colour}]{said}[/] over {over}, seed {self.asked.seed}", highlight=False)
        # not broken, so that they can be copied
        for name, path in (("certificate", self.json), ("page", self.html)):
            if path:
                console.print(f"{name}: {escape(str(path))}", soft_wrap=True, highlight=False)
        if interrupted:
            return INTERRUPTED
        return {"holds": HOLDS, "falsified": FALSIFIED, "incomplete": NOT_RUN}[record.verdict]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _seconds(text: str | None) -> float:
    if text is None:
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"--max-time: expected seconds, or a time like 60s, 5m or 1h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _check_folder(folder: Path) -> None:
    """Raise UsageError if a folder is none, and cannot be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        problem = "not writable" if there.is_dir() else "not a folder"
        raise UsageError(f"--counterexamples: cannot write into {folder}: {there} is {problem}")


def _read_known(path: Path | None) -> Known:
    try:
        return Known() if path is None else Known.read(path)
    except OSError as error:
        raise UsageError(f"--known: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--known: {error}") from error


def _shipped(names: list[str] | None, config: str, dtypes: list[str]) -> Subjects:
    unknown = sorted(set(names or []) - set(SHIPPED))
    if unknown:
        raise UsageError(f"--loss: expected some of {', '.join(SHIPPED)}, got {', '.join(unknown)}")
    pinned, kept = read_config(config), some_dtypes(dtypes)
    chosen = {}
    for label, (contract, subject) in SHIPPED.items():
        if not names or label in names:
            check_config(contract, pinned)
            chosen[label] = contract, replace(subject, options=(*subject.options, *pinned), dtypes=kept)
    return chosen


def _stranger(target: str | None, loss: list[str] | None) -> str:
    if loss:
        raise UsageError("--loss: names shipped losses; leave it out where a target is given")
    if not target:
        raise UsageError("--as: expected a target before it, package.module:Name or file.py:Name")
    sys.path.insert(0, "")  # as python itself does: a module beside the caller is found
    return target


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, or these arguments, and exit with the status."""
    console = Console(stderr=True, emoji=False)
    try:
        status = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except (UsageError, Unusable) as error:
        said = str(error)
        if isinstance(error, Unusable):
            said = error.as_option("--")
            if error.detail:
                console.print(escape(own(plain(error.detail))), highlight=False, soft_wrap=True)
        console.print(f"[bold red]error[/] {escape(said)}", highlight=False, soft_wrap=True)
        status = USAGE
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "cyclopts":
            raise
        status = USAGE
    sys.exit(status if isinstance(status, int) else HOLDS)
