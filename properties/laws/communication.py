"""What several ranks together compute."""

import dataclasses
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from torch.utils._python_dispatch import TorchDispatchMode

from verified_losses.oracles.complex_step import Array

from ..cases import Case, tensor, to_array
from ..contracts import Contract
from ..reference import Reference
from ..running import backward, inputs
from ..subjects import Subject
from ..worlds.table import KINDS
from . import Bench, Falsified, Law, Place, compare
from .gradients import unweighted


def together(case: Case) -> Case:
    """Return the whole batch on one rank, which is constructed with nothing that makes it talk."""
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
    worst = 0.0
    for name, expected in single.terms.items():
        mean = np.mean([outcome.terms[name] for outcome in outcomes], axis=0)
        bound = np.mean([rank[name] for rank in bounds.terms], axis=0) + whole_terms[name]
        worst = max(worst, compare_with_single(whole, Place("term", name), mean, expected, bound))
    world_size = case.world_size
    for name, gradient in single.gradients.items():
        grads = [outcome.gradients[name] for outcome in outcomes]
        parts = [np.zeros(bounds.gradients[r][name].shape) if g is None else g for r, g in enumerate(grads)]
        right = np.zeros(whole_grads[name].shape) if gradient is None else gradient
        if name in contract.scalars:
            observed = np.mean(parts, axis=0)
            bound = np.mean([rank[name] for rank in bounds.gradients], axis=0)
        else:
            # a shared encoder averages what reaches it from every rank: each row counts 1/W
            observed = np.concatenate(parts) / world_size
            bound = np.concatenate([rank[name] for rank in bounds.gradients]) / world_size
        place, bound = Place("gradient", name), bound + whole_grads[name]
        worst = max(worst, compare_with_single(whole, place, observed, right, bound))
    return worst


def compare_with_single(whole: Reference, place: Place, mean: Array, single: Array, bound: Array) -> float:
    """As `compare`; what one process gives and is not finite is itself compared with the oracle."""
    note = "in one process with the whole batch"
    for index in np.argwhere(~np.isfinite(single))[:1].tolist():
        alone = dataclasses.replace(place, rank=0, note=note, index=tuple(index))
        allowed = np.broadcast_to(bound, single.shape)[alone.index]
        compare(alone, single[alone.index], _by_oracle(whole, alone, single.shape), allowed)
    return compare(place, mean, single, bound)


def _by_oracle(whole: Reference, place: Place, shape: tuple[int, ...]) -> float:
    """Return what the oracle gives for the whole batch at a place in a value of this shape."""
    if place.kind == "term":
        return float(np.broadcast_to(whole.terms[0][place.name], shape)[place.index])
    along = np.zeros(shape)
    along[place.index] = 1
    return whole.derivative(0, place.name, along)


def second_derivatives_travel(bench: Bench, reference: Reference) -> float:
    """The derivative of <gradient, v> by the cotangents is what the function gives for v."""
    assume(reference.case.option("gather_with_grad", True))
    pairs = bench.run(_second_derivatives, bench.subject, reference)
    worst = 0.0
    for rank, terms in enumerate(reference.terms):
        for name, expected in terms.items():
            place, bound = Place("second derivative", name, rank), reference.bounds.terms[rank][name]
            worst = max(worst, compare(place, pairs[rank][name], expected, bound))
    return worst


def _second_derivatives(
    rank: int, world_size: int, subject: Subject, reference: Reference
) -> dict[str, np.ndarray]:
    contract, case = reference.contract, reference.case
    function = contract.build(subject.resolve(), case, rank, world_size)
    arrays, drawn = reference.inputs[rank], reference.cotangents[rank]
    leaves = {
        name: tensor(array, case.dtype, case.strides, True, case.device) for name, array in arrays.items()
    }
    terms = contract.read(contract.call(function, leaves, case, rank), case)[1]
    cotangents = {name: tensor(drawn[name], case.dtype, "contiguous", True, case.device) for name in terms}
    gradients = torch.autograd.grad(
        list(terms.values()), list(leaves.values()), list(cotangents.values()), create_graph=True
    )
    # the functions are linear: pairing the gradient with the inputs gives the outputs back
    paired = torch.autograd.grad(
        list(gradients), list(cotangents.values()), [leaf.detach() for leaf in leaves.values()]
    )
    return {name: to_array(value) for name, value in zip(cotangents, paired, strict=True)}


def backward_is_silent(bench: Bench, reference: Reference) -> float:
    """Without gather_with_grad backward sends nothing: a rank may run it alone, or not at all."""
    assume(not reference.case.option("gather_with_grad"))
    sent = bench.run(_sent_in_backward, bench.subject, reference)
    for key in getattr(bench.world, "traffic", ()):  # of simulated ranks
        if key.phase == "backward":
            sent[key.rank].append(key.operation)
    for rank, operations in enumerate(sent):
        if operations:
            raise Falsified(f"rank {rank}: backward sends, by {', '.join(sorted(set(operations)))}")
    return 0.0


class Collectives(TorchDispatchMode):
    """Notes the communication of real process groups."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def _sent_in_backward(rank: int, world_size: int, subject: Subject, reference: Reference) -> list[str]:
    contract, case = reference.contract, reference.case
    loss = contract.build(subject.resolve(), case, rank, world_size)
    output = contract.call(loss, inputs(rank, reference), case, rank)
    with Collectives() as collectives:
        backward(rank, reference, contract.read(output, case)[1])
    seen: list[str] = collectives.seen
    return seen


def _linear(contract: Contract) -> bool:
    return not contract.is_loss


LAWS = [
    Law(
        "mean over ranks equals single process",
        mean_over_ranks_equals_single_process,
        worlds="several",
        applies=lambda contract: contract.is_mean,
    ),
    Law(
        "second derivatives travel",
        second_derivatives_travel,
        worlds="several",
        applies=_linear,
        share=0.5,
    ),
    Law(
        "backward is silent",
        backward_is_silent,
        worlds="several",
        applies=lambda contract: "gather_with_grad" in contract.values,
        share=0.3,
    ),
]
