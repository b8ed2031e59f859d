"""What a target does among two ranks: whether it communicates, with which flags, and in which worlds."""

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from verified_losses.oracles.complex_step import Array

from ..cases import Case
from ..contracts import Contract
from ..examples import Example, Step
from ..laws import Falsified, Place, compare
from ..laws.gradients import compare_gradients
from ..laws.values import compare_terms
from ..reference import reference
from ..running import perform
from ..standalone.acts import Outcome, run_each, run_used_and_fresh
from ..subjects import Subject
from ..worlds import OutOfTime, WorldError
from ..worlds.specs import WorldSpec

FLAGS = ("local_loss", "gather_with_grad")
OF_PROCESS = "they share what a process keeps, such as its rank"
STOPS_PROCESSES = ("raised", "deadlock", "early_exit")
"""What a simulated run finds that would not let processes return."""
REFUSES = re.compile(r"NotImplementedError: simulated world: (.*)|\w+: (.*(?:ProcessGroupGloo|with Gloo).*)")
"""The line of a traceback that says what a world does not do."""
MANY = 16
"""Rows of a rank beside which those of the first cases are few."""
SHORT = 0.25
"""The patience for processes where simulated ranks did not return."""


Flagged = TypeVar("Flagged", Case, Subject)


class Ran(NamedTuple):
    """What came of running a subject on two ranks."""

    outcomes: tuple[list[Outcome], ...] = ()
    """Of each rank, for each case up to one in which a rank did not return."""
    communicates: bool = False
    """Some simulated rank sent something."""
    refused: str = ""
    """What simulated ranks do not have, or gloo says that it does not do."""
    finding: str = ""
    """What a simulated run found, where a rank did not return."""


def among_ranks(
    subject: Subject, contract: Contract, case: Case, taken: Sequence[str], asked: Subject
) -> Subject:
    """Return a subject with what two ranks show, as processes over gloo and as simulated ranks.

    A loss whose simulated ranks send nothing, in a second and larger call neither, and give what processes
    give, does not gather. One whose simulated ranks give something else keeps state of its process, which
    they share: it is verified in processes alone. So is one that asks for an operation that simulated ranks
    do not have.

    A flag that is neither taken by the constructor nor stated is the one with which values and gradients are
    the oracle's, else values alone, else values of the most ranks; where the convention is exact, one that
    keeps the mean over ranks.

    Args:
        subject: what to run.
        contract: its contract.
        case: one of two ranks, in the form that the subject takes.
        taken: the options that the constructor takes.
        asked: the subject as it was asked for.
    """
    # where every cotangent is 1, own rows that carry all ranks' gradient look like a gather with gradient
    cases = [replace(case, cotangents=one) for one in ("drawn", "ones")]
    try:
        simulated = _run(subject, contract, "simulated", cases)
        # what waits for ever there may do so here
        patience = 1.0 if len(simulated.outcomes) == len(cases) else SHORT
        processes = run_processes(subject, contract, cases, patience)
    except OutOfTime:
        return subject
    seen = max(processes.outcomes, simulated.outcomes, key=len)
    if why := _unsimulated(contract, cases, simulated, processes):
        subject.worlds().close()  # what one process holds is of several ranks
        subject = replace(subject, excluded=(("simulated", why),))
    elif processes.refused and len(simulated.outcomes) == len(cases) and not subject.strict:
        why = f"gloo refuses what it asks for ({processes.refused})"
        subject = replace(subject, excluded=(("processes", why), ("torchrun", why)))
    elif simulated.outcomes and not simulated.communicates and not _sends_later(subject, contract, case):
        return replace(subject, gathers=False)
    free = [name for name in FLAGS if name in contract.assumed and name not in {*taken, *dict(asked.options)}]
    if not free or len(seen) < len(cases):
        return subject
    outcomes = dict(zip(("drawn", "ones"), seen, strict=True))
    assumed = tuple(contract.assumed[name] for name in free)
    choices: list[dict[str, bool]] = []
    for values in dict.fromkeys([assumed, *itertools.product((False, True), repeat=len(free))]):
        flags = dict(zip(free, values, strict=True))
        if subject.conventions != ("exact",) or contract.obeys_mean(_flagged(case, flags)):
            choices.append(flags)
    for cotangents, gradients in (("drawn", True), ("ones", True), ("ones", False)):
        for flags in choices:
            flagged = replace(_flagged(case, flags), cotangents=cotangents)
            if _equals(contract, flagged, outcomes[cotangents], gradients):
                return _flagged(subject, flags)
    # rank 0 of a loss whose labels begin at 0 on every rank shows what it means to be
    fits = [_fitting(contract, _flagged(cases[0], flags), outcomes["drawn"]) for flags in choices]
    if not any(fits):
        return subject
    return _flagged(subject, choices[fits.index(max(fits))])


