"""Formulas: functions of NumPy that say what a loss must give, and the kinds of their inputs."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..standalone.loading import load
from .kinds import WIDTH, Kind, Matrix, Positive, Rows, Shared, WrongKind, named_sizes

RANKS = ("rank", "world_size", "group")


class NoFormula(ValueError):
    """There is no usable formula."""


class Formula:
    """A function of NumPy, and the kinds of its inputs. It is called as the function.

    Args:
        function: computes the loss of the whole batch, in one process.
        inputs: the kind of each input, in the order of its parameters.
        any_order: the order of the rows does not matter to it.
        holds: the input that a loss holds itself.
        large: it is cheap for a thousand rows.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: dict[str, Kind],
        any_order: bool = False,
        holds: str = "",
        large: bool = False,
    ) -> None:
        self.function, self.inputs, self.any_order, self.holds = function, inputs, any_order, holds
        self.large = large
        functools.update_wrapper(self, function)
        self.title = function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<contract {self.name}>"

    @property
    def sizes_held(self) -> tuple[str, ...]:
        """Arguments of a constructor that are the sizes of what a loss holds, and that it need not take.

        That is a queue, or tensors that it learns, as the centres of classes.
        """
        if self.holds:
            return (f"{self.holds}_size", WIDTH)
        learned = [kind for kind in self.inputs.values() if isinstance(kind, Shared) and kind.learned]
        named = [size for kind in learned for size in kind.shape if isinstance(size, str)]
        return tuple(one for one in dict.fromkeys(named) if one not in self.inputs)

    @property
    def name(self) -> str:
        """Where it is: file.py:name, from the current folder where the file lies below it."""
        file = Path(self.function.__code__.co_filename).resolve()
        shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        return f"{shown}:{self.function.__qualname__}"


def contract(
    function: Callable[..., Any] | None = None,
    /,
    *,
    any_order: bool = False,
    holds: str = "",
    large: bool = False,
    **inputs: Kind,
) -> Callable[[Callable[..., Any]], Formula]:
    """Make a contract of a function of NumPy: what a loss must give, in value and in gradient, in all worlds.

    The function gets the whole batch, as arrays and numbers, and returns the loss, a number. Its gradients
    are taken by complex steps, so it must be analytic: no `abs`, no `np.linalg.norm`, no `np.conj`;
    `np.sqrt(x * x)` and comparisons of real parts are fine; `detached(x)` is a constant. Its tolerance is
    derived by Monte Carlo arithmetic (`verified_losses.oracles.monte_carlo`). Of several ranks, the mean over
    ranks of losses and gradients must equal it. Then
    `verified-losses certify mine.py:SupCon --as contracts.py:supcon` verifies a loss.

    Args:
        function: none: the decorator is called with the inputs.
        any_order: the order of the rows does not matter, which is checked of the formula before anything
            runs.
        holds: the input that a loss holds itself and changes as it is called, as a queue of the keys of
            earlier batches: a constant `matrix((blocks, "width"))`, the oldest block first. The other
            matrices are `matrix((calls, "width"))`: a fresh loss is filled with it, and called `calls` times,
            each time with one column; the formula returns the sum. Every rank's is filled with the rows of
            all ranks, rank 0's first in each block, and puts those of all ranks into it.
        large: the formula is cheap for a thousand rows, narrow ones: a loss is asked for a few such cases in
            one process, as chunks and tiles end beyond 512 or 1,024. It may hold all pairs, but not their
            products by width, nor loop over rows.
        **inputs: the kind of each parameter: `rows`, `ids`, `mask`, `matrix`, `shared`, `positive`, `choice`.

    Raises:
        NoFormula: an input has no kind, or a kind no input.

    Example:
        >>> import numpy as np
        >>> from verified_losses.properties import contract, rows, positive
        >>> @contract(anchor=rows(), partner=rows(like="anchor"), margin=positive(0.1, 2.0))
        ... def squared_hinge(anchor, partner, margin):
        ...     apart = np.sum((anchor - partner) ** 2, axis=1)
        ...     return np.mean(np.maximum(apart - margin, 0) ** 2)
        >>> squared_hinge(np.zeros((2, 3)), np.ones((2, 3)), 1.0)
        np.float64(4.0)
    """
    if function is not None:
        raise NoFormula(
            "contract: expected the kind of each input, as @contract(features=rows(), labels=ids()), got none"
        )

    def made(function: Callable[..., Any]) -> Formula:
        kinds = _checked(function, inputs)
        _check_held(function.__name__, holds, kinds)
        return Formula(function, kinds, any_order, holds, large)

    return made


_kept: ContextVar[Callable[[Any], Any]] = ContextVar("kept")


