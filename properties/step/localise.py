"""Where a trainer first departs from one process: the module whose output does, or whose gradients do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from verified_losses.oracles.complex_step import Array

from ..laws import Falsified, Place, compare
from ..standalone.steps import Plan, built, micro_batches, plain_name, take
from ..worlds import OutOfTime, WorldError
from ..worlds.specs import SINGLE
from .cases import StepCase
from .monte_carlo import SAMPLES, Moved
from .target import Trainer
from .truth import allowed, array

KINDS = ("gradient", "value", "buffer", "logged loss")
"""What is wrong where a module may be to blame."""


class Passed(NamedTuple):
    """What went through a rank in its first step."""

    outputs: dict[str, list[torch.Tensor]]
    """Of each module, in the order in which they first returned: those of each call."""
    gradients: dict[str, torch.Tensor | None]
    kinds: dict[str, str]
    """The classes of the modules."""


def first_module(trainer: Trainer, case: StepCase, error: Exception, launched: bool, world: Any) -> str:
    """Return in words where ranks first depart from one process in the first step; nothing if nowhere.

    Args:
        trainer: the target.
        case: what it fails with.
        error: how.
        launched: whether ranks are processes that were launched.
        world: where it fails.
    """
    if (
        not isinstance(error, Falsified)
        or error.place is None
        or error.place.kind not in KINDS
        or not case.is_split
    ):
        return ""
    plan = case.plan(trainer, launched)
    try:
        (right,) = trainer.worlds().open(SINGLE).run(passed, trainer, plan.whole, None)
        samples = [
            trainer.worlds().open(SINGLE).run(passed, trainer, plan.whole, number)[0]
            for number in range(SAMPLES)
        ]
        ranks = world.run(passed, trainer, plan, None)
    except (WorldError, OutOfTime):
        return ""
    for name in right.outputs:
        if _departs(name, right, samples, ranks, plan):
            return f"the first module whose output departs: {_shown(name, right)}"
    holds = error.place.name.rpartition(".")[0]
    held = error.place.kind == "buffer" and holds in right.kinds
    return _by_gradients(right, samples, ranks) or (
        f"outputs and gradients agree; the module that holds it: {_shown(holds, right)}" if held else ""
    )


def passed(rank: int, world_size: int, trainer: Trainer, plan: Plan, sample: int | None) -> Passed:
    """Take one step on a rank; return what its modules gave."""
    made = built(trainer.subject.resolve(), rank, world_size, plan)
    batches = micro_batches(made, rank, plan, 0)
    with watched(made.model) as (outputs, kinds):
        with nullcontext() if sample is None else Moved(1_000_003 * plan.seed + 101 * sample):
            taken = take(made, batches, plan.constant)
        return Passed(dict(outputs), taken.gradients, kinds)


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[tuple[dict[str, list[torch.Tensor]], dict[str, str]]]:
    """Note the outputs of all modules."""
    outputs: dict[str, list[torch.Tensor]] = {}
    modules = {plain_name(model, name): one for name, one in model.named_modules()}

    def noting(name: str) -> Callable[..., None]:
        def note(module: Any, given: Any, output: Any) -> None:
            found = [
                one
                for one in tree_leaves(output)
                if isinstance(one, torch.Tensor) and one.is_floating_point()
            ]
            outputs.setdefault(name, []).extend(one.detach().cpu().clone() for one in found[:1])

        return note

    hooks = [one.register_forward_hook(noting(name)) for name, one in modules.items()]
    try:
        yield outputs, {name: type(one).__name__ for name, one in modules.items()}
    finally:
        for hook in hooks:
            hook.remove()


def _departs(name: str, right: Passed, samples: list[Passed], ranks: list[Passed], plan: Plan) -> bool:
    """Whether the rows that a module gave on all ranks and micro-batches are not those of one process."""
    rows = [count for each in plan.rows for count in each]
    parts = [
        part
        for each, seen in zip(plan.rows, ranks, strict=True)
        for part in seen.outputs.get(name, [])[: len(each)]
    ]
    if len(parts) != len(rows) or not right.outputs[name]:
        return False
    whole = right.outputs[name][0]
    if any(one.shape != (count, *whole.shape[1:]) for one, count in zip(parts, rows, strict=True)):
        return False  # as where padding is trimmed
    seen = torch.cat(parts)
    bound = _bound(whole, [one.outputs[name][0] for one in samples])
    return seen.shape == whole.shape and _is_wrong(name, seen, whole, bound)


def _by_gradients(right: Passed, samples: list[Passed], ranks: list[Passed]) -> str:
    """Return the module, of those whose parameters' gradients depart, that backward meets first."""
    wrong: set[str] = set()
    for name, one in right.gradients.items():
        drawn = [sample.gradients[name] for sample in samples]
        if one is None or any(other is None for other in drawn):
            continue
        bound = _bound(one, [other for other in drawn if other is not None])
        for seen in ranks:
            own = seen.gradients.get(name)
            if own is not None and _is_wrong(name, own, one, bound):
                wrong.add(name.rpartition(".")[0])
    met = [name for name in reversed(right.outputs) if name in wrong]
    if not met:
        return ""
    return f"outputs agree; the first module, backward, whose gradients depart: {_shown(met[0], right)}"


def _bound(exact: torch.Tensor, samples: list[torch.Tensor]) -> Array:
    return allowed(torch.stack([(one.double() - exact.double()) ** 2 for one in samples]).sum(0), exact)


def _is_wrong(name: str, seen: torch.Tensor, right: torch.Tensor, bound: Array) -> bool:
    try:
        compare(Place("output", name), array(seen), array(right), bound)
    except Falsified:
        return True
    return False


def _shown(name: str, right: Passed) -> str:
    return f"{name or 'the model itself'} ({right.kinds.get(name, '')})"
