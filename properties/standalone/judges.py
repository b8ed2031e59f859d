"""How what the ranks saw is judged: one number, or one thing, that a law found wrong."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from verified_losses.oracles.complex_step import Array, directional_derivative

from . import file
from .acts import Outcome, Owned, to_array

Judge = Callable[[Any, list[Any]], bool]
"""Given a target and what each rank saw, prints both sides; returns whether they agree."""


def judge_term(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one element of one rank's term, or of the mean over ranks, with the oracle's."""
    terms = [np.asarray(one[file.NAME]).real for one in file.oracle(values(file.inputs()))]
    if file.RANK is None:
        seen = np.mean([component(part(outcomes[0])) for outcomes in ranks])
        return agree(np.mean([one[file.INDEX] for one in terms]), seen)
    expected = terms[file.RANK]
    return agree(expected[file.INDEX], component(part(ranks[file.RANK][0])))


def judge_gradient(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one rank's gradient, along one direction, or the mean over ranks, with the oracle's."""
    given = values(file.inputs())

    def total_of(moved: Any) -> Any:
        return total(file.oracle(moved), file.COTANGENTS)

    chosen = range(len(ranks)) if file.RANK is None else [file.RANK]
    along = direction(given[chosen[0]][file.NAME].shape)
    expected = [derivative(total_of, given, rank, file.NAME, along) for rank in chosen]
    return agree(np.mean(expected), np.mean([component(part(ranks[rank][0])) for rank in chosen]))


def judge_quoted(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one element, or the mean over ranks of one, with what the oracle gave as this was written."""
    if file.RANK is None:
        return agree(file.EXPECTED, np.mean([component(part(outcomes[0])) for outcomes in ranks]))
    return agree(file.EXPECTED, component(part(ranks[file.RANK][0])))


def judge_derived_twice(target: Any, ranks: list[dict[str, Array]]) -> bool:
    """Compare one rank's second derivative, or the mean over ranks, with what is expected."""
    chosen = ranks if file.RANK is None else [ranks[file.RANK]]
    return agree(file.EXPECTED, np.mean([component(seen[file.NAME]) for seen in chosen]))


def judge_mean(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare the mean over ranks with one process that has the whole batch."""
    single, everyone = file.act_alone(target)[0], [outcomes[0] for outcomes in ranks]
    expected = component(part(single))
    if file.KIND == "term":
        mean = np.mean([seen.terms[file.NAME] for seen in everyone])
    else:
        pairs = zip(file.inputs(), map(part, everyone), strict=True)
        parts = [np.zeros(own[file.NAME].shape) if value is None else value for own, value in pairs]
        mean = mean_over_ranks(parts, file.IS_SHARED)[file.INDEX]
    by_numpy = "" if file.oracle is None else f", and in NumPy {of_whole()!r}"
    print(f"the whole batch in one process gives {float(expected)!r}{by_numpy}")
    return agree(expected, mean)


def of_whole() -> float:
    """Return what the oracle gives for the whole batch on one rank."""
    given = values(file.whole())
    if file.KIND == "term":
        return float(np.real(file.oracle(given)[0][file.NAME]))
    along = direction(given[0][file.NAME].shape)
    return derivative(lambda moved: total(file.oracle(moved), None), given, 0, file.NAME, along)


def mean_over_ranks(parts: list[Array], is_shared: bool) -> Array:
    """Return the mean of what each rank gives something shared, or each rank's rows."""
    # a shared encoder averages what reaches it from every rank: each row counts 1/W
    return np.mean(parts, axis=0) if is_shared else np.concatenate(parts) / len(parts)


def judge_filled(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare a term before and after padding is filled, or the gradient at padding with zero."""
    before, after = [component(part(seen)) for seen in ranks[file.RANK]]
    return agree(0.0 if file.KIND == "gradient" else before, after)


def judge_spoiled(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare a call of an element that is no number with the same of numbers alone, where it is not NaN."""
    spoiled, plain = [component(part(seen)) for seen in ranks[file.RANK]]
    if math.isnan(file.EXPECTED):
        print(file.WHERE, "expected nan, as the formula gives", f"observed {spoiled!r}", sep="\n  ")
        return not math.isfinite(spoiled)
    return agree(plain, spoiled)


def judge_bits(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare calls with the first, bit by bit."""
    first, *others = [part(seen) for seen in ranks[file.RANK]]
    other = next((one for one in others if not same(one, first)), first)
    print(file.WHERE, f"expected {first!r}", f"observed {other!r}", sep="\n")
    return same(first, other)


def judge_copies(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare what the copies of an object give with what it gives, bit by bit."""
    first, *others = [part(seen) for seen in ranks[file.RANK] if not seen.refused]
    other = next((one for one in others if not same(one, first)), first)
    print(file.WHERE, f"expected {first!r}", f"observed {other!r}", sep="\n")
    return same(first, other)


def judge_near(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare calls with the first: an element, within the bound, or whether there is a gradient at all."""
    first, *others = [part(seen) for seen in ranks[file.RANK]]
    other = next((one for one in others if not near(one, first)), first)
    if first is None or other is None:
        print(file.WHERE, f"expected {first!r}", f"observed {other!r}", sep="\n")
        return other is first
    return agree(component(first), component(other))


def near(one: Array | None, other: Array | None) -> bool:
    """Whether one element of two results agrees, within the bound."""
    if one is None or other is None:
        return one is other
    return abs(component(one) - component(other)) <= file.BOUND


def judge_two_live(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare each of two calls of one object with that of a fresh one, bit by bit."""
    seen = [part(one) if file.NAME in {**one.terms, **one.gradients} else None for one in ranks[file.RANK]]
    pairs = list(zip(seen[:2] * 2, seen[2:], strict=True))
    first, other = next((pair for pair in pairs if not same(*pair)), pairs[0])
    print(file.WHERE, f"expected {first!r}", f"observed {other!r}", sep="\n")
    return same(first, other)


def judge_owned(target: Any, ranks: list[list[Owned]]) -> bool:
    """Compare how the loss changes as a parameter is moved with what the parameter's gradient predicts."""
    for own in ranks[file.RANK]:
        if own.name == file.NAME:
            gradient = "as its gradient predicts" if own.has_gradient else "as it has no gradient"
            print(file.WHERE, f"expected {own.changes}, by which the loss changes", sep="\n  ")
            print(f"  observed {own.predicted}, {gradient}", f"  bound {file.BOUND:.3g}", sep="\n")
            return predicts(own, file.BOUND)
    print(f"there is no parameter {file.NAME}")
    return True


def predicts(own: Owned, bound: float) -> bool:
    """Whether a parameter's gradient predicts how the loss changes, to first order.

    The second order adds the same to both changes, and at a kink any gradient between those of its two sides
    is right: a gradient is wrong where both changes err by more than the bound, the one up, the other down.
    """
    ahead, back = (change - told for change, told in zip(own.changes, own.predicted, strict=True))
    return all(map(math.isfinite, own.predicted)) and not (
        min(abs(ahead), abs(back)) > bound and ahead * back < 0
    )


def judge_form(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare what the output looks like with what is documented."""
    observed = form(ranks[file.RANK][0])
    expected = " or ".join(map(repr, file.ALLOWED))
    print(file.WHERE, f"expected {expected}", f"observed {observed!r}", sep="\n  ")
    return observed in file.ALLOWED


def judge_words(target: Any, ranks: list[list[str]]) -> bool:
    """Print what each rank noted, which is nothing where the law holds."""
    for rank, noted in enumerate(ranks):
        print(f"rank {rank}", "expected nothing", f"observed {', '.join(noted) or 'nothing'}", sep="\n  ")
    return not any(ranks)


def judge_nothing(target: Any, ranks: list[Any]) -> bool:
    """Every rank returned, which is all that was asked."""
    print("every rank returned")
    return True


def agree(expected: Any, observed: Any) -> bool:
    """Print both sides; return whether they are as near as rounding allows."""
    expected, observed = float(expected), float(observed)
    error = abs(observed - expected)
    print(file.WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{file.BOUND:.3g}")
    return bool(error <= file.BOUND)


def part(seen: Outcome) -> Array | None:
    """Return the term, or the gradient, that is compared."""
    return (seen.gradients if file.KIND == "gradient" else seen.terms)[file.NAME]


def form(seen: Outcome) -> Any:
    """Return what the output looks like, as far as KIND asks."""
    if file.KIND == "shape":
        gradients = {f"gradient of {name}": value for name, value in seen.gradients.items()}
        return list(np.shape({**seen.terms, **gradients}[file.NAME]))  # type: ignore[arg-type]
    if file.KIND == "presence of the gradient":
        return seen.gradients[file.NAME] is not None
    forms = {
        "structure": seen.structure,
        "dtype and device": seen.types,
        "altered inputs": list(seen.changed),
    }
    return forms[file.KIND]


def same(one: Array | None, other: Array | None) -> bool:
    """Whether two results agree bit by bit."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)


def component(seen: Array | None) -> float:
    """Return the element, or the sum along a direction, that is compared; no gradient is zero."""
    if seen is None:
        return 0.0
    return float(seen[file.INDEX] if file.ALONG is None else np.sum(seen * np.array(file.ALONG)))


def direction(shape: tuple[int, ...]) -> Array:
    """Return the direction of a derivative: that of one element, unless it is told."""
    if file.ALONG is not None:
        return np.array(file.ALONG)
    unit = np.zeros(shape)
    unit[file.INDEX] = 1
    return unit


def values(ranks: list[dict[str, torch.Tensor]]) -> list[dict[str, Array]]:
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: to_array(v) if v.is_floating_point() else v.cpu().numpy() for k, v in given.items()}
        for given in ranks
    ]


def derivative(
    function: Callable[[list[dict[str, Any]]], Any],
    given: list[dict[str, Array]],
    rank: int,
    name: str,
    along: Array,
) -> float:
    """Return the derivative of a function of what all ranks are given as one input of one rank moves."""

    def moved(point: Array) -> Any:
        return function([*given[:rank], {**given[rank], name: point}, *given[rank + 1 :]])

    return directional_derivative(moved, given[rank][name], along)


def total(terms: list[dict[str, Any]], cotangents: list[dict[str, Any]] | None) -> Any:
    """Return the sum over ranks and terms of cotangent times term: what all backwards together derive."""
    return sum(
        np.sum(value if cotangents is None else np.asarray(cotangents[rank][name]) * value)
        for rank, own in enumerate(terms)
        for name, value in own.items()
    )
