"""The command `verified-losses fuzz`, with `fuzz replay` and `fuzz prune`.

Arguments are checked, and the folder is opened, before torch is imported.
"""

import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from ..fuzz.lines import Begun, Ended, Line, Replayed
from ..fuzz.log import Busy, Log, compare
from ..names import STEP
from ..options import FUZZ, FuzzOptions, Options
from ..verify.arguments import Unusable, check_folder, read_seconds
from ..verify.shards import Shard
from ..worlds import server
from . import HOLDS
from .cli import app, find_beside, replay_saved, requested
from .project import filled
from .scope import Asked, read

LOG = "log.ndjson"
REPLAY_SECONDS = 120.0
DEFAULTS = FuzzOptions()
NO_CASES = ("max_time", "database", "fail_fast", "known", "shard", "rounds", "resume", "jobs", "folder")
"""The options that choose neither cases nor what they are held to."""

fuzz = App(name="fuzz", config=filled())
app.command(fuzz)


@fuzz.default
def run_fuzz(
    *target: str,
    options: Annotated[FuzzOptions, Parameter(name="*")] = DEFAULTS,
    begun: Annotated[float, Parameter(parse=False)],
    tokens: Annotated[Sequence[str], Parameter(parse=False)],
) -> int:
    """Fuzz losses, yours or the shipped ones, until the time is over, and go on after a find.

    Without a target: those that `[tool.verified-losses]` in the pyproject.toml of the current folder lists,
    which states options too; else the shipped losses. What is given here wins.

    First every find that the folder holds of earlier runs is run again, and said to be fixed or still there.
    Then each round runs every property in every world with a seed of its own; those that show something new
    (a region of the drawn cases, a branch of the target, a larger error/bound) get up to eight times the
    cases of those that do not. A failure that is known is counted, and the cases go on; a new one is made
    smaller and written at once, as a program to run. Without --max-time and --rounds it runs until Ctrl-C.

    The folder gets log.ndjson, a line a finished unit of work, finds/, certificate.json, report.html and
    junit.xml. Exit status: 0 nothing was found, 1 something was, 2 the target or an argument is unusable or a
    file could not be written, 3 nothing was found but something could not run, 130 Ctrl-C, 143 SIGTERM (what
    was done is written, and --resume goes on).

    For example, `verified-losses fuzz mypackage.losses:MyLoss --as clip --max-time 8h` for a night, and
    `verified-losses fuzz --fail-fast --max-time 10m` for a pull request.

    Parameters
    ----------
    target
        Implementations, package.module:Name or path/to/file.py:Name, as for certify.
    options
        All the others.
    begun
        What `time.monotonic()` was as the process began.
    tokens
        The command line.
    """
    seconds = math.inf if options.max_time is None else read_seconds(options.max_time)
    check_folder(options.folder, "folder")
    asked = losses_of(requested(target, options, tokens), bool(target))
    find_beside()
    scope = read(asked, options, os.environ)
    if any(spec.kind == "torchrun" for spec in scope.worlds):
        raise Unusable("world", "torchrun: each process that draws starts ranks of its own; certify takes it")
    if options.rounds is not None and options.rounds < 1:
        raise Unusable("rounds", f"expected at least 1, got {options.rounds}")
    processes = _read_jobs(options.jobs)
    arguments = {"target": [name for name, _ in asked], **_chosen(options)}
    if any(one != options for _, one in asked):
        arguments["targets"] = [_chosen(one) for _, one in asked]
    log = _open(options.folder, options.resume, arguments, scope.shard)
    try:
        server.start()  # which imports torch too
        from .fuzz_run import Request, run

        command = shlex.join([*app.name, *sys.argv[1:]])
        request = Request(scope, options, arguments, processes, begun, seconds, command)
        return run(request, log)
    finally:
        log.close()


def losses_of(asked: Asked, given: bool) -> Asked:
    """Return the losses among what is asked for.

    Args:
        asked: the targets.
        given: the command line names them, and not pyproject.toml.

    Raises:
        Unusable: there are training steps on the command line, or nothing else.
    """
    losses = [one for one in asked if one[1].as_ != STEP]
    steps = ", ".join(target for target, options in asked if options.as_ == STEP)
    if steps and (given or not losses):
        raise Unusable(
            "contract",
            f"a training step is not fuzzed: {steps}; certify verifies it, --max-examples how often",
        )
    if steps:
        print(f"not fuzzed, as they are training steps: {steps}")
    return losses


