"""Laws of inputs that nobody should send: no numbers, wrong labels, negative numbers, sizes beyond an index.

What is right of a loss that promises nothing: where its formula gives NaN it returns no finite number. What
the shipped losses promise besides is in docs/inputs.md.
"""

import dataclasses
from functools import partial

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from verified_losses.oracles.complex_step import Array

from ..cases import Case
from ..contracts import Contract, Inputs
from ..examples import Example
from ..reference import Reference
from ..standalone.acts import Outcome, overflow, refuse, run_each
from ..standalone.judges import derivative, judge_spoiled, judge_words
from ..subjects import Subject
from ..worlds import WorldError
from . import HOSTILE, Bench, Falsified, Law, Place, Unanswered, compare
from .gradients import compare_gradients, unweighted
from .values import compare_terms

RAISES = "it raises where a feature is no number"
"""Which is as good as a loss that is none."""
NUMBERS = ("nan", "nan", "inf", "-inf")
WRONG_LABELS = (-1, 0, 1, 2**40, -(2**40), 2**62)
"""Added to the size of the vocabulary where they are not negative."""
SIZES = (31, 32, 40, 46)
"""The binary logarithms of numbers of rows whose logits, of each with each, no index counts."""
TOKENS_OF = ("logits", "hidden", "hidden_states")
HALF_SIZE = 30
"""Of the rows of each of several ranks, whose logits together no index counts."""
TOKENS = 60
"""Of the tokens whose logits no index counts."""


def _benign(case: Case) -> Case:
    """Return a small case of few large numbers: what depends on what can be seen by moving it."""
    rows = tuple(min(n, 3) for n in case.rows) if sum(case.rows) > 1 else (2, *case.rows[1:])
    return dataclasses.replace(
        unweighted(case),
        rows=rows,
        pads="inside" if case.pads.startswith("all") else case.pads,
        pad_rows=rows[0] if case.pad_rows and len(rows) > 1 else 0,
        width=min(max(case.width, 2), 4),
        teacher_width=min(max(case.teacher_width, 2), 4),
        pattern="unit",
        scale=min(max(abs(case.scale), 0.5), 10.0),
        bias=case.bias and max(min(case.bias, 2.0), -2.0),
        strides="contiguous",
        cotangent_strides="contiguous",
    )


