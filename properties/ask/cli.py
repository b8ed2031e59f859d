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
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import App, CoercionError, CycloptsError, MissingArgumentError, Parameter, Token
from rich.markup import escape

from ..forms import NAMES
from ..names import FORMULAS, ROWS_OF
from ..options import COUNTEREXAMPLES, KEY, CommandOptions, FuzzOptions, Options
from ..show.console import Console
from ..show.text import own, plain
from ..verify.arguments import (
    Unusable,
    ask,
    check_file,
    check_folder,
    check_target,
    read_seconds,
    read_widths,
    without_password,
)
from ..verify.shards import found
from ..worlds import server, torchrun
from . import FALSIFIED, HOLDS, NOT_RUN, USAGE
from .project import COMMANDS, FILE, Project, check_place, filled
from .scope import Asked, read, subject_of

KINDS: dict[object, str] = {
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    bool: "nothing, true or false",
}
"""What a value of a type is, in words."""
Several = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]
DEFAULTS = CommandOptions()
# so that -1s is refused by the option's name
Options.__annotations__["max_time"] = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


def _whole(_: object, tokens: Sequence[Token]) -> int:
    """Read a whole number: 1.5 is none, which would be rounded."""
    return int(tokens[0].value)


for kind in (Options, FuzzOptions):
    kind.__annotations__ |= {
        name: Annotated[hint, Parameter(converter=_whole)]
        for name, hint in kind.__annotations__.items()
        if hint in (int, int | None)
    }

app = App(
    name="verified-losses",
    version=lambda: metadata.version("verified-losses"),
    help="Verify contrastive losses against their oracles, over drawn cases and real process worlds.",
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)
app.register_install_completion_command(
    help="Teach the shell to complete the command: bash, zsh or fish, by --shell or found out."
)


@app.command(config=filled())
def certify(
    target: str | None = None,
    *,
    options: Annotated[CommandOptions, Parameter(name="*")] = DEFAULTS,
    begun: Annotated[float, Parameter(parse=False)],
    tokens: Annotated[Sequence[str], Parameter(parse=False)],
) -> int:
    """Verify losses, yours or the shipped ones: every property, in every world, over drawn cases.

    Without a target: those that `[tool.verified-losses]` in the pyproject.toml of the current folder lists,
    which states options too; else the shipped losses. What is given here wins.

    Prints what does not hold as soon as a case shows it, then a line a property and each defect with its
    smallest case, and writes the certificate. Exit status: 0 everything holds, 1 something is falsified,
    2 the target or an argument is unusable, 3 nothing is falsified but something that was asked for could
    not run (or the suite itself failed, which it says), 130 interrupted (what was done is written), 143
    terminated.

    For example, `verified-losses certify --loss clip siglip --world proc:2 --max-examples 200
    --seed 7` looks harder at two losses in two processes, and `verified-losses certify
    mypackage.losses:MyLoss --as clip` verifies a loss of your own.

    Parameters
    ----------
    target
        An implementation, package.module:Name or path/to/file.py:Name: a class, a function, or a function
        that returns an object. How it is called is found out first, and printed. It runs in processes of its
        own; a call of more than 20 s counts as hung.
    options
        All the others.
    begun
        What `time.monotonic()` was as the process began.
    tokens
        The command line.
    """
    deadline = begun + (math.inf if options.max_time is None else read_seconds(options.max_time))
    json, html, junit = files = options.json, options.html, options.junit
    check_folder(options.counterexamples, "counterexamples")
    for argument, file in zip(("json", "html", "junit"), files, strict=True):
        check_file(file, argument)
    if options.faults is not None:
        return _certify_faults(target, options, deadline, tokens)
    asked = requested([] if target is None else [target], options, tokens)
    find_beside()
    scope = read(asked, options, os.environ)

    if any(spec.kind == "torchrun" for spec in scope.worlds):
        if torchrun.is_executor():
            return torchrun.serve()
        torchrun.lead()
    server.start(compiles=scope.compiles(options))  # which imports torch too
    from ..show.annotations import render
    from ..show.certificate import Asked
    from ..verify.plan import working
    from . import plans
    from . import run as running

    targets: plans.Targets = scope.targets
    places = working(scope.devices)
    where = options.world, options.max_examples, options.only, options.skip, places
    planned = plans.planned(plans.unlooked(targets), *where)
    console = running.printer()
    if scope.are_strange:
        with running.waiting(Console(stderr=True, emoji=False), targets):
            targets = plans.fitted(targets, options.world, places, deadline)
        planned = plans.planned(targets, *where)
    command = without_password(shlex.join([*app.name, *sys.argv[1:]]))
    arguments = Asked(options.seed, options.max_examples, options.world, command, ",".join(places))
    said = plans.unasked(targets, options.world, options.only, options.skip, places)
    run = running.Run(targets, planned, arguments, scope.known, shard=scope.shard, unasked=said)
    running.save(run.record, json, html, junit)
    torchrun.last_words = running.last_words(run, json)
    save = running.saver(run, json)
    running.verify(run, console, options.counterexamples, deadline, options.fail_fast, save, options.database)
    running.show(run, console)
    record = run.record
    running.save(record, json, html, junit)
    status = running.conclude(run, record.verdict, console)
    running.show_files(console, json, html, junit)
    for line in render(record, Path.cwd()) if options.format == "github" else []:
        print(line)
    return status


