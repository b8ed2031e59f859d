# verified-losses counterexample bd737ec5548e
"""solo: "gradients equal the oracle" does not hold in one process (ntxent, convention exact).

Falsified: rank 0, gradient of first at [0, 0]: expected 0, observed nan, which is not finite

    python solo-gradients-equal-the-oracle-bd737ec5548e.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from numpy.typing import NDArray
from pathlib import Path
from torch import tensor
from typing import Any
import contextlib
import faulthandler
import importlib.util
import numpy as np
import os
import sys
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "build/peers/solo/losses/simclr.py:simclr_loss_func")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"convention": "exact", "local_loss": False, "gather_with_grad": True, "cache_labels": False, "temperature": 0.01}
WORLD_SIZE = 1
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
COTANGENTS = None  # ones
WHERE = "rank 0, gradient of first at [0, 0]"
RANK = 0
KIND = "gradient"
NAME = "first"
INDEX = (0, 0)
ALONG = None  # or a direction, instead of one element
BOUND = 0.0004768  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "first": tensor([[-0.25]], dtype=torch.float32).requires_grad_(),
            "second": tensor([[0.5]], dtype=torch.float32).requires_grad_(),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, output_dict=False),
    ]
    return run_each(calls)


# What the ranks do.


def as_it_is(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Return a target that is called itself."""
    return target


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


def called(
    target: Any,
    rank: int,
    inputs: Callable[[], list[dict[str, torch.Tensor]]],
    cotangents: list[dict[str, Any]] | None = None,
    mode: str = "train",
    output_dict: bool = True,
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous,
    world_size: int = WORLD_SIZE,
    arguments: dict[str, Any] = ARGUMENTS,
) -> Call:
    """Return a call of `target`; what backward gets is ones unless told."""

    def cotangent(name: str, term: torch.Tensor) -> torch.Tensor:
        if cotangents is None:
            return layout(torch.ones(term.shape, dtype=term.dtype, device=term.device))
        return layout(torch.tensor(cotangents[rank][name], dtype=torch.float64).to(term.device, term.dtype))

    return Call(
        lambda: build(target, arguments, rank, world_size),
        lambda loss, given: call(loss, given, output_dict),
        lambda: inputs()[rank],
        cotangent,
        TERMS,
        rank,
        mode,
    )


Array = NDArray[Any]


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


