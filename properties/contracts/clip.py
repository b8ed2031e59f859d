"""The contract of CLIP's loss."""

from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.clip import clip_loss
from verified_losses.oracles.complex_step import Array

from ..cases import Case, Options, feature_pair, scalars, without_zeros
from ..subjects import Subject
from . import Bounds, Contract, Cotangents, Inputs, Sum
from .parts import (
    ASSUMED,
    FEATURES,
    STUDENT,
    Direction,
    call_of,
    contrastive_bounds,
    directions,
    flags,
    gather_options,
    obeys_mean,
    split_inputs,
    student,
)


class ClipContract(Contract):
    """Symmetric InfoNCE over the pairs of all ranks."""

    name = "clip"
    terms: tuple[str, ...] = ("contrastive_loss",)
    differentiable: tuple[str, ...] = STUDENT
    rows: tuple[str, ...] = FEATURES
    assumed: dict[str, Any] = ASSUMED

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        return gather_options(subject)

    def obeys_mean(self, case: Case) -> bool:
        return obeys_mean(case)

    def inputs(self, case: Case) -> Inputs:
        pair = self.pair(case, case.width, 1)
        return split_inputs(case, dict(zip(FEATURES, pair, strict=True)), scalars(case))

    def pair(self, case: Case, width: int, seed: int) -> tuple[Array, Array]:
        """Return two sides' features of all ranks; none is zero that is to be normalised."""
        pair = feature_pair(case, width, seed)
        return without_zeros(pair) if self.normalizations(case) else pair

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        image, text, scale, bias = student(inputs)
        return [
            {"contrastive_loss": clip_loss(image, text, scale, bias, rank, *flags(case))}
            for rank in range(case.world_size)
        ]

    def oracle_source(self, case: Case) -> dict[str, str]:
        return {"contrastive_loss": call_of("clip_loss", ", ".join(STUDENT), case, *flags(case))}

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        sums = Sum(inputs)
        pairs = self.directions(case, inputs)
        terms = contrastive_bounds(case, pairs, "contrastive_loss", 1.0, cotangents, sums)
        return Bounds(terms, sums.bounds(case.precision, self.through(case)))

    def directions(self, case: Case, inputs: Inputs) -> list[list[Direction]]:
        """Return both directions of every rank, given its inputs."""
        ready = self.prepared(case, inputs)
        return directions(case, ready, self.further(case, ready, case.width))
