"""What a rank does with a training step: builds it, takes steps on its rows, and notes what came of them.

Imports torch alone: a counterexample quotes it.
"""

import functools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

Tensors = dict[str, torch.Tensor]
Rows = tuple[tuple[int, ...], ...]
"""Of each rank, the rows of each micro-batch."""

WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that torch's wrappers add between those of modules."""


class Plan(NamedTuple):
    """What is done with a target in one world; the same for all ranks."""

    rows: Rows
    """One process on the whole batch has one rank of one micro-batch."""
    dtype: str = "float64"
    steps: int = 1
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    """What `make_step` is given besides rank and world size."""
    launched: bool = False
    """Whether ranks are processes of their own, with the variables that torchrun sets."""
    loss_scale: float = 1.0
    """What the initial scale of every GradScaler is multiplied with."""

    @property
    def whole(self) -> "Plan":
        """The same for one process on the whole batch."""
        return self._replace(rows=((sum(map(sum, self.rows)),),), launched=False)


class Seen(NamedTuple):
    """What a rank saw."""

    losses: list[float]
    """Which each step returned."""
    gradients: list[dict[str, torch.Tensor | None]]
    """Of each step, as the optimizer got them, or as the step left them where no optimizer ran."""
    values: list[Tensors]
    """Of the parameters, before the first step and after each."""
    required: list[str]
    """The parameters that require grad."""
    scaled: bool = False
    """Whether a GradScaler was made, where their scales were multiplied."""


def run_steps(
    make_step: Callable[..., Any],
    rank: int,
    world_size: int,
    plan: Plan,
    around: Callable[[int], AbstractContextManager[Any]] = lambda number: nullcontext(),
) -> Seen:
    """Build the trainer of a rank, and take steps, each in a context."""
    with scaled_losses(plan.loss_scale) as scalers:
        trainer = built(make_step, rank, world_size, plan)
        losses, gradients, values = [], [], [parameters_of(trainer)]
        required = [name for name, one in named(trainer.model).items() if one.requires_grad]
        for number in range(plan.steps):
            batches = micro_batches(trainer, rank, plan, number)
            with around(number):
                loss, found = take(trainer, batches)
            losses.append(loss)
            gradients.append(found)
            values.append(parameters_of(trainer))
        return Seen(losses, gradients, values, required, bool(scalers))


def run_fresh(make_step: Callable[..., Any], plan: Plan) -> Seen:
    """Take each step of one process with a trainer of its own, which has the parameters that are due then."""
    used = built(make_step, 0, 1, plan)
    losses, gradients, values = [], [], [parameters_of(used)]
    for number in range(plan.steps):
        fresh = built(make_step, 0, 1, plan)
        fresh.model.load_state_dict(used.model.state_dict())
        loss, found = take(fresh, micro_batches(fresh, 0, plan, number))
        losses.append(loss)
        gradients.append(found)
        take(used, micro_batches(used, 0, plan, number))
        values.append(parameters_of(used))
    return Seen(losses, gradients, values, [])


def built(make_step: Callable[..., Any], rank: int, world_size: int, plan: Plan) -> Any:
    """Return the trainer of a rank."""
    torch.set_default_dtype(getattr(torch, plan.dtype))
    if plan.launched:
        launched = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
        }
        os.environ.update({name: str(value) for name, value in launched.items()})
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
    torch.manual_seed(plan.seed)
    random.seed(plan.seed)
    return make_step(rank, world_size, **dict(plan.options))


def micro_batches(trainer: Any, rank: int, plan: Plan, number: int) -> list[Tensors]:
    """Return a rank's micro-batches of a step, cut from the whole batch."""
    counts = [count for each in plan.rows for count in each]
    batch = trainer.batch(sum(counts), plan.seed + number)
    first = sum(map(sum, plan.rows[:rank]))
    found = []
    for count in plan.rows[rank]:
        found.append({name: value[first : first + count] for name, value in batch.items()})
        first += count
    return found


def take(trainer: Any, batches: Sequence[Tensors]) -> tuple[float, dict[str, torch.Tensor | None]]:
    """Take a step; return the loss that it logs, and the gradients that the optimizer got."""
    seen: dict[str, torch.Tensor | None] = {}

    def note(optimizer: Any, *_: Any) -> None:
        given = {id(one) for group in optimizer.param_groups for one in group["params"]}
        seen.update({name: whole(one.grad) for name, one in named(trainer.model).items() if id(one) in given})

    hook = register_optimizer_step_pre_hook(note)
    try:
        loss = trainer.step(*batches)
    finally:
        hook.remove()
    for name, one in named(trainer.model).items():
        if name not in seen:
            seen[name] = whole(one.grad)
    return number_of(loss), {name: seen[name] for name in named(trainer.model)}


def number_of(loss: Any) -> float:
    """Return what a step has returned as a number."""
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


def parameters_of(trainer: Any) -> Tensors:
    """Return copies of the parameters."""
    found = {name: whole(one) for name, one in named(trainer.model).items()}
    return {name: one for name, one in found.items() if one is not None}


def named(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters by the names that they have without torch's wrappers."""
    return {plain_name(name): one for name, one in unwrapped(model).named_parameters()}


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module that DistributedDataParallel wraps, where it does."""
    while isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def plain_name(name: str) -> str:
    """Return a name without what torch's wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def whole(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return a copy of a tensor; of one that is spread over ranks, all of it."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.to_dense().cpu().clone() if tensor.layout != torch.strided else tensor.cpu().clone()


@contextmanager
def scaled_losses(factor: float) -> Iterator[list[Any]]:
    """Multiply the initial scale of every GradScaler that is made; yield those that are enabled."""
    found: list[Any] = []
    if factor == 1:  # nothing is replaced where ranks are threads
        yield found
        return
    initialise = torch.amp.GradScaler.__init__

    @functools.wraps(initialise)
    def initialised(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if self.is_enabled():
            self._init_scale *= factor
            found.append(self)

    with mock.patch.object(torch.amp.GradScaler, "__init__", initialised):
        yield found
