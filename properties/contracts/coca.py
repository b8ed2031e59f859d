"""The contract of the contrastive captioner's loss."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.coca import coca_loss

from ..cases import Case, Options, captions
from ..forms import Form
from ..subjects import Subject
from . import Contract
from .calls import Call, Inputs
from .clip import ClipContract
from .parts import ASSUMED, FEATURES, STUDENT, flags, gather_options, obeys_mean
from .total import Total

WEIGHTS = st.sampled_from([1.0, 2.0, 0.5, 0.0])


class CoCaContract(ClipContract):
    """A weighted contrastive term, and a weighted mean over the tokens of all ranks."""

    name = "coca"
    terms: tuple[str, ...] = ("contrastive_loss", "caption_loss")
    differentiable: tuple[str, ...] = (*FEATURES, "logit_scale", "logit_bias", "logits")
    drawn = {"captions": True}
    assumed = ASSUMED | {"clip_loss_weight": 1.0, "caption_loss_weight": 1.0, "pad_id": 0}

    def in_form(self, form: Form) -> Contract:
        return CoCaTotal() if form.total else self

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        return st.builds(
            lambda drawn, clip, caption: (
                *drawn,
                ("clip_loss_weight", clip),
                ("caption_loss_weight", caption),
            ),
            gather_options(subject),
            WEIGHTS,
            WEIGHTS,
        )

    def constructor(self, case: Case) -> dict[str, Any]:
        return {**dict(case.options), "pad_id": case.pad_id}

    def obeys_mean(self, case: Case) -> bool:
        return obeys_mean(case) and (case.world_size == 1 or case.convention == "exact")

    def inputs(self, case: Case) -> Inputs:
        logits, labels = (case.split(array) for array in captions(case))
        return [
            {**given, "logits": logits[rank], "labels": labels[rank]}
            for rank, given in enumerate(super().inputs(case))
        ]

    def calls(self, case: Case) -> dict[str, Call]:
        return self.of_terms(Call(coca_loss, (STUDENT, "logits", "labels"), self.arguments(case)))

    def arguments(self, case: Case) -> tuple[Any, ...]:
        """Return the oracle's arguments: flags, weights and the label of padding."""
        return *flags(case), *self._weights(case), case.pad_id

    def of_terms(self, call: Call) -> dict[str, Call]:
        """Return the terms of a call that returns both."""
        return {name: replace(call, place=place) for place, name in enumerate(self.terms)}

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """A term of weight 0 reaches nothing."""
        clip_weight, caption_weight = self._weights(case)
        return {
            name: want
            for name, want in super().gradient_expected(case).items()
            if (clip_weight if name in STUDENT else caption_weight) or not want
        }

    def _weights(self, case: Case) -> tuple[float, float]:
        return case.option("clip_loss_weight"), case.option("caption_loss_weight")


class CoCaTotal(Total, CoCaContract):
    """The sum of both terms."""

    parts = CoCaContract()
