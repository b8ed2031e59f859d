# verified-losses counterexample 5d07927a01a9
"""siglip-halves: "terms equal the oracle" does not hold in one process (siglip).

Falsified: rank 0, contrastive_loss: expected 4575, observed inf, which is not finite

    python siglip-halves-terms-equal-the-oracle-5d07927a01a9.py

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
import functools
import importlib.util
import inspect
import numpy as np
import os
import sys
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:SigLipLoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"dist_impl": "bidir", "chunk_size": 0}
WORLD_SIZE = 1
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
WHERE = "rank 0, contrastive_loss"
RANK = 0
KIND = "term"
NAME = "contrastive_loss"
INDEX = ()
ALONG = None  # or a direction, instead of one element
BOUND = 13.46  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor(
                [[30.0], [-30.0], [-30.0], [-30.0], [-30.0], [30.0], [30.0], [-30.0], [-30.0],
                 [30.0], [30.0], [-30.0], [30.0], [30.0], [30.0], [30.0]]
            , dtype=torch.float16).requires_grad_(),
            "text_features": tensor(
                [[-20.0], [20.0], [-20.0], [-20.0], [20.0], [20.0], [20.0], [-20.0], [-20.0],
                 [-20.0], [-20.0], [-20.0], [20.0], [20.0], [20.0], [-20.0]]
            , dtype=torch.float16).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float16).requires_grad_(),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, output_dict=False),
    ]
    return run_each(calls)


# What the ranks do.


def _unwrapped(target: Any) -> Any:
    """Return what a decorator with functools.wraps, or functools.partial, was given."""
    while True:
        inner = target.func if isinstance(target, functools.partial) else getattr(target, "__wrapped__", None)
        if not callable(inner):
            return target
        target = inner


def accepted(
    target: Any, arguments: dict[str, Any], optional: tuple[str, ...] = ("convention", "chunk_size")
) -> dict[str, Any]:
    """Return those of `arguments` that `target` takes."""
    if getattr(_unwrapped(target), "__init__", None) is torch.nn.Module.__init__:
        return {}  # its signature takes all, and it refuses each
    inner = _unwrapped(target)
    is_class = inspect.isclass(inner)
    owner = inner if is_class else type(getattr(inner, "__self__", inner))
    method = "__init__" if is_class else getattr(inner, "__name__", "__call__")
    classes = [base for base in owner.__mro__ if base not in (object, torch.nn.Module)]
    named: set[str] = set()
    for function in [target, *(getattr(base, method) for base in classes if method in vars(base))]:
        parameters = inspect.signature(function).parameters
        named.update(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return {name: value for name, value in arguments.items() if name in named}
    return {name: value for name, value in arguments.items() if name in named or name not in optional}


def construct(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Construct a loss; arguments that it does not take are left out."""
    return target(**accepted(target, {**arguments, "rank": rank, "world_size": world_size}))


def call_by_name(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss with tensors by name."""
    # tensors alone are open_clip's default, which a subject without dicts has no name for
    return loss(**given, **({"output_dict": True} if output_dict else {}))


def entry(loss: Any) -> Callable[..., Any]:
    """Return the function that a call of `loss` ends in: a module's own call takes any arguments."""
    loss = getattr(loss, "_orig_mod", loss)  # torch.compile keeps the module there
    entered: Callable[..., Any] = getattr(loss, "forward", loss)
    return entered


def call_with_bias(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss, which may have no default for the bias, as upstream's has none."""
    return call_by_name(loss, accepted(entry(loss), {"logit_bias": None}) | given, output_dict)


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


def part(seen: Outcome) -> Array | None:
    """Return the term, or the gradient, that is compared."""
    return (seen.gradients if KIND == "gradient" else seen.terms)[NAME]


def values(ranks: list[dict[str, torch.Tensor]]) -> list[dict[str, Array]]:
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: to_array(v) if v.is_floating_point() else v.cpu().numpy() for k, v in given.items()}
        for given in ranks
    ]


def judge_term(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one element of one rank's term, or of the mean over ranks, with the oracle's."""
    terms = [np.asarray(one[NAME]).real for one in oracle(values(inputs()))]
    if RANK is None:
        seen = np.mean([component(part(outcomes[0])) for outcomes in ranks])
        return agree(np.mean([one[INDEX] for one in terms]), seen)
    expected = terms[RANK]
    return agree(expected[INDEX], component(part(ranks[RANK][0])))


# The oracle, in NumPy: derivatives are taken by complex steps, exact to rounding.


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    image_features, text_features, logit_scale = (
        [one[name] for one in given] for name in ["image_features", "text_features", "logit_scale"]
    )
    return [
        {
            "contrastive_loss": siglip_loss(image_features, text_features, logit_scale, [0.0] * 1, rank),
        }
        for rank in range(len(given))
    ]


def add_up(values: list[Array], counts: list[int]) -> complex:
    """Return the sum of all elements of all values."""
    parts = [np.sum(one) for one in values]
    result: complex = sum(parts[1:], start=parts[0])
    return result


def get_ground_truth(rows: list[int], rank: int) -> Array:
    """Return 1 for partners and -1 elsewhere, [rows of `rank`, all rows]."""
    labels = -np.ones((rows[rank], sum(rows)))
    labels[np.arange(rows[rank]), sum(rows[:rank]) + np.arange(rows[rank])] = 1
    return labels


def scaled_product(x: Array, y: Array, scale: Array, bias: Array) -> Array:
    """Return scale times the products of [n, d] rows with [m, d] rows, plus bias, [n, m]."""
    logits: Array = scale * x @ y.T + bias
    return logits


def log1p(z: Array) -> Array:
    """Return log(1 + z), exact for small z: NumPy's is not where z is complex."""
    x, y = np.real(z), np.imag(z)
    result: Array = np.log1p(x * (2 + x) + y * y) / 2 + 1j * np.arctan2(y, 1 + x)
    return result


def softplus(z: Array) -> Array:
    """Return log(1 + exp(z)) = -log sigmoid(-z)."""
    if not np.iscomplexobj(z):
        real: Array = np.logaddexp(0, z)
        return real
    # split by sign so that the exponential never overflows
    tail = np.exp(np.where(np.real(z) > 0, -z, z))
    result: Array = np.where(np.real(z) > 0, z, 0) + log1p(tail)
    return result


def sigmoid_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log sigmoid(y z) for each logit z and its label y, 1 or -1."""
    return softplus(-labels * logits)


def siglip_loss(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: list[Array],
    logit_bias: list[Array],
    rank: int,
) -> complex:
    """Return the loss of `rank`: its images against every rank's texts."""
    rows = [len(features) for features in image_features]
    all_text = np.concatenate(text_features)
    logits = scaled_product(image_features[rank], all_text, logit_scale[rank], logit_bias[rank])
    labels = get_ground_truth(rows, rank)
    loss: complex = add_up([sigmoid_cross_entropy(logits, labels)], rows) * len(rows) / sum(rows)
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


load, build, call, judge, decide, ready, gathered = load_alone, construct, call_with_bias, judge_term, by_judge, on_cpu, alone

if __name__ == "__main__":
    sys.exit(verdict(0))