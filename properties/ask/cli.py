"""The command `verified-losses`.

Arguments are checked before torch is imported, which takes seconds, and before a process is started.
"""

import json as json_text
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import App, CoercionError, CycloptsError, MissingArgumentError, Parameter
from rich.console import Console
from rich.markup import escape

from ..devices import CPU
from ..forms import NAMES
from ..names import (
    CONTRACTS,
    DTYPES,
    FORMULAS,
    LAWS,
    LOSSES,
    STEP,
    STEP_DTYPES,
    STEP_LAWS,
    Convention,
)
from ..show.text import own, plain
from ..subjects import SHIPPED, Target
from ..verify.arguments import (
    COUNTEREXAMPLES,
    MAX_EXAMPLES,
    WORLDS,
    Subjects,
    Unusable,
    ask,
    ask_step,
    check_config,
    check_database,
    check_file,
    check_folder,
    check_max_examples,
    check_seed,
    check_target,
    kept_laws,
    read_config,
    read_seconds,
    some_devices,
    some_dtypes,
    some_step_worlds,
    some_worlds,
    without_password,
)
from ..verify.known import Known
from ..verify.shards import found, read_shard
from ..worlds import server, torchrun
from . import FALSIFIED, HOLDS, NOT_RUN, USAGE

AS = (
    f"What the target must do: {', '.join([*CONTRACTS, *FORMULAS])}, "
    "or file.py:name of a contract of your own; step: the target makes a training step."
)
LOSS = f"Which shipped losses: {', '.join(LOSSES)}. Else all."
KINDS = {int: "a whole number", float: "a number", bool: "nothing, true or false"}
"""What a value of a type is, in words."""
Time = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
Several = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]

app = App(
    name="verified-losses",
    version=lambda: metadata.version("verified-losses"),
    help="Verify contrastive losses against their oracles, over drawn cases and real process worlds.",
)


