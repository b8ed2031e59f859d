"""The contract of the contrastive captioner's loss of hidden states, which makes the logits itself."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.bounds import Blocks
from verified_losses.oracles.coca_hidden import coca_hidden_loss

from ..cases import Case, Options, hidden_captions
from ..forms import Form
from ..subjects import Subject
from . import TILE_SIZES, Contract
from .calls import Call, Inputs
from .clip import ClipContract
from .coca import CoCaContract
from .linear_cross_entropy import SMOOTHINGS, Z_LOSSES
from .parts import STUDENT

PROJECTION = ("hidden_states", "vocabulary_weight", "vocabulary_bias")


def call_without_logits(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss with tensors by name, and no logits."""
    return loss(logits=None, **given, **({"output_dict": True} if output_dict else {}))


class CoCaHiddenContract(CoCaContract):
    """The contract `coca`, of hidden states and the weight of the vocabulary instead of logits.

    The subject is called as for `coca`, with `logits=None`, `hidden_states` [b, t, width],
    `vocabulary_weight` [v, width] and, where a case has a `logit_bias`, a `vocabulary_bias` [v].
    """

    name = "coca_hidden"
    differentiable: tuple[str, ...] = (*STUDENT, *PROJECTION)
    alike: tuple[str, ...] = (*ClipContract.alike, "vocabulary_weight", "vocabulary_bias")
    assumed: dict[str, Any] = CoCaContract.assumed | {"label_smoothing": 0.0, "z_loss": 0.0, "tile_size": 1}
    left_out = ("logits",)
    call_with: Callable[[Any, dict[str, Any], bool], Any] = staticmethod(call_without_logits)

    def in_form(self, form: Form) -> Contract:
        return self

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        return st.builds(
            lambda drawn, size, smoothing, factor: (
                *drawn,
                ("tile_size", size),
                ("label_smoothing", smoothing),
                ("z_loss", factor),
            ),
            super().options(subject, world_size),
            TILE_SIZES,
            SMOOTHINGS,
            Z_LOSSES,
        )

    def inputs(self, case: Case) -> Inputs:
        hidden, weight, bias, labels = hidden_captions(case)
        shared = {"vocabulary_weight": weight} | ({} if case.bias is None else {"vocabulary_bias": bias})
        return [
            {
                **given,
                "hidden_states": part,
                **{name: one.copy() for name, one in shared.items()},
                "labels": ids,
            }
            for given, part, ids in zip(
                ClipContract.inputs(self, case), case.split(hidden), case.split(labels), strict=True
            )
        ]

    def calls(self, case: Case) -> dict[str, Call]:
        columns = STUDENT, PROJECTION, "labels"
        options = (case.option(name, 0.0) for name in ("label_smoothing", "z_loss"))
        return self.of_terms(Call(coca_hidden_loss, columns, (*self.arguments(case), *options)))

    def absent(self, case: Case) -> dict[str, float]:
        return super().absent(case) | ({"vocabulary_bias": 0.0} if case.bias is None else {})

    def blocks(self, case: Case) -> Blocks:
        """Each chunk of tokens may give a part of its own; chunks of unknown size may be of one token."""
        return Blocks(case.option("tile_size", None) or 1)
