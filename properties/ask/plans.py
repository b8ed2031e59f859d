"""The checks of a run, of losses and of training steps alike: listed, run one by one, and what they leave."""

import fnmatch
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .. import devices
from ..names import LAWS, STEP, STEP_LAWS
from ..options import MAX_EXAMPLES, WORLDS
from ..show.defects import AnyFinding
from ..step.inspection import inspected
from ..step.laws import StepLaw
from ..step.laws import laws as step_laws
from ..step.target import Trainer
from ..step.verify import SHARP, Benches, StepCertifier, StepCheck
from ..step.verify import checks as step_checks
from ..subjects import Subject
from ..verify import plan as of_losses
from ..verify.arguments import Unusable, check_max_examples, kept_laws, step_worlds
from ..verify.certifier import Certifier, Check, Runner
from ..worlds.specs import WorldSpec

AnyCheck = Check | StepCheck
Targets = Mapping[str, tuple[str, Subject | Trainer]]
"""By name: the contract, and what is held to it."""


def planned(
    targets: Targets,
    world: str = WORLDS,
    max_examples: int = MAX_EXAMPLES,
    only: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    places: Sequence[str] = (devices.CPU,),
) -> list[AnyCheck]:
    """List the checks: the same arguments, the same list. No target is looked at.

    Raises:
        Unusable: an argument is.
    """
    losses, trainers = divided(targets)
    kept_laws([*LAWS * bool(losses), *STEP_LAWS * bool(trainers)], only, skip)
    check_max_examples(max_examples)
    found: list[AnyCheck] = []
    own = _of(LAWS, only)
    if losses and (own or not only):
        found += of_losses.plan(losses, world, max_examples, own, _of(LAWS, skip), places)
    worlds = step_worlds(world, places, alone=not losses) if trainers else []
    names = _step_names(only, skip)
    for label, trainer in trainers.items():
        found += step_checks(label, trainer, trainer.places(worlds), names)
    if not found:
        applies = "no property that is asked for applies there"
        raise Unusable("", f"nothing to verify for {', '.join(targets)} in world {world}: {applies}")
    return found


def divided(targets: Targets) -> tuple[dict[str, tuple[str, Subject]], dict[str, Trainer]]:
    """Return the losses, and the training steps."""
    losses = {label: (name, one) for label, (name, one) in targets.items() if isinstance(one, Subject)}
    return losses, {label: one for label, (_, one) in targets.items() if isinstance(one, Trainer)}


def _of(names: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """Return the patterns that match some of these names."""
    return [one for one in patterns or [] if fnmatch.filter(names, one)]


def _step_names(only: Sequence[str] | None, skip: Sequence[str] | None) -> tuple[str, ...]:
    own = _of(STEP_LAWS, only)
    return () if only and not own else kept_laws(STEP_LAWS, own, _of(STEP_LAWS, skip))


def unlooked(targets: Targets) -> Targets:
    """Return targets as they are planned before they are looked at: a step may turn out to do anything."""
    return {
        label: (name, one.able if isinstance(one, Trainer) else one) for label, (name, one) in targets.items()
    }


def fitted(targets: Targets, world: str, places: Sequence[str], deadline: float = math.inf) -> Targets:
    """Return the targets, each asked only for what it takes. They are imported, and called.

    Raises:
        Unusable: one cannot be verified.
    """
    losses, trainers = divided(targets)
    found: dict[str, tuple[str, Subject | Trainer]] = {**of_losses.fitted(losses, deadline, places[0])}
    worlds = step_worlds(world, places, alone=not losses) if trainers else []
    for label, trainer in trainers.items():
        trainer.worlds().until = deadline
        found[label] = STEP, inspected(trainer, worlds)
    return found


@dataclass(eq=False)
class Verifier(Runner[AnyCheck, AnyFinding]):
    """Runs checks of losses and of training steps, in their order or in any other."""

    def __post_init__(self) -> None:
        given = self.max_examples, self.seed, self.deadline, self.found, self.database
        self.losses = Certifier(*given)
        self.steps = StepCertifier(*given)

    @property
    def benches(self) -> Benches:
        """Where cases of training steps have run."""
        return self.steps.benches

    def prepare(self, check: AnyCheck) -> None:
        if isinstance(check, Check):
            self.losses.prepare(check)

    def verify(self, check: AnyCheck, until: float = math.inf) -> AnyFinding:
        if isinstance(check, StepCheck):
            return self.steps.verify(check, until)
        return self.losses.verify(check, until)


def unasked(
    targets: Targets,
    world: str,
    only: Sequence[str] | None,
    skip: Sequence[str] | None,
    places: Sequence[str],
) -> list[str]:
    """Return what no check of the training steps looks at, and why."""
    losses, trainers = divided(targets)
    worlds = step_worlds(world, places, alone=not losses) if trainers else []
    names = _step_names(only, skip)
    return [
        f"{label}: {line}"
        for label, trainer in trainers.items()
        for line in _unasked(trainer, worlds, [law for law in step_laws() if law.name in names])
    ]


def _unasked(trainer: Trainer, worlds: Sequence[WorldSpec], asked: Sequence[StepLaw]) -> Iterator[str]:
    own = trainer.places(worlds)
    several = {one.row for one in own if one.sizes[-1] > 1}
    if len(own) < len(worlds):
        yield from of_losses.excluded([("simulated", trainer.unsimulated)], several)
    elif not several:
        yield "several ranks: not requested, or not possible in these worlds"
    yield from (f"{law.name}: {why}" for law in asked if (why := law.applies(trainer)))
    if trainer.passing:
        yield f"buffers that no checkpoint holds: not compared: {', '.join(trainer.passing)}"
    if trainer.unreached:
        yield (
            f"gradients of {', '.join(trainer.unreached)}: 0 with constants in the place of random numbers, "
            "with which all but one property are verified"
        )
    sizes = [(size, one.row.is_drawn) for one in own for size in one.sizes]
    if trainer.constant and not any(
        law.limit and law.drawn and law.fits(trainer, *one) for law in asked for one in sizes
    ):
        yield "random numbers: nothing was compared with those that step draws"
    yield "CUDA: a step runs on the CPU alone"


def left(benches: Benches) -> list[str]:
    """Return what is not known of the cases of training steps that have run.

    That is what rounding hides of gradients, where it is more than it should be, and the cases of which laws
    say nothing, where there are others.
    """
    lines: list[str] = []
    for label in dict.fromkeys(label for label, _ in benches):
        own = [bench for (name, _), bench in benches.items() if name == label]
        hidden = [share for one in own for share in one.hidden]
        if blunt := [share for share in hidden if share > SHARP]:
            lines.append(
                f"{label}: errors of a gradient below {statistics.median(blunt):.2g} of its largest element: "
                f"rounding may be as large in {len(blunt)} of {len(hidden)} cases of float64, as where "
                "a step computes in half precision"
            )
        elif not any(case.dtype == "float64" for one in own for case in one.cases):
            lines.append(f"{label}: factors of less than 1 + {SHARP:g}: no case was in float64")
        ran = sum(len(one.cases) for one in own)
        reasons = Counter(why for one in own for why in one.unanswered.values())
        if reasons.total() < ran:
            lines += [f"{label}: {why}: in {n} of {ran} cases" for why, n in reasons.items()]
    return lines
