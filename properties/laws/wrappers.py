"""Laws of what a loss is wrapped in: torch.func, and inputs that are subclasses of tensors.

Terms and gradients are compared with those of a plain call, which other laws compare with the oracle's.
"""

from collections.abc import Callable
from dataclasses import replace

from hypothesis import assume
from hypothesis import strategies as st

from ..contracts import Contract
from ..examples import Example
from ..reference import Reference
from ..standalone.acts import Call, Outcome
from ..standalone.judges import judge_near
from ..standalone.wrapped import (
    SCALE,
    derive_functionally,
    map_over_scales,
    run_replicated,
    run_subclassed,
)
from ..subjects import Subject
from ..worlds import WorldError
from . import SUBCLASSES, TRANSFORMS, Bench, Law, Unanswered
from .compiled import widest_examples
from .objects import compare_near

NO_SCALE = "the target takes its scale as a number, or holds it itself"
NO_DTENSORS = "torch, or the target, raises where inputs are DTensors"
RAISING_TRANSFORMS = "torch.func raises"
RAISING_SUBCLASSES = "a tensor subclass raises"
"""Limits of a target."""

Act = Callable[[list[Call]], list[Outcome]]


@st.composite
def _alike(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = draw(widest_examples(contract, subject, world_size)).case
    return Example(replace(case, wide_scalars=False))


@st.composite
def _of_pairs(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    # torch mixes a DTensor with one label alone
    case = draw(_alike(contract, subject, world_size)).case
    case = replace(case, rows=tuple(max(n, 2) for n in case.rows))
    assume(contract.defined(case))
    return Example(case)


def _compare(bench: Bench, reference: Reference, act: Act, note: str, word: str, limit: str) -> float:
    """Compare a wrapped call with a plain one, or with a TypeError that has a word.

    Of a target that promises nothing any error is a limit in one process. Over ranks, and where limits are
    judged as defects, it is none either: few losses take all of this.
    """
    try:
        ranks = bench.act(act, reference.case)
    except WorldError as error:
        if bench.subject.stated and all(_says(rank.detail, word) for rank in error.ranks):
            return 0.0
        raised = [rank.detail for rank in error.ranks if rank.state == "raised"]
        if bench.subject.stated or not raised:
            raise
        why = raised[0].strip().splitlines()[-1]
        unsaid = bench.subject.strict or bench.world.size > 1
        raise Unanswered(why, whatever=True, limit="" if unsaid else limit) from error
    return max(
        compare_near(reference, rank, note, wrapped, plain) for rank, (plain, wrapped) in enumerate(ranks)
    )


def _says(trace: str, word: str) -> bool:
    """Whether an error is a TypeError, and its message has a word."""
    return any(line.startswith("TypeError: ") and word in line for line in trace.strip().splitlines())


def torch_func_equals_autograd(bench: Bench, reference: Reference) -> float:
    """`torch.func.vjp` gives the terms and gradients that autograd gives, or the call raises."""
    of = bench, reference, derive_functionally
    return _compare(*of, "by torch.func", "torch.func", RAISING_TRANSFORMS)


def scales_may_be_mapped(bench: Bench, reference: Reference) -> float:
    """`torch.vmap` over a batch of scales gives the terms and gradients of each alone, or the call raises."""
    if SCALE in bench.subject.constants or SCALE not in reference.inputs[0]:
        raise Unanswered(NO_SCALE, whatever=True)
    of = bench, reference, map_over_scales
    return _compare(*of, "by torch.vmap over scales", "torch.func", RAISING_TRANSFORMS)


def subclasses_equal_tensors(bench: Bench, reference: Reference) -> float:
    """Features of a tensor subclass and scalars that are parameters give what plain tensors give."""
    of = bench, reference, run_subclassed
    return _compare(*of, "of a tensor subclass", "subclass", RAISING_SUBCLASSES)


def dtensors_equal_tensors(bench: Bench, reference: Reference) -> float:
    """DTensors that are replicated over one rank give what plain tensors give, or the call raises."""
    try:
        return _compare(bench, reference, run_replicated, "of DTensors", "DTensor", RAISING_SUBCLASSES)
    except Unanswered as error:  # most often of torch, as it mixes no DTensor with what a loss makes itself
        raise Unanswered(NO_DTENSORS, whatever=True) from error


def _is_loss(contract: Contract) -> bool:
    return contract.is_loss and not contract.holds


def _has_scale(contract: Contract) -> bool:
    return _is_loss(contract) and SCALE in contract.differentiable


LAWS = [
    Law("torch.func equals autograd", torch_func_equals_autograd, draw=_alike, share=0.12, simulated=False,
        applies=_is_loss, concerns=TRANSFORMS, act=derive_functionally, judge=judge_near),
    Law("scales may be mapped", scales_may_be_mapped, draw=_alike, share=0.12, worlds="one",
        applies=_has_scale, concerns=TRANSFORMS, act=map_over_scales, judge=judge_near),
    Law("subclasses equal tensors", subclasses_equal_tensors, draw=_alike, share=0.12, simulated=False,
        applies=_is_loss, concerns=SUBCLASSES, act=run_subclassed, judge=judge_near),
    Law("DTensors equal tensors", dtensors_equal_tensors, draw=_of_pairs, worlds="one", share=0.12,
        needs="cpu", applies=_is_loss, concerns=SUBCLASSES, act=run_replicated,
        judge=judge_near),
]  # fmt: skip