def _certify_faults(
    target: str | None, options: CommandOptions, deadline: float, tokens: Sequence[str]
) -> int:
    """Inject faults; return the exit status.

    Raises:
        Unusable: the target is, or an option.
    """
    from .faults import ask_faults  # imports msgspec

    asked = requested([] if target is None else [target], options, tokens)
    find_beside()
    asking = ask_faults(options)
    scope = read([] if asking.again else asked, options, os.environ)
    if scope.trainers:
        raise Unusable("faults", "says nothing of a step: leave it out with --as step")
    server.start(compiles=False)
    from ..verify.plan import fitted
    from . import run as running
    from .inject import certify_faults

    subjects = scope.subjects
    if scope.are_strange:
        with running.waiting(Console(stderr=True, emoji=False), subjects):
            subjects = fitted(subjects, deadline)
    return certify_faults(asking, subjects, options, deadline, running.printer())


@app.command
def inspect(
    target: str,
    *,
    contract: Annotated[str | None, Parameter(name="--as")] = None,
    call: str = "",
    parameter: Several = None,
    features: str = "",
    widths: str = "",
    interpret: bool = False,
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
    widths
        The widths of features that the target takes, as for certify.
    interpret
        Run the target's Triton kernels in Triton's interpreter, as for certify.
    """
    find_beside()
    check_target(target)
    names = [contract] if contract else [one for one in (*NAMES, *FORMULAS) if one in ROWS_OF or not widths]
    asked = dict(
        ask(
            target,
            one,
            call=call,
            parameters=parameter or (),
            features=features,
            widths=read_widths(widths),
            interpret=interpret,
        )
        for one in names
    )
    server.start(compiles=False)
    from .inspect import inspected

    stated = {"call": [call], "parameter": parameter or [], "features": [features], "widths": [widths]}
    options = [f"--{name}={value}" for name, values in stated.items() for value in values if value]
    return inspected(asked, [*options, *(["--interpret"] * interpret)])


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


def requested(targets: Sequence[str], options: Options, tokens: Sequence[str]) -> Asked:
    """Return what is to be verified: of the user's, or nothing, for the shipped losses.

    Args:
        targets: those of the command line; none for those that pyproject.toml lists.
        options: of the command line.
        tokens: the command line, which is read again for each target that pyproject.toml says more about.

    Raises:
        Unusable: options contradict each other, or pyproject.toml is unusable.
    """
    if options.loss and (targets or options.as_):
        raise Unusable("loss", "names shipped losses; leave it out where a target is given")
    if not targets and options.as_ is not None:
        raise Unusable("contract", "expected a target before it, package.module:Name or file.py:Name")
    if options.loss:
        return []
    project = Project.read()
    asked: list[tuple[str, Options]] = []
    for target in targets:
        entries = project.of(target, options.as_)
        asked += [(target, _of_entry(tokens, entry)) for entry in entries] or [(target, options)]
    if not targets:
        check_place()
        for number, entry in enumerate(project.targets):
            asked.append((entry["target"], _of_entry(tokens, entry)))
            try:
                subject_of(*asked[-1])
            except Unusable as error:
                said = error.as_option("")
                if said.partition(":")[0] not in entry:
                    raise
                raise Unusable("", f"{FILE}: {KEY} targets[{number}] {said}") from error
    return asked


def find_beside() -> None:
    """Find modules beside the caller, and none of them in the place of one that the suite needs."""
    sys.path.append("")


def options_of(tokens: Sequence[str]) -> Any:
    """Return the options that a command line states, and pyproject.toml.

    Raises:
        CycloptsError: they cannot be read.
        Unusable: pyproject.toml is.
    """
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return bound.arguments.get("options", DEFAULTS)


def _of_entry(tokens: Sequence[str], entry: dict[str, Any]) -> Options:
    """Return the options for a target of pyproject.toml: of the command line, else its own, else of all."""
    command = app[tokens[0]]
    before, command.config = command.config, filled(entry)
    try:
        options: Options = options_of(tokens)
    finally:
        command.config = before
    return options


def main(arguments: list[str] | None = None, begun: float | None = None) -> None:
    """Run the command line, or these arguments, and exit with the status.

    Args:
        arguments: those of the process, if not given.
        begun: what `time.monotonic()` was as the process began; now, if not given.
    """
    tokens = sys.argv[1:] if arguments is None else arguments
    hidden = {"begun": time.monotonic() if begun is None else begun, "tokens": tokens}
    console = Console(stderr=True, emoji=False)

    def refuse(said: str) -> int:
        console.print(f"[bold red]error[/] {escape(said)}", highlight=False, soft_wrap=True)
        return USAGE

    try:
        command, bound, unparsed = app.parse_args(tokens, exit_on_error=False, print_error=False)
        given: dict[str, Any] = {name: hidden[name] for name in unparsed}
        status = command(*bound.args, **bound.kwargs, **given)
    except Unusable as error:
        if error.detail:
            console.print(escape(own(plain(error.detail))), highlight=False, soft_wrap=True)
        status = refuse(named(error, tokens))
    except CycloptsError as error:
        status = refuse(unparsed_argument(error))
    sys.exit(status if isinstance(status, int) else HOLDS)


def named(error: Unusable, tokens: Sequence[str], prefix: str = "--") -> str:
    """Return what is unusable, by the name that it has where it was stated."""
    said = error.as_option(prefix)
    option = said.partition(":")[0].removeprefix(prefix)
    is_given = any(token.partition("=")[0] == f"--{option}" for token in tokens)
    command = tokens[0] if tokens else ""
    if not said.startswith(prefix) or is_given or command not in COMMANDS:
        return said
    place = Project.read().states(command, option)
    return said.replace(f"{prefix}{option}", place, 1) if place else said


def unparsed_argument(error: CycloptsError) -> str:
    """Return in one line what cannot be read of the command line, or of pyproject.toml."""
    if isinstance(error, CoercionError) and error.token is not None and error.token.keyword:
        wanted: Any = error.target_type
        choices = ", ".join(map(str, get_args(wanted)))
        kind = KINDS.get(wanted) or (f"one of {choices}" if choices else str(wanted))
        where = f"{error.token.source}: " if error.token.source.endswith(".toml") else ""
        return f"{where}{error.token.keyword.strip('[]')}: expected {kind}, got {error.token.value!r}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{error.argument.name}: expected a value after it, got nothing"
    error.verbose = False
    return " ".join(str(error).split())
