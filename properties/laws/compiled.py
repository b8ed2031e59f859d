"""Laws of torch.compile."""

import dataclasses

from hypothesis import assume
from hypothesis import strategies as st

from ..cases import Case
from ..contracts import Contract
from ..examples import Example, Step
from ..names import DTYPES, HALVES
from ..reference import Reference
from ..standalone.acts import Outcome
from ..subjects import Subject
from ..worlds import WorldError
from . import COMPILE, Bench, Law, Unanswered, compare_types
from .gradients import compare_gradients
from .values import compare_terms


def compilable(case: Case) -> Case:
    """Return the case with cotangents of one, and scalars in the dtype of the features."""
    return dataclasses.replace(case, cotangents="ones", wide_scalars=False)


def compiled_equals_eager(bench: Bench, reference: Reference) -> float:
    """Under torch.compile (backend aot_eager) terms and gradients are those of eager mode."""
    reference = bench.reference(compilable(reference.case))
    (outcomes,) = _observed(bench, Step(reference.case, "compiled"))
    return max(compare_terms(reference, {"": outcomes}), compare_gradients(reference, outcomes))


COMPILING = "torch/_dynamo/convert_frame.py"
"""What is on the stack while torch compiles, and not while compiled code runs."""
TOO_LONG = "torch.compile took longer than a call may: a loop over rows is compiled row by row"


def _observed(bench: Bench, *steps: Step | Case) -> list[list[Outcome]]:
    """Run the subject; where the time is over while torch compiles, nothing is seen of the target.

    Raises:
        Unanswered: torch was compiling when the time was over.
    """
    try:
        return bench.observe(steps)
    except WorldError as error:
        if any(rank.state == "hung" and COMPILING in rank.detail for rank in error.ranks):
            raise Unanswered(TOO_LONG, whatever=True) from error
        raise


@st.composite
def _widest(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    # the less is rounded, the fewer gradients that should not flow are lost in the bound
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


LAWS = [
    Law("compiled keeps dtypes", compiled_keeps_dtypes, draw=_half, share=0.04, patience=4.0,
        worlds="two or one", simulated=False, interpreted=False, modes=("compiled",), concerns=COMPILE,
        applies=lambda contract: contract.is_loss),
    Law("compiled equals eager", compiled_equals_eager, draw=_widest, share=0.12, patience=4.0,
        worlds="two or one", simulated=False, interpreted=False, modes=("compiled",), prepare=compilable,
        concerns=COMPILE, applies=lambda contract: contract.is_loss),
]  # fmt: skip
