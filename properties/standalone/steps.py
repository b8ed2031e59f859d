"""What a rank does with a training step: builds it, takes steps on its rows, and notes what came of them.

Imports torch alone: a counterexample quotes it.
"""

import copy
import fnmatch
import functools
import itertools
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

Tensors = dict[str, torch.Tensor]
Rows = tuple[tuple[int, ...], ...]
"""Of each rank, the rows of each micro-batch."""

NOTE = "_notes_gradients"
"""The attribute of an optimizer that notes its gradients, while a step is taken."""
DEPTH = 4
"""How deep lists and objects are looked into for what a checkpoint holds."""
MOST = 64
"""So many items of a list are looked at."""
LISTS = (list, tuple, dict)
STATED = "state_dict()."
"""In the name of a tensor that an object states."""
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
    constant: bool = False
    """Whether steps get constants in the place of random numbers."""

    @property
    def whole(self) -> "Plan":
        """The same for one process on the whole batch."""
        return self._replace(rows=((sum(map(sum, self.rows)),),), launched=False)


class Seen(NamedTuple):
    """What a rank saw."""

    losses: list[float | None]
    """Which each step returned; None where this rank logs nothing."""
    gradients: list[dict[str, torch.Tensor | None]]
    """Of each step, as the optimizer got them, or as the step left them where no optimizer did.

    Where none did because they are not finite, they are zeros.
    """
    values: list[Tensors]
    """Of the parameters, before the first step and after each."""
    required: list[str]
    """The parameters that require grad."""
    scaled: bool = False
    """Whether a GradScaler was made, where their scales were multiplied."""
    buffers: Sequence[Tensors] = ()
    """What else a checkpoint of this rank holds, before the first step and after each."""
    rng: Sequence[torch.Tensor] = ()
    """The state of torch's random generator after each step."""
    stated: Sequence[torch.Tensor] = ()
    """The same as the trainer states it, where it does."""
    held: Sequence[set[str]] = ()
    """The parameters that the optimizers of this rank got in each step."""
    copied: Sequence[bool] = ()
    """Whether in each step an optimizer updated what no parameter is, as copies of parameters."""
    skipped: Sequence[bool] = ()
    """Whether each step left gradients that are not finite, and that no optimizer used."""


class Taken(NamedTuple):
    """What came of a step."""

    loss: float | None
    """Which it logs, if it does."""
    gradients: dict[str, torch.Tensor | None]
    """As the optimizer got them, or as the step left them where no optimizer ran."""
    held: set[str]
    """The parameters that an optimizer got."""
    copied: bool = False
    """Whether an optimizer updated what no parameter is."""
    skipped: bool = False
    """Whether gradients are not finite, and no optimizer used them."""


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
        taken, values = [], [parameters_of(trainer)]
        buffers, rng, stated = [buffers_of(trainer, rank)], [], []
        required = [name for name, one in named(trainer.model).items() if one.requires_grad]
        for number in range(plan.steps):
            batches = micro_batches(trainer, rank, plan, number)
            with around(number):
                taken.append(take(trainer, batches, plan.constant))
            rng.append(torch.get_rng_state())
            values.append(parameters_of(trainer))
            buffers.append(buffers_of(trainer, rank))
            if callable(getattr(trainer, "rng_state", None)):
                stated.append(rng_state(trainer.rng_state(number + 1)))
        return seen_of(taken, values)._replace(
            required=required, scaled=bool(scalers), buffers=buffers, rng=rng, stated=stated
        )


def seen_of(taken: Sequence[Taken], values: list[Tensors]) -> Seen:
    """Return what steps gave, and the parameters before and after them."""
    return Seen(
        [one.loss for one in taken],
        [one.gradients for one in taken],
        values,
        [],
        held=[one.held for one in taken],
        copied=[one.copied for one in taken],
        skipped=[one.skipped for one in taken],
    )


