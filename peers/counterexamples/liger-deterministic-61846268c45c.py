# verified-losses counterexample 61846268c45c
"""liger: "deterministic" does not hold in one process (cross_entropy).

Falsified: rank 0, gradient of logits derived twice at [0, 1]: expected -9.53674316e-07, observed
7.74860382e-07, error 1.73e-06 is inf times its bound

    python liger-deterministic-61846268c45c.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.machinery import PathFinder
from numpy.typing import NDArray
from pathlib import Path
from torch import tensor
from types import ModuleType
from typing import Any
from typing import NoReturn
import ast
import faulthandler
import functools
import importlib.util
import inspect
import numpy as np
import os
import sys
import sysconfig
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/liger_kernel.py:LigerCrossEntropyLoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"ignore_index": 0}
WORLD_SIZE = 1
TERMS = ("loss",)
SECONDS = 60  # how long it may run
COTANGENTS = [{"loss": -0.78173828125}]  # what each rank's terms are multiplied with
WHERE = "rank 0, gradient of logits derived twice at [0, 1]"
RANK = 0
KIND = "gradient"
NAME = "logits"


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor(
                [[-7.32, 23.22, 21.22, -20.94, 16.53, -57.28, -10.38, -6.6, -3.99, -32.53, -10.266,
                  13.75, -0.6133, -30.31, -10.055, 33.6],
                 [-27.75, -4.66, 26.7, -29.62, -36.3, 4.477, -39.88, 12.695, 23.62, -104.5, -18.28,
                  -29.78, -20.77, -7.97, -9.22, 43.06],
                 [46.56, -21.9, -18.97, -22.44, -33.6, 41.53, -9.15, 5.48, 7.42, 29.64, -45.88,
                  8.43, -51.8, -65.3, -23.62, 5.96],
                 [29.19, 9.805, 12.62, -45.62, 9.055, 53.72, 12.625, -10.06, -22.33, 3.402, 25.77,
                  8.7, -13.8, -54.7, -39.75, 26.92],
                 [-14.19, 19.02, 18.05, 11.47, -1.917, 10.06, -6.703, -31.34, 16.75, -7.69, -16.64,
                  -4.973, 2.828, 49.78, -7.44, 4.09],
                 [6.613, 22.78, -26.0, 4.332, -10.0, -17.73, -3.648, -17.73, 60.8, 25.95, -0.4636,
                  -29.38, -35.94, 1.586, 79.7, 3.457],
                 [-22.06, -26.75, 66.75, 36.62, -17.77, 15.87, -47.97, 28.27, 7.46, 28.86, -35.94,
                  19.53, -5.863, 15.28, -5.465, 9.28],
                 [-13.59, -2.512, -9.5, -20.06, -20.36, 52.16, -4.465, 5.297, -46.4, 4.164, 44.6,
                  76.5, 59.94, 34.8, 28.52, 27.08],
                 [-12.97, 2.65, 3.07, -50.62, -4.53, 12.87, 1.705, 21.61, 3.318, 8.92, -25.16,
                  -7.39, 12.77, -1.985, 24.3, 1.633],
                 [-42.38, 26.56, 50.12, -24.02, -23.17, 20.88, -1.094, -16.3, -21.94, 60.3, -14.1,
                  57.0, 1.01, 36.94, -30.17, 31.72],
                 [-23.84, 12.234, -39.72, -14.66, 17.05, -17.62, -0.275, -7.69, 27.75, 17.5, -13.25,
                  -3.818, 36.72, 0.9067, 45.1, -31.0],
                 [-1.393, -25.05, 2.191, -32.1, -58.25, 0.075, -0.2817, -60.34, 15.77, -32.2, -16.1,
                  -25.08, -51.25, -83.5, 13.766, -27.67],
                 [22.86, -3.207, 7.09, -9.266, 9.086, 38.34, -5.5, -14.61, -56.34, -15.45, -53.4,
                  -28.28, -21.34, -12.09, -10.336, 34.16],
                 [14.51, 5.855, 46.25, 48.25, 59.44, -10.79, -37.62, -21.02, 27.44, -37.72, 47.47,
                  45.2, -48.47, 23.72, -20.22, 39.62],
                 [-34.75, -18.9, -15.305, 40.62, 36.78, 8.18, 58.9, -3.646, -19.64, -50.88, -2.672,
                  -0.3638, -40.16, 69.56, -13.5, -36.22],
                 [18.47, -1.491, -23.33, 8.93, -26.88, 26.53, 18.33, -16.58, -40.0, -35.78, 4.945,
                  -40.9, 13.164, 8.66, -50.5, -30.36],
                 [20.23, 7.01, -0.2898, 4.656, 5.41, 100.5, -10.88, -0.6074, -38.75, -23.55, 35.34,
                  6.023, -16.62, 6.92, 4.06, 9.06],
                 [0.1943, -1.323, -5.23, -33.25, -21.28, 30.06, 6.52, 23.64, 30.27, -49.3, -28.66,
                  -46.12, -14.09, 30.28, 18.69, 8.805],
                 [-37.06, 11.695, 21.66, 25.47, 48.1, 27.4, 2.473, -14.52, 4.938, 29.66, 5.535,
                  60.1, -64.7, 21.27, -0.4138, -21.03],
                 [20.08, 22.4, 5.684, -8.57, 11.1, -15.65, 40.75, 34.34, -30.42, -19.16, -25.05,
                  -11.06, -15.195, 2.398, 21.64, -54.34],
                 [16.22, -14.96, -22.78, 73.25, -40.4, 36.03, -25.95, -19.03, -2.25, 1.187, -23.06,
                  -56.44, 21.17, -17.03, 21.5, -27.05],
                 [15.06, -44.34, -12.98, 63.28, 43.2, 73.4, 1.909, 8.39, -62.16, -19.11, -25.81,
                  39.97, -4.766, 14.11, -30.03, 2.143],
                 [-15.555, 14.01, 31.28, -2.744, -43.44, -39.2, 34.62, -0.6978, -43.56, -0.5664,
                  10.97, -16.83, 4.266, 28.88, -32.34, -35.38],
                 [-40.53, -55.25, 4.7, -13.9, -8.2, 30.61, -3.338, 35.44, 44.1, 53.66, -7.9, -7.473,
                  -22.62, -18.94, -16.8, -62.94],
                 [7.734, 30.69, 54.78, -16.64, 6.39, -34.97, -33.53, 20.39, 33.7, 18.86, -10.24,
                  -7.574, 31.55, 48.47, -6.54, -55.4],
                 [-36.34, 9.6, 103.6, 4.1, -29.73, -55.75, 19.16, -2.062, -25.4, 39.4, -22.88,
                  -2.121, 19.73, -3.057, -29.47, 16.52],
                 [-46.66, -35.34, -5.16, -49.34, -7.45, 33.16, 42.94, 78.6, -22.61, 17.34, 17.86,
                  44.9, 61.2, -2.002, -9.734, 25.94],
                 [26.98, -16.95, -61.78, 21.34, 32.38, 11.734, 13.34, 16.39, 26.92, -16.31, 49.6,
                  16.92, 7.465, 6.348, -115.3, 10.99],
                 [-24.4, 3.47, -1.529, 19.73, -8.78, 53.62, 33.8, -1.764, -4.38, 30.03, -21.33,
                  -20.14, -5.758, -41.94, -6.04, -23.7],
                 [1.143, -14.57, -47.7, -28.14, 9.984, 57.47, 0.668, 14.98, -37.16, 11.72, 29.56,
                  20.61, 15.74, -41.94, 23.69, 59.44],
                 [11.13, 35.53, -8.21, 22.34, -26.31, 6.93, -8.3, -33.25, 0.0727, 1.233, 1.823,
                  24.58, 43.16, -47.47, -1.44, -3.506],
                 [3.432, -31.95, 15.37, -6.426, -17.84, -14.0, -2.062, -17.22, -19.02, 59.5, 47.84,
                  8.23, -8.58, 16.64, -24.75, -46.94],
                 [-29.44, -17.83, 15.79, 37.94, -5.074, -16.4, -19.44, -8.82, 0.5005, 27.62, -3.275,
                  -18.5, 28.39, 27.22, -38.6, -28.95],
                 [1.501, -76.1, -34.6, -21.72, -8.516, 70.1, 20.67, -15.48, 28.11, -2.244, -4.605,
                  16.67, -43.7, 7.477, 55.9, 3.92],
                 [18.19, -8.6, -42.16, 7.92, -14.055, -2.363, 3.336, -32.53, 32.3, 58.4, 43.78,
                  32.5, 41.34, -47.8, 7.99, 16.48],
                 [-14.84, -11.9, 7.53, -3.098, -20.22, -31.7, -31.06, 28.84, 39.1, -18.39, 55.78,
                  21.55, 6.21, -10.625, -2.17, -24.56],
                 [-5.703, -35.25, 44.66, -18.19, 27.61, -6.656, -15.51, 27.42, -36.78, -22.33, 71.8,
                  0.00486, -42.16, 9.92, -24.34, 5.664],
                 [16.67, 13.555, -37.72, 55.78, 10.14, -18.64, -17.47, 13.69, -47.5, -34.3, 9.21,
                  28.39, 6.312, -6.273, 60.97, 28.44],
                 [-8.734, 15.21, 11.17, -37.03, -10.41, -28.06, -0.953, -9.914, -11.94, -0.54,
                  -15.78, -28.2, 69.1, -49.5, -9.83, 6.46],
                 [1.743, -10.92, 5.125, -9.25, 7.31, 20.9, -2.115, 8.26, 41.16, -25.67, 30.1, 23.5,
                  -22.69, -1.416, 5.566, 2.795],
                 [-10.66, 18.8, -3.324, -20.38, -7.01, -66.7, 15.38, -16.23, -7.812, 33.62, -8.516,
                  28.27, -99.8, 52.06, -1.653, -4.8],
                 [10.055, -4.848, 33.5, 13.27, -88.7, -21.64, -9.05, -5.9, 17.9, 48.06, -5.246,
                  23.92, -40.28, 7.8, -17.39, 3.543]]
            , dtype=torch.float16).requires_grad_(),
            "labels": tensor(
                [15, 3, 10, 3, 13, 11, 5, 10, 0, 3, 7, 8, 0, 1, 15, 6, 10, 2, 0, 0, 0, 2, 0, 0, 0,
                 10, 0, 3, 10, 11, 15, 2, 0, 0, 0, 0, 8, 0, 0, 0, 0, 9]
            ),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, COTANGENTS),
    ]
    return run_again(calls)


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


def call_in_order(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss with tensors in order; its parameters may have any names."""
    return loss(*given.values())


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
    with torch.inference_mode(one.mode == "inference"):
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


