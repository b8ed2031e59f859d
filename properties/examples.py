"""The input of one run of a law: drawn by Hypothesis, written as JSON, and as Python."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from . import devices
from .cases import Case
from .worlds.simulated import Sends

Mode = Literal[
    "train", "inference", "compiled", "derived again", "autocast bfloat16", "autocast float16"
]  # fmt: skip
""""derived again": the gradients are those that a second backward through one graph adds."""


@dataclass(frozen=True)
class Step:
    """One call of the subject: a case, and under which mode of torch."""

    case: Case
    mode: Mode = "train"


@dataclass(frozen=True)
class Example:
    """A case, the calls that one object has seen before it, and how simulated ranks take turns."""

    case: Case
    steps: tuple[Step, ...] = ()
    schedule: int | None = None
    """A seed; None runs each simulated rank until it has to wait."""
    sends: Sends = "rendezvous"
    """When a send of a simulated rank ends."""

    def __str__(self) -> str:
        how = "" if self.is_plain else f"schedule {self.schedule}, sends {self.sends}: "
        before = "".join(f"{step.mode}: {step.case}\n" for step in self.steps)
        return f"{how}{before}{'then ' if self.steps else ''}{self.case}"

    @property
    def is_plain(self) -> bool:
        """Whether real processes meet the same: a schedule of simulated ranks may be another."""
        return self.schedule is None and self.sends == "rendezvous"

    def on(self, device: str, cpu_scalars: bool = False) -> "Example":
        """Return the same on another device, as it multiplies now; scalars of shape [] may be on the CPU."""

        def moved(case: Case) -> Case:
            return replace(
                case,
                device=device,
                cpu_scalars=cpu_scalars and case.scalar_shape == (),
                matmul=devices.matmul_of(case.dtype, device),
            )

        return self.changed(moved)

    def changed(self, change: Callable[[Case], Case]) -> "Example":
        """Return the same with the cases of all calls changed."""
        steps = tuple(replace(step, case=change(step.case)) for step in self.steps)
        return replace(self, case=change(self.case), steps=steps)

    def to_json(self) -> str:
        """Return the example as JSON; `from_json` reads it."""
        fields = msgspec.to_builtins(self)
        for one in (fields, *fields["steps"]):
            # an example of the CPU reads as it did before there was another device
            if not one["case"].get("cpu_scalars"):
                one["case"].pop("cpu_scalars", None)
            if one["case"].get("matmul") == devices.EXACT:
                del one["case"]["matmul"]
            # and one of what the contract says as it did before there was anything else
            for name in ("features", "held", "drawn", "spoiled", "frozen_on", "widened", "beside"):
                if not one["case"].get(name):
                    one["case"].pop(name, None)
        return msgspec.json.encode(fields).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Example":
        """Return the example that `to_json` wrote.

        Raises:
            msgspec.ValidationError: the text is no example; the message names the field.
        """
        return msgspec.json.decode(text, type=cls)
