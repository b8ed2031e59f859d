"""The contract of InfoNCE over cosines, from queries to keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.infonce import infonce_loss

from ..cases import SCALES, Case, scalars
from ..forms import Form
from ..subjects import Subject
from . import Contract, call_in_order
from .calls import Call, Inputs
from .clip import ClipContract
from .parts import flags, is_local, split_inputs

VIEWS = ("first", "second")
MOST_ROWS = 32
"""Of a rank: some implementations compare every pair of pairs."""

ZERO_ROWS = "rows of zeros: a cosine with one is not defined"


class InfoNceContract(ClipContract):
    """The mean cross-entropy of each query's key among all keys.

    The subject is constructed with a `temperature` and called with the queries and the keys.
    """

    name = "infonce"
    function: Callable[..., Any] = staticmethod(infonce_loss)
    rows = VIEWS
    features = "normalized"
    oracle_normalizes = True
    in_order = True
    call_with = staticmethod(call_in_order)
    terms: tuple[str, ...] = ("contrastive_loss",)
    differentiable: tuple[str, ...] = VIEWS
    constructed = (*ClipContract.constructed, "scale")
    most_rows = MOST_ROWS
    undrawn = (ZERO_ROWS,)
    drawn: dict[str, Any] = {"scales": SCALES.filter(bool)}  # a temperature is its inverse

    def in_form(self, form: Form) -> Contract:
        return LearnedInfoNceContract() if form.parameters else self

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        return super().cases(subject, world_size).map(_fewer_rows)

    def inputs(self, case: Case) -> Inputs:
        return split_inputs(case, dict(zip(VIEWS, self.pair(case, case.width, 1), strict=True)), {})

    def constructor(self, case: Case) -> dict[str, Any]:
        return {**dict(case.options), "temperature": 1 / case.scale}

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """Keys that are constants get none, and may get zeros."""
        constant = is_local(case) and not flags(case)[1]
        expected = super().gradient_expected(case)
        return {name: want for name, want in expected.items() if not (want and constant and name == VIEWS[1])}

    def calls(self, case: Case) -> dict[str, Call]:
        # the oracle's last argument, where the similarity is no cosine
        cosine = () if self.normalizations(case) else (False,)
        arguments = *flags(case), *cosine
        return {"contrastive_loss": Call(self.function, (*VIEWS, self.temperature(case)), arguments)}

    def temperature(self, case: Case) -> Any:
        """Return the oracle's argument of this name: a number, or the name of an input."""
        return 1 / case.scale


class LearnedInfoNceContract(InfoNceContract):
    """The temperature is a parameter of the subject, which is derived by it; what holds it is `held`."""

    differentiable = (*VIEWS, "logit_scale")
    constructed = ClipContract.constructed
    drawn: dict[str, Any] = {}

    def inputs(self, case: Case) -> Inputs:
        views = dict(zip(VIEWS, self.pair(case, case.width, 1), strict=True))
        return split_inputs(case, views, scalars(dataclasses.replace(case, bias=None)))

    def temperature(self, case: Case) -> Any:
        return "logit_scale"


def _fewer_rows(case: Case) -> Case:
    return dataclasses.replace(case, rows=tuple(min(count, MOST_ROWS) for count in case.rows))
