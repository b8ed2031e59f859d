"""Looks at a target before it is verified: what it takes, and whether it can be verified at all."""

import inspect
import math
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from ..process_state import preserved
from ..standalone.steps import (
    Plan,
    Seen,
    Tensors,
    buffers_of,
    built,
    gradients_of,
    micro_batches,
    named,
    number_of,
    parameters_of,
    persistent,
    plain_name,
    resume,
    run_steps,
    scaled_losses,
    seed_generators,
    take,
)
from ..subjects import Unresolved
from ..verify.among import OF_PROCESS, SHORT, STOPS_PROCESSES
from ..verify.arguments import Unusable
from ..worlds import OutOfTime, WorldError
from ..worlds.simulated import SimulationError
from ..worlds.specs import SINGLE, WorldSpec
from .cases import MANY, STEPS, simplest
from .target import Trainer

ROWS = 4
TRIED = 2, 4, 3, 1
"""Rows of the batches that a target is looked at with: the first that it takes."""
SEEDS = 3, 4
PROBE_SCALE = 2.0**-10
NEEDED = ("model", "step", "batch")
PROMISES = ("rng",)
"""What a trainer can promise: that the state of torch's generator is where one process leaves it."""
FORM = "make_step(rank, world_size, **options)"


@dataclass(frozen=True)
class Looked:
    """What one process has shown."""

    problem: str = ""
    """Why it cannot be verified."""
    detail: str = ""
    """The target's own traceback."""
    found: Trainer | None = None


class Refused(Exception):
    """A target does not do what is asked of it; the message says what was expected."""


def inspected(asked: Trainer, worlds: list[WorldSpec]) -> Trainer:
    """Return a target with what it takes. It is imported, and takes a few steps.

    Raises:
        Unusable: it cannot be verified.
    """
    try:
        (looked,) = asked.worlds().open(SINGLE).run(look, asked)
    except OutOfTime:
        return asked
    except WorldError as error:
        (rank,) = error.ranks
        happened = {"raised": "raised", "hung": "hung"}.get(rank.state, "ended its process")
        problem = f"{asked.subject.target}: {happened} as it was imported or took a step in one process"
        raise Unusable("", problem, rank.detail) from error
    if looked.problem:
        raise Unusable("", f"{asked.subject.target}: {looked.problem}", looked.detail)
    found: Trainer = looked.found  # type: ignore[assignment]
    return _simulated(found) if any(one.row.is_drawn for one in worlds) else found


def look(rank: int, world_size: int, asked: Trainer) -> Looked:
    """Import a target, and take steps in one process."""
    with preserved():
        try:
            return Looked(found=_looked(asked))
        except Unresolved as error:
            return Looked(str(error))
        except Refused as error:
            cause = error.__cause__
            return Looked(str(error), "".join(traceback.format_exception(cause)) if cause else "")


