"""What several ranks together compute."""

import dataclasses

import numpy as np
import torch
from hypothesis import assume

from ..cases import Case, tensor
from ..contracts import Contract
from ..subjects import Subject
from ..worlds import World
from ..worlds.specs import SINGLE
from . import Law, Place, compare, observe
from .gradients import unweighted


def together(case: Case) -> Case:
    """Return the whole batch on one rank, which talks to nobody, and has no Horovod."""
    options = tuple(option for option in case.options if option[0] != "use_horovod")
    return dataclasses.replace(unweighted(case), rows=(sum(case.rows),), options=options)


def mean_over_ranks_equals_single_process(
    contract: Contract, subject: Subject, world: World, case: Case
) -> float:
    """The mean over ranks of losses and gradients equals one process that holds the whole batch."""
    assume(contract.obeys_mean(case))
    case = unweighted(case)
    whole = together(case)
    (outcomes,) = observe(contract, subject, world, [case])
    ((single,),) = observe(contract, subject, subject.worlds().open(SINGLE), [whole])
    bounds = contract.bounds(case, contract.inputs(case), contract.weights(case))
    (whole_terms,), (whole_grads,) = dataclasses.astuple(
        contract.bounds(whole, contract.inputs(whole), contract.weights(whole))
    )
    worst = 0.0
    for name, expected in single.terms.items():
        mean = np.mean([outcome.terms[name] for outcome in outcomes], axis=0)
        bound = np.mean([rank[name] for rank in bounds.terms], axis=0) + whole_terms[name]
        worst = max(worst, compare(Place("term", name), mean, expected, bound))
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
        worst = max(worst, compare(Place("gradient", name), observed, right, bound + whole_grads[name]))
    return worst


def second_derivatives_travel(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """The derivative of <gradient, v> by the cotangents is what the function gives for v."""
    assume(case.option("gather_with_grad", True))
    pairs = world.run(_second_derivatives, subject, contract, case)
    inputs = contract.inputs(case)
    weights = contract.weights(case)
    bounds = contract.bounds(case, inputs, weights)
    worst = 0.0
    for rank, terms in enumerate(contract.oracle(case, inputs)):
        for name, expected in terms.items():
            place, bound = Place("second derivative", name, rank), bounds.terms[rank][name]
            worst = max(worst, compare(place, pairs[rank][name], np.real(expected), bound))
    return worst


def _second_derivatives(
    rank: int, world_size: int, subject: Subject, contract: Contract, case: Case
) -> dict[str, np.ndarray]:
    function = contract.build(subject.resolve(), case, rank, world_size)
    arrays = contract.inputs(case)[rank]
    leaves = {name: tensor(array, case.dtype, case.strides, True) for name, array in arrays.items()}
    terms = contract.read(contract.call(function, leaves, case, rank), case)[1]
    drawn = contract.weights(case)[rank]
    weights = {name: tensor(drawn[name], case.dtype, "contiguous", True) for name in terms}
    gradients = torch.autograd.grad(
        list(terms.values()), list(leaves.values()), list(weights.values()), create_graph=True
    )
    # the functions are linear: pairing the gradient with the inputs gives the outputs back
    paired = torch.autograd.grad(
        list(gradients), list(weights.values()), [leaf.detach() for leaf in leaves.values()]
    )
    return {name: value.double().numpy() for name, value in zip(weights, paired, strict=True)}


def _linear(contract: Contract) -> bool:
    return not contract.is_loss


LAWS = [
    Law(
        "mean over ranks equals single process",
        mean_over_ranks_equals_single_process,
        worlds="several",
        applies=lambda contract: contract.is_loss,
    ),
    Law(
        "second derivatives travel",
        second_derivatives_travel,
        worlds="several",
        applies=_linear,
        share=0.5,
    ),
]