@app.command
def certify(
    target: str | None = None,
    *,
    contract: Annotated[str | None, Parameter(name="--as", help=AS)] = None,
    convention: Convention = "exact",
    config: str = "",
    call: str = "",
    parameter: Several = None,
    features: str = "",
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
    fail_fast: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    known: Path | None = None,
    json: Path = Path("build/certificate.json"),
    counterexamples: Path = COUNTEREXAMPLES,
    html: Path | None = None,
    junit: Path | None = None,
    shard: str | None = None,
    database: str | None = None,
    begun: Annotated[float, Parameter(parse=False)],
) -> int:
    """Verify losses, yours or the shipped ones: every property, in every world, over drawn cases.

    Prints what does not hold as soon as a case shows it, then a line a property and each defect with its
    smallest case, and writes the certificate. Exit status: 0 everything holds, 1 something is falsified,
    2 the target or an argument is unusable, 3 nothing is falsified but something that was asked for could
    not run, 130 interrupted (what was done is written).

    For example, `verified-losses certify --loss clip siglip --world proc:2 --max-examples 200
    --seed 7` looks harder at two losses in two processes, and `verified-losses certify
    mypackage.losses:MyLoss --as clip` verifies a loss of your own.

    Parameters
    ----------
    target
        An implementation, package.module:Name or path/to/file.py:Name: a class, a function, or a function
        that returns an object. How it is called is found out first, and printed. It runs in processes of its
        own; a call of more than 20 s counts as hung.
    contract
        What the target must do.
    convention
        Which gradients the target is held to: exact, or those of open_clip, where the contract has
        the option.
    config
        Options to pin, as local_loss=true,gather_with_grad=true. The target is given, and held to, no other
        value of them; all values are drawn of those that are not pinned.
    call
        How the target is called, where that is not found out: an expression of target and what the contract
        has, as 'target(scale * text @ image.T)' or 'target(image, text)["loss"]'.
    parameter
        What the module holds itself, as logit_scale=exp(t_prime) or temperature=tau.
    features
        raw: the target takes rows as they are; normalized: it normalises them; unit: it gets rows that are
        normalised, whichever it does. Found out, if not given.
    interpret
        Run the target's Triton kernels on the CPU, in Triton's interpreter; cases stay small.
    equal_rows
        Give every rank equally many rows, for a target that cannot do otherwise.
    strict
        Judge what a target may never have promised as a defect too: unequal rows that it does not support,
        and a second derivative that raises. Else these are its limits: they are listed, and leave the verdict
        as it is. The shipped losses are always judged so.
    large
        Draw a batch just beyond 4,096 pairs instead of 1,024: it takes minutes, and 3 GB.
    loss
        Which shipped losses. Else all.
    only
        Which properties, by name; * and ? stand for any text and any letter.
    skip
        Which properties not.
    world
        Where ranks run, separated by commas: 1 is one process, proc:2 (or 2) two real processes over gloo,
        proc:2-4 pools of two to four, hvd:2 two processes over Horovod, nccl:2 two over NCCL, sim:2-8
        simulated ranks whose number and schedule are drawn; torchrun is the processes that torchrun started,
        on several hosts: torchrun --nnodes N --nproc-per-node M -m verified_losses.properties certify ...
        --world torchrun.
    device
        Where the tensors are, separated by commas: cpu, cuda (the first GPU), cuda:1, or all, the CPU and
        every GPU that is there. Each world runs on each of them; nccl takes GPUs of its own, one a rank.
    dtype
        Of the inputs, separated by commas.
    max_examples
        Cases drawn for each property; costly properties take a share of it.
    max_time
        Seconds for everything, as 60s or 5m: fewer cases are drawn where it is short, and properties for
        which no time is left are not verified.
    fail_fast
        Stop at the first property that does not hold, unless it is known. What was not run is listed.
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
    junit
        Where to write the certificate as JUnit XML.
    shard
        Verify one part of the whole, i/n with i from 1 to n, as 1/4: each of n machines takes its checks,
        which draw the cases that they draw in one run, and `verified-losses merge` makes one certificate of
        all. If not given, it is that of a Slurm job array (SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT), or
        of the variable VERIFIED_LOSSES_SHARD, which reads as the option does.
    database
        A folder, or redis://HOST/DB, in which Hypothesis keeps cases that failed: they are tried first in the
        next run, whatever its seed. Redis is a cache, over a local folder: a run goes on without it.
    begun
        What `time.monotonic()` was as the process began.
    """
    deadline = begun + (math.inf if max_time is None else read_seconds(max_time))
    check_folder(counterexamples, "counterexamples")
    for argument, file in (("json", json), ("html", html), ("junit", junit)):
        check_file(file, argument)
    check_seed(seed)
    is_step = contract == STEP
    laws = kept_laws(STEP_LAWS if is_step else LAWS, only, skip)
    accept = read_known(known, STEP_LAWS if is_step else LAWS)
    dtypes = dtype.split(",")
    shipped = target is None and contract is None
    if is_step:
        unused = {
            "convention": convention != "exact", "call": call, "parameter": parameter, "features": features,
            "interpret": interpret, "large": large, "shard": shard, "database": database,
        }  # fmt: skip
        if dtype == ",".join(DTYPES):
            dtypes = [*STEP_DTYPES]
        asked_step = ask_step(
            named_target(target, loss), read_config(config), equal_rows, dtypes, strict, unused
        )
        step_worlds = some_step_worlds(world, some_devices(device))
        check_max_examples(max_examples)
        server.start()
        from ..show.certificate import Asked
        from . import run as running
        from .step import certify_step

        command = without_password(shlex.join([*app.name, *sys.argv[1:]]))
        return certify_step(
            Target.of(asked_step.subject.target).name,
            asked_step,
            step_worlds,
            laws,
            Asked(seed, max_examples, world, command, CPU),
            accept,
            running.printer(),
            counterexamples,
            (json, html, junit),
            deadline,
            fail_fast,
        )
    if shipped:
        check_no_form(call, parameter, features)
        subjects = shipped_subjects(loss, config, dtypes, large)
    else:
        name = named_target(target, loss)
        how = call, parameter or (), features, interpret, strict, large
        asked = ask(name, contract, convention, read_config(config), equal_rows, dtypes, *how)
        check_target(name)
        subjects = {Target.of(name).name: asked}
    asked_for = some_devices(device)
    worlds = some_worlds(world, asked_for)
    check_max_examples(max_examples)
    some_shard = read_shard(shard, os.environ)
    if database is not None:
        check_database(database)
        if "://" not in database:
            check_folder(Path(database), "database")

    if any(spec.kind == "torchrun" for spec in worlds):
        if torchrun.is_executor():
            return torchrun.serve()
        torchrun.lead()
    server.start()  # which imports torch too
    from ..show.certificate import Asked
    from ..verify.plan import fitted, plan, working
    from . import run as running

    places = working(asked_for)
    planned = plan(subjects, world, max_examples, only, skip, places)
    console = running.printer()
    if not shipped:
        with running.waiting(Console(stderr=True, emoji=False), subjects):
            subjects = fitted(subjects, deadline, places[0])
        planned = plan(subjects, world, max_examples, only, skip, places)
    command = without_password(shlex.join([*app.name, *sys.argv[1:]]))
    arguments = Asked(seed, max_examples, world, command, ",".join(places))
    run = running.Run(subjects, planned, arguments, accept, shard=some_shard)
    running.save(run.record, json, html, junit)
    torchrun.last_words = running.last_words(run, json)
    running.verify(run, console, counterexamples, deadline, fail_fast, running.saver(run, json), database)
    running.show(run, console)
    record = run.record
    running.save(record, json, html, junit)
    status = running.conclude(run, record.verdict, console)
    running.show_files(console, json, html, junit)
    return status


