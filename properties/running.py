"""Runs a subject on one rank."""

import inspect
import math
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from . import devices
from .cases import Case, tensor
from .contracts import Contract, accepted, entry
from .examples import Example, Step
from .forms import NAMES, PLAIN, Form, source
from .forms_known import MEANINGS, is_called_itself, parameters_of, role_of
from .reference import Reference, reference
from .standalone.acts import Call, terms_of
from .standalone.calls import call_holding, in_turn, row_labels
from .subjects import Subject, Target, Unresolved, stubbed

T = TypeVar("T")
BIASES = {"logit_bias", "dist_logit_bias", "vocabulary_bias"}
"""What a target need not take: then it gets none."""


@dataclass(frozen=True)
class Signature:
    """The arguments of its contract that a subject takes, or why it cannot be verified."""

    unusable: str = ""
    hopeless: bool = False
    """Whether no other form would make it usable."""
    options: tuple[str, ...] = ()
    """Which of the contract's options the constructor takes."""
    bias: bool = True
    output_dict: bool = True
    stubbed: tuple[str, ...] = ()
    """The packages that it imports and that are not installed."""


def read_signature(rank: int, world_size: int, subject: Subject, contract: Contract, case: Case) -> Signature:
    """Import and construct the subject, and read its parameters.

    Raises:
        Exception: the subject raised it as it was imported or constructed.
    """
    return replace(_read(rank, world_size, subject, contract, case), stubbed=stubbed())


