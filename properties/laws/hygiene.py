"""How a loss behaves as a piece of software."""

import dataclasses
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from ..cases import Case
from ..contracts import Contract
from ..process_state import traces
from ..running import Outcome, Step, backward, inputs
from ..subjects import Subject
from ..worlds import World
from . import Falsified, Law, Place, by_mode, compare, compare_types, misshapen, observe, run


@st.composite
def _contiguous_cotangents(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Case:
    # of others a backward may well make a copy before it writes
    return dataclasses.replace(draw(contract.cases(subject, world_size)), cotangent_strides="contiguous")


def inputs_unchanged(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """A call alters none of its inputs, under inference mode neither, and its backward no cotangent."""
    for note, outcomes in by_mode(contract, subject, world, case).items():
        for rank, outcome in enumerate(outcomes):
            if outcome.changed:
                seen = list(outcome.changed)
                place = Place("altered inputs", rank=rank, note=note, expected=[], observed=seen)
                raise Falsified(f"rank {rank}: the call altered {', '.join(seen)} {note}".rstrip(), place)
    return 0.0


def outputs_well_formed(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Keys, shapes, dtypes and devices are as documented, and gradients reach just what requires them."""
    (outcomes,) = observe(contract, subject, world, [case])
    allowed = {case.dtype, "float32" if case.dtype in ("bfloat16", "float16") else case.dtype}
    shapes = contract.term_shapes(case)
    for rank, outcome in enumerate(outcomes):
        if outcome.structure != contract.structure(case):
            right, seen = contract.structure(case), outcome.structure
            place = Place("structure", rank=rank, expected=right, observed=seen)
            raise Falsified(f"rank {rank}: expected {right}, observed {seen}", place)
        fit = [[f"{dtype} cpu"] for dtype in sorted(allowed)]
        compare_types(rank, outcome, fit, f"every term in {sorted(allowed)} on cpu")
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


def deterministic(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """The same call gives the same bits, and so does a second backward through the same graph."""
    first, second, third = observe(contract, subject, world, [case, case, Step(case, "derived again")])
    for rank in range(world.size):
        _same_bits(rank, "called twice", second[rank], first[rank])
        _same_bits(rank, "derived twice", third[rank], first[rank])
    return 0.0


OF_ONE_RANK = ("refilled", "same", "refilled", "other")
"""What the inputs of a call before are to those of the last."""
OF_SEVERAL = ("first", "reversed", "first", "first", *OF_ONE_RANK)


@st.composite
def _sequences(
    draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int
) -> tuple[tuple[Step, ...], Case]:
    if "cache_labels" in contract.values and draw(st.booleans()):
        # what is kept between calls is most of what goes wrong, and of the labels those of one rank's rows;
        # what the subject pins comes last, and stays
        local = "local_loss" in contract.values and draw(st.booleans())
        wanted = ("cache_labels", "local_loss") if local else ("cache_labels",)
        options = (*((name, True) for name in wanted), *subject.options)
        subject = dataclasses.replace(subject, options=options)
    last = draw(contract.cases(subject, world_size))
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        other = draw(contract.cases(subject, world_size))
        # one object: what it was constructed with stays
        kept: dict[str, Any] = {
            **{name: getattr(last, name) for name in contract.constructed},
            "dtype": draw(st.sampled_from(subject.dtypes)),
        }
        rows = draw(st.sampled_from(OF_SEVERAL if world_size > 1 else OF_ONE_RANK))
        if rows == "refilled":
            # all of one shape, in the same memory: other values alone
            bias = None if last.bias is None else other.bias or 0.0
            moved = {"seed": other.seed, "pattern": other.pattern, "scale": other.scale, "bias": bias}
            kept = vars(last) | {k: value for k, value in moved.items() if k not in contract.constructed}
        elif rows == "same":
            kept |= {"rows": last.rows, "dtype": last.dtype}
        elif rows == "reversed":
            # as many rows in all and on some rank, but before them others than now
            kept |= {"rows": last.rows[::-1]}
        elif rows == "first" and not subject.even:
            # as many on every rank but the first
            kept |= {"rows": (other.rows[0], *last.rows[1:])}
        if kept["dtype"] not in ("bfloat16", "float16"):
            kept["wide_scalars"] = False
        other = dataclasses.replace(other, **kept)
        steps.append(Step(other, draw(st.sampled_from(["train", "inference"]))))
    return tuple(steps), last


def used_equals_fresh(
    contract: Contract, subject: Subject, world: World, sequence: tuple[tuple[Step, ...], Case]
) -> float:
    """After other calls, under inference mode too, an object gives the bits that a fresh one gives.

    What is given it lies in the memory of the call before, where it is of one shape.
    """
    steps, last = sequence
    used = observe(contract, subject, world, [*steps, last], fresh=False)[-1]
    (fresh,) = observe(contract, subject, world, [last])
    for rank in range(world.size):
        _same_bits(rank, f"after {len(steps)} other calls", used[rank], fresh[rank])
    return 0.0


def _same_bits(rank: int, note: str, observed: Outcome, expected: Outcome) -> None:
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
                same: Any = False
                if (
                    value.shape == other.shape
                ):  # no number, or an infinity, is as far from itself as from others
                    same = (value == other) | (np.isnan(value) & np.isnan(other))
                compare(place, np.where(same, 0, other), np.where(same, 0, value), 0.0)


def leaves_no_trace(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """A call leaves the process as it was, prints nothing, and keeps nothing alive."""
    for rank, found in enumerate(run(world, _traces, subject, contract, case)):
        if found:
            raise Falsified(f"rank {rank}: the call {', '.join(found)}")
    return 0.0


def _traces(rank: int, world_size: int, subject: Subject, contract: Contract, case: Case) -> list[str]:
    """Return what a call and its backward leave behind, in words."""
    target = subject.resolve()
    losses: list[Any] = []  # the one that is called, which outlives its calls

    def call() -> dict[str, torch.Tensor]:
        if not losses:
            losses.append(contract.build(target, case, rank, world_size))
        given = inputs(rank, contract, case)
        derived = torch.is_grad_enabled()  # under no_grad a view of a leaf says that it requires grad
        terms = contract.read(contract.call(losses[0], given, case, rank), case)[1]
        if derived:
            backward(rank, contract, case, terms)
        return given

    return traces(call, case.seed)


LAWS = [
    Law("inputs unchanged", inputs_unchanged, draw=_contiguous_cotangents, share=0.4),
    Law("outputs well formed", outputs_well_formed, share=0.5),
    Law("deterministic", deterministic, share=0.3),
    Law("leaves no trace", leaves_no_trace, share=0.3, simulated=False),
    Law("used equals fresh", used_equals_fresh, draw=_sequences,
        applies=lambda contract: contract.is_loss),
]  # fmt: skip
