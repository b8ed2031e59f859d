"""The contract of the contrastive captioner's loss."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles import rounding
from verified_losses.oracles.coca import coca_loss
from verified_losses.oracles.rounding import Bounded, Magnitude, Weight

from ..cases import Case, Options, captions
from ..forms import Form
from ..subjects import Subject
from . import Bounds, Contract, Cotangents, Inputs, Sum
from .clip import ClipContract
from .parts import (
    ASSUMED,
    FEATURES,
    STUDENT,
    call_of,
    column,
    contrastive_bounds,
    flags,
    gather_options,
    obeys_mean,
    one_hot,
    student,
)
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

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        columns = student(inputs), column(inputs, "logits"), column(inputs, "labels")
        return [
            dict(zip(self.terms, coca_loss(*columns, rank, *self._arguments(case)), strict=True))
            for rank in range(case.world_size)
        ]

    def oracle_source(self, case: Case) -> dict[str, str]:
        columns = f"({', '.join(STUDENT)}), logits, labels"
        both = call_of("coca_loss", columns, case, *self._arguments(case))
        return {name: f"{both}[{place}]" for place, name in enumerate(self.terms)}

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """A term of weight 0 reaches nothing."""
        clip_weight, caption_weight = self._weights(case)
        return {
            name: want
            for name, want in super().gradient_expected(case).items()
            if (caption_weight if name == "logits" else clip_weight) or not want
        }

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p = case.precision
        clip_weight, caption_weight = self._weights(case)
        sums = Sum(inputs)
        pairs = self.directions(case, inputs)
        terms = contrastive_bounds(case, pairs, "contrastive_loss", clip_weight, cotangents, sums)
        tokens = [int(np.count_nonzero(given["labels"] != case.pad_id)) for given in inputs]
        for rank, given in enumerate(inputs):
            divisor = sum(tokens) / len(tokens) if case.convention == "exact" else tokens[rank]
            value = caption_weight / max(divisor, 1 / len(tokens))
            weight = Weight.of(value, caption_weight, *tokens, sum(tokens), len(tokens))
            is_token = given["labels"] != case.pad_id
            z = given["logits"].reshape(-1, case.vocabulary)
            exact = Bounded(z, np.zeros(z.shape))
            hot = one_hot(np.where(is_token, given["labels"], 0).reshape(-1), exact)
            values, slope = rounding.cross_entropy(exact, hot, p.of_given_logits)
            kept = is_token.reshape(-1)
            error = rounding.total(Bounded(values.value[kept], values.error[kept]), weight, p)
            terms[rank]["caption_loss"] = np.asarray(error if caption_weight else 0.0)
            gradient = rounding.weighed(slope, weight.times(cotangents[rank]["caption_loss"]), p)
            sums.add(rank, "logits", Magnitude(*(part * kept[:, None] for part in gradient)))
        return Bounds(terms, sums.bounds(p, self.through(case)))

    def _arguments(self, case: Case) -> tuple[Any, ...]:
        """Return the oracle's arguments after the rank."""
        return *flags(case), *self._weights(case), case.pad_id

    def _weights(self, case: Case) -> tuple[float, float]:
        return case.option("clip_loss_weight"), case.option("caption_loss_weight")


class CoCaTotal(Total, CoCaContract):
    """The sum of both terms."""

    parts = CoCaContract()