@app.command
def inspect(
    target: str,
    *,
    contract: Annotated[str | None, Parameter(name="--as", help=AS)] = None,
    call: str = "",
    parameter: Several = None,
    features: str = "",
) -> int:
    """Find out how a loss is called, and which contract it fits, and print the command that certifies it.

    Nothing is verified. Exit status: 0 a contract fits, 1 none does, 2 the target is unusable.

    Parameters
    ----------
    target
        An implementation, package.module:Name or path/to/file.py:Name.
    contract
        What the target must do, where that is known.
    call
        How the target is called, as for certify.
    parameter
        What the module holds itself, as for certify.
    features
        What the target does with rows, as for certify.
    """
    name = named_target(target, None)
    check_target(name)
    names = [contract] if contract else list(NAMES)
    asked = dict(ask(name, one, call=call, parameters=parameter or (), features=features) for one in names)
    server.start()
    from .inspect import inspected

    return inspected(asked)


@app.command
def merge(*paths: Path, output: Path = Path("build/merged")) -> int:
    """Make one certificate, one page and one JUnit XML of the shards of a run.

    They must be of one run: the same target and source, suite, seed, worlds and versions. What is missing or
    was cut short is named, and then the verdict is "incomplete". One defect that several shards found is
    shown once, with the smallest case; where the target can be imported, cases are run again to tell. Exit
    status: 0 everything holds, 1 something is falsified, 2 they cannot be merged, 3 nothing is falsified but
    something is missing or did not run.

    Parameters
    ----------
    paths
        What `certify --shard` and `fuzz` left: certificates, folders that hold a certificate.json, or
        folders of such folders.
    output
        Where to write certificate.json, report.html, junit.xml, counterexamples/, and finds/, all that fuzz
        has left, for `fuzz replay --folder`.
    """
    check_folder(output, "output")
    if not paths:
        raise Unusable("PATHS", "expected certificates of shards, or folders that hold them, got nothing")
    files, troubles = found(paths)
    if not files:
        raise Unusable("PATHS", f"expected at least one certificate of a shard: {'; '.join(troubles)}")
    from .merge import merge_shards

    return merge_shards(files, troubles, output)


