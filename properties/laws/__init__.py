"""The properties: predicates over a bench and a reference that raise `Falsified`.

A law returns the worst error as a fraction of its bound; laws about bits or types return 0.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption
from numpy.typing import ArrayLike

from verified_losses.oracles.complex_step import Array

from .. import devices
from ..cases import Case
from ..contracts import Contract, contract_of
from ..examples import Example, Mode, Step
from ..process_state import preserved
from ..reference import Reference, reference
from ..running import perform
from ..standalone.acts import Call, Outcome, run_each
from ..standalone.judges import Judge
from ..subjects import Subject
from ..worlds import World
from ..worlds.single import SingleWorld
from ..worlds.table import KINDS

INFERENCE = "under inference mode"
"""Where a place is of a call without gradient."""

TRAINING = "training"
SECOND_DERIVATIVES = "second derivatives"
COTANGENTS = "cotangents"
LAYOUTS = "layouts"
COMPILE = "torch.compile"
EVAL = "eval mode"
INFERENCE_MODE = "inference mode"
REUSE = "cached labels"
TRACES = "traces"
FROZEN = "inputs frozen on some ranks"
AUTOCAST = "autocast"
TRANSFORMS = "torch.func"
SUBCLASSES = "tensor subclasses"
HOSTILE = "inputs that nobody should send"
"""Whom something wrong concerns: everyone who trains, or those who do something that not everyone does."""

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """What is wrong, and where: from this a counterexample file is written."""

    kind: str
    """"term", "gradient", "second derivative", or what else of the output: "shape", "structure"."""
    name: str = ""
    """Of the term or of the input."""
    rank: int | None = None
    """None is the mean over ranks."""
    note: str = ""
    """In which circumstances."""
    index: tuple[int, ...] = ()
    """The worst element."""
    along: Array | None = None
    """The direction of a derivative that is not one element's."""
    expected: Any = None
    observed: Any = None
    bound: float = 0.0

    @property
    def what(self) -> str:
        """The thing that is wrong, wherever it is."""
        if self.kind == "term":
            return self.name
        return f"{self.kind} of {self.name}" if self.name else self.kind

    def __str__(self) -> str:
        where = "mean over ranks of " if self.rank is None else f"rank {self.rank}, "
        at = f" at {list(self.index)}" if self.index else ""
        return f"{where}{self.what}{' ' * bool(self.note)}{self.note}{at}"


