"""Faults of one rank in real processes: drawn, injected, and judged by what the other ranks get."""

from hashlib import sha256
from typing import Literal, get_args

import msgspec

from ..examples import Example
from ..subjects import Subject

Kind = Literal[
    "killed", "stopped", "raises", "sys.exit", "os._exit", "another shape", "another dtype", "another loss"
]
"""What happens to the rank: SIGKILL, SIGSTOP, a RuntimeError, the end of its process in two ways; or it calls
with features of another width or dtype, or calls another loss."""
KINDS: tuple[Kind, ...] = get_args(Kind)
DISAGREEMENTS: tuple[Kind, ...] = ("another shape", "another dtype", "another loss")
"""In these the rank goes on, with a call that the others do not make: they happen at the call."""
Phase = Literal["before", "forward", "backward", "after"]
Verdict = Literal["unaffected", "named", "generic", "silent", "hang", "abort"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""What a rank got, the worst last."""


class Call(msgspec.Struct, frozen=True):
    """A loss, and what it is called with."""

    contract: str
    subject: Subject
    example: Example


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of one rank. It is injected again from this record alone."""

    kind: Kind
    rank: int
    """Of the rank that has it."""
    phase: Phase
    at: int
    """In forward or backward: the collective before which it happens, from 0, modulo their number. Features
    of another width are wider if it is even, else narrower."""
    label: str
    call: Call
    before: Call
    """What the loss is called with first, by all ranks, without a fault."""
    other: Call | None = None
    """What the rank calls in another loss."""
    dtype: str = ""
    """Of the features that are of another dtype."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.call.example.case.world_size

    @property
    def disagrees(self) -> bool:
        """Whether the rank goes on, with another call than the others."""
        return self.kind in DISAGREEMENTS

    @property
    def fingerprint(self) -> str:
        """A name for this fault and no other."""
        return sha256(msgspec.json.encode(self)).hexdigest()[:12]

    @property
    def moment(self) -> str:
        """When it is injected, in words."""
        if self.disagrees:
            return "at the call"
        return {"before": "before forward", "after": "after backward"}.get(self.phase, f"in {self.phase}")

    def said(self, moment: str) -> str:
        """Return the fault in words, at a moment."""
        return f"{self.label}: rank {self.rank} of {self.world_size}: {self.kind} {moment}"

    def __str__(self) -> str:
        return self.said(self.moment)


class RankResult(msgspec.Struct, frozen=True):
    """What one rank got."""

    rank: int
    verdict: Verdict
    said: str
    """The exception, or what became of its process, or which value is wrong."""


class Result(msgspec.Struct, frozen=True):
    """What came of a fault."""

    fault: Fault
    ranks: tuple[RankResult, ...] = ()
    """Of the ranks that are judged: all but the faulty one, and that one too where it goes on."""
    collectives: tuple[int, int] = (0, 0)
    """How many the faulty rank takes part in without a fault, in forward and in backward."""
    left: tuple[str, ...] = ()
    """What was left behind."""
    not_run: str = ""
    """Why the fault was not injected, if so."""
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst of the ranks."""
        return max((one.verdict for one in self.ranks), key=VERDICTS.index, default="unaffected")

    @property
    def moment(self) -> str:
        """When it was injected, in words."""
        fault = self.fault
        if fault.disagrees or fault.phase in ("before", "after"):
            return fault.moment
        number = self.collectives[fault.phase == "backward"]
        if not number:
            return f"{fault.moment}, which sends nothing"
        return f"at collective {fault.at % number + 1} of {number} of {fault.phase}"

    def __str__(self) -> str:
        return self.fault.said(self.moment)
