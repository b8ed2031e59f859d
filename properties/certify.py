"""Contract x subject x world x law, each run over drawn cases, to a verdict."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from .contracts import Contract, contracts
from .laws import Law, laws
from .subjects import Subject
from .worlds import World
from .worlds.simulated import Sends, SimulatedWorld
from .worlds.specs import WorldSpec

SHRINK_SECONDS = 5.0
"""How long a counterexample is made smaller."""

Verdict = Literal["holds", "falsified", "skipped"]


@dataclass(frozen=True)
class Check:
    """One law to be verified for one subject in one kind of world."""

    label: str
    contract: Contract
    subject: Subject
    law: Law
    world: WorldSpec

    @property
    def sizes(self) -> list[int]:
        """World sizes that the law says something about."""
        return [size for size in self.world.sizes if self.law.fits(self.contract, size)]


@dataclass(frozen=True)
class Simulated:
    """A case in a simulated world: who runs next is drawn too."""

    world_size: int
    case: Any
    schedule: int | None
    """A seed; None runs each rank until it has to wait."""
    sends: Sends

    def __str__(self) -> str:
        plain = self.schedule is None and self.sends == "rendezvous"
        how = "" if plain else f"schedule {self.schedule}, sends {self.sends}: "
        return how + describe(self.case)


@dataclass(frozen=True)
class Finding:
    """What came of a check."""

    loss: str
    property: str
    world: str
    examples: int
    verdict: Verdict
    worst_error_over_bound: float
    reason: str = ""
    """Why it was falsified or skipped, in words."""
    counterexample: str = ""
    """The smallest case found that falsifies it."""


BOTH = ("exact", "open_clip")
SHIPPED: dict[str, tuple[str, Subject]] = {
    "clip": ("clip", Subject("verified_losses:ClipLoss", BOTH)),
    "coca": ("coca", Subject("verified_losses:CoCaLoss", BOTH)),
    "distill": ("distill", Subject("verified_losses:DistillClipLoss", BOTH)),
    "siglip": ("siglip", Subject("verified_losses:SigLipLoss")),
    "gather": ("gather", Subject("verified_losses:gather_features", BOTH)),
    "exchange": ("exchange", Subject("verified_losses:neighbour_exchange_with_grad")),
    "exchange_bidir": (
        "exchange",
        Subject("verified_losses:neighbour_exchange_bidir_with_grad", options=(("bidirectional", True),)),
    ),
}
"""The certified losses by name: their contract, and where to import them."""


def checks(subjects: dict[str, tuple[str, Subject]], worlds: list[WorldSpec]) -> Iterator[Check]:
    """List what is to be verified."""
    known = contracts()
    for label, (name, subject) in subjects.items():
        for world in worlds:
            over_horovod = known[name].over_horovod if world.kind == "horovod" else ()
            if over_horovod is None:
                continue
            placed = dataclasses.replace(subject, options=subject.options + over_horovod)
            for law in laws():
                check = Check(label, known[name], placed, law, world)
                if check.sizes and (law.simulated or world.kind != "simulated"):
                    yield check


@st.composite
def _simulated(draw: st.DrawFn, check: Check) -> Simulated:
    size = draw(st.sampled_from(check.sizes))
    case = draw(check.law.draw(check.contract, check.subject, size))
    schedule = draw(st.none() | st.integers(0, 2**16))
    sends: list[Sends] = ["rendezvous", "buffered", "drawn"]
    return Simulated(size, case, schedule, draw(st.sampled_from(sends)))


def verify(
    check: Check,
    max_examples: int,
    base_seed: int = 0,
) -> Finding:
    """Run one check over up to `max_examples` cases (a law's share of them), reproducibly by seed.

    Raises:
        Nothing of the subject's: whatever it raises falsifies the check.
    """
    worst = 0.0
    examples = 0
    smallest: Any = None
    shrink_until = float("inf")

    def run(case: Any) -> None:
        nonlocal worst, examples, smallest, shrink_until
        if time.monotonic() > shrink_until and case != smallest:
            return  # out of time: nothing smaller is looked for, and Hypothesis ends with the smallest
        try:
            if isinstance(case, Simulated):
                world: World = SimulatedWorld(case.world_size, case.schedule, sends=case.sends)
                ratio = check.law.check(check.contract, check.subject, world, case.case)
            else:
                ratio = check.law.check(check.contract, check.subject, check.world.open(), case)
        except UnsatisfiedAssumption:
            raise
        except Exception:
            smallest = case
            shrink_until = min(shrink_until, time.monotonic() + SHRINK_SECONDS)
            raise
        worst = max(worst, ratio)
        examples += 1

    configured = settings(
        max_examples=max(1, round(max_examples * check.law.share)),
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    strategy: st.SearchStrategy[Any] = (
        _simulated(check)
        if check.world.kind == "simulated"
        else check.law.draw(check.contract, check.subject, check.world.sizes[0])
    )
    test = seed(base_seed)(configured(given(strategy)(run)))
    common = {"loss": check.label, "property": check.law.name, "world": check.world.name}
    try:
        test()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Finding(**common, examples=examples, verdict="falsified", worst_error_over_bound=worst,
                       reason=reason, counterexample=describe(smallest))  # fmt: skip
    return Finding(**common, examples=examples, verdict="holds", worst_error_over_bound=worst)


def describe(case: Any) -> str:
    """Return a case, or a sequence of calls, as text."""
    if isinstance(case, tuple):
        steps, last = case
        return "\n".join([*(f"{step.mode}: {step.case}" for step in steps), f"then {last}"])
    return str(case)
