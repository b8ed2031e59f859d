"""What must hold of a training step: predicates over what ranks saw, and what one process saw."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from ..laws import Falsified, Place, Unanswered, compare
from ..standalone.steps import STATED, Seen
from ..verify.limits import RANDOM_DRAWS, UNEQUAL_ROWS
from ..worlds import WorldError
from .inspection import same
from .target import Trainer
from .truth import Truth, array

LOSS_SCALE = 2.0**-10
DECIMALS = range(9)
DIGITS = range(1, 6)
"""Of a loss that is rounded to be logged; more digits are of one that is not."""
LONG = 16
"""So many steps use every parameter: tasks may take turns."""
REDUCES = "the optimizer's own step adds up gradients, which are not seen then; parameters are compared"
COPIES = "an optimizer has copies of parameters, whose gradients are not seen; parameters are compared"
SKIPPED = "steps are skipped, as gradients are not finite: the first loss scale is too large?"
NO_FRESH = "a new trainer raises where it is given the checkpoint of another"
LEFT = (
    "something besides modules, numbers and schedulers is left of earlier steps; if a checkpoint holds it, "
    "give the trainer state_dict and load_state_dict"
)
NO_SCALER = "it makes no GradScaler"
NO_BUFFERS = "no tensors but parameters were found that a checkpoint holds"
NO_PROMISE = "it promises nothing of them"
NO_DRAWS = "no random numbers of torch's change what it does"
ALL_DRAWN = "all properties are verified with the random numbers that are drawn"


@dataclass(frozen=True)
class Observed:
    """What came of a case."""

    truth: Truth
    """One process on the whole batch."""
    ranks: list[Seen]
    """Those of the world; of one process, with the micro-batches."""
    others: Callable[[str], Seen]
    """Runs one process again: "fresh", "scaled", or "many" steps of many rows."""
    micro: int = 1
    """How many micro-batches a step takes."""
    scales: bool = False
    """Whether the target makes a GradScaler."""


@dataclass(frozen=True)
class StepLaw:
    """A property of a training step."""

    name: str
    check: Callable[[Observed], float]
    """Returns the worst error over its bound; 0 where bits are compared."""
    worlds: Literal["any", "one", "several"] = "any"
    applies: Callable[[Trainer], str] = lambda trainer: ""
    """Returns why it says nothing of a target, or nothing."""
    uneven: bool = False
    """Whether its cases are split unequally."""
    drawn: bool = False
    """Whether random numbers are drawn in its cases."""
    limit: str = ""
    """What a trainer need not have promised, where it is about that."""
    split: bool = False
    """Whether it needs several ranks or micro-batches."""
    share: float = 1.0
    """Of the cases that are asked for."""

    def fits(self, trainer: Trainer, size: int, simulated: bool = False) -> bool:
        """Whether it says anything of a target in a world of a size."""
        if self.drawn and simulated and size > 1:
            return False  # ranks that are threads draw from one generator
        if self.split and size == 1 and not trainer.accumulates:
            return False
        return {"any": True, "one": size == 1, "several": size > 1}[self.worlds]


def check_taken(observed: Observed) -> None:
    """Check that steps are taken, so that there is something to compare.

    A GradScaler may skip a step of several ranks and take that of one process: a rank's mean over its own
    rows is larger. Without one, steps that one process alone takes are wrong.

    Raises:
        Unanswered: they are not.
    """
    compared = observed.ranks if observed.scales else []
    if any(_skips(seen, observed.scales) for seen in [observed.truth.seen, *compared]):
        raise Unanswered(SKIPPED)


def _skips(seen: Seen, scales: bool) -> bool:
    """Whether a step is skipped: one after which gradients are cleared leaves nothing, and moves nothing."""
    return any(seen.skipped) or (
        scales
        and any(
            not held
            and all(one is None for one in seen.gradients[step].values())
            and all(same(one, seen.values[step + 1].get(name)) for name, one in seen.values[step].items())
            for step, held in enumerate(seen.held)
        )
    )


def gradients_equal(observed: Observed) -> float:
    """After every step each rank's gradient of every parameter is that of one process on the whole batch."""
    _values(observed, steps=1)  # where ranks begin elsewhere, gradients say nothing
    _check_seen(observed)
    return max(
        _gradient(observed, rank, step, name)
        for step in range(len(observed.truth.seen.gradients))
        for name in observed.truth.seen.gradients[step]
        for rank in range(len(observed.ranks))
        if _is_used(observed, rank, step, name)
    )


