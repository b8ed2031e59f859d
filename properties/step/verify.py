"""Verifies a training step: every law in every world, over drawn cases, to findings.

All laws of a world look at the same cases, each of which runs once.
"""

import hashlib
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.database import ExampleDatabase
from hypothesis.errors import Flaky, HypothesisDeprecationWarning, Unsatisfiable, UnsatisfiedAssumption

from ..laws import TRAINING, Falsified, Unanswered
from ..standalone.steps import Plan, Seen, run_fresh
from ..verify.certifier import OUT_OF_TIME, Runner, Verdict, without_local_constants
from ..verify.fingerprints import signature
from ..verify.limits import RANDOM_DRAWS, UNEQUAL_ROWS
from ..worlds import OutOfTime, World, WorldError, WorldLost
from ..worlds.specs import SINGLE, WorldSpec
from .cases import MANY, StepCase, step_cases
from .inspection import act
from .laws import LONG, LOSS_SCALE, Observed, StepLaw, check_taken, laws
from .localise import first_module
from .target import Trainer
from .truth import blunt, truth

SHRINK_SECONDS = 3.0
"""How long a counterexample is made smaller."""
PATIENCE = 3.0
"""How much longer than a loss a trainer may take for a call in real processes."""
SHARP = 1e-6
"""A factor of one more than this is to be seen in float64."""
NO_SYNC = "torch's SyncBatchNorm does not run on a CPU"
GPU_ALONE = re.compile(r"SyncBatchNorm .*\bGPU\b")
"""In what torch raises then."""
EQUAL_FAILS = {
    UNEQUAL_ROWS: "nothing is said, as rows that are split equally fail",
    RANDOM_DRAWS: "nothing is said, as constants in the place of random numbers fail",
}
"""Why nothing is asked about a limit."""


@dataclass(frozen=True)
class StepCheck:
    """One law to be verified of one target in one kind of world."""

    label: str
    trainer: Trainer
    law: StepLaw
    world: WorldSpec

    @property
    def subject(self) -> object:
        """The target."""
        return self.trainer.subject

    @property
    def sizes(self) -> list[int]:
        """World sizes that the law says something about."""
        simulated = self.world.row.is_drawn
        return [size for size in self.world.sizes if self.law.fits(self.trainer, size, simulated)]


