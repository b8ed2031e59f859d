"""Contract x subject x world x law, each run over drawn cases, to a verdict."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar
from unittest import SkipTest, mock

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase
from hypothesis.errors import Flaky, HypothesisDeprecationWarning, Unsatisfiable, UnsatisfiedAssumption
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from .. import devices
from ..cases import Case, Options
from ..contracts import Contract, contract_of
from ..examples import Example
from ..laws import Bench, Falsified, Law, Place, Unanswered, laws
from ..reference import reference
from ..subjects import Subject
from ..worlds import OutOfTime, WorldError, WorldLost, probe, specs
from ..worlds.processes import COLLECTIVE_SHARE
from ..worlds.simulated import Sends, SimulationError
from ..worlds.specs import WorldSpec
from . import concerns, limits
from .hints import Hint, explain

SHRINK_SECONDS = 5.0
"""How long a counterexample is made smaller."""

OUT_OF_TIME = "out of time"
UNJUDGED = "no time was left to judge a failing case"

Verdict = Literal["holds", "falsified", "limit", "skipped"]


@dataclass(frozen=True)
class Check:
    """One law to be verified for one subject in one kind of world."""

    label: str
    contract: Contract
    subject: Subject
    law: Law
    world: WorldSpec

    @property
    def sizes(self) -> list[int]:
        """World sizes that the law says something about."""
        return [size for size in self.world.sizes if self.law.fits(self.contract, size)]


@dataclass(frozen=True)
class Finding:
    """What came of a check."""

    check: Check
    seed: int
    verdict: Verdict
    ratios: tuple[float, ...] = ()
    """Error over bound of every case; 0 where the law compares bits or types."""
    cases: tuple[Case, ...] = ()
    """Those that were compared."""
    seconds: float = 0.0
    reason: str = ""
    """Why it was falsified or skipped, in words; of what holds, what it was not asked."""
    smallest: Example | None = None
    """The smallest example found that falsifies it."""
    error: Exception | None = None
    """What the law raised for it."""
    hung: bool = False
    """The target had to be cut off."""
    not_run: bool = False
    """It was asked for, and could not run."""
    lost: bool = False
    """The device was gone."""
    more: int = 0
    """How many cases were checked besides those of `ratios`, which of very many are a sample."""
    fingerprint: str = ""
    """Where it is known already, as of one that was read from a file."""
    met: tuple[tuple[Example, Place | None], ...] = ()
    """The examples that falsified it while the smallest was sought, and what was wrong where."""
    sure: tuple[Example, Exception] | None = None
    """The last of them that is no limit, whatever comes of the others, and what the law raised for it."""
    limit: str = ""
    """What the target does not support, where that is no defect."""
    concern: str = ""
    """Whom it concerns, where that was looked at: one of `concerns.CONCERNS`."""
    hints: tuple[Hint, ...] = ()
    """What explains all cases that falsified it."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Which of a run's checks it is of: loss, law and world."""
        return self.loss, self.law, self.world

    @property
    def loss(self) -> str:
        """Name of the target."""
        return self.check.label

    @property
    def law(self) -> str:
        """Name of the law."""
        return self.check.law.name

    @property
    def world(self) -> str:
        """Name of the world."""
        return self.check.world.name

    @property
    def examples(self) -> int:
        """How many cases were checked."""
        return len(self.ratios) + self.more

    @property
    def worst_error_over_bound(self) -> float:
        """The worst of the cases that hold."""
        return max(self.ratios, default=0.0)

    @property
    def counterexample(self) -> str:
        """The smallest case as text, or nothing."""
        return "" if self.smallest is None else str(self.smallest)


Found = Callable[[Finding], None]
C = TypeVar("C")
F = TypeVar("F")
Passes = Callable[[Example, Exception, bool], bool]
"""Whether a failure is to count as none: gets the example, what it raised, and whether it was cut off."""
Databases = Callable[[Any], ExampleDatabase | None]
"""Returns what keeps the failing cases of a check."""


def checks(subjects: dict[str, tuple[str, Subject]], worlds: list[WorldSpec]) -> Iterator[Check]:
    """List what is to be verified."""
    for label, (name, subject) in subjects.items():
        contract = contract_of(name).in_form(subject.form)
        placed = list(_placed_in(contract, subject, worlds))
        two = {world.device for _, world in placed if 2 in world.sizes and not world.row.shares_process}
        for options, world in placed:
            held = replace(subject, options=subject.options + options)
            for law in laws():
                check = Check(label, contract, held, law, world)
                fits = law.is_of(world.device) and (law.simulated or not world.row.shares_process)
                elsewhere = law.worlds == "two or one" and world.sizes == (1,) and world.device in two
                interpreted = law.interpreted or not subject.interpret
                stated = (subject.stated or not law.stated) and (subject.inductor or not law.by_inductor)
                drawn = world.row.is_drawn or not law.drawn_alone
                if check.sizes and fits and interpreted and stated and drawn and not elsewhere:
                    yield check