@st.composite
def _small(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Case:
    case = _benign(draw(contract.cases(subject, world_size)))
    frozen = tuple(sorted({*subject.constants, *contract.constants}))
    case = dataclasses.replace(case, frozen=frozen, width=subject.width_of(case.width))
    assume(contract.defined(case))
    return case


@st.composite
def _spoiled(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw a small case with one NaN; where that is stated, it may be in a scale, or be infinite."""
    case = draw(_small(contract, subject, world_size))
    inputs = contract.inputs(case)
    rank = draw(st.sampled_from([rank for rank, rows in enumerate(case.rows) if rows]))
    names = [
        name
        for name, array in inputs[rank].items()
        if array.dtype.kind == "f"
        and array.size
        and (subject.stated or name not in contract.scalars)
        and not name.endswith("logit_bias")  # which may cancel, but for NaN
    ]
    names += [name for name in names if name in TOKENS_OF] * 2  # many are padding
    name = draw(st.sampled_from(names))
    place = draw(st.integers(0, inputs[rank][name].size - 1))
    number = draw(st.sampled_from(NUMBERS)) if subject.stated else "nan"
    return Example(dataclasses.replace(case, spoiled=((rank, name, place, number),)))


def unspoiled(case: Case) -> Case:
    """Return the case as it was drawn."""
    return dataclasses.replace(case, spoiled=())


def nan_spreads_as_the_formula_says(bench: Bench, reference: Reference) -> float:
    """Where NaN is in a formula the term is not finite; elsewhere, if that is stated, nothing has changed.

    Terms that NaN reaches are those that NumPy's formula gives NaN. Gradients that it reaches are those that
    change as the element is moved, and those of its own row: torch's cross-entropy gives NaN there where the
    row is padding.
    """
    case, clean = reference.case, bench.reference(unspoiled(reference.case))
    ((_, _, _, number),) = case.spoiled
    unknown = bench.reference(_as_nan(case))
    try:
        spoiled, plain = bench.observe([case, clean.case])
    except WorldError as error:
        if not bench.subject.stated and any(rank.state == "raised" for rank in error.ranks):
            raise Unanswered(RAISES) from error
        raise
    worst = 0.0
    with np.errstate(invalid="ignore"):
        terms = unknown.terms
    for rank, (seen, before) in enumerate(zip(spoiled, plain, strict=True)):
        for name, value in terms[rank].items():
            reached = np.isnan(value)
            if number == "nan":
                _must_not_be_finite(Place("term", name, rank), seen.terms[name], reached)
            if bench.subject.stated:
                bound = 2 * clean.bounds.terms[rank][name] * clean.slack
                place = Place("term", name, rank, ELSEWHERE)
                worst = max(worst, _unchanged(place, seen.terms[name], before.terms[name], bound, reached))
    if bench.subject.stated:
        worst = max(worst, _gradients_unchanged(clean, case, terms, spoiled, plain))
    return worst


ELSEWHERE = "which the number that is none does not reach"


def _as_nan(case: Case) -> Case:
    ((rank, name, place, _),) = case.spoiled
    return dataclasses.replace(case, spoiled=((rank, name, place, "nan"),))


def _must_not_be_finite(place: Place, seen: Array, reached: Array) -> None:
    for index in np.argwhere(np.isfinite(seen) & reached)[:1].tolist():
        found = dataclasses.replace(
            place, index=tuple(index), expected=float("nan"), observed=float(seen[tuple(index)])
        )
        raise Falsified(f"{found}: expected nan, as the formula gives, observed {found.observed:.9g}", found)


def _unchanged(place: Place, seen: Array, before: Array, bound: Array, reached: Array) -> float:
    return compare(place, np.where(reached, 0, seen), np.where(reached, 0, before), bound)


def _gradients_unchanged(
    clean: Reference, case: Case, terms: list[dict[str, Array]], spoiled: list[Outcome], plain: list[Outcome]
) -> float:
    worst = 0.0
    moved = _moved(clean, case)
    for rank, (seen, before) in enumerate(zip(spoiled, plain, strict=True)):
        for name, gradient in before.gradients.items():
            other = seen.gradients[name]
            if gradient is None or other is None:
                continue  # which has a law of its own
            place = Place("gradient", name, rank, ELSEWHERE)
            bound = 2 * clean.bounds.gradients[rank][name] * clean.slack
            reached = _reached(clean, moved, rank, name)
            if name.endswith("logit_bias"):
                reached |= any(np.isnan(value).any() for value in terms[rank].values())
            worst = max(worst, _unchanged(place, other, gradient, bound, reached))
    return worst


def _moved(clean: Reference, case: Case) -> list[Inputs]:
    """Return the inputs, and those with the element that is to be spoiled at two other places."""
    ((rank, name, place, _),) = case.spoiled
    found = [clean.inputs]
    for by in (0.21, -0.37):
        array = clean.inputs[rank][name].copy()
        array.reshape(-1)[place % array.size] += by
        found.append([{**given, name: array} if r == rank else given for r, given in enumerate(clean.inputs)])
    return found


def _reached(clean: Reference, moved: list[Inputs], rank: int, name: str) -> Array:
    """Return which elements of a gradient change with the inputs, or are moved, row by row."""
    shape = clean.inputs[rank][name].shape
    generator = np.random.default_rng([clean.case.seed, 7])
    changes = np.zeros(shape, dtype=bool)
    for row in np.ndindex(shape[:-1]) if shape else [()]:
        along = np.zeros(shape)
        along[row] = generator.standard_normal(shape[-1:])
        slopes = {derivative(clean.total, inputs, rank, name, along) for inputs in moved}
        is_moved = not np.array_equal(moved[0][rank][name][row], moved[1][rank][name][row])
        changes[row] = is_moved or len(slopes) > 1
    return changes


def _negated(case: Case) -> Case:
    """Return the case with a scale, and weights, below 0."""
    options = tuple((name, -value if name.endswith("_weight") else value) for name, value in case.options)
    return dataclasses.replace(case, scale=-abs(case.scale), options=options)


@st.composite
def _negative(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    return Example(unweighted(_negated(draw(contract.cases(subject, world_size)))))


def negative_numbers_equal_oracle(bench: Bench, reference: Reference) -> float:
    """Terms and gradients for a negative scale, and negative weights, equal the oracle's."""
    (outcomes,) = bench.observe([reference.case])
    return max(
        compare_terms(reference, {"": outcomes}, bench.subject.strict), compare_gradients(reference, outcomes)
    )


@st.composite
def _mislabelled(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = draw(_small(contract, subject, world_size))
    # captions that count nothing are not looked at
    options = tuple((name, value or 1.0) if name == "caption_loss_weight" else (name, value)
                    for name, value in case.options)  # fmt: skip
    case = dataclasses.replace(case, options=options)
    inputs = contract.inputs(case)
    rank = draw(st.sampled_from([rank for rank, rows in enumerate(case.rows) if rows]))
    (name,) = [name for name, array in inputs[rank].items() if array.dtype.kind == "i"]
    place = draw(st.integers(0, inputs[rank][name].size - 1))
    more = draw(st.sampled_from(WRONG_LABELS))
    label = more if more < 0 else case.vocabulary + more
    assume(label != case.pad_id)
    return Example(dataclasses.replace(case, spoiled=((rank, name, place, str(label)),)))


def wrong_labels_are_named(bench: Bench, reference: Reference) -> float:
    """A label outside the vocabulary raises on every rank, and the error names the argument.

    Where each rank has a loss of its own, it raises on the label's.
    """
    case = reference.case
    ranks = bench.act(refuse, case, unspoiled(case))
    ((rank, *_),) = case.spoiled
    return _said(
        ranks if bench.contract.is_mean else [ranks[rank] if r == rank else [] for r in range(rank + 1)]
    )


@st.composite
def _sized(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = draw(_small(contract, subject, world_size))
    # the labels of so many captions are read, and take memory
    sizes = SIZES if world_size == 1 or contract.drawn.get("captions") else (HALF_SIZE, *SIZES)
    size = draw(st.sampled_from(sizes if "image_features" in contract.differentiable else (TOKENS,)))
    rows = tuple(max(n, 1) for n in case.rows)
    return Example(dataclasses.replace(case, rows=rows, drawn=(("size", size),)))


def sizes_beyond_an_index_are_named(bench: Bench, reference: Reference) -> float:
    """More rows than an index can count logits of raise on every rank, and the error names the argument."""
    size = dict(reference.case.drawn)["size"]
    return _said(bench.act(partial(overflow, size=2**size, names=_of_rows(reference)), reference.case))


def _of_rows(reference: Reference) -> tuple[str, ...]:
    """Return the inputs that have rows of the batch."""
    case, contract = reference.case, reference.contract
    more = contract.inputs(dataclasses.replace(case, rows=tuple(n + 1 for n in case.rows)))[0]
    return tuple(name for name, array in reference.inputs[0].items() if array.shape != more[name].shape)


def _said(ranks: list[list[str]]) -> float:
    for rank, noted in enumerate(ranks):
        if noted:
            raise Falsified(f"rank {rank}: the call {', '.join(noted)}")
    return 0.0


def _has_labels(contract: Contract) -> bool:
    return not contract.whole and bool(contract.drawn.get("captions"))


def _has_scale(contract: Contract) -> bool:
    return not contract.whole and "logit_scale" in contract.differentiable


LAWS = [
    Law("NaN spreads as the formula says", nan_spreads_as_the_formula_says, draw=_spoiled,
        applies=lambda contract: not contract.whole, share=0.25, concerns=HOSTILE, interpreted=False,
        act=run_each, judge=judge_spoiled,
        other=("unspoiled", "the same, of numbers alone", unspoiled)),
    Law("negative numbers equal the oracle", negative_numbers_equal_oracle, draw=_negative,
        applies=_has_scale, share=0.15, concerns=HOSTILE, stated=True),
    Law("wrong labels are named", wrong_labels_are_named, draw=_mislabelled, applies=_has_labels, share=0.15,
        concerns=HOSTILE, stated=True, act=refuse, judge=judge_words,
        other=("unspoiled", "the same, of labels in the vocabulary", unspoiled)),
    Law("sizes beyond an index are named", sizes_beyond_an_index_are_named, draw=_sized,
        applies=lambda contract: not contract.whole and contract.name != "exchange", share=0.05,
        concerns=HOSTILE, stated=True, act=overflow),
]  # fmt: skip
