"""How a subject is run on one rank, and what is seen there."""

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from verified_losses.oracles.complex_step import Array

from .cases import Case, tensor, to_array
from .contracts import Contract, accepted, entry
from .examples import Example, Step
from .reference import Reference, reference
from .subjects import Subject, Target, Unresolved


@dataclass(frozen=True)
class Signature:
    """What a subject takes, as far as its contract is concerned; or why it cannot be verified."""

    unusable: str = ""
    options: tuple[str, ...] = ()
    """Which of the contract's options the constructor takes."""
    bias: bool = True
    output_dict: bool = True


def read_signature(rank: int, world_size: int, subject: Subject, contract: Contract, case: Case) -> Signature:
    """Import and construct the subject, and look at what it takes.

    Raises:
        Exception: whatever the subject raises as it is imported or constructed.
    """
    try:
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


@dataclass
class Outcome:
    """What one rank saw of one call."""

    structure: str
    """"dict", "tuple" or "Tensor", and the terms' names where it is a dict."""
    terms: dict[str, Array]
    term_types: dict[str, str]
    """Dtype and device of each term."""
    gradients: dict[str, Array | None] = field(default_factory=dict)
    gradient_types: dict[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """Inputs whose content the call altered, and cotangents whose content its backward did."""

    @property
    def types(self) -> list[str]:
        """The dtypes and devices that there are among the terms."""
        return sorted(set(self.term_types.values()))


class Malformed(AssertionError):
    """The subject returned something that is not what its contract says."""


def run_steps(
    rank: int, world_size: int, subject: Subject, contract: Contract, steps: list[Step], fresh: bool
) -> list[Outcome]:
    """Run the subject on one rank, step by step, on one object or, with `fresh`, a new one each step."""
    target = subject.resolve()
    outcomes = []
    loss: Any = None
    tensors: dict[str, torch.Tensor] = {}
    for step in steps:
        given = reference(contract, Example(step.case))
        made = inputs(rank, given, step.mode != "inference")
        if fresh or loss is None:
            loss = contract.build(target, step.case, rank, world_size)
            tensors = made
        else:
            tensors = refilled(made, tensors)
        call = loss
        if step.mode == "compiled":
            torch.compiler.reset()  # else, after a few cases, it compiles no more and runs what is eager
            call = torch.compile(loss, backend="aot_eager")
        outcomes.append(_run_step(rank, given, call, step.mode, tensors))
    return outcomes


def refilled(given: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the given tensors; where shape, strides and dtype match, in the memory of the earlier ones."""
    tensors = dict(given)
    for name, new in given.items():
        old = before.get(name)
        if old is None or (old.shape, old.stride(), old.dtype) != (new.shape, new.stride(), new.dtype):
            continue
        if 0 not in old.stride():  # else one element lies in many places
            tensors[name] = old.requires_grad_(False).copy_(new.detach()).requires_grad_(new.requires_grad)
            old.grad = None
    return tensors


def _run_step(rank: int, given: Reference, loss: Any, mode: str, tensors: dict[str, torch.Tensor]) -> Outcome:
    contract, case = given.contract, given.case
    train = mode != "inference"
    before = {name: value.detach().clone() for name, value in tensors.items()}
    with torch.inference_mode(not train):
        output = contract.call(loss, tensors, case, rank)
    structure, terms = contract.read(output, case)
    for name, term in terms.items():
        if not isinstance(term, torch.Tensor):
            raise Malformed(f"{name}: expected a torch.Tensor, got {type(term).__name__} {term!r}")
    outcome = Outcome(
        structure,
        {name: to_array(term) for name, term in terms.items()},
        {name: f"{term.dtype} {term.device}".removeprefix("torch.") for name, term in terms.items()},
    )
    altered: list[str] = []
    if train:
        if mode == "derived again":
            backward(rank, given, terms, keep=True)
            for value in tensors.values():
                value.grad = None
        altered = backward(rank, given, terms)
        for name, value in tensors.items():
            if value.is_floating_point():
                grad = value.grad
                outcome.gradients[name] = None if grad is None else to_array(grad)
                if grad is not None:
                    outcome.gradient_types[name] = f"{grad.dtype} {list(grad.shape)}".removeprefix("torch.")
    outcome.changed = (
        *(name for name, value in tensors.items() if not torch.equal(value.detach(), before[name])),
        *(f"the cotangent of {name}" for name in altered),
    )
    return outcome


def inputs(rank: int, given: Reference, train: bool = True) -> dict[str, torch.Tensor]:
    """Return one rank's inputs as leaf tensors, which require grad unless frozen."""
    case = given.case
    tensors = {}
    for name, array in given.inputs[rank].items():
        if np.issubdtype(array.dtype, np.integer):
            tensors[name] = torch.tensor(array, device=case.device)
        else:
            dtype = case.scalar_dtype if name in given.contract.scalars else case.dtype
            tensors[name] = tensor(array, dtype, case.strides, train and name not in case.frozen, case.device)
    return tensors


def backward(rank: int, given: Reference, terms: dict[str, torch.Tensor], keep: bool = False) -> list[str]:
    """Run backward from all terms together, each with its cotangent; return whose it altered.

    With `keep` the graph stays for another time.
    """
    drawn, case = given.cotangents[rank], given.case
    live = {name: term for name, term in terms.items() if term.requires_grad}
    cotangents = {
        name: tensor(
            drawn[name], str(term.dtype).removeprefix("torch."), case.cotangent_strides, False, case.device
        )
        for name, term in live.items()
    }
    before = {name: value.clone() for name, value in cotangents.items()}
    if live:
        torch.autograd.backward(list(live.values()), list(cotangents.values()), retain_graph=keep)
    return [name for name, value in cotangents.items() if not torch.equal(value, before[name])]
