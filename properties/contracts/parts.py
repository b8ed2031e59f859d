"""Shared by contracts: inputs split over ranks, flags of losses that gather, the bounds of a direction."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles import rounding
from verified_losses.oracles.clip import get_ground_truth, row_weight
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.gather import occurrences
from verified_losses.oracles.rounding import Bounded, Further, Precision, Weight

from ..cases import Case, Options
from ..subjects import Subject
from . import Contract, Cotangents, Inputs, Sum

T = TypeVar("T")

FEATURES = ("image_features", "text_features")
STUDENT = (*FEATURES, "logit_scale", "logit_bias")


ASSUMED = {"local_loss": False, "gather_with_grad": True}


@st.composite
def gather_options(draw: st.DrawFn, subject: Subject) -> Options:
    """Draw the flags of a loss that gathers features."""
    options = {
        "convention": draw(st.sampled_from(subject.conventions)),
        "local_loss": draw(st.booleans()),
        "gather_with_grad": draw(st.booleans()),
        "cache_labels": draw(st.booleans()),
    }
    return tuple(options.items())


def flags(case: Case) -> tuple[bool, bool, str]:
    """Return local_loss, gather_with_grad and convention."""
    return case.option("local_loss"), case.option("gather_with_grad"), case.convention


def is_local(case: Case) -> bool:
    """Whether a rank's anchors are its own rows alone."""
    return bool(case.option("local_loss")) and case.world_size > 1


def obeys_mean(case: Case) -> bool:
    """Whether the flags let the mean over ranks equal the single process."""
    local_loss, gather_with_grad, convention = flags(case)
    if case.world_size == 1 or gather_with_grad:
        return True
    return convention == "exact" and not local_loss


def call_of(function: str, columns: str, case: Case, *arguments: object) -> str:
    """Return the call of an oracle for `rank` as Python; a bias that the case lacks is 0 on every rank."""
    if case.bias is None:
        columns = re.sub(r"\w*logit_bias", f"[0.0] * {case.world_size}", columns)
    shown = (f'"{value}"' if isinstance(value, str) else repr(value) for value in arguments)
    return f"{function}({', '.join([columns, 'rank', *shown])})"


def split_inputs(case: Case, features: dict[str, Array], shared: dict[str, Array]) -> Inputs:
    """Give every rank its rows of the features, and its own copy of the shared inputs."""
    parts = {name: case.split(array) for name, array in features.items()}
    return [
        {name: part[rank] for name, part in parts.items()} | {k: v.copy() for k, v in shared.items()}
        for rank in range(case.world_size)
    ]


def column(inputs: Inputs, name: str, default: float = 0.0) -> list[Array]:
    """Return one input of every rank; scalars without their shape."""
    if name in Contract.scalars:
        return [given[name].reshape(()) if name in given else np.asarray(default) for given in inputs]
    return [given[name] for given in inputs]


Columns = tuple[list[Array], list[Array], list[Array], list[Array]]


def student(inputs: Inputs, prefix: str = "") -> Columns:
    """Return every rank's image features, text features, scale and bias."""
    return (
        column(inputs, f"{prefix}image_features"),
        column(inputs, f"{prefix}text_features"),
        column(inputs, f"{prefix}logit_scale"),
        column(inputs, f"{prefix}logit_bias"),
    )


