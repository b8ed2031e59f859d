"""How what the ranks saw is judged: one number, or one thing, that a law found wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from verified_losses.oracles.complex_step import Array, directional_derivative

from .acts import Outcome, to_array
from .given import (
    ALLOWED,
    ALONG,
    BOUND,
    COTANGENTS,
    EXPECTED,
    INDEX,
    IS_SHARED,
    KIND,
    NAME,
    RANK,
    WHERE,
    WORLD_SIZE,
    act_alone,
    inputs,
    oracle,
    whole,
)

Judge = Callable[[Any, list[Any]], bool]
"""Given a target and what each rank saw, prints both sides; returns whether they agree."""


def judge_term(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one element of one rank's term with the oracle's."""
    return agree(expected_term(), ranks[RANK][0].terms[NAME][INDEX])


def judge_gradient(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one rank's gradient, along one direction, with the oracle's."""
    given = values(inputs())
    along = direction(given[RANK][NAME].shape)
    expected = derivative(lambda moved: total(oracle(moved), COTANGENTS), given, RANK, NAME, along)
    return agree(expected, component(ranks[RANK][0].gradients[NAME]))


def judge_derived_by_cotangents(target: Any, ranks: list[dict[str, Array]]) -> bool:
    """Compare one element of what a second derivative gives with the oracle's term."""
    return agree(expected_term(), ranks[RANK][NAME][INDEX])


def judge_derived_twice(target: Any, ranks: list[dict[str, Array]]) -> bool:
    """Compare one rank's second derivative, along one direction, with what is expected."""
    return agree(EXPECTED, component(ranks[RANK][NAME]))


def judge_mean(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare the mean over ranks with one process that has the whole batch."""
    single, everyone = act_alone(target)[0], [outcomes[0] for outcomes in ranks]
    given = values(whole())
    if KIND == "term":
        mean, expected = np.mean([seen.terms[NAME] for seen in everyone]), single.terms[NAME]
        right = np.real(oracle(given)[0][NAME])
    else:
        pairs = [(own[NAME], seen.gradients[NAME]) for own, seen in zip(inputs(), everyone, strict=True)]
        parts = [np.zeros(own.shape) if gradient is None else gradient for own, gradient in pairs]
        # a shared encoder averages what reaches it from every rank: each row counts 1/W
        of_all = np.mean(parts, axis=0) if IS_SHARED else np.concatenate(parts) / WORLD_SIZE
        mean, expected = of_all[INDEX], component(single.gradients[NAME])
        along = direction(given[0][NAME].shape)
        right = derivative(lambda moved: total(oracle(moved), None), given, 0, NAME, along)
    print(f"the whole batch in one process gives {float(expected)!r}, and in NumPy {float(right)!r}")
    return agree(expected, mean)


def judge_filled(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare a term before and after padding is filled, or the gradient at padding with zero."""
    before, after = ranks[RANK]
    if KIND == "gradient":
        return agree(0.0, component(after.gradients[NAME]))
    return agree(before.terms[NAME][INDEX], after.terms[NAME][INDEX])


def judge_bits(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare calls with the first, bit by bit."""
    first, *others = [seen.terms[NAME] if KIND == "term" else seen.gradients[NAME] for seen in ranks[RANK]]
    other = next((one for one in others if not same(one, first)), first)
    print(WHERE, f"expected {first!r}", f"observed {other!r}", sep="\n")
    return same(first, other)


def judge_form(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare what the output looks like with what is documented."""
    observed = form(ranks[RANK][0])
    print(WHERE, f"expected {' or '.join(map(repr, ALLOWED))}", f"observed {observed!r}", sep="\n  ")
    return observed in ALLOWED


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
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{BOUND:.3g}")
    return bool(error <= BOUND)


def form(seen: Outcome) -> Any:
    """Return what the output looks like, as far as KIND asks."""
    if KIND == "shape":
        gradients = {f"gradient of {name}": value for name, value in seen.gradients.items()}
        return list(np.shape({**seen.terms, **gradients}[NAME]))  # type: ignore[arg-type]
    if KIND == "presence of the gradient":
        return seen.gradients[NAME] is not None
    forms = {
        "structure": seen.structure,
        "dtype and device": seen.types,
        "altered inputs": list(seen.changed),
    }
    return forms[KIND]


def same(one: Array | None, other: Array | None) -> bool:
    """Whether two results agree bit by bit."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)


def component(gradient: Array | None) -> float:
    """Return a gradient's element, or its sum along a direction; none is zero."""
    if gradient is None:
        return 0.0
    return float(gradient[INDEX] if ALONG is None else np.sum(gradient * np.array(ALONG)))


def direction(shape: tuple[int, ...]) -> Array:
    """Return the direction of a derivative: that of one element, unless it is told."""
    if ALONG is not None:
        return np.array(ALONG)
    unit = np.zeros(shape)
    unit[INDEX] = 1
    return unit


def values(ranks: list[dict[str, torch.Tensor]]) -> list[dict[str, Array]]:
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: to_array(v) if v.is_floating_point() else v.cpu().numpy() for k, v in given.items()}
        for given in ranks
    ]


def expected_term() -> float:
    """Return one element of one rank's term in NumPy."""
    return float(np.asarray(oracle(values(inputs()))[RANK][NAME]).real[INDEX])


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
