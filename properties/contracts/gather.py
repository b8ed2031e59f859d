"""The contract of the gather: every rank's rows on every rank."""

import functools
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.gather import gather_features

from ..cases import Case, Options, feature_pair
from ..names import STRIDES
from ..subjects import Subject
from . import Contract, accepted
from .calls import Call, Inputs
from .parts import ASSUMED, FEATURES, flags, gather_options, split_inputs


def bind_flags(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Bind a function's flags; those that it does not take are left out."""
    flags = accepted(target, {**arguments, "rank": rank, "world_size": world_size})
    return functools.partial(target, **flags)


def call_for_tensors(function: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a function that returns tensors alone."""
    return function(**given)


class GatherContract(Contract):
    """Rows of all ranks in rank order, bit by bit; gradients summed over the ranks that used them."""

    name = "gather"
    terms: tuple[str, ...] = ("all_image_features", "all_text_features")
    differentiable: tuple[str, ...] = FEATURES
    is_loss = False
    is_mean = False
    takes_empty_ranks = True
    assumed: dict[str, Any] = ASSUMED
    drawn = {"cotangent_strides": (*STRIDES, "expanded")}
    build_with: Callable[[Any, dict[str, Any], int, int], Any] = staticmethod(bind_flags)
    call_with: Callable[[Any, dict[str, Any], bool], Any] = staticmethod(call_for_tensors)

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        return gather_options(subject).map(lambda flags: tuple(f for f in flags if f[0] != "cache_labels"))

    def inputs(self, case: Case) -> Inputs:
        pair = feature_pair(case, case.width, 1)
        return split_inputs(case, dict(zip(FEATURES, pair, strict=True)), {})

    def term_shapes(self, case: Case) -> list[dict[str, tuple[int, ...]]]:
        return [dict.fromkeys(self.terms, (sum(case.rows), case.width)) for _ in case.rows]

    def calls(self, case: Case) -> dict[str, Call]:
        return {f"all_{name}": Call(gather_features, (name,), self._flags(case)) for name in FEATURES}

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """Constants alone get none, and may get zeros."""
        constant = case.world_size > 1 and flags(case)[:2] == (True, False)
        expected = super().gradient_expected(case)
        return {name: want for name, want in expected.items() if not (want and constant)}

    def structure(self, case: Case) -> str:
        return "tuple of 2"

    def _flags(self, case: Case) -> tuple[bool, bool, str]:
        # with one rank there is nothing to gather, and upstream's function is not called
        return (False, True, "exact") if case.world_size == 1 else flags(case)
