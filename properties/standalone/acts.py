"""What a rank does with a loss, and what it sees."""

import contextlib
import copy
import gc
import inspect
import pickle
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verified_losses.oracles.complex_step import Array

from ..process_state import traces
from . import file


@dataclass(frozen=True)
class Call:
    """One call of a loss on one rank, and its backward."""

    build: Callable[[], Any]
    """Constructs the loss."""
    call: Callable[[Any, dict[str, torch.Tensor]], Any]
    """Calls it."""
    given: Callable[[], dict[str, torch.Tensor]]
    """Makes the leaf tensors that it is called with."""
    cotangent: Callable[[str, torch.Tensor], torch.Tensor]
    """Makes what backward gets for a term."""
    terms: tuple[str, ...]
    rank: int
    mode: str = "train"


@dataclass
class Outcome:
    """What one rank saw of one call."""

    structure: str
    """"dict", "tuple" or "Tensor", and the terms' names where it is a dict."""
    terms: dict[str, Array]
    term_types: dict[str, str]
    """Dtype and device of each term."""
    gradients: dict[str, Array | None] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """Inputs whose content the call altered, and cotangents whose content its backward did."""
    refused: str = ""
    """Why there is nothing to see: the target does not take part, which is no defect."""

    @property
    def types(self) -> list[str]:
        """The dtypes and devices that there are among the terms."""
        return sorted(set(self.term_types.values()))


class Malformed(AssertionError):
    """The subject returned something that is not what its contract says."""


def to_array(value: torch.Tensor) -> Array:
    """Return the values as float64, wherever the tensor is."""
    return value.detach().double().cpu().numpy()


