"""Laws of torch.compile."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from typing import TypeVar

from hypothesis import assume
from hypothesis import strategies as st

from ..cases import Case
from ..contracts import Contract
from ..examples import Example, Step
from ..names import DTYPES, HALVES
from ..reference import Reference
from ..standalone.acts import Outcome
from ..standalone.inductor import run_by_inductor
from ..subjects import Subject
from ..worlds import WorldError
from . import COMPILE, Bench, Law, Unanswered, compare_types
from .gradients import compare_gradients
from .values import compare_terms

T = TypeVar("T")


def compilable(case: Case) -> Case:
    """Return the case with cotangents of one, and scalars in the dtype of the features."""
    return dataclasses.replace(case, cotangents="ones", wide_scalars=False)


def compiled_equals_eager(bench: Bench, reference: Reference) -> float:
    """Under torch.compile (backend aot_eager) terms and gradients are those of eager mode."""
    reference = bench.reference(compilable(reference.case))
    (outcomes,) = _observed(bench, Step(reference.case, "compiled"))
    return max(
        compare_terms(reference, {"": outcomes}, bench.subject.strict), compare_gradients(reference, outcomes)
    )


COMPILING = ("torch/_dynamo/convert_frame.py", "torch/_inductor/compile_fx.py")
"""Of these one is on the stack while torch compiles, and none while compiled code runs."""
TOO_LONG = "torch.compile took longer than a call may: a loop over rows is compiled row by row"


def _observed(bench: Bench, *steps: Step | Case) -> list[list[Outcome]]:
    """Run the subject; where the time is over while torch compiles, nothing is seen of the target.

    Raises:
        Unanswered: torch was compiling when the time was over.
    """
    return _unless_compiling(lambda: bench.observe(steps))


def _unless_compiling(observe: Callable[[], T]) -> T:
    try:
        return observe()
    except WorldError as error:
        if any(
            rank.state == "hung" and any(file in rank.detail for file in COMPILING) for rank in error.ranks
        ):
            raise Unanswered(TOO_LONG, whatever=True) from error
        raise


@st.composite
def widest_examples(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw a case of the widest dtype: a gradient that should not flow is least lost in its bound."""
    widest = min(subject.dtypes, key=DTYPES.index)
    return Example(dataclasses.replace(draw(contract.cases(subject, world_size)), dtype=widest))


@st.composite
def _half(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    halves = [dtype for dtype in HALVES if dtype in subject.dtypes]
    assume(halves)
    case = compilable(draw(contract.cases(subject, world_size)))
    return Example(dataclasses.replace(case, dtype=halves[0]))


def compiled_keeps_dtypes(bench: Bench, reference: Reference) -> float:
    """Under torch.compile (backend aot_eager) half-precision inputs give the dtypes of eager mode."""
    case = reference.case
    eager, compiled = _observed(bench, case, Step(case, "compiled"))
    for rank, (one, other) in enumerate(zip(eager, compiled, strict=True)):
        compare_types(rank, other, [one.types], f"terms in {one.types}, as eager")
    return 0.0


@st.composite
def _of_any_rows(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    """Draw a call, whose shapes are fixed, or one after a call of other rows, whose shapes are dynamic."""
    last = compilable(draw(contract.cases(subject, world_size)))
    if not draw(st.booleans()):
        return Example(last)
    more = draw(st.integers(1, 3))
    first = dataclasses.replace(last, rows=tuple(n + more for n in last.rows), seed=last.seed + 1)
    assume(contract.defined(first))
    return Example(last, (Step(first),))


def inductor_equals_oracle(bench: Bench, reference: Reference) -> float:
    """By torch.compile's inductor, with fixed or dynamic shapes, terms and gradients equal the oracle's."""
    if why := missing_compiler():
        raise Unanswered(why, whatever=True)
    steps: tuple[Step | Case, ...] = (*reference.example.steps, reference.case)
    outcomes = [last for (last,) in _unless_compiling(lambda: bench.act(run_by_inductor, *steps))]
    return max(
        compare_terms(reference, {"": outcomes}, bench.subject.strict), compare_gradients(reference, outcomes)
    )


def missing_compiler() -> str:
    """Return why inductor can compile nothing for a CPU here; nothing where it can."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return "" if shutil.which(name) else f"there is no C++ compiler {name}, which inductor needs"


LAWS = [
    Law("compiled keeps dtypes", compiled_keeps_dtypes, draw=_half, share=0.04, patience=4.0,
        worlds="two or one", simulated=False, interpreted=False, modes=("compiled",), concerns=COMPILE,
        applies=lambda contract: contract.is_loss),
    Law("compiled equals eager", compiled_equals_eager, draw=widest_examples, share=0.12, patience=4.0,
        worlds="two or one", simulated=False, interpreted=False, modes=("compiled",), prepare=compilable,
        concerns=COMPILE, applies=lambda contract: contract.is_loss),
    Law("inductor equals the oracle", inductor_equals_oracle, draw=_of_any_rows, share=0.16, patience=12.0,
        worlds="two or one", simulated=False, interpreted=False, modes=("compiled",), prepare=compilable,
        concerns=COMPILE, applies=lambda contract: contract.is_loss, act=run_by_inductor, needs="cpu",
        by_inductor=True),
]  # fmt: skip
