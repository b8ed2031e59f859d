"""Laws of gradients and second derivatives."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from verified_losses.oracles.bounds import FLOAT64, gamma
from verified_losses.oracles.complex_step import LOST, Array

from ..cases import ALONE, Case, rounded
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


Direction: TypeAlias = tuple[int | None, str, Array]
"""A rank, the name of one of its inputs, and how that moves; no rank where all hold the input alike."""


def _directions(reference: Reference, names: tuple[str, ...], most: int | None = None) -> list[Direction]:
    """Choose directions to derive along: all axes of a small case, some and mixed ones of a large one.

    What all ranks hold alike is moved once: a training step takes the mean over ranks of its gradients, and
    ranks that share their work may each have any part of it.

    Of a large case `most`, if it is given.
    """
    case, given = reference.case, reference.inputs
    alike = reference.contract.alike if case.world_size > 1 else ()
    places: list[tuple[int | None, str]] = [
        (None if name in alike else rank, name)
        for rank, arrays in enumerate(given)
        for name in names
        if name in arrays and not case.is_frozen(name, rank) and arrays[name].size
        if name not in alike or rank == 0
    ]
    sizes = {place: given[place[0] or 0][place[1]].size for place in places}
    generator = np.random.default_rng([case.seed, 5])
    chosen: list[Direction] = []
    for rank, name in places:
        shape, size = given[rank or 0][name].shape, sizes[rank, name]
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

    Of what all ranks hold alike it is the mean over ranks that is compared. Of a large case, along `most`
    directions, if it is given.
    """
    bounds, names = reference.bounds.gradients, reference.contract.differentiable
    worst = 0.0
    for rank, name, along in _directions(reference, names, most):
        place = Place("gradient", name, rank)
        ranks = _ranks(reference, rank)
        observed = _mean(place, [outcomes[one].gradients.get(name) for one in ranks], along.shape)
        allowed = np.mean([bounds[one][name] for one in ranks], axis=0)
        if len(ranks) > 1:
            allowed = allowed + gamma(len(ranks), FLOAT64) * abs(observed)
        if not _is_judged(reference, place, observed, along, allowed):
            continue
        expected = _derivative(reference, place, along)
        moved = along != 0  # elsewhere a bound may be infinite
        bound = float(np.sum(abs(along[moved]) * allowed[moved])) * reference.slack
        worst = max(worst, _compare_along(place, observed, along, expected, bound, reference.largest))
    return worst


def _ranks(reference: Reference, rank: int | None) -> Sequence[int]:
    """Return the ranks that a direction is of."""
    return range(reference.case.world_size) if rank is None else (rank,)


def _mean(place: Place, parts: Sequence[Array | None], shape: tuple[int, ...]) -> Array:
    """Return the mean of gradients; none is zero.

    Raises:
        Falsified: one has another shape.
    """
    arrays = [np.zeros(shape) if part is None else part for part in parts]
    for array in arrays:
        if array.shape != shape:
            raise misshapen(place, array.shape, shape)
    mean: Array = np.mean(arrays, axis=0)
    return mean


def _derivative(reference: Reference, place: Place, along: Array) -> float:
    """Return the oracle's derivative at a place, along a direction."""
    ranks = _ranks(reference, place.rank)
    return float(np.mean([reference.derivative(rank, place.name, along) for rank in ranks]))


def _is_judged(reference: Reference, place: Place, observed: Array, along: Array, allowed: Array) -> bool:
    """Whether a gradient is finite along a direction.

    Raises:
        Falsified: an element is not, and the oracle's is.
    """
    wrong = np.argwhere(~np.isfinite(observed) & (along != 0))
    for index in wrong[:1].tolist():
        at, unit = tuple(index), np.zeros(along.shape)
        unit[at] = 1
        # where one rank's may be beyond the dtype's largest value, their mean may be too
        ranks = _ranks(reference, place.rank)
        expected = max((reference.derivative(rank, place.name, unit) for rank in ranks), key=abs)
        bound = len(ranks) * float(allowed[at])
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
    """Return the case with cotangents that differ between ranks and elements; in some, of one term alone."""
    return dataclasses.replace(case, cotangents="alone" if case.seed % ALONE == 1 else "drawn")


def gradients_equal_oracle(bench: Bench, reference: Reference) -> float:
    """The gradient of everything differentiable equals the oracle's, every cotangent being 1."""
    reference = bench.reference(unweighted(reference.case))
    (outcomes,) = bench.observe([reference.case])
    return compare_gradients(reference, outcomes)


def cotangents_pass_through(bench: Bench, reference: Reference) -> float:
    """Gradients equal the oracle's for other cotangents than 1, and where one term is derived alone."""
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
    directions = _directions(reference, tuple(moves[0]))
    single = [(rank, name, along) for of, name, along in directions for rank in _ranks(reference, of)]
    if not single:
        return 0.0
    found = zip(*reference.second_derivatives(moves, single), strict=True)
    worst = 0.0
    for of, name, along in directions:
        place, ranks = Place("second derivative", name, of), _ranks(reference, of)
        observed = _mean(place, [derived[rank][name] for rank in ranks], along.shape)
        expected, bound = np.mean([next(found) for _ in ranks], axis=0)
        worst = max(worst, _compare_along(place, observed, along, expected, bound * reference.slack))
    return worst


def curves(reference: Reference) -> Inputs:
    """Return the direction along which each rank's inputs move: those that must get a gradient.

    What all ranks hold alike moves alike.
    """
    case = reference.case
    names = [name for name, wanted in reference.contract.gradient_expected(case).items() if wanted]
    drawn = []
    for rank, given in enumerate(reference.inputs):
        generator = np.random.default_rng([case.seed, 6, rank])
        drawn.append(
            {name: rounded(generator.standard_normal(given[name].shape), case.dtype) for name in names}
        )
    alike = reference.contract.alike
    return [own | {name: drawn[0][name] for name in own if name in alike} for own in drawn]


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