def _looked(asked: Trainer) -> Trainer:
    make_step = asked.subject.resolve()
    if not callable(make_step):
        raise Refused(f"expected a function {FORM}, got {type(make_step).__name__} {make_step!r}")
    takes_frozen = _check_signature(make_step, asked)
    usable, why = [], []
    begun = time.monotonic()
    for dtype in asked.dtypes:
        try:
            plan = simplest(replace(asked, takes_frozen=takes_frozen), 1, dtype=dtype, seed=SEEDS[0]).plan(
                replace(asked, takes_frozen=takes_frozen), launched=False
            )
            taken = (rows for rows in TRIED if not _refuses(make_step, plan, rows))
            plan = plan._replace(rows=((next(taken, TRIED[0]),),))
            names, accumulates = _check_trainer(make_step, plan)
            usable.append(dtype)
        except Refused as error:
            if not error.__cause__:
                raise
            why.append((dtype, error))
    if not usable:
        raise why[0][1]
    seconds = time.monotonic() - begun
    plan = plan._replace(dtype=usable[0])
    trainer = built(make_step, 0, 1, plan)
    promises, passing = _promised(trainer), _passing(trainer)
    unresumed = _unresumed(make_step, plan, trainer)
    draws, constant = _drawn(make_step, plan, promises)
    plan = plan._replace(constant=constant)
    refused = {rows: said for rows in asked.counts if (said := _refuses(make_step, plan, rows))}
    seen = run_steps(make_step, 0, 1, plan._replace(loss_scale=PROBE_SCALE))
    if len(refused) == len(asked.counts):
        raise Refused(f"one process {next(iter(refused.values()))}")
    notes = [f"{dtype}: not drawn, as one process raises: {_last(error)}" for dtype, error in why]
    for said in dict.fromkeys(refused.values()):
        rows = [rows for rows, reason in refused.items() if reason == said]
        named_so = "one row" if rows == [1] else f"{' or '.join(map(str, rows))} rows"
        notes.append(f"{named_so}: not drawn, as one process {said}")
    if not takes_frozen:
        notes.append("frozen parameters: not drawn, as make_step takes no argument frozen")
    if still := _still(seen):
        notes.append(
            f"left as they are, though they get gradients: {', '.join(still)}: no optimizer has them?"
        )
    if local := _listed(trainer, "local_buffers"):
        notes.append(f"buffers that differ by rank, as the target says: {', '.join(local)}")
    return replace(
        asked,
        dtypes=tuple(usable),
        names=tuple(names),
        accumulates=accumulates,
        takes_frozen=takes_frozen,
        scales=seen.scaled,
        draws=draws,
        constant=constant,
        unreached=_unreached(make_step, plan) if constant else (),
        promises=promises,
        buffers=tuple(buffers_of(trainer, 0)),
        unresumed=unresumed,
        passing=passing,
        counts=tuple(rows for rows in asked.counts if rows not in refused),
        notes=tuple(notes),
        seconds=seconds / len(asked.dtypes),
    )


def _still(seen: Seen) -> list[str]:
    """Return the parameters that get gradients and do not move, where others move."""
    first, last = seen.values[0], seen.values[-1]
    given = [name for name in seen.required if any(_moves(each.get(name)) for each in seen.gradients)]
    still = [name for name in given if torch.equal(first[name], last[name])]
    return still if len(still) < len(given) else []


