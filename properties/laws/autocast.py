"""Laws of autocast.

Inputs of float32 hold what half precision holds. Under autocast they are rounded, multiplied and added up as
those of half precision are, or in float32, which is less: the bounds of half precision are theirs too.
"""

import dataclasses
from functools import partial

from hypothesis import assume
from hypothesis import strategies as st

from ..contracts import Contract
from ..examples import Example, Mode, Step
from ..names import HALVES
from ..reference import Reference
from ..subjects import Subject
from . import AUTOCAST, Bench, Law
from .gradients import compare_gradients, unweighted
from .values import compare_terms

MODES: dict[str, Mode] = {"bfloat16": "autocast bfloat16", "float16": "autocast float16"}


@st.composite
def _widened(
    draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int, dtype: str = HALVES[0]
) -> Example:
    """Draw a case in half precision, whose tensors are of float32; of those that state it, one is not."""
    assume(dtype in subject.dtypes)
    case = unweighted(draw(contract.cases(subject, world_size)))
    case = dataclasses.replace(case, dtype=dtype, wide_scalars=False)
    assume(contract.defined(case))
    names = [name for name, array in contract.inputs(case)[0].items() if array.dtype.kind == "f"]
    towers = [name for name in names if name not in contract.scalars and name != "bias"]
    narrow = draw(st.sampled_from([None, *towers])) if subject.stated else None
    return Example(dataclasses.replace(case, widened=tuple(name for name in names if name != narrow)))


def equals_oracle_under_autocast(bench: Bench, reference: Reference) -> float:
    """Under autocast terms and gradients equal the oracle's, within the bounds of half precision."""
    case = reference.case
    (outcomes,) = bench.observe([Step(case, MODES[case.dtype])])
    return max(
        compare_terms(reference, {"": outcomes}, bench.subject.strict), compare_gradients(reference, outcomes)
    )


LAWS = [
    Law(f"{dtype} autocast equals the oracle", equals_oracle_under_autocast,
        draw=partial(_widened, dtype=dtype), share=0.2, concerns=AUTOCAST, modes=(mode,), prepare=unweighted,
        interpreted=False, applies=lambda contract: contract.is_loss)
    for dtype, mode in MODES.items()
]  # fmt: skip
