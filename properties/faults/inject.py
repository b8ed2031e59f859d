"""One rank's part: a run without a fault, then one in which one rank has it, and a note of what it got."""

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from verified_losses.oracles.complex_step import Array

from ..contracts import contract_of
from ..examples import Step
from ..running import perform
from ..standalone import acts
from . import Call, Fault

START_SECONDS = 60.0
"""How long ranks may wait for the others before a fault."""
POLL_SECONDS = 0.002

Values = dict[str, Array]


@dataclass
class Note:
    """What a rank got, so far."""

    process: int
    collectives: tuple[int, int] = (0, 0)
    """Those that it takes part in without a fault, in forward and in backward."""
    healthy: tuple[Values, Values] = ({}, {})
    """Terms and gradients without a fault."""
    repeats: bool = False
    """Whether they were the same twice, so that others can be compared with them."""
    forward: Values | None = None
    """The terms, where it returned."""
    backward: Values | None = None
    """The gradients, where it returned."""
    raised: str = ""
    """The traceback, where it raised."""
    is_ready: bool = False
    """Whether it has come through without a fault, and begins the run that has one."""


def read(folder: Path, rank: int) -> Note | None:
    """Return a rank's note, if there is one."""
    try:
        note: Note = pickle.loads((folder / f"note-{rank}").read_bytes())
    except FileNotFoundError:
        return None
    return note


def write(note: Note, folder: Path, rank: int) -> None:
    """Write a rank's note: another process reads this one or the one before."""
    beside = folder / f"note-{rank}.part"
    beside.write_bytes(pickle.dumps(note))
    beside.replace(folder / f"note-{rank}")


class Injected(RuntimeError):
    """Raised by the rank whose fault is to raise."""


class Collectives(TorchDispatchMode):
    """Counts the communication of real process groups, and does something ahead of one.

    Args:
        at: ahead of which, from 0; of none, if negative.
        act: what to do there.
    """

    def __init__(self, at: int = -1, act: Callable[[], object] = lambda: None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at = at
        self.act = act
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen += 1
            if self.seen == self.at + 1:
                self.act()
        return func(*args, **(kwargs or {}))


def join_gloo_within(rank: int, size: int, folder: Path, collective_timeout: float, seconds: float) -> None:
    """Make torch.distributed's default group, whose collectives may take `seconds`."""
    store, limit = f"file://{folder}/store", timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=limit)


def meet(rank: int, world_size: int, fault: Fault, folder: Path) -> None:
    """Call the loss without a fault, and then with it; each rank notes in the folder what it got."""
    note = Note(os.getpid())
    write(note, folder, rank)
    terms, gradients, note.collectives = _perform(rank, world_size, fault.call, _derived)
    note.healthy = terms, gradients
    note.repeats = _same(note.healthy, _perform(rank, world_size, fault.call, _derived)[:2])
    faulted = _faulted(fault, note, folder, rank)
    if fault.other and rank == fault.rank:
        _perform(rank, world_size, fault.before, _derived)
        _perform(rank, world_size, fault.other, faulted)
    else:
        _perform(rank, world_size, fault.call, faulted, fault.before)


def _perform(
    rank: int, world_size: int, call: Call, act: Callable[[list[acts.Call]], Any], *before: Call
) -> Any:
    contract = contract_of(call.contract).in_form(call.subject.form)
    steps = [Step(one.example.case) for one in (call, *before)]
    return perform(rank, world_size, call.subject, contract, act, steps)


def _derived(calls: list[acts.Call]) -> tuple[Values, Values, tuple[int, int]]:
    """Return terms, gradients, and how many collectives there are."""
    loss, given = calls[0].build(), calls[0].given()
    with Collectives() as forward:
        terms = acts.terms_of(calls[0], loss, given)
    with Collectives() as backward:
        acts.backward(calls[0], terms)
    return _read(terms), _gradients(given), (forward.seen, backward.seen)


def _faulted(fault: Fault, note: Note, folder: Path, rank: int) -> Callable[[list[acts.Call]], None]:
    is_faulty = rank == fault.rank
    act = _ACTS.get(fault.kind, lambda: None)

    def at(phase: str, number: int) -> Collectives:
        is_here = is_faulty and not fault.disagrees and fault.phase == phase
        if is_here and not number:
            act()
        return Collectives(fault.at % number if is_here and number else -1, act)

    def run(calls: list[acts.Call]) -> None:
        one, *others = calls
        loss = one.build()
        for other in others:
            acts.backward(other, acts.terms_of(other, loss, other.given()))
        given = altered(fault, one.given()) if is_faulty and fault.disagrees else one.given()
        note.is_ready = True
        write(note, folder, rank)
        _await(folder, rank, fault.world_size)
        forward, backward = note.collectives
        try:
            if is_faulty and not fault.disagrees and fault.phase == "before":
                act()
            with at("forward", forward):
                terms = acts.terms_of(one, loss, given)
            note.forward = _read(terms)
            write(note, folder, rank)
            with at("backward", backward):
                acts.backward(one, terms)
            note.backward = _gradients(given)
            write(note, folder, rank)
            if is_faulty and fault.phase == "after":
                act()
        except BaseException:
            note.raised = traceback.format_exc()
            write(note, folder, rank)
            raise

    return run


def is_wide(tensor: torch.Tensor, width: int) -> bool:
    """Whether the last of two or more dimensions is the features' width."""
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] == width


def altered(fault: Fault, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the faulty rank calls with: all of the features' dtype of another, or of their width."""
    case = fault.call.example.case
    changed = dict(given)
    for name, tensor in given.items():
        other = tensor.detach()
        if fault.kind == "another dtype" and tensor.dtype == getattr(torch, case.dtype):
            other = other.to(getattr(torch, fault.dtype))
        elif fault.kind == "another shape" and is_wide(tensor, case.width):
            is_wider = fault.at % 2 == 0 or case.width == 1
            other = torch.cat([other, other[..., :1]], dim=-1) if is_wider else other[..., :-1].clone()
        else:
            continue
        changed[name] = other.requires_grad_(tensor.requires_grad)
    return changed


def _raise() -> None:
    raise Injected("a fault was injected here")


_ACTS: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raises": _raise,
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(3),
}


def _await(folder: Path, rank: int, size: int) -> None:
    """Wait until every rank is here, without a message: the last one would be in question as a rank dies.

    Raises:
        TimeoutError: one does not come.
    """
    (folder / f"ready-{rank}").touch()
    deadline = time.monotonic() + START_SECONDS
    while not all((folder / f"ready-{other}").exists() for other in range(size)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not every rank was ready within {START_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _same(some: tuple[Values, Values], others: tuple[Values, Values]) -> bool:
    return all(
        one.keys() == other.keys()
        and all(np.array_equal(value, other[name], equal_nan=True) for name, value in one.items())
        for one, other in zip(some, others, strict=True)
    )


def _read(terms: dict[str, Any]) -> Values:
    return {name: acts.to_array(term) for name, term in terms.items()}


def _gradients(given: dict[str, torch.Tensor]) -> Values:
    return {name: acts.to_array(value.grad) for name, value in given.items() if value.grad is not None}