def _placed_in(
    contract: Contract, subject: Subject, worlds: list[WorldSpec]
) -> Iterator[tuple[Options, WorldSpec]]:
    """Yield the worlds that a subject can run in, and what it is constructed with there."""
    for world in worlds:
        options = contract.options_in.get(world.kind, world.row.options)
        runs = subject.gathers or world.sizes[-1] == 1
        if options is not None and runs and world.kind not in dict(subject.excluded):
            yield options, world


def examples(check: Check) -> st.SearchStrategy[Example]:
    """Draw what a check is run on."""
    # all drawing is inside one composite: Hypothesis would mutate what a map around it has mapped
    return _scheduled(check) if check.world.row.is_drawn else _placed(check)


@st.composite
def _placed(draw: st.DrawFn, check: Check) -> Example:
    example: Example = draw(check.law.draw(check.contract, check.subject, check.world.sizes[0]))
    return _moved(draw, check, example)


@st.composite
def _scheduled(draw: st.DrawFn, check: Check) -> Example:
    size = draw(st.sampled_from(check.sizes))
    example = draw(check.law.draw(check.contract, check.subject, size))
    schedule = draw(st.none() | st.integers(0, 2**16))
    sends: list[Sends] = ["rendezvous", "buffered", "drawn"]
    scheduled = replace(example, schedule=schedule, sends=draw(st.sampled_from(sends)))
    return _moved(draw, check, scheduled)


def _moved(draw: st.DrawFn, check: Check, example: Example) -> Example:
    """Return an example on the device of its world; there its scalars may stay on the CPU."""
    contract, device = check.contract, check.world.device
    if device == devices.CPU or not set(contract.scalars) & set(contract.differentiable):
        return example.on(device)
    return example.on(device, cpu_scalars=draw(st.booleans()))


def falsify(check: Check, example: Example) -> float:
    """Run the law on one example; return the worst error over its bound.

    Raises:
        Exception: what falsifies the check.
    """
    worlds, size = check.subject.worlds(), example.case.world_size
    world = worlds.open(check.world, check.law.patience, size, example.schedule, example.sends)
    bench = Bench(check.contract, check.subject, world, worlds.open(check.world.alone))
    return check.law.check(bench, reference(check.contract, example))


def without_local_constants() -> AbstractContextManager[object]:
    """Keep Hypothesis from drawing constants that it finds in whichever modules are imported."""
    return mock.patch.multiple(providers, create=True, _get_local_constants=Constants, CONSTANTS_CACHE={})


