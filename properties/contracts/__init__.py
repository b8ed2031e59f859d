"""The contracts: for each kind of loss the inputs, the oracle and the bounds that properties compare with."""

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.rounding import Magnitude, Precision, gamma

from ..cases import BIASES, BOOLEANS, PAD_IDS, Case, Options, cases, cotangents, independent
from ..names import CONTRACTS, STRIDES, Values
from ..subjects import Subject

Inputs = list[dict[str, Array]]
"""Every rank's inputs by name."""
Cotangents = list[dict[str, Array]]
"""What backward gets for each rank's terms, by name."""


@dataclass(frozen=True)
class Bounds:
    """How far a correct implementation may be from the oracle, elementwise."""

    terms: list[dict[str, Array]]
    gradients: list[dict[str, Array]]


class Sum:
    """Adds up the bounds of the parts of each rank's gradients."""

    def __init__(self, inputs: Inputs) -> None:
        self._error = [{name: np.zeros(array.shape) for name, array in given.items()} for given in inputs]
        self._size = [{name: np.zeros(array.shape) for name, array in given.items()} for given in inputs]
        self._parts = [{name: np.zeros(array.shape) for name, array in given.items()} for given in inputs]

    def add(self, rank: int, name: str, part: Magnitude, times: float = 1.0, parts: int = 1) -> None:
        """Add `times` a part to the gradient of one rank's input.

        An implementation may work the part out in `parts` parts, and store and add them one by one.
        """
        if name in self._error[rank]:
            shape = self._error[rank][name].shape
            self._error[rank][name] += times * np.reshape(part.error, shape)
            self._size[rank][name] += times * np.reshape(part.size, shape)
            # a part that counts several times is added several times, or multiplied
            self._parts[rank][name] += max(1.0, times) * parts * (np.reshape(part.size, shape) > 0)

    def bounds(self, p: Precision) -> list[dict[str, Array]]:
        """Return the bound of every gradient, the rounding of the sum over terms and ranks included."""
        return [
            {
                # of more parts than 1/u the relative error is infinite, which nothing is multiplied with
                name: error[name]
                + gamma(np.where(size[name] > 0, np.maximum(parts[name] - 1, 0), 0), p.stored) * size[name]
                + p.tiny
                for name in error
            }
            for error, size, parts in zip(self._error, self._size, self._parts, strict=True)
        ]


