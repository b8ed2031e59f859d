"""What the returned terms are."""

from ..cases import Case
from ..contracts import Contract, Inputs
from ..subjects import Outcome, Subject
from ..worlds import World
from . import Falsified, Law, Place, compare, observe


def terms_equal_oracle(contract: Contract, subject: Subject, world: World, case: Case) -> float:
    """Every output term of every rank equals the oracle within the case's bound."""
    (outcomes,) = observe(contract, subject, world, [case])
    return compare_terms(contract, case, outcomes, contract.inputs(case))


def compare_terms(contract: Contract, case: Case, outcomes: list[Outcome], inputs: Inputs) -> float:
    """Return the worst error over bound of every rank's terms."""
    bounds = contract.bounds(case, inputs, contract.weights(case)).terms
    worst = 0.0
    for rank, terms in enumerate(contract.oracle(case, inputs)):
        for name, expected in terms.items():
            if name not in outcomes[rank].terms:
                right, seen = contract.structure(case), outcomes[rank].structure
                place = Place("structure", rank=rank, expected=right, observed=seen)
                raise Falsified(f"rank {rank}: there is no {name} in {seen}", place)
            bound = bounds[rank][name] * contract.slack(case)
            observed = outcomes[rank].terms[name]
            worst = max(worst, compare(Place("term", name, rank), observed, expected.real, bound))
    return worst


LAWS = [Law("terms equal the oracle", terms_equal_oracle)]