def read(output: Any, names: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return how the output is structured, and its terms by name."""
    if isinstance(output, dict):
        return f"dict {sorted(output)}", {k: v for k, v in output.items() if k in names}
    if isinstance(output, tuple | list):
        return f"tuple of {len(output)}", dict(zip(names, output, strict=False))
    return type(output).__name__, {names[0]: output}


def terms_of(one: Call, loss: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Call the loss; return its terms."""
    return read(one.call(loss, given), one.terms)[1]


def backward(one: Call, terms: dict[str, torch.Tensor], keep: bool = False) -> list[str]:
    """Run backward from all terms together, each with its cotangent; return whose it altered.

    A term whose cotangent is zero is left out. With `keep` the graph stays for another time.
    """
    given = {name: one.cotangent(name, term) for name, term in terms.items() if term.requires_grad}
    cotangents = {name: value for name, value in given.items() if value.any() or not value.numel()}
    live = {name: terms[name] for name in cotangents}
    before = {name: value.clone() for name, value in cotangents.items()}
    if live:
        torch.autograd.backward(list(live.values()), list(cotangents.values()), retain_graph=keep)
    return [name for name, value in cotangents.items() if not torch.equal(value, before[name])]


def run(one: Call, loss: Any, given: dict[str, torch.Tensor]) -> Outcome:
    """Call the loss and derive it; return what is seen."""
    if one.mode == "compiled":
        torch.compiler.reset()  # else, after a few cases, it compiles no more and runs what is eager
        loss = torch.compile(loss, backend="aot_eager")
    before = {name: value.detach().clone() for name, value in given.items()}
    with quiet(loss, one.mode), autocast(one.mode):
        structure, terms = read(one.call(loss, given), one.terms)
    for name, term in terms.items():
        if not isinstance(term, torch.Tensor):
            raise Malformed(f"{name}: expected a torch.Tensor, got {type(term).__name__} {term!r}")
    outcome = Outcome(
        structure,
        {name: to_array(term) for name, term in terms.items()},
        {name: f"{term.dtype} {term.device}".removeprefix("torch.") for name, term in terms.items()},
    )
    altered: list[str] = []
    if one.mode != "inference":
        firsts: dict[str, torch.Tensor] = {}
        if one.mode == "derived again":
            backward(one, terms, keep=True)
            firsts = {name: value.grad.clone() for name, value in given.items() if value.grad is not None}
        altered = backward(one, terms)
        for name, value in given.items():
            if value.is_floating_point():
                gradient = added(value.grad, firsts.get(name))
                outcome.gradients[name] = None if gradient is None else to_array(gradient)
    outcome.changed = (
        *(name for name, value in given.items() if not torch.equal(value.detach(), before[name])),
        *(f"the cotangent of {name}" for name in altered),
    )
    return outcome


def added(gradient: torch.Tensor | None, first: torch.Tensor | None) -> torch.Tensor | None:
    """Return what a second backward adds to the gradient of a first."""
    if gradient is None or first is None:
        return gradient
    twice = first + first  # may be beyond the largest number
    return torch.where(gradient == twice, first, gradient - first)


def quiet(loss: Any, mode: str) -> contextlib.AbstractContextManager[object]:
    """Return inference mode, where that is the mode.

    What torch.jit.script has made gets no_grad: after a call under inference mode torch raises in all others.
    """
    if mode != "inference":
        return contextlib.nullcontext()
    scripted = isinstance(loss, torch.jit.ScriptFunction | torch.jit.ScriptModule)
    return torch.no_grad() if scripted else torch.inference_mode()


def autocast(mode: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a mode, which may be that of autocast to some dtype."""
    dtype = mode.removeprefix("autocast ")
    return contextlib.nullcontext() if dtype == mode else torch.autocast("cpu", getattr(torch, dtype))


def run_each(calls: list[Call]) -> list[Outcome]:
    """Run each call on an object of its own."""
    return [run(one, one.build(), one.given()) for one in calls]


def run_again(calls: list[Call], times: int = 20, derived: bool = True) -> list[Outcome]:
    """Run one call several times, and once with a second backward through one graph."""
    return run_each([*calls * times, *[replace(calls[0], mode="derived again")] * derived])


def run_used_and_fresh(calls: list[Call]) -> list[Outcome]:
    """Run the last call on an object that has seen the calls before it, and on a fresh one."""
    loss = calls[0].build()
    given: dict[str, torch.Tensor] = {}
    used = []
    for one in calls:
        given = refilled(one.given(), given)
        used.append(run(one, loss, given))
    return [*run_each(calls[-1:]), used[-1]]


def refuse(calls: list[Call]) -> list[str]:
    """Return the faults of the first call's refusal, in words.

    Its error must name an argument of whole numbers, and the object must then give what a fresh one gives.
    """
    wrong, right = calls
    loss, given = wrong.build(), wrong.given()
    names = [name for name, value in given.items() if not value.is_floating_point()]
    noted = unnamed(lambda: terms_of(wrong, loss, given), names)
    fresh, used = run(right, right.build(), right.given()), run(right, loss, right.given())
    if any((used.terms[name] != value).any() for name, value in fresh.terms.items()):
        noted.append("gives something else after an error")
    return noted


def overflow(calls: list[Call], size: int = 1, names: tuple[str, ...] = ()) -> list[str]:
    """Return what is wrong with how a call of so many rows is refused, in words; they take no memory."""
    one = calls[0]
    given = {name: value.detach() for name, value in one.given().items()}
    given |= {name: given[name][:1].expand(size, *given[name].shape[1:]) for name in names}
    return unnamed(lambda: terms_of(one, one.build(), given), names)


def unnamed(function: Callable[[], object], names: Iterable[str]) -> list[str]:
    """Return what a function does other than to raise a TypeError or ValueError with one of these names."""
    try:
        function()
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        named = isinstance(error, TypeError | ValueError) and any(name in said for name in names)
        return [] if named else [f"raises {said}"]
    return ["returns, and does not raise"]


NO_MODES = "the target is no torch.nn.Module: it has no eval mode"


def run_evaluated(calls: list[Call]) -> list[Outcome]:
    """Run one call on an object, then in eval mode, and then back in train mode."""
    loss = calls[0].build()
    if not isinstance(loss, torch.nn.Module):
        return [Outcome("", {}, {}, refused=NO_MODES)]
    before = run(calls[0], loss, calls[0].given())
    loss.eval()
    evaluated = run(calls[0], loss, calls[0].given())
    loss.train()
    return [before, evaluated, run(calls[0], loss, calls[0].given())]


NO_STATE = "the target is no torch.nn.Module: it has no state to copy"


def run_copied(calls: list[Call]) -> list[Outcome]:
    """Run one call on an object that has been called, and on its copies.

    These are a deep copy, a pickled one, and a fresh object with its state; what cannot be made is left out,
    and told of in `refused`. Parameters are moved first, as training moves them.
    """
    one = calls[0]
    loss = one.build()
    if not isinstance(loss, torch.nn.Module):
        return [Outcome("", {}, {}, refused=NO_STATE)]
    with torch.no_grad():
        for value in loss.parameters():
            value.mul_(1.125).sub_(0.015625)
    original = run(one, loss, one.given())

    def restored() -> Any:
        fresh = one.build()
        fresh.load_state_dict(loss.state_dict())
        return fresh

    ways: dict[str, Callable[[], Any]] = {
        "deepcopy": lambda: copy.deepcopy(loss),
        "pickle": lambda: pickle.loads(pickle.dumps(loss)),
        "state_dict": restored,
        "to": lambda: loss.to("cpu"),
    }
    outcomes = [original]
    for name, make in ways.items():
        try:
            twin = make()
        except Exception as error:
            outcomes.append(Outcome("", {}, {}, refused=f"{name}: {type(error).__name__}: {error}"))
        else:
            outcomes.append(run(one, twin, one.given()))
    return outcomes


def run_two_live(calls: list[Call]) -> list[Outcome]:
    """Call an object twice before either backward.

    Returns what fresh objects give for both calls, then what one object gives where the first call is derived
    first, and then what another gives where the second is.
    """
    outcomes = run_each(calls)
    for order in ((0, 1), (1, 0)):
        loss, given = calls[0].build(), [one.given() for one in calls]
        terms = [terms_of(one, loss, tensors) for one, tensors in zip(calls, given, strict=True)]
        for place in order:
            backward(calls[place], terms[place])
        outcomes += map(seen, terms, given)
    return outcomes


class Owned(NamedTuple):
    """A parameter of a module, and how the loss changes as it is moved ahead and back."""

    name: str
    has_gradient: bool
    predicted: tuple[float, ...]
    """The two changes that the gradient predicts."""
    changes: tuple[float, ...]


MOVE = 2.0**-10
"""How far a parameter is moved, relative to its largest element."""


def derive_owned(calls: list[Call]) -> list[Owned]:
    """Derive a call by each parameter that its module owns, and call again with that parameter moved.

    The module's tensors are in the dtype of what it is called with, as after `module.double()`.
    """
    one = calls[0]
    loss, dtype = one.build(), next(iter(one.given().values())).dtype
    if not isinstance(loss, torch.nn.Module):
        return []
    owned = {name: value for name, value in loss.to(dtype).named_parameters() if value.requires_grad}
    if not owned:
        return []
    kept = {name: value.detach().clone() for name, value in owned.items()}
    backward(one, terms_of(one, loss, one.given()))
    middle = weighed(one, kept)
    found = []
    for name, value in kept.items():
        signs = torch.randint(2, value.shape, generator=torch.Generator().manual_seed(0)).to(value) * 2 - 1
        step = MOVE * (float(value.abs().sum() and value.abs().max()) or 1.0) * signs
        gradient = owned[name].grad
        slope = torch.zeros_like(value) if gradient is None else gradient
        moved = [value + step, value - step]
        predicted = tuple(float((slope * (there - value)).sum()) for there in moved)
        changes = tuple(weighed(one, {**kept, name: there}) - middle for there in moved)
        found.append(Owned(name, gradient is not None, predicted, changes))
    return found


def weighed(one: Call, parameters: dict[str, torch.Tensor]) -> float:
    """Return the sum of cotangent times term, called on a fresh module with these parameters."""
    given = one.given()
    loss = one.build().to(next(iter(given.values())).dtype)  # an earlier call may have altered another
    with torch.no_grad():
        for name, value in loss.named_parameters():
            if name in parameters:
                value.copy_(parameters[name])
    terms = terms_of(one, loss, given)
    return float(
        sum((one.cotangent(name, term) * term.detach()).double().sum() for name, term in terms.items())
    )


def refilled(given: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the given tensors; where shape, strides and dtype match, in the memory of the earlier ones."""
    tensors = dict(given)
    for name, new in given.items():
        old = before.get(name)
        if old is None or (old.shape, old.stride(), old.dtype) != (new.shape, new.stride(), new.dtype):
            continue
        if 0 not in old.stride():  # else one element lies in many places
            tensors[name] = old.requires_grad_(False).copy_(new.detach()).requires_grad_(new.requires_grad)
            old.grad = None
    return tensors


def derive_twice(calls: list[Call], moves: list[dict[str, Any]]) -> dict[str, Array]:
    """Return the derivative of the gradient as all ranks' inputs move."""
    given, own = calls[0].given(), moves[calls[0].rank]
    terms = terms_of(calls[0], calls[0].build(), given)
    live = {name: term for name, term in terms.items() if term.requires_grad}
    cotangents = [calls[0].cotangent(name, term) for name, term in live.items()]
    leaves = [given[name] for name in own]
    derived: Any = [torch.zeros_like(leaf) for leaf in leaves]
    gradients: Any = []
    if live and leaves:
        gradients = torch.autograd.grad(
            list(live.values()), leaves, cotangents, create_graph=True, materialize_grads=True
        )
    paired = [
        (gradient, torch.tensor(move, dtype=gradient.dtype, device=gradient.device))
        for gradient, move in zip(gradients, own.values(), strict=False)
        if gradient.requires_grad
    ]
    if paired:
        first, along = zip(*paired, strict=True)
        derived = torch.autograd.grad(first, leaves, along, materialize_grads=True)
    return {name: to_array(value) for name, value in zip(own, derived, strict=True)}


def derive_by_cotangents(calls: list[Call]) -> list[Outcome]:
    """Derive the gradient, paired with the inputs, by the cotangents: a linear function gives its values."""
    given = {name: value.requires_grad_() for name, value in calls[0].given().items()}
    terms = terms_of(calls[0], calls[0].build(), given)
    cotangents = [
        calls[0].cotangent(name, term.detach()).contiguous().requires_grad_() for name, term in terms.items()
    ]
    leaves = list(given.values())
    gradients = torch.autograd.grad(list(terms.values()), leaves, cotangents, create_graph=True)
    paired = torch.autograd.grad(list(gradients), cotangents, [leaf.detach() for leaf in leaves])
    return [Outcome("", {name: to_array(value) for name, value in zip(terms, paired, strict=True)}, {})]


class Collectives(TorchDispatchMode):
    """Notes the communication of real process groups."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Memory(TorchDispatchMode):
    """Counts the bytes of what operations return, for as long as it lives, but for what was there before.

    Args:
        given: the tensors that were there before.
    """

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.most = 0
        self._given = [tensor.untyped_storage() for tensor in given]
        self._known = {id(storage) for storage in self._given}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return returned

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.held += storage.nbytes()
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.held -= size


def rows_of_ranks(given: dict[str, torch.Tensor]) -> tuple[int, ...]:
    """Return how many rows each rank is given."""
    own = next(tensor for tensor in given.values() if tensor.ndim > 1)
    number = torch.tensor([len(own)], device=own.device)
    everyone = [torch.zeros_like(number) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, number)
    return tuple(int(rows) for rows in everyone)


def exceed_memory(calls: list[Call]) -> list[str]:
    """Return by how much a call, and its backward, exceed the memory that the loss states, in words.

    An object that states none is not asked, nor is one that states none of several ranks: "" alone. What was
    there before the call does not count.
    """
    one = calls[0]
    loss = one.build()
    state = getattr(loss, "stated_memory", None)
    several = dist.is_initialized() and dist.get_world_size() > 1
    if not callable(state) or (several and "rows" not in inspect.signature(state).parameters):
        return [""]
    backward(one, terms_of(one, loss, one.given()))  # which makes what is made once
    given = one.given()
    stated = state(rows=rows_of_ranks(given), **given) if several else state(**given)
    before = {tensor.untyped_storage().data_ptr() for tensor in given.values()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    gc.collect()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        Memory(given.values()) as used,
    ):
        terms = terms_of(one, loss, given)
        cotangents = {name: one.cotangent(name, term) for name, term in terms.items() if term.requires_grad}
        derive(terms, cotangents)
    kinds = (("saves", sum(saved.values()), stated.saved), ("takes", used.most, stated.peak))
    return [f"{verb} {seen} bytes, and states {most}" for verb, seen, most in kinds if seen > most]


def send_in_backward(calls: list[Call]) -> list[str]:
    """Return by which operations backward sends."""
    terms = terms_of(calls[0], calls[0].build(), calls[0].given())
    with Collectives() as collectives:
        backward(calls[0], terms)
    seen: list[str] = collectives.seen
    return seen


def leave_behind(calls: list[Call], seed: int = 0, built: bool = False) -> list[str]:
    """Return what a call and its backward leave behind, in words; where it is `built` before, that alone."""
    losses: list[Any] = [calls[0].build()] * built  # the one that is called, which outlives its calls

    def again() -> dict[str, torch.Tensor]:
        if not losses:
            losses.append(calls[0].build())
        given = calls[0].given()
        derived = torch.is_grad_enabled()  # under no_grad a view of a leaf says that it requires grad
        terms = terms_of(calls[0], losses[0], given)
        if derived:
            backward(calls[0], terms)
        return given

    return [*traces(again, seed), *shared(calls[0].build(), calls[0].build())]


def shared(one: Any, other: Any) -> list[str]:
    """Return, in words, the parameters that two objects have in common: to train one moves the other."""
    if not isinstance(one, torch.nn.Module):
        return []
    owned = {id(value) for value in other.parameters()}
    return [
        f"is of an object that has its parameter {name} in common with every other"
        for name, value in one.named_parameters() if id(value) in owned
    ]  # fmt: skip


class Warm(NamedTuple):
    """An object that was called and derived once, and what it is called with again."""

    loss: Any
    given: dict[str, torch.Tensor]
    terms: dict[str, torch.Tensor]
    cotangents: dict[str, torch.Tensor]


def warm(one: Call) -> Warm:
    """Call and derive once: what is made at the first call is made then."""
    loss, given = one.build(), one.given()
    terms = terms_of(one, loss, given)
    live = {name: term for name, term in terms.items() if term.requires_grad}
    cotangents = {name: one.cotangent(name, term) for name, term in live.items()}
    derive(terms, cotangents)
    forget(given)
    return Warm(loss, given, terms, cotangents)


def derive(terms: dict[str, torch.Tensor], cotangents: dict[str, torch.Tensor]) -> None:
    """Run backward, with cotangents that are there already: nothing is read or copied to the device."""
    if cotangents:
        torch.autograd.backward([terms[name] for name in cotangents], list(cotangents.values()))


def forget(given: dict[str, torch.Tensor]) -> None:
    """Drop the gradients."""
    for value in given.values():
        value.grad = None


def fill(tensors: dict[str, torch.Tensor], values: dict[str, torch.Tensor] | None = None) -> None:
    """Give the tensors these values, in their own memory; without values, what is no number, or zero."""
    for name, tensor in tensors.items():
        once = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
        memory = tensor.detach()[once]  # of one element that lies in many places, one
        if values is not None:
            memory.copy_(values[name].detach()[once])
        else:
            memory.fill_(float("nan") if memory.is_floating_point() else 0)


def seen(terms: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> Outcome:
    """Return the values of terms and gradients."""
    floating = {name: value for name, value in given.items() if value.is_floating_point()}
    gradients = {name: None if v.grad is None else to_array(v.grad) for name, v in floating.items()}
    return Outcome("", {name: to_array(term) for name, term in terms.items()}, {}, gradients)


LATE_CYCLES = 20_000_000
"""Of a GPU's clock, about ten milliseconds."""


def run_on_stream(calls: list[Call]) -> list[Outcome]:
    """Run a call on a stream other than the default one, on which its inputs get their values late."""
    one = calls[0]
    loss, given, _, cotangents = warm(one)
    values, weights = one.given(), {name: value.clone() for name, value in cotangents.items()}
    fill(given)
    fill(cotangents)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(LATE_CYCLES)
        fill(given, values)
        fill(cotangents, weights)
        terms = terms_of(one, loss, given)
        derive(terms, cotangents)
    torch.cuda.current_stream().wait_stream(side)
    return [seen(terms, given)]


def waiting(function: Callable[[], object]) -> str:
    """Return what in a function makes the host wait for the device, in words."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return f"waits for the device: {error}".splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return ""


WARM_UPS = 3
"""Calls on a side stream before one is captured, as torch asks for."""


def replay(calls: list[Call]) -> list[Outcome]:
    """Capture the second call and its backward as a CUDA graph; replay it with the first one's inputs."""
    one, recorded = calls
    loss, given, terms, cotangents = warm(recorded)
    values = one.given()
    weights = {name: one.cotangent(name, terms[name]) for name in cotangents}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            derive(terms_of(recorded, loss, given), cotangents)
            forget(given)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    # what waits fails, and a capture that fails may leave torch's allocator in the midst of it
    if why := waiting(lambda: derive(terms_of(recorded, loss, given), cotangents)):
        return [Outcome("", {}, {}, refused=f"it cannot be captured: {why}")]
    forget(given)
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            terms = terms_of(recorded, loss, given)
            derive(terms, cotangents)
    except Exception as error:
        torch.cuda.set_stream(current)
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Outcome("", {}, {}, refused=f"it cannot be captured: {why}")]
    fill(given, values)
    fill(cotangents, weights)
    graph.replay()
    torch.cuda.synchronize()
    return [seen(terms, given)]


def wait_for_device(calls: list[Call]) -> list[str]:
    """Return what makes the host wait for the device, in the second call of an object and its backward.

    An object that does not state that it never waits is not asked: "" alone.
    """
    one = calls[0]
    loss, given, _, cotangents = warm(one)
    if getattr(loss, "waits_for_device", True):
        return [""]
    torch.cuda.synchronize()
    why = waiting(lambda: derive(terms_of(one, loss, given), cotangents))
    return [why] if why else []


def hold_memory(calls: list[Call]) -> list[str]:
    """Return how much more memory of the device is held after the third call of an object than the second."""
    one = calls[0]
    loss = one.build()

    def held() -> int:
        given = one.given()
        backward(one, terms_of(one, loss, given))
        del given
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    held()
    second, third = held(), held()
    return [] if third <= second else [f"holds {third - second} more bytes of the device"]


def called(
    target: Any,
    rank: int,
    inputs: Callable[[], list[dict[str, torch.Tensor]]],
    cotangents: list[dict[str, Any]] | None = None,
    mode: str = "train",
    output_dict: bool = True,
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous,
    world_size: int = file.WORLD_SIZE,
    arguments: dict[str, Any] = file.ARGUMENTS,
) -> Call:
    """Return a call of `target`; what backward gets is ones unless told."""

    def cotangent(name: str, term: torch.Tensor) -> torch.Tensor:
        if cotangents is None:
            return layout(torch.ones(term.shape, dtype=term.dtype, device=term.device))
        return layout(torch.tensor(cotangents[rank][name], dtype=torch.float64).to(term.device, term.dtype))

    return Call(
        lambda: file.build(target, arguments, rank, world_size),
        lambda loss, given: file.call(loss, given, output_dict),
        lambda: inputs()[rank],
        cotangent,
        file.TERMS,
        rank,
        mode,
    )
