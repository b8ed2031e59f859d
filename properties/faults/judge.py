"""What a rank got of another rank's fault: an exception that names it, another, a wrong value, or no end."""

import re
from collections.abc import Sequence

import numpy as np

from ..contracts import contract_of
from ..laws import Falsified, Place, compare
from ..reference import Reference, reference
from ..worlds import RankState
from . import Fault, RankResult, Verdict
from .inject import Note

RANKS = re.compile(r"\branks?\W+((?:\d+(?:, | and | or )?)+)")
CAUSES = {
    "another shape": r"shape|width|dimension|\bsizes?\b",
    "another dtype": r"dtype|bfloat16|float32|float64",
    "another loss": r"\bcalls\b|[Dd]isagree|[Mm]ismatch",
}
GONE = r"died|left|lost|closed|stopped|exited|killed|ended|[Tt]imed out|answer"


def judge(fault: Fault, notes: Sequence[Note], states: Sequence[RankState]) -> tuple[RankResult, ...]:
    """Return what each rank got, but for the faulty one where it is gone, in rank order.

    Args:
        fault: the fault.
        notes: every rank's.
        states: every rank's, as the world saw it.
    """
    known = _reference(fault)
    return tuple(
        RankResult(rank, *_judged(fault, rank, note, state, known))
        for rank, (note, state) in enumerate(zip(notes, states, strict=True))
        if fault.disagrees or rank != fault.rank
    )


def _reference(fault: Fault) -> Reference:
    contract = contract_of(fault.call.contract).in_form(fault.call.subject.form)
    return reference(contract, fault.call.example)


def _judged(fault: Fault, rank: int, note: Note, state: RankState, known: Reference) -> tuple[Verdict, str]:
    if state.state == "hung":
        return "hang", state.said
    if rank != fault.rank and (wrong := _wrong(rank, note, known)):
        return "silent", wrong
    if note.raised:
        return ("named" if names(fault, note.raised) else "generic"), summary(note.raised)
    if state.state != "returned":
        return "abort", state.said
    return "unaffected", ""


def names(fault: Fault, raised: str) -> bool:
    """Whether a traceback names the faulty rank and its fault."""
    said = "\n".join(_messages(raised))
    ranks = {int(number) for found in RANKS.findall(said) for number in re.findall(r"\d+", found)}
    return fault.rank in ranks and bool(re.search(CAUSES.get(fault.kind, GONE), said))


def summary(raised: str) -> str:
    """Return the message of a traceback in one line."""
    return " ".join(_messages(raised)[-1:])[:400]


def _messages(raised: str) -> list[str]:
    return [line for line in raised.splitlines() if line and not line.startswith(" ")]


def _wrong(rank: int, note: Note, known: Reference) -> str:
    """Return which value that a rank returned is none that it should have, or nothing.

    What it returned must be what it returned without a fault, but for rounding: then it had got all that it
    needed. A loss that is wrong without a fault too is not accused here.
    """
    terms, gradients = note.healthy
    allowed = known.bounds
    pairs = (
        ("term", note.forward, terms, allowed.terms),
        ("gradient", note.backward, gradients, allowed.gradients),
    )
    for kind, got, right, bounds in pairs:
        if got is None or not note.repeats:
            continue
        if got.keys() != right.keys():
            return f"{kind}s: {sorted(got)} instead of {sorted(right)}"
        for name, value in got.items():
            bound = bounds[rank].get(name, np.zeros(()))
            try:
                # each of the two may be so far from the truth
                compare(Place(kind, name, rank), value, right[name], 2 * bound, known.largest)
            except Falsified as error:
                return str(error)
    return ""
