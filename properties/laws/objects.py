"""Laws of a loss as an object: eval mode, two graphs at once, the parameters that it owns, its memory."""

import dataclasses
import math

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from verified_losses.oracles.complex_step import Array

from ..cases import share_out
from ..contracts import Contract, with_few_tiles
from ..examples import Example, Step
from ..reference import Reference
from ..standalone.acts import (
    NO_MODES,
    NO_STATE,
    Outcome,
    derive_owned,
    exceed_memory,
    run_copied,
    run_evaluated,
    run_two_live,
)
from ..standalone.judges import judge_copies, judge_near, judge_owned, judge_two_live, judge_words, predicts
from ..subjects import Subject
from . import EVAL, Bench, Falsified, Law, Place, Unanswered, compare
from .gradients import NO_DTYPE, SUMMED_IN_ITSELF, small_examples
from .hygiene import other_values, same_bits

STATES_NOTHING = (
    "the target states no memory, or of several ranks none: no method `stated_memory` takes `rows`"
)
OWNS_NOTHING = "the target owns no parameter that requires grad"
LACKING = (NO_MODES, NO_STATE, OWNS_NOTHING, STATES_NOTHING)
"""The reasons for which a law says nothing about a target that is no module, or no more than that."""


def eval_equals_train(bench: Bench, reference: Reference) -> float:
    """In eval mode, and back in train mode, a module gives what it gave in train mode.

    A law of its own, as "used equals fresh" compares bits: in eval mode a right loss may round otherwise, so
    here both are as near as both are to the oracle, and bounds are worked out only where bits differ.
    """
    worst = 0.0
    for rank, (trained, *others) in enumerate(bench.act(run_evaluated, reference.case)):
        if trained.refused:
            raise Unanswered(trained.refused, whatever=True)
        for note, seen in zip(("in eval mode", "after eval mode"), others, strict=True):
            worst = max(worst, compare_near(reference, rank, note, seen, trained))
    return worst


def compare_near(reference: Reference, rank: int, note: str, seen: Outcome, right: Outcome) -> float:
    """Return the worst error over bound of one outcome beside another; both may round."""
    worst = 0.0
    for kind, name, value, other in (
        *(("term", name, value, seen.terms.get(name)) for name, value in right.terms.items()),
        *(("gradient", name, value, seen.gradients.get(name)) for name, value in right.gradients.items()),
    ):
        place = Place(kind, name, rank, note)
        if value is None or other is None:
            if value is not other:
                some, none = ("a gradient", "none") if other is None else ("none", "a gradient")
                raise Falsified(f"{place}: expected {some}, observed {none}", place)
        elif not np.array_equal(value, other, equal_nan=True) and np.isfinite(value).all():
            bounds = reference.bounds.terms if kind == "term" else reference.bounds.gradients
            share = reference.case.world_size if reference.contract.whole else 1
            worst = max(worst, compare(place, other, value, 2 * share * bounds[rank][name] * reference.slack))
    return worst


