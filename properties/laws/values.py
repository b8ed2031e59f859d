"""What the returned terms are."""

from ..cases import Case
from ..contracts import Contract, Inputs
from ..running import Outcome
from ..subjects import Subject
from ..worlds import World
from . import Falsified, Law, Place, by_mode, compare


def terms_equal_oracle(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Every output term of every rank equals the oracle within the case's bound, under inference mode too."""
    return compare_terms(contract, case, by_mode(contract, subject, world, case), contract.inputs(case))


def compare_terms(
    contract: Contract, case: Case, observed: dict[str, list[Outcome]], inputs: Inputs
) -> float:
    """Return the worst error over bound of every rank's terms, observed in each of some circumstances."""
    bounds = contract.bounds(case, inputs, contract.cotangents(case)).terms
    expected = contract.oracle(case, inputs)
    worst = 0.0
    for note, outcomes in observed.items():
        for rank, terms in enumerate(expected):
            for name, value in terms.items():
                if name not in outcomes[rank].terms:
                    right, seen = contract.structure(case), outcomes[rank].structure
                    place = Place("structure", rank=rank, note=note, expected=right, observed=seen)
                    raise Falsified(f"rank {rank}: there is no {name} in {seen} {note}".rstrip(), place)
                place, bound = Place("term", name, rank, note), bounds[rank][name] * contract.slack(case)
                worst = max(worst, compare(place, outcomes[rank].terms[name], value.real, bound))
    return worst


LAWS = [Law("terms equal the oracle", terms_equal_oracle)]
