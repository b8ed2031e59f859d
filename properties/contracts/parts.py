"""Shared by contracts: inputs split over ranks, and the flags of losses that gather."""

from hypothesis import strategies as st

from verified_losses.oracles.complex_step import Array

from ..cases import Case, Options
from ..subjects import Subject
from .calls import Inputs

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


def split_inputs(case: Case, features: dict[str, Array], shared: dict[str, Array]) -> Inputs:
    """Give every rank its rows of the features, and its own copy of the shared inputs."""
    parts = {name: case.split(array) for name, array in features.items()}
    return [
        {name: part[rank] for name, part in parts.items()} | {k: v.copy() for k, v in shared.items()}
        for rank in range(case.world_size)
    ]