def run_fresh(make_step: Callable[..., Any], plan: Plan) -> Seen:
    """Take each step of one process with a trainer of its own, which has what a checkpoint holds then."""
    used = built(make_step, 0, 1, plan)
    taken, values = [], [parameters_of(used)]
    drawn = generators()
    for number in range(plan.steps):
        fresh = built(make_step, 0, 1, plan)
        resume(fresh, used)
        set_generators(drawn)
        taken.append(take(fresh, micro_batches(fresh, 0, plan, number), plan.constant))
        set_generators(drawn)
        take(used, micro_batches(used, 0, plan, number), plan.constant)
        drawn = generators()
        values.append(parameters_of(used))
    return seen_of(taken, values)


def seed_generators(seed: int) -> None:
    """Seed the random generators that all code shares."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def generators() -> tuple[Any, ...]:
    """Return the states of the random generators that all code shares."""
    numpy = sys.modules.get("numpy")
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None


def set_generators(states: tuple[Any, ...]) -> None:
    """Put them back."""
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    if states[2] is not None:
        sys.modules["numpy"].random.set_state(states[2])


def resume(fresh: Any, used: Any) -> None:
    """Give a trainer what a checkpoint of another holds: modules, schedulers, numbers, what it states."""
    fresh.model.load_state_dict(used.model.state_dict())
    new = beside(fresh)
    for place, module in beside(used).items():
        new[place].load_state_dict(module.state_dict())
    give(fresh, used, {id(used)})
    if is_stateful(used):
        fresh.load_state_dict(copy.deepcopy(used.state_dict()))


def give(fresh: Any, used: Any, met: set[int], depth: int = DEPTH) -> None:
    """Give an object the numbers of another, and those of what it holds; what states itself gets its state.

    Optimizers are left out: no gradient needs what they hold.
    """
    own = fields_of(fresh)
    for name, value in fields_of(used).items():
        mine = own.get(name)
        if isinstance(value, int | float) or is_counter(value):
            if not (type(mine) is type(value) and mine == value):  # what is frozen has the same
                put(fresh, name, value.clone() if isinstance(value, torch.Tensor) else value)
        elif isinstance(value, torch.nn.Module | torch.optim.Optimizer) or mine is value:
            continue
        elif is_stateful(value):
            own[name].load_state_dict(copy.deepcopy(value.state_dict()))
        elif mine is None and (isinstance(value, LISTS) or isinstance(used, LISTS)):
            continue  # what was logged
        elif depth and id(value) not in met:
            met.add(id(value))
            give(mine, value, met, depth - 1)


def is_counter(value: Any) -> bool:
    """Whether something is a number in a tensor."""
    return isinstance(value, torch.Tensor) and value.ndim == 0 and not value.requires_grad


def put(holder: Any, name: Any, value: Any) -> None:
    """Set an item or an attribute, where it can be set."""
    if isinstance(holder, dict) or (isinstance(holder, list) and name < len(holder)):
        holder[name] = value
    elif not isinstance(holder, LISTS):
        setattr(holder, name, value)


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
    seed_generators(plan.seed)
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


def take(trainer: Any, batches: Sequence[Tensors], constant: bool = False) -> Taken:
    """Take a step, and note what the optimizer gets; of a closure, what it leaves when it is called last."""
    seen: dict[str, torch.Tensor | None] = {}
    copied = skipped = False
    thread = threading.get_ident()

    def note(optimizer: Any, *called_with: Any) -> None:
        nonlocal skipped
        # of a fused optimizer, which then does nothing
        skipped |= bool(getattr(optimizer, "found_inf", None))
        found = gradients_of(trainer.model, ids_of(optimizer))
        scale = getattr(optimizer, "grad_scale", None)  # of a fused optimizer, which divides by it itself
        seen.update(
            {name: one if one is None or scale is None else one / scale for name, one in found.items()}
        )

    def before(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal copied
        own, given = set(map(id, trainer.model.parameters())), ids_of(optimizer)
        copied |= not given <= own and threading.get_ident() == thread
        if given.isdisjoint(own):
            return None  # where ranks are threads, the optimizers of others call this too
        # its own hooks, which may reduce, run before this one
        undo.callback(optimizer.register_step_pre_hook(note).remove)
        note_inner_steps(optimizer)
        vars(optimizer)[NOTE] = note
        undo.callback(vars(optimizer).pop, NOTE, None)

        def noted(closure: Any) -> Any:
            def evaluate(*args: Any, **kwargs: Any) -> Any:
                loss = closure(*args, **kwargs)
                note(optimizer)
                return loss

            return evaluate if callable(closure) else closure

        return (optimizer, *map(noted, args[1:])), {name: noted(one) for name, one in kwargs.items()}

    with ExitStack() as undo:
        undo.callback(register_optimizer_step_pre_hook(before).remove)
        with Constants() if constant else nullcontext():  # type: ignore[no-untyped-call, unused-ignore]
            loss = trainer.step(*batches)
    left = gradients_of(trainer.model)
    unused = [one for name, one in left.items() if name not in seen and one is not None]
    if not all(bool(one.isfinite().all()) for one in unused):
        skipped = True  # as a GradScaler does
        for one in unused:
            one.zero_()
    logged = None if loss is None else number_of(loss)
    gradients = {name: seen.get(name, one) for name, one in left.items()}
    return Taken(logged, gradients, set(seen), copied, skipped)


def ids_of(optimizer: Any) -> set[int]:
    """Return the ids of the parameters that an optimizer updates."""
    return {id(one) for group in optimizer.param_groups for one in group["params"]}


def note_inner_steps(optimizer: Any) -> None:
    """Let the steps that an optimizer's own step inherits say that they are called: it may reduce before."""
    own = [kind for kind in type(optimizer).__mro__ if callable(vars(kind).get("step"))]
    for kind in own[1:]:
        step = vars(kind)["step"]
        if kind is not torch.optim.Optimizer and not {"hooked", "notes"} & vars(step).keys():
            kind.step = noting(step)  # type: ignore[attr-defined]


