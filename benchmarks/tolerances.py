"""Tolerances by Monte Carlo arithmetic, beside those derived by hand and the errors of right variants.

For each contract and dtype, over drawn cases in one process: the tolerance of Monte Carlo arithmetic over the
derived one, and the error of right variants (`tests/defects`) and of the shipped losses over that of Monte
Carlo arithmetic. What right variants err by must stay below 1.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.defects.index import RIGHT
from verified_losses.oracles.monte_carlo import Roundoff, Unsupported, scatter
from verified_losses.properties.cases import DTYPES, Case
from verified_losses.properties.contracts import Contract, contracts
from verified_losses.properties.examples import Example, Step
from verified_losses.properties.reference import Reference
from verified_losses.properties.running import perform
from verified_losses.properties.standalone.acts import run_each
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.worlds.single import SingleWorld

LOSSES = ("clip", "coca", "distill", "siglip", "infonce", "ntxent", "cross_entropy")
"""The contracts of what rounds: gather and exchange copy rows, and add up gradients alone."""


@dataclass
class Ratios:
    """The ratios of one contract, dtype and kind of number."""

    looser: list[float] = field(default_factory=list)
    """Of the two tolerances, elementwise."""
    of_cases: list[float] = field(default_factory=list)
    """Their median in each input or term of a case: one case of many elements does not decide it."""
    errors: list[float] = field(default_factory=list)
    """The worst of each call of a right variant, over the tolerance of Monte Carlo arithmetic."""
    worst: tuple[float, str] = (0.0, "")


def drawn(contract: Contract, subject: Subject, count: int, number: int) -> list[Case]:
    """Return so many cases, as a certifier draws them."""
    cases: list[Case] = []

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(contract.cases(subject, 1))
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases[:count]


def sampled(contract: Contract, case: Case, widened: bool) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return by kind and name the values of a case, and their tolerances by Monte Carlo arithmetic.

    Raises:
        Unsupported: the oracle uses what Monte Carlo arithmetic has no rule for.
    """
    (inputs,), (cotangents,) = contract.inputs(case), contract.cotangents(case)
    names, terms = list(inputs), contract.terms

    def function(*arrays: Any) -> Any:
        (found,) = contract.oracle(case, contract.prepared(case, [dict(zip(names, arrays, strict=True))]))
        return np.stack([found[term] + 0 * arrays[0].sum() for term in terms])

    derived = [place for place, name in enumerate(names) if name in contract.differentiable]
    weights = np.array([float(cotangents[term]) for term in terms])
    value, gradients = scatter(
        function, list(inputs.values()), Roundoff.of(case.dtype, widened), derived, weights, seed=case.seed
    )
    found = {("term", term): (value.value[place], value.bound[place]) for place, term in enumerate(terms)}
    for place, one in zip(derived, gradients, strict=True):
        found["gradient", names[place]] = one.value, one.bound
    return found


def variants() -> Iterator[tuple[str, str, Subject]]:
    """Yield the right variants, and the shipped losses."""
    for label, (name, subject) in SHIPPED.items():
        if name in LOSSES:
            yield name, label, subject
    for one in RIGHT:
        if one.contract in LOSSES and not one.name.startswith(("Compiled", "Refuses")):
            yield one.contract, one.name, one.subject


def compare(count: int, number: int, widened: bool) -> dict[tuple[str, str, str], Ratios]:
    """Return the ratios by contract, dtype and kind, over so many cases of each variant."""
    found: dict[tuple[str, str, str], Ratios] = defaultdict(Ratios)
    world = SingleWorld()
    for place, (name, label, subject) in enumerate(variants()):
        contract = contracts()[name]
        for case in drawn(contract, subject, count, number + place):
            try:
                values = sampled(contract, case, widened)
            except Unsupported:
                continue
            bounds = Reference(contract, Example(case)).bounds
            (outcomes,) = world.run(perform, subject, contract, run_each, [Step(case)])
            for (kind, what), (value, bound) in values.items():
                ratios = found[name, case.dtype, kind]
                (of_case,) = bounds.terms if kind == "term" else bounds.gradients
                derived = np.broadcast_to(of_case[what], np.shape(value))
                both = (derived > 1e-30) & np.isfinite(derived) & np.isfinite(bound)
                if both.any():
                    looser = np.ravel((bound / np.where(both, derived, 1.0))[both])
                    ratios.looser += looser.tolist()
                    ratios.of_cases.append(float(np.median(looser)))
                seen = outcomes[0].terms[what] if kind == "term" else outcomes[0].gradients[what]
                if seen is None or not np.isfinite(seen).all():
                    continue
                error = abs(np.reshape(seen, np.shape(value)) - value)
                with np.errstate(all="ignore"):
                    over = np.where(error == 0, 0.0, error / bound)
                worst = float(np.max(over, initial=0.0))
                ratios.errors.append(worst)
                if worst > ratios.worst[0]:
                    ratios.worst = worst, f"{label}: {what}: {case}"
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=8, help="of each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--widened", action="store_true", help="half precision is computed in float32")
    parser.add_argument("--worst", action="store_true", help="print the case of each row's worst error")
    asked = parser.parse_args()
    found = compare(asked.cases, asked.seed, asked.widened)
    print(
        f"{'contract':14} {'dtype':9} {'kind':9} {'MC/derived median':>18} {'of cases':>8} {'90%':>6}"
        f" {'worst':>8} {'error/MC median':>16} {'worst':>8} {'calls':>6}"
    )
    for (name, dtype, kind), ratios in sorted(
        found.items(), key=lambda one: (one[0][0], DTYPES.index(one[0][1]), one[0][2])
    ):
        looser = ratios.looser or [np.nan]
        errors = ratios.errors or [np.nan]
        print(
            f"{name:14} {dtype:9} {kind:9} {np.median(looser):18.3g}"
            f" {np.median(ratios.of_cases or [np.nan]):8.3g}"
            f" {np.quantile(looser, 0.9):6.3g} {np.max(looser):8.3g}"
            f" {np.median(errors):16.2g} {np.max(errors):8.2g} {len(ratios.errors):6}"
        )
        if asked.worst:
            print(f"    {ratios.worst[1]}")


if __name__ == "__main__":
    main()
