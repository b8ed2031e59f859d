"""What is held to a contract of several terms, and returns their sum alone."""

import re

import numpy as np

from verified_losses.oracles.rounding import gamma

from ..cases import Case
from . import Bounds, Contract, Cotangents, Inputs

TOTAL = "loss"


class Total(Contract):
    """The sum of the terms that `parts` has: mixed into a class of the same inputs."""

    parts: Contract
    terms: tuple[str, ...] = (TOTAL,)

    @property
    def summands(self) -> int:
        return len(self.parts.terms)

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        return [{TOTAL: sum(terms.values())} for terms in self.parts.oracle(case, inputs)]

    def oracle_source(self, case: Case) -> dict[str, str]:
        sources = self.parts.oracle_source(case).values()
        return {TOTAL: " + ".join(re.sub(r"\s+", " ", one) for one in sources)}

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        names = self.parts.terms
        bounds = self.parts.bounds(case, inputs, [dict.fromkeys(names, one[TOTAL]) for one in cotangents])
        values = self.parts.oracle(case, self.prepared(case, inputs))
        p, terms = case.precision, []
        for of_rank, allowed in zip(values, bounds.terms, strict=True):
            error = sum(allowed.values())
            size = sum(abs(np.real(value)) for value in of_rank.values())
            # each addition rounds; terms may be stored first
            terms.append({TOTAL: np.asarray(error + gamma(len(names), p.stored) * (size + error) + p.tiny)})
        return Bounds(terms, bounds.gradients)
