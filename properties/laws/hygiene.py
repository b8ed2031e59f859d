"""Laws of a loss as a piece of software."""

import dataclasses
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles.dtypes import DTYPES

from ..cases import Case
from ..contracts import Contract, with_rows
from ..examples import Example, Step
from ..names import HALVES
from ..reference import Reference
from ..standalone.acts import Outcome, leave_behind, run_again, run_used_and_fresh
from ..standalone.judges import judge_bits, judge_words
from ..subjects import Subject
from ..worlds import WorldError
from . import REUSE, TRACES, Bench, Falsified, Law, Place, Unanswered, compare, compare_types, misshapen


@st.composite
def _contiguous_cotangents(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    # of others a backward may well make a copy before it writes
    case = draw(contract.cases(subject, world_size))
    return Example(dataclasses.replace(case, cotangent_strides="contiguous"))


def inputs_unchanged(bench: Bench, reference: Reference) -> float:
    """A call alters none of its inputs, under inference mode neither, and its backward no cotangent."""
    for note, outcomes in bench.by_mode(reference.case).items():
        for rank, outcome in enumerate(outcomes):
            if outcome.changed:
                seen = list(outcome.changed)
                place = Place("altered inputs", rank=rank, note=note, expected=[], observed=seen)
                raise Falsified(f"rank {rank}: the call altered {', '.join(seen)} {note}".rstrip(), place)
    return 0.0


def outputs_well_formed(bench: Bench, reference: Reference) -> float:
    """Keys, shapes, dtypes and devices are as documented, and gradients reach just what requires them."""
    contract, case = reference.contract, reference.case
    (outcomes,) = bench.observe([case])
    allowed = {case.dtype, DTYPES[case.dtype].accumulated}
    shapes = contract.term_shapes(case)
    structures = {contract.structure(case)}
    if (
        not bench.subject.form.is_plain or not bench.subject.output_dict
    ):  # it may always return a dict, or never
        structures |= {
            contract.structure(dataclasses.replace(case, output_dict=one)) for one in (True, False)
        }
    for rank, outcome in enumerate(outcomes):
        if outcome.structure not in structures:
            right, seen = contract.structure(case), outcome.structure
            place = Place("structure", rank=rank, expected=right, observed=seen)
            raise Falsified(f"rank {rank}: expected {right}, observed {seen}", place)
        device = case.device_of(rank)
        types = [f"{dtype} {device}" for dtype in sorted(allowed)]
        fit = [list(some) for size in (1, 2) for some in combinations(types, size)]
        compare_types(rank, outcome, fit, f"every term in {sorted(allowed)} on {device}")
        for name, shape in shapes[rank].items():
            if outcome.terms[name].shape != shape:
                raise misshapen(Place("term", name, rank), outcome.terms[name].shape, shape)
        for name, wanted in contract.gradient_expected(case).items():
            found = outcome.gradients[name] is not None
            place = Place("presence of the gradient", name, rank, expected=wanted, observed=found)
            if found and not wanted:
                raise Falsified(f"rank {rank}: {name} must not get a gradient, but does", place)
            if wanted and not found:
                raise Falsified(f"rank {rank}: {name} requires grad, but gets none", place)
    return 0.0


RAISING_AGAIN = "a second backward through one graph raises, as torch.compile compiles it"
DONATED = "compiled with non-empty donated buffers"
"""What torch says where a loss is decorated by torch.compile, whose backward reuses what forward has kept."""


def deterministic(bench: Bench, reference: Reference) -> float:
    """The same call gives the same bits, and so does a second backward through the same graph."""
    refused = ""
    try:
        ranks = bench.act(partial(run_again, times=2), reference.case)
    except WorldError as error:
        if bench.subject.strict or not all(DONATED in rank.detail for rank in error.ranks):
            raise
        refused = RAISING_AGAIN
        ranks = bench.act(partial(run_again, times=2, derived=False), reference.case)
    for rank, (first, second, *third) in enumerate(ranks):
        same_bits(reference, rank, "called twice", second, first)
        for one in third:
            same_bits(reference, rank, "derived twice", one, first)
    if refused:
        raise Unanswered(refused, whatever=True, limit=refused)
    return 0.0


MODES: list[Literal["train", "inference"]] = ["train", "inference"]


def other_values(last: Case, other: Case) -> Case:
    """Other values in tensors of the same shapes, which reuse the memory of the last call."""
    bias = None if last.bias is None else other.bias or 0.0
    return dataclasses.replace(last, seed=other.seed, pattern=other.pattern, scale=other.scale, bias=bias)


def _same_rows(last: Case, other: Case) -> Case:
    """The same rows and dtype; width, layout and values of another case."""
    return dataclasses.replace(other, rows=last.rows, dtype=last.dtype)


def _row_moved(last: Case, other: Case) -> Case:
    """The same total of rows, and the same rows on all ranks but the first and the last."""
    first, *between, end = last.rows
    return dataclasses.replace(other, rows=(first - 1, *between, end + 1) if first > 1 else last.rows[::-1])


def _other_first_rank(last: Case, other: Case) -> Case:
    """The same rows on every rank but the first."""
    rows = other.rows[0], *last.rows[1:]
    return dataclasses.replace(other, rows=rows if any(rows) else (1, *rows[1:]))


def _unrelated(last: Case, other: Case) -> Case:
    """Another case."""
    return other


# repeated: most stale-state bugs are in labels, which depend on the rows of the ranks before
CALLS_OF_ONE_RANK = (other_values, _same_rows, other_values, _unrelated)
"""How an earlier call may differ from the last one."""
CALLS_OF_SEVERAL = (
    _other_first_rank, _row_moved, _other_first_rank, _row_moved, *CALLS_OF_ONE_RANK
)  # fmt: skip


@st.composite
def _sequences(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    if "cache_labels" in contract.values and draw(st.booleans()):
        # Most stale-state bugs are in cached labels, above all with local_loss, so half of the sequences turn
        # caching on, and half of those local_loss too. Pinned options come last and win.
        local = "local_loss" in contract.values and draw(st.booleans())
        wanted = ("cache_labels", "local_loss") if local else ("cache_labels",)
        options = (*((name, True) for name in wanted), *subject.options)
        subject = dataclasses.replace(subject, options=options)
    last = draw(contract.cases(subject, world_size))
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        other = draw(contract.cases(subject, world_size))
        other = dataclasses.replace(other, dtype=draw(st.sampled_from(subject.dtypes)))
        differ = draw(st.sampled_from(CALLS_OF_SEVERAL if world_size > 1 else CALLS_OF_ONE_RANK))
        if subject.even and differ in (_other_first_rank, _row_moved):
            differ = _unrelated
        # one object is called: its constructor's arguments are those of the last call
        constructed: dict[str, Any] = {name: getattr(last, name) for name in contract.constructed_of(subject)}
        step = dataclasses.replace(with_rows(differ(last, other), subject.least), **constructed)
        if step.dtype not in HALVES:
            step = dataclasses.replace(step, wide_scalars=False)
        mode = draw(st.sampled_from(MODES if subject.inference else MODES[:1]))
        if contract.defined(step):
            steps.append(Step(step, mode))
    return Example(last, tuple(steps))


def used_equals_fresh(bench: Bench, reference: Reference) -> float:
    """After other calls, under inference mode too, an object gives the bits that a fresh one gives.

    Inputs of the same shape and strides reuse the previous call's storage.
    """
    steps, last = reference.example.steps, reference.case
    for rank, (fresh, used) in enumerate(bench.act(run_used_and_fresh, *steps, last)):
        same_bits(reference, rank, f"after {len(steps)} other calls", used, fresh)
    return 0.0


def same_bits(reference: Reference, rank: int, note: str, observed: Outcome, expected: Outcome) -> None:
    """Compare two calls bit by bit; where one of two that differ is not finite, with the oracle.

    Raises:
        Falsified: they differ, unless the oracle's value leaves the dtype.
    """
    for kind, seen, right in (
        ("term", observed.terms, expected.terms),
        ("gradient", observed.gradients, expected.gradients),
    ):
        for name, value in right.items():
            other, place = seen[name], Place(kind, name, rank, note)
            if value is None or other is None:
                if value is not other:
                    some, none = ("a gradient", "none") if other is None else ("none", "a gradient")
                    raise Falsified(f"{place}: expected {some}, observed {none}", place)
            elif not np.array_equal(value, other, equal_nan=True):
                if value.shape != other.shape:
                    raise misshapen(place, other.shape, value.shape)
                same = (value == other) | (np.isnan(value) & np.isnan(other))
                finite = np.isfinite(value) & np.isfinite(other)
                compare(place, np.where(finite, other, 0), np.where(finite, value, 0), 0.0)
                for index in np.argwhere(~same & ~finite)[:1].tolist():
                    at = dataclasses.replace(place, index=tuple(index))
                    pair = other[at.index], value[at.index]
                    wrong = next(one for one in pair if not np.isfinite(one))
                    of_oracle = reference.value(kind, name, rank, at.index, value.shape)
                    compare(at, wrong, of_oracle, 0.0, reference.largest)


def leaves_no_trace(bench: Bench, reference: Reference) -> float:
    """A call leaves the process as it was, prints nothing, and keeps nothing alive.

    No object has a parameter in common with another: to train one would move the other.
    """
    # what a loss holds itself may begin at random
    holds = bool(bench.contract.holds or bench.subject.form.parameters)
    leaves = partial(leave_behind, seed=reference.case.seed, built=holds)
    for rank, found in enumerate(bench.act(leaves, reference.case)):
        if found:
            raise Falsified(f"rank {rank}: the call {', '.join(found)}")
    return 0.0


LAWS = [
    Law("inputs unchanged", inputs_unchanged, draw=_contiguous_cotangents, share=0.4,
        modes=("train", "inference")),
    Law("outputs well formed", outputs_well_formed, share=0.5),
    Law("deterministic", deterministic, share=0.3, act=run_again, judge=judge_bits),
    Law("leaves no trace", leaves_no_trace, share=0.3, simulated=False,
        concerns=TRACES, act=leave_behind, judge=judge_words),
    Law("used equals fresh", used_equals_fresh, draw=_sequences, concerns=REUSE,
        applies=lambda contract: contract.is_loss, act=run_used_and_fresh, judge=judge_bits),
]  # fmt: skip
