"""An oracle run on traced inputs: bounds forward, then backward from the cotangents to the inputs.

A `Traced` value stands for an array. It knows how far a right implementation may be from it, and how a part
of its gradient goes back to what it was made of. Where a value is used several times its gradient is a sum of
parts, which any implementation may add up in any order: the parts' errors add up, and so do their sizes, and
n parts round at most n - 1 times more, that is gamma_(n - 1) of the sum of sizes (Higham 2002, section 4.2).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ..complex_step import Array
from .precision import Bounded, Precision, gamma

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
UFUNCS: dict[Any, Callable[..., Any]] = {}
"""What NumPy's functions of elements do with traced values."""
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""What its other functions do. Steps, and linear arithmetic, enter theirs in both."""
FEW = 64
"""The most elements of an array that is compared by its content: larger ones are by their identity."""


class NotSteps(TypeError):
    """An oracle did with a traced value what is neither a step nor linear; the message names it."""

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation}: expected a step of verified_losses.oracles, or linear arithmetic")


class Blocks(NamedTuple):
    """The blocks in which an implementation may compute logits; each block gives its own part of a sum."""

    rows: int = 0
    """How many rows at once; 0 for all."""
    columns: int = 1
    """Into how many blocks the columns are split."""


class Traits(NamedTuple):
    """What bounds ask of where a value comes from. Taking rows or joining some keeps it."""

    given: bool = False
    """It was given, and is stored in the case's dtype."""
    unit: bool = False
    """Its rows were made of length 1 and stored."""
    parts: int = 1
    """A sum of its elements is made of so many parts at least, stored one by one."""


WHOLE = Blocks()
MADE = Traits()


class Part(NamedTuple):
    """A part of a gradient."""

    error: Array | float
    size: Array | float
    """The magnitudes that it was summed from."""
    parts: Array | float = 1.0
    """The number of parts that it is made of itself, and that may be added up apart."""
    roundings: int = 0
    """How many roundings, in the precision that sums are taken in, `error` does not count yet."""
    settled: bool = True
    """`error` counts that it underflows as it is stored."""

    def map(self, function: Callable[..., Any], *arguments: Any) -> "Part":
        """Return the part of other elements: `function` chooses them."""
        error, size, parts, *others = self
        return Part(*(function(one, *arguments) for one in (error, size, parts)), *others)

    def counted(self, u: float) -> "Part":
        """Return the part with all its roundings in its error."""
        if not self.roundings:
            return self
        return self._replace(error=self.error + gamma(self.roundings, u) * self.size, roundings=0)


class Tape:
    """What was traced, in order, and the bounds that are known already.

    Args:
        p: the arithmetic.
        blocks: in which blocks logits may be computed.
    """

    def __init__(self, p: Precision, blocks: Blocks = WHOLE) -> None:
        self.p, self.blocks = p, blocks
        self._nodes: list[Node] = []
        self._known: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def node(
        self, bounded: Bounded, backward: Callable[[Part], None] | None, traits: Traits = MADE
    ) -> "Node":
        """Return a value whose gradient is added up first, and then goes `backward`."""
        made = Node(self, bounded, backward, traits)
        self.append(made)
        return made

    def append(self, node: "Node") -> None:
        """Add a value whose gradient goes backward."""
        self._nodes.append(node)

    def once(self, function: Callable[..., T], *operands: Any) -> T:
        """Return what a function gives for operands: the same object again for equal ones.

        Ranks that see the same rows, scale and bias so share their logits, and what is made of those.
        """
        key = (function, *map(_key, operands))
        if key not in self._known:
            self._known[key] = function(*operands), operands  # kept, so that no other array gets their id
        found: T = self._known[key][0]
        return found

    def backward(self) -> None:
        """Take every gradient back to the inputs."""
        for node in reversed(self._nodes):
            node.finish()


def _key(operand: Any) -> Any:
    if isinstance(operand, np.ndarray):
        if operand.size <= FEW or operand.dtype.kind in "biu":
            return operand.shape, operand.dtype.str, operand.tobytes()
        return id(operand)
    if isinstance(operand, tuple | list):
        return type(operand), *map(_key, operand)
    if isinstance(operand, slice):
        return slice, operand.start, operand.stop, operand.step
    return type(operand), operand


