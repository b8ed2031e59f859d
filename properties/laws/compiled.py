"""What torch.compile makes of a loss."""

import dataclasses

from hypothesis import assume
from hypothesis import strategies as st

from ..cases import Case
from ..contracts import Contract
from ..running import Step
from ..subjects import Subject
from ..worlds import World
from . import Law, compare_types, observe
from .gradients import compare_gradients
from .values import compare_terms


def compilable(case: Case) -> Case:
    """Return the case in float64, where no rounding hides a gradient that flows where it should not."""
    return dataclasses.replace(case, cotangents="ones", dtype="float64", wide_scalars=False)


def compiled_equals_eager(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Under torch.compile (backend aot_eager) terms and gradients are those of eager mode."""
    case = compilable(case)
    (outcomes,) = observe(contract, subject, world, [Step(case, "compiled")])
    inputs = contract.inputs(case)
    terms = compare_terms(contract, case, {"": outcomes}, inputs)
    return max(terms, compare_gradients(contract, case, outcomes, inputs))


@st.composite
def _half(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Case:
    halves = [dtype for dtype in ("bfloat16", "float16") if dtype in subject.dtypes]
    assume(halves)
    return dataclasses.replace(compilable(draw(contract.cases(subject, world_size))), dtype=halves[0])


def compiled_keeps_dtypes(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Under torch.compile (backend aot_eager) half-precision inputs give the dtypes of eager mode."""
    eager, compiled = observe(contract, subject, world, [case, Step(case, "compiled")])
    for rank, (one, other) in enumerate(zip(eager, compiled, strict=True)):
        compare_types(rank, other, [one.types], f"terms in {one.types}, as eager")
    return 0.0


LAWS = [
    Law("compiled keeps dtypes", compiled_keeps_dtypes, draw=_half, share=0.04, patience=4.0,
        worlds="two", simulated=False,
        applies=lambda contract: contract.is_loss),
    Law("compiled equals eager", compiled_equals_eager, share=0.12, patience=4.0,
        worlds="two", simulated=False,
        applies=lambda contract: contract.is_loss),
]  # fmt: skip
