"""Laws of the returned terms."""

import numpy as np

from ..reference import Reference
from ..standalone.acts import Outcome
from . import Bench, Falsified, Law, Place, compare


def terms_equal_oracle(bench: Bench, reference: Reference) -> float:
    """Every output term of every rank equals the oracle within the case's bound, under inference mode too."""
    return compare_terms(reference, bench.by_mode(reference.case), bench.subject.strict)


def compare_terms(reference: Reference, observed: dict[str, list[Outcome]], strict: bool = False) -> float:
    """Return the worst error over bound of every rank's terms, observed in each of some circumstances.

    Where that is not strict, the sum before a mean may pass the dtype's largest number.
    """
    if reference.contract.whole and reference.case.world_size > 1:
        return compare_means(reference, observed, strict)
    worst, summed = 0.0, 1 if strict else reference.case.summed
    for note, outcomes in observed.items():
        for rank, terms in enumerate(reference.terms):
            for name, value in terms.items():
                if name not in outcomes[rank].terms:
                    right, seen = reference.contract.structure(reference.case), outcomes[rank].structure
                    place = Place("structure", rank=rank, note=note, expected=right, observed=seen)
                    raise Falsified(f"rank {rank}: there is no {name} in {seen} {note}".rstrip(), place)
                place, bound = Place("term", name, rank, note), reference.bounds.terms[rank][name]
                term, allowed = outcomes[rank].terms[name], bound * reference.slack
                worst = max(worst, compare(place, term, value, allowed, reference.largest, summed))
    return worst


def compare_means(reference: Reference, observed: dict[str, list[Outcome]], strict: bool = False) -> float:
    """As `compare_terms`, of the mean over ranks: each rank may return its share or the whole."""
    worst, summed = 0.0, 1 if strict else reference.case.summed
    for note, outcomes in observed.items():
        for name in reference.contract.terms:
            for rank, outcome in enumerate(outcomes):
                if name not in outcome.terms:
                    raise Falsified(f"rank {rank}: there is no {name} in {outcome.structure} {note}".rstrip())
            mean = np.mean([outcome.terms[name] for outcome in outcomes], axis=0)
            right = np.mean([terms[name] for terms in reference.terms], axis=0)
            allowed = np.mean([bounds[name] for bounds in reference.bounds.terms], axis=0) * reference.slack
            place = Place("term", name, None, note)
            worst = max(worst, compare(place, mean, right, allowed, reference.largest, summed))
    return worst


LAWS = [Law("terms equal the oracle", terms_equal_oracle, modes=("train", "inference"))]
