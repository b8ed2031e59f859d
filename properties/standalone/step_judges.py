"""How what ranks saw of a training step is judged: against one process on the whole batch."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import file
from .steps import Seen, run_fresh, run_steps

StepJudge = Callable[[Any, list[Seen]], bool]
"""Given a target and what each rank saw, prints both sides; returns whether they agree."""


def judge_step_gradient(target: Any, ranks: list[Seen]) -> bool:
    """Compare one element of a rank's gradient with that of one process on the whole batch."""
    return near(gradient(one_process(target)), gradient(ranks[file.RANK]))


def judge_step_value(target: Any, ranks: list[Seen]) -> bool:
    """Compare one element of a rank's parameter with that of one process on the whole batch."""
    return near(parameter(one_process(target)), parameter(ranks[file.RANK]))


def judge_step_buffer(target: Any, ranks: list[Seen]) -> bool:
    """Compare one element of a rank's buffer with that of one process on the whole batch."""
    return near(buffer(one_process(target)), buffer(ranks[file.RANK]))


def judge_step_rng(target: Any, ranks: list[Seen]) -> bool:
    """Compare where a rank's random generator is with where it is promised to be."""
    seen = ranks[file.RANK]
    right = (seen.stated or one_process(target).rng)[file.STEP]
    agree = torch.equal(seen.rng[file.STEP], right)
    print(
        f"the state of torch's random generator on rank {file.RANK}: {'as' if agree else 'not as'} promised"
    )
    return agree


def judge_step_loss(target: Any, ranks: list[Seen]) -> bool:
    """Compare the mean over ranks of the logged loss with that of one process on the whole batch."""
    logged = [loss for one in ranks if (loss := one.losses[file.STEP]) is not None]
    return near(one_process(target).losses[file.STEP], sum(logged) / len(logged))


def judge_step_presence(target: Any, ranks: list[Seen]) -> bool:
    """Look whether a parameter has a gradient where it has one in one process, or requires one."""
    seen = ranks[file.RANK].gradients[file.STEP].get(file.NAME)
    print(f"the gradient of {file.NAME} on rank {file.RANK}: {'none' if seen is None else 'one'}")
    return (seen is not None) == file.IS_DUE


def judge_step_ranks(target: Any, ranks: list[Seen]) -> bool:
    """Compare the gradient, or the parameter, of two ranks, bit for bit."""
    pick = gradient if file.KIND.startswith("gradient") else parameter
    first, other = pick(ranks[0]), pick(ranks[file.RANK])
    print(f"rank 0 has {first!r}, rank {file.RANK} has {other!r}")
    return bool(first == other)


def judge_step_fresh(target: Any, ranks: list[Seen]) -> bool:
    """Compare a gradient of a trainer that has taken steps with that of a new one with its parameters."""
    return near(gradient(run_fresh(target, file.plan().whole)), gradient(one_process(target)))


def judge_step_scaled(target: Any, ranks: list[Seen]) -> bool:
    """Compare a gradient with that at another initial scale of the GradScaler."""
    scaled = run_steps(target, 0, 1, file.plan().whole._replace(loss_scale=file.LOSS_SCALE))
    return near(gradient(scaled), gradient(one_process(target)))


def one_process(target: Any) -> Seen:
    """Return what one process sees of the whole batch."""
    with unlaunched():
        return run_steps(target, 0, 1, file.plan().whole)


@contextlib.contextmanager
def unlaunched() -> Iterator[None]:
    """Hide that a launcher has started this process."""
    names = [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def gradient(seen: Seen) -> Any:
    """Return the element that is compared, 0 where there is no gradient."""
    found = seen.gradients[file.STEP].get(file.NAME)
    return 0.0 if found is None else element(found)


def parameter(seen: Seen) -> Any:
    """Return the element that is compared, nothing where there is no such parameter."""
    found = seen.values[file.STEP + 1].get(file.NAME)
    return None if found is None else element(found)


def buffer(seen: Seen) -> Any:
    """Return the element that is compared, nothing where there is no such buffer."""
    found = seen.buffers[file.STEP + 1].get(file.NAME)
    return None if found is None else element(found)


def element(tensor: torch.Tensor) -> Any:
    """Return one element of a tensor; of one that was found to be of another shape or dtype, those."""
    if len(file.INDEX) < tensor.ndim:
        return tensor.dtype, list(tensor.shape)
    return tensor[file.INDEX].item()


def near(expected: Any, observed: Any) -> bool:
    """Print both; return whether they are the same, or numbers as near as rounding allows."""
    print(f"one process has {expected!r}, observed {observed!r}: rounding allows {file.BOUND:.3g}")
    if isinstance(expected, float) and isinstance(observed, float):
        return abs(expected - observed) <= file.BOUND
    return bool(expected == observed)
