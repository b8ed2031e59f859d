"""Laws of several ranks: means, second derivatives, communication."""

import dataclasses

import numpy as np
from hypothesis import assume

from verified_losses.oracles.complex_step import Array

from ..cases import Case
from ..contracts import Contract
from ..reference import Reference
from ..standalone.acts import derive_by_cotangents, send_in_backward
from ..standalone.judges import judge_mean, judge_term, judge_words, mean_over_ranks
from ..worlds.table import KINDS
from . import SECOND_DERIVATIVES, Bench, Falsified, Law, Place, Unanswered, compare
from .gradients import unweighted

SENDS = "with gather_with_grad its backward may send"
"""What makes silence no promise."""


def together(case: Case) -> Case:
    """Return the whole batch on one rank, without the options that make a loss communicate."""
    talking = [option for kind in KINDS.values() for option in kind.options]
    options = tuple(option for option in case.options if option not in talking)
    return dataclasses.replace(unweighted(case), rows=(sum(case.rows),), options=options)


def mean_over_ranks_equals_single_process(bench: Bench, reference: Reference) -> float:
    """The mean over ranks of losses and gradients equals one process that holds the whole batch."""
    contract = bench.contract
    assume(contract.obeys_mean(reference.case))
    reference = bench.reference(unweighted(reference.case))
    case, bounds = reference.case, reference.bounds
    whole = bench.reference(together(case))
    (outcomes,) = bench.observe([case])
    ((single,),) = bench.alone.observe([whole.case])
    (whole_terms,), (whole_grads,) = whole.bounds.terms, whole.bounds.gradients
    worst, summed = 0.0, 1 if bench.subject.strict else whole.case.summed
    for name, expected in single.terms.items():
        mean = np.mean([outcome.terms[name] for outcome in outcomes], axis=0)
        bound = np.mean([rank[name] for rank in bounds.terms], axis=0) + whole_terms[name]
        place = Place("term", name)
        worst = max(worst, compare_with_single(whole, place, mean, expected, bound, summed))
    for name, gradient in single.gradients.items():
        grads = [outcome.gradients[name] for outcome in outcomes]
        parts = [np.zeros(bounds.gradients[r][name].shape) if g is None else g for r, g in enumerate(grads)]
        right = np.zeros(whole_grads[name].shape) if gradient is None else gradient
        is_shared = name in contract.alike
        observed = mean_over_ranks(parts, is_shared)
        bound = mean_over_ranks([rank[name] for rank in bounds.gradients], is_shared)
        place, bound = Place("gradient", name), bound + whole_grads[name]
        worst = max(worst, compare_with_single(whole, place, observed, right, bound))
    return worst


def compare_with_single(
    whole: Reference, place: Place, mean: Array, single: Array, bound: Array, summed: int = 1
) -> float:
    """As `compare`; a value of the single process that is not finite is compared with the oracle.

    Where the oracle's leaves the dtype, or the sum of `summed` such before a mean does, nothing is.
    """
    note = "in one process with the whole batch"
    for index in np.argwhere(~np.isfinite(single))[:1].tolist():
        alone = dataclasses.replace(place, rank=0, note=note, index=tuple(index))
        allowed = np.broadcast_to(bound, single.shape)[alone.index]
        right = whole.value(place.kind, place.name, 0, alone.index, single.shape)
        compare(alone, single[alone.index], right, allowed, whole.largest, summed)
    return compare(place, mean, single, bound, whole.largest, summed)


def second_derivatives_travel(bench: Bench, reference: Reference) -> float:
    """The derivative of <gradient, v> by the cotangents is the function's value at v."""
    assume(reference.case.option("gather_with_grad", True))
    pairs = bench.act(derive_by_cotangents, reference.case)
    worst = 0.0
    for rank, terms in enumerate(reference.terms):
        for name, expected in terms.items():
            place, bound = Place("second derivative", name, rank), reference.bounds.terms[rank][name]
            seen = pairs[rank][0].terms[name]
            worst = max(worst, compare(place, seen, expected, bound, reference.largest))
    return worst


def backward_is_silent(bench: Bench, reference: Reference) -> float:
    """Without gather_with_grad backward sends nothing: a rank may run it alone, or not at all."""
    if dict(bench.subject.options).get("gather_with_grad"):
        raise Unanswered(SENDS, whatever=True)
    assume(not reference.case.option("gather_with_grad"))
    sent = bench.act(send_in_backward, reference.case)
    for key in getattr(bench.world, "traffic", ()):  # of simulated ranks
        if key.phase == "backward":
            sent[key.rank].append(key.operation)
    for rank, operations in enumerate(sent):
        if operations:
            raise Falsified(f"rank {rank}: backward sends, by {', '.join(sorted(set(operations)))}")
    return 0.0


def _linear(contract: Contract) -> bool:
    return not contract.is_loss


LAWS = [
    Law(
        "mean over ranks equals single process",
        mean_over_ranks_equals_single_process,
        worlds="several",
        applies=lambda contract: contract.is_mean,
        judge=judge_mean,
        prepare=unweighted,
        other=("whole", "the whole batch on one rank", together),
    ),
    Law(
        "second derivatives travel",
        second_derivatives_travel,
        worlds="several",
        applies=_linear,
        share=0.5,
        concerns=SECOND_DERIVATIVES,
        act=derive_by_cotangents,
        judge=judge_term,
    ),
    Law(
        "backward is silent",
        backward_is_silent,
        worlds="several",
        applies=lambda contract: "gather_with_grad" in contract.values,
        share=0.3,
        act=send_in_backward,
        judge=judge_words,
    ),
]