def _moves(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _refuses(make_step: Any, plan: Plan, rows: int) -> str:
    """Return why one process takes no batch of so many rows, or nothing.

    It raises, as BatchNorm does of one row, or no step has a finite gradient of some parameter: of a
    GradScaler, that may be its scale.
    """
    plan = plan._replace(rows=((rows,),), loss_scale=PROBE_SCALE)
    lost: set[str] = set()
    try:
        with scaled_losses(plan.loss_scale) as scalers:
            trainer = built(make_step, 0, 1, plan)
            for number in range(STEPS[-1]):
                taken = take(trainer, micro_batches(trainer, 0, plan, number), plan.constant)
                given = taken.gradients if taken.held else gradients_of(trainer.model)
                now = {name for name, one in given.items() if one is not None and not one.isfinite().all()}
                lost = lost & now if number else now
                if scalers or not lost:
                    return ""
    except Exception as error:
        return f"raises: {_last(error)}"
    return f"has gradients that are not finite, of {', '.join(one for one in given if one in lost)}"


def _check_signature(make_step: Any, asked: Trainer) -> bool:
    """Check that it can be called; return whether it takes the names of frozen parameters."""
    try:
        signature = inspect.signature(make_step)
    except (TypeError, ValueError):
        return False
    pinned = dict(asked.options)
    try:
        signature.bind(0, 1, **pinned)
    except TypeError as error:
        given = ", ".join(["0", "1", *(f"{name}={value!r}" for name, value in pinned.items())])
        raise Refused(
            f"expected a function {FORM}; make_step({given}) does not fit {signature}: {error}"
        ) from None
    return "frozen" in signature.parameters and "frozen" not in pinned


def _check_trainer(make_step: Any, plan: Plan) -> tuple[list[str], bool]:
    """Build a trainer and take a step; return the names that require grad, and whether it accumulates."""
    try:
        trainer = built(make_step, 0, 1, plan)
    except Exception as error:
        raise Refused(f"make_step(0, 1) raised {type(error).__name__}") from error
    kind = type(trainer).__name__
    if missing := [name for name in NEEDED if not hasattr(trainer, name)]:
        raise Refused(f"expected an object with {', '.join(NEEDED)}, got {kind} without {', '.join(missing)}")
    if not isinstance(trainer.model, torch.nn.Module):
        raise Refused(f"model: expected an nn.Module, got {type(trainer.model).__name__}")
    if any(map(is_lazy, [*trainer.model.parameters(), *trainer.model.buffers()])):
        raise Refused("model: run one batch first: its parameters are uninitialised")
    if not callable(trainer.step) or not callable(trainer.batch):
        raise Refused("step and batch: expected functions")
    names = [name for name, one in named(trainer.model).items() if one.requires_grad]
    if not names:
        raise Refused("model: expected a parameter that requires grad, got none")
    _check_batch(trainer)
    try:
        loss = trainer.step(*micro_batches(trainer, 0, plan, 0))
    except Exception as error:
        raise Refused(f"step raised {type(error).__name__} in one process") from error
    try:
        value = number_of(loss)
    except (TypeError, ValueError, RuntimeError):
        raise Refused(f"step: expected the loss as a number, got {type(loss).__name__}") from None
    if not math.isfinite(value):
        raise Refused(f"step: expected a finite loss, got {value}")
    return names, _accumulates(trainer.step) and _takes_two(make_step, plan)


def _check_batch(trainer: Any) -> None:
    """Check that batches are dicts of tensors with a row each, the same for the same seed."""
    try:
        batch, again = trainer.batch(ROWS, SEEDS[0]), trainer.batch(ROWS, SEEDS[0])
    except Exception as error:
        raise Refused(f"batch({ROWS}, {SEEDS[0]}) raised {type(error).__name__}") from error
    if not isinstance(batch, Mapping) or not batch:
        raise Refused(f"batch: expected a dict of tensors, got {type(batch).__name__}")
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor):
            raise Refused(f"batch: expected a dict of tensors, got {type(value).__name__} for {name!r}")
        if value.ndim == 0 or len(value) != ROWS:
            raise Refused(
                f"batch({ROWS}, {SEEDS[0]}): expected {ROWS} rows in the first dimension of {name!r}, "
                f"got shape {list(value.shape)}"
            )
        if not torch.equal(value, again[name]):
            raise Refused(f"batch: expected the same for the same seed; {name!r} differs")


def _accumulates(step: Any) -> bool:
    try:
        kinds = [one.kind for one in inspect.signature(step).parameters.values()]
    except (TypeError, ValueError):
        return False
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _takes_two(make_step: Any, plan: Plan) -> bool:
    """Whether a step takes two micro-batches: one that is wrapped may only seem to."""
    try:
        run_steps(make_step, 0, 1, plan._replace(rows=((ROWS, ROWS),), steps=1))
    except TypeError as error:
        return "positional argument" not in str(error)
    except Exception:
        return True  # to be seen
    return True


def _promised(trainer: Any) -> tuple[str, ...]:
    """Return what a trainer promises."""
    promises = _listed(trainer, "promises")
    if unknown := [one for one in promises if one not in PROMISES]:
        raise Refused(f"promises: expected some of {', '.join(PROMISES)}, got {', '.join(map(str, unknown))}")
    if callable(getattr(trainer, "rng_state", None)) and "rng" not in promises:
        raise Refused('rng_state: expected promises = {"rng"} beside it, got none')
    return promises


