"""What must not matter."""

import dataclasses

import numpy as np
from hypothesis import assume

from ..cases import Case
from ..contracts import Contract
from ..subjects import Subject
from ..worlds import World
from . import Law, Place, compare, observe


def padding_filled(case: Case) -> Case:
    """Return the case with other logits at padding."""
    return dataclasses.replace(case, pad_content=case.seed + 1)


def padding_never_matters(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """The logits at padding change nothing, and get no gradient."""
    assume(case.pads != "none" or case.pad_rows)
    other = padding_filled(case)
    plain, filled = observe(contract, subject, world, [case, other])
    for rank, (before, after) in enumerate(zip(plain, filled, strict=True)):
        for name, term in before.terms.items():
            if not np.isfinite(term).all():
                continue  # whatever lies at padding: other laws tell
            compare(Place("term", name, rank, "after filling the padding"), after.terms[name], term, 0.0)
        labels = contract.inputs(other)[rank]["labels"]
        gradient = after.gradients["logits"]
        if gradient is not None:
            at_padding = np.where((labels == case.pad_id)[..., None], gradient, 0)
            place = Place("gradient", "logits", rank, "at padding")
            compare(place, at_padding, np.zeros(at_padding.shape), 0.0)
    return 0.0


LAWS = [
    Law(
        "padding never matters",
        padding_never_matters,
        applies=lambda contract: "logits" in contract.differentiable,
    ),
]