def autocast(mode: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a mode, which may be that of autocast to some dtype."""
    dtype = mode.removeprefix("autocast ")
    return contextlib.nullcontext() if dtype == mode else torch.autocast("cpu", getattr(torch, dtype))


def backward(one: Call, terms: dict[str, torch.Tensor], keep: bool = False) -> list[str]:
    """Run backward from all terms together, each with its cotangent; return whose it altered."""
    live = {name: term for name, term in terms.items() if term.requires_grad}
    cotangents = {name: one.cotangent(name, term) for name, term in live.items()}
    before = {name: value.clone() for name, value in cotangents.items()}
    if live:
        torch.autograd.backward(list(live.values()), list(cotangents.values()), retain_graph=keep)
    return [name for name, value in cotangents.items() if not torch.equal(value, before[name])]


def read(output: Any, names: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return how the output is structured, and its terms by name."""
    if isinstance(output, dict):
        return f"dict {sorted(output)}", {k: v for k, v in output.items() if k in names}
    if isinstance(output, tuple | list):
        return f"tuple of {len(output)}", dict(zip(names, output, strict=False))
    return type(output).__name__, {names[0]: output}


def to_array(value: torch.Tensor) -> Array:
    """Return the values as float64, wherever the tensor is."""
    return value.detach().double().cpu().numpy()


def run(one: Call, loss: Any, given: dict[str, torch.Tensor]) -> Outcome:
    """Call the loss and derive it; return what is seen."""
    if one.mode == "compiled":
        torch.compiler.reset()  # else, after a few cases, it compiles no more and runs what is eager
        loss = torch.compile(loss, backend="aot_eager")
    before = {name: value.detach().clone() for name, value in given.items()}
    with torch.inference_mode(one.mode == "inference"), autocast(one.mode):
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
        if one.mode == "derived again":
            backward(one, terms, keep=True)
            for value in given.values():
                value.grad = None
        altered = backward(one, terms)
        for name, value in given.items():
            if value.is_floating_point():
                outcome.gradients[name] = None if value.grad is None else to_array(value.grad)
    outcome.changed = (
        *(name for name, value in given.items() if not torch.equal(value.detach(), before[name])),
        *(f"the cotangent of {name}" for name in altered),
    )
    return outcome


def run_each(calls: list[Call]) -> list[Outcome]:
    """Run each call on an object of its own."""
    return [run(one, one.build(), one.given()) for one in calls]


def call_form(loss, given, output_dict):
    """Call the loss as its form says."""
    first = given["first"]
    second = given["second"]
    temperature = ARGUMENTS["temperature"]
    target = loss
    return target(z1=first, z2=second, temperature=temperature)


# How it is judged.


def agree(expected: Any, observed: Any) -> bool:
    """Print both sides; return whether they are as near as rounding allows."""
    expected, observed = float(expected), float(observed)
    error = abs(observed - expected)
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{BOUND:.3g}")
    return bool(error <= BOUND)


def component(seen: Array | None) -> float:
    """Return the element, or the sum along a direction, that is compared; no gradient is zero."""
    if seen is None:
        return 0.0
    return float(seen[INDEX] if ALONG is None else np.sum(seen * np.array(ALONG)))


STEP = 2.0**-332


def directional_derivative(function: Callable[[Array], complex], point: Array, direction: Array) -> float:
    """Return the derivative of `function` at `point` along `direction`, of the same shape."""
    return float(np.imag(function(point + 1j * STEP * direction)) / STEP)


def derivative(
    function: Callable[[list[dict[str, Any]]], Any],
    given: list[dict[str, Array]],
    rank: int,
    name: str,
    along: Array,
) -> float:
    """Return the derivative of a function of what all ranks are given as one input of one rank moves."""

    def moved(point: Array) -> Any:
        return function([*given[:rank], {**given[rank], name: point}, *given[rank + 1 :]])

    return directional_derivative(moved, given[rank][name], along)


def direction(shape: tuple[int, ...]) -> Array:
    """Return the direction of a derivative: that of one element, unless it is told."""
    if ALONG is not None:
        return np.array(ALONG)
    unit = np.zeros(shape)
    unit[INDEX] = 1
    return unit


def part(seen: Outcome) -> Array | None:
    """Return the term, or the gradient, that is compared."""
    return (seen.gradients if KIND == "gradient" else seen.terms)[NAME]


def total(terms: list[dict[str, Any]], cotangents: list[dict[str, Any]] | None) -> Any:
    """Return the sum over ranks and terms of cotangent times term: what all backwards together derive."""
    return sum(
        np.sum(value if cotangents is None else np.asarray(cotangents[rank][name]) * value)
        for rank, own in enumerate(terms)
        for name, value in own.items()
    )


def values(ranks: list[dict[str, torch.Tensor]]) -> list[dict[str, Array]]:
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: to_array(v) if v.is_floating_point() else v.cpu().numpy() for k, v in given.items()}
        for given in ranks
    ]


