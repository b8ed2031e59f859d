"""Whom a finding concerns: everyone who trains, or those who do something that not everyone does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..cases import Case
from ..examples import Example
from ..laws import (
    AUTOCAST,
    COMPILE,
    COTANGENTS,
    EVAL,
    FROZEN,
    HOSTILE,
    INFERENCE,
    INFERENCE_MODE,
    LAYOUTS,
    REUSE,
    SECOND_DERIVATIVES,
    SUBCLASSES,
    TRACES,
    TRAINING,
    TRANSFORMS,
    Falsified,
    laws,
)

if TYPE_CHECKING:
    from .certifier import Finding

Falsifies = Callable[[Example], bool]
"""Whether the law fails on another example too."""


@dataclass(frozen=True)
class Concern:
    """A group of findings, as people read it."""

    name: str
    heading: str
    config: str = ""
    """An option to pin, with which nobody meets them."""

    @property
    def skip(self) -> tuple[str, ...]:
        """The properties that are about nothing else: those to skip if all of it is accepted."""
        return tuple(law.name for law in laws() if law.concerns == self.name and self.name in WHOLE)


CONCERNS = {
    one.name: one
    for one in (
        Concern(TRAINING, "what makes a plain training step wrong"),
        Concern(REUSE, "what is met with cached labels alone", "cache_labels=false"),
        Concern(INFERENCE_MODE, "what is met under inference mode, or after it, alone"),
        Concern(EVAL, "what is met in eval mode alone"),
        Concern(COTANGENTS, "what is met where backward gets another number than 1, as of a weighted loss"),
        Concern(LAYOUTS, "what is met with inputs or gradients that are not contiguous alone"),
        Concern(COMPILE, "what is met under torch.compile alone"),
        Concern(SECOND_DERIVATIVES, "what is met by those who derive twice, as for a gradient penalty"),
        Concern(TRACES, "what a call leaves behind in the process"),
        Concern(AUTOCAST, "what is met under autocast alone"),
        Concern(FROZEN, "what is met where some ranks alone freeze an input"),
        Concern(TRANSFORMS, "what is met under torch.func alone"),
        Concern(SUBCLASSES, "what is met with inputs that are subclasses of tensors alone"),
        Concern(HOSTILE, "what is met with inputs that nobody should send alone"),
    )
}
"""By name, what concerns most people first."""
WHOLE = (
    EVAL,
    COTANGENTS,
    COMPILE,
    SECOND_DERIVATIVES,
    TRACES,
    AUTOCAST,
    FROZEN,
    TRANSFORMS,
    SUBCLASSES,
    HOSTILE,
)
"""Those that have laws of their own."""


def place(name: str) -> int:
    """Return the place of a concern, from 0; an unknown one is taken for the first."""
    return list(CONCERNS).index(name) if name in CONCERNS else 0


def concern(finding: "Finding", falsifies: Falsifies | None = None) -> str:
    """Return whom a finding concerns, by its law and its smallest case.

    Args:
        finding: what is falsified.
        falsifies: runs the law again on the smallest case with contiguous tensors; where it is not given, a
            smallest case is taken to need the layout that it has.
    """
    own, example = finding.check.law.concerns, finding.smallest
    error = finding.error
    noted = isinstance(error, Falsified) and error.place is not None and error.place.note == INFERENCE
    if own == TRAINING and noted:
        return INFERENCE_MODE
    if example is None or own not in (TRAINING, REUSE, COTANGENTS):
        return own
    plain = contiguous(example)
    if plain != example and not (falsifies and falsifies(plain)):
        return LAYOUTS
    if own == REUSE:
        if example.case.option("cache_labels"):
            return REUSE
        return INFERENCE_MODE if any(step.mode == "inference" for step in example.steps) else TRAINING
    return own


def of(finding: "Finding") -> str:
    """Return whom a finding concerns; where no case was run again to tell, by the smallest one."""
    return finding.concern or concern(finding)


def contiguous(example: Example) -> Example:
    """Return an example with contiguous inputs and gradients in all of its calls."""

    def plain(case: Case) -> Case:
        return replace(case, strides="contiguous", cotangent_strides="contiguous")

    return example.changed(plain)
