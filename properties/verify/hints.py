"""What explains all cases that falsify a check: one number, or another convention that all agree with."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from verified_losses.oracles.clip import cross_entropy, row_weight, scaled_product
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.infonce import normalize

from ..cases import Case
from ..contracts import Contract, Inputs
from ..contracts.total import TOTAL, Total
from ..examples import Example
from ..laws import Place
from ..standalone.judges import derivative, total
from .limits import has_unequal_rows

if TYPE_CHECKING:
    from .certifier import Finding

SECONDS = 2.0
"""How long explanations are sought."""
ENOUGH = 8
"""Cases that hold outside of a range in which all others fail."""
MOST = 12
"""Cases that an explanation is compared with: the last ones, which are the smallest."""
STUDENT = ("image_features", "text_features", "logit_scale", "logit_bias")
FEATURES = ("image_features", "text_features", "first", "second")

Met = Sequence[tuple[Example, Place]]
Oracle = Callable[[Case, Inputs], list[dict[str, Any]]]
"""Gets a case, and every rank's inputs as the contract prepares them for its oracle."""


@dataclass(frozen=True)
class Hint:
    """An explanation: what is observed is this, in every case that fails."""

    kind: str
    """"times", "entropy", "normalized", "raw", "offset", "config" or "alone"."""
    what: str
    """"value" or "gradient"; of "alone", where all cases that fail lie, in words."""
    factor: str = ""
    """Of "times": "2", "1/2", "W", "1/W", "n" or "1/n": W is the number of ranks, n that of all rows.

    Of "alone": how many cases elsewhere hold.
    """
    config: tuple[tuple[str, Any], ...] = ()
    """Of "config": the options with which what is observed is right."""


FACTORS: dict[str, Callable[[Case], float]] = {
    "2": lambda case: 2.0,
    "1/2": lambda case: 0.5,
    "W": lambda case: float(case.world_size),
    "1/W": lambda case: 1 / case.world_size,
    "n": lambda case: float(sum(case.rows)),
    "1/n": lambda case: 1 / sum(case.rows),
}


def explain(finding: "Finding") -> tuple[Hint, ...]:
    """Return what explains every case that falsified a check, as far as it was seen, or where all lie."""
    return _explained(finding) or _alone(finding)


def _alone(finding: "Finding") -> tuple[Hint, ...]:
    """Return where all cases that fail lie, as dtypes and a range of a number, if enough hold elsewhere."""
    failed = [example.case for example, place in finding.met if place is not None and not example.steps]
    if not failed or len(failed) < len(finding.met) or len(finding.cases) < ENOUGH:
        return ()
    # a case that fails is made smaller in float64 first: where no such case fails, its dtype matters
    dtypes = {case.dtype for case in failed}
    narrow = dtypes if "float64" not in dtypes and finding.check.subject.dtypes[:1] == ("float64",) else set()
    within = f"in {' and '.join(sorted(narrow))}" if narrow else ""
    held = [case for case in finding.cases if not narrow or case.dtype in narrow]
    if narrow and not held:
        return (Hint("alone", within, str(len(finding.cases))),)
    for name in _numbers_of(failed[0]):
        values, others = ([_numbers_of(case).get(name, np.nan) for case in some] for some in (failed, held))
        for limit, beyond, words in (
            (max(values), all(other > max(values) for other in others), "or less"),
            (min(values), all(other < min(values) for other in others), "or more"),
        ):
            if beyond and (narrow or len(held) >= ENOUGH):
                said = f"{within} with a {name} of {limit:.3g} {words}".strip()
                return (Hint("alone", said, str(len(finding.cases))),)
    return ()


def _numbers_of(case: Case) -> dict[str, float]:
    """Return the numbers of a case by name: a formula's, or the scale."""
    drawn = {name: value for name, value in case.drawn if isinstance(value, float)}
    return drawn or {"scale": case.scale}