def _unresumed(make_step: Any, plan: Plan, trainer: Any) -> str:
    """Return why a new trainer cannot be given the checkpoint of another, or nothing."""
    try:
        resume(built(make_step, 0, 1, plan), trainer)
    except Exception as error:
        return f"a checkpoint cannot be loaded: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def _listed(trainer: Any, name: str) -> tuple[str, ...]:
    """Return the words that an attribute lists, where it is there."""
    given = getattr(trainer, name, ())
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise Refused(f"{name}: expected a list of names, got {given!r}")
    return tuple(sorted(given))


def _passing(trainer: Any) -> tuple[str, ...]:
    """Return the model's buffers that no checkpoint holds."""
    kept = persistent(trainer.model)
    held = (plain_name(trainer.model, name) for name, _ in trainer.model.named_buffers())
    return tuple(name for name in held if name not in kept)


def _drawn(make_step: Any, plan: Plan, promises: tuple[str, ...]) -> tuple[str, bool]:
    """Return what changes with the random numbers that a step draws, and whether constants take their place.

    Raises:
        Refused: two runs of one process differ for the same numbers, or none of both can be done.
    """
    first, again, other = (_seeded(make_step, plan, seed) for seed in (SEEDS[0], SEEDS[0], SEEDS[1]))
    if name := _differs(first, again):
        raise Refused(
            f"expected one process to give the same for the same seed: {name} differs between two runs"
            + ", which local_buffers may name" * name.startswith("the buffer")
        )
    name, why = _differs(first, other), ""
    seeds_itself, plan = not name, plan._replace(constant=True)
    try:
        one = _seeded(make_step, plan, SEEDS[0])
        name = name or _differs(first, one)
        if not name:
            return "", False
        if left := _differs(one, _seeded(make_step, plan, SEEDS[1])):
            why = f"{left} still changes"
        elif _is_nothing(one) and not _is_nothing(first):
            why = "no gradient is left"
    except Exception as error:
        why = f"step raises {type(error).__name__}: {error}".splitlines()[0]
    if seeds_itself and why:
        return "", False
    if why and "rng" not in promises:
        raise Refused(
            f"step draws random numbers that change {name}: several ranks draw others than one process, and "
            f"with constants in their place {why}; draw them for each row from a seed in the batch, turn "
            'them off, or promise that they are those of one process: promises = {"rng"}'
        )
    return name, not why


def _unreached(make_step: Any, plan: Plan) -> tuple[str, ...]:
    """Return the parameters that get a gradient with random numbers, and none with constants."""
    try:
        return _lacking(make_step, plan._replace(rows=((MANY,),)))
    except Exception:  # so many rows are refused
        return _lacking(make_step, plan)


def _lacking(make_step: Any, plan: Plan) -> tuple[str, ...]:
    drawn, fixed = (
        _seeded(make_step, plan._replace(constant=constant), SEEDS[0]).gradients for constant in (False, True)
    )
    got, left = (
        {name for each in seen for name, one in each.items() if _moves(one)} for seen in (drawn, fixed)
    )
    return tuple(name for name in drawn[0] if name in got - left)


def _seeded(make_step: Any, plan: Plan, seed: int) -> Seen:
    """Take two steps, each with the random numbers of a seed."""
    trainer = built(make_step, 0, 1, plan)
    seen = Seen([], [], [], [], buffers=[])
    for number in range(2):
        batches = micro_batches(trainer, 0, plan, number)
        seed_generators(seed + 100 * number)
        taken = take(trainer, batches, plan.constant)
        seen.losses.append(taken.loss)
        seen.gradients.append(taken.gradients)
        seen.values.append(parameters_of(trainer))
        seen = seen._replace(buffers=[*seen.buffers, buffers_of(trainer, 0)])
    return seen


def _is_nothing(seen: Seen) -> bool:
    """Whether every gradient is 0, or no loss is a number."""
    given = [one for gradients in seen.gradients for one in gradients.values() if one is not None]
    return all(map(math.isnan, _numbers(seen))) or (bool(given) and not any(bool(one.any()) for one in given))


