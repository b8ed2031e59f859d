"""Laws of gradients and second derivatives."""

import dataclasses
from functools import partial

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from verified_losses.oracles.bounds import FLOAT64, gamma
from verified_losses.oracles.complex_step import LOST, Array

from ..cases import Case, rounded
from ..contracts import Contract, Inputs
from ..examples import Example
from ..names import DTYPES, HALVES
from ..reference import Reference
from ..standalone.acts import Outcome, derive_twice
from ..standalone.judges import judge_derived_twice
from ..subjects import Subject
from . import COTANGENTS, SECOND_DERIVATIVES, Bench, Law, Place, Unanswered, compare, misshapen

EVERY_PARTIAL = 64
"""Up to this many partial derivatives a case has each one checked; beyond, a choice of them."""
CHOSEN = 20
"""How many directions a large case is derived along; half of them where that takes seconds."""
LARGE = 2**19
"""As many pairs of rows, over all ranks, take seconds."""


def _directions(
    reference: Reference, names: tuple[str, ...], most: int | None = None
) -> list[tuple[int, str, Array]]:
    """Choose directions to derive along: all axes of a small case, some and mixed ones of a large one.

    Of a large case `most`, if it is given.
    """
    case, given = reference.case, reference.inputs
    places = [
        (rank, name)
        for rank, arrays in enumerate(given)
        for name in names
        if name in arrays and not case.is_frozen(name, rank) and arrays[name].size
    ]
    sizes = {place: given[place[0]][place[1]].size for place in places}
    generator = np.random.default_rng([case.seed, 5])
    chosen = []
    for rank, name in places:
        shape, size = given[rank][name].shape, sizes[rank, name]
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
    most = most or (CHOSEN if case.world_size * sum(case.rows) ** 2 < LARGE else CHOSEN // 2)
    if sum(sizes.values()) > EVERY_PARTIAL and len(chosen) > most:
        chosen = [chosen[i] for i in sorted(generator.choice(len(chosen), most, replace=False))]
    return chosen


def compare_gradients(reference: Reference, outcomes: list[Outcome], most: int | None = None) -> float:
    """Return the worst error over bound of every rank's gradients, along some directions.

    Of a large case, along `most`, if it is given.
    """
    bounds, names = reference.bounds.gradients, reference.contract.differentiable
    worst = 0.0
    for rank, name, along in _directions(reference, _known(reference, names), most):
        observed = outcomes[rank].gradients.get(name)
        if observed is None:
            observed = np.zeros(along.shape)
        place, allowed = Place("gradient", name, rank), bounds[rank][name]
        if not _is_judged(reference, place, observed, along, allowed):
            continue
        expected = reference.derivative(rank, name, along)
        moved = along != 0  # elsewhere a bound may be infinite
        bound = float(np.sum(abs(along[moved]) * allowed[moved])) * reference.slack
        worst = max(worst, _compare_along(place, observed, along, expected, bound, reference.largest))
    return worst


def _known(reference: Reference, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return those inputs of which each rank's gradient is known.

    Where the whole loss alone is, of what all ranks hold alike the mean is, which has a law of its own.
    """
    contract = reference.contract
    if not contract.whole or reference.case.world_size == 1:
        return names
    return tuple(name for name in names if name not in contract.alike)


def _is_judged(reference: Reference, place: Place, observed: Array, along: Array, allowed: Array) -> bool:
    """Whether a gradient is finite along a direction.

    Raises:
        Falsified: an element is not, and the oracle's is.
    """
    if observed.shape != along.shape:
        raise misshapen(place, observed.shape, along.shape)
    wrong = np.argwhere(~np.isfinite(observed) & (along != 0))
    for index in wrong[:1].tolist():
        assert place.rank is not None
        at, unit = tuple(index), np.zeros(along.shape)
        unit[at] = 1
        expected, bound = reference.derivative(place.rank, place.name, unit), float(allowed[at])
        compare(dataclasses.replace(place, index=at), observed[at], expected, bound, reference.largest)
    return not len(wrong)


def _compare_along(
    place: Place,
    observed: Array,
    along: Array,
    expected: float,
    bound: float,
    largest: float = np.finfo(np.float64).max,
) -> float:
    """Compare a derivative at `place`, summed along a direction."""
    if observed.shape != along.shape:
        raise misshapen(place, observed.shape, along.shape)
    axes = np.argwhere(along)
    if len(axes) == 1:
        place = dataclasses.replace(place, index=tuple(axes[0].tolist()))
    else:
        place = dataclasses.replace(place, note="along a direction", along=along)
        # the two sums that are compared round too
        bound += 2 * gamma(along.size, FLOAT64) * float(np.sum(abs(along * observed)))
    if bound:
        bound += LOST
    moved = along != 0  # elsewhere it may be infinite, beyond the dtype's largest value
    return compare(place, float(np.sum(observed[moved] * along[moved])), expected, bound, largest)


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


SUMMED_IN_ITSELF = tuple(dtype for dtype in DTYPES if dtype not in HALVES)
"""The dtypes in which second derivatives have a bound."""
NO_DTYPE = f"it has bounds in {' and '.join(SUMMED_IN_ITSELF)} alone, which were not asked for"


def _made_small(case: Case, dtype: str) -> Case:
    return dataclasses.replace(
        case,
        rows=tuple(min(n, 5) for n in case.rows),
        width=min(case.width, 9),
        dtype=dtype,
        wide_scalars=False,
        # of larger logits torch's own second derivatives overflow: logaddexp's is 0 times infinity
        pattern="unit" if case.pattern == "large" else case.pattern,
        # a loss that takes the scale's root or logarithm has no second derivative at 0
        scale=min(case.scale or 1.0, 10.0),
        frozen=(),
    )


def _is_small(case: Case) -> bool:
    """Whether `small_examples` may draw the case."""
    return case.dtype in SUMMED_IN_ITSELF and _made_small(case, case.dtype) == case


@st.composite
def small_examples(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw a case whose second derivatives have a bound: in a dtype asked for that sums up in itself.

    Where none is asked for, any: laws then say nothing about it.
    """
    dtypes = [dtype for dtype in SUMMED_IN_ITSELF if dtype in subject.dtypes]
    small = _made_small(draw(contract.cases(subject, world_size)), (*dtypes, *subject.dtypes)[0])
    width = subject.width_of(small.width)
    frozen = tuple(sorted({*subject.constants, *contract.constants}))
    small = dataclasses.replace(small, width=width, frozen=frozen)
    assume(contract.defined(small))
    return Example(small)


def twice_differentiable(bench: Bench, reference: Reference) -> float:
    """Differentiating the gradient along a drawn direction gives the oracle's second derivatives."""
    if reference.case.dtype not in SUMMED_IN_ITSELF:
        raise Unanswered(NO_DTYPE, whatever=True)
    # elsewhere ranks see constants where others have variables, so no one function is derived twice
    assume(bench.world.size == 1 or reference.case.option("gather_with_grad", True))
    moves = curves(reference)
    derived = bench.act(partial(derive_twice, moves=moves), reference.case)
    directions = _directions(reference, _known(reference, tuple(moves[0])))
    if not directions:
        return 0.0
    values, bounds = reference.second_derivatives(moves, directions)
    bounds = bounds * reference.slack
    worst = 0.0
    for (rank, name, along), expected, bound in zip(directions, values, bounds, strict=True):
        place = Place("second derivative", name, rank)
        worst = max(worst, _compare_along(place, derived[rank][name], along, expected, bound))
    return worst


def curves(reference: Reference) -> Inputs:
    """Return the direction along which each rank's inputs move: those that must get a gradient."""
    case = reference.case
    names = [name for name, wanted in reference.contract.gradient_expected(case).items() if wanted]
    drawn = []
    for rank, given in enumerate(reference.inputs):
        generator = np.random.default_rng([case.seed, 6, rank])
        drawn.append(
            {name: rounded(generator.standard_normal(given[name].shape), case.dtype) for name in names}
        )
    if reference.contract.whole:  # what all ranks hold alike moves alike
        drawn = [own | {name: drawn[0][name] for name in own if name in reference.contract.alike}
                 for own in drawn]  # fmt: skip
    return drawn


LAWS = [
    Law("gradients equal the oracle", gradients_equal_oracle, prepare=unweighted),
    Law("cotangents pass through", cotangents_pass_through, concerns=COTANGENTS, prepare=weighted),
    Law(
        "twice differentiable",
        twice_differentiable,
        applies=lambda contract: contract.is_loss,
        draw=small_examples,
        takes=_is_small,
        share=0.3,
        concerns=SECOND_DERIVATIVES,
        act=derive_twice,
        judge=judge_derived_twice,
    ),
]