class Falsified(AssertionError):
    """A law does not hold; the message says where, and what was expected."""

    def __init__(self, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.place = place


class Unanswered(UnsatisfiedAssumption):
    """A law says nothing about a case, for this reason.

    Args:
        reason: in words.
        whatever: it says nothing about the subject's other cases either.
        limit: what the subject does not support, where that is the reason.
    """

    def __init__(self, reason: str, whatever: bool = False, limit: str = "") -> None:
        super().__init__(reason)
        self.words = reason
        self.whatever = whatever
        self.limit = limit


@st.composite
def plain_examples(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw a case and nothing else."""
    return Example(draw(contract.cases(subject, world_size)))


@dataclass(frozen=True)
class Bench:
    """A subject, and the worlds in which laws observe it."""

    contract: Contract
    subject: Subject
    world: World
    single: World
    """One process, which holds the whole batch."""

    @property
    def alone(self) -> "Bench":
        """The same subject in the single process."""
        return replace(self, world=self.single)

    def reference(self, case: Case) -> Reference:
        """Return what another case must give."""
        return reference(self.contract, Example(case))

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """As `World.run`; what the function changes in the processes it runs in is put back."""
        return self.world.run(_preserving, function, *arguments)

    def act(self, act: Callable[[list[Call]], T], *steps: Step | Case) -> list[T]:
        """Let every rank do with the subject what an act does with the calls of these steps."""
        listed = [step if isinstance(step, Step) else Step(step) for step in steps]
        return self.run(perform, self.subject, self.contract, act, listed)

    def observe(self, steps: Iterable[Step | Case]) -> list[list[Outcome]]:
        """Run the subject on every rank; return the outcomes of each step, rank by rank."""
        return [list(outcomes) for outcomes in zip(*self.act(run_each, *steps), strict=True)]

    def by_mode(self, case: Case) -> dict[str, list[Outcome]]:
        """Run the subject with gradient, and apart from that under inference mode: outcomes by note."""
        (train,) = self.observe([case])
        if not self.subject.inference:
            return {"": train}
        (inference,) = self.observe([Step(case, "inference")])
        return {"": train, INFERENCE: inference}


@dataclass(frozen=True)
class Law:
    """A property, and what it applies to."""

    name: str
    check: Callable[[Bench, Reference], float]
    worlds: Literal["any", "one", "two", "two or one", "several", "four or more"] = "any"
    """Of how many ranks; "two or one": of one alone where no two processes are verified."""
    applies: Callable[[Contract], bool] = lambda contract: True
    draw: Callable[[Contract, Subject, int], st.SearchStrategy[Example]] = plain_examples
    takes: Callable[[Case], bool] = lambda case: False
    """Whether it can be asked about a case that was drawn for another law, if it draws others itself."""
    simulated: bool = True
    """Whether it may run where ranks are threads of one process, as in simulated worlds."""
    drawn_alone: bool = False
    """Whether it may run in simulated worlds alone: elsewhere what waits for ever takes long."""
    interpreted: bool = True
    """Whether it is asked of kernels in Triton's interpreter, which takes long for large cases."""
    patience: float = 1.0
    """How much longer than others a call may take."""
    stated: bool = False
    """Whether it is asked of those alone that state what they do with inputs that nobody should send."""
    by_inductor: bool = False
    """Whether it is asked of those alone that are to be compiled by inductor, which takes minutes."""
    needs: str = ""
    """The kind of device that it is about, where that is one kind: "cpu" or "cuda"."""
    share: float = 1.0
    """The share of `max_examples` that is drawn: costly laws take fewer."""
    concerns: str = TRAINING
    """Whom it concerns where it does not hold; its smallest case may narrow that."""

    # what a counterexample shows of it
    by_law: bool = False
    """Whether the law itself judges, as a call of its own would show nothing."""
    act: Callable[..., Any] = run_each
    """What each rank does with its calls."""
    judge: Judge | None = None
    """How it is judged; None by what was found wrong, as what one call gives."""
    modes: tuple[Mode, ...] = ("train",)
    """Under which modes of torch it calls."""
    prepare: Callable[[Case], Case] = lambda case: case
    """Returns the case that it calls with, for the one that was drawn."""
    other: tuple[str, str, Callable[[Case], Case]] | None = None
    """A second call: its name, what it is given in words, and its case."""

    def is_of(self, device: str) -> bool:
        """Whether the law says anything about what runs on a device."""
        return self.needs in ("", devices.kind_of(device))

    def fits(self, contract: Contract, world_size: int) -> bool:
        """Whether the law says anything about a contract in a world of this size."""
        sizes = {
            "any": True,
            "one": world_size == 1,
            "two": world_size == 2,
            "two or one": world_size <= 2,
            "several": world_size > 1,
            "four or more": world_size >= 4,
        }
        fits = sizes[self.worlds] and world_size >= contract.smallest_world
        return fits and self.applies(contract)


def _preserving(rank: int, world_size: int, function: Callable[..., T], *arguments: object) -> T:
    with preserved():
        return function(rank, world_size, *arguments)


def compare(
    place: Place,
    observed: ArrayLike,
    expected: ArrayLike,
    bound: ArrayLike,
    largest: float = np.finfo(np.float64).max,
    summed: int = 1,
) -> float:
    """Return the worst error over bound of what is at `place`.

    What is expected to be no number, or may be larger than `largest`, is not judged. Neither is what is not
    finite where the sum before a mean, `summed` times what is expected, may be larger: torch's cross-entropy
    forms it in float16 on a CPU.

    Raises:
        Falsified: an error is over its bound, or a value is not a number where one is expected.
    """
    seen, right, allowed = (np.asarray(value, dtype=np.float64) for value in (observed, expected, bound))
    if seen.shape != right.shape:
        raise misshapen(place, seen.shape, right.shape)
    if seen.size == 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = abs(seen - right)
        ratio = np.where(error == 0, 0.0, error / np.broadcast_to(allowed, error.shape))
        # what is not finite may be what rounding takes beyond the largest value
        slack = np.where(np.isfinite(seen) | ~np.isfinite(allowed), 0, allowed)
        most = np.where(np.isfinite(seen), 1, summed) * abs(right)
        beyond = ~(most + slack <= largest)
    ratio = np.where(beyond, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    if ratio[worst] > 1:
        found = replace(
            place,
            index=tuple(int(i) for i in worst) or place.index,
            expected=float(right[worst]),
            observed=float(seen[worst]),
            bound=float(np.broadcast_to(allowed, error.shape)[worst]),
        )
        wrong = f"error {error[worst]:.3g} is {ratio[worst]:.3g} times its bound"
        if not np.isfinite(seen[worst]):
            wrong = "which is not finite"
        # what cancels in the oracle, and is nothing beside the error, is 0 to a reader
        is_nothing = error[worst] + abs(right[worst]) == error[worst] and abs(right[worst]) <= found.bound
        shown = 0.0 if is_nothing else right[worst]
        raise Falsified(
            f"{found}: expected {shown:.9g}, observed {seen[worst]:.9g}, {wrong}",
            found,
        )
    return float(ratio[worst])


def misshapen(place: Place, observed: tuple[int, ...], expected: tuple[int, ...]) -> Falsified:
    """Return what to raise where something has another shape than it should."""
    seen, right = list(observed), list(expected)
    shape = Place("shape", place.what, place.rank, place.note, expected=right, observed=seen)
    return Falsified(f"{place}: expected shape {right}, observed {seen}", shape)


def compare_types(rank: int, outcome: Outcome, allowed: list[list[str]], words: str) -> None:
    """Compare the dtypes and devices of a rank's terms with those allowed, in `words`.

    Raises:
        Falsified: they are others.
    """
    if outcome.types not in allowed:
        place = Place("dtype and device", rank=rank, expected=allowed, observed=outcome.types)
        raise Falsified(f"rank {rank}: expected {words}, observed {outcome.types}", place)


def check_again(law: str, contract: str, subject: Subject, world: str, example: str, seconds: float) -> None:
    """Check a law by its name, on an example in JSON, in a kind of world.

    Raises:
        Exception: what falsifies it.
    """
    (asked,) = [one for one in laws() if one.name == law]
    found, held_to = Example.from_json(example), contract_of(contract).in_form(subject.form)
    kind, size, device = KINDS[world], found.case.world_size, found.case.device
    ranks: World = (
        kind.inside(size, found.schedule, found.sends, seconds, device)
        if kind.inside
        else kind.processes(size, seconds, subject.resolve, device)
    )
    asked.check(Bench(held_to, subject, ranks, SingleWorld()), Reference(held_to, found))


def laws() -> list[Law]:
    """Return every law, the most telling first."""
    from . import (
        autocast,
        communication,
        compiled,
        cuda,
        gradients,
        hostile,
        hygiene,
        large,
        metamorphic,
        objects,
        ranks,
        values,
        wrappers,
    )

    modules = (
        values, gradients, autocast, compiled, communication, ranks, hygiene, objects, wrappers, metamorphic,
        hostile, large, cuda,
    )  # fmt: skip
    return [law for module in modules for law in module.LAWS]