def verify(
    check: Check,
    max_examples: int,
    base_seed: int = 0,
    until: float = math.inf,
    deadline: float = math.inf,
    found: Found | None = None,
    database: ExampleDatabase | None = None,
    passes: Passes | None = None,
    aim: bool = False,
) -> Finding:
    """Run one check over up to `max_examples` cases (a law's share of them), reproducibly by seed.

    The target runs in processes of its own: whatever it does there falsifies the check, and harms neither
    the caller nor another target.

    Args:
        check: what to verify.
        max_examples: how many cases to draw.
        base_seed: the same seed draws the same cases.
        until: when `time.monotonic()` is past it, no more than one case is drawn.
        deadline: when it is past that, no case is: one that runs is given up.
        found: told of the first case that falsifies it, and is no limit, at once.
        passes: asked of each case that fails, before it falsifies anything; it may raise SkipTest, and
            then no more is drawn.
        aim: draw cases after those whose error over bound is large, once half of them are drawn.
        database: keeps cases that falsify this check, which are tried first, before those of the seed.
    """
    begun = time.monotonic()
    check.subject.worlds().until = deadline
    ratios: list[float] = []
    ran: list[Case] = []
    smallest: Example | None = None
    failure: Exception | None = None
    gone = ""
    failures: dict[Example, Exception] = {}
    shrink_until = math.inf
    hung = told = False
    lost = ""
    unanswered, limit = "no case was drawn that it says something about", ""

    def run(example: Example) -> None:
        nonlocal smallest, failure, shrink_until, hung, told, gone, lost, unanswered, limit
        if failures and time.monotonic() > shrink_until:
            if example in failures:  # Hypothesis asks again for the smallest, and gets what came of it
                smallest, failure = example, failures[example]
                raise failure
            return
        started = time.monotonic()
        if not failures and (started >= deadline or (ratios and started > until)):
            raise SkipTest(OUT_OF_TIME)  # Hypothesis draws no more
        try:
            ratio = falsify(check, example)
        except UnsatisfiedAssumption as unsatisfied:
            if isinstance(unsatisfied, Unanswered):
                unanswered = unsatisfied.words
                if unsatisfied.limit and not failures:
                    smallest, limit = example, unsatisfied.limit
                if unsatisfied.whatever:
                    raise SkipTest(unanswered) from None
            raise
        except OutOfTime as error:
            gone = str(error) if isinstance(error, WorldLost) else ""
            if not failures:
                raise SkipTest(OUT_OF_TIME) from None
            return
        except Exception as error:
            if not failures and (lost := _lost(check, error)):
                raise SkipTest(lost) from error
            # the least time after which something cuts off a call
            cut_off = time.monotonic() - started > COLLECTIVE_SHARE * specs.RUN_SECONDS * check.law.patience
            if passes and passes(example, error, cut_off):
                return
            hung = cut_off
            smallest, failure, failures[example] = example, error, error
            shrink_until = min(
                shrink_until, deadline, (started if hung else time.monotonic()) + SHRINK_SECONDS
            )
            if isinstance(error, WorldError) and error.over:
                shrink_until = 0.0  # nothing runs in that world any more
            if found and not told and not limits.may_be_limit(check, example, error):
                reason, told = _said(error), True
                found(Finding(check, base_seed, "falsified", reason=reason, smallest=example, error=error))
            raise
        if not failures:
            ratios.append(ratio)
            ran.append(example.case)
            if aim and ratio:  # where all are 0 there is nothing to aim at
                target(ratio)

    def body(example: Example) -> None:  # Hypothesis digests its source in each check
        run(example)

    configured = settings(
        max_examples=max(1, round(max_examples * check.law.share)),
        database=database,
        derandomize=False,  # the seed is given; under CI, Hypothesis would refuse a database
        deadline=None,
        phases=[
            *[Phase.reuse] * (database is not None),
            Phase.generate,
            *[Phase.target] * aim,
            Phase.shrink,
        ],
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    # every law and world draws cases of its own: what one misses another may meet
    seeded = seed(f"{base_seed} {check.law.name} {check.world.name}")(given(examples(check))(body))
    test = configured(seeded)  # after the seed, which would take the database away
    verdict: Verdict = "holds"
    reason = ""
    try:
        with without_local_constants():
            test()
    except (Unsatisfiable, SkipTest):
        pass
    except Exception as error:
        verdict = "falsified"
        reason = _said(failure or error)
        if isinstance(error, Flaky):
            reason = f"not every time for the same case: {reason}"
    not_run = bool(lost or gone) and verdict == "holds"
    limit = limit if verdict == "holds" else ""
    sure = (one for one in reversed(failures.items()) if not limits.may_be_limit(check, *one))
    if not_run:
        verdict, reason = "skipped", lost or gone
    elif limit:
        verdict, reason = "limit", unanswered
    elif verdict == "holds" and not ratios:
        not_run = time.monotonic() >= deadline
        reason = OUT_OF_TIME if not_run else unanswered
        verdict = "skipped"
    return Finding(
        check,
        base_seed,
        verdict,
        tuple(ratios),
        tuple(ran),
        time.monotonic() - begun,
        reason,
        smallest,
        failure,
        hung,
        not_run,
        bool(lost),
        met=tuple(
            (example, error.place if isinstance(error, Falsified) else None)
            for example, error in failures.items()
        ),
        sure=next(sure, None),
        limit=limit,
    )


def judged(finding: Finding, max_examples: int, deadline: float = math.inf) -> Finding:
    """Return a finding as a limit where it is one; else with whom it concerns, and what explains it.

    For that cases are run again, for `limits.EVEN_SECONDS` and a few cases more. Where it may be a limit, and
    the time is over before that is known, it is not verified.
    """
    if finding.verdict != "falsified":
        return finding
    found = finding

    def again(check: Check, until: float) -> Finding:
        return verify(check, max_examples, finding.seed, min(until, deadline), deadline)

    if time.monotonic() < deadline:
        finding = limits.judged(finding, again, _returns, _error_of)
    if time.monotonic() >= deadline:  # what was to be run again may have been given up
        finding = _unless_limit(found, finding)
    if finding.verdict != "falsified":
        return finding
    # what hung is not run again
    concern = concerns.concern(finding, lambda example: finding.hung or _fails(finding.check, example))
    return replace(finding, concern=concern, hints=explain(finding))


def _unless_limit(found: Finding, told: Finding) -> Finding:
    """Return a finding as falsified where that is sure, whatever cases that were not run again would give.

    Args:
        found: the finding.
        told: what has come of it.
    """
    example, error = told.smallest, told.error
    if told.verdict == "falsified" and not (
        example and error and limits.may_be_limit(told.check, example, error)
    ):
        return told
    if found.sure is not None:
        example, error = found.sure
        return replace(found, smallest=example, error=error, reason=_said(error))
    return replace(found, verdict="skipped", reason=UNJUDGED, smallest=None, error=None, met=(), not_run=True)


def _returns(check: Check, example: Example) -> bool:
    """Whether a plain call of an example and its backward return."""
    worlds, size = check.subject.worlds(), example.case.world_size
    world = worlds.open(check.world, check.law.patience, size, example.schedule, example.sends)
    bench = Bench(check.contract, check.subject, world, world)
    try:
        bench.observe([check.law.prepare(example.case)])
    except Exception:
        return False
    return True


def _fails(check: Check, example: Example) -> bool:
    """Whether a check fails on an example; one that says nothing of it does not."""
    return _error_of(check, example) is not None


def _error_of(check: Check, example: Example) -> Exception | None:
    """Return what a check fails with on an example, if it does."""
    try:
        with warnings.catch_warnings():
            # of `assume` where nothing is drawn
            warnings.simplefilter("ignore", HypothesisDeprecationWarning)
            falsify(check, example)
    except (UnsatisfiedAssumption, OutOfTime):
        return None
    except Exception as error:
        return error
    return None


def _lost(check: Check, error: Exception) -> str:
    """Return why the device of a check is gone, where a rank failed: that is no fault of the target."""
    if not isinstance(error, WorldError) or (
        isinstance(error, SimulationError) and error.finding != "raised"
    ):
        return ""
    return probe.trouble(check.world.device) or ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(eq=False)
class Runner(Generic[C, F]):
    """Runs checks one by one, in any order.

    Args:
        max_examples: how many cases to draw for each.
        seed: the same seed draws the same cases.
        deadline: when `time.monotonic()` is past it, nothing more is run.
        found: told of a finding as its first case fails, before that is made smaller.
        database: returns what keeps cases that falsify a check, which are tried first.
    """

    max_examples: int
    seed: int = 0
    deadline: float = math.inf
    found: Callable[[F], None] | None = None
    database: Callable[[C], ExampleDatabase | None] = lambda check: None

    def verify(self, check: C, until: float = math.inf) -> F:
        """Run one check; when `time.monotonic()` is past `until`, no more than one case is drawn."""
        raise NotImplementedError

    def prepare(self, check: C) -> None:
        """Do before a check what takes of the time of all, not of this check's share."""

    def verify_all(self, planned: Sequence[C]) -> Iterator[F]:
        """Run checks in their order, each in a fair share of the time, but at least one case."""
        for done, check in enumerate(planned):
            self.prepare(check)
            now = time.monotonic()
            yield self.verify(check, now + (self.deadline - now) / (len(planned) - done))


@dataclass(eq=False)
class Certifier(Runner[Check, Finding]):
    """Runs checks of losses; where a target hung, its other checks in that world are not run.

    Nor are any on a device once it is gone.
    """

    _hung: set[tuple[str, str]] = field(default_factory=set, init=False)
    _lost: dict[str, str] = field(default_factory=dict, init=False)
    _limits: dict[str, limits.Limits] = field(default_factory=dict, init=False)

    def prepare(self, check: Check) -> None:
        if time.monotonic() < self.deadline:
            worlds = check.subject.worlds()
            worlds.until = self.deadline
            worlds.start(check.world, check.law.patience)

    def verify(self, check: Check, until: float = math.inf) -> Finding:
        where = check.label, check.world.name
        if time.monotonic() >= self.deadline:
            return self.not_run(check, OUT_OF_TIME)
        if missing := check.world.row.missing():
            return self.not_run(check, missing)
        if where in self._hung:
            return self.not_run(check, "the target hung in this world before")
        if reason := self._lost.get(check.world.device):
            return self.not_run(check, reason)
        known = self._limits.get(check.label, limits.Limits())
        within = known.of(check)
        drawn = within.applied(check)
        finding = verify(
            drawn,
            self.max_examples,
            self.seed,
            until,
            self.deadline,
            self.found,
            database=self.database(check),
        )
        finding = judged(replace(finding, check=drawn), self.max_examples, self.deadline)
        finding = replace(finding, check=check)
        self._limits[check.label] = known.plus(finding.limit)
        if finding.verdict == "holds" and (reason := within.words()):
            finding = replace(finding, reason=reason)
        if finding.hung:
            self._hung.add(where)
        if finding.lost:
            self._lost[check.world.device] = finding.reason
        return finding

    def not_run(self, check: Check, reason: str) -> Finding:
        """Return what is reported of a check that was asked for and could not run."""
        return Finding(check, self.seed, "skipped", reason=reason, not_run=True)