def run_again(calls: list[Call], times: int = 20) -> list[Outcome]:
    """Run one call several times, and once with a second backward through one graph."""
    return run_each([*calls * times, replace(calls[0], mode="derived again")])


# How it is judged.


def part(seen: Outcome) -> Array | None:
    """Return the term, or the gradient, that is compared."""
    return (seen.gradients if KIND == "gradient" else seen.terms)[NAME]


def same(one: Array | None, other: Array | None) -> bool:
    """Whether two results agree bit by bit."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)


def judge_bits(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare calls with the first, bit by bit."""
    first, *others = [part(seen) for seen in ranks[RANK]]
    other = next((one for one in others if not same(one, first)), first)
    print(WHERE, f"expected {first!r}", f"observed {other!r}", sep="\n")
    return same(first, other)


# How it is run.


MOST_STUBS = 100


class NotInstalled(ImportError):
    """The target uses a package that is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"needs {package}, which is not installed", name=package)


def absent_base(package: str) -> type:
    """Return the class that takes the place of a base class of a package: a module without parts."""
    from torch import nn

    class Absent(nn.Module):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if args or kwargs:  # what the real one makes of them is not known
                raise NotInstalled(package)
            super().__init__()

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("__"):
                    raise
                raise NotInstalled(package) from None

    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    vars(Absent)["__init__"].__signature__ = inspect.Signature([me])  # it takes no arguments
    return Absent


class Placeholder:
    """Stands for a name of a package that is not installed."""

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(self._package, f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._use()
        decorates = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates and not isinstance(args[0], Placeholder) else self

    def __getitem__(self, key: Any) -> Any:
        self._use()
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (absent_base(self._package),)

    def __instancecheck__(self, instance: Any) -> bool:
        return False  # nobody can have made one

    def __subclasscheck__(self, subclass: Any) -> bool:
        return False

    def __bool__(self) -> bool:
        self._use()
        return False  # what a module asks as it is loaded is whether something is there

    def __iter__(self) -> Iterator[Any]:
        return self._raise()

    def __len__(self) -> int:
        return self._raise()

    def __enter__(self) -> Any:
        return self._raise()

    def __exit__(self, *error: object) -> None:
        self._raise()

    def __repr__(self) -> str:
        return f"<{self._name}, a stub: {self._package} is not installed>"

    def _use(self) -> None:
        if not STUBS.loading:
            self._raise()

    def _raise(self) -> NoReturn:
        raise NotInstalled(self._package)


def gathered(data: Any, gather: Any) -> Any:
    """Apply `gather` to every tensor of a collection."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda one: gather(one) if isinstance(one, torch.Tensor) else one, data)


