"""Laws of the returned terms."""

from ..reference import Reference
from ..standalone.acts import Outcome
from . import Bench, Falsified, Law, Place, compare


def terms_equal_oracle(bench: Bench, reference: Reference) -> float:
    """Every output term of every rank equals the oracle within the case's bound, under inference mode too."""
    return compare_terms(reference, bench.by_mode(reference.case))


def compare_terms(reference: Reference, observed: dict[str, list[Outcome]]) -> float:
    """Return the worst error over bound of every rank's terms, observed in each of some circumstances."""
    worst = 0.0
    for note, outcomes in observed.items():
        for rank, terms in enumerate(reference.terms):
            for name, value in terms.items():
                if name not in outcomes[rank].terms:
                    right, seen = reference.contract.structure(reference.case), outcomes[rank].structure
                    place = Place("structure", rank=rank, note=note, expected=right, observed=seen)
                    raise Falsified(f"rank {rank}: there is no {name} in {seen} {note}".rstrip(), place)
                place, bound = Place("term", name, rank, note), reference.bounds.terms[rank][name]
                term, allowed = outcomes[rank].terms[name], bound * reference.slack
                worst = max(worst, compare(place, term, value, allowed, reference.largest))
    return worst


LAWS = [Law("terms equal the oracle", terms_equal_oracle, modes=("train", "inference"))]
