"""How many cases a check is given in its next round: more, where its last ones showed something new.

Imports no torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

FIRST = 10
"""Cases of a unit of the first round; each round has twice as many as the one before, up to all."""
MOST_DOUBLINGS = 3
"""A check that keeps showing something new gets eight times the cases of one that does not."""
RECORD = 1.05
"""By how much an error/bound must exceed the largest before it to be something new."""


@dataclass
class Course:
    """One check's way through the rounds.

    A unit that shows something new doubles the check's cases, at most `MOST_DOUBLINGS` times; one that shows
    nothing new halves them, but never below those of the round. After each unit in which the target was cut
    off, the check sits out twice as many rounds as the time before.

    Args:
        by_branches: whether a new branch of the target counts as something new. Which branches are taken may
            depend on what the same process has run before; the rest depends on the drawn cases alone.
    """

    by_branches: bool = True
    round: int = 0
    """The next."""
    doublings: int = 0
    hangs: int = 0
    regions: set[str] = field(default_factory=set)
    branches: set[str] = field(default_factory=set)
    record: float = 0.0
    known: set[str] = field(default_factory=set)
    """Fingerprints of its finds."""

    def examples(self, most: int) -> int:
        """Return the number of cases of its next unit; `most` is that of a round in which nothing is new."""
        return min(most, FIRST << min(self.round, 32)) << self.doublings

    def take(
        self,
        regions: Iterable[str],
        branches: Iterable[str],
        record: float,
        finds: Iterable[str],
        hung: bool,
    ) -> None:
        """Take what came of its unit of this round, and go to the next."""
        new_regions, new_branches = set(regions) - self.regions, set(branches) - self.branches
        is_record = record > RECORD * self.record
        is_new = bool(new_regions) or is_record or (self.by_branches and bool(new_branches))
        self.doublings = max(0, min(MOST_DOUBLINGS, self.doublings + (1 if is_new else -1)))
        self.regions |= new_regions
        self.branches |= new_branches
        self.record = max(self.record, record)
        self.known |= set(finds)
        self.round += 1
        if hung:
            self.round += 1 << min(self.hangs, 16)
            self.hangs += 1