def _chosen(options: Options) -> dict[str, Any]:
    """Return the options that choose cases and what they are held to."""
    chosen = {name: value for name, value in asdict(options).items() if name not in NO_CASES}
    lists = {name: chosen[name] or [] for name in ("parameter", "loss", "only", "skip")}
    return {"as": chosen.pop("as_"), **chosen, **lists}


@fuzz.command(name="replay")
def replay_corpus(*, folder: Path = FUZZ, timeout: float = REPLAY_SECONDS) -> int:
    """Run the finds of a folder again, and say which are fixed.

    One that passes three times is fixed; one that passes and then fails is flaky. Exit status: 0 all are
    fixed, or there are none, 1 some are still there or flaky, 2 there is no such folder, 3 some cannot run.

    Parameters
    ----------
    folder
        Of the fuzz run, or of finds.
    timeout
        Seconds that each run may take.
    """
    files = _corpus(folder)
    if not files:
        print(f"no finds in {folder}")
        return HOLDS
    return replay_saved(files, timeout=timeout)


@fuzz.command(name="prune")
def prune_corpus(*, folder: Path = FUZZ, timeout: float = REPLAY_SECONDS) -> int:
    """Remove the finds that are fixed, and of several with one target and fingerprint all but the smallest.

    What is flaky, or cannot run here, is kept. Exit status: 0, or 2 where there is no such folder.

    Parameters
    ----------
    folder
        Of the fuzz run, or of finds.
    timeout
        Seconds that each run of a find may take.
    """
    if not timeout > 0:
        raise Unusable("timeout", f"expected a number of seconds, got {timeout}")
    files = _corpus(folder)
    from ..fuzz.corpus import larger_ones
    from ..show.replay import replay

    larger = larger_ones(files)
    for file in files:
        why = "there is a smaller one" if file in larger else ""
        if not why:
            (replayed,) = replay([file], timeout)
            why = "fixed" if replayed.state == "fixed" else ""
            if not why:
                print(f"kept {file}: {replayed.state}")
                continue
        file.unlink()
        print(f"removed {file}: {why}")
    return HOLDS


def _corpus(folder: Path) -> list[Path]:
    """Return the finds of a fuzz run's folder, or of a folder of finds."""
    if not folder.is_dir():
        raise Unusable("folder", f"there is no folder {folder}")
    from ..fuzz import corpus

    inner = folder / corpus.FOLDER
    return corpus.files(inner if inner.is_dir() else folder)


def _read_jobs(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise Unusable("jobs", f"expected auto, or a number of processes from 1 on, got {text!r}")
    return int(text)


def _open(folder: Path, resume: bool, arguments: dict[str, Any], shard: Shard) -> Log:
    """Open the log: a new one, or to go on, that of the same arguments."""
    path = folder / LOG
    try:
        log = Log(path)
    except Busy as error:
        raise Unusable("folder", f"another run writes into {folder}") from error
    except ValueError as error:
        raise Unusable("folder", str(error)) from error
    except OSError as error:
        raise Unusable("folder", f"cannot write {path}: {error.strerror or error}") from error
    try:
        if not log.lines:
            return log
        first = log.lines[0]
        if not isinstance(first, Begun):
            raise Unusable("folder", f"{path}: expected the arguments of a run in the first line")
        if resume:
            compare("--", first.arguments, arguments)
            compare("--", {"shard": first.shard}, {"shard": str(shard)})
            return log
        if not _is_over(log.lines):
            done = sum(not isinstance(line, Begun | Replayed | Ended) for line in log.lines)
            raise Unusable(
                "folder",
                f"{folder} has a run that did not end, of {done} units and finds: go on with --resume, "
                f"or name another folder, or remove {path}",
            )
    except BaseException:
        log.close()
        raise
    log.close()
    number = next(n for n in range(1, sys.maxsize) if not path.with_name(f"log-{n}.ndjson").exists())
    path.rename(path.with_name(f"log-{number}.ndjson"))
    return Log(path)


def _is_over(lines: list[Line]) -> bool:
    """Whether a run came to its end, and was not interrupted."""
    last = lines[-1]
    return isinstance(last, Ended) and not last.why.startswith("SIG")
