"""The command `verified-losses`."""

import sys
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .certify import SHIPPED, Finding, checks, verify
from .worlds.specs import parse

HOLDS, FALSIFIED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="verified-losses",
    help="Verify contrastive losses against their oracles, over drawn cases and real process worlds.",
)


class UsageError(Exception):
    """An argument is unusable; the message names it."""


@app.command
def certify(
    *,
    loss: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    world: str = "1,sim:2-8,proc:2",
    max_examples: int = 25,
    seed: int = 0,
    json: Path = Path("build/certificate.json"),
) -> int:
    """Verify the shipped losses: every property, in every world, over drawn cases.

    Prints one line a property and writes the certificate. A property that does not hold is shown with
    the smallest case found. Exit status: 0 everything holds, 1 something is falsified, 2 an argument is
    unusable, 130 interrupted (what was done is written).

    For example, `verified-losses certify --loss clip siglip --world proc:2 --max-examples 200
    --seed 7` looks harder at two losses in two processes.

    Parameters
    ----------
    loss
        Which losses: clip, coca, distill, siglip, gather, exchange, exchange_bidir. All, if not given.
    world
        Where ranks run, separated by commas: 1 is this process, proc:2 (or 2) two real processes over gloo,
        proc:2-4 pools of two to four, sim:2-8 simulated ranks whose number and schedule are drawn.
    max_examples
        Cases drawn for each property; costly properties take a share of it.
    seed
        The same seed draws the same cases.
    json
        Where to write the certificate.
    """
    try:
        worlds = parse(world)
    except ValueError as error:
        raise UsageError(f"--world: {error}") from error
    if max_examples < 1:
        raise UsageError(f"--max-examples: expected at least 1, got {max_examples}")
    unknown = sorted(set(loss or []) - set(SHIPPED))
    if unknown:
        raise UsageError(f"--loss: expected some of {', '.join(SHIPPED)}, got {', '.join(unknown)}")
    subjects = {name: subject for name, subject in SHIPPED.items() if not loss or name in loss}
    planned = list(checks(subjects, worlds))
    if not planned:
        raise UsageError(f"--world {world}: nothing to verify for {', '.join(subjects)} in worlds this small")
    try:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.touch()
    except OSError as error:
        raise UsageError(f"--json: cannot write {json}: {error.strerror}") from error

    console = Console()
    if not console.is_terminal:
        console.width = 120
    torch.set_num_threads(1)
    findings: list[Finding] = []
    not_verified = _not_verified()
    interrupted = False
    columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.completed}/{task.total}")
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(planned))
        try:
            for check in planned:
                progress.update(task, description=f"{check.label}: {check.law.name} ({check.world.name})")
                findings.append(verify(check, max_examples, seed))
                progress.advance(task)
        except KeyboardInterrupt:
            interrupted = True
            not_verified.append(f"interrupted after {len(findings)} of {len(planned)} checks")
    record = report.certificate(findings, subjects, seed, max_examples, world, not_verified, not interrupted)
    report.write(record, json)
    console.print(report.table(findings))
    report.show_falsified(console, findings)
    for line in not_verified:
        console.print(f"not verified: {line}", highlight=False)
    bad = sum(finding.verdict == "falsified" for finding in findings)
    cases = sum(finding.examples for finding in findings)
    verdict = f"{bad} of {len(findings)} checks falsified" if bad else f"{len(findings)} checks hold"
    colour = "bold red" if bad else "bold green"
    console.print(
        f"\n[{colour}]{verdict}[/] over {cases} cases, seed {seed}; certificate: {json}", highlight=False
    )
    if interrupted:
        return INTERRUPTED
    return FALSIFIED if bad else HOLDS


def _not_verified() -> list[str]:
    lines = ["Horovod: use_horovod=True is not supported yet"]
    if not torch.cuda.is_available():
        lines.append("CUDA: no device here")
    return lines


def main() -> None:
    """Run the command line and exit with its status."""
    console = Console(stderr=True)
    try:
        status = app(exit_on_error=False, print_error=True, result_action="return_value")
    except UsageError as error:
        console.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        status = USAGE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "cyclopts":
            raise
        status = USAGE
    sys.exit(status if isinstance(status, int) else HOLDS)


if __name__ == "__main__":
    main()