def construct(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Construct a loss; arguments that it does not take are left out."""
    return target(**accepted(target, {**arguments, "rank": rank, "world_size": world_size}))


def call_by_name(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss with tensors by name."""
    # tensors alone are open_clip's default, which a subject without dicts has no name for
    return loss(**given, **({"output_dict": True} if output_dict else {}))


def call_in_order(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss with tensors in order; its parameters may have any names."""
    return loss(*given.values())


class Contract(ABC):
    """The behaviour that one kind of loss must have."""

    name: str
    terms: tuple[str, ...]
    differentiable: tuple[str, ...]
    is_loss = True
    in_order = False
    """Whether the subject is called with its inputs in order, and nothing else, under any names."""
    drawn: dict[str, Any] = {}
    """What else to draw for a case: arguments of `cases`."""
    smallest_world = 1
    most_rows: int | None = None
    """Of a rank, where no case has as many as others."""
    undrawn: tuple[str, ...] = ()
    """Inputs that the formula has no value for, in words: no case has them, and a certificate says so."""
    is_mean = True
    """Whether the mean over ranks equals the single process, in some configurations."""
    options_in: dict[str, Options | None] = {}
    """By kind of world: constructor arguments other than the usual ones; None where it cannot run."""
    assumed: dict[str, Any] = {}
    """What a subject is held to where its constructor does not take the option."""
    optional: tuple[str, ...] = ("output_dict", "logit_bias")
    """Arguments of a call that a subject does without, unless it names them."""
    constructed: tuple[str, ...] = ("options", "pad_id")
    """Of a case, what the subject is constructed with: it stays as one object is called again."""
    scalars: tuple[str, ...] = ("logit_scale", "logit_bias", "dist_logit_scale", "dist_logit_bias")
    build_with: Callable[[Any, dict[str, Any], int, int], Any] = staticmethod(construct)
    """Constructs a target with arguments, on a rank of so many: a function that counterexamples quote."""
    call_with: Callable[[Any, dict[str, Any], bool], Any] = staticmethod(call_by_name)
    """Calls what was built with tensors, and asks for a dict or not: likewise quoted."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)  # it has no state

    def __hash__(self) -> int:
        return hash(type(self))

    @property
    def values(self) -> Values:
        """The values of each option."""
        return CONTRACTS[self.name]

    @abstractmethod
    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        """Draw the options that the subject is constructed with."""

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        """Draw a case; options that the subject pins are not drawn."""
        pinned = dict(subject.options)
        settings: dict[str, Any] = {
            "even": subject.even,
            "dtypes": subject.dtypes,
            "strides": subject.strides,
            "freezable": self.differentiable,
            "biases": BIASES if subject.bias and "logit_bias" in self.differentiable else st.none(),
            "output_dicts": BOOLEANS if subject.output_dict else st.just(False),
            "pad_ids": (pinned["pad_id"],) if "pad_id" in pinned else PAD_IDS,
        }
        settings |= self.drawn
        if subject.strides != STRIDES:
            settings |= {
                name: subject.strides for name in ("strides", "cotangent_strides") if name in settings
            }
        options = self.options(subject, world_size).map(lambda drawn: tuple((dict(drawn) | pinned).items()))
        return independent(cases(world_size, options, **settings))

    @abstractmethod
    def inputs(self, case: Case) -> Inputs:
        """Return every rank's inputs."""

    @abstractmethod
    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, Any]]:
        """Return every rank's terms; inputs may be complex."""

    @abstractmethod
    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        """Return the error bounds of every term, and of every gradient for the cotangents `cotangents`."""

    def term_shapes(self, case: Case) -> list[dict[str, tuple[int, ...]]]:
        """Return the shape of every rank's terms."""
        return [dict.fromkeys(self.terms, ()) for _ in case.rows]

    def defined(self, case: Case) -> bool:
        """Whether the oracle has a value for every rank."""
        return True

    def obeys_mean(self, case: Case) -> bool:
        """Whether the mean over ranks of this configuration equals the single process."""
        return self.is_mean

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """Return for each input whether it must get a gradient, or must not; others may."""
        given = self.inputs(case)[0]
        return {name: name not in case.frozen for name in self.differentiable if name in given}

    def build(self, target: Any, case: Case, rank: int, world_size: int) -> Any:
        """Construct the subject; arguments that it does not take are left out."""
        with warnings.catch_warnings():
            # warnings about flags: the contract decides which configurations are drawn
            warnings.simplefilter("ignore", UserWarning)
            return self.build_with(target, self.constructor(case), rank, world_size)

    def constructor(self, case: Case) -> dict[str, Any]:
        """Return the constructor's arguments, but for the rank's place."""
        return dict(case.options)

    def call(self, loss: Any, tensors: dict[str, Any], case: Case, rank: int) -> Any:
        """Call the subject."""
        return self.call_with(loss, tensors, case.output_dict)

    def oracle_source(self, case: Case) -> dict[str, str]:
        """Return the oracle's terms on `rank` as Python for a counterexample.

        Functions of `oracles` are at hand, and every input as the list of what the ranks are given. For a
        term that is missing here, a counterexample quotes the value of the oracle.
        """
        return {}

    def structure(self, case: Case) -> str:
        """Return how the output must be structured."""
        if case.output_dict and not self.in_order:
            return f"dict {sorted(self.terms)}"
        return "Tensor" if len(self.terms) == 1 else f"tuple of {len(self.terms)}"

    def cotangents(self, case: Case) -> Cotangents:
        """Return the cotangents of the case."""
        return cotangents(case, self.term_shapes(case))


def accepted(
    target: Any, arguments: dict[str, Any], optional: tuple[str, ...] = ("convention", "chunk_size")
) -> dict[str, Any]:
    """Return those of `arguments` that `target` takes.

    **kwargs stands for the parameters of the same method of the next class in the MRO. If every class has
    **kwargs, all arguments are taken except the `optional` ones that no class names.
    """
    if getattr(target, "__init__", None) is torch.nn.Module.__init__:
        return {}  # its signature takes all, and it refuses each
    is_class = inspect.isclass(target)
    owner = target if is_class else type(getattr(target, "__self__", target))
    method = "__init__" if is_class else getattr(target, "__name__", "__call__")
    classes = [base for base in owner.__mro__ if base not in (object, torch.nn.Module)]
    named: set[str] = set()
    for function in [target, *(getattr(base, method) for base in classes if method in vars(base))]:
        parameters = inspect.signature(function).parameters
        named.update(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return {name: value for name, value in arguments.items() if name in named}
    return {name: value for name, value in arguments.items() if name in named or name not in optional}


def entry(loss: Any) -> Callable[..., Any]:
    """Return the function that a call of `loss` ends in: a module's own call takes any arguments."""
    loss = getattr(loss, "_orig_mod", loss)  # torch.compile keeps the module there
    entered: Callable[..., Any] = getattr(loss, "forward", loss)
    return entered


def contracts() -> dict[str, Contract]:
    """Return every contract by name."""
    return {name: _contract(name) for name in CONTRACTS}


def _contract(name: str) -> Contract:
    module = importlib.import_module(f".{name}", __name__)
    kinds: list[Any] = [one for one in vars(module).values() if inspect.isclass(one)]
    (kind,) = [one for one in kinds if vars(one).get("name") == name]
    contract: Contract = kind()
    return contract


__all__ = ["Bounds", "Contract", "Inputs", "Sum", "accepted", "contracts", "entry"]