def accelerate() -> dict[str, Any]:
    """Return Accelerator and gather, which concatenates the ranks' tensors, without gradient."""
    import torch
    from torch import distributed as dist

    def gather_one(one: torch.Tensor) -> torch.Tensor:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return one
        one = one.detach().reshape(1) if one.ndim == 0 else one.detach().contiguous()
        parts = [torch.empty_like(one) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, one)
        return torch.cat(parts)

    def gather(tensor: Any) -> Any:
        return gathered(tensor, gather_one)

    class Accelerator:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def gather(self, tensor: Any) -> Any:
            return gather(tensor)

        gather_for_metrics = gather

        @property
        def num_processes(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def process_index(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_process_index(self) -> int:
            return self.process_index

        @property
        def is_main_process(self) -> bool:
            return self.process_index == 0

    return {
        "Accelerator": Accelerator,
        "PartialState": Accelerator,
        "AcceleratorState": Accelerator,
        "gather": gather,
    }


def lightning() -> dict[str, Any]:
    """Return LightningModule and Fabric: `all_gather` stacks the ranks' tensors in a dimension of its own."""
    import warnings
    from functools import wraps

    import torch
    from torch import distributed as dist
    from torch.distributed.nn import functional

    class Collectives:
        def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
            def gather(one: torch.Tensor) -> torch.Tensor:
                if self.world_size == 1:
                    return one
                with torch.set_grad_enabled(sync_grads and torch.is_grad_enabled()):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # torch deprecates what the trainer calls
                        parts = functional.all_gather(one.contiguous(), group or dist.group.WORLD)
                    return torch.stack(list(parts))

            return gathered(data, gather)

        @property
        def world_size(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def global_rank(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_rank(self) -> int:
            return self.global_rank

    class LightningModule(Collectives, torch.nn.Module):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Without a trainer, nothing is logged."""

        log_dict = log

        def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is saved."""

        @property
        def device(self) -> torch.device:
            tensors = [*self.parameters(), *self.buffers()]
            return tensors[0].device if tensors else torch.device("cpu")

    class Fabric(Collectives):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def launch(self, *args: Any, **kwargs: Any) -> None:
            """The ranks run already."""

    def rank_zero_only(function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return None if dist.is_initialized() and dist.get_rank() else function(*args, **kwargs)

        return call

    def say(message: object, stacklevel: int = 4, **kwargs: Any) -> None:
        """Nothing is printed: what a trainer says is not about the loss."""

    said = dict.fromkeys(
        ("rank_zero_warn", "rank_zero_info", "rank_zero_debug", "rank_zero_deprecation"), say
    )
    return {"LightningModule": LightningModule, "Fabric": Fabric, "rank_zero_only": rank_zero_only} | said


@cache
def trainers(package: str) -> dict[str, Any]:
    """Return the stand-ins for a package's names; there are none for most packages."""
    if package in ("lightning", "pytorch_lightning", "lightning_fabric"):
        return lightning()
    return accelerate() if package == "accelerate" else {}


class Stub(ModuleType):
    """A module of a package that is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.partition(".")[0] if self.__name__ not in STUBS.names else self.__name__
        known = trainers(package).get(name)
        return Placeholder(package, f"{self.__name__}.{name}") if known is None else known


class Stubs:
    """Finds the modules that are not installed, once they are known to be missing, and those beside a file."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.folders: list[str] = []
        self.loading = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module is made, after every other finder has found nothing."""
        if path is None and self.loading:
            for folder in self.folders:
                if Path(folder, f"{name}.py").is_file() or any(Path(folder, name).glob("*.py")):
                    return PathFinder.find_spec(name, [folder])
        if any(f"{name}.".startswith(f"{missing}.") for missing in self.names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a stub."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stub holds nothing."""


STUBS = Stubs()


ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")


def above(path: Path) -> list[str]:
    """Return the folders above a file's, as far as the top of its repository."""
    found = []
    for folder in path.parents[:8]:
        found.append(str(folder))
        if any((folder / name).exists() for name in ROOTS):
            return found
    return found[:3]


def import_from(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    """Import a file under a name; it is an empty package where there is no file."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if folders and not path.is_file():
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_top(name: str, root: Path) -> str:
    """Import a package of a folder; return its name, which is another where the name is taken."""
    taken, folder = sys.modules.get(name), str(root / name)
    if taken is not None:
        if folder in [str(Path(one).resolve()) for one in getattr(taken, "__path__", [])]:
            return name
        name = f"_subject_{name}_{abs(hash(folder))}"
    import_from(name, Path(folder, "__init__.py"), [folder])
    return name


def package_of(path: Path, levels: int) -> tuple[str, Path]:
    """Return the name of a file as a module, and the folder that its topmost package lies in."""
    root, names = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while levels > 0 or (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root, levels = root.parent, levels - 1
    return ".".join(names), root


def relative_levels(path: Path) -> int:
    """Return how many folders up a file imports from: 0 where it has no relative imports."""
    imports = [one for one in ast.walk(ast.parse(path.read_bytes())) if isinstance(one, ast.ImportFrom)]
    return max((one.level for one in imports), default=0)


def load_file(path: Path) -> ModuleType:
    """Import a file: as a module of its package where it imports relatively, else alone."""
    if not path.is_file():
        raise FileNotFoundError(path)
    path = path.resolve()
    folders = [path.parent]  # as python does: it may import the files beside it
    if Path(path.parent, f"{path.parent.name}.py").is_file():
        folders.insert(0, path.parents[1])  # where a file is named like its package, the package comes first
    sys.path += [one for one in map(str, folders) if one not in sys.path]
    STUBS.folders += [one for one in above(path) if one not in STUBS.folders]
    if levels := relative_levels(path):
        name, root = package_of(path, levels)
        top, dot, rest = name.partition(".")
        return importlib.import_module(import_top(top, root) + dot + rest)
    return import_from(f"_subject_{path.stem}_{abs(hash(str(path)))}", path)


def in_python(file: str) -> bool:
    """Whether a file is of Python's own library."""
    return Path(file).is_relative_to(sysconfig.get_paths()["stdlib"])


def installed_in(file: str) -> str:
    """Return the top-level name of the installed package that a file is of, or nothing."""
    for folder in {sysconfig.get_paths()[one] for one in ("purelib", "platlib")}:
        if Path(file).is_relative_to(folder):
            return Path(file).relative_to(folder).parts[0].removesuffix(".py")
    return ""


def of_target(error: BaseException, place: str) -> bool:
    """Whether an import that failed stands in the target's own code, and not in an installed package."""
    importer, trace = "", error.__traceback__
    while trace:
        code = trace.tb_frame.f_code.co_filename
        if not code.startswith("<frozen") and (installed_in(code) or not in_python(code)):
            importer = code
        trace = trace.tb_next
    own = installed_in(str(Path(place).resolve())) if place.endswith(".py") else place.partition(".")[0]
    return installed_in(importer) in ("", own)


def load(place: str) -> ModuleType:
    """Import a target's module, named or a file; missing packages are stubbed, as they are met."""
    if STUBS not in sys.meta_path:
        sys.meta_path.append(STUBS)
    STUBS.loading = True
    try:
        for _ in range(MOST_STUBS):
            try:
                return load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
            except ModuleNotFoundError as error:
                name = error.name or ""
                itself = not place.endswith(".py") and f"{place}.".startswith(f"{name}.")
                if not name or itself or name in STUBS.names or not of_target(error, place):
                    raise
                STUBS.names.append(name)
        raise ImportError(f"{place}: more than {MOST_STUBS} packages are not installed")
    finally:
        STUBS.loading = False


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


def by_judge(target: Any, ranks: list[Any]) -> int:
    """Return 0 if the ranks' results agree with the expected ones, else 1."""
    return 0 if judge(target, ranks) else 1


def on_cpu(rank: int) -> bool:
    """The CPU is always there."""
    return True


def alone(target: Any, rank: int) -> list[Any]:
    """Return what the only rank saw."""
    return [act(target, rank)]


load, build, call, judge, decide, ready, gathered = load, construct, call_in_order, judge_bits, by_judge, on_cpu, alone

if __name__ == "__main__":
    sys.exit(verdict(0))