class Traced(NDArrayOperatorsMixin):
    """A value on a tape. It passes each part of its gradient on to what it was chosen from or joined of."""

    def __init__(
        self,
        tape: Tape,
        bounded: Bounded | Callable[[], Bounded],
        give: Callable[[Part], None],
        traits: Traits,
    ) -> None:
        self._bounded = bounded
        self.tape, self.give, self.traits = tape, give, traits

    @property
    def bounded(self) -> Bounded:
        """The value, and how far a right implementation may be from it."""
        if not isinstance(self._bounded, Bounded):
            self._bounded = self._bounded()
        return self._bounded

    @property
    def shape(self) -> tuple[int, ...]:
        """As NumPy's."""
        return np.shape(self.bounded.value)

    @property
    def ndim(self) -> int:
        """As NumPy's."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """As NumPy's."""
        return int(np.prod(self.shape))

    @property
    def T(self) -> "Traced":
        """As NumPy's."""
        return self._chosen(np.transpose, np.transpose, whole_rows=False)

    @property
    def derived(self) -> bool:
        """Whether it has a gradient: `np.real` gives a constant."""
        return self.give is not nowhere

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> "Traced":
        def back(part: Array) -> Array:
            whole = np.zeros(self.shape)
            np.add.at(whole, index, part)  # rows may be chosen twice
            return whole

        columns = index[1:] if isinstance(index, tuple) else ()
        every = all(isinstance(one, slice) and one == slice(None) for one in columns)
        return self._chosen(_item, back, index, whole_rows=every)

    def __iter__(self) -> NoReturn:
        raise NotSteps("iteration")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotSteps("an array of what is traced")

    def __bool__(self) -> NoReturn:
        raise NotSteps("a condition")

    def __float__(self) -> NoReturn:
        raise NotSteps("float")

    def reshape(self, *shape: Any) -> "Traced":
        """As NumPy's."""

        def back(part: Array) -> Array:
            return np.reshape(part, self.shape)

        return self._chosen(np.reshape, back, _shape(shape), whole_rows=False)

    def sum(self) -> "Traced":
        """Return the sum of all elements."""
        added: Traced = FUNCTIONS[np.sum](self)
        return added

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        rule = UFUNCS.get(ufunc) if method == "__call__" and not kwargs else None
        if rule is None:
            raise NotSteps(ufunc.__name__)
        return rule(*inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        rule = FUNCTIONS.get(function)
        if rule is None:
            raise NotSteps(function.__name__)
        try:
            return rule(*args, **kwargs)
        except NotSteps:
            raise
        except TypeError as error:  # an argument that the rule has not
            raise NotSteps(f"{function.__name__} with {sorted(kwargs) or 'these arguments'}") from error

    def _chosen(
        self, choose: Callable[..., Array], back: Callable[[Array], Array], *arguments: Any, whole_rows: bool
    ) -> "Traced":
        """Return elements of this value, given how the parts of their gradients go back.

        Args:
            choose: takes the value, and returns the elements.
            back: takes what the elements are given, and returns it in the value's shape.
            arguments: what else `choose` takes.
            whole_rows: each row of the elements is one of the value's.
        """
        bounded = self.tape.once(_both, choose, self.bounded, arguments)
        shape = np.shape(bounded.value)

        def give(part: Part) -> None:
            self.give(part.map(lambda one: back(np.broadcast_to(one, shape))))

        unit = self.traits.unit and whole_rows and len(shape) == self.ndim
        return Traced(self.tape, bounded, give, self.traits._replace(unit=unit))


def _both(choose: Callable[..., Array], bounded: Bounded, arguments: tuple[Any, ...]) -> Bounded:
    return Bounded(*(choose(one, *arguments) for one in bounded))


def _item(array: Array, index: Any) -> Array:
    chosen: Array = np.asarray(array[index])
    return chosen


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(shape[0]) if shape and isinstance(shape[0], tuple | list) else shape


class Node(Traced):
    """A value whose gradient is added up first."""

    def __init__(
        self,
        tape: Tape,
        bounded: Bounded | Callable[[], Bounded],
        backward: Callable[[Part], None] | None,
        traits: Traits,
    ) -> None:
        super().__init__(tape, bounded, self._add, traits)
        self._backward = backward
        self._sum: Part | None = None
        self._alone = True

    def _add(self, part: Part) -> None:
        part = part._replace(parts=part.parts * np.greater(part.size, 0))
        if self._sum is None:
            self._sum = part
            return
        self._alone = False
        one, other = (each.counted(self.tape.p.accumulated) for each in (self._sum, part))
        self._sum = Part(
            one.error + other.error, one.size + other.size, one.parts + other.parts, settled=False
        )

    @property
    def gradient(self) -> Part | None:
        """The sum of all parts, its rounding and underflow counted; None where nothing has reached it."""
        if self._sum is None or (self._alone and self._sum.settled):
            return self._sum
        p, (error, size, parts, *_) = self.tape.p, self._sum.counted(self.tape.p.accumulated)
        # of more parts than 1/u the relative error is infinite, which nothing is multiplied with
        added = gamma(np.where(np.asarray(size) > 0, np.maximum(np.subtract(parts, 1), 0), 0), p.stored)
        return Part(error + added * size + p.tiny, size, parts)

    def finish(self) -> None:
        """Take the gradient back to what the value was made of."""
        gradient = self.gradient
        if gradient is not None and self._backward is not None:
            self._backward(gradient)


def tape_of(*operands: Any) -> Tape:
    """Return the tape that traced operands, at least one, are on."""
    return next(one.tape for one in operands if isinstance(one, Traced))


def bounded(operand: Any) -> Bounded:
    """Return the bounds of an operand, which is exact where it is a constant."""
    if isinstance(operand, Traced):
        return operand.bounded
    value = np.asarray(operand, float)
    return Bounded(value, np.zeros(value.shape))


def give(operand: Any, part: Part) -> None:
    """Give a part of its gradient to an operand; a constant has none."""
    if isinstance(operand, Traced):
        operand.give(part)


def nowhere(part: Part) -> None:
    """Take the gradient of a constant."""


def step(rule: Callable[..., Any]) -> Callable[[F], F]:
    """Mark a function of an oracle as a step: of traced values it returns what `rule` does.

    Args:
        rule: takes the same arguments, and returns a traced value.
    """

    def marked(function: F) -> F:
        @functools.wraps(function)
        def either(*args: Any, **kwargs: Any) -> Any:
            chosen = rule if _has_traced((args, tuple(kwargs.values()))) else function
            return chosen(*args, **kwargs)

        return either  # type: ignore[return-value]

    return marked


def _has_traced(value: Any) -> bool:
    return any(map(_has_traced, value)) if isinstance(value, tuple | list) else isinstance(value, Traced)


def trace(
    function: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    inputs: Sequence[dict[str, Array]],
    cotangents: Sequence[dict[str, Array]],
    p: Precision,
    blocks: Blocks = WHOLE,
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Return how far rounding may take every rank's terms, and every gradient.

    Args:
        function: takes every rank's inputs by name, and returns every rank's terms by name: an oracle.
        inputs: every rank's. Floats have a gradient; others are given to the function as they are.
        cotangents: every rank's, by the terms' names.
        p: the arithmetic.
        blocks: in which blocks logits may be computed.

    Raises:
        NotSteps: the function does with an input what is neither a step nor linear.
    """
    tape = Tape(p, blocks)
    leaves: list[dict[str, Node]] = []
    for given in inputs:
        floats = {name: array for name, array in given.items() if np.issubdtype(array.dtype, np.floating)}
        leaves.append(
            {
                name: tape.node(Bounded(array, np.zeros(array.shape)), None, Traits(given=True))
                for name, array in floats.items()
            }
        )
    terms = []
    for found, rank in zip(
        function([{**given, **own} for given, own in zip(inputs, leaves, strict=True)]),
        cotangents,
        strict=True,
    ):
        errors = {}
        for name, term in found.items():
            if isinstance(term, Traced):
                errors[name] = np.asarray(term.bounded.error)
                term.give(Part(np.zeros(term.shape), abs(np.asarray(rank[name], float))))
            else:
                errors[name] = p.stored * abs(np.real(term))  # a constant is rounded as it is stored
        terms.append(errors)
    tape.backward()
    gradients = [{name: _error(leaf, p) for name, leaf in own.items()} for own in leaves]
    return terms, gradients


def _error(leaf: Node, p: Precision) -> Array:
    """Return the error of an input's gradient; one that nothing has reached may be stored as zeros."""
    gradient = leaf.gradient
    error: Array = np.zeros(leaf.shape) + (p.tiny if gradient is None else gradient.counted(p.stored).error)
    return error
