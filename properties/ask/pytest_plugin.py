"""`pytest --certify TARGET --certify-as CONTRACT`: one test item for each property and world."""

import base64
import contextlib
import math
import pickle
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from ..options import CertifyOptions, names

if TYPE_CHECKING:
    from ..show.defects import AnyFinding
    from .plans import AnyCheck, Targets, Verifier
    from .scope import Asked, Scope

PREFIX = "--certify-"
"""How its options begin."""


@dataclass
class Found:
    """What one process finds out, and tells the workers of xdist."""

    scope: "Scope"
    options: CertifyOptions
    targets: "Targets"
    """Each asked only for what it takes."""
    devices: tuple[str, ...]
    placements: dict[int, Any]
    """Of ranks of NCCL."""
    deadline: float
    """What `time.monotonic()` is when the time for all checks is over."""

    def planned(self) -> "list[AnyCheck]":
        """Return the checks, of all shards, those of one target together."""
        from .plans import planned

        options = self.options
        where = options.world, options.max_examples, options.only, options.skip, self.devices
        found = planned(self.targets, *where)
        return [one for label in self.targets for one in found if one.label == label]


FOUND: pytest.StashKey[Found] = pytest.StashKey()


@pytest.hookimpl(trylast=True)  # once Hypothesis's own plugin has ended its initialisation
def pytest_sessionstart(session: pytest.Session) -> None:
    """Look at the devices and the targets, in one process, which tells the workers of xdist what it found."""
    begun, config = time.monotonic(), session.config
    sys.path.append(str(config.invocation_params.dir))  # a module beside the caller is found
    if hasattr(config, "workerinput"):
        from ..worlds import nccl, server

        found: Found = pickle.loads(config.workerinput["certify"])
        config.stash[FOUND] = found
        nccl.PLACED.update(found.placements)
        if found.scope.are_strange:
            server.start(compiles=found.scope.compiles(found.options))
        return
    with _installed():
        from cyclopts import CycloptsError

        from ..show.text import shortened
        from ..verify.arguments import Unusable, check_file, read_seconds
        from ..worlds import server
        from . import cli, scope
    tokens = _tokens(config)
    try:
        options: CertifyOptions = cli.options_of(tokens)
        asked = _asked(config, tokens, options)
        deadline = begun + (math.inf if options.max_time is None else read_seconds(options.max_time))
        for name in FILES:
            check_file(getattr(options, name), name)
        read = scope.read(asked, options, {})
        if asked:
            server.start(compiles=read.compiles(options))
        with _installed():  # these import torch, while the server does
            from ..verify.plan import working
            from ..worlds import nccl
            from . import plans
        unlooked, devices = plans.unlooked(read.targets), working(read.devices)
        found = Found(read, options, unlooked, devices, nccl.PLACED, deadline)
        found.planned()  # wrong arguments raise before a target is imported
        found.targets = read.targets
        if asked:
            found.targets = plans.fitted(read.targets, options.world, devices, deadline)
    except CycloptsError as error:
        raise pytest.UsageError(cli.unparsed_argument(error).replace("--", PREFIX, 1)) from error
    except Unusable as error:
        said = cli.named(error, tokens, PREFIX)
        raise pytest.UsageError(f"{said}\n{shortened(error.detail)}" if error.detail else said) from error
    config.stash[FOUND] = found
    if any(getattr(config.option, f"certify_{name}") is not None for name in (*FILES, "format")):
        config.pluginmanager.register(Writer(config))


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Say what to install where an import fails."""
    try:
        yield
    except ImportError as error:
        raise pytest.UsageError(f"--certify: needs verified-losses[verify] installed ({error})") from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist what the targets take."""
    if FOUND in node.config.stash:
        node.workerinput["certify"] = pickle.dumps(node.config.stash[FOUND])


@pytest.hookimpl(tryfirst=True)  # before -k and the like choose
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the checks to what was collected."""
    from ..verify.plan import own_checks
    from .plans import Verifier
    from .run import databases

    found = config.stash[FOUND]
    options, planned = found.options, found.planned()
    kept = databases(options.database, warnings.warn)
    verifier = Verifier(options.max_examples, options.seed, found.deadline, database=kept)
    numbers = {id(check): number for number, check in enumerate(planned)}
    own = own_checks(planned, found.scope.shard)
    for label in found.targets:
        name = f"certify::{label}"
        checks = {numbers[id(check)]: check for check in own if check.label == label}
        target = Target.from_parent(session, name=name, nodeid=name, checks=checks, verifier=verifier)
        items.extend(session.genitems(target))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """Give the finding of a check to the process that writes the certificate."""
    report = yield
    if isinstance(item, Property) and item.finding is not None and call.when == "call":
        # a check cannot be sent, but every process plans the same ones
        sent = pickle.dumps((item.number, replace(item.finding, check=None)))  # type: ignore[arg-type]
        report.certify = base64.b85encode(sent).decode()
    return report


FILES = "json", "html", "junit"


class Writer:
    """Writes the certificate at the end, where one of its files is asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.findings: list[AnyFinding] = []
        self.planned = config.stash[FOUND].planned()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the finding of a check."""
        if hasattr(report, "certify"):
            number, finding = pickle.loads(base64.b85decode(report.certify))
            self.findings.append(replace(finding, check=self.planned[number]))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the files, and print annotations where they are asked for."""
        from pathlib import Path

        from ..show.annotations import render
        from ..show.certificate import Asked
        from ..show.defects import explain
        from ..verify.plan import left_out
        from .plans import unasked
        from .run import Run, save

        found, place, option = self.config.stash[FOUND], self.config.invocation_params.dir, self.config.option
        options = found.options
        asked = Asked(options.seed, options.max_examples, options.world, "pytest", ",".join(found.devices))
        said = unasked(found.targets, options.world, options.only, options.skip, found.devices)
        known, shard = found.scope.known, found.scope.shard
        run = Run(found.targets, self.planned, asked, known, self.findings, shard=shard, unasked=said)
        done = {finding.key for finding in self.findings}
        run.not_verified += left_out(
            [one for one in run.own if (one.label, one.law.name, one.world.name) not in done]
        )
        run.defects = explain(self.findings, place / options.counterexamples, found.deadline)
        record = run.record
        files = {name: getattr(options, name) for name in FILES if getattr(option, f"certify_{name}")}
        save(record, **{name: place / files[name] if name in files else None for name in FILES})
        for name, file in files.items():
            terminalreporter.write_line(f"{name} of the certificate: {file}")
        for line in render(record, Path.cwd()) if options.format == "github" else []:
            terminalreporter.write_line(line)


