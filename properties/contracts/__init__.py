"""The contracts: for each kind of loss the inputs, the oracle and the bounds that properties compare with."""

import functools
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from verified_losses.oracles.bounds import Blocks, Precision, trace
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.held import HELD
from verified_losses.oracles.infonce import normalize

from ..cases import (
    BIASES,
    BOOLEANS,
    HELD_SCALES,
    PAD_IDS,
    POSITIVE_SCALES,
    TEMPERED_SCALES,
    Case,
    Options,
    cases,
    cotangents,
    held_bias,
    independent,
    moved,
    unsigned_zero,
)
from ..forms import Form
from ..keywords import keywords_read
from ..names import CONTRACTS, FEATURE_KINDS, STRIDES, Features, Values
from ..own.formula import is_own
from ..scripted import signed
from ..subjects import Subject
from .calls import Call, Inputs

TILE_SIZES = st.sampled_from([None, 1, 2, 3, 4, 7, 16, 64])
"""At, below and above the sizes of batches, which are small."""
SMALL_ROWS, SMALL_WIDTH = 9, 33
"""Of a case whose kernels are interpreted: beyond the powers of two that blocks have."""

Cotangents = list[dict[str, Array]]
"""What backward gets for each rank's terms, by name."""


@dataclass(frozen=True)
class Bounds:
    """How far a correct implementation may be from the oracle, elementwise."""

    terms: list[dict[str, Array]]
    gradients: list[dict[str, Array]]


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
    left_out: tuple[str, ...] = ()
    """What a call gives None."""
    optional: tuple[str, ...] = ("output_dict", "logit_bias")
    """Arguments of a call that a subject does without, unless it names them."""
    constructed: tuple[str, ...] = ("options", "pad_id")
    """Of a case, what the subject is constructed with: it stays as one object is called again."""
    scalars: tuple[str, ...] = ("logit_scale", "logit_bias", "dist_logit_scale", "dist_logit_bias")
    rows: tuple[str, ...] = ()
    """Its inputs whose rows a subject may normalise."""
    names_ranks = False
    """Whether its calls name other ranks."""
    takes_empty_ranks = False
    """Whether the formula holds where some ranks, not all, have no rows."""
    whole = False
    """Whether its oracle is that of one process alone: of several ranks it says the mean."""
    alike: tuple[str, ...] = scalars
    """Its inputs that every rank holds alike."""
    large: bool = False
    """Whether a formula of one's own says that it is cheap for a thousand rows."""
    constants: tuple[str, ...] = ()
    """Its inputs of floats that never get a gradient."""
    holds: str = ""
    """The input that a loss holds itself and changes as it is called; every rank holds the whole of it."""
    learned: tuple[str, ...] = ()
    """Its inputs of several numbers that a module may own, as the centres of classes."""
    sizes_held: tuple[str, ...] = ()
    """Arguments of a constructor that are sizes of that, and that it need not take."""
    features: Features = "raw"
    """What a subject does with them that has not stated otherwise."""
    oracle_normalizes = False
    """Whether the oracle normalises them itself, where the subject does."""
    build_with: Callable[[Any, dict[str, Any], int, int], Any] = staticmethod(construct)
    """Constructs a target with arguments, on a rank of so many: a function that counterexamples quote."""
    call_with: Callable[[Any, dict[str, Any], bool], Any] = staticmethod(call_by_name)
    """Calls what was built with tensors, and asks for a dict or not: likewise quoted."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)  # it has no state

    def __hash__(self) -> int:
        return hash(type(self))

    def in_form(self, form: Form) -> "Contract":
        """Return what a subject of this form is held to."""
        return self

    @property
    def summands(self) -> int:
        """How many terms are added up, before or in a backward."""
        return len(self.terms)

    @property
    def tolerance(self) -> str:
        """Where its bounds come from, in words, where they are not composed by hand."""
        return ""

    @property
    def values(self) -> Values:
        """The values of each option."""
        return CONTRACTS[self.name]

    @abstractmethod
    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        """Draw the options that the subject is constructed with."""

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        """Draw a case; options that the subject pins are not drawn.

        Raises:
            ValueError: the subject says of features, or of what it holds, what the contract has not.
        """
        self._check(subject)
        pinned = dict(subject.options)
        settings: dict[str, Any] = {
            "even": subject.even,
            "empty_ranks": subject.empty_ranks and self.takes_empty_ranks,
            "dtypes": subject.dtypes,
            "strides": subject.strides,
            "freezable": self.differentiable,
            "biases": BIASES if subject.bias and "logit_bias" in self.differentiable else st.none(),
            "output_dicts": BOOLEANS if subject.output_dict else st.just(False),
            "pad_ids": (pinned["pad_id"],) if "pad_id" in pinned else subject.pad_ids or PAD_IDS,
        }
        if (scales := self.scales_of(subject)) is not None:
            bias = held_bias if "logit_bias" in dict(subject.held) else unsigned_zero
            settings |= {"scales": scales, "biases": settings["biases"].map(bias)}
        settings |= self.drawn
        if "bias" in subject.form.names():
            settings["biases"] = settings["biases"].map(lambda bias: 1.0 if bias is None else bias)
        elif subject.form.call:
            settings["biases"] = st.none()
        if subject.scales == "one":
            settings["scales"] = st.just(1.0)
        if subject.strides != STRIDES:
            settings["strides"] = subject.strides
        if subject.cotangent_strides != STRIDES and "cotangent_strides" in settings:
            settings["cotangent_strides"] = subject.cotangent_strides
        options = self.options(subject, world_size).map(lambda drawn: tuple((dict(drawn) | pinned).items()))
        if pinned.get("implementation") in ("streamed", "triton") and "tile_size" not in pinned:
            options = st.builds(lambda drawn, size: (*drawn, ("tile_size", size)), options, TILE_SIZES)
        drawn = cases(world_size, options, **settings).map(with_few_tiles)
        drawn = independent(drawn.map(_small) if subject.interpret else drawn)
        if subject.widths:
            drawn = drawn.map(lambda case: _wide(case, subject.widths))
        if subject.least > 1:
            drawn = drawn.map(lambda case: with_rows(case, subject.least))
        if subject.beside:
            drawn = drawn.map(moved)
        if not (subject.features or subject.held or subject.constants):
            return drawn
        return drawn.map(lambda case: self._of_subject(case, subject))

    def constructed_of(self, subject: Subject) -> tuple[str, ...]:
        """Return what of a case a subject is constructed with: it stays as one object is called again."""
        form = subject.form
        numbers = ("scale", "bias", "dtype", "wide_scalars") if form.arguments else ()
        return (*self.constructed, *numbers, *(("rows",) if form.rows else ()))

    def scales_of(self, subject: Subject) -> st.SearchStrategy[float] | None:
        """Return the scales above 0 that are drawn for a subject; None where any are, or none matters."""
        if subject.scales == "any" or "logit_scale" not in self.differentiable:
            return None
        held = dict(subject.held).get("logit_scale")
        if held in ("inverse", "exp_negative", "inverse_softplus"):
            return TEMPERED_SCALES
        return HELD_SCALES if held else POSITIVE_SCALES

    def _check(self, subject: Subject) -> None:
        if subject.features not in FEATURE_KINDS:
            raise ValueError(f"features: expected one of {list(FEATURE_KINDS)}, got {subject.features!r}")
        if subject.features and not self.rows:
            raise ValueError(
                f"features: the contract {self.name} has no rows of features, got {subject.features!r}"
            )
        known = [name for name in self.scalars if name in self.differentiable and name != "dist_logit_bias"]
        for name, kind in subject.held:
            if name not in known or kind not in HELD:
                expected = f"held: the contract {self.name} expects of {known} one of {list(HELD)}"
                raise ValueError(f"{expected}, got {name}={kind}")
        if subject.held and subject.scales == "any":
            raise ValueError('scales: expected "positive" where a subject holds something else, got "any"')

    def _of_subject(self, case: Case, subject: Subject) -> Case:
        frozen = tuple(sorted({*case.frozen, *subject.constants}))
        return replace(case, features=subject.features, held=subject.held, frozen=frozen)

    @abstractmethod
    def inputs(self, case: Case) -> Inputs:
        """Return every rank's inputs."""

    @abstractmethod
    def calls(self, case: Case) -> dict[str, Call]:
        """Return the oracle's call for each term; bounds and source follow from it."""

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, Any]]:
        """Return every rank's terms; inputs may be complex, or traced."""
        absent: dict[str, Any] = {name: np.asarray(value) for name, value in self.absent(case).items()}
        given = [
            absent
            | {name: value.reshape(()) if name in self.scalars else value for name, value in one.items()}
            for one in inputs
        ]
        calls = self.calls(case)
        terms: list[dict[str, Any]] = []
        for rank in range(case.world_size):
            found: dict[Call, Any] = {}
            terms.append({})
            for name, call in calls.items():
                whole = replace(call, place=None)
                if whole not in found:
                    found[whole] = call.result(given, rank)
                terms[rank][name] = found[whole] if call.place is None else found[whole][call.place]
        return terms

    def oracle_source(self, case: Case) -> dict[str, str]:
        """Return the oracle's terms on `rank` as Python for a counterexample.

        Functions of `oracles` are at hand, and every input as the list of what the ranks are given.
        """
        absent = self.absent(case)
        return {name: call.source(case.world_size, absent) for name, call in self.calls(case).items()}

    def absent(self, case: Case) -> dict[str, float]:
        """Return the inputs of the oracle that a case lacks, and what they are then."""
        return {name: 0.0 for name in self.scalars if name.endswith("bias") and case.bias is None}

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        """Return the error bounds of every term, and of every gradient for the cotangents `cotangents`."""

        def terms(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return self.oracle(case, self.prepared(case, ranks))

        return Bounds(*trace(terms, inputs, cotangents, self.precision(case), self.blocks(case)))

    def second_derivatives(
        self, case: Case, inputs: Inputs, cotangents: Cotangents, moves: Inputs
    ) -> tuple[Inputs, Inputs] | None:
        """Return how every rank's gradients move as inputs do, and bounds; None where the oracle says it.

        Args:
            case: the case.
            inputs: every rank's.
            cotangents: of every rank's terms.
            moves: how every rank's inputs move, by name.
        """
        return None

    def precision(self, case: Case) -> Precision:
        """Return the arithmetic of a right implementation."""
        return case.precision

    def blocks(self, case: Case) -> Blocks:
        """Return in which blocks an implementation may compute logits."""
        return Blocks()

    def normalizations(self, case: Case) -> int:
        """Return how often rows of features may be normalised, by a caller and by the subject."""
        return {"raw": 0, "normalized": 1, "unit": 2}[case.features or self.features]

    def preparations(self, case: Case) -> dict[str, tuple[Callable[[Any], Any], ...]]:
        """Return by input what is done with it, in order, before the oracle gets it."""
        times = self.normalizations(case)
        done: dict[str, tuple[Callable[[Any], Any], ...]] = {name: (HELD[kind],) for name, kind in case.held}
        # twice where both may: second derivatives are bounded by what the oracle computes
        rows = (normalize,) * (times - (1 if times and self.oracle_normalizes else 0))
        return done | (dict.fromkeys(self.rows, rows) if rows else {})

    def prepared(self, case: Case, inputs: Inputs) -> Inputs:
        """Return what the oracle gets, given every rank's inputs, which may be complex."""
        done = self.preparations(case)
        ready = [dict(given) for given in inputs]
        for given in ready:
            for name in done.keys() & given.keys():
                for function in done[name]:
                    given[name] = function(given[name])
        return ready

    def probe(self, case: Case) -> Case:
        """Return a case to look at a target with, for one of few rows."""
        return case

    def check(self, cases: list[Case]) -> None:
        """Look at the oracle itself, on some cases, before anything runs.

        Raises:
            NoFormula: it is none.
        """
        del cases  # those that are shipped have tests

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

    def constructor(self, case: Case) -> dict[str, Any]:
        """Return the constructor's arguments, but for the rank's place."""
        return dict(case.options)

    def call(self, loss: Any, tensors: dict[str, Any], case: Case, rank: int) -> Any:
        """Call the subject."""
        return self.call_with(loss, tensors, case.output_dict)

    def structure(self, case: Case) -> str:
        """Return how the output must be structured."""
        if case.output_dict and not self.in_order:
            return f"dict {sorted(self.terms)}"
        return "Tensor" if len(self.terms) == 1 else f"tuple of {len(self.terms)}"

    def cotangents(self, case: Case) -> Cotangents:
        """Return the cotangents of the case."""
        return cotangents(case, self.term_shapes(case))


def with_few_tiles(case: Case) -> Case:
    """Return a case whose tiles, where their size is drawn, are ten by ten at most: each takes time."""
    size = case.option("tile_size", None)
    if size is None or size * 10 >= sum(case.rows):
        return case
    options = dict(case.options) | {"tile_size": -(-sum(case.rows) // 10)}
    return replace(case, options=tuple(options.items()))


def _small(case: Case) -> Case:
    """Return a case that Triton's interpreter runs in a second."""
    return replace(
        case, rows=tuple(min(rows, SMALL_ROWS) for rows in case.rows), width=min(case.width, SMALL_WIDTH)
    )


def _wide(case: Case, widths: tuple[int, ...]) -> Case:
    """Return a case in which features are as wide as a subject takes them, each width as often."""
    return replace(case, width=widths[(case.width - 1) % len(widths)])


def with_rows(case: Case, least: int) -> Case:
    """Return a case in which each rank that holds rows has so many at least."""
    return replace(case, rows=tuple(max(n, least) if n else 0 for n in case.rows))


def accepted(
    target: Any, arguments: dict[str, Any], optional: tuple[str, ...] = ("convention", "chunk_size")
) -> dict[str, Any]:
    """Return those of `arguments` that `target` takes.

    **kwargs stands for what is read of it, where nothing else is done with it, else for the parameters of the
    same method of the next class in the MRO. If every class has such **kwargs, all arguments are taken except
    the `optional` ones that no class names.
    """
    if getattr(_unwrapped(target), "__init__", None) is torch.nn.Module.__init__:
        return {}  # its signature takes all, and it refuses each
    inner = _unwrapped(target)
    is_class = inspect.isclass(inner)
    owner = inner if is_class else type(getattr(inner, "__self__", inner))
    method = "__init__" if is_class else getattr(inner, "__name__", "__call__")
    classes = [base for base in owner.__mro__ if base not in (object, torch.nn.Module)]
    named: set[str] = set()
    for function in [target, *(getattr(base, method) for base in classes if method in vars(base))]:
        parameters = inspect.signature(function).parameters
        named.update(parameters)
        read = keywords_read(function)
        named.update(read or ())
        if read is not None or not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return {name: value for name, value in arguments.items() if name in named}
    return {name: value for name, value in arguments.items() if name in named or name not in optional}


def _unwrapped(target: Any) -> Any:
    """Return what a decorator with functools.wraps, or functools.partial, was given."""
    while True:
        inner = target.func if isinstance(target, functools.partial) else getattr(target, "__wrapped__", None)
        if not callable(inner):
            return target
        target = inner


def entry(loss: Any) -> Callable[..., Any]:
    """Return the function that a call of `loss` ends in: a module's own call takes any arguments."""
    loss = getattr(loss, "_orig_mod", loss)  # torch.compile keeps the module there
    function = loss if _is_called_itself(loss) else getattr(loss, "forward", loss)
    entered: Callable[..., Any] = signed(function)
    return entered


def _is_called_itself(loss: Any) -> bool:
    """Whether a module's class has a call of its own that names its arguments, or has no forward."""
    owner = type(loss)
    if not isinstance(loss, torch.nn.Module) or owner.__call__ is torch.nn.Module.__call__:
        return False
    if owner.forward is torch.nn.Module.forward:
        return True
    kinds = [one.kind for one in inspect.signature(loss).parameters.values()]
    return any(
        kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for kind in kinds
    )


def contracts() -> dict[str, Contract]:
    """Return every contract by name."""
    return {name: _contract(name) for name in CONTRACTS}


def contract_of(name: str) -> Contract:
    """Return a contract by its name, which may be that of a formula, file.py:name.

    Raises:
        NoFormula: there is no such formula.
    """
    if is_own(name):
        own: Contract = importlib.import_module(".own", __name__).own_contract(name)
        return own
    return _contract(name)


def _contract(name: str) -> Contract:
    module = importlib.import_module(f".{name}", __name__)
    kinds: list[Any] = [one for one in vars(module).values() if inspect.isclass(one)]
    (kind,) = [one for one in kinds if vars(one).get("name") == name]
    contract: Contract = kind()
    return contract


__all__ = [
    "Bounds",
    "Call",
    "Contract",
    "Inputs",
    "accepted",
    "contract_of",
    "contracts",
    "entry",
    "with_few_tiles",
]