def noting(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return an optimizer's step that calls what notes gradients, where the optimizer has it."""

    @functools.wraps(step)
    def noted_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if NOTE in vars(self):
            vars(self)[NOTE](self)
        return step(self, *args, **kwargs)

    noted_step.notes = True  # type: ignore[attr-defined]
    return noted_step


def gradients_of(model: torch.nn.Module, given: set[int] | None = None) -> dict[str, torch.Tensor | None]:
    """Return copies of the gradients of all parameters, or of those with the ids that are given."""
    with summoned(model):
        own = {name: one for name, one in named(model).items() if given is None or id(one) in given}
        return {name: whole(one.grad) for name, one in own.items()}


@contextmanager
def summoned(model: torch.nn.Module) -> Iterator[None]:
    """Within, each rank holds what FullyShardedDataParallel, the first of its kind, spreads over ranks."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # half a second, which is spared where it is not used
    if fsdp is None or not any(isinstance(one, fsdp.FullyShardedDataParallel) for one in model.modules()):
        yield
        return
    with fsdp.FullyShardedDataParallel.summon_full_params(model, writeback=False, with_grads=True):
        yield


def number_of(loss: Any) -> float:
    """Return what a step has returned as a number."""
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


def parameters_of(trainer: Any) -> Tensors:
    """Return copies of the parameters."""
    with summoned(trainer.model):
        found = {name: whole(one) for name, one in named(trainer.model).items()}
    return {name: one for name, one in found.items() if one is not None}


def buffers_of(trainer: Any, rank: int) -> Tensors:
    """Return copies of what a checkpoint of a rank holds besides the model's parameters.

    That is the model's buffers but for those that are not persistent, all of the other modules that the
    trainer has, as an average of the weights, and what it and its objects state. What the trainer names in
    `local_buffers` is left out. Ranks other than 0 have the model's buffers alone, as rank 0 writes the
    checkpoint.
    """
    found = {name: whole(one) for name, one in persistent(trainer.model, rank).items()}
    own = {id(one) for one in [*trainer.model.parameters(), *trainer.model.buffers()]}
    others: Tensors = {}
    for prefix, module in beside(trainer).items():
        held = {**named(module), **persistent(module)}
        others |= {f"{prefix}.{name}": one for name, one in held.items() if id(one) not in own}
    others |= stated_of(trainer)
    copies = {name: whole(one) for name, one in others.items()}  # all ranks take part, where it is spread
    found |= {} if rank else copies
    local = getattr(trainer, "local_buffers", ())
    return {
        name: one
        for name, one in found.items()
        if one is not None and not any(matches(name, pattern) for pattern in local)
    }


def matches(name: str, pattern: str) -> bool:
    """Whether a buffer has a name; what is stated may have it within a state."""
    return fnmatch.fnmatch(name, pattern) or (STATED in name and fnmatch.fnmatch(name, f"*.{pattern}"))


def stated_of(trainer: Any) -> Tensors:
    """Return what a trainer and its objects state, but for optimizers, modules, and what these hold.

    That is tensors of floats, as averages of the weights. Numbers, tensors without dimensions among them, and
    states of random generators may differ by rank.
    """
    modules = [trainer.model, *beside(trainer).values()]
    known = {address(one) for each in modules for one in [*each.parameters(), *each.buffers()]}
    found: Tensors = {}
    for place, one in {"": trainer, **parts_of(trainer)}.items():
        is_known = place and isinstance(one, torch.nn.Module | torch.optim.Optimizer)
        if is_stateful(one) and not is_known:
            with suppress(Exception):  # as of an optimizer that is spread over ranks
                for name, each in tensors_in(one.state_dict()).items():
                    if each.is_floating_point() and each.ndim and address(each) not in known:
                        found[f"{place}.{STATED}{name}".removeprefix(".")] = each
    return found


def tensors_in(state: Any, name: str = "") -> Tensors:
    """Return the tensors of a state by their names, but for those of optimizers."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    held = dict(enumerate(state)) if isinstance(state, list | tuple) else state
    if not isinstance(held, dict) or any(str(field).startswith("param_groups") for field in held):
        return {}
    found: Tensors = {}
    for field, one in held.items():
        # wrappers may be there in several ranks alone
        kept = [part for part in str(field).split(".") if part not in ("module", *WRAPPED)]
        found |= tensors_in(one, ".".join(filter(None, [name, *kept])))
    return found


def address(tensor: torch.Tensor) -> int:
    """Return where in memory the elements are, of a tensor that is spread over ranks those of its own."""
    return int(getattr(tensor, "_local_tensor", tensor).data_ptr())


def beside(trainer: Any) -> dict[str, torch.nn.Module]:
    """Return the modules that hold what a trainer's model does not, by the names of attributes."""
    own = {id(one) for one in [*trainer.model.parameters(), *trainer.model.buffers()]}
    return {
        path: one
        for path, one in parts_of(trainer).items()
        if isinstance(one, torch.nn.Module)
        and not own.issuperset(map(id, [*one.parameters(), *one.buffers()]))
    }


def parts_of(trainer: Any) -> dict[str, Any]:
    """Return the modules of a trainer, and what says itself what a checkpoint holds of it, by their places.

    They are looked for in attributes, lists and dicts, and in those of plain objects.
    """
    found: dict[str, Any] = {}
    met, layer = {id(trainer)}, [("", trainer)]
    for _ in range(DEPTH):
        below = []
        for place, holder in layer:
            for number, (name, one) in enumerate(fields_of(holder).items()):
                if id(one) not in met:
                    met.add(id(one))
                    where = f"{place}.{name if isinstance(name, str | int) else number}".removeprefix(".")
                    if isinstance(one, torch.nn.Module) or is_stateful(one):
                        found[where] = one
                    else:
                        below.append((where, one))
        layer = below
    return found


def fields_of(one: Any) -> dict[Any, Any]:
    """Return what a list, a dict or an object holds, and its modules, if it is one itself."""
    if isinstance(one, LISTS):  # a long one holds data
        items = one.items() if isinstance(one, dict) else enumerate(one)
        return dict(itertools.islice(items, MOST))
    if isinstance(one, type | FunctionType | ModuleType):
        return {}
    kinds = type(one).__mro__
    if kinds[0].__module__.partition(".")[0] == "torch" and not isinstance(one, torch.nn.Module):
        return {}
    slots = [vars(kind).get("__slots__", ()) for kind in kinds]
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    held = {name: getattr(one, name) for name in names if hasattr(one, name)} | getattr(one, "__dict__", {})
    modules = held.pop("_modules", {})
    return {**held, **modules}


def is_stateful(one: Any) -> bool:
    """Whether an object says what a checkpoint holds of it, and takes it."""
    return callable(getattr(one, "state_dict", None)) and callable(getattr(one, "load_state_dict", None))


def persistent(model: torch.nn.Module, rank: int = 0) -> Tensors:
    """Return the buffers that a checkpoint holds, by the names that they have without torch's wrappers.

    Ranks other than 0 leave out those that DistributedDataParallel replaces by those of rank 0.
    """
    replaced = [
        place
        for place, module in model.named_modules()
        if rank and isinstance(module, DistributedDataParallel) and module.broadcast_buffers
    ]
    return {
        plain_name(model, f"{place}.{name}" if place else name): one
        for place, module in model.named_modules()
        if not any(f"{place}.".startswith(f"{one}." if one else "") for one in replaced)
        for name, one in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def rng_state(stated: Any) -> torch.Tensor:
    """Return a state of torch's random generator; a number is the seed that it follows."""
    if isinstance(stated, int):
        return torch.Generator().manual_seed(stated).get_state()
    found: torch.Tensor = torch.as_tensor(stated).cpu()
    return found


def named(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters by the names that they have without torch's wrappers."""
    return {plain_name(model, name): one for name, one in model.named_parameters()}


def plain_name(model: torch.nn.Module, name: str) -> str:
    """Return a name within a model without what wrappers add, torch's or like DistributedDataParallel."""
    kept: list[str] = []
    place: Any = model
    for part in name.split("."):
        wraps = part == "module" and isinstance(place, torch.nn.Module) and holds_one(place)
        kept += [] if wraps or part in WRAPPED else [part]
        place = getattr(place, part, None)
    return ".".join(kept)


def holds_one(module: torch.nn.Module) -> bool:
    """Whether a module holds nothing but another."""
    return len(module._modules) == 1 and not module._parameters and not module._buffers


def whole(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return a copy of a tensor: all of one that is spread over ranks, both parts of one that is complex."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    found = tensor.to_dense().cpu().clone() if tensor.layout != torch.strided else tensor.cpu().clone()
    return torch.view_as_real(found) if found.is_complex() else found


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


class Constants(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
    """Gives a constant for every random number: its mean, or of a choice the more probable one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation; write over what it has drawn."""
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return results
        schema = func._schema
        given = {one.name: one.default_value for one in schema.arguments}
        given |= {one.name: value for one, value in zip(schema.arguments, args, strict=False)} | kwargs
        write_constant(schema.name.rpartition("::")[2].removesuffix("_"), given, results)
        return results


def write_constant(name: str, given: dict[str, Any], drawn: Any) -> None:
    """Write a constant over what an operation of this name, given this, has drawn, where one is known."""
    if name == "bernoulli":
        probable = given["self"] if given.get("p") is None else given["p"]
        drawn.copy_(torch.as_tensor(probable) >= 0.5)
    elif name in ("rand", "rand_like", "uniform"):
        drawn.fill_((given.get("from", 0.0) + given.get("to", 1.0)) / 2)
    elif name in ("randn", "randn_like", "normal"):
        mean = given.get("mean", 0.0)
        drawn.copy_(mean) if isinstance(mean, torch.Tensor) else drawn.fill_(mean)
    elif name == "exponential":
        drawn.fill_(1 / given["lambd"])
    elif name in ("randint", "randint_like"):
        drawn.fill_(((given.get("low") or 0) + given["high"] - 1) // 2)
    elif name == "random" and given.get("to") is not None:
        drawn.fill_((given.get("from", 0) + given["to"] - 1) // 2)
    elif name == "randperm":
        drawn.copy_(torch.arange(len(drawn)))
    elif name == "native_dropout":
        drawn[0].copy_(given["input"] / (1 - given["p"]) if given["p"] < 1 else 0 * given["input"])
        drawn[1].fill_(given["p"] < 1)
