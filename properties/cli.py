"""The command `verified-losses`."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .certify import SHIPPED, Check, Finding, checks, verify
from .contracts import accepted, contracts
from .subjects import Subject
from .worlds.horovod import horovod_missing
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
    target: str | None = None,
    *,
    contract: Annotated[str | None, Parameter(name="--as")] = None,
    convention: Literal["exact", "open_clip"] = "exact",
    equal_rows: bool = False,
    loss: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    world: str = "1,sim:2-8,proc:2",
    max_examples: int = 25,
    seed: int = 0,
    json: Path = Path("build/certificate.json"),
) -> int:
    """Verify losses, yours or the shipped ones: every property, in every world, over drawn cases.

    Prints one line a property and writes the certificate. A property that does not hold is shown with
    the smallest case found. Exit status: 0 everything holds, 1 something is falsified, 2 an argument is
    unusable, 130 interrupted (what was done is written).

    For example, `verified-losses certify --loss clip siglip --world proc:2 --max-examples 200
    --seed 7` looks harder at two losses in two processes, and `verified-losses certify
    mypackage.losses:MyLoss --as clip` verifies a loss of your own.

    Parameters
    ----------
    target
        An implementation, package.module:Name or path/to/file.py:Name, that takes open_clip's arguments by
        keyword; constructor arguments that it does not take are left out. It runs in this process too.
    contract
        What the target must do: clip, coca, distill, siglip, gather or exchange.
    convention
        Which gradients the target is held to: exact, or those of open_clip.
    equal_rows
        Give every rank equally many rows, for a target that cannot do otherwise.
    loss
        Which losses: clip, coca, distill, siglip, gather, exchange, exchange_bidir. All, if not given.
    world
        Where ranks run, separated by commas: 1 is this process, proc:2 (or 2) two real processes over gloo,
        proc:2-4 pools of two to four, hvd:2 two processes over Horovod, sim:2-8 simulated ranks whose number
        and schedule are drawn.
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
    subjects = (
        _shipped(loss)
        if target is None and contract is None
        else _stranger(target, contract, convention, equal_rows, loss)
    )
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
    not_verified = _not_verified(planned)
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


def _shipped(names: list[str] | None) -> dict[str, tuple[str, Subject]]:
    unknown = sorted(set(names or []) - set(SHIPPED))
    if unknown:
        raise UsageError(f"--loss: expected some of {', '.join(SHIPPED)}, got {', '.join(unknown)}")
    return {name: subject for name, subject in SHIPPED.items() if not names or name in names}


def _stranger(
    target: str | None, contract: str | None, convention: str, equal_rows: bool, loss: list[str] | None
) -> dict[str, tuple[str, Subject]]:
    if loss:
        raise UsageError("--loss: names shipped losses; leave it out where a target is given")
    if target is None:
        raise UsageError("--as: expected a target before it, package.module:Name or file.py:Name")
    if contract not in contracts():
        raise UsageError(f"--as: expected one of {', '.join(contracts())}, got {contract}")
    sys.path.insert(0, "")  # as python itself does: a module beside the caller is found
    try:
        found = Subject(target).resolve()
    except (ValueError, ImportError, AttributeError) as error:
        raise UsageError(f"{target}: {error}") from error
    except Exception as error:
        traceback.print_exc()
        raise UsageError(f"{target}: raised {type(error).__name__} as it was imported") from error
    call = getattr(found, "forward", found)
    bias = "logit_bias" in accepted(call, {"logit_bias": None})
    subject = Subject(target, (convention,), even=equal_rows, bias=bias)
    return {target.rpartition(":")[2]: (contract, subject)}


def _not_verified(planned: list[Check]) -> list[str]:
    lines = []
    if all(check.world.kind != "horovod" for check in planned):
        lines.append(f"Horovod: {horovod_missing() or 'no world asked for has it, such as hvd:2'}")
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
