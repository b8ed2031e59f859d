"""One process on the whole batch, and how far rounding may take a right trainer from it."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from verified_losses.oracles.complex_step import Array

from ..laws import Unanswered
from ..standalone.steps import Plan, Seen, Tensors, run_steps
from ..worlds import World
from .inspection import act
from .monte_carlo import QUANTILE, SAMPLES, SPREAD, Moved
from .target import Trainer

CALL_SECONDS = 8.0
"""How long one call may take: samples that take longer are taken in several."""
ATTEMPTS = 4
"""How many samples are tried for one, where they raise."""
Squares = dict[str, torch.Tensor]
"""Sums of squared deviations, by place."""


@dataclass(frozen=True)
class Truth:
    """One process on the whole batch."""

    seen: Seen
    squares: Squares
    unsampled: str = ""
    """Why nothing is known of rounding."""

    def bound(self, place: str, value: torch.Tensor) -> Array:
        """Return how far a right trainer may be from a value.

        Raises:
            Unanswered: rounding could not be sampled, or may make of a number what is none.
        """
        if self.unsampled:
            raise Unanswered(f"rounding could not be sampled: {self.unsampled}")
        bound = allowed(self.squares[place], value)
        bound = np.where(value.isfinite().numpy(), bound, 0.0)  # what is not finite is compared exactly
        if np.isinf(bound).any():
            raise Unanswered(f"rounding may make the {place.partition(' ')[0]} not finite")
        if place.startswith(("value", "buffer")) and bound.size:
            # an optimizer may take the sign of a gradient that is 0 but for rounding: the element that it
            # moves then jumps in some samples, or in none, and those that do speak for those that might
            bound = np.full_like(bound, bound.max())
        return bound


def allowed(squares: torch.Tensor, exact: torch.Tensor) -> Array:
    """Return how far a right trainer may be from a tensor, given the sum of squared deviations."""
    ulp = torch.finfo(exact.dtype).eps if exact.dtype.is_floating_point else 0.0
    spread = np.hypot(np.sqrt(array(squares) / SAMPLES), 0.5 * ulp * array(exact.abs()))
    bound: Array = SPREAD * QUANTILE * spread
    return bound


def truth(world: World, trainer: Trainer, plan: Plan) -> Truth:
    """Ask one process, in its world: once as it is, and `SAMPLES` times in Monte Carlo arithmetic."""
    (exact,) = world.run(act, trainer, plan)
    squares: Squares = {}
    if any(exact.skipped):  # nothing is compared with it
        return Truth(exact, squares)
    each = max(1, int(CALL_SECONDS / max(10 * trainer.seconds * plan.steps, 1e-3)))
    for first in range(0, SAMPLES, each):
        numbers = range(first, min(first + each, SAMPLES))
        ((squares, why),) = world.run(scattered, trainer, plan, exact, squares, list(numbers))
        if why:
            return Truth(exact, squares, why)
    return Truth(exact, squares)


def scattered(
    rank: int,
    world_size: int,
    trainer: Trainer,
    plan: Plan,
    exact: Seen,
    squares: Squares,
    numbers: list[int],
) -> tuple[Squares, str]:
    """Add the squared deviations of some samples; return them, and what a sample raises, if it does."""
    found, right = dict(squares), places(exact)
    for number in numbers:
        try:
            deviations = _sample(trainer, plan, number, right)
        except Exception as error:
            return found, f"{type(error).__name__}: {error}".splitlines()[0]
        for place, deviation in deviations.items():
            lost = torch.where(torch.isnan(deviation), torch.inf, deviation) ** 2
            found[place] = found[place] + lost if place in found else lost
    return found, ""


def _sample(trainer: Trainer, plan: Plan, number: int, right: Tensors) -> Tensors:
    """Return the deviations of a sample, or of another where numbers leave a range that is checked."""
    raised = Exception()
    for seed in range(number, ATTEMPTS * SAMPLES, SAMPLES):

        def moving(step: int, seed: int = seed) -> Moved:
            return Moved(1_000_003 * plan.seed + 101 * seed + step)

        try:
            sample = places(run_steps(trainer.subject.resolve(), 0, 1, plan, moving))
            # no gradient is one of zeros, as of an expert that is reached or not by a hair
            return {
                place: sample.get(place, torch.zeros_like(value)).double() - value.double()
                for place, value in right.items()
            }
        except Exception as error:
            raised = error
    raise raised


def places(seen: Seen) -> Tensors:
    """Return all numbers of a run by their places."""
    found: Tensors = {}
    for step, (loss, gradients) in enumerate(zip(seen.losses, seen.gradients, strict=True)):
        if loss is not None:
            found[f"loss {step}"] = torch.tensor(loss, dtype=torch.float64)
        found |= {f"gradient {step} {name}": one for name, one in gradients.items() if one is not None}
    for step, values in enumerate(seen.values):
        found |= {f"value {step} {name}": one for name, one in values.items()}
    for step, buffers in enumerate(seen.buffers):
        found |= {
            f"buffer {step} {name}": one for name, one in buffers.items() if one.dtype.is_floating_point
        }
    return found


def array(value: torch.Tensor) -> Array:
    """Return a tensor in NumPy."""
    found: Array = value.detach().double().numpy()
    return found


def blunt(truth: Truth) -> float:
    """Return the largest bound of a gradient, as a share of the largest element of all gradients.

    Raises:
        Unanswered: there is none.
    """
    share = 0.0
    for step, gradients in enumerate(truth.seen.gradients):
        given = {name: one for name, one in gradients.items() if one is not None and one.numel()}
        largest = max((float(one.abs().max()) for one in given.values()), default=0.0)
        if largest > 0 and math.isfinite(largest):
            bounds = (truth.bound(f"gradient {step} {name}", one).max() for name, one in given.items())
            share = max(share, *(float(one) / largest for one in bounds))
    return share