def _flagged(one: Flagged, flags: dict[str, bool]) -> Flagged:
    return replace(one, options=tuple((dict(one.options) | flags).items()))


def _run(
    subject: Subject, contract: Contract, kind: str, cases: Sequence[Case], patience: float = 1.0
) -> Ran:
    """Run a subject in a world of two ranks, case after case, until a rank does not return."""
    outcomes: list[list[Outcome]] = []
    communicates = False
    for case in cases:
        try:
            world = subject.worlds().open(WorldSpec(kind, (2,), case.device), patience, size=2)
            ran = world.run(perform, subject, contract, run_each, [Step(case)])
        except WorldError as error:
            said = [line for rank in error.ranks for line in rank.detail.splitlines()]
            return Ran(tuple(outcomes), communicates, _refused(said), getattr(error, "finding", ""))
        outcomes.append([first for (first,) in ran])
        communicates = communicates or bool(getattr(world, "traffic", {}))
    return Ran(tuple(outcomes), communicates)


def _sends_later(subject: Subject, contract: Contract, case: Case) -> bool:
    """Whether simulated ranks send something in the second call of one object, with more rows."""
    world = subject.worlds().open(WorldSpec("simulated", (2,), case.device), size=2)
    steps = [Step(case), Step(replace(case, rows=(MANY, MANY)))]
    with contextlib.suppress(WorldError, OutOfTime):
        world.run(perform, subject, contract, run_used_and_fresh, steps)
    return bool(getattr(world, "traffic", {}))


def run_processes(subject: Subject, contract: Contract, cases: Sequence[Case], patience: float) -> Ran:
    """Run a subject as two processes over gloo."""
    return _run(subject, contract, "processes", cases, patience)


def _refused(said: list[str]) -> str:
    """Return what a world does not do, as tracebacks say it; nothing where none does."""
    return next((match[1] or match[2] for line in said if (match := REFUSES.match(line))), "")


def _unsimulated(contract: Contract, cases: Sequence[Case], simulated: Ran, processes: Ran) -> str:
    """Return why a subject is not verified in simulated worlds, which processes show; nothing if it is."""
    if len(processes.outcomes) < len(cases):
        return ""
    if simulated.refused:
        return f"they have no {simulated.refused}"
    pairs = zip(cases, simulated.outcomes, processes.outcomes, strict=False)
    if any(_differ(contract, case, *both) for case, *both in pairs):
        return OF_PROCESS
    # one run may leave what stops the next
    stopped = bool(simulated.finding and simulated.outcomes) or simulated.finding in STOPS_PROCESSES
    return OF_PROCESS if stopped else ""


def _differ(contract: Contract, case: Case, one: list[Outcome], other: list[Outcome]) -> bool:
    """Whether two worlds give ranks other terms or gradients, beyond what rounding makes of them."""
    expected = reference(contract, Example(case))
    for rank in range(case.world_size):
        bounds = expected.bounds.terms[rank], expected.bounds.gradients[rank]
        ones, others = one[rank], other[rank]
        held: list[tuple[Mapping[str, Array | None], Mapping[str, Array | None]]] = [
            (ones.terms, others.terms), (ones.gradients, others.gradients),
        ]  # fmt: skip
        for bound, (these, those) in zip(bounds, held, strict=True):
            if any(
                not _near(these.get(name), those.get(name), 2 * bound[name] * expected.slack)
                for name in bound
            ):
                return True
    return False


def _near(one: Array | None, other: Array | None, bound: Array) -> bool:
    if one is None or other is None:
        return one is other
    try:
        compare(Place("term"), one, other, bound)
    except Falsified:
        return False
    return True


def _fitting(contract: Contract, case: Case, outcomes: list[Outcome]) -> int:
    """Return on how many ranks the values are the oracle's."""
    expected = reference(contract, Example(case))
    everyone = zip(outcomes, expected.terms, expected.bounds.terms, strict=True)
    return sum(
        all(_near(own.terms.get(name), right[name], bound[name] * expected.slack) for name in right)
        for own, right, bound in everyone
    )


def _equals(contract: Contract, case: Case, outcomes: list[Outcome], gradients: bool) -> bool:
    """Whether the ranks' values are the oracle's, and their gradients too where that is asked."""
    expected = reference(contract, Example(case))
    try:
        compare_terms(expected, {"": outcomes})
        if gradients:
            compare_gradients(expected, outcomes)
    except Falsified:
        return False
    return True