class Target(pytest.Collector):
    """A loss, or a training step, to verify."""

    def __init__(self, *, checks: "dict[int, AnyCheck]", verifier: "Verifier", **node: Any) -> None:
        super().__init__(**node)
        self.checks = checks
        self.verifier = verifier

    def collect(self) -> Iterable[pytest.Item]:
        """Return an item for each check."""
        for number, check in self.checks.items():
            name = f"{check.law.name}[{check.world.name}]"
            nodeid = f"{self.nodeid}::{name}"  # as text: pytest then knows its part in brackets
            what: dict[str, Any] = {"number": number, "check": check, "verifier": self.verifier}
            yield Property.from_parent(self, name=name, nodeid=nodeid, **what)


class Property(pytest.Item):
    """A property to verify in one kind of world."""

    def __init__(self, *, number: int, check: "AnyCheck", verifier: "Verifier", **node: Any) -> None:
        super().__init__(**node)
        self.number = number
        self.check = check
        self.verifier = verifier
        self.finding: AnyFinding | None = None

    def runtest(self) -> None:
        """Verify it; fail if it does not hold or cannot run, unless the finding is known."""
        from .api import conclude

        found = self.config.stash[FOUND]
        items, now = self.session.items, time.monotonic()
        later = sum(isinstance(one, Property) for one in items[items.index(self) + 1 :])
        share = (self.verifier.deadline - now) / (1 + later)
        self.finding = finding = self.verifier.verify(self.check, now + share)
        if reason := found.scope.known.reason(finding):
            pytest.xfail(reason)
        if found.options.fail_fast and finding.verdict == "falsified":
            self.session.shouldfail = f"{PREFIX}fail-fast: {finding.loss}: {finding.law} does not hold"
        conclude(finding, self.config.invocation_params.dir / found.options.counterexamples, PREFIX)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        """Return what is wrong and the smallest case, without a traceback."""
        from .api import NotCertified

        if isinstance(excinfo.value, NotCertified):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Return the place that reports name: no file, but this plugin's word."""
        return self.config.rootpath / "certify", None, self.nodeid.removeprefix("certify::")


def _tokens(config: pytest.Config) -> list[str]:
    """Return the command line of `certify` that says what the options say, but for targets."""
    tokens = ["certify"]
    for name in names(CertifyOptions):
        value = getattr(config.option, f"certify_{name.replace('-', '_')}")
        if name == "seed" and value is None:
            value = _seed_of_hypothesis(config)
        if value is None or name == "as":
            continue
        if value is True:
            tokens.append(f"--{name}")
        else:
            tokens += [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    return tokens


def _asked(config: pytest.Config, tokens: list[str], options: CertifyOptions) -> "Asked":
    """Return the targets, and what is asked of each."""
    from ..subjects import Target
    from . import cli

    targets, contracts = config.option.certify, config.option.certify_as or []
    if None in targets:
        if len(targets) > 1:
            raise pytest.UsageError("--certify: expected a target each time, or --certify once without one")
        if not (asked := cli.requested([], options, tokens)) and not options.loss:
            expected = "a target after it, or targets in [tool.verified-losses] of pyproject.toml"
            raise pytest.UsageError(f"--certify: expected {expected}")
        return asked
    wrong = f"--certify-as: expected one for each --certify, {len(targets)}, got {len(contracts)}"
    if contracts and len(contracts) != len(targets):
        raise pytest.UsageError(wrong)
    asked = []
    for number, target in enumerate(targets):
        own = [*tokens, *(["--as", contracts[number]] if contracts else [])]
        asked += cli.requested([target], cli.options_of(own), own)
    if any(one.as_ is None for _, one in asked):
        raise pytest.UsageError(wrong)
    folder = config.invocation_params.dir
    placed = [(Target.of(target), one) for target, one in asked]
    return [
        (str(Target(str(folder / one.file), one.name)) if one.file else str(one), its) for one, its in placed
    ]


def _seed_of_hypothesis(config: pytest.Config) -> int | None:
    seed = config.getoption("hypothesis_seed", None)
    try:
        return None if seed is None else int(seed)
    except ValueError:
        problem = f"expected an integer, or --certify-seed beside it, got {seed!r}"
        raise pytest.UsageError(f"--hypothesis-seed: {problem}") from None