def _explained(finding: "Finding") -> tuple[Hint, ...]:
    # unequal rows for which a gather raises have no number to explain, and are a limit
    told = [one for one in finding.met if one[1] is not None or not has_unequal_rows(one[0])]
    met = [
        (example, place)
        for example, place in told
        if place is not None
        and place.kind in ("term", "gradient")
        and isinstance(place.expected, float)
        and np.isfinite([place.expected, place.observed]).all()
    ]
    if not met or len(met) < len(told):
        return ()
    what = "value" if met[0][1].kind == "term" else "gradient"
    if any((place.kind == "term") != (what == "value") for _, place in met):
        return ()
    held = finding.cases
    if factors := [one for one in _factors(met) if sum(FACTORS[one](case) != 1 for case in held) < ENOUGH]:
        return tuple(Hint("times", what, factor) for factor in factors)
    law, contract = finding.check.law, finding.check.contract
    cases = [(law.prepare(example.case), place) for example, place in met[-MOST:] if not example.steps]
    # what is compared with one process or with a call before is not the oracle's, nor is a mean of values
    means = what == "value" and any(place.rank is None for _, place in cases)
    if len(cases) < len(met[-MOST:]) or law.other or means:
        return ()
    until = time.monotonic() + SECONDS
    for hint, oracle in _others(contract, what, [case for case, _ in cases]):
        if time.monotonic() < until and all(_agrees(contract, oracle, *one) for one in cases):
            return (hint,)
    return ()


def _factors(met: Met) -> list[str]:
    """Return the factors that every observed value is of what was expected, within the bound."""
    found = []
    for name, factor in FACTORS.items():
        numbers = [factor(example.case) for example, _ in met]
        if all(
            number != 1 and abs(place.observed - number * place.expected) <= max(1, number) * place.bound
            for number, (_, place) in zip(numbers, met, strict=True)
        ):
            found.append(name)
    # two of them may be one number in all cases that were met
    return found if len({FACTORS[name](met[-1][0].case) for name in found}) == 1 else []


def _others(contract: Contract, what: str, cases: Sequence[Case]) -> Iterable[tuple[Hint, Oracle]]:
    """Return other conventions, each with the oracle that follows it."""
    if contract.name == "distill" and what == "value":
        yield Hint("entropy", what), lambda case, inputs: _less_entropy(contract, case, inputs)
    if "image_features" in contract.differentiable and contract.is_loss and not contract.whole:
        yield Hint("normalized", what), lambda case, inputs: contract.oracle(case, _normalized(inputs))
    if contract.name in ("infonce", "ntxent"):
        yield Hint("raw", what), lambda case, inputs: _raw(contract, case, inputs)
    if any(case.world_size == 1 for case in cases):
        return
    for name, values in contract.values.items():
        if values == (False, True) and name in ("local_loss", "gather_with_grad"):
            for value in (True, False):
                if all(case.option(name, not value) is not value for case in cases):
                    yield Hint("config", what, config=((name, value),)), _with(contract, name, value)
    if contract.name == "clip" and what == "value":
        for weigh in (_of_all_rows, _of_own_rows):
            yield Hint("offset", what), functools.partial(_labels_from_zero, weigh)


def _with(contract: Contract, name: str, value: bool) -> Oracle:
    """Return the oracle of cases that have one option changed."""

    def oracle(case: Case, inputs: Inputs) -> list[dict[str, Any]]:
        options = tuple((dict(case.options) | {name: value}).items())
        return contract.oracle(replace(case, options=options), inputs)

    return oracle


def _agrees(contract: Contract, oracle: Oracle, case: Case, place: Place) -> bool:
    """Whether what was observed at a place is what another oracle gives, within the bound there."""
    inputs = contract.inputs(case)
    with np.errstate(all="ignore"):
        if place.kind == "term":
            assert place.rank is not None
            terms = oracle(case, contract.prepared(case, inputs))[place.rank]
            if place.name not in terms:
                return False
            right = float(np.asarray(np.real(terms[place.name]))[place.index])
        else:
            ranks = range(case.world_size) if place.rank is None else (place.rank,)
            along = place.along
            if along is None:
                along = np.zeros(inputs[ranks[0]][place.name].shape)
                along[place.index] = 1
            cotangents = contract.cotangents(case)

            def summed(moved: Inputs) -> Any:
                return total(oracle(case, contract.prepared(case, moved)), cotangents)

            right = float(np.mean([derivative(summed, inputs, rank, place.name, along) for rank in ranks]))
    # the bound is that of the oracle's own value: another one rounds in proportion
    scale = max(1.0, abs(right) / abs(place.expected)) if place.expected else 1.0
    differs = abs(right - place.expected) > 2 * scale * place.bound
    return bool(differs and abs(place.observed - right) <= scale * place.bound)


