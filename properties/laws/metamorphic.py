"""Laws of inputs that must not matter."""

import dataclasses

import numpy as np
from hypothesis import assume

from ..cases import Case
from ..contracts import Contract
from ..reference import Reference
from ..standalone.judges import judge_filled
from . import Bench, Law, Place, compare


def padding_filled(case: Case) -> Case:
    """Return the case with other logits, or hidden states, at padding."""
    return dataclasses.replace(case, pad_content=case.seed + 1)


def padding_never_matters(bench: Bench, reference: Reference) -> float:
    """The logits, or hidden states, at padding change nothing, and get no gradient."""
    (padded,) = _padded(bench.contract)
    case = reference.case
    assume(case.pads != "none" or case.pad_rows)
    other = bench.reference(padding_filled(case))
    plain, filled = bench.observe([case, other.case])
    for rank, (before, after) in enumerate(zip(plain, filled, strict=True)):
        for name, term in before.terms.items():
            if not np.isfinite(term).all():
                continue  # gradients at padding are for other laws
            compare(Place("term", name, rank, "after filling the padding"), after.terms[name], term, 0.0)
        labels = other.inputs[rank]["labels"]
        gradient = after.gradients[padded]
        if gradient is not None:
            at_padding = np.where((labels == case.pad_id)[..., None], gradient, 0)
            place = Place("gradient", padded, rank, "at padding")
            compare(place, at_padding, np.zeros(at_padding.shape), 0.0)
    return 0.0


def _padded(contract: Contract) -> list[str]:
    """Return the input that is filled at padding, where there is one."""
    return [name for name in ("logits", "hidden_states") if name in contract.differentiable]


LAWS = [
    Law(
        "padding never matters",
        padding_never_matters,
        applies=lambda contract: not contract.whole and bool(_padded(contract)),
        judge=judge_filled,
        other=("filled", "other logits or hidden states at padding", padding_filled),
    ),
]
