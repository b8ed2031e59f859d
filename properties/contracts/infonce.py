"""The contract of InfoNCE over cosines, from queries to keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles import rounding
from verified_losses.oracles.clip import get_ground_truth, row_weight
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.gather import occurrences
from verified_losses.oracles.infonce import infonce_loss, normalize
from verified_losses.oracles.rounding import Magnitude, Weight, gamma

from ..cases import SCALES, Case, scalars
from ..forms import Form
from ..subjects import Subject
from . import Bounds, Contract, Cotangents, Inputs, Sum, call_in_order
from .clip import ClipContract
from .parts import call_of, column, flags, is_local, one_hot, split_inputs

VIEWS = ("first", "second")
MOST_ROWS = 32
"""Of a rank: some implementations compare every pair of pairs."""

ZERO_ROWS = "rows of zeros: a cosine with one is not defined"


class InfoNceContract(ClipContract):
    """The mean cross-entropy of each query's key among all keys.

    The subject is constructed with a `temperature` and called with the queries and the keys.
    """

    name = "infonce"
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
    formula: Callable[..., complex] = staticmethod(infonce_loss)
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

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        first, second = (column(inputs, name) for name in VIEWS)
        return [
            {
                "contrastive_loss": self.formula(
                    first, second, temperature, rank, *flags(case), *self._dot(case)
                )
            }
            for rank, temperature in enumerate(self.temperatures(case, inputs))
        ]

    def temperatures(self, case: Case, inputs: Inputs) -> list[Any]:
        """Return every rank's temperature, given prepared inputs, which may be complex."""
        return [1 / case.scale] * case.world_size

    def scales(self, case: Case, inputs: Inputs) -> list[float]:
        """Return what every rank's similarities are multiplied with, given prepared inputs."""
        return [case.scale] * case.world_size

    def temperature_source(self, case: Case) -> str:
        """Return the temperature on `rank` as Python."""
        return repr(1 / case.scale)

    def oracle_source(self, case: Case) -> dict[str, str]:
        columns = f"{', '.join(VIEWS)}, {self.temperature_source(case)}"
        arguments = *flags(case), *self._dot(case)
        return {"contrastive_loss": call_of(f"{self.name}_loss", columns, case, *arguments)}

    def further(self, case: Case, inputs: Inputs, width: int, prefix: str = "") -> rounding.Further:
        """Count the roundings of the temperature too: of a quotient, or a product with its reciprocal."""
        further = super().further(case, inputs, width, prefix)
        of_temperature = (1 + further.scale) * (1 + gamma(3, case.precision.accumulated)) - 1
        return further._replace(scale=float(of_temperature))

    def ready(self, case: Case, inputs: Inputs) -> list[Array]:
        """Return both views of all ranks, as the logits are made of them."""
        views = [np.concatenate(column(self.prepared(case, inputs), name)) for name in VIEWS]
        return [normalize(view) for view in views] if self.normalizations(case) else views

    def _dot(self, case: Case) -> tuple[bool, ...]:
        """Return the oracle's last argument where the similarity is no cosine."""
        return () if self.normalizations(case) else (False,)

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p = case.precision
        sums = Sum(inputs)
        local_loss, gather_with_grad, convention = flags(case)
        rows = list(case.rows)
        queries, keys = self.ready(case, inputs)
        prepared = self.prepared(case, inputs)
        further, scales = self.further(case, prepared, case.width), self.scales(case, prepared)
        terms = []
        for rank in range(case.world_size):
            own = owned(rows, rank, local_loss)
            z = rounding.logits(scales[rank], queries[own], keys, 0.0, p, further)
            labels = get_ground_truth(rows, rank, local_loss)
            weight = Weight.of(row_weight(rows, is_local(case)), *rows, sum(rows), len(rows))
            value, slope = rounding.cross_entropy(z, one_hot(labels, z), p.of_given_logits)
            terms.append({"contrastive_loss": np.asarray(rounding.total(value, weight, p))})
            gradient = weight.times(cotangents[rank]["contrastive_loss"])
            given = slope, gradient, scales[rank], queries[own], keys, p, further
            parts = rounding.through_logits(*given)
            sums.add(rank, "logit_scale", parts["scale"])
            times = occurrences(rank, case.world_size, local_loss, gather_with_grad, convention)
            own_times = [float(r == rank) for r in range(case.world_size)] if is_local(case) else times
            add_rows(sums, VIEWS[0], spread(parts["x"], own, len(queries)), rows, own_times)
            add_rows(sums, VIEWS[1], parts["y"], rows, times)
        return Bounds(terms, sums.bounds(p, self.through(case)))


class LearnedInfoNceContract(InfoNceContract):
    """The temperature is a parameter of the subject, which is derived by it; what holds it is `held`."""

    differentiable = (*VIEWS, "logit_scale")
    constructed = ClipContract.constructed
    drawn: dict[str, Any] = {}

    def inputs(self, case: Case) -> Inputs:
        views = dict(zip(VIEWS, self.pair(case, case.width, 1), strict=True))
        return split_inputs(case, views, scalars(dataclasses.replace(case, bias=None)))

    def temperatures(self, case: Case, inputs: Inputs) -> list[Any]:
        return [1 / scale for scale in column(inputs, "logit_scale")]

    def scales(self, case: Case, inputs: Inputs) -> list[float]:
        return [float(scale) for scale in column(inputs, "logit_scale")]

    def temperature_source(self, case: Case) -> str:
        return "1 / logit_scale[rank].reshape(())"


def _fewer_rows(case: Case) -> Case:
    return dataclasses.replace(case, rows=tuple(min(count, MOST_ROWS) for count in case.rows))


def owned(rows: list[int], rank: int, local_loss: bool) -> Array:
    """Return which of all rows are the anchors of `rank`."""
    if not local_loss or len(rows) == 1:
        return np.arange(sum(rows))
    return sum(rows[:rank]) + np.arange(rows[rank])


def spread(part: Magnitude, places: Array, total: int) -> Magnitude:
    """Return the part of some rows as a part of all `total` rows, zero elsewhere."""
    error, size = np.zeros((total, part.error.shape[1])), np.zeros((total, part.size.shape[1]))
    error[places], size[places] = part.error, part.size
    return Magnitude(error, size)


def add_rows(sums: Sum, name: str, part: Magnitude, rows: list[int], times: list[float]) -> None:
    """Add a part of all rows, `times[rank]` times, to the gradients of each rank's."""
    starts = np.cumsum([0, *rows])
    for rank, count in enumerate(times):
        if count:
            own = slice(starts[rank], starts[rank + 1])
            sums.add(rank, name, Magnitude(part.error[own], part.size[own]), count)
