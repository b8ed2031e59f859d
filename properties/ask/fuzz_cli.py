"""The command `verified-losses fuzz`, with `fuzz replay` and `fuzz prune`.

Arguments are checked, and the folder is opened, before torch is imported.
"""

import math
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from ..devices import CPU
from ..fuzz.lines import Begun, Ended, Line, Replayed
from ..fuzz.log import Busy, Log, compare
from ..names import DTYPES, LAWS, Convention
from ..subjects import Target
from ..verify.arguments import (
    WORLDS,
    Subjects,
    Unusable,
    ask,
    check_database,
    check_folder,
    check_max_examples,
    check_seed,
    check_target,
    kept_laws,
    read_config,
    read_seconds,
    read_widths,
    some_devices,
    some_worlds,
)
from ..verify.shards import Shard, read_shard
from ..worlds import server
from . import HOLDS
from .cli import (
    AS,
    LOSS,
    Several,
    Time,
    app,
    check_no_form,
    named_target,
    read_known,
    replay_saved,
    shipped_subjects,
)

FOLDER = Path("build/fuzz")
MAX_EXAMPLES = 100
LOG = "log.ndjson"
REPLAY_SECONDS = 120.0

fuzz = App(name="fuzz")
app.command(fuzz)


@fuzz.default
def run_fuzz(
    *target: str,
    contract: Annotated[str | None, Parameter(name="--as", help=AS)] = None,
    convention: Convention = "exact",
    config: str = "",
    call: str = "",
    parameter: Several = None,
    features: str = "",
    widths: str = "",
    equal_rows: bool = False,
    interpret: Annotated[bool, Parameter(negative=())] = False,
    strict: Annotated[bool, Parameter(negative=())] = False,
    large: Annotated[bool, Parameter(negative=())] = False,
    loss: Annotated[Several, Parameter(help=LOSS)] = None,
    only: Several = None,
    skip: Several = None,
    world: str = WORLDS,
    device: str = CPU,
    dtype: str = ",".join(DTYPES),
    max_examples: int = MAX_EXAMPLES,
    max_time: Time = None,
    rounds: int | None = None,
    fail_fast: Annotated[bool, Parameter(negative=())] = False,
    resume: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    jobs: str = "auto",
    known: Path | None = None,
    folder: Path = FOLDER,
    shard: str | None = None,
    database: str | None = None,
    begun: Annotated[float, Parameter(parse=False)],
) -> int:
    """Fuzz losses, yours or the shipped ones, until the time is over, and go on after a find.

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
    contract
        What they must do.
    convention
        Which gradients they are held to: exact, or those of open_clip, where the contract has the option.
    config
        Options to pin, as local_loss=true,gather_with_grad=true.
    call
        How they are called, as for certify.
    parameter
        What they hold themselves, as for certify.
    features
        What they do with rows, as for certify.
    widths
        The widths of features that they take, as for certify.
    interpret
        Run the target's Triton kernels on the CPU, in Triton's interpreter; cases stay small.
    equal_rows
        Give every rank equally many rows.
    strict
        Judge unequal rows that a target does not support, and a second derivative that raises, as defects
        too, and not as its limits.
    large
        Draw batches just beyond 4,096 pairs instead of 1,024, as for certify.
    loss
        Which shipped losses. Else all, where no target is given.
    only
        Which properties, by name; * and ? stand for any text and any letter.
    skip
        Which properties not.
    world
        Where ranks run, as for certify.
    device
        Where the tensors are, as for certify.
    dtype
        Of the inputs, separated by commas.
    max_examples
        Cases of a property in a round in which nothing is new; the first rounds are shorter, and costly
        properties take a share of it.
    max_time
        Seconds for everything, as 60s, 10m or 8h, the start included. With --resume, from now on.
    rounds
        End after so many rounds. The same seed and rounds give the same finds, in however many processes:
        branches, which may depend on what ran before, then give nobody more cases.
    fail_fast
        Stop at the first find that is new: neither of an earlier run nor accepted by --known. Others do not
        count for the exit status then.
    resume
        Go on with the run in the folder, which was killed or interrupted; begin one if there is none.
    seed
        The same seed draws the same cases.
    jobs
        How many processes draw and judge, or auto: as many as there are cores that this process may use. Each
        starts the ranks of its worlds besides.
    known
        A TOML file of findings to accept, as for certify.
    folder
        Where everything is written. The finds that are there stay there, and are run again first.
    shard
        Fuzz one part of the whole, i/n with i from 1 to n, as for certify; each shard needs a folder of its
        own.
    database
        Where Hypothesis keeps cases that failed, as for certify: each unit tries first those of its property.
        What is found then depends on what is kept there too, and no longer on seed and rounds alone.
    begun
        What `time.monotonic()` was as the process began.
    """
    seconds = math.inf if max_time is None else read_seconds(max_time)
    check_folder(folder, "folder")
    check_seed(seed)
    kept_laws(LAWS, only, skip)
    accept = read_known(known)
    if not target and contract is None:
        check_no_form(call, parameter, features, widths)
    how = call, parameter or [], features, interpret, strict, large, read_widths(widths)
    subjects = _subjects(target, contract, convention, config, equal_rows, loss, dtype.split(","), how)
    asked_for = some_devices(device)
    if any(spec.kind == "torchrun" for spec in some_worlds(world, asked_for)):
        raise Unusable("world", "torchrun: each process that draws starts ranks of its own; certify takes it")
    check_max_examples(max_examples)
    if rounds is not None and rounds < 1:
        raise Unusable("rounds", f"expected at least 1, got {rounds}")
    if database is not None:
        check_database(database)
    processes = _read_jobs(jobs)
    part = read_shard(shard, os.environ)
    arguments: dict[str, Any] = {
        "target": list(target), "as": contract, "convention": convention, "config": config,
        "call": call, "parameter": parameter or [], "features": features, "widths": widths, "strict": strict,
        "equal_rows": equal_rows, "interpret": interpret, "large": large, "loss": loss or [],
        "only": only or [], "skip": skip or [], "world": world, "device": device, "dtype": dtype,
        "max_examples": max_examples, "seed": seed,
    }  # fmt: skip
    log = _open(folder, resume, arguments, part)
    try:
        server.start()  # which imports torch too
        from .fuzz_run import Request, run

        command = shlex.join([*app.name, *sys.argv[1:]])
        request = Request(
            subjects, bool(target), world, asked_for, tuple(only or ()), tuple(skip or ()), arguments,
            max_examples, rounds, fail_fast, seed, processes, accept, folder, part, begun, seconds, command,
            database,
        )  # fmt: skip
        return run(request, log)
    finally:
        log.close()


@fuzz.command(name="replay")
def replay_corpus(*, folder: Path = FOLDER, timeout: float = REPLAY_SECONDS) -> int:
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
def prune_corpus(*, folder: Path = FOLDER, timeout: float = REPLAY_SECONDS) -> int:
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


def _subjects(
    targets: tuple[str, ...],
    contract: str | None,
    convention: Convention,
    config: str,
    equal_rows: bool,
    loss: list[str] | None,
    dtypes: list[str],
    how: tuple[str, list[str], str, bool, bool, bool, tuple[int, ...]],
) -> Subjects:
    if not targets and contract is None:
        return shipped_subjects(loss, config, dtypes, how[5])
    names = [named_target(one, loss) for one in targets or ("",)]
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise Unusable("", f"expected each target once, got {', '.join(twice)} several times")
    short = Counter(Target.of(name).name for name in names)
    pinned = read_config(config)
    subjects = {
        Target.of(name).name if short[Target.of(name).name] == 1 else name: ask(
            name, contract, convention, pinned, equal_rows, dtypes, *how
        )
        for name in names
    }
    for name in names:
        check_target(name)
    return subjects


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
