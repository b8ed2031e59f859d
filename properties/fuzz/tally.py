"""What the units of one check came to, all together."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..examples import Example
from ..show.drawn import Drawn, added
from ..verify.certifier import OUT_OF_TIME, UNJUDGED, Check, Finding
from ..verify.limits import STRIDED_INPUTS, UNEQUAL_ROWS
from .failures import restored
from .lines import Done, Find, Unit
from .schedule import Course

SAMPLE = 1000
"""The most errors over bounds that are kept of a check."""


@dataclass
class Tally:
    """One check, and what its units came to."""

    number: int
    """Among the checks that are planned."""
    check: Check
    seed: int
    course: Course
    units: int = 0
    examples: int = 0
    seconds: float = 0.0
    worst: float = 0.0
    reason: str = ""
    """Why no case was compared."""
    lost: str = ""
    """Why a unit was given up."""
    is_unjudged: bool = False
    """Whether a failing case may be a limit, and no time was left to tell."""
    losses: int = 0
    """How often the unit of this round was given up."""
    finds: dict[str, Find] = field(default_factory=dict)
    """By fingerprint."""
    counts: dict[str, int] = field(default_factory=dict)
    """In how many cases each was met."""
    limits: dict[str, Find] = field(default_factory=dict)
    """What the target does not support, where that is no defect."""
    drawn: Drawn = field(default_factory=dict)
    is_busy: bool = False
    _ratios: list[float] = field(default_factory=list)
    _stride: int = 1

    def unit(self, most: int) -> Unit:
        """Return its next unit."""
        check, at = self.check, self.course.round
        # rounds of a seed that people choose, as a date, do not meet those of the next one
        seed = self.seed * 10**6 + at
        examples = self.course.examples(most)
        return Unit(
            self.number,
            check.label,
            check.law.name,
            check.world.name,
            at,
            seed,
            examples,
            even=UNEQUAL_ROWS in self.limits,
            contiguous=STRIDED_INPUTS in self.limits,
        )

    def take(self, done: Done) -> list[str]:
        """Take what came of a unit; return the branches that are new."""
        new = sorted({*done.branches} - self.course.branches)
        self.units += 1
        self.losses = 0
        self.seconds += done.seconds
        self.reason = done.reason
        self.worst = max([self.worst, *done.ratios])
        self.limits = {**done.limits, **self.limits}
        self.is_unjudged |= done.is_unjudged
        for ratio in done.ratios:
            if self.examples % self._stride == 0:
                self._ratios.append(ratio)
            self.examples += 1
        while len(self._ratios) > SAMPLE:
            self._ratios, self._stride = self._ratios[::2], 2 * self._stride
        self.drawn = added([self.drawn, done.drawn])
        for kind, number in done.finds.items():
            self.counts[kind] = self.counts.get(kind, 0) + number
        if done.is_whole:
            regions = done.drawn.get("regions", {})
            self.course.take(regions, new, max(done.ratios, default=0.0), done.finds, done.hung)
        return new

    def keep(self, find: Find) -> bool:
        """Keep a find, unless there is one of its fingerprint that is as small; return whether it is kept."""
        before = self.finds.get(find.fingerprint)
        if before is not None and (before.is_small or not find.is_small):
            return False
        self.finds[find.fingerprint] = find
        return True

    def findings(self) -> list[Finding]:
        """Return what is reported of the check: a finding a fingerprint, or that it holds, or did not run."""
        ratios = self.ratios()
        more = self.examples - len(ratios)
        if self.finds:
            first, *others = (found(self.check, one) for one in self.finds.values())
            return [replace(first, ratios=ratios, seconds=self.seconds, more=more), *others]
        rows = [
            replace(found(self.check, one), verdict="limit", limit=name) for name, one in self.limits.items()
        ]
        if self.is_unjudged:
            rows.append(Finding(self.check, self.seed, "skipped", reason=UNJUDGED, not_run=True))
        if rows:
            return [replace(rows[0], ratios=ratios, seconds=self.seconds, more=more), *rows[1:]]
        if self.examples:
            return [Finding(self.check, self.seed, "holds", ratios, (), self.seconds, more=more)]
        reason = self.reason or self.lost or OUT_OF_TIME
        not_run = not self.units or bool(self.lost)
        return [Finding(self.check, self.seed, "skipped", reason=reason, not_run=not_run)]

    def ratios(self) -> tuple[float, ...]:
        """Return errors over bounds: of every case, or of very many cases a sample that holds the worst."""
        if not self.examples or max(self._ratios, default=-1.0) == self.worst:
            return tuple(self._ratios)
        return (*self._ratios[:-1], self.worst)


def found(check: Check, find: Find) -> Finding:
    """Return a find as a finding."""
    return Finding(
        check,
        find.unit.seed,
        "falsified",
        reason=find.reason,
        smallest=Example.from_json(find.example) if find.example else None,
        error=restored(find.failure),
        hung=find.hung,
        fingerprint=find.fingerprint,
    )


def drawn(tallies: Iterable[Tally]) -> dict[str, Drawn]:
    """Return what was drawn in all, by name of the loss."""
    by_loss: dict[str, list[Drawn]] = {}
    for tally in tallies:
        by_loss.setdefault(tally.check.label, []).append(tally.drawn)
    return {label: added(several) for label, several in by_loss.items()}
