"""The contract of CLIP's loss."""

from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.clip import clip_loss
from verified_losses.oracles.complex_step import Array

from ..cases import Case, Options, feature_pair, scalars, without_zeros
from ..subjects import Subject
from . import Contract
from .calls import Call, Inputs
from .parts import ASSUMED, FEATURES, STUDENT, flags, gather_options, obeys_mean, split_inputs


class ClipContract(Contract):
    """Symmetric InfoNCE over the pairs of all ranks."""

    name = "clip"
    terms: tuple[str, ...] = ("contrastive_loss",)
    differentiable: tuple[str, ...] = STUDENT
    rows: tuple[str, ...] = FEATURES
    takes_empty_ranks = True
    assumed: dict[str, Any] = ASSUMED

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        return gather_options(subject)

    def obeys_mean(self, case: Case) -> bool:
        return obeys_mean(case)

    def inputs(self, case: Case) -> Inputs:
        pair = self.pair(case, case.width, 1)
        return split_inputs(case, dict(zip(FEATURES, pair, strict=True)), scalars(case))

    def calls(self, case: Case) -> dict[str, Call]:
        return {"contrastive_loss": Call(clip_loss, STUDENT, flags(case))}

    def pair(self, case: Case, width: int, seed: int) -> tuple[Array, Array]:
        """Return two sides' features of all ranks; none is zero that is to be normalised."""
        pair = feature_pair(case, width, seed)
        return without_zeros(pair) if self.normalizations(case) else pair
