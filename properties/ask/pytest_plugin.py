"""`pytest --certify TARGET --certify-as CONTRACT`: one test item for each property and world."""

import math
import pickle
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from ..verify.arguments import Subjects
    from ..verify.certifier import Certifier, Check
    from ..verify.known import Known
    from ..verify.shards import Shard

PREFIX = "--certify-"
"""How its options begin."""
KNOWN: "pytest.StashKey[Known]" = pytest.StashKey()


class Found(NamedTuple):
    """What one process finds out, and tells the workers of xdist."""

    subjects: "Subjects"
    """The targets, each asked only for what it takes."""
    devices: tuple[str, ...]
    placements: dict[int, Any]
    """Of ranks of NCCL."""
    deadline: float
    """What `time.monotonic()` is when the time for all checks is over."""


FOUND: pytest.StashKey[Found] = pytest.StashKey()


@pytest.hookimpl(trylast=True)  # once Hypothesis's own plugin has ended its initialisation
def pytest_sessionstart(session: pytest.Session) -> None:
    """Look at the devices and the targets, in one process, which tells the workers of xdist what it found."""
    begun, config = time.monotonic(), session.config
    sys.path.append(str(config.invocation_params.dir))  # a module beside the caller is found
    if hasattr(config, "workerinput"):
        from ..worlds import nccl

        config.stash[FOUND] = pickle.loads(config.workerinput["certify"])
        nccl.PLACED.update(config.stash[FOUND].placements)
        config.stash[KNOWN] = _known(config)
        return
    try:
        from ..devices import CPU
        from ..show.text import shortened
        from ..verify.arguments import Unusable, check_seed, read_seconds, some_devices
        from ..verify.plan import fitted, working
        from ..worlds import nccl
    except ImportError as error:
        raise pytest.UsageError(f"--certify: needs verified-losses[verify] installed ({error})") from error
    _seed(config)
    config.stash[KNOWN] = _known(config)
    try:
        limit = config.option.certify_max_time
        deadline = begun + (math.inf if limit is None else read_seconds(limit))
        check_seed(_seed(config))
        asked = _asked(config)
        _shard(config)
        places = working(some_devices(config.option.certify_device or CPU))
        for label in asked:  # wrong arguments raise before a target is imported
            _plan(config, {label: asked[label]}, places)
        subjects = fitted(asked, deadline, places[0])
        config.stash[FOUND] = Found(subjects, places, nccl.PLACED, deadline)
    except Unusable as error:
        said = error.as_option(PREFIX)
        raise pytest.UsageError(f"{said}\n{shortened(error.detail)}" if error.detail else said) from error


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
    from ..verify.certifier import Certifier
    from ..verify.plan import own_checks

    subjects, places, _, deadline = config.stash[FOUND]
    certifier = Certifier(_max_examples(config), _seed(config), deadline)
    planned = [check for label in subjects for check in _plan(config, {label: subjects[label]}, places)]
    own = own_checks(planned, _shard(config))
    for label in subjects:
        name = f"certify::{label}"
        checks = [check for check in own if check.label == label]
        target = Target.from_parent(session, name=name, nodeid=name, checks=checks, certifier=certifier)
        items.extend(session.genitems(target))


class Target(pytest.Collector):
    """A loss to verify."""

    def __init__(self, *, checks: "list[Check]", certifier: "Certifier", **node: Any) -> None:
        super().__init__(**node)
        self.checks = checks
        self.certifier = certifier

    def collect(self) -> Iterable[pytest.Item]:
        """Return an item for each check."""
        for check in self.checks:
            name = f"{check.law.name}[{check.world.name}]"
            nodeid = f"{self.nodeid}::{name}"  # as text: pytest then knows its part in brackets
            yield Property.from_parent(self, name=name, nodeid=nodeid, check=check, certifier=self.certifier)


