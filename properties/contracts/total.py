"""What is held to a contract of several terms, and returns their sum alone."""

from typing import Any

from ..cases import Case
from . import Contract
from .calls import Call, Inputs

TOTAL = "loss"


class Total(Contract):
    """The sum of the terms that `parts` has: mixed into a class of the same inputs."""

    parts: Contract
    terms: tuple[str, ...] = (TOTAL,)

    @property
    def summands(self) -> int:
        return len(self.parts.terms)

    def calls(self, case: Case) -> dict[str, Call]:
        return self.parts.calls(case)

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, Any]]:
        return [{TOTAL: sum(terms.values())} for terms in self.parts.oracle(case, inputs)]

    def oracle_source(self, case: Case) -> dict[str, str]:
        return {TOTAL: " + ".join(self.parts.oracle_source(case).values())}
