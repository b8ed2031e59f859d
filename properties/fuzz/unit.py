"""Runs one unit: a check over cases of one seed, beyond failures that are known."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from unittest import SkipTest

from hypothesis.database import ExampleDatabase

from ..examples import Example
from ..show.counterexample import file_name, render
from ..show.drawn import count
from ..show.terminal import headline
from ..show.text import plain
from ..subjects import Target
from ..verify.certifier import UNJUDGED, Check, Finding, judged, verify
from ..verify.database import Keyed
from ..verify.fingerprints import fingerprint
from ..verify.limits import contiguously, evenly
from ..worlds import OutOfTime, World, WorldError
from ..worlds.simulated import SimulationError
from . import branches
from .failures import recorded
from .lines import Done, Find, Unit

COSTLY_FAILURES = 3
"""A unit ends after so many known failures that may have cost the processes of the target."""

Tell = Callable[[Find, str], None]
"""Is given a find and its counterexample's text; there is none before the example is small."""


class _Failures:
    """The failures of a unit: those that are known pass, and of the others only the first one's kind fails.

    While the first is made smaller, other kinds of failure pass too: it keeps its fingerprint.
    """

    def __init__(self, unit: Unit, check: Check, known: Iterable[str], unmet: Iterable[str], tell: Tell):
        self.unit, self.check, self.tell = unit, check, tell
        self.known, self.unmet = set(known), set(unmet)
        self.counts: Counter[str] = Counter()
        self.new = ""
        self.passed = False
        """Whether a failure was met since a database was last asked to forget a case."""
        self.hung = False
        self._costly = 0

    def pass_over(self, example: Example, error: Exception, cut_off: bool) -> bool:
        """Whether a failure passes."""
        found = Finding(
            self.check,
            self.unit.seed,
            "falsified",
            reason=f"{type(error).__name__}: {error}",
            smallest=example,
            error=error,
            hung=cut_off,
        )
        kind = fingerprint(found)
        self.passed = True
        if self.new:
            return kind != self.new
        self.hung |= cut_off
        self.counts[kind] += 1
        if kind not in self.known:
            self.new = kind
            return False
        if kind in self.unmet:
            self.unmet.remove(kind)
            self.tell(find(self.unit, found, kind, is_new=False, is_small=False), "")
        self._costly += self._is_costly(error)
        if cut_off or self._costly >= COSTLY_FAILURES:
            raise SkipTest("known failures that cost time")
        return True

    def _is_costly(self, error: Exception) -> bool:
        """Whether a failure may have cost the target its processes."""
        if not isinstance(error, WorldError) or isinstance(error, SimulationError):
            return False
        alone = self.check.world.row.inside is not None
        return not alone or any(state.state not in ("raised", "returned") for state in error.ranks)


class _Remembering(Keyed):
    """The database of a check, which does not forget cases whose failure passes because it is known."""

    def __init__(self, database: ExampleDatabase, failures: _Failures) -> None:
        super().__init__(database, b"")
        self.failures = failures
        self._kept: set[bytes] = set()

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a case, unless it has failed: Hypothesis asks just after it was run, under both its keys."""
        if self.failures.passed:
            self._kept.add(value)
            self.failures.passed = False
        if value not in self._kept:
            super().delete(key, value)


def find(unit: Unit, finding: Finding, kind: str, is_new: bool = True, is_small: bool = True) -> Find:
    """Return a finding as the log has it."""
    assert finding.error is not None
    assert finding.smallest is not None
    return Find(
        unit,
        kind,
        file_name(finding.check, kind),
        headline(finding),
        plain(finding.reason),
        finding.smallest.to_json(),
        recorded(finding.error),
        finding.hung,
        is_new,
        is_small,
    )


def run(
    unit: Unit,
    check: Check,
    known: Iterable[str],
    unmet: Iterable[str],
    deadline: float,
    folder: Path,
    tell: Tell,
    database: ExampleDatabase | None = None,
) -> Done:
    """Run a unit.

    A case that fails as one has before is counted, and the unit goes on; three of those that may have cost
    the target its processes, or one in which it was cut off, end the unit. Another failure is made smaller,
    told of, and ends the unit: what else is wrong is found in the next rounds.

    Args:
        unit: which.
        check: its check.
        known: fingerprints of failures that are known of it.
        unmet: those of them that are to be told of once more, as they are known of an earlier run.
        deadline: when `time.monotonic()` is past it, the unit is cut short.
        folder: where counterexamples will lie.
        tell: told of each find: first as it is met, then with its counterexample.
        database: keeps cases that failed this check, which are tried first.
    """
    begun = time.monotonic()
    failures = _Failures(unit, check, known, unmet, tell)

    def first(found: Finding) -> None:
        tell(find(unit, found, failures.new, is_small=False), "")

    _watch(check, deadline)
    drawn = evenly(check) if unit.even else check
    finding = verify(
        contiguously(drawn) if unit.contiguous else drawn,
        unit.examples,
        unit.seed,
        deadline=deadline,
        found=first,
        database=_Remembering(database, failures) if database is not None else None,
        passes=failures.pass_over,
        aim=True,
    )
    finding = judged(replace(finding, check=check), unit.examples, deadline)
    limits: dict[str, Find] = {}
    if finding.smallest is not None and failures.new:
        kind = fingerprint(finding)  # which is another one where equal rows show something else
        if finding.limit:
            limits[finding.limit] = find(unit, finding, kind)
        elif kind not in failures.known:
            tell(find(unit, finding, kind), render(finding, folder / file_name(check, kind)))
    return Done(
        unit,
        round(time.monotonic() - begun, 3),
        [float(f"{ratio:.3g}") for ratio in finding.ratios],
        count([finding]) if finding.cases else {},
        _branches(check),
        dict(failures.counts),
        "" if finding.ratios or failures.counts else finding.reason,
        failures.hung or finding.hung,
        time.monotonic() < deadline,
        is_unjudged=finding.reason == UNJUDGED,
        limits=limits,
    )


def _watch(check: Check, deadline: float) -> None:
    """Let the target's processes note the branches that it takes."""
    if branches.available() and not _is_compiled(check):
        check.subject.worlds().until = deadline
        place = Target.of(check.subject.target).place
        with contextlib.suppress(WorldError, OutOfTime):  # the first case meets it, and says so
            _ranks(check).run(branches.watch, place)


def _branches(check: Check) -> list[str]:
    """Return the branches that were noted; none where a failure has cost the processes."""
    if branches.available() and not _is_compiled(check) and time.monotonic() < check.subject.worlds().until:
        with contextlib.suppress(WorldError, OutOfTime):
            return sorted({one for taken in _ranks(check).run(branches.taken) for one in taken})
    return []


def _is_compiled(check: Check) -> bool:
    """Whether torch.compile reads the target's bytecode, which monitoring changes."""
    return "compiled" in check.law.modes


def _ranks(check: Check) -> World:
    """Return the world of the processes that a check's target runs in, without simulated ranks in them."""
    spec = check.world.alone if check.world.row.inside else check.world
    return check.subject.worlds().open(spec, check.law.patience)