@app.command(name="list")
def print_list(file: Path | None = None) -> int:
    """List the contracts, properties and worlds, a line each; of a file, the contracts that it has.

    Parameters
    ----------
    file
        A file with contracts of your own.
    """
    from .listing import contracts_of, everything

    if file is not None and not file.is_file():
        raise Unusable("FILE", f"there is no file {file}")
    for line in everything() if file is None else contracts_of(file):
        print(line)
    return HOLDS


@app.command(name="schema")
def print_schema() -> int:
    """Print the JSON schema of certificates."""
    from ..show.certificate import schema

    print(json_text.dumps(schema(), indent=2))
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
            raise Unusable("", f"{path}: expected a counterexample, or a folder of them")
        files += found
    if not timeout > 0:
        raise Unusable("timeout", f"expected a number of seconds, got {timeout}")
    from ..show.replay import replay

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


def read_known(path: Path | None, laws: Sequence[str] = LAWS) -> Known:
    try:
        known = Known() if path is None else Known.read(path)
        known.check(laws)
        return known
    except OSError as error:
        raise Unusable("known", f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Unusable("known", str(error)) from error


def shipped_subjects(
    names: list[str] | None, config: str, dtypes: list[str], large: bool = False
) -> Subjects:
    unknown = sorted(set(names or []) - set(SHIPPED))
    if unknown:
        raise Unusable("loss", f"expected some of {', '.join(SHIPPED)}, got {', '.join(unknown)}")
    pinned, kept = read_config(config), some_dtypes(dtypes)
    chosen = {}
    for label, (contract, subject) in SHIPPED.items():
        if not names or label in names:
            check_config(contract, pinned)
            options = *subject.options, *pinned
            chosen[label] = contract, replace(subject, options=options, dtypes=kept, large=large)
    return chosen


def check_no_form(call: str, parameter: list[str] | None, features: str) -> None:
    """Raise Unusable if a form is stated for the shipped losses, which have their own."""
    for name, value in (("call", call), ("parameter", parameter), ("features", features)):
        if value:
            raise Unusable(name, "expected a target beside it: the shipped losses have a form of their own")


def named_target(target: str | None, loss: list[str] | None) -> str:
    if loss:
        raise Unusable("loss", "names shipped losses; leave it out where a target is given")
    if not target:
        raise Unusable("contract", "expected a target before it, package.module:Name or file.py:Name")
    sys.path.insert(0, "")  # as python itself does: a module beside the caller is found
    return target


def main(arguments: list[str] | None = None, begun: float | None = None) -> None:
    """Run the command line, or these arguments, and exit with the status.

    Args:
        arguments: those of the process, if not given.
        begun: what `time.monotonic()` was as the process began; now, if not given.
    """
    times = {"begun": time.monotonic() if begun is None else begun}
    console = Console(stderr=True, emoji=False)

    def refuse(said: str) -> int:
        console.print(f"[bold red]error[/] {escape(said)}", highlight=False, soft_wrap=True)
        return USAGE

    try:
        command, bound, unparsed = app.parse_args(arguments, exit_on_error=False, print_error=False)
        given: dict[str, Any] = {name: times[name] for name in unparsed}
        status = command(*bound.args, **bound.kwargs, **given)
    except Unusable as error:
        if error.detail:
            console.print(escape(own(plain(error.detail))), highlight=False, soft_wrap=True)
        status = refuse(error.as_option("--"))
    except CycloptsError as error:
        status = refuse(_unparsed(error))
    sys.exit(status if isinstance(status, int) else HOLDS)


def _unparsed(error: CycloptsError) -> str:
    """Return in one line what cannot be read of the command line."""
    if isinstance(error, CoercionError) and error.token is not None and error.token.keyword:
        wanted: Any = error.target_type
        choices = ", ".join(map(str, get_args(wanted)))
        kind = f"one of {choices}" if choices else KINDS.get(wanted, str(wanted))
        return f"{error.token.keyword}: expected {kind}, got {error.token.value!r}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{error.argument.name}: expected a value after it, got nothing"
    error.verbose = False
    return " ".join(str(error).split())