def _differs(one: Seen, other: Seen) -> str:
    """Return the name of what differs, or nothing."""
    for what, mine, others in (
        ("gradient of", one.gradients, other.gradients),
        ("value of", _optional(one.values), _optional(other.values)),
        ("buffer", _optional(one.buffers), _optional(other.buffers)),
    ):
        for own, its in zip(mine, others, strict=True):
            for name, value in own.items():
                if not same(value, its.get(name)):
                    return f"the {what} {name}"
    return "" if np.array_equal(_numbers(one), _numbers(other), equal_nan=True) else "the loss"


def _numbers(seen: Seen) -> list[float]:
    """Return the losses, and no number where none is logged."""
    return [math.nan if loss is None else loss for loss in seen.losses]


def _optional(tensors: Iterable[Tensors]) -> list[dict[str, torch.Tensor | None]]:
    return [dict(one) for one in tensors]


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors are the same, bit for bit."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8) if one.ndim else one.reshape(1).view(torch.uint8),
        other.contiguous().view(torch.uint8) if other.ndim else other.reshape(1).view(torch.uint8),
    )


def _simulated(found: Trainer) -> Trainer:
    """Return a target with whether it runs in simulated worlds; that it does not is no defect of it."""
    if found.draws and not found.constant:
        return replace(found, simulated=False, unsimulated="their ranks draw from one random generator")
    plan = simplest(found, 2, seed=SEEDS[0]).plan(found, launched=False)
    worlds, failed, seen = found.worlds(), "", []
    try:
        for _ in range(2):  # one run may leave what stops the next
            seen.append(worlds.open(WorldSpec("simulated", (2,)), size=2).run(act, found, plan))  # noqa: PERF401
    except OutOfTime:
        return found
    except WorldError as error:
        if isinstance(error, SimulationError) and error.finding not in STOPS_PROCESSES:
            return found  # a buffer touched in flight, say: that is to be seen
        failed = next(state for state in error.ranks if state.state != "returned").said
    try:
        ran = run_processes(found, plan, SHORT if failed and not seen else 1.0)
    except (WorldError, OutOfTime):
        return found
    digits = math.sqrt(torch.finfo(getattr(torch, plan.dtype)).eps)
    if any(not _alike(one, other, digits) for ranks in seen for one, other in zip(ranks, ran, strict=True)):
        failed = OF_PROCESS
    if not failed:
        return found
    worlds.close()  # what one process holds is of several ranks
    return replace(found, simulated=False, unsimulated=failed)


def run_processes(found: Trainer, plan: Plan, patience: float) -> list[Seen]:
    """Take steps in two processes over gloo."""
    world = found.worlds().open(WorldSpec("processes", (2,)), patience)
    return world.run(act, found, plan._replace(launched=True))


def _alike(one: Seen, other: Seen, digits: float) -> bool:
    """Whether two ranks have the same gradients and parameters, to so many digits of the largest."""
    pairs: list[tuple[Mapping[str, torch.Tensor | None], Mapping[str, torch.Tensor | None]]] = [
        *zip(one.gradients, other.gradients, strict=True), *zip(one.values, other.values, strict=True),
    ]  # fmt: skip
    for these, those in pairs:
        for name in {*these, *those}:
            left, right = these.get(name), those.get(name)
            if left is None or right is None:
                if left is not right:
                    return False
            elif left.shape != right.shape or not _near(left, right, digits):
                return False
    return True


def _near(one: torch.Tensor, other: torch.Tensor, digits: float) -> bool:
    if not one.numel():
        return True
    largest = max(float(one.abs().max()), float(other.abs().max()))
    return bool(torch.allclose(one, other, rtol=0, atol=digits * largest, equal_nan=True))


def act(rank: int, world_size: int, trainer: Trainer, plan: Plan) -> Seen:
    """Take steps on one rank."""
    return run_steps(trainer.subject.resolve(), rank, world_size, plan)


def _last(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
