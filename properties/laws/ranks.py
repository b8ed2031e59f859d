"""Laws of some ranks alone: process groups smaller than the world, inputs that some ranks freeze."""

import dataclasses

from hypothesis import assume
from hypothesis import strategies as st

from ..contracts import Contract
from ..examples import Example
from ..groups import Groups, perform_in_groups
from ..reference import Reference, part
from ..subjects import Subject
from ..worlds import WorldError
from . import FROZEN, Bench, Falsified, Law, Place, Unanswered
from .gradients import compare_gradients, unweighted
from .values import compare_terms

NO_GROUP = "the target takes no process group, or the rank in no group that it is given"
FREEZES_ALIKE = "it raises or waits for ever where some ranks alone freeze an input"


@st.composite
def _in_groups(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = draw(contract.cases(subject, world_size))
    for members in Groups.of(case).members:
        own = dataclasses.replace(case, rows=tuple(case.rows[rank] for rank in members))
        assume(any(own.rows) and (not contract.is_mean or contract.defined(own)))
    return Example(case)


def a_group_is_a_world_of_its_own(bench: Bench, reference: Reference) -> float:
    """In each of two groups, of `new_group` or of a device mesh, a loss gives what it gives in a world.

    It is constructed with the group, and with its rank and the number of ranks as the group counts them.
    """
    case = reference.case
    groups = Groups.of(case)
    outcomes = bench.run(perform_in_groups, bench.subject, bench.contract, case, groups)
    if None in outcomes:
        raise Unanswered(NO_GROUP, whatever=True)
    worst = 0.0
    for members in groups.members:
        own = part(bench.contract, reference.example, members)
        seen = [outcome for outcome in (outcomes[rank] for rank in members) if outcome is not None]
        try:
            worst = max(
                worst, compare_terms(own, {"": seen}, bench.subject.strict), compare_gradients(own, seen)
            )
        except Falsified as error:
            raise Falsified(f"in the group of ranks {', '.join(map(str, members))}: {error}") from error
    return worst


@st.composite
def _partly_frozen(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = unweighted(draw(contract.cases(subject, world_size)))
    names = [name for name in contract.inputs(case)[0] if name in contract.differentiable]
    names = [name for name in names if name not in {*subject.constants, *contract.scalars}]
    frozen = draw(st.sets(st.sampled_from(names), min_size=1))
    ranks = st.integers(0, world_size - 1)
    where = draw(st.sets(ranks, min_size=1, max_size=world_size - 1))
    constant = {*subject.constants, *contract.constants}
    assume(not constant)  # which no rank derives by
    return Example(dataclasses.replace(case, frozen=tuple(sorted(frozen)), frozen_on=tuple(sorted(where))))


def some_ranks_may_freeze(bench: Bench, reference: Reference) -> float:
    """Where some ranks alone freeze an input, all others get its gradient; or every rank raises.

    A loss that promises nothing may also raise, or wait, on some ranks: nothing is said of it then.
    """
    case = reference.case
    try:
        (outcomes,) = bench.observe([case])
    except WorldError as error:
        if all(rank.state == "raised" for rank in error.ranks):
            return 0.0
        if not bench.subject.strict:
            raise Unanswered(FREEZES_ALIKE, whatever=True) from error
        raise
    for rank, outcome in enumerate(outcomes):
        for name in case.frozen:
            if case.is_frozen(name, rank) and outcome.gradients.get(name) is not None:
                place = Place("presence of the gradient", name, rank, expected=False, observed=True)
                raise Falsified(f"rank {rank}: {name} must not get a gradient, but does", place)
    return max(
        compare_terms(reference, {"": outcomes}, bench.subject.strict), compare_gradients(reference, outcomes)
    )


LAWS = [
    Law("a group is a world of its own", a_group_is_a_world_of_its_own, worlds="four or more",
        draw=_in_groups, applies=lambda contract: not contract.whole, share=0.4, by_law=True),
    Law("some ranks may freeze inputs", some_ranks_may_freeze, worlds="several", draw=_partly_frozen,
        applies=lambda contract: not contract.whole, share=0.16, concerns=FROZEN, drawn_alone=True),
]  # fmt: skip