@dataclass(frozen=True)
class Direction:
    """One of the two cross-entropies of one rank: anchors against a gallery."""

    rank: int
    names: tuple[str, str]
    anchors: Array
    gallery: Array
    labels: Array
    scale: float
    bias: float
    times: tuple[list[float], list[float]]
    """How often each rank's rows carry gradient as anchors, and as gallery."""
    rows: list[int]
    local: bool
    further: Further
    scalar_names: tuple[str, str] = field(default=("logit_scale", "logit_bias"))

    def logits(self, p: Precision) -> Bounded:
        """Bound the logits."""
        return rounding.logits(self.scale, self.anchors, self.gallery, self.bias, p, self.further)

    def add_gradients(self, sums: Sum, slope: Bounded, weight: Weight, p: Precision) -> None:
        """Add the parts of the gradients; `weight * slope` is the gradient of the logits."""
        given = slope, weight, self.scale, self.anchors, self.gallery, p, self.further
        parts = rounding.through_logits(*given)
        sums.add(self.rank, self.scalar_names[0], parts["scale"])
        sums.add(self.rank, self.scalar_names[1], parts["bias"])
        starts = np.cumsum([0, *self.rows])
        for key, name, times in zip("xy", self.names, self.times, strict=True):
            if key == "x" and self.local:
                sums.add(self.rank, name, parts[key])
                continue
            for rank, count in enumerate(times):
                if count:
                    rows = slice(starts[rank], starts[rank + 1])
                    part = rounding.Magnitude(parts[key].error[rows], parts[key].size[rows])
                    sums.add(rank, name, part, count)


def directions(case: Case, inputs: Inputs, further: Further, prefix: str = "") -> list[list[Direction]]:
    """Return both directions of every rank, given prepared inputs and how far they err by themselves."""
    local_loss, gather_with_grad, convention = flags(case)
    scale_name, bias_name = f"{prefix}logit_scale", f"{prefix}logit_bias"
    rows = list(case.rows)
    everyone = []
    for rank in range(case.world_size):
        times = occurrences(rank, case.world_size, local_loss, gather_with_grad, convention)
        labels = get_ground_truth(rows, rank, local_loss)
        pair = []
        for names in (FEATURES, FEATURES[::-1]):
            anchor, gallery = f"{prefix}{names[0]}", f"{prefix}{names[1]}"
            every_anchor = np.concatenate(column(inputs, anchor))
            pair.append(
                Direction(
                    rank,
                    (anchor, gallery),
                    inputs[rank][anchor] if is_local(case) else every_anchor,
                    np.concatenate(column(inputs, gallery)),
                    labels,
                    float(column(inputs, scale_name)[rank]),
                    float(column(inputs, bias_name)[rank]),
                    (times, times),
                    rows,
                    is_local(case),
                    further,
                    (scale_name, bias_name),
                )
            )
        everyone.append(pair)
    return everyone


def row_weighing(case: Case, factor: float = 1.0) -> Weight:
    """Return the weight of a row in both directions."""
    rows = list(case.rows)
    value = factor * row_weight(rows, case.option("local_loss")) / 2
    return Weight.of(value, factor, *rows, sum(rows), len(rows))


def of_every_rank(case: Case, bound: Callable[[int], T]) -> list[T]:
    """Return `bound(rank)` for each rank; one call is enough unless anchors are local."""
    if is_local(case):
        return [bound(rank) for rank in range(case.world_size)]
    return [bound(0)] * case.world_size


def joined(parts: list[Bounded]) -> Bounded:
    """Return the values of several parts as one."""
    return Bounded(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def one_hot(labels: Array, z: Bounded) -> Bounded:
    """Return the labels as exact probabilities."""
    hot = np.zeros(z.value.shape)
    hot[np.arange(len(labels)), labels] = 1
    return Bounded(hot, np.zeros(hot.shape))


def contrastive_bounds(
    case: Case,
    pairs: list[list[Direction]],
    term: str,
    factor: float,
    cotangents: Cotangents,
    sums: Sum,
) -> list[dict[str, Array]]:
    """Bound the contrastive term of every rank, given its directions, and add its gradients to `sums`."""
    p = case.precision
    weight = row_weighing(case, factor)

    def entropies(rank: int) -> list[tuple[Bounded, Bounded]]:
        bounded = []
        for direction in pairs[rank]:
            z = direction.logits(p)
            bounded.append(rounding.cross_entropy(z, one_hot(direction.labels, z), p.of_given_logits))
        return bounded

    terms = []
    for rank, bounded in enumerate(of_every_rank(case, entropies)):
        for direction, (_, slope) in zip(pairs[rank], bounded, strict=True):
            direction.add_gradients(sums, slope, weight.times(cotangents[rank][term]), p)
        total = rounding.total(joined([value for value, _ in bounded]), weight, p)
        terms.append({term: np.asarray(total)})
    return terms