class Property(pytest.Item):
    """A property to verify in one kind of world."""

    def __init__(self, *, check: "Check", certifier: "Certifier", **node: Any) -> None:
        super().__init__(**node)
        self.check = check
        self.certifier = certifier

    def runtest(self) -> None:
        """Verify it; fail if it does not hold or cannot run, unless the finding is known."""
        from ..verify.arguments import COUNTEREXAMPLES
        from .api import conclude

        folder = self.config.option.certify_counterexamples or COUNTEREXAMPLES
        items, now = self.session.items, time.monotonic()
        later = sum(isinstance(one, Property) for one in items[items.index(self) + 1 :])
        share = (self.certifier.deadline - now) / (1 + later)
        finding = self.certifier.verify(self.check, now + share)
        if reason := self.config.stash[KNOWN].reason(finding):
            pytest.xfail(reason)
        conclude(finding, self.config.invocation_params.dir / folder, PREFIX)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        """Return what is wrong and the smallest case, without a traceback."""
        from .api import NotCertified

        if isinstance(excinfo.value, NotCertified):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Return the place that reports name: no file, but this plugin's word."""
        return self.config.rootpath / "certify", None, self.nodeid.removeprefix("certify::")


def _asked(config: pytest.Config) -> "Subjects":
    """Return the targets as they were asked for."""
    from ..names import DTYPES
    from ..subjects import Target
    from ..verify.arguments import ask, read_config, read_widths

    option = config.option
    targets, contracts = option.certify, option.certify_as or []
    if len(contracts) != len(targets):
        raise pytest.UsageError(
            f"--certify-as: expected one for each --certify, {len(targets)}, got {len(contracts)}"
        )
    pairs = list(zip(targets, contracts, strict=True))
    pinned = read_config(option.certify_config or "")
    dtypes = option.certify_dtype.split(",") if option.certify_dtype else DTYPES
    subjects = {}
    for label, (target, contract) in zip(_labels(pairs), pairs, strict=True):
        asked = Target.of(target)
        if asked.file:
            target = str(Target(str(config.invocation_params.dir / asked.file), asked.name))
        convention, equal = option.certify_convention or "exact", bool(option.certify_equal_rows)
        form = option.certify_call or "", option.certify_parameter or (), option.certify_features or ""
        how = bool(option.certify_interpret), bool(option.certify_strict), bool(option.certify_large)
        widths = read_widths(option.certify_widths or "")
        subjects[label] = ask(target, contract, convention, pinned, equal, dtypes, *form, *how, widths)
    return subjects


def _labels(pairs: list[tuple[str, str]]) -> list[str]:
    """Return a name for each target and contract: as short as tells them apart."""
    from ..subjects import Target

    choices = [
        [Target.of(target).name for target, _ in pairs],
        [target for target, _ in pairs],
        [f"{target} as {contract}" for target, contract in pairs],
    ]
    for labels in choices:
        if len(set(labels)) == len(labels):
            return labels
    (twice, _), *_ = Counter(choices[-1]).most_common()
    raise pytest.UsageError(f"--certify: {twice} was given twice")


def _plan(config: pytest.Config, subjects: "Subjects", places: tuple[str, ...]) -> "list[Check]":
    from ..verify.arguments import WORLDS
    from ..verify.plan import plan

    option = config.option
    world = option.certify_world or WORLDS
    return plan(subjects, world, _max_examples(config), option.certify_only, option.certify_skip, places)


def _known(config: pytest.Config) -> "Known":
    from ..laws import laws
    from ..verify.known import Known

    if not config.option.certify_known:
        return Known()
    try:
        known = Known.read(config.invocation_params.dir / config.option.certify_known)
        known.check([law.name for law in laws()])
    except OSError as error:
        said = f"cannot read {config.option.certify_known}: {error.strerror}"
        raise pytest.UsageError(f"--certify-known: {said}") from error
    except ValueError as error:
        raise pytest.UsageError(f"--certify-known: {error}") from error
    return known


def _shard(config: pytest.Config) -> "Shard":
    from ..verify.shards import read_shard

    return read_shard(config.option.certify_shard, {})


def _max_examples(config: pytest.Config) -> int:
    from ..verify.arguments import MAX_EXAMPLES

    asked: int | None = config.option.certify_max_examples
    return MAX_EXAMPLES if asked is None else asked


def _seed(config: pytest.Config) -> int:
    seed = config.option.certify_seed
    if seed is None:
        seed = config.getoption("hypothesis_seed", None) or 0
    try:
        return int(seed)
    except ValueError:
        problem = f"expected an integer, or --certify-seed beside it, got {seed!r}"
        raise pytest.UsageError(f"--hypothesis-seed: {problem}") from None
