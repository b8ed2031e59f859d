"""The contract of a cross-entropy of hidden states, which makes the logits itself."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.bounds import Blocks
from verified_losses.oracles.linear_cross_entropy import linear_cross_entropy_loss

from ..cases import Case, Options, captions, projection
from ..subjects import Subject
from . import Contract, accepted
from .calls import Call, Inputs
from .cross_entropy import ignoring

SMOOTHINGS = st.sampled_from([0.0, 0.0, 0.1, 1.0])
Z_LOSSES = st.sampled_from([0.0, 0.0, 1e-4, 0.5])
CHUNK_SIZES = st.sampled_from([1024, 1, 2, 7, 16, 64])
"""Above, at and below the numbers of tokens, which are few."""
INPUTS = ("hidden", "weight", "bias")


def bind_options(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Bind a function's options, or construct what needs no more; others are left out."""
    bound = functools.partial(target, **accepted(target, arguments))
    needed = [one for one in inspect.signature(bound).parameters.values() if one.default is one.empty]
    return bound if needed else bound()


def call_for_tensor(function: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a function that returns a tensor."""
    return function(**given)


class LinearCrossEntropyContract(Contract):
    """The mean or the sum over the labels that count; of several ranks, each has its own.

    The subject is a function, called with [n, width] `hidden` states, the [v, width] `weight`, [n] labels
    `target`, perhaps a [v] `bias`, and its options; or it is constructed with those. One that takes no
    `ignore_index` is given labels that all count, and one that has not stated what the mean of none is, some
    that do.
    """

    name = "linear_cross_entropy"
    is_mean = False  # a mean of means is not the mean
    terms: tuple[str, ...] = ("loss",)
    differentiable: tuple[str, ...] = INPUTS
    drawn = {"captions": True, "biases": st.sampled_from([None, 1.0])}
    assumed: dict[str, Any] = {
        "reduction": "mean",
        "label_smoothing": 0.0,
        "z_loss": 0.0,
        "ignore_index": None,
    }
    build_with: Callable[[Any, dict[str, Any], int, int], Any] = staticmethod(bind_options)
    call_with: Callable[[Any, dict[str, Any], bool], Any] = staticmethod(call_for_tensor)

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        return st.builds(
            lambda reduction, size, smoothing, factor: (
                ("reduction", reduction),
                ("chunk_size", size),
                ("label_smoothing", smoothing),
                ("z_loss", factor),
            ),
            st.sampled_from(["mean", "sum"]),
            CHUNK_SIZES,
            SMOOTHINGS,
            Z_LOSSES,
        )

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        drawn, pinned = super().cases(subject, world_size), dict(subject.options)
        if "ignore_index" in pinned:
            drawn = drawn.map(lambda case: ignoring(case, pinned["ignore_index"]))
        return drawn if subject.stated else drawn.filter(_has_labels)

    def inputs(self, case: Case) -> Inputs:
        _, labels = captions(case)
        shared = dict(zip(INPUTS, projection(case, labels.size), strict=True))
        hidden = shared.pop("hidden").reshape(*labels.shape, case.width)
        if case.bias is None:
            del shared["bias"]
        return [
            {"hidden": part.reshape(-1, case.width), **shared, "target": ids.reshape(-1)}
            for part, ids in zip(case.split(hidden), case.split(labels), strict=True)
        ]

    def constructor(self, case: Case) -> dict[str, Any]:
        return {**dict(case.options), "ignore_index": case.pad_id}

    def calls(self, case: Case) -> dict[str, Call]:
        options = (case.option(name) for name in ("reduction", "label_smoothing", "z_loss"))
        columns = "hidden", "weight", "bias", "target"
        return {"loss": Call(linear_cross_entropy_loss, columns, (case.pad_id, *options), asked="own")}

    def absent(self, case: Case) -> dict[str, float]:
        return {"bias": 0.0} if case.bias is None else {}

    def structure(self, case: Case) -> str:
        return "Tensor"

    def blocks(self, case: Case) -> Blocks:
        """Each chunk of tokens may give a part of its own."""
        return Blocks(case.option("chunk_size", 0))


def _has_labels(case: Case) -> bool:
    """Whether every rank has a label that counts."""
    return all((labels != case.pad_id).any() for labels in case.split(captions(case)[1]))