def judge_gradient(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one rank's gradient, along one direction, or the mean over ranks, with the oracle's."""
    given = values(inputs())

    def total_of(moved: Any) -> Any:
        return total(oracle(moved), COTANGENTS)

    chosen = range(len(ranks)) if RANK is None else [RANK]
    along = direction(given[0][NAME].shape if RANK is None else given[RANK][NAME].shape)
    expected = [derivative(total_of, given, rank, NAME, along) for rank in chosen]
    return agree(np.mean(expected), np.mean([component(part(ranks[rank][0])) for rank in chosen]))


# The oracle, in NumPy: derivatives are taken by complex steps, exact to rounding.


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    first, second = (
        [one[name] for one in given] for name in ["first", "second"]
    )
    return [
        {
            "contrastive_loss": ntxent_loss(first, second, 0.01, rank, False, True, "exact"),
        }
        for rank in range(len(given))
    ]


def add_up(values: list[Array], counts: list[int]) -> complex:
    """Return the sum of all elements of all values."""
    parts = [np.sum(one) for one in values]
    result: complex = sum(parts[1:], start=parts[0])
    return result


def divided_product(x: Array, y: Array, temperature: float) -> Array:
    """Return the products of [n, d] rows with [m, d] rows, divided by a temperature, [n, m]."""
    logits: Array = x @ y.T / temperature
    return logits


def scaled_product(x: Array, y: Array, scale: Array, bias: Array) -> Array:
    """Return scale times the products of [n, d] rows with [m, d] rows, plus bias, [n, m]."""
    logits: Array = scale * x @ y.T + bias
    return logits


def compared(x: Array, y: Array, temperature: Any, rank: int) -> Array:
    """Return the logits of rows; a list holds every rank's inverse temperature, which is learned."""
    if isinstance(temperature, list):
        return scaled_product(x, y, temperature[rank], np.asarray(0.0))
    return divided_product(x, y, temperature)


def log_softmax(logits: Array) -> Array:
    """Return log of exp(z_j) / sum_k exp(z_k) along the last axis."""
    # shifted by the largest so that no exponential overflows; the shift cancels, so it may be constant
    shifted = logits - np.max(np.real(logits), axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log softmax(z)_label for each row of [n, c] logits."""
    picked: Array = log_softmax(logits)[np.arange(len(labels)), labels]
    return -picked


def carry(value: Array, times: float) -> Array:
    """Return `value`, whose derivative counts `times`."""
    return value if times == 1 else np.real(value) + 1j * times * np.imag(value)


def occurrences(
    rank: int, world_size: int, local_loss: bool, gather_with_grad: bool, convention: str
) -> list[float]:
    """Return how often the gathered rows of each rank carry gradient on `rank`."""
    if gather_with_grad or world_size == 1:
        return [1.0] * world_size
    own = 0.0 if local_loss else float(world_size) if convention == "exact" else 1.0
    return [own if other == rank else 0.0 for other in range(world_size)]


def gather_features(
    features: list[Array],
    rank: int,
    local_loss: bool,
    gather_with_grad: bool,
    convention: str,
) -> Array:
    """Return the rows of all ranks, in rank order, as `rank` sees them."""
    times = occurrences(rank, len(features), local_loss, gather_with_grad, convention)
    return np.concatenate([carry(rows, count) for rows, count in zip(features, times, strict=True)])


def normalize(features: Array) -> Array:
    """Return x / |x| for each row of [..., d] features; no row is zero."""
    unit: Array = features / np.sqrt(np.sum(features * features, axis=-1, keepdims=True))
    return unit


def places(rows: list[int], rank: int, local_loss: bool) -> tuple[Array, Array]:
    """Return where the anchors of `rank` stand in the concatenation of both views, and their partners."""
    total = sum(rows)
    start, count = (sum(rows[:rank]), rows[rank]) if local_loss else (0, total)
    first = np.arange(start, start + count)
    return np.concatenate([first, total + first]), np.concatenate([total + first, first])


def row_weight(rows: list[int], local_loss: bool) -> float:
    """Return the weight of one row, W/N or 1/N: the mean over ranks is the mean over all rows."""
    return (len(rows) if local_loss else 1) / sum(rows)


def ntxent_loss(
    first: list[Array],
    second: list[Array],
    temperature: float | list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
    cosine: bool = True,
) -> complex:
    """Return the loss of `rank`, given both views of every rank, [n_r, d]."""
    rows = [len(features) for features in first]
    flags = (local_loss, gather_with_grad, convention)
    views = np.concatenate([gather_features(view, rank, *flags) for view in (first, second)])
    own, partner = places(rows, rank, local_loss)
    anchors = np.concatenate([first[rank], second[rank]]) if local_loss else views
    if cosine:
        anchors, views = normalize(anchors), normalize(views)
    logits = compared(anchors, views, temperature, rank)
    # a view is not looked for by itself: its column is left out, and those behind it move up
    others = np.arange(len(views)) != own[:, None]
    kept = logits[others].reshape(len(own), len(views) - 1)
    labels = partner - (partner > own)
    loss: complex = add_up([cross_entropy(kept, labels)], rows) * row_weight(rows, local_loss) / 2
    return loss


# How it is run.


def find_target() -> Any:
    """Return TARGET, seen from the current folder or from the one that this file was written from."""
    place, _, name = TARGET.rpartition(":")
    folders = [Path.cwd(), Path(__file__).resolve().parent / HOME]
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    if place.endswith(".py"):
        place = str(next((one / place for one in folders if (one / place).exists()), place))
    return getattr(load(place), name)


def verdict(rank: int) -> int:
    """Run one rank; return 0 where the law holds, 1 where it does not, 2 where that cannot be seen."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # a rank that hangs prints its stack
    try:
        target = find_target()
    except BaseException:
        traceback.print_exc()
        return 2
    if not ready(rank):
        return 2
    everyone = gathered(target, rank)
    return 0 if rank > 0 else decide(target, everyone)


def load_alone(place: str) -> Any:
    """Import a module, named or a file."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    sys.path.append(str(Path(place).resolve().parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location("target", place)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["target"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_judge(target: Any, ranks: list[Any]) -> int:
    """Return 0 if the ranks' results agree with the expected ones, else 1."""
    return 0 if judge(target, ranks) else 1


def on_cpu(rank: int) -> bool:
    """The CPU is always there."""
    return True


def alone(target: Any, rank: int) -> list[Any]:
    """Return what the only rank saw."""
    return [act(target, rank)]


load, build, call, judge, decide, ready, gathered = load_alone, as_it_is, call_form, judge_gradient, by_judge, on_cpu, alone

if __name__ == "__main__":
    sys.exit(verdict(0))