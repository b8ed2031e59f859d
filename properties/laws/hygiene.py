"""How a loss behaves as a piece of software."""

import contextlib
import dataclasses
import gc
import io
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from ..cases import Case
from ..contracts import Contract
from ..subjects import Outcome, Step, Subject, backward, inputs
from ..worlds import World
from . import Falsified, Law, observe


def inputs_unchanged(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """A call alters none of its inputs."""
    (outcomes,) = observe(contract, subject, world, [case])
    for rank, outcome in enumerate(outcomes):
        if outcome.changed:
            raise Falsified(f"rank {rank}: the call altered {', '.join(outcome.changed)}")
    return 0.0


def outputs_well_formed(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Keys, shapes, dtypes and devices are as documented, and gradients reach just what requires them."""
    (outcomes,) = observe(contract, subject, world, [case])
    allowed = {case.dtype, "float32" if case.dtype in ("bfloat16", "float16") else case.dtype}
    shapes = contract.term_shapes(case)
    for rank, outcome in enumerate(outcomes):
        if outcome.structure != contract.structure(case):
            raise Falsified(f"rank {rank}: expected {contract.structure(case)}, observed {outcome.structure}")
        types = set(outcome.term_types.values())
        if len(types) != 1 or not types <= {f"{dtype} cpu" for dtype in allowed}:
            raise Falsified(f"rank {rank}: expected every term in {sorted(allowed)} on cpu, observed {types}")
        for name, shape in shapes[rank].items():
            if outcome.terms[name].shape != shape:
                raise Falsified(
                    f"rank {rank}, {name}: expected shape {list(shape)}, observed {outcome.terms[name].shape}"
                )
        for name, wanted in contract.gradient_expected(case).items():
            found = outcome.gradients[name] is not None
            if found and not wanted:
                raise Falsified(f"rank {rank}: {name} must not get a gradient, but does")
            if wanted and not found:
                raise Falsified(f"rank {rank}: {name} requires grad, but gets none")
    return 0.0


def deterministic(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """The same call gives the same bits."""
    first, second = observe(contract, subject, world, [case, case])
    for rank in range(world.size):
        _same_bits(f"rank {rank}, called twice", second[rank], first[rank])
    return 0.0


@st.composite
def _sequences(
    draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int
) -> tuple[tuple[Step, ...], Case]:
    last = draw(contract.cases(subject, world_size))
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        other = draw(contract.cases(subject, world_size))
        # one object: what it was constructed with stays
        kept: dict[str, Any] = {
            "options": last.options,
            "pad_id": last.pad_id,
            "dtype": draw(st.sampled_from(subject.dtypes)),
        }
        rows = draw(st.sampled_from(["reversed", "same", "other"]))
        if rows == "same":
            kept |= {"rows": last.rows, "dtype": last.dtype}
        elif rows == "reversed":
            # as many rows on some rank, but before them others than now
            kept |= {"rows": last.rows[::-1]}
        if kept["dtype"] not in ("bfloat16", "float16"):
            kept["wide_scalars"] = False
        other = dataclasses.replace(other, **kept)
        steps.append(Step(other, draw(st.sampled_from(["train", "inference"]))))
    return tuple(steps), last


def used_equals_fresh(
    contract: Contract, subject: Subject, world: World, sequence: tuple[tuple[Step, ...], Case]
) -> float:
    """After other calls, under inference mode too, an object gives the bits that a fresh one gives."""
    steps, last = sequence
    used = observe(contract, subject, world, [*steps, last], fresh=False)[-1]
    (fresh,) = observe(contract, subject, world, [last])
    for rank in range(world.size):
        _same_bits(f"rank {rank}, after {len(steps)} other calls", used[rank], fresh[rank])
    return 0.0


def _same_bits(what: str, observed: Outcome, expected: Outcome) -> None:
    for kind, seen, right in (
        ("", observed.terms, expected.terms),
        ("gradient of ", observed.gradients, expected.gradients),
    ):
        for name, value in right.items():
            other = seen[name]
            if (value is None) != (other is None) or (
                value is not None and not np.array_equal(value, other, equal_nan=True)  # type: ignore[arg-type]
            ):
                raise Falsified(f"{what}: {kind}{name} is {other}, not {value}")


def compiled_equals_eager(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Under torch.compile (backend aot_eager) gradients flow just as in eager mode."""
    from .gradients import _check

    # in float64 no rounding hides a gradient that flows where it should not
    case = dataclasses.replace(case, cotangents="ones", dtype="float64", wide_scalars=False)
    (outcomes,) = observe(contract, subject, world, [Step(case, "compiled")])
    return _check(contract, case, outcomes, contract.inputs(case))


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _generator() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_generator(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


_STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's random generator": (_generator, _set_generator),
    "Python's random generator": (random.getstate, random.setstate),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "the precision of float32 products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda enabled: torch.set_autocast_enabled("cpu", enabled),
    ),
    "the environment": (lambda: dict(os.environ), _set_environment),
}
"""What all code of a process shares: how to read it, and how to put it back."""


def leaves_no_trace(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """A call leaves the process as it was, prints nothing, and keeps none of its inputs alive."""
    for rank, traces in enumerate(world.run(_traces, subject, contract, case)):
        if traces:
            raise Falsified(f"rank {rank}: the call {', '.join(traces)}")
    return 0.0


def _traces(rank: int, world_size: int, subject: Subject, contract: Contract, case: Case) -> list[str]:
    """Return what a call and its backward leave behind, in words, and put the process back."""
    target = subject.resolve()
    printed = io.StringIO()
    outside = {name: get() for name, (get, _) in _STATE.items()}
    # from where no usual seed leads: who seeds with 0 changes it too
    torch.manual_seed(case.seed + 12345)
    random.seed(case.seed + 12345)
    before = {name: get() for name, (get, _) in _STATE.items()}
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loss = contract.build(target, case, rank, world_size)
                given = inputs(rank, contract, case)
                storages = {name: StorageWeakRef(leaf.untyped_storage()) for name, leaf in given.items()}
                terms = contract.read(contract.call(loss, given, case, rank), case)[1]
                backward(rank, contract, case, terms)
            del given, terms
        after = {name: get() for name, (get, _) in _STATE.items()}
    finally:
        for name, (_, put) in _STATE.items():
            put(outside[name])
    if not all(storage.expired() for storage in storages.values()):
        gc.collect()
    kept = [name for name, storage in storages.items() if not storage.expired()]
    return [
        *(f"changed {name}" for name in _STATE if before[name] != after[name]),
        *([f"printed {printed.getvalue()!r}"] if printed.getvalue() else []),
        *(f"keeps {name} alive" for name in kept),
    ]


LAWS = [
    Law("inputs unchanged", inputs_unchanged, share=0.3),
    Law("outputs well formed", outputs_well_formed, share=0.5),
    Law("deterministic", deterministic, share=0.3),
    Law("leaves no trace", leaves_no_trace, share=0.3, simulated=False),
    Law("used equals fresh", used_equals_fresh, draw=_sequences, share=0.5,
        applies=lambda contract: contract.is_loss),
    Law("compiled equals eager", compiled_equals_eager, share=0.02,
        worlds="two", simulated=False,
        applies=lambda contract: contract.is_loss),
]  # fmt: skip
