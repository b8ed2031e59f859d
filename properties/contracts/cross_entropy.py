"""The contract of cross-entropy over class labels with an `ignore_index`."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.cross_entropy import cross_entropy_loss

from ..cases import Case, Options, captions
from ..subjects import Subject
from . import Contract, call_in_order
from .calls import Call, Inputs


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
            drawn = drawn.map(lambda case: ignoring(case, pinned["ignore_index"]))
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

    def calls(self, case: Case) -> dict[str, Call]:
        return {"loss": Call(cross_entropy_loss, ("logits", "labels"), (case.pad_id,), asked="own")}


def ignoring(case: Case, index: int | None) -> Case:
    """Return the case with `index` as the ignored label; None is for a case in which every label counts."""
    if index is None:
        return replace(case, pads="none", pad_rows=0)
    return replace(case, pad_id=index)