@dataclass(frozen=True)
class StepFinding:
    """What came of a check; the fields are those of `certifier.Finding`."""

    check: StepCheck
    seed: int
    verdict: Verdict
    ratios: tuple[float, ...] = ()
    cases: tuple[StepCase, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    smallest: StepCase | None = None
    error: Exception | None = None
    not_run: bool = False
    limit: str = ""
    module: str = ""
    """The first module that departs from one process, in words."""
    hung: bool = False
    concern: str = TRAINING
    """Whom it concerns."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Which of a run's checks it is of."""
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
        return len(self.ratios)

    @property
    def worst_error_over_bound(self) -> float:
        """The worst of the cases that hold."""
        return max(self.ratios, default=0.0)

    @property
    def counterexample(self) -> str:
        """The smallest case as text, or nothing."""
        return "" if self.smallest is None else str(self.smallest)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits, the same for one defect seen by one law; empty where it holds."""
        if self.error is None:
            return ""
        several = "several ranks" if max(self.check.world.sizes) > 1 else "one rank"
        parts = ["step", self.law, several, signature(self.check.trainer.subject.target, self.error)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@dataclass
class Bench:
    """Runs the cases of one target in one kind of world, each once.

    Args:
        trainer: the target.
        spec: the kind of world.
        deadline: when `time.monotonic()` is past it, what runs is given up.
    """

    trainer: Trainer
    spec: WorldSpec
    deadline: float = math.inf
    hidden: list[float] = field(default_factory=list)
    """Of each case of float64, what rounding may change of a gradient, as a share of the largest element."""
    unanswered: dict[StepCase, str] = field(default_factory=dict)
    """Why a law says nothing of a case."""
    _seen: dict[StepCase, Observed | Exception] = field(default_factory=dict)

    @property
    def launched(self) -> bool:
        """Whether ranks are processes of their own."""
        return not (self.spec.row.shares_process or self.spec == SINGLE)

    @property
    def cases(self) -> list[StepCase]:
        """The cases that have run."""
        return list(self._seen)

    def observe(self, case: StepCase) -> Observed:
        """Return what came of a case.

        Raises:
            WorldError: not every rank returned.
            Unanswered: one process raises.
            WorldLost: the world cannot run the step.
        """
        if case not in self._seen:
            try:
                self._seen[case] = self._run(case)
            except (WorldError, Unanswered) as error:
                self._seen[case] = error
        seen = self._seen[case]
        if isinstance(seen, Exception):
            raise seen
        check_taken(seen)
        return seen

    def _run(self, case: StepCase) -> Observed:
        worlds = self.trainer.worlds()
        worlds.until = self.deadline
        plan = case.plan(self.trainer, self.launched)
        single = worlds.open(SINGLE)
        world = worlds.open(self.spec, PATIENCE, case.world_size)
        try:
            right = truth(single, self.trainer, plan.whole)
        except WorldError as error:
            (rank,) = error.ranks
            if rank.state != "raised":
                raise
            raise Unanswered(f"one process raises {rank.said.partition(': ')[2]}") from error
        ranks: list[Seen] = [right.seen]
        if case.is_split:
            try:
                ranks = world.run(act, self.trainer, plan)
            except WorldError as error:
                if any(GPU_ALONE.search(rank.said) for rank in error.ranks):
                    raise WorldLost(NO_SYNC) from error
                raise
        if case.dtype == "float64" and right.squares:
            with suppress(Unanswered):
                self.hidden.append(blunt(right))
        again = partial(_again, single, self.trainer, plan.whole)
        return Observed(right, ranks, again, len(case.rows[0]), self.trainer.scales)


Benches = dict[tuple[str, str], Bench]
"""By label and world."""


def _again(world: World, trainer: Trainer, plan: Plan, how: str) -> Seen:
    if how == "fresh":
        (seen,) = world.run(fresh, trainer, plan)
    elif how == "many":
        (seen,) = world.run(act, trainer, plan._replace(rows=((MANY,),), steps=LONG))
    else:
        (seen,) = world.run(act, trainer, plan._replace(loss_scale=LOSS_SCALE))
    return seen


def fresh(rank: int, world_size: int, trainer: Trainer, plan: Plan) -> Seen:
    """Take each step of one process with a new trainer."""
    return run_fresh(trainer.subject.resolve(), plan)


def checks(
    label: str, trainer: Trainer, worlds: Sequence[WorldSpec], names: Sequence[str]
) -> list[StepCheck]:
    """List what is to be verified of a target."""
    found = [StepCheck(label, trainer, law, world) for world in worlds for law in laws() if law.name in names]
    return [check for check in found if check.sizes and not check.law.applies(trainer)]


@dataclass(eq=False)
class StepCertifier(Runner[StepCheck, StepFinding]):
    """Runs checks of training steps.

    Where something is wrong in a world, a limit there says nothing and is not looked for.
    """

    benches: Benches = field(default_factory=dict, init=False)
    _wrong: set[tuple[str, str]] = field(default_factory=set, init=False)

    def verify(self, check: StepCheck, until: float = math.inf) -> StepFinding:
        where = check.label, check.world.name
        if time.monotonic() >= self.deadline:
            return StepFinding(check, self.seed, "skipped", reason=OUT_OF_TIME, not_run=True)
        if check.law.limit and where in self._wrong:
            return StepFinding(check, self.seed, "skipped", reason=EQUAL_FAILS[check.law.limit])
        bench = bench_of(self.benches, check, self.deadline)
        kept = self.database(check)
        finding = verify(check, bench, self.max_examples, self.seed, until, self.found, kept)
        if finding.verdict == "falsified" and check.law.split and not check.law.limit:
            self._wrong.add(where)
        return finding


def bench_of(benches: Benches, check: StepCheck, deadline: float = math.inf) -> Bench:
    """Return where the cases of a check run: the bench of its target and world."""
    bench = Bench(check.trainer, check.world, deadline)
    return benches.setdefault((check.label, check.world.name), bench)


def verify(
    check: StepCheck,
    bench: Bench,
    max_examples: int,
    base_seed: int = 0,
    until: float = math.inf,
    found: Callable[[StepFinding], None] | None = None,
    database: ExampleDatabase | None = None,
) -> StepFinding:
    """Run one check over up to `max_examples` cases (a law's share of them), reproducibly by seed."""
    begun = time.monotonic()
    ratios: list[float] = []
    ran: list[StepCase] = []
    failures: dict[StepCase, Exception] = {}
    smallest: StepCase | None = None
    unanswered, stopped, shrink_until = "no case was drawn that it says something about", "", math.inf
    wanted, rejected = max(1, round(max_examples * check.law.share)), 0

    def run(case: StepCase) -> None:
        nonlocal smallest, unanswered, stopped, shrink_until, rejected
        if failures and time.monotonic() > shrink_until:
            if case in failures:  # Hypothesis asks again for the smallest, and gets what came of it
                smallest = case
                raise failures[case]
            return
        started = time.monotonic()
        if not failures and (started >= bench.deadline or (ratios and started > until)):
            raise SkipTest(OUT_OF_TIME)
        try:
            ratio = check.law.check(bench.observe(case))
        except UnsatisfiedAssumption as error:
            if isinstance(error, Unanswered):
                unanswered = error.words
                if error.whatever:
                    raise SkipTest(unanswered) from None
                bench.unanswered[case], rejected = unanswered, rejected + 1
                if rejected == wanted and not failures:
                    raise SkipTest(unanswered) from None
            raise
        except OutOfTime as error:
            stopped = str(error) if isinstance(error, WorldLost) else OUT_OF_TIME
            if not failures:
                raise SkipTest(stopped) from None
            return
        except Exception as error:
            first = next(iter(failures.values()), error)
            if type(error) is not type(first):
                return  # another defect, of which nothing is said until this one is gone
            if not failures:
                hung = isinstance(error, WorldError) and any(one.state == "hung" for one in error.ranks)
                shrink_until = (started if hung else time.monotonic()) + SHRINK_SECONDS
                if found and not _is_limit(check):
                    found(
                        StepFinding(
                            check, base_seed, "falsified", reason=_said(error), smallest=case, error=error
                        )
                    )
            smallest, failures[case] = case, error
            raise
        if not failures:
            ratios.append(ratio)
            ran.append(case)

    def body(case: StepCase) -> None:  # Hypothesis digests its source in each check
        run(case)

    configured = settings(
        max_examples=wanted,
        database=database,
        derandomize=False,  # the seed is given
        deadline=None,
        phases=[*[Phase.reuse] * (database is not None), Phase.generate, Phase.shrink],
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    drawn = step_cases(
        check.trainer, check.sizes, check.law.uneven, check.law.drawn and check.trainer.constant
    )
    # the same cases for all laws of a world, so that each runs once
    seeded = seed(f"{base_seed} step {check.world.name} {check.law.uneven}")(given(drawn)(body))
    test = configured(seeded)  # after the seed, which would take the database away
    error: Exception | None = None
    flaky = False
    try:
        with without_local_constants():
            test()
    except (Unsatisfiable, SkipTest):
        pass
    except Exception as raised:
        flaky = isinstance(raised, Flaky)
        error = failures.get(smallest, raised) if smallest is not None else raised
    told = StepFinding(
        check, base_seed, "holds", tuple(ratios), tuple(ran), time.monotonic() - begun,
        smallest=smallest if error else None, error=error,
    )  # fmt: skip
    if error:
        told = replace(told, module=_module(bench, told))
        reason = f"not every time for the same case: {_said(error)}" if flaky else _said(error)
        return judged(replace(told, verdict="falsified", reason=reason))
    if not ratios:
        short = bool(stopped) or time.monotonic() >= bench.deadline
        reason = (stopped or OUT_OF_TIME) if short else unanswered
        not_run = short or (rejected > 0 and not _is_limit(check))
        return replace(told, verdict="skipped", reason=reason, not_run=not_run)
    return told


def again(check: StepCheck, bench: Bench, base_seed: int, case: StepCase) -> StepFinding | None:
    """Run a check on a case that falsified it; return the finding, or nothing where it does not any more."""
    error = _raised(check, bench, case)
    if error is None:
        return None
    told = StepFinding(check, base_seed, "falsified", reason=_said(error), smallest=case, error=error)
    return replace(told, module=_module(bench, told))


def _raised(check: StepCheck, bench: Bench, case: StepCase) -> Exception | None:
    """Return what falsifies a check on a case, or nothing."""
    try:
        with warnings.catch_warnings():
            # of what a law says nothing about, where nothing is drawn
            warnings.simplefilter("ignore", HypothesisDeprecationWarning)
            check.law.check(bench.observe(case))
    except (UnsatisfiedAssumption, OutOfTime):
        return None
    except Exception as error:
        return error
    return None


def _module(bench: Bench, finding: StepFinding) -> str:
    """Return in words where the smallest case first departs."""
    case, error = finding.smallest, finding.error
    if case is None or error is None or time.monotonic() > bench.deadline:
        return ""
    world = bench.trainer.worlds().open(bench.spec, PATIENCE, case.world_size)
    return first_module(bench.trainer, case, error, bench.launched, world)


def judged(finding: StepFinding) -> StepFinding:
    """Return a finding as a limit, where it is one: of what the target has not promised."""
    if _is_limit(finding.check):
        return replace(finding, verdict="limit", limit=finding.check.law.limit)
    return finding


def _is_limit(check: StepCheck) -> bool:
    """Whether what fails is a limit."""
    promised = check.law.limit == RANDOM_DRAWS and "rng" in check.trainer.promises
    return bool(check.law.limit) and not check.trainer.strict and not promised


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def grouped(
    findings: Sequence[StepFinding], benches: Benches, deadline: float = math.inf
) -> list[list[StepFinding]]:
    """Group findings that one defect explains: those whose law fails in the smallest case of the first, too.

    Findings of other worlds are of one group where the same thing is wrong.
    """
    groups: list[list[StepFinding]] = []
    for finding in findings:
        for group in groups:
            if any(_is_same(member, finding, benches, deadline) for member in group):
                group.append(finding)
                break
        else:
            groups.append([finding])
    return groups


def _what(finding: StepFinding) -> tuple[object, ...]:
    """Return what is wrong, whatever the world: of micro-batches or of ranks."""
    micro = finding.smallest is not None and len(finding.smallest.rows[0]) > 1
    return micro, signature(finding.check.trainer.subject.target, finding.error)


def _is_same(leader: StepFinding, other: StepFinding, benches: Benches, deadline: float) -> bool:
    if leader.loss != other.loss:
        return False
    if leader.world != other.world:
        return leader.law == other.law and _what(leader) == _what(other)
    case = leader.smallest
    if case is None or case.world_size not in other.check.sizes:
        return False
    if case.drawn != (other.check.law.drawn and other.check.trainer.constant):
        return False
    error = _raised(other.check, bench_of(benches, leader.check, deadline), case)
    return isinstance(error, Falsified | WorldError)