def _read(rank: int, world_size: int, subject: Subject, contract: Contract, case: Case) -> Signature:
    try:
        devices.use(case.device_of(rank))
        target = subject.resolve()
    except Unresolved as error:
        return Signature(str(error), hopeless=True)
    if not callable(target):
        wrong = f"expected a class or a function, got {type(target).__name__} {target!r}"
        return Signature(wrong, hopeless=True)
    if isinstance(target, torch.nn.Module):
        kind = type(target).__name__
        return Signature(
            f"expected a class or a function, got a module: give {kind}, or what returns one", True
        )
    known = {**contract.constructor(case), "rank": rank, "world_size": world_size}
    pinned = dict(subject.options)
    unknown = sorted(pinned.keys() - accepted(target, pinned).keys() - known.keys())
    options = known | pinned
    name = Target.of(subject.target).name
    missing = _missing(target, options)
    taken = parameters_of(target)
    if not any(one.required for one in taken) and is_called_itself(target):  # its tensors may be None
        missing = [one.name for one in taken]
    if contract.is_loss and missing:
        itself = is_called_itself(target)
        roles = tuple(MEANINGS.get(contract.name, ()))
        strange = [one for one in missing if not (itself and role_of(one, roles))] or missing
        wrong = f"{name} needs {', '.join(strange)}, of which the contract {contract.name} knows nothing"
        return Signature(wrong if itself else f"{wrong}: give a function that returns it constructed")
    if unknown:
        wrong = f"{name} takes no {', '.join(unknown)}, nor does the contract {contract.name}"
        return Signature(wrong, hopeless=True)
    call, biases = target, BIASES & set(contract.differentiable)
    if contract.is_loss:
        case = replace(case, options=tuple((dict(case.options) | pinned).items()))
        loss = build(contract, PLAIN, target, case, rank, world_size)
        if not callable(loss):
            return Signature(f"{name}(...) must return something that can be called, got {loss!r}")
        call = entry(loss)
        if getattr(call, "__name__", "") == "_forward_unimplemented":
            names = ", ".join(contract.inputs(case)[0])
            return Signature(f"{name} has no forward; the contract {contract.name} calls it with {names}")
        tensors = dict.fromkeys([*contract.inputs(case)[0], *contract.left_out])
        if contract.in_order:
            try:
                inspect.signature(call).bind(*tensors)
            except TypeError as error:
                wrong = f"{len(tensors)} tensors in order; {name}: {error}"
                return Signature(f"the contract {contract.name} calls with {wrong}")
            return Signature("", options=tuple(accepted(target, options)), bias=False, output_dict=False)
        given = {**tensors, "output_dict": False, "logit_bias": None}
        needed = [
            one
            for one in tensors
            if one not in accepted(call, given, contract.optional) and one not in BIASES
        ]
        missing = _missing(call, given)
        if needed or missing:
            wrong = ", ".join([f"takes no {one}" for one in needed] + [f"needs {one}" for one in missing])
            return Signature(f"the contract {contract.name} calls with {', '.join(tensors)}; {name} {wrong}")
    return Signature(
        "",
        False,
        tuple(accepted(target, options)),
        all(one in accepted(call, {one: None}, contract.optional) for one in {*biases, "logit_bias"}),
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
        one = call_of_rank(rank, world_size, subject, target, reference(contract, Example(case)), "train")
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
    references = [(reference(contract, Example(step.case)), step.mode) for step in steps]
    return act([call_of_rank(rank, world_size, subject, target, given, mode) for given, mode in references])


def constructor(contract: Contract, form: Form, case: Case) -> dict[str, Any]:
    """Return the arguments that the target is constructed with, but for the rank's place."""
    arguments = contract.constructor(case)
    for argument, name in form.arguments:
        known = {"ARGUMENTS": contract.constructor(case), "given": contract.inputs(case)[0], "math": math}
        value = eval(NAMES[contract.name][name].source, known)
        # a number, where it is an array of one; a choice, as of several sizes, is given as it is
        arguments[argument] = value.reshape(()).item() if isinstance(value, np.ndarray) else value
    if form.rows:
        arguments[form.rows] = case.rows[0]
    return arguments


def build(contract: Contract, form: Form, target: Any, case: Case, rank: int, world_size: int) -> Any:
    """Construct the subject, unless it is called itself; arguments that it does not take are left out."""
    if not form.constructed:
        return target
    with warnings.catch_warnings():
        # warnings about flags: the contract decides which configurations are drawn
        warnings.simplefilter("ignore", UserWarning)
        return contract.build_with(target, constructor(contract, form, case), rank, world_size)


def scalars_of(loss: Any) -> list[str]:
    """Return the names of a module's parameters that are one number."""
    if not isinstance(loss, torch.nn.Module):
        return []
    return [name for name, one in loss.named_parameters() if one.numel() == 1 and one.is_floating_point()]


def arrays_of(loss: Any) -> list[str]:
    """Return the names of a module's parameters that are several numbers."""
    if not isinstance(loss, torch.nn.Module):
        return []
    return [name for name, one in loss.named_parameters() if one.numel() > 1 and one.is_floating_point()]


def call_of(contract: Contract, subject: Subject, case: Case) -> Callable[[Any, dict[str, Any], int], Any]:
    """Return what calls a loss with tensors, on a rank."""
    form = subject.form
    if not form.call:
        return lambda loss, given, rank: contract.call(loss, given, case, rank)
    names: dict[str, Any] = {
        "ARGUMENTS": constructor(contract, form, case),
        "math": math,
        "torch": torch,
        **{function.__name__: function for function in (partial, call_holding, in_turn, row_labels)},
    }
    exec(source(form, contract.name, case.features == "unit"), names)
    return lambda loss, given, rank: names["call_form"](loss, given, case.output_dict)


def call_of_rank(
    rank: int, world_size: int, subject: Subject, target: Any, given: Reference, mode: str
) -> Call:
    contract, case = given.contract, given.case
    call = call_of(contract, subject, case)

    def cotangent(name: str, term: torch.Tensor) -> torch.Tensor:
        dtype = str(term.dtype).removeprefix("torch.")
        return tensor(given.cotangents[rank][name], dtype, case.cotangent_strides, False, str(term.device))

    return Call(
        lambda: build(contract, subject.form, target, case, rank, world_size),
        lambda loss, tensors: call(loss, tensors, rank),
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
        if not np.issubdtype(array.dtype, np.floating):
            tensors[name] = torch.tensor(array, device=case.device_of(rank))
        else:
            is_scalar = name in given.contract.scalars
            dtype = case.dtype_of(name, is_scalar)
            place = case.scalar_device(rank) if is_scalar else case.device_of(rank)
            requires_grad = train and not case.is_frozen(name, rank)
            tensors[name] = tensor(array, dtype, case.strides, requires_grad, place)
    return tensors