def _less_entropy(contract: Contract, case: Case, inputs: Inputs) -> list[dict[str, Any]]:
    """Return the terms, the teacher's entropy taken away from `distill_loss`: the KL divergence."""
    teachers = [
        given | {name: given[f"dist_{name}"] for name in STUDENT if f"dist_{name}" in given}
        for given in inputs
    ]
    parts = contract.parts if isinstance(contract, Total) else contract
    own, entropy = parts.oracle(case, inputs), parts.oracle(case, teachers)
    terms_less = [
        terms | {"distill_loss": terms["distill_loss"] - other["distill_loss"]}
        for terms, other in zip(own, entropy, strict=True)
    ]
    return terms_less if parts is contract else [{TOTAL: sum(terms.values())} for terms in terms_less]


def _of_all_rows(case: Case, rank: int) -> float:
    return row_weight(list(case.rows), local_loss=True)


def _of_own_rows(case: Case, rank: int) -> float:
    return 1 / max(case.rows[rank], 1)


def _labels_from_zero(
    weigh: Callable[[Case, int], float], case: Case, inputs: Inputs
) -> list[dict[str, Any]]:
    """Return the terms of ranks that compare their rows with all, and take those of rank 0 for partners.

    Args:
        weigh: returns the weight of a row of a rank.
        case: of several ranks.
        inputs: of every rank.
    """
    images, texts = ([given[name] for given in inputs] for name in FEATURES[:2])
    terms: list[dict[str, Any]] = []
    for rank, given in enumerate(inputs):
        labels, scale = np.arange(case.rows[rank]), given["logit_scale"]
        bias = given.get("logit_bias", np.zeros(()))
        losses = [
            cross_entropy(scaled_product(own[rank], np.concatenate(all_rows), scale, bias), labels)
            for own, all_rows in ((images, texts), (texts, images))
        ]
        terms.append({"contrastive_loss": weigh(case, rank) * sum(map(np.sum, losses)) / 2})
    return terms


def _normalized(inputs: Inputs) -> Inputs:
    """Return the inputs with rows of norm 1; rows of zeros stay."""

    def unit(rows: Array) -> Array:
        are_zeros = ~rows.any(axis=1, keepdims=True)
        return np.where(are_zeros, 0, normalize(np.where(are_zeros, 1, rows)))

    return [
        {name: unit(value) if name in FEATURES else value for name, value in given.items()}
        for given in inputs
    ]


def _raw(contract: Contract, case: Case, inputs: Inputs) -> list[dict[str, Any]]:
    """Return the terms of a loss of dot products, by one of cosines.

    Each row gets a column of its own, which makes all of norm R: then products of different rows are as they
    were, cosines are R^-2 of them, and the scale is R^2 of what it was.
    """
    names = [name for name in FEATURES if name in inputs[0]]
    everything = [given[name] for name in names for given in inputs]
    squares = [np.sum(rows * rows, axis=1) for rows in everything]
    radius = 2 * max(float(np.real(one).max()) for one in squares) + 1
    count, start = sum(map(len, everything)), 0
    padded: Inputs = [dict(given) for given in inputs]
    for name in names:
        for rank, given in enumerate(inputs):
            rows = given[name]
            own = np.zeros((len(rows), count), dtype=rows.dtype)
            places = np.arange(len(rows))
            own[places, start + places] = np.sqrt(radius - np.sum(rows * rows, axis=1))
            padded[rank][name] = np.concatenate([rows, own], axis=1)
            start += len(rows)
    for given in padded:  # a scale that the loss holds is an input
        if "logit_scale" in given:
            given["logit_scale"] = radius * given["logit_scale"]
    return contract.oracle(replace(case, scale=case.scale * radius), padded)
