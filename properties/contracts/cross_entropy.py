"""The contract of cross-entropy over class labels with an `ignore_index`."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles import rounding
from verified_losses.oracles.cross_entropy import cross_entropy_loss
from verified_losses.oracles.rounding import Bounded, Magnitude, Weight

from ..cases import Case, Options, captions
from ..subjects import Subject
from . import Bounds, Contract, Cotangents, Inputs, Sum, call_in_order
from .parts import one_hot


class CrossEntropyContract(Contract):
    """The mean over the labels that count; of several ranks, each has its own.

    The subject is constructed with an `ignore_index` and called with [n, c] logits and [n] labels. One that
    takes no `ignore_index` is given labels that all count.
    """

    name = "cross_entropy"
    in_order = True
    call_with = staticmethod(call_in_order)
    is_mean = False  # a mean of means is not the mean
    terms: tuple[str, ...] = ("loss",)
    differentiable: tuple[str, ...] = ("logits",)
    drawn = {"captions": True}
    assumed: dict[str, Any] = {"ignore_index": None}

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        return st.just(subject.options)

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        drawn, pinned = super().cases(subject, world_size), dict(subject.options)
        if "ignore_index" in pinned:
            drawn = drawn.map(lambda case: _ignoring(case, pinned["ignore_index"]))
        return drawn.filter(self.defined)

    def defined(self, case: Case) -> bool:
        """Every rank needs a label that counts: else there is no mean."""
        return all((given["labels"] != case.pad_id).any() for given in self.inputs(case))

    def inputs(self, case: Case) -> Inputs:
        logits, labels = (case.split(array) for array in captions(case))
        return [
            {"logits": z.reshape(-1, case.vocabulary), "labels": ids.reshape(-1)}
            for z, ids in zip(logits, labels, strict=True)
        ]

    def constructor(self, case: Case) -> dict[str, Any]:
        return {**dict(case.options), "ignore_index": case.pad_id}

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        return [
            {"loss": cross_entropy_loss(given["logits"], given["labels"], case.pad_id)} for given in inputs
        ]

    def oracle_source(self, case: Case) -> dict[str, str]:
        return {"loss": f"cross_entropy_loss(logits[rank], labels[rank], {case.pad_id})"}

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p = case.precision
        sums = Sum(inputs)
        terms = []
        for rank, given in enumerate(inputs):
            kept = given["labels"] != case.pad_id
            tokens = int(np.count_nonzero(kept))
            weight = Weight.of(1 / tokens, tokens)
            z = Bounded(given["logits"], np.zeros(given["logits"].shape))
            hot = one_hot(np.where(kept, given["labels"], 0), z)
            value, slope = rounding.cross_entropy(z, hot, p.of_given_logits)
            counted = Bounded(value.value[kept], value.error[kept])
            terms.append({"loss": np.asarray(rounding.total(counted, weight, p))})
            gradient = rounding.weighed(slope, weight.times(cotangents[rank]["loss"]), p)
            sums.add(rank, "logits", Magnitude(*(part * kept[:, None] for part in gradient)))
        return Bounds(terms, sums.bounds(p))


def _ignoring(case: Case, index: int | None) -> Case:
    """Return the case with `index` as the ignored label; None is for a case in which every label counts."""
    if index is None:
        return replace(case, pads="none", pad_rows=0)
    return replace(case, pad_id=index)
