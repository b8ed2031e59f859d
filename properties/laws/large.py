"""Laws of what changes beyond the sizes of chunks in use: 512, 1,024, 2,048, 4,096 and 8,192.

One process meets them, on narrow tensors: many pairs, many tokens of a small vocabulary, few of a wide one.
"""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from ..cases import Case
from ..contracts import Contract, with_few_tiles
from ..examples import Example
from ..reference import Reference
from ..subjects import Subject
from ..worlds import WorldError
from . import Bench, Law, Unanswered
from .gradients import SUMMED_IN_ITSELF, compare_gradients
from .values import compare_terms

CHUNKS = (1024, 4096, 8192, 8192)
"""What a number of tokens, or of classes, is just beyond: most often all sizes of chunks."""
PAIRS = (1024,)
LARGE_PAIRS = (4096,)
"""What a number of pairs is just beyond, where a subject is asked for `large` ones: the oracle squares it."""
MOST_BEYOND = 40
VARIED = ("unit", "large", "grid", "saturated", "opposite", "duplicates")
"""Patterns of rows that differ from chunk to chunk: the first case, often the only one, has the first."""
WIDTH = 3
DIRECTIONS = 4
"""How many a large case is derived along; one where the oracle takes seconds for each."""


def _wider(draw: st.DrawFn, case: Case, subject: Subject) -> Case:
    """Return the case in float32 or float64, if the subject takes one of them."""
    dtypes = [dtype for dtype in SUMMED_IN_ITSELF if dtype in subject.dtypes]
    if not dtypes:
        return case
    # scalars are wider than features in half precision alone
    return dataclasses.replace(case, dtype=draw(st.sampled_from(dtypes)), wide_scalars=False)


@st.composite
def _many_pairs(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = draw(contract.cases(subject, world_size))
    sizes = LARGE_PAIRS if subject.large and not contract.whole else PAIRS
    pairs = draw(st.sampled_from(sizes)) + draw(st.integers(1, MOST_BEYOND))
    case = dataclasses.replace(
        case,
        rows=(pairs,),
        pattern=draw(st.sampled_from(VARIED)),
        width=subject.width_of(min(case.width, WIDTH)),
        teacher_width=min(case.teacher_width, WIDTH),
        length=1,
        vocabulary=min(case.vocabulary, WIDTH),
    )
    # a sum of so many terms in half precision has a bound that says little
    case = _wider(draw, case, subject)
    assume(not contract.whole or contract.defined(case))
    return Example(with_few_tiles(case))


@st.composite
def _many_logits(draw: st.DrawFn, contract: Contract, subject: Subject, world_size: int) -> Example:
    case = draw(contract.cases(subject, world_size))
    size = draw(st.sampled_from(CHUNKS)) + draw(st.integers(1, MOST_BEYOND))
    shape: dict[str, Any] = {"vocabulary": min(case.vocabulary, WIDTH), "length": min(case.length, WIDTH)}
    shape["rows"] = (min(case.rows[0], WIDTH),)
    # where logits have two dimensions, a row is a token
    kind = draw(st.sampled_from(["vocabulary", "rows" if contract.in_order else "length"]))
    shape |= {"rows": (size,), "length": 1} if kind == "rows" else {kind: size}
    pads = case.pads if case.pads in ("tail", "inside") else "none"
    width = subject.width_of(min(case.width, WIDTH))
    case = dataclasses.replace(
        case,
        **shape,
        pattern=draw(st.sampled_from(VARIED)),
        width=width,
        pads=pads,
        pad_rows=0,
    )
    if draw(st.integers(0, 3)) < 3:  # half precision hides what a few of so many classes change
        case = _wider(draw, case, subject)
    assume(contract.defined(case))
    return Example(case)


def large_equals_oracle(bench: Bench, reference: Reference) -> float:
    """Terms and gradients of large cases equal the oracle's, in one call."""
    if not all(np.isfinite(one).all() for one in reference.bounds.terms[0].values()):
        raise Unanswered("errors may turn a comparison of the formula over, and then nothing bounds it")
    try:
        (outcomes,) = bench.observe([reference.case])
    except WorldError as error:
        if reference.contract.most_rows is None or not _is_too_much(error):
            raise
        raise Unanswered(TOO_MUCH, whatever=True) from error
    along = (
        1 if max(reference.case.rows) > min(LARGE_PAIRS) and _has_pairs(reference.contract) else DIRECTIONS
    )
    return max(
        compare_terms(reference, {"": outcomes}, bench.subject.strict),
        compare_gradients(reference, outcomes, along),
    )


TOO_MUCH = "so many rows take too long, or too much memory"
"""Some losses of two views compare every pair of pairs, or go through them one by one."""


def _is_too_much(error: WorldError) -> bool:
    """Whether the only rank was cut off, or got no memory."""
    return any(
        one.state in ("hung", "killed") or "memory" in one.detail.strip().rpartition("\n")[2].lower()
        for one in error.ranks
    )


def _has_pairs(contract: Contract) -> bool:
    if contract.whole:
        return contract.large
    paired = {"image_features", "first"} & set(contract.differentiable)
    return contract.is_loss and bool(paired)


def _has_logits(contract: Contract) -> bool:
    return not contract.whole and bool(contract.drawn.get("captions"))


LAWS = [
    Law("large batches equal the oracle", large_equals_oracle, worlds="one", applies=_has_pairs,
        draw=_many_pairs, interpreted=False, share=0.04, patience=4.0),
    Law("large logits equal the oracle", large_equals_oracle, worlds="one", applies=_has_logits,
        draw=_many_logits, interpreted=False, share=0.6, patience=4.0),
]  # fmt: skip