def _check_seen(observed: Observed) -> None:
    """Check that gradients are seen as optimizers get them.

    Raises:
        Unanswered: they are not.
    """
    if reason := _unseen(observed):
        raise Unanswered(reason, whatever=True)


def _unseen(observed: Observed) -> str:
    """Return why gradients are not seen as optimizers get them, or nothing."""
    if _copies([observed.truth.seen]) or _copies(observed.ranks):
        return COPIES
    return REDUCES * _optimizer_reduces(observed)


def _copies(ranks: list[Seen]) -> bool:
    """Whether an optimizer updates what is no parameter, and a parameter moves that no optimizer gets."""
    held = {name for one in ranks for names in one.held for name in names}
    return any(
        any(one.copied)
        and any(
            name not in held
            and any(not same(before.get(name), after.get(name)) for before, after in pairwise(one.values))
            for name in one.required
        )
        for one in ranks
    )


def _optimizer_reduces(observed: Observed) -> bool:
    """Whether an optimizer's own step adds up the gradients of ranks, which nobody sees then.

    Ranks have unlike gradients of all parameters, and nonetheless the same parameters after every step: those
    of one process.
    """
    (first, *others), found = observed.ranks, False
    for step, gradients in enumerate(first.gradients):
        for name, own in gradients.items():
            used = all(_is_used(observed, rank, step, name) for rank in range(len(observed.ranks)))
            if own is None or not own.any() or not used:
                continue
            found = True
            if all(same(own, other.gradients[step].get(name)) for other in others):
                return False
            value = first.values[step + 1].get(name)
            if not all(same(value, other.values[step + 1].get(name)) for other in others):
                return False
    try:
        values_equal(observed)
    except Falsified:
        return False
    return found


def _is_used(observed: Observed, rank: int, step: int, name: str) -> bool:
    """Whether a rank's gradient counts: it does not where only optimizers of other ranks get it."""
    held = [bool(one.held) and name in one.held[step] for one in observed.ranks]
    return held[rank] or not any(held)


def _gradient(observed: Observed, rank: int, step: int, name: str) -> float:
    seen, right = observed.ranks[rank].gradients[step].get(name), observed.truth.seen.gradients[step][name]
    place = Place("gradient", name, rank, _after(step))
    if seen is None or right is None:
        # none is as good as zeros, as of a parameter that nothing uses
        given = seen if right is None else right
        if given is not None and bool(given.any()):
            what = ("none", "one") if right is None else ("one", "none")
            lost = Place(
                "presence of the gradient", name, rank, _after(step), expected=what[0], observed=what[1]
            )
            raise Falsified(f"{place}: expected {what[0]}, observed {what[1]}", lost)
        return 0.0
    _check_form(place, seen, right)
    return _near(observed, place, seen, right, f"gradient {step} {name}")


def _near(
    observed: Observed,
    place: Place,
    own: torch.Tensor,
    right: torch.Tensor,
    where: str,
    first: torch.Tensor | None = None,
    rounding: float = 0.0,
) -> float:
    """Return the worst error over the bound of what is at `where`.

    Raises:
        Falsified: it is more than one.
        Unanswered: one process has what is not finite, other than it was at `first`.
    """
    lost = ~right.isfinite()
    if first is not None and first.shape == right.shape:  # as of a mask, or of a queue that is filled
        lost &= ~(_same_elements(right, first) & _same_elements(own, first))
    if lost.any():
        raise Unanswered(f"one process has no finite {place.kind}" + f" of {place.name}" * bool(place.name))
    return compare(place, array(own), array(right), observed.truth.bound(where, right) + rounding)


