"""What backward gives."""

import dataclasses

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st

from verified_losses.oracles.complex_step import LOST, Array
from verified_losses.oracles.rounding import FLOAT64, gamma

from ..cases import Case, tensor
from ..contracts import Contract
from ..examples import Example
from ..reference import Reference
from ..running import Outcome
from ..subjects import Subject
from . import Bench, Law, Place, compare, misshapen

EVERY_PARTIAL = 64
"""Up to this many partial derivatives a case has each one checked; beyond, a choice of them."""
CHOSEN = 20
"""How many directions a large case is derived along; half of them where that takes seconds."""
LARGE = 2**19
"""As many pairs of rows, over all ranks, take seconds."""


def _directions(reference: Reference) -> list[tuple[int, str, Array]]:
    """Choose directions to derive along: all axes of a small case, some and mixed ones of a large one."""
    case, inputs = reference.case, reference.inputs
    places = [
        (rank, name)
        for rank, given in enumerate(inputs)
        for name in reference.contract.differentiable
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
    most = CHOSEN if case.world_size * sum(case.rows) ** 2 < LARGE else CHOSEN // 2
    if sum(sizes.values()) > EVERY_PARTIAL and len(chosen) > most:
        chosen = [chosen[i] for i in sorted(generator.choice(len(chosen), most, replace=False))]
    return chosen


def compare_gradients(reference: Reference, outcomes: list[Outcome]) -> float:
    """Return the worst error over bound of every rank's gradients, along some directions."""
    bounds = reference.bounds.gradients
    worst = 0.0
    for rank, name, along in _directions(reference):
        expected = reference.derivative(rank, name, along)
        observed = outcomes[rank].gradients.get(name)
        if observed is None:
            observed = np.zeros(along.shape)
        if observed.shape != along.shape:
            raise misshapen(Place("gradient", name, rank), observed.shape, along.shape)
        bound = float(np.sum(abs(along) * bounds[rank][name])) * reference.slack
        if np.count_nonzero(along) > 1:
            # the two sums that are compared round too
            bound += 2 * gamma(along.size, FLOAT64) * float(np.sum(abs(along * observed)))
        if bound:
            bound += LOST
        axes = np.argwhere(along)
        place = (
            Place("gradient", name, rank, index=tuple(axes[0].tolist()))
            if len(axes) == 1
            else Place("gradient", name, rank, "along a direction", along=along)
        )
        worst = max(worst, compare(place, float(np.sum(observed * along)), expected, bound))
    return worst


def unweighted(case: Case) -> Case:
    """Return the case with cotangents of 1."""
    return dataclasses.replace(case, cotangents="ones")


def weighted(case: Case) -> Case:
    """Return the case with cotangents that differ between ranks, terms and elements."""
    return dataclasses.replace(case, cotangents="drawn")


def gradients_equal_oracle(bench: Bench, reference: Reference) -> float:
    """The gradient of everything differentiable equals the oracle's, every cotangent being 1."""
    reference = bench.reference(unweighted(reference.case))
    (outcomes,) = bench.observe([reference.case])
    return compare_gradients(reference, outcomes)


def cotangents_pass_through(bench: Bench, reference: Reference) -> float:
    """Gradients equal the oracle's for cotangents that differ between ranks, terms and elements."""
    reference = bench.reference(weighted(reference.case))
    (outcomes,) = bench.observe([reference.case])
    return compare_gradients(reference, outcomes)


@st.composite
def _smooth_float64(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = draw(contract.cases(subject, world_size))
    smooth = dataclasses.replace(
        case,
        rows=tuple(min(n, 5) for n in case.rows),
        width=min(case.width, 9),
        dtype="float64",
        wide_scalars=False,
        pattern="unit" if case.pattern == "large" else case.pattern,
        # who takes its root or its logarithm must find it positive where it is moved to, too
        scale=min(case.scale or 1.0, 10.0),
        frozen=(),
    )
    assume(contract.defined(smooth))
    return Example(smooth)


STEP = 1e-4
"""Of the finite differences below: truncation and rounding are of one size here in float64."""


def twice_differentiable(bench: Bench, reference: Reference) -> float:
    """Differentiating the gradient again gives what the gradient itself shows as its inputs move."""
    # elsewhere ranks see constants where others have variables, so no one function is derived twice
    case, inputs, bounds = reference.case, reference.inputs, reference.bounds.gradients
    assume(bench.world.size == 1 or case.option("gather_with_grad", True))
    # a saturated exponential's second derivative comes from differences like 1 - p, which err by u whatever
    # they should be; the rest bounds, by norms, what that is multiplied with and how often it is added
    largest = max(abs(array).max() for given in inputs for name, array in given.items() if array.ndim == 2)
    elements = sum(array.size for given in inputs for array in given.values())
    cancelled = 32 * FLOAT64 * elements * (1 + largest) ** 4 * (1 + case.scale + abs(case.bias or 0)) ** 3
    worst = 0.0
    for rank, curvatures in enumerate(bench.run(_curvature, bench.subject, reference)):
        for name, (derived, near, far) in curvatures.items():
            # truncation grows with the square of the width: what doubling it adds is more than is there
            bound = abs(far - near) + 2 * bounds[rank][name] * reference.slack / STEP + cancelled
            worst = max(worst, compare(Place("second derivative", name, rank), derived, near, bound))
    return worst


def curve(case: Case, rank: int, arrays: dict[str, Array], names: list[str]) -> dict[str, Array]:
    """Return the direction along which a rank's inputs move."""
    generator = np.random.default_rng([case.seed, 6, rank])
    return {name: generator.standard_normal(arrays[name].shape) for name in names}


def _curvature(
    rank: int, world_size: int, subject: Subject, reference: Reference
) -> dict[str, tuple[Array, Array, Array]]:
    """Return the change of every gradient along a direction: derived, and by differences of two widths."""
    contract, case = reference.contract, reference.case
    loss = contract.build(subject.resolve(), case, rank, world_size)
    arrays, drawn = reference.inputs[rank], reference.cotangents[rank]
    names = [name for name, wanted in contract.gradient_expected(case).items() if wanted]
    if not names:
        return {}
    along = {name: torch.tensor(array) for name, array in curve(case, rank, arrays, names).items()}

    def gradients(offset: float) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
        given = {}
        for name, array in arrays.items():
            if name in along:
                given[name] = tensor(array + offset * along[name].numpy(), "float64", case.strides, True)
            elif np.issubdtype(array.dtype, np.integer):
                given[name] = torch.tensor(array)
            else:
                given[name] = tensor(array, "float64", case.strides, False)
        terms = contract.read(contract.call(loss, given, case, rank), case)[1]
        live = [(term, torch.tensor(drawn[name])) for name, term in terms.items() if term.requires_grad]
        leaves = [given[name] for name in names]
        if not live:
            return leaves, tuple(torch.zeros_like(leaf) for leaf in leaves)
        return leaves, torch.autograd.grad(
            [term for term, _ in live], leaves, [weight for _, weight in live],
            create_graph=True, materialize_grads=True,
        )  # fmt: skip

    leaves, first = gradients(0.0)
    paired = torch.stack([(grad * along[name]).sum() for name, grad in zip(names, first, strict=True)]).sum()
    second = (
        torch.autograd.grad(paired, leaves, materialize_grads=True)
        if paired.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves]
    )
    differences = []
    for width in (STEP, 2 * STEP):
        after, before = gradients(width)[1], gradients(-width)[1]
        differences.append([(a - b) / (2 * width) for a, b in zip(after, before, strict=True)])
    return {
        name: (derived.detach().numpy(), near.detach().numpy(), far.detach().numpy())
        for name, derived, near, far in zip(names, second, *differences, strict=True)
    }


LAWS = [
    Law("gradients equal the oracle", gradients_equal_oracle),
    Law("cotangents pass through", cotangents_pass_through),
    Law(
        "twice differentiable",
        twice_differentiable,
        applies=lambda contract: contract.is_loss,
        draw=_smooth_float64,
        share=0.3,
    ),
]