def detached(value: Any) -> Any:
    """Return a part of a formula as a constant, as torch's `detach` does: no gradient goes through it.

    Example:
        >>> import numpy as np
        >>> from verified_losses.properties import contract, rows
        >>> @contract(logits=rows())
        ... def weighted(logits):
        ...     log = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        ...     return -np.mean(detached(1 - np.exp(log)) * log)
    """
    import numpy as np  # not before a formula runs: a wrong argument of the command imports nothing

    constant = np.real(value)
    keep = _kept.get(None)
    return constant if keep is None else keep(constant)


@contextmanager
def keeping(constants: list[Any], again: bool = False) -> Iterator[None]:
    """Keep what a formula detaches, in order; with `again` give it that, whatever it is by now."""
    given = iter(constants)

    def keep(constant: Any) -> Any:
        if again:
            return next(given)
        constants.append(constant)
        return constant

    token = _kept.set(keep)
    try:
        yield
    finally:
        _kept.reset(token)


def _checked(function: Callable[..., Any], inputs: dict[str, Kind]) -> dict[str, Kind]:
    if not inspect.isfunction(function):
        raise NoFormula(f"contract: expected a function, got {type(function).__name__}")
    name, parameters = function.__name__, inspect.signature(function).parameters
    if any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters.values()):
        raise NoFormula(f"{name}: expected parameters by name, got * or **")
    if told := [one for one in parameters if one in RANKS]:
        raise NoFormula(f"{name}: takes {told[0]}, but it is the single process over the whole batch")
    if undeclared := [one for one in parameters if one not in inputs]:
        raise NoFormula(f"{name}: {undeclared[0]} has no kind: add {undeclared[0]}=rows(), or what it is")
    if absent := [one for one in inputs if one not in parameters]:
        raise NoFormula(f"{name}: takes no {absent[0]}; its parameters are {', '.join(parameters) or 'none'}")
    for one, kind in inputs.items():
        if not isinstance(kind, Kind):
            known = "rows(), ids(), mask(), matrix(), shared(), positive(), choice()"
            raise NoFormula(f"{name}: {one}: expected one of {known}, got {kind!r}")
    ordered = {one: inputs[one] for one in parameters}
    if not any(kind.is_split for kind in ordered.values()):
        raise NoFormula(f"{name}: expected rows(), ids(), mask() or matrix() among its inputs, got none")
    if not any(kind.is_derived for kind in ordered.values()):
        raise NoFormula(f"{name}: expected an input that gets a gradient, as rows(), got none")
    for one, kind in ordered.items():
        if isinstance(kind, Rows) and kind.like:
            other = ordered.get(kind.like)
            if not isinstance(other, Rows) or kind.like == one or other.like:
                raise NoFormula(f"{name}: {one}: like: expected other rows, got {kind.like!r}")
            if other.width != kind.width:
                raise NoFormula(f"{name}: {one}: expected the width of {kind.like}, got {kind.width!r}")
        if isinstance(kind, Matrix | Shared | Rows) and "rows" in kind.sizes:
            raise NoFormula(f"{name}: {one}: no size may be called rows")
    if taken := [size for size in named_sizes(ordered) if isinstance(ordered.get(size), Positive)]:
        raise NoFormula(f"{name}: {taken[0]} is a number and a size: give the size another name")
    return ordered


def _check_held(name: str, holds: str, kinds: dict[str, Kind]) -> None:
    if not holds:
        return
    held = kinds.get(holds)
    if not isinstance(held, Matrix) or not held.constant or len(held.columns) != 2:
        raise NoFormula(f'{name}: holds: expected a constant matrix(("blocks", "width")), got {holds!r}')
    tensors = {one: kind for one, kind in kinds.items() if kind.is_tensor and one != holds}
    for one, kind in tensors.items():
        if not isinstance(kind, Matrix) or len(kind.columns) != 2:
            raise NoFormula(f'{name}: {one}: expected matrix(("calls", "width")) beside what a loss holds')
    if len({kind.columns[0] for kind in tensors.values() if isinstance(kind, Matrix)}) > 1:
        raise NoFormula(f"{name}: expected as many calls in {' and '.join(tensors)}")


def is_own(contract: str) -> bool:
    """Whether a contract's name is that of a formula: file.py:name or module:name."""
    return ":" in contract


@functools.lru_cache
def formula(name: str) -> Formula:
    """Return the formula of a name.

    Raises:
        NoFormula: there is none.
        Exception: its module raised it.
    """
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py") and not Path(place).is_file():
        raise NoFormula(f"there is no file {place}")
    found = getattr(load(place), attribute, None)
    if isinstance(found, Formula):
        return found
    known = [one for one, value in vars(load(place)).items() if isinstance(value, Formula)]
    said = "no such name" if found is None else f"a {type(found).__name__}"
    raise NoFormula(
        f"{name}: expected a function decorated with @contract, got {said}; there: "
        f"{', '.join(known) or 'none'}"
    )


__all__ = ["Formula", "NoFormula", "WrongKind", "contract", "detached", "formula", "is_own"]
