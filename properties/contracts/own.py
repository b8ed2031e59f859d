"""The contract that a formula makes: what one process gives is known, and of several ranks the mean."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles import monte_carlo
from verified_losses.oracles.bounds import NotSteps, trace
from verified_losses.oracles.complex_step import Array, directional_derivative
from verified_losses.oracles.infonce import normalize
from verified_losses.oracles.monte_carlo import Roundoff, Scatter, Unsupported

from ..cases import Case, Options, feature_pair, independent, rounded
from ..forms import names_of
from ..names import HALVES, Values
from ..own.formula import Formula, NoFormula, formula, keeping
from ..own.kinds import (
    MOST_OF_A_SIZE,
    WIDTH,
    Choice,
    Ids,
    Kind,
    Mask,
    Matrix,
    Positive,
    Rows,
    Shared,
    Size,
    named_sizes,
)
from ..subjects import Subject
from . import Bounds, Call, Contract, Cotangents, Inputs, call_by_name, construct

EQUAL = 3
"""Of as many cases with duplicates one has rows that are all equal: gradients cancel to nothing."""
LARGE = 3
"""Of as many cases one has large labels, where a kind may have these."""
LARGE_IDS = 2048
"""In bfloat16 and float16 this number and the next one are the same."""
MOST_ROWS = 160
"""Rows of all ranks, at most, but for large cases: some formulas hold every pair."""
SAMPLED = (
    f"Monte Carlo arithmetic, {monte_carlo.SAMPLES} samples, chance of a false accusation below 1e-6, or "
    "what roundings add up to, where that is less"
)
"""Where a tolerance comes from, as a certificate says it."""
STEPS = (1e-4, 1e-5, 1e-6, 1e-7)
"""Of differences: one of them must agree with the complex step."""


class OwnContract(Contract):
    """What a formula says: the loss of the whole batch in one process.

    Of several ranks it says the mean: of their losses and, as rows reach every rank's loss, of the gradients.
    Whatever a rank returns, its own share or the whole, the gradient of its rows is then W times that of one
    process. So the oracle gives each rank the whole loss, and laws that look at one rank's loss, or at one
    rank's gradient of what all hold, look at the mean.

    Args:
        name: of the formula, file.py:name or module:name.
    """

    whole = True
    in_order = True
    terms: tuple[str, ...] = ("loss",)
    constructed = ("options", "drawn")
    drawn = {"scales": st.just(1.0)}
    build_with = staticmethod(construct)
    call_with = staticmethod(call_by_name)
    undrawn = ("cases for which the formula, or its derivative, is no number",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.formula: Formula = formula(name)
        kinds = self.formula.inputs
        self.differentiable = tuple(one for one, kind in kinds.items() if kind.is_derived)
        self.scalars = tuple(
            one for one, kind in kinds.items() if isinstance(kind, Positive) and kind.learned
        )
        self.learned = tuple(one for one, kind in kinds.items() if isinstance(kind, Shared) and kind.learned)
        self.holds = self.formula.holds
        self.split = tuple(one for one, kind in kinds.items() if kind.is_split and one != self.holds)
        self.alike = tuple(one for one, kind in kinds.items() if kind.is_tensor and one not in self.split)
        self.unit = tuple(one for one, kind in kinds.items() if getattr(kind, "unit", False))
        self.constants = tuple(
            one for one, kind in kinds.items()
            if isinstance(kind, Rows | Matrix | Shared) and not kind.is_derived
        )  # fmt: skip
        self.large = self.formula.large
        self.sizes_held = self.formula.sizes_held
        names_of(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return own_contract, (self.name,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnContract) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def values(self) -> Values:
        return {one: kind.values for one, kind in self.formula.inputs.items() if isinstance(kind, Choice)}

    @cached_property
    def tolerance(self) -> str:
        """Where its tolerances come from, in words."""
        kinds = self.formula.inputs.items()
        first = tuple((name, kind.values[0]) for name, kind in kinds if isinstance(kind, Choice))
        case = self.probe(Case(rows=(5,), width=4, seed=3, options=first))
        inputs = self.inputs(case)
        stepped = self._stepped(case, inputs, self.cotangents(case)) is not None
        return f"derived from steps; in half precision by {SAMPLED}" if stepped else SAMPLED

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        chosen = {one: st.sampled_from(values) for one, values in self.values.items()}
        return st.fixed_dictionaries(chosen).map(lambda drawn: tuple(drawn.items()))

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        drawn = _with_numbers(super().cases(subject, world_size), self.formula.inputs, self.constants)
        return independent(drawn.filter(self.defined))

    def constructed_of(self, subject: Subject) -> tuple[str, ...]:
        learned = any(name in self.scalars for _, name in subject.form.arguments)
        of_held = ("rows", "width") if self.holds else ("width",) if self.sizes_held else ()
        return (*self.constructed, *of_held, *(("dtype", "wide_scalars") if learned else ()))

    def probe(self, case: Case) -> Case:
        """Return a case to look at a target with: plain rows, as many as it takes, middle numbers."""
        return next(filter(self._takes, map(self._plain, _with_more_rows(case))), self._plain(case))

    def _plain(self, case: Case) -> Case:
        kinds = self.formula.inputs
        found: dict[str, Any] = dict.fromkeys(named_sizes(kinds), 3)
        for one, kind in kinds.items():
            if isinstance(kind, Positive):
                middle = math.sqrt(kind.low * kind.high) * (1 if case.seed % 2 else 1.1)
                found[one] = min(float(f"{middle:.3g}"), kind.high)
        return replace(case, pattern="unit", drawn=tuple(found.items()), frozen=self.constants)

    def _takes(self, case: Case) -> bool:
        """Whether the formula does not refuse a case; what else it raises is found by `check`."""
        try:
            return self._looked_at(case) is not None
        except Exception:
            return True

    def defined(self, case: Case) -> bool:
        """Whether the formula does not refuse it by ValueError, and it and its derivatives are numbers."""
        seen = self._looked_at(case)
        return seen is not None and bool(np.isfinite(seen).all())

    def _looked_at(self, case: Case) -> tuple[float, float] | None:
        """Return the formula's value and slope, or None where it refuses the case by ValueError."""
        inputs = self.inputs(case)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                return self._value_and_slope(case, inputs)
            except NoFormula:
                raise
            except ValueError:
                return None

    def inputs(self, case: Case) -> Inputs:
        whole = {name: self._filled(case, name) for name in self.formula.inputs if self._is_tensor(name)}
        parts = {name: case.split(array) for name, array in whole.items() if name not in self.alike}
        return [
            {name: parts[name][rank] if name in parts else array.copy() for name, array in whole.items()}
            for rank in range(case.world_size)
        ]

    def constructor(self, case: Case) -> dict[str, Any]:
        kinds, numbers = self.formula.inputs, dict(case.drawn)
        given = {
            one: numbers[one]
            for one, kind in kinds.items()
            if isinstance(kind, Positive) and not kind.learned
        }
        sizes = {}
        if self.holds:
            blocks, width = self._sizes(case, kinds[self.holds].sizes)
            sizes = dict(zip(self.sizes_held, (sum(case.rows) * blocks, width), strict=True))
        elif self.sizes_held:
            sizes = dict(zip(self.sizes_held, self._sizes(case, self.sizes_held), strict=True))
        return {**given, **sizes, **dict(case.options)}

    def preparations(self, case: Case) -> dict[str, tuple[Callable[[Any], Any], ...]]:
        return dict.fromkeys(self.unit, (normalize,))

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        detached = [name for name, kind in self.formula.inputs.items() if getattr(kind, "detached", False)]
        return {name: one for name, one in super().gradient_expected(case).items() if name not in detached}

    def calls(self, case: Case) -> dict[str, Call]:
        """Return the formula: `oracle` and `oracle_source` give it the whole batch."""
        return {"loss": Call(self.formula.function, ())}

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, Any]]:
        values: list[Any] = []
        for rank, given in enumerate(inputs):
            if rank and all(np.array_equal(inputs[0][name], given[name]) for name in self.alike):
                values.append(values[0])
                continue
            with np.errstate(all="ignore"):
                values.append(self._computed(case, self._whole(inputs, rank)))
        return [{"loss": value} for value in values]

    def cotangents(self, case: Case) -> Cotangents:
        """Return the cotangents, which are the same on every rank: what others give is not known."""
        first, *_ = super().cotangents(case)
        return [{name: value.copy() for name, value in first.items()} for _ in case.rows]

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        if stepped := self._stepped(case, inputs, cotangents):
            return stepped
        given = self._whole(inputs)
        value, gradients = self._scattered(case, given, float(cotangents[0]["loss"]))
        by_name = {name: np.zeros(given[name].shape) for name in self.constants}
        by_name |= {name: one.bound for name, one in gradients.items()}
        return Bounds([{"loss": value.bound} for _ in case.rows], self._by_rank(case, by_name))

    def second_derivatives(
        self, case: Case, inputs: Inputs, cotangents: Cotangents, moves: Inputs
    ) -> tuple[Inputs, Inputs]:
        along = {
            name: moves[0][name] if name in self.alike else np.concatenate([one[name] for one in moves])
            for name in moves[0]
        }
        _, found = self._scattered(case, self._whole(inputs), float(cotangents[0]["loss"]), along)
        values, bounds = (
            {name: np.asarray(getattr(one, part)) for name, one in found.items()}
            for part in ("value", "bound")
        )
        return self._by_rank(case, values), self._by_rank(case, bounds)

    def _by_rank(self, case: Case, whole: dict[str, Array]) -> Inputs:
        """Return what each rank has of gradients: of its rows W times as much as one process."""
        rows = {
            name: case.split(case.world_size * one) for name, one in whole.items() if name not in self.alike
        }
        return [
            {name: one if name in self.alike else rows[name][rank] for name, one in whole.items()}
            for rank in range(case.world_size)
        ]

    def oracle_source(self, case: Case) -> dict[str, str]:
        arguments = []
        for name in self.formula.inputs:
            if name in self.split:
                arguments.append(f"{name}=np.concatenate({name})")
            elif name in self.scalars:
                arguments.append(f"{name}={name}[rank].reshape(())")
            elif name in self.alike:
                arguments.append(f"{name}={name}[rank]")
            else:
                arguments.append(f"{name}={self.constructor(case)[name]!r}")
        return {"loss": f"{self.formula.title}({', '.join(arguments)})"}

    def check(self, cases: list[Case]) -> None:
        """Look at the formula before anything runs.

        Raises:
            NoFormula: it raises, returns no number, is not analytic, or uses what no tolerance is known for.
        """
        name = self.formula.title
        for case in cases:
            inputs = self.inputs(case)
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    warnings.simplefilter("error", np.exceptions.ComplexWarning)
                    value, slope = self._value_and_slope(case, inputs)
                    differences = self._differences(case, inputs)
            except NoFormula:
                raise
            except np.exceptions.ComplexWarning as error:
                raise NoFormula(
                    f"{name}: complex numbers lose their imaginary part ({error}): derivatives are taken "
                    "by complex steps, so make arrays of what they are computed from"
                ) from error
            except Exception as error:
                raise NoFormula(f"{name}: raised {type(error).__name__}: {error}") from error
            if not np.isfinite(value) or not np.isfinite(slope):
                raise NoFormula(f"{name}: gives {value}, and the derivative {slope}, for plain rows: {case}")
            nearest = min(differences, key=lambda one: abs(one - slope))
            if abs(nearest - slope) > 1e-3 * (abs(nearest) + abs(slope)) + 1e-7 * (1 + abs(value)):
                raise NoFormula(
                    f"{name}: is not analytic: its derivative by a complex step is {slope:.6g}, by "
                    f"differences {nearest:.6g}. Leave out abs, np.linalg.norm and conjugates: "
                    "np.sqrt(np.sum(x * x)) is fine"
                )
            if self.formula.any_order:
                self._check_order(case, value)
            try:
                self.bounds(case, inputs, self.cotangents(case))
            except Unsupported as error:
                raise NoFormula(f"{name}: {error}") from error

    def _check_order(self, case: Case, value: float) -> None:
        """Check that the order of the rows does not matter to the formula."""
        order = np.random.default_rng(case.seed).permutation(sum(case.rows))
        (given,) = self.prepared(case, self.inputs(case))
        for name in self.split:
            given[name] = given[name][order]
            if isinstance(self.formula.inputs[name], Mask):
                given[name] = given[name][:, order]
        other = float(np.real(self._computed(case, given)))
        if abs(other - value) > 1e-9 * (1 + abs(value)):
            raise NoFormula(
                f"{self.formula.title}: any_order: its rows in another order give {other:.9g}, "
                f"not {value:.9g}"
            )

    def _is_tensor(self, name: str) -> bool:
        return self.formula.inputs[name].is_tensor

    def _whole(self, inputs: Inputs, rank: int = 0) -> dict[str, Any]:
        """Return the inputs of the whole batch; what every rank holds alike is as `rank` has it."""
        joined = {name: np.concatenate([given[name] for given in inputs]) for name in self.split}
        return joined | {name: inputs[rank][name] for name in self.alike}

    def _computed(self, case: Case, given: dict[str, Any]) -> Any:
        """Return what the formula gives."""
        numbers = self.constructor(case)
        arguments = {
            name: given[name].reshape(())
            if name in self.scalars
            else given[name]
            if name in given
            else numbers[name]
            for name in self.formula.inputs
        }
        value = self.formula.function(**arguments)
        if np.shape(value) != ():
            what = f"an array of shape {list(np.shape(value))}" if np.shape(value) else type(value).__name__
            raise NoFormula(f"{self.formula.title}: expected a number, the loss, got {what}")
        if value is None or isinstance(value, str | dict | bool):
            raise NoFormula(f"{self.formula.title}: expected a number, got {type(value).__name__}")
        return value

    def _stepped(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds | None:
        """Return the bounds of a formula that is written with steps; None of any other.

        In half precision steps are those of losses that compute in float32, which a formula does not ask for.
        """
        if case.dtype in HALVES:
            return None

        def function(ranks: Inputs) -> list[dict[str, Any]]:
            return [{"loss": self._computed(case, self._whole(ranks, rank))} for rank in range(len(ranks))]

        try:
            terms, gradients = trace(
                lambda ranks: function(self.prepared(case, ranks)), inputs, cotangents, case.precision
            )
        except NotSteps:
            return None
        return Bounds(terms, gradients)

    def _scattered(
        self, case: Case, given: dict[str, Array], cotangent: float, along: dict[str, Array] | None = None
    ) -> tuple[Scatter, dict[str, Scatter]]:
        """Return how far rounding takes the loss, and its gradients, or how those move `along` something."""
        order = list(given)
        names = [name for name in self.differentiable if name in given]

        def function(*arrays: Any) -> Any:
            made = dict(zip(order, arrays, strict=True))
            # once: of two in a row the second removes what the backward of the first errs by
            made |= {name: normalize(made[name]) for name in self.unit}
            return self._computed(case, made)

        places = [order.index(name) for name in names]
        p = Roundoff.of(case.dtype)
        moves = None if along is None else {order.index(name): one for name, one in along.items()}
        samples = monte_carlo.SAMPLES if sum(case.rows) <= MOST_ROWS else 0  # those of so many rows take long
        value, gradients = monte_carlo.scatter(
            function, [given[name] for name in order], p, places, cotangent, samples, case.seed, moves
        )
        return value, dict(zip(names, gradients, strict=True))

    def _along(self, case: Case, inputs: Inputs) -> Callable[[Any], Any]:
        """Return the formula along one direction of all its inputs."""
        generator = np.random.default_rng([case.seed, 12])
        given = self._whole(inputs)
        along = {name: generator.standard_normal(given[name].shape) for name in self.differentiable}

        def moved(t: Any) -> Any:
            made = given | {name: given[name] + t * along[name] for name in along}
            made |= {name: normalize(made[name]) for name in self.unit}
            return self._computed(case, made)

        return moved

    def _value_and_slope(self, case: Case, inputs: Inputs) -> tuple[float, float]:
        function = self._along(case, inputs)
        value = function(0.0)
        return float(np.real(value)), directional_derivative(function, np.zeros(()), np.ones(()))

    def _differences(self, case: Case, inputs: Inputs) -> list[float]:
        function, constants = self._along(case, inputs), list[Any]()
        with keeping(constants):
            function(0.0)

        def moved(step: float) -> Any:
            with keeping(constants, again=True):
                return function(step)

        return [float(np.real(moved(step) - moved(-step))) / (2 * step) for step in STEPS]

    def _sizes(self, case: Case, sizes: tuple[Size, ...]) -> tuple[int, ...]:
        known = {WIDTH: case.width, **{one: size for one, size in case.drawn if isinstance(size, int)}}
        return tuple(size if isinstance(size, int) else known[size] for size in sizes)

    def _filled(self, case: Case, name: str) -> Array:
        """Return the whole of an input."""
        kinds = self.formula.inputs
        kind, place = kinds[name], list(kinds).index(name)
        generator = np.random.default_rng([case.seed, 11, place])
        total = sum(case.rows)
        match kind:
            case Rows():
                # the first that is like another is its partner, others are like that of none
                partners = [one for one, other in kinds.items() if getattr(other, "like", "") == kind.like]
                is_partner = bool(kind.like) and partners[0] == name
                first = list(kinds).index(kind.like) if is_partner else place
                (width,) = self._sizes(case, kind.sizes)
                filled = feature_pair(replace(case, scale=10.0, held=()), width, 20 + first)[bool(kind.like)]
                if case.pattern == "duplicates" and case.seed % EQUAL == 0:
                    filled = np.repeat(filled[:1], total, axis=0)
                return _nonzero(filled) if kind.unit else filled
            case Ids():
                (below,) = self._sizes(case, (kind.below,))
                if kind.repeated:
                    drawn = np.minimum(np.arange(total) // 2, max(total // 2 - 1, 0)) % below
                    drawn = drawn if case.pattern == "basis" else generator.permutation(drawn)
                else:
                    drawn = np.arange(total) % below
                    drawn = drawn if case.pattern == "basis" else generator.integers(0, below, total)
                return drawn + LARGE_IDS if kind.large and case.seed % LARGE == 1 else drawn
            case Mask():
                drawn = generator.random((total, total)) < kind.share
                drawn = drawn | drawn.T if kind.symmetric else drawn
                np.fill_diagonal(drawn, kind.reflexive)
                return drawn
            case Matrix() | Shared():
                split = (total,) if isinstance(kind, Matrix) else ()
                return _values(case, generator, (*split, *self._sizes(case, kind.sizes)), kind)
            case Positive():
                return rounded(np.full(case.scalar_shape, dict(case.drawn)[name]), case.scalar_dtype)
        raise AssertionError(kind)


MORE_ROWS = (0, 1, 2, 3, 5, 8, 13, 21)
"""On each rank, where a formula refuses few."""


def _with_more_rows(case: Case) -> Iterator[Case]:
    return (replace(case, rows=tuple(n + more for n in case.rows)) for more in MORE_ROWS)


@st.composite
def _with_numbers(
    draw: st.DrawFn, base: st.SearchStrategy[Case], kinds: dict[str, Kind], constants: tuple[str, ...]
) -> Case:
    """Draw the numbers and sizes of a case, too, and leave out rows beyond what formulas hold."""
    case = draw(base)
    found: dict[str, Any] = {size: draw(st.integers(1, MOST_OF_A_SIZE)) for size in named_sizes(kinds)}
    for name, kind in kinds.items():
        if isinstance(kind, Positive):
            found[name] = draw(_numbers_of(kind))
    rows = case.rows
    if sum(rows) > MOST_ROWS:
        rows = tuple(min(one, max(1, MOST_ROWS // case.world_size)) for one in rows)
    frozen = tuple(sorted({*case.frozen, *constants}))
    return replace(case, rows=rows, drawn=tuple(found.items()), frozen=frozen)


def _numbers_of(kind: Positive) -> st.SearchStrategy[float]:
    low, high = math.log(kind.low), math.log(kind.high)
    middle = float(f"{math.exp((low + high) / 2):.2g}")
    inside = [one for one in (1.0, middle, 0.1, kind.low, kind.high) if kind.low <= one <= kind.high]
    drawn = st.floats(low, high).map(
        lambda x: float(np.clip(float(f"{math.exp(x):.3g}"), kind.low, kind.high))
    )
    return st.sampled_from(inside or [kind.low]) | drawn


def _values(
    case: Case, generator: np.random.Generator, shape: tuple[int, ...], kind: Matrix | Shared
) -> Array:
    values = kind.values if isinstance(kind, Matrix) else "normal"
    if values == "weights":
        return rounded(generator.random(shape), case.dtype)
    spread = {"large": 30.0, "saturated": 10.0, "zeros": 0.0}.get(case.pattern, 1.0)
    drawn = spread * generator.standard_normal(shape)
    if values == "probabilities":
        shares = np.exp(drawn - drawn.max(axis=-1, keepdims=True))
        return rounded(shares / shares.sum(axis=-1, keepdims=True), case.dtype)
    if case.pattern == "grid":
        drawn = generator.integers(-12, 13, shape) / 4
    if case.pattern == "duplicates" and len(shape) > 1:
        drawn = drawn[np.arange(shape[0]) // 2]
    if kind.unit or WIDTH in kind.sizes:
        length = np.sqrt(np.sum(drawn * drawn, axis=-1, keepdims=True))
        drawn = spread * drawn / np.maximum(length, 1e-30)
    drawn = rounded(drawn, case.dtype)
    return _nonzero(drawn) if kind.unit else drawn


def _nonzero(array: Array) -> Array:
    """Return the same without rows of zeros, whose length cannot be made 1."""
    made = array.copy()
    made[~made.any(axis=-1), 0] = 1
    return made


@lru_cache
def own_contract(name: str) -> OwnContract:
    """Return the contract of a formula's name.

    Raises:
        NoFormula: there is none.
    """
    return OwnContract(name)


__all__ = ["OwnContract", "own_contract"]
