"""`verified-losses certify --as step`: its arguments, its run, its output and its exit status."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from ..show import certificate as records
from ..show import terminal
from ..show.step import StepDefect, explain, explained, record
from ..show.text import plain, shortened
from ..step.inspection import inspected
from ..step.laws import StepLaw, laws
from ..step.target import Trainer
from ..step.verify import SHARP, Bench, StepCheck, StepFinding, checks, grouped, verify_all
from ..verify.arguments import Unusable
from ..verify.known import Known
from ..worlds.specs import WorldSpec
from . import INTERRUPTED
from .run import columns, counted, print_verdict, save, show_files, waiting


@dataclass
class StepRun:
    """The checks of a run, and their findings so far."""

    label: str
    trainer: Trainer
    planned: list[StepCheck]
    asked: records.Asked
    known: Known
    findings: list[StepFinding] = field(default_factory=list)
    defects: list[StepDefect] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def record(self) -> records.Certificate:
        """The certificate."""
        complete = len(self.findings) == len(self.planned)
        given = self.asked, self.known, self.not_verified, complete
        return record(self.trainer, self.findings, self.defects, *given)


def certify_step(
    label: str,
    asked: Trainer,
    worlds: Sequence[WorldSpec],
    names: Sequence[str],
    arguments: records.Asked,
    known: Known,
    console: Console,
    counterexamples: Path,
    files: tuple[Path, Path | None, Path | None],
    deadline: float,
    fail_fast: bool,
) -> int:
    """Verify a training step; return the exit status.

    Args:
        label: the target's name.
        asked: the target.
        worlds: where ranks run.
        names: of the laws.
        arguments: of the run.
        known: what is accepted.
        console: where to print.
        counterexamples: where to write the smallest case of each defect.
        files: where to write the certificate, its page and its JUnit XML.
        deadline: what `time.monotonic()` is when no time is left.
        fail_fast: stop at the first finding that is not known.

    Raises:
        Unusable: the target cannot be verified.
    """
    torch.set_num_threads(1)
    asked.worlds().until = deadline
    with waiting(Console(stderr=True, emoji=False), [label]):
        trainer = inspected(asked, list(worlds))
    run = StepRun(label, trainer, [], arguments, known)
    places = [one for one in worlds if trainer.simulated or not one.row.is_drawn]
    if len(places) < len(worlds):
        run.not_verified.append(f"simulated worlds: {trainer.unsimulated}")
    run.planned = checks(label, trainer, places, names)
    if not run.planned:
        raise Unusable("", f"nothing to verify for {label}: no property that is asked for applies there")
    run.not_verified += _unasked(trainer, names, places)
    save(run.record, *files)
    most = arguments.max_examples
    console.print(
        f"verifying {escape(label)}: {counted(len(run.planned), 'check')}, up to {counted(most, 'case')} "
        f"each, seed {arguments.seed}",
        highlight=False,
    )
    for line in trainer.described:
        console.print(escape(plain(f"{label}: {line}")), highlight=False, soft_wrap=True)
    benches = _verify(run, console, deadline, fail_fast)
    run.not_verified += _left(run.findings, benches)
    run.defects = explain(grouped(run.findings, benches), counterexamples)
    _show(run, console)
    save(run.record, *files)
    status = _conclude(run, console)
    show_files(console, *files)
    return status


def _verify(run: StepRun, console: Console, deadline: float, fail_fast: bool) -> dict[str, Bench]:
    """Run the checks, and print each finding as its first case fails; return the benches by world."""
    announced: set[tuple[str, str, str]] = set()
    benches: dict[str, Bench] = {}

    def announce(finding: StepFinding) -> None:
        if finding.key not in announced and not run.known.reason(finding):
            announced.add(finding.key)
            said = terminal.how(finding.error, finding.reason)
            where = f"{finding.loss}: {finding.law} in world {finding.world}: {said}"
            console.print(f"[bold red]FALSIFIED[/] {escape(where)}", highlight=False, soft_wrap=True)

    with Progress(*columns(console.width), console=console, transient=True, expand=True) as progress:
        task = progress.add_task("", total=len(run.planned))
        verifying = verify_all(run.planned, run.asked.max_examples, run.asked.seed, deadline, announce)
        try:
            for check in run.planned:
                progress.update(task, description=f"{check.law.name} ({check.world.name})")
                finding, benches[check.world.name] = next(verifying)
                run.findings.append(finding)
                progress.advance(task)
                if finding.verdict == "falsified":
                    announce(finding)
                    if fail_fast and not run.known.reason(finding):
                        left = run.planned[len(run.findings) :]
                        run.not_verified += [
                            f"{one.law.name} in world {one.world.name}: not run after the first finding"
                            for one in left
                        ]
                        break
        except KeyboardInterrupt:
            run.interrupted = True
            run.not_verified.append(f"interrupted after {len(run.findings)} of {len(run.planned)} checks")
    return benches


def _unasked(trainer: Trainer, names: Sequence[str], places: Sequence[WorldSpec]) -> list[str]:
    """Return what no check looks at, and why."""

    def fits(law: StepLaw) -> bool:
        return any(law.fits(trainer, size, one.row.is_drawn) for one in places for size in one.sizes)

    lines = [f"{law.name}: {why}" for law in laws() if law.name in names and (why := law.applies(trainer))]
    if not any(one.sizes[-1] > 1 for one in places):
        lines.append("several ranks: not requested, or not possible in these worlds")
    if trainer.passing:
        lines.append(f"buffers that no checkpoint holds: not compared: {', '.join(trainer.passing)}")
    if trainer.constant and not any(law.drawn and fits(law) for law in laws() if law.name in names):
        lines.append("random numbers: nothing was verified with those that step draws")
    return [*lines, "CUDA: a step runs on the CPU alone"]


def _left(findings: Sequence[StepFinding], benches: dict[str, Bench]) -> list[str]:
    """Return what could not be said of some cases, and what did not run."""
    lines = [f"{one.law} in world {one.world}: {one.reason}" for one in findings if one.verdict == "skipped"]
    blunt, sharp = sum(one.blunt for one in benches.values()), sum(one.sharp for one in benches.values())
    if blunt:
        lines.append(
            f"factors of less than 1 + {SHARP:g}: in {blunt} of {sharp} cases of float64 rounding alone "
            "takes a gradient further"
        )
    elif not sharp:
        lines.append(f"factors of less than 1 + {SHARP:g}: no case was in float64")
    return lines


def _show(run: StepRun, console: Console) -> None:
    """Print a line a check, then each defect once, then what is not verified."""
    console.print(terminal.table(run.findings, run.known))
    wrong = [one for one in run.defects if not run.known.reason(one.leader)]
    if wrong:
        count = len({finding.key for finding in run.findings if finding.verdict == "falsified"})
        console.print(f"\n{counted(count, 'finding')}, {counted(len(wrong), 'defect')}:", highlight=False)
    for defect in wrong:
        what, *why = explained(defect)
        console.print(f"\n[bold red]{escape(what)}[/]")
        console.print(escape("\n".join(map(shortened, why))), highlight=False, soft_wrap=True)
        said = f"run: python {defect.file}" if defect.file else f"no file was written: {defect.trouble}"
        console.print(escape(said), soft_wrap=True, highlight=False)
    limits = [one for one in run.findings if one.verdict == "limit"]
    if limits:
        console.print("\n[bold]limits, which are no defects unless --strict:[/]")
        for one in limits:
            first = terminal.how(one.error, one.reason)
            console.print(
                f"{escape(one.loss)}: does not support {one.limit}, met in world {one.world}:",
                highlight=False,
            )
            console.print(f"  {escape(first)}", highlight=False, soft_wrap=True)
            console.print(f"  smallest case: {escape(one.counterexample)}", highlight=False, soft_wrap=True)
    for line in run.not_verified:
        console.print(f"not verified: {escape(plain(line))}", highlight=False, soft_wrap=True)
    for entry in run.known.unmatched(run.findings):
        unmet = escape(plain(f"{entry.property} ({entry.reason})"))
        console.print(f"[yellow]known finding did not occur:[/] {unmet}", highlight=False)


def _conclude(run: StepRun, console: Console) -> int:
    """Print the verdict, and return the exit status."""
    known = sum(bool(run.known.reason(one)) for one in run.findings)
    falsified = sum(one.verdict == "falsified" for one in run.findings)
    counts = falsified - known, known, len(run.findings), len(run.planned)
    status = print_verdict(console, run.record.verdict, run.findings, counts, run.asked.seed)
    return INTERRUPTED if run.interrupted else status