@st.composite
def _pairs(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw two calls with tensors of the same shapes: what one keeps, the other writes over."""
    last = draw(contract.cases(subject, world_size))
    other = other_values(last, draw(contract.cases(subject, world_size)))
    constructed = {name: getattr(last, name) for name in contract.constructed_of(subject)}
    first = dataclasses.replace(other, **constructed)
    assume(contract.defined(first))
    return Example(last, (Step(first),))


COPIES = ("of its deep copy", "of its pickled copy", "of a fresh object with its state", "after to")


def copies_are_the_same(bench: Bench, reference: Reference) -> float:
    """A module's copies, by deepcopy, by pickle and by its state_dict, give the bits that it gives.

    What cannot be copied so is not asked, unless it is stated that it can.
    """
    for rank, (original, *copies) in enumerate(bench.act(run_copied, reference.case)):
        if original.refused:
            raise Unanswered(original.refused, whatever=True)
        for note, seen in zip(COPIES, copies, strict=True):
            if seen.refused and bench.subject.stated:
                raise Falsified(f"rank {rank}: {seen.refused}")
            if not seen.refused:
                same_bits(reference, rank, note, seen, original)
    return 0.0


ORDERS = ("the first of two calls, derived in order", "the second of two calls, derived in order",
          "the first of two calls, derived last", "the second of two calls, derived first")  # fmt: skip


def two_graphs_at_once(bench: Bench, reference: Reference) -> float:
    """Two calls of one object before either backward, in both orders, give the bits of fresh objects."""
    steps = bench.act(run_two_live, *reference.example.steps, reference.case)
    for rank, (first, second, *live) in enumerate(steps):
        for note, seen, fresh in zip(ORDERS, live, (first, second) * 2, strict=True):
            same_bits(reference, rank, f"of {note}", seen, fresh)
    return 0.0


def owned_parameters_get_gradients(bench: Bench, reference: Reference) -> float:
    """The gradient of each parameter that a module owns predicts how the loss changes with it.

    A parameter with which the loss does not change needs none. Two values are subtracted, and where the
    parameter enters, it rounds at most as the loss itself does: four bounds, of float32, as a loss may take
    its own parameter in float32.
    """
    case = reference.case
    if case.dtype not in SUMMED_IN_ITSELF:
        raise Unanswered(NO_DTYPE, whatever=True)
    (found,) = bench.act(derive_owned, case)
    if not found:
        raise Unanswered(OWNS_NOTHING, whatever=True)
    rounded = bench.reference(dataclasses.replace(case, dtype="float32"))
    bound = 4 * rounded.slack * _sum(reference.cotangents[0], rounded.bounds.terms[0])
    for own in found:
        if not all(map(math.isfinite, own.changes)):
            continue  # values are for other laws
        if not predicts(own, bound):
            gradient = (
                f"its gradient predicts {own.predicted[0]:.6g}" if own.has_gradient else "it has no gradient"
            )
            if not all(map(math.isfinite, own.predicted)):
                gradient = "its gradient is not finite"
            place = Place("what it owns: gradient", own.name, 0, expected=own.changes[0],
                          observed=own.predicted[0], bound=bound)  # fmt: skip
            moved = f"moved a little, it changes the loss by {own.changes[0]:.6g}"
            raise Falsified(f"rank 0, what it owns: parameter {own.name}: {moved}, and {gradient}", place)
    return 0.0


def _sum(cotangents: dict[str, Array], bounds: dict[str, Array]) -> float:
    return float(sum(np.sum(abs(cotangents[name]) * bound) for name, bound in bounds.items()))


@st.composite
def _rounding(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw a small case that no operation is exact for, as none is once a parameter has moved."""
    case = draw(small_examples(contract, subject, world_size)).case
    scale = case.scale if math.frexp(case.scale)[0] != 0.5 else 0.7 * case.scale
    rows = tuple(max(n, 2) for n in case.rows)  # with one alone a contrastive loss is a constant
    case = dataclasses.replace(case, pattern="unit", scale=scale, rows=rows)
    assume(contract.defined(case))
    return Example(case)


def takes_no_more_than_stated(bench: Bench, reference: Reference) -> float:
    """What a call saves for its backward, and what both take at most, is no more than the loss states.

    A loss states it by a method `stated_memory`, which takes the arguments of a call by name and returns an
    object with `saved` and `peak`: bytes of this rank, besides the arguments. One that takes `rows` too, the
    number of each rank's, is asked in several ranks; one that does not, in one process alone.
    """
    assume(not reference.case.option("use_horovod"))  # whose ranks torch.distributed does not know
    for rank, noted in enumerate(bench.act(exceed_memory, reference.case)):
        if noted == [""]:
            raise Unanswered(STATES_NOTHING, whatever=True)
        if noted:
            raise Falsified(f"rank {rank}: the call {', '.join(noted)}")
    return 0.0


MANY_ROWS = (128, 512)
"""At least and at most so many rows of all ranks: what is quadratic in them outweighs what is linear."""
MOST_COLUMNS = 24


@st.composite
def _many_rows(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw a case, every other one of many narrow rows, unless its kernels are interpreted."""
    case = draw(contract.cases(subject, world_size))
    if not contract.whole and not subject.interpret and draw(st.booleans()):
        rows = share_out(draw(st.integers(*MANY_ROWS)), world_size, subject.even)
        width = subject.width_of(min(case.width, MOST_COLUMNS))
        case = with_few_tiles(dataclasses.replace(case, rows=rows, width=width))
        assume(contract.defined(case))
    return Example(case)


def _is_loss(contract: Contract) -> bool:
    return contract.is_loss


LAWS = [
    Law("eval equals train", eval_equals_train, share=0.3, concerns=EVAL,
        applies=lambda contract: contract.is_loss and not contract.holds,  # in eval mode a queue stays
        act=run_evaluated, judge=judge_near),
    Law("copies are the same", copies_are_the_same, share=0.12,
        applies=lambda contract: contract.is_loss and not contract.holds, act=run_copied, judge=judge_copies),
    Law("two graphs at once", two_graphs_at_once, applies=_is_loss, share=0.2, draw=_pairs,
        act=run_two_live, judge=judge_two_live),
    Law("owned parameters get gradients", owned_parameters_get_gradients, applies=_is_loss, share=0.2,
        worlds="one", draw=_rounding, act=derive_owned, judge=judge_owned),
    Law("takes no more memory than stated", takes_no_more_than_stated, applies=_is_loss, share=0.3,
        draw=_many_rows, act=exceed_memory, judge=judge_words),
]  # fmt: skip
