"""What must not matter."""

import dataclasses

import numpy as np
from hypothesis import assume

from ..cases import Case
from ..contracts import Contract
from ..subjects import Subject
from ..worlds import World
from . import Law, Place, compare, observe


def _mean_agrees(note: str, contract: Contract, subject: Subject, world: World, cases: list[Case]) -> float:
    """The mean over ranks of every term is the same for both cases."""
    first, second = observe(contract, subject, world, cases)
    bounds = [contract.bounds(case, contract.inputs(case), contract.weights(case)).terms for case in cases]
    worst = 0.0
    for name in first[0].terms:
        means = [np.mean([outcome.terms[name] for outcome in outcomes]) for outcomes in (first, second)]
        bound = sum(np.mean([rank[name] for rank in terms]) for terms in bounds)
        worst = max(worst, compare(Place("term", name, note=note), means[1], means[0], bound))
    return worst


def split_otherwise(case: Case) -> Case:
    """Return the same global batch with the ranks' numbers of rows reversed."""
    return dataclasses.replace(case, rows=case.rows[::-1])


def permuted(case: Case) -> Case:
    """Return the case with its pairs in another order."""
    return dataclasses.replace(case, permutation=case.seed + 1)


def swapped(case: Case) -> Case:
    """Return the case with images for texts and texts for images."""
    return dataclasses.replace(case, swapped=True)


def padding_filled(case: Case) -> Case:
    """Return the case with other logits at padding."""
    return dataclasses.replace(case, pad_content=case.seed + 1)


def splits_agree(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """The same global batch split otherwise over the ranks gives the same mean over ranks."""
    assume(contract.obeys_mean(case) and len(set(case.rows)) > 1)
    cases = [case, split_otherwise(case)]
    return _mean_agrees("after splitting otherwise", contract, subject, world, cases)


def pairs_permute(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Permuting images and texts together leaves the mean over ranks as it was."""
    return _mean_agrees("after permuting the pairs", contract, subject, world, [case, permuted(case)])


def image_and_text_swap(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Exchanging images and texts leaves the mean over ranks as it was."""
    return _mean_agrees("after swapping images and texts", contract, subject, world, [case, swapped(case)])


def padding_never_matters(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """The logits at padding change nothing, and get no gradient."""
    assume(case.pads != "none" or case.pad_rows)
    other = padding_filled(case)
    plain, filled = observe(contract, subject, world, [case, other])
    for rank, (before, after) in enumerate(zip(plain, filled, strict=True)):
        for name, term in before.terms.items():
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
        "splits agree",
        splits_agree,
        worlds="several",
        applies=lambda contract: contract.is_loss,
        share=0.5,
    ),
    Law(
        "pairs permute",
        pairs_permute,
        applies=lambda contract: contract.symmetric,
        share=0.3,
    ),
    Law(
        "image and text swap",
        image_and_text_swap,
        applies=lambda contract: contract.symmetric,
        share=0.3,
    ),
    Law(
        "padding never matters",
        padding_never_matters,
        applies=lambda contract: "logits" in contract.differentiable,
    ),
]
