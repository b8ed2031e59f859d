"""Runs a subject on one rank."""

import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from . import devices
from .cases import Case, tensor
from .contracts import Contract, accepted, entry
from .examples import Example, Step
from .reference import Reference, reference
from .standalone.acts import Call, terms_of
from .subjects import Subject, Target, Unresolved

T = TypeVar("T")


@dataclass(frozen=True)
class Signature:
    """The arguments of its contract that a subject takes, or why it cannot be verified."""

    unusable: str = ""
    options: tuple[str, ...] = ()
    """Which of the contract's options the constructor takes."""
    bias: bool = True
    output_dict: bool = True


def read_signature(rank: int, world_size: int, subject: Subject, contract: Contract, case: Case) -> Signature:
    """Import and construct the subject, and read its parameters.

    Raises:
        Exception: the subject raised it as it was imported or constructed.
    """
    try:
        devices.use(case.device_of(rank))
        target = subject.resolve()
    except Unresolved as error:
        return Signature(str(error))
    if not callable(target):
        return Signature(f"expected a class or a function, got {type(target).__name__} {target!r}")
    known = {**contract.constructor(case), "rank": rank, "world_size": world_size}
    pinned = dict(subject.options)
    unknown = sorted(pinned.keys() - accepted(target, pinned).keys() - known.keys())
    options = known | pinned
    name = Target.of(subject.target).name
    if contract.is_loss and (missing := _missing(target, options)):
        return Signature(
            f"{name} needs {', '.join(missing)}, of which the contract {contract.name} knows nothing: "
            "give a function that returns it constructed"
        )
    if unknown:
        return Signature(f"{name} takes no {', '.join(unknown)}, nor does the contract {contract.name}")
    call = target
    if contract.is_loss:
        case = replace(case, options=tuple((dict(case.options) | pinned).items()))
        loss = contract.build(target, case, rank, world_size)
        if not callable(loss):
            return Signature(f"{name}(...) must return something that can be called, got {loss!r}")
        call = entry(loss)
        if getattr(call, "__name__", "") == "_forward_unimplemented":
            names = ", ".join(contract.inputs(case)[0])
            return Signature(f"{name} has no forward; the contract {contract.name} calls it with {names}")
        tensors = dict.fromkeys(contract.inputs(case)[0])
        if contract.in_order:
            try:
                inspect.signature(call).bind(*tensors)
            except TypeError as error:
                wrong = f"{len(tensors)} tensors in order; {name}: {error}"
                return Signature(f"the contract {contract.name} calls with {wrong}")
            return Signature("", tuple(accepted(target, options)), bias=False, output_dict=False)
        given = {**tensors, "output_dict": False, "logit_bias": None}
        needed = [
            one
            for one in tensors
            if one not in accepted(call, given, contract.optional) and "logit_bias" not in one
        ]
        missing = _missing(call, given)
        if needed or missing:
            wrong = ", ".join([f"takes no {one}" for one in needed] + [f"needs {one}" for one in missing])
            return Signature(f"the contract {contract.name} calls with {', '.join(tensors)}; {name} {wrong}")
    return Signature(
        "",
        tuple(accepted(target, options)),
        "logit_bias" in accepted(call, {"logit_bias": None}, contract.optional),
        "output_dict" in accepted(call, {"output_dict": False}, contract.optional),
    )


def _missing(target: Any, given: dict[str, Any]) -> list[str]:
    """Return the arguments that `target` cannot do without and is not given."""
    return [
        name
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in given
    ]


@dataclass(frozen=True)
class FirstCall:
    """What came of calling a subject with plain cases."""

    raised: str = ""
    """The traceback of the first case, where every case raised; empty where one returned."""
    given: str = ""
    """What it was called with: names, dtypes and shapes."""


def first_call(
    rank: int, world_size: int, subject: Subject, contract: Contract, cases: Sequence[Case]
) -> FirstCall:
    """Call the subject with one case after another, until a call returns."""
    target = subject.resolve()
    devices.use(cases[0].device_of(rank))
    first = FirstCall()
    for case in cases:
        one = _call(rank, world_size, target, reference(contract, Example(case)), "train")
        given = one.given()
        try:
            terms_of(one, one.build(), given)
        except Exception:
            first = first if first.raised else FirstCall(traceback.format_exc(), _listed(given))
        else:
            return FirstCall()
    return first


def _listed(given: dict[str, torch.Tensor]) -> str:
    """Return names, dtypes and shapes of what a subject is given."""
    described = (
        (name, str(one.dtype).removeprefix("torch."), list(one.shape)) for name, one in given.items()
    )
    return ", ".join(f"{name} ({dtype}, {shape})" for name, dtype, shape in described)


def perform(
    rank: int,
    world_size: int,
    subject: Subject,
    contract: Contract,
    act: Callable[[list[Call]], T],
    steps: list[Step],
) -> T:
    """Run an act on one rank, with calls of the subject."""
    target = subject.resolve()
    devices.use(steps[0].case.device_of(rank))
    return act([_call(rank, world_size, target, reference(contract, Example(s.case)), s.mode) for s in steps])


def _call(rank: int, world_size: int, target: Any, given: Reference, mode: str) -> Call:
    contract, case = given.contract, given.case

    def cotangent(name: str, term: torch.Tensor) -> torch.Tensor:
        dtype = str(term.dtype).removeprefix("torch.")
        return tensor(given.cotangents[rank][name], dtype, case.cotangent_strides, False, str(term.device))

    return Call(
        lambda: contract.build(target, case, rank, world_size),
        lambda loss, tensors: contract.call(loss, tensors, case, rank),
        lambda: inputs(rank, given, mode != "inference"),
        cotangent,
        contract.terms,
        rank,
        mode,
    )


def inputs(rank: int, given: Reference, train: bool = True) -> dict[str, torch.Tensor]:
    """Return one rank's inputs as leaf tensors, which require grad unless frozen."""
    case = given.case
    tensors = {}
    for name, array in given.inputs[rank].items():
        if np.issubdtype(array.dtype, np.integer):
            tensors[name] = torch.tensor(array, device=case.device_of(rank))
        else:
            is_scalar = name in given.contract.scalars
            dtype = case.scalar_dtype if is_scalar else case.dtype
            place = case.scalar_device(rank) if is_scalar else case.device_of(rank)
            tensors[name] = tensor(array, dtype, case.strides, train and name not in case.frozen, place)
    return tensors
