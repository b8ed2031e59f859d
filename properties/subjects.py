"""An implementation under test, and how it is run on one rank."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from oracles.complex_step import Array

from .cases import DTYPES, STRIDES, Case, cotangents, tensor

if TYPE_CHECKING:
    from .contracts import Contract


@dataclass(frozen=True)
class Subject:
    """An implementation bound to a contract.

    Args:
        target: "package.module:Name" or "path/to/file.py:Name".
        conventions: which conventions it is held to.
        even: it asks for equally many rows on every rank.
        dtypes: what it is verified in.
        strides: memory layouts of its inputs.
        options: constructor arguments to pin.
        bias: it takes a logit bias.
    """

    target: str
    conventions: tuple[str, ...] = ("exact",)
    even: bool = False
    dtypes: tuple[str, ...] = DTYPES
    strides: tuple[str, ...] = STRIDES
    options: tuple[tuple[str, Any], ...] = ()
    bias: bool = True

    def resolve(self) -> Any:
        """Import the target.

        Raises:
            ValueError: the target is not of the form MODULE:NAME.
            ImportError, AttributeError: there is no such module or name in it.
        """
        module_name, colon, name = self.target.rpartition(":")
        if not colon or not name:
            raise ValueError(f"target: expected MODULE:NAME or FILE.py:NAME, got {self.target!r}")
        if module_name.endswith(".py"):
            path = Path(module_name)
            key = f"_subject_{path.stem}_{abs(hash(str(path.resolve())))}"
            if key not in sys.modules:
                spec = importlib.util.spec_from_file_location(key, path)
                if spec is None or spec.loader is None or not path.exists():
                    raise ImportError(f"target: no such file: {path}")
                module = importlib.util.module_from_spec(spec)
                sys.modules[key] = module
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    del sys.modules[key]
                    raise
            return getattr(sys.modules[key], name)
        return getattr(importlib.import_module(module_name), name)


@dataclass(frozen=True)
class Step:
    """One call of the subject: a case, and under which mode of torch."""

    case: Case
    mode: Literal["train", "inference", "compiled"] = "train"


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
    """Inputs whose content the call altered."""


class Malformed(AssertionError):
    """The subject returned something that is not what its contract says."""


def run_steps(
    rank: int, world_size: int, subject: Subject, contract: "Contract", steps: list[Step], fresh: bool
) -> list[Outcome]:
    """Run the subject on one rank, step by step, on one object or, with `fresh`, a new one each step."""
    target = subject.resolve()
    outcomes = []
    loss: Any = None
    for step in steps:
        if fresh or loss is None:
            loss = contract.build(target, step.case, rank, world_size)
        call = torch.compile(loss, backend="aot_eager") if step.mode == "compiled" else loss
        outcomes.append(_run_step(rank, contract, call, step))
    return outcomes


def _run_step(rank: int, contract: "Contract", loss: Any, step: Step) -> Outcome:
    case = step.case
    train = step.mode != "inference"
    tensors = inputs(rank, contract, case, train)
    before = {name: value.detach().clone() for name, value in tensors.items()}
    with torch.inference_mode(not train):
        output = contract.call(loss, tensors, case, rank)
    structure, terms = contract.read(output, case)
    for name, term in terms.items():
        if not isinstance(term, torch.Tensor):
            raise Malformed(f"{name}: expected a torch.Tensor, got {type(term).__name__} {term!r}")
    outcome = Outcome(
        structure,
        {name: term.detach().double().numpy() for name, term in terms.items()},
        {name: f"{term.dtype} {term.device}".removeprefix("torch.") for name, term in terms.items()},
    )
    if train:
        backward(rank, contract, case, terms)
        for name, value in tensors.items():
            if value.is_floating_point():
                grad = value.grad
                outcome.gradients[name] = None if grad is None else grad.double().numpy()
                if grad is not None:
                    outcome.gradient_types[name] = f"{grad.dtype} {list(grad.shape)}".removeprefix("torch.")
    outcome.changed = tuple(
        name for name, value in tensors.items() if not torch.equal(value.detach(), before[name])
    )
    return outcome


def inputs(rank: int, contract: "Contract", case: Case, train: bool = True) -> dict[str, torch.Tensor]:
    """Return one rank's inputs as leaf tensors, which require grad unless frozen."""
    tensors = {}
    for name, array in contract.inputs(case)[rank].items():
        if np.issubdtype(array.dtype, np.integer):
            tensors[name] = torch.tensor(array)
        else:
            dtype = case.scalar_dtype if name in contract.scalars else case.dtype
            tensors[name] = tensor(array, dtype, case.strides, train and name not in case.frozen)
    return tensors


def backward(rank: int, contract: "Contract", case: Case, terms: dict[str, torch.Tensor]) -> None:
    """Run backward from all terms together, each with its cotangent."""
    drawn = cotangents(case, contract.term_shapes(case))[rank]
    live = {name: term for name, term in terms.items() if term.requires_grad}
    if live:
        torch.autograd.backward(
            list(live.values()),
            [
                tensor(drawn[name], str(term.dtype).removeprefix("torch."), case.cotangent_strides, False)
                for name, term in live.items()
            ],
        )
