"""What backward gives."""

import dataclasses

import numpy as np
import torch
from hypothesis import strategies as st

from oracles.complex_step import Array
from oracles.rounding import FLOAT64, gamma

from ..cases import Case, tensor
from ..contracts import Contract, Inputs
from ..subjects import Outcome, Subject
from ..worlds import World
from . import Falsified, Law, compare, observe

EVERY_PARTIAL = 64
"""Up to this many partial derivatives a case has each one checked; beyond, a choice of them."""
CHOSEN = 20
"""How many directions a large case is derived along."""


def _directions(case: Case, inputs: Inputs, differentiable: tuple[str, ...]) -> list[tuple[int, str, Array]]:
    """Choose directions to derive along: all axes of a small case, some and mixed ones of a large one."""
    places = [
        (rank, name)
        for rank, given in enumerate(inputs)
        for name in differentiable
        if name in given and name not in case.frozen
    ]
    sizes = {place: inputs[place[0]][place[1]].size for place in places}
    generator = np.random.default_rng([case.seed, 5])
    chosen = []
    for rank, name in places:
        shape, size = inputs[rank][name].shape, sizes[rank, name]
        if sum(sizes.values()) <= EVERY_PARTIAL:
            axes = list(range(size))
        else:
            axes = sorted({size - 1, int(generator.integers(size))})
        for axis in axes:
            unit = np.zeros(size)
            unit[axis] = 1
            chosen.append((rank, name, unit.reshape(shape)))
        if len(axes) < size:
            chosen.append((rank, name, generator.choice([-1.0, 1.0], shape)))
    if sum(sizes.values()) > EVERY_PARTIAL and len(chosen) > CHOSEN:
        chosen = [chosen[i] for i in sorted(generator.choice(len(chosen), CHOSEN, replace=False))]
    return chosen


def _check(contract: Contract, case: Case, outcomes: list[Outcome], inputs: Inputs) -> float:
    weights = contract.weights(case)
    bounds = contract.bounds(case, inputs, weights).gradients
    worst = 0.0
    for rank, name, along in _directions(case, inputs, contract.differentiable):
        expected = contract.derivative(case, inputs, weights, rank, name, along)
        observed = outcomes[rank].gradients.get(name)
        if observed is None:
            observed = np.zeros(along.shape)
        if observed.shape != along.shape:
            raise Falsified(
                f"rank {rank}, gradient of {name}: expected shape {list(along.shape)}, "
                f"observed {list(observed.shape)}"
            )
        bound = float(np.sum(abs(along) * bounds[rank][name])) * contract.slack(case)
        if np.count_nonzero(along) > 1:
            # the two sums that are compared round too
            bound += 2 * gamma(along.size, FLOAT64) * float(np.sum(abs(along * observed)))
        axes = np.argwhere(along)
        where = f" at {axes[0].tolist()}" if len(axes) == 1 and along.ndim else ""
        what = f"rank {rank}, gradient of {name}{where}"
        worst = max(worst, compare(what, float(np.sum(observed * along)), expected, bound))
    return worst


def gradients_equal_oracle(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """The gradient of everything differentiable equals the oracle's, every cotangent being 1."""
    case = dataclasses.replace(case, cotangents="ones")
    (outcomes,) = observe(contract, subject, world, [case])
    return _check(contract, case, outcomes, contract.inputs(case))


def cotangents_pass_through(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Gradients equal the oracle's for cotangents that differ between ranks, terms and elements."""
    case = dataclasses.replace(case, cotangents="drawn")
    (outcomes,) = observe(contract, subject, world, [case])
    return _check(contract, case, outcomes, contract.inputs(case))


@st.composite
def _small_float64(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Case:
    case = draw(contract.cases(subject, world_size))
    # flat regions and steep ones defeat the finite differences that this law rests on
    return dataclasses.replace(
        case,
        rows=tuple(min(n, 3) for n in case.rows),
        width=min(case.width, 3),
        teacher_width=min(case.teacher_width, 3),
        vocabulary=min(case.vocabulary, 4),
        length=min(case.length, 2),
        dtype="float64",
        wide_scalars=False,
        pattern="unit",
        scale=min(case.scale, 2.0),
        bias=None if case.bias is None else max(min(case.bias, 2.0), -2.0),
        frozen=(),
        output_dict=True,
    )


def twice_differentiable(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """First and second derivatives agree with finite differences in float64 (torch's gradgradcheck)."""
    world.run(_gradgradcheck, subject, contract, case)
    return 0.0


def _gradgradcheck(rank: int, world_size: int, subject: Subject, contract: Contract, case: Case) -> None:
    loss = contract.build(subject.resolve(), case, rank, world_size)
    given = {
        name: torch.tensor(array)
        if np.issubdtype(array.dtype, np.integer)
        else tensor(array, "float64", case.strides, contract.gradient_expected(case).get(name, False))
        for name, array in contract.inputs(case)[rank].items()
    }
    leaves = {name: value for name, value in given.items() if value.requires_grad}

    def function(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arguments = given | dict(zip(leaves, values, strict=True))
        terms = contract.read(contract.call(loss, arguments, case, rank), case)[1]
        return tuple(term for term in terms.values() if term.requires_grad)

    if not function(*leaves.values()):
        return
    try:
        torch.autograd.gradcheck(function, tuple(leaves.values()))
        torch.autograd.gradgradcheck(function, tuple(leaves.values()))
    except RuntimeError as error:
        raise Falsified(f"derivatives disagree with finite differences: {error}") from error


LAWS = [
    Law("gradients equal the oracle", gradients_equal_oracle.__doc__ or "", gradients_equal_oracle),
    Law("cotangents pass through", cotangents_pass_through.__doc__ or "", cotangents_pass_through),
    Law(
        "twice differentiable",
        twice_differentiable.__doc__ or "",
        twice_differentiable,
        worlds="one",
        draw=_small_float64,
        share=0.1,
    ),
]
