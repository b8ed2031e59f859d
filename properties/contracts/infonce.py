"""The contract of InfoNCE over cosines, from queries to keys."""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles import rounding
from verified_losses.oracles.clip import get_ground_truth, row_weight
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.gather import occurrences
from verified_losses.oracles.infonce import infonce_loss, normalize
from verified_losses.oracles.rounding import Magnitude, Precision, Weight

from ..cases import SCALES, Case, feature_pair
from ..subjects import Subject
from . import Bounds, Cotangents, Inputs, Sum, call_in_order
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
    in_order = True
    call_with = staticmethod(call_in_order)
    terms: tuple[str, ...] = ("contrastive_loss",)
    differentiable: tuple[str, ...] = VIEWS
    constructed = (*ClipContract.constructed, "scale")
    most_rows = MOST_ROWS
    undrawn = (ZERO_ROWS,)
    drawn: dict[str, Any] = {"scales": SCALES.filter(bool)}  # a temperature is its inverse

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        return super().cases(subject, world_size).map(_fewer_rows)

    def inputs(self, case: Case) -> Inputs:
        views = [array.copy() for array in feature_pair(case, case.width, 1)]
        for view in views:
            # the cosine with a row of zeros is not defined
            view[~view.any(axis=1), 0] = 1
        return split_inputs(case, dict(zip(VIEWS, views, strict=True)), {})

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
            {"contrastive_loss": infonce_loss(first, second, 1 / case.scale, rank, *flags(case))}
            for rank in range(case.world_size)
        ]

    def oracle_source(self, case: Case) -> dict[str, str]:
        columns = f"{', '.join(VIEWS)}, {1 / case.scale!r}"
        return {"contrastive_loss": call_of(f"{self.name}_loss", columns, case, *flags(case))}

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p = case.precision
        sums = Sum(inputs)
        local_loss, gather_with_grad, convention = flags(case)
        rows = list(case.rows)
        queries, keys = (np.concatenate(column(inputs, name)) for name in VIEWS)
        terms = []
        for rank in range(case.world_size):
            own = owned(rows, rank, local_loss)
            z = rounding.cosine_logits(1 / case.scale, normalize(queries[own]), normalize(keys), p)
            labels = get_ground_truth(rows, rank, local_loss)
            weight = Weight.of(row_weight(rows, is_local(case)), *rows, sum(rows), len(rows))
            value, slope = rounding.cross_entropy(z, one_hot(labels, z), p)
            terms.append({"contrastive_loss": np.asarray(rounding.total(value, weight, p))})
            gradient = weight.times(cotangents[rank]["contrastive_loss"])
            unit = normalize(queries[own]), normalize(keys)
            x, y = rounding.through_cosine(slope, gradient, 1 / case.scale, *unit, p)
            times = occurrences(rank, case.world_size, local_loss, gather_with_grad, convention)
            own_times = [float(r == rank) for r in range(case.world_size)] if is_local(case) else times
            add_rows(sums, VIEWS[0], spread(x, own, len(queries)), queries, rows, own_times, p)
            add_rows(sums, VIEWS[1], y, keys, rows, times, p)
        return Bounds(terms, sums.bounds(p))


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


def add_rows(
    sums: Sum, name: str, part: Magnitude, features: Array, rows: list[int], times: list[float], p: Precision
) -> None:
    """Add a part of all normalised rows, `times[rank]` times, to the gradients of their features."""
    through = rounding.through_normalize(part, features, p)
    starts = np.cumsum([0, *rows])
    for rank, count in enumerate(times):
        if count:
            own = slice(starts[rank], starts[rank + 1])
            sums.add(rank, name, Magnitude(through.error[own], through.size[own]), count)
