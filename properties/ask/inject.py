"""A run of `verified-losses certify --faults`: its output, its files and its exit status."""

import shlex
import time
from pathlib import Path

import msgspec
from rich.markup import escape
from rich.progress import Progress

from ..faults import Fault, Result
from ..faults.campaign import inject
from ..faults.draw import drawn, faulty
from ..faults.table import kinds, laid_out, left_over, wrong
from ..options import CommandOptions
from ..show.console import Console
from ..show.text import plain, write_whole
from ..verify.arguments import Subjects, Unusable
from . import FALSIFIED, HOLDS, INTERRUPTED, NOT_RUN
from .faults import Faults
from .run import Log, columns, counted, say


def certify_faults(
    asked: Faults, subjects: Subjects, options: CommandOptions, deadline: float, console: Console
) -> int:
    """Inject faults one after another, and print what the ranks get; return the exit status.

    Args:
        asked: how many, or which.
        subjects: the losses, each asked only for what it takes.
        options: of the run.
        deadline: what `time.monotonic()` is when no time is left.
        console: where to print.

    Raises:
        Unusable: no loss has ranks that can be several, or a file holds no fault.
    """
    faults = [_read(asked.again)] if asked.again else _drawn(asked, subjects, options.seed)
    labels = dict.fromkeys(fault.label for fault in faults)
    console.print(
        f"injecting {counted(len(faults), 'fault')} into {escape(', '.join(labels))}, seed {options.seed}",
        highlight=False,
    )
    results: list[Result] = []
    found = 0
    interrupted = False
    with Progress(*columns(console.width), console=console, transient=True, expand=True) as progress:
        task = progress.add_task("", total=len(faults))
        log = Log(console, len(faults), "faults")
        try:
            for fault in faults:
                if time.monotonic() > deadline:
                    break
                progress.update(task, description=plain(str(fault)))
                results.append(inject(fault))
                progress.advance(task)
                log.reached(len(results))
                if why := wrong(results[-1]):
                    found += 1
                    _announce(console, results[-1], why, options.counterexamples)
                    if options.fail_fast:
                        break
        except KeyboardInterrupt:
            interrupted = True
    console.print(laid_out(kinds(results)))
    for line in left_over(results, len(faults)):
        say(console, plain(line))
    status = _conclude(console, results, len(faults), found, options.seed)
    _save(results, asked.results)
    console.print(f"results: {escape(str(asked.results))}", soft_wrap=True, highlight=False)
    return INTERRUPTED if interrupted else status


def _conclude(console: Console, results: list[Result], asked: int, found: int, seed: int) -> int:
    """Print the verdict, and return the exit status."""
    ran = sum(not one.not_run for one in results)
    if found:
        said, colour, status = f"{found} of {counted(ran, 'fault')} falsified", "red", FALSIFIED
    elif ran < asked:
        said, colour, status = f"incomplete: {ran} of {counted(asked, 'fault')} injected", "yellow", NOT_RUN
    else:
        said, colour, status = f"{counted(ran, 'fault')}, no finding", "green", HOLDS
    console.print(f"\n[bold {colour}]{said}[/], seed {seed}", highlight=False)
    return status


def _save(results: list[Result], file: Path) -> None:
    try:
        write_whole(file, msgspec.json.format(msgspec.json.encode(results)))
    except OSError as error:
        raise Unusable("json", f"cannot write {file}: {error.strerror or error}") from error


def _drawn(asked: Faults, subjects: Subjects, seed: int) -> list[Fault]:
    for size in asked.sizes:
        if not faulty(subjects, size):
            names = ", ".join(subjects)
            raise Unusable("faults", f"no rank of {names} waits for one of {size} others")
    return [drawn(seed, number, subjects, asked.sizes) for number in range(asked.number)]


def _read(file: Path) -> Fault:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Fault)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unusable("faults", f"{file} holds no fault: {error}") from error


def _announce(console: Console, result: Result, why: str, folder: Path) -> None:
    fault = result.fault
    name = f"fault-{fault.label}-{fault.kind}-{fault.fingerprint}.json".replace(" ", "-")
    path = folder / name
    say(console, plain(f"{result}: {why}"), "[bold red]FALSIFIED[/] ")
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(fault)))
    except OSError as error:
        say(console, f"  no file was written: {path}: {error.strerror or error}")
    else:
        say(console, f"  again: verified-losses certify --faults {shlex.quote(str(path))}")