def _same_elements(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _check_form(place: Place, own: torch.Tensor, right: torch.Tensor, dtypes: bool = False) -> None:
    """Check that two tensors have one shape, and, where it is asked, one dtype.

    Raises:
        Falsified: they have not.
    """
    if own.shape != right.shape or (dtypes and own.dtype != right.dtype):
        what = [f"{one.dtype} of shape {list(one.shape)}".removeprefix("torch.") for one in (right, own)]
        raise Falsified(f"{place}: expected {what[0]}, observed {what[1]}", place)


def values_equal(observed: Observed) -> float:
    """At first, and after every step, each rank's parameters are those of one process on the whole batch."""
    return _values(observed, len(observed.truth.seen.values))


def _values(observed: Observed, steps: int) -> float:
    """Compare the parameters before the first step, and after those that follow."""
    worst, first = 0.0, observed.truth.seen.values[0]
    for step, values in enumerate(observed.truth.seen.values[:steps]):
        for name, right in values.items():
            for rank, seen in enumerate(observed.ranks):
                place = Place("value", name, rank, _after(step - 1))
                own = seen.values[step].get(name)
                if own is None:
                    raise Falsified(f"{place}: expected one, observed none", place)
                _check_form(place, own, right)
                error = _near(observed, place, own, right, f"value {step} {name}", first.get(name))
                worst = max(worst, error)
    return worst


def buffers_equal(observed: Observed) -> float:
    """At first, and after every step, what else a checkpoint holds is what that of one process holds.

    A whole number without dimensions may count micro-batches instead of batches. What an object states of
    itself may be a part that a rank holds: nothing is said where it is of another shape, or is not there.
    """
    worst = 0.0
    for step, buffers in enumerate(observed.truth.seen.buffers):
        for name, right in buffers.items():
            for rank, seen in enumerate(observed.ranks):
                place = Place("buffer", name, rank, _after(step - 1))
                own = seen.buffers[step].get(name)
                if STATED in name and (own is None or own.shape != right.shape):
                    continue
                if own is not None:
                    worst = max(worst, _buffer(observed, place, own, right, step))
                elif rank == 0:
                    raise Falsified(
                        f"{place}: expected one, observed none",
                        replace(place, expected="one", observed="none"),
                    )
    return worst


def _buffer(observed: Observed, place: Place, own: torch.Tensor, right: torch.Tensor, step: int) -> float:
    _check_form(place, own, right, dtypes=True)
    first = observed.truth.seen.buffers[0].get(place.name)
    if right.dtype.is_floating_point:
        return _near(observed, place, own, right, f"buffer {step} {place.name}", first)
    counts, made = right.ndim == 0 and right.dtype != torch.bool, right if first is None else first
    if not torch.equal(own, right) and not (counts and own == made + observed.micro * (right - made)):
        apart = torch.nonzero(own != right)[0].tolist() if own.ndim else ()
        found = replace(place, index=tuple(apart))
        raise Falsified(f"{found}: expected {right[found.index]}, observed {own[found.index]}", found)
    return 0.0


def every_gradient(observed: Observed) -> float:
    """Every parameter that requires grad gets a gradient in every step, or changes without one.

    A parameter that some rows, or steps, alone use need not get one where one process has none either.
    """
    for rank, seen in enumerate(observed.ranks):
        for step, gradients in enumerate(seen.gradients):
            for name in seen.required:
                if gradients.get(name) is not None or not _is_used(observed, rank, step, name):
                    continue
                changes = not same(seen.values[step].get(name), seen.values[step + 1].get(name))
                if changes or _is_occasional(observed, step, name):
                    continue
                place = Place(
                    "presence of the gradient", name, rank, _after(step), expected="one", observed="none"
                )
                raise Falsified(f"{place}: {name} requires grad, and got none", place)
    return 0.0


def _is_occasional(observed: Observed, step: int, name: str) -> bool:
    """Whether one process has no gradient of a parameter either, and has one in many steps of many rows."""
    if observed.truth.seen.gradients[step].get(name) is not None:
        return False
    try:
        many = observed.others("many")
    except WorldError:
        return False
    return any(gradients.get(name) is not None for gradients in many.gradients)


def ranks_agree(observed: Observed) -> float:
    """After every step all ranks have the same gradients and parameters, bit for bit."""
    first, unseen = observed.ranks[0], _unseen(observed)
    for kind, columns in (("gradient", [one.gradients for one in observed.ranks]),
                          ("value", [one.values[1:] for one in observed.ranks])):  # fmt: skip
        if unseen and kind == "gradient":
            continue
        for step in range(len(first.gradients)):
            for name in first.gradients[step]:
                own = columns[0][step].get(name)
                for rank in range(1, len(observed.ranks)):
                    other = columns[rank][step].get(name)
                    used = all(_is_used(observed, one, step, name) for one in (0, rank))
                    if (used or kind == "value") and not same(own, other):
                        raise _unlike(kind, name, rank, step, own, other)
    return 0.0


def _unlike(
    kind: str, name: str, rank: int, step: int, own: torch.Tensor | None, other: torch.Tensor | None
) -> Falsified:
    place = Place(f"{kind} of rank 0", name, rank, _after(step))
    if own is None or other is None or own.shape != other.shape:
        had = [None if one is None else list(one.shape) for one in (own, other)]
        return Falsified(
            f"{kind} of {name} {_after(step)}: rank 0 has {had[0]}, rank {rank} has {had[1]}", place
        )
    apart = np.unravel_index(int(np.argmax(array(own) != array(other))), own.shape or (1,))
    index = tuple(int(one) for one in apart) if own.ndim else ()
    said = f"rank 0 has {own[index].item():.17g}, rank {rank} has {other[index].item():.17g}"
    return Falsified(f"{kind} of {name} {_after(step)} at {list(index)}: {said}", place)


def loss_is_mean(observed: Observed) -> float:
    """The mean over ranks of what a step returns is the loss of one process on the whole batch.

    A step may round what it returns to some decimals or digits. A rank that returns None logs nothing.
    """
    every = (observed.truth.seen, *observed.ranks)
    unit = _unit([loss for seen in every for loss in seen.losses if loss is not None])
    worst = 0.0
    for step, right in enumerate(observed.truth.seen.losses):
        if right is None:
            continue
        place = Place("logged loss", rank=None, note=_after(step))
        logged = [loss for seen in observed.ranks if (loss := seen.losses[step]) is not None]
        if not logged:
            raise Falsified(f"{place}: expected {right:.9g}, and no rank returns one", place)
        rounding = float(np.mean([unit(loss) for loss in logged]) + unit(right)) / 2
        mean, one = (torch.tensor(loss, dtype=torch.float64) for loss in (np.mean(logged), right))
        worst = max(worst, _near(observed, place, mean, one, f"loss {step}", rounding=rounding))
    return worst


def _unit(losses: list[float]) -> Callable[[float], float]:
    """Return a function that gives the unit to which a loss is rounded; 0 where losses are not."""
    decimals = next((one for one in DECIMALS if all(_is_near(x, round(x, one)) for x in losses)), None)
    digits = next((one for one in DIGITS if all(_is_near(x, float(f"{x:.{one}g}")) for x in losses)), None)

    def unit(loss: float) -> float:
        found = 0.0 if decimals is None else 10.0**-decimals
        if digits is not None and loss and math.isfinite(loss):
            found = max(found, 10.0 ** (math.floor(math.log10(abs(loss))) + 1 - digits))
        return found

    return unit


def _is_near(loss: float, rounded: float) -> bool:
    """Whether a loss is a rounded number, in one of the dtypes that losses have."""
    return loss in (rounded, torch.tensor(rounded, dtype=torch.float32).item())


def used_equals_fresh(observed: Observed) -> float:
    """A trainer that has taken steps gives the gradients that a new one gives with the same parameters."""
    try:
        fresh = replace(observed.truth, seen=observed.others("fresh"))
    except WorldError as error:
        raise Unanswered(f"{NO_FRESH}: {error.ranks[0].said}", whatever=True) from error
    return _compared(replace(observed, truth=fresh, ranks=[observed.truth.seen]), "of a used trainer", LEFT)


def loss_scale_never_matters(observed: Observed) -> float:
    """Gradients that the optimizer gets do not change with the initial scale of a GradScaler."""
    observed = replace(observed, ranks=[observed.others("scaled")])
    _check_seen(observed)
    return _compared(observed, "at another loss scale")


def _compared(observed: Observed, note: str, hint: str = "") -> float:
    """Compare the gradients of one process with those of itself run in another way."""
    check_taken(observed)
    worst = 0.0
    for step, gradients in enumerate(observed.truth.seen.gradients):
        for name in gradients:
            try:
                worst = max(worst, _gradient(observed, 0, step, name))
            except Falsified as error:
                place = error.place or Place("")
                raise Falsified("; ".join(filter(None, [f"{note}: {error}", hint])), place) from None
    return worst


def draws_equal(observed: Observed) -> float:
    """With the random numbers that are drawn, all is that of one process, too."""
    return all_equal(observed)


def rng_as_promised(observed: Observed) -> float:
    """After every step each rank's torch generator is where one process leaves it, or where it is stated."""
    for rank, seen in enumerate(observed.ranks):
        stated = bool(seen.stated)
        for step, (own, right) in enumerate(
            zip(seen.rng, seen.stated if stated else observed.truth.seen.rng, strict=True)
        ):
            if not same(own, right):
                place = Place("RNG state", "", rank, _after(step))
                where = "rng_state states it" if stated else "one process leaves it"
                raise Falsified(
                    f"rank {rank}, state of torch's random generator {_after(step)}: expected where {where}, "
                    "observed another",
                    place,
                )
    return 0.0


def uneven_equal(observed: Observed) -> float:
    """Where rows are split unequally, all is that of one process, too."""
    return all_equal(observed)


def all_equal(observed: Observed) -> float:
    """Gradients, parameters, buffers and the loss are those of one process."""
    every = [values_equal, buffers_equal, loss_is_mean]
    every += [gradients_equal] * (not _unseen(observed))
    return max(check(observed) for check in every)


def _after(step: int) -> str:
    return "before the first step" if step < 0 else f"after step {step + 1}"


def laws() -> list[StepLaw]:
    """Return every law, the most telling first."""
    return [
        StepLaw("gradients equal one process", gradients_equal, split=True),
        StepLaw("parameters equal one process", values_equal, split=True),
        StepLaw(
            "buffers equal one process", buffers_equal, split=True,
            applies=lambda trainer: "" if trainer.buffers else NO_BUFFERS,
        ),
        StepLaw("logged loss is the mean", loss_is_mean, split=True),
        StepLaw("every parameter gets a gradient", every_gradient),
        StepLaw("ranks agree", ranks_agree, "several"),
        StepLaw("used equals fresh", used_equals_fresh, "one", lambda trainer: trainer.unresumed),
        StepLaw(
            "loss scale never matters", loss_scale_never_matters, "one",
            lambda trainer: "" if trainer.scales else NO_SCALER,
        ),
        StepLaw(
            "RNG states are as promised", rng_as_promised, drawn=True,
            applies=lambda trainer: "" if "rng" in trainer.promises else NO_PROMISE,
        ),
        StepLaw(
            "random draws equal one process", draws_equal, drawn=True, split=True, share=0.4,
            applies=lambda trainer: "" if trainer.constant else (ALL_DRAWN if trainer.draws else NO_DRAWS),
            limit=RANDOM_DRAWS,
        ),
        StepLaw(
            "unequal rows equal one process", uneven_equal, uneven=True, split=True, share=0.4,
            applies=lambda trainer: "rows are split equally alone, as asked" if trainer.even else "",
            limit=UNEQUAL_ROWS,
        ),
    ]  # fmt: skip
