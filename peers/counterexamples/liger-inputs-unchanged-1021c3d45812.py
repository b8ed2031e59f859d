# verified-losses counterexample 1021c3d45812
"""liger: "inputs unchanged" does not hold in one process (cross_entropy).

Falsified: rank 0: the call altered logits

    python liger-inputs-unchanged-1021c3d45812.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
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
COTANGENTS = [{"loss": -0.781565248966217}]  # what each rank's terms are multiplied with
WHERE = "rank 0, altered inputs"
RANK = 0
KIND = "altered inputs"
NAME = ""
ALLOWED = [[]]  # what is documented


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor(
                [[-7.3186646, 23.22393, 21.22082, -20.932226, 16.53751, -57.29505, -10.385012,
                  -6.601766, -3.9910355, -32.52404, -10.261894, 13.746456, -0.6134542, -30.31353,
                  -10.052719, 33.58624],
                 [-27.7479, -4.6615567, 26.702295, -29.61958, -36.326183, 4.477084, -39.86442,
                  12.694474, 23.623764, -104.495346, -18.28078, -29.778217, -20.760387, -7.966984,
                  -9.218175, 43.068665],
                 [46.57067, -21.910652, -18.969286, -22.431288, -33.58159, 41.527122, -9.1485815,
                  5.4811635, 7.421505, 29.637001, -45.87218, 8.427349, -51.823418, -65.30699,
                  -23.629444, 5.959205],
                 [29.18364, 9.802464, 12.615538, -45.62958, 9.058079, 53.70622, 12.621146,
                  -10.059226, -22.331396, 3.4031188, 25.758743, 8.700523, -13.796932, -54.680077,
                  -39.764668, 26.921434],
                 [-14.189368, 19.01032, 18.052921, 11.466529, -1.9167944, 10.060691, -6.7047,
                  -31.343473, 16.747335, -7.6917205, -16.645376, -4.9732437, 2.8284104, 49.771893,
                  -7.4430127, 4.0914154],
                 [6.6144767, 22.783867, -25.99887, 4.333473, -9.99682, -17.728863, -3.6484802,
                  -17.737286, 60.809364, 25.949818, -0.4635198, -29.373241, -35.939896, 1.5861684,
                  79.678215, 3.4579227],
                 [-22.065489, -26.746328, 66.77196, 36.61381, -17.760424, 15.868002, -47.972977,
                  28.262505, 7.460528, 28.863384, -35.93377, 19.528118, -5.8638525, 15.278851,
                  -5.4639916, 9.281495],
                 [-13.593342, -2.5124323, -9.502207, -20.055923, -20.35159, 52.1451, -4.46529,
                  5.295237, -46.406826, 4.163815, 44.57948, 76.49122, 59.936203, 34.800087,
                  28.522238, 27.076366],
                 [-12.966177, 2.6505003, 3.0693607, -50.62854, -4.532687, 12.868927, 1.704931,
                  21.615925, 3.3188846, 8.921616, -25.158665, -7.392121, 12.774305, -1.9849437,
                  24.299204, 1.6328329],
                 [-42.388016, 26.567253, 50.11929, -24.009789, -23.17447, 20.872772, -1.0934013,
                  -16.290144, -21.935234, 60.327286, -14.099597, 56.9855, 1.0097253, 36.943623,
                  -30.171173, 31.711891],
                 [-23.848711, 12.231309, -39.719753, -14.6577425, 17.051062, -17.631811, -0.2750099,
                  -7.6903906, 27.752663, 17.495066, -13.252273, -3.8189726, 36.71583, 0.90670425,
                  45.097317, -31.00079],
                 [-1.392587, -25.050621, 2.1915984, -32.104897, -58.26091, 0.074990615, -0.2818378,
                  -60.34726, 15.774712, -32.19771, -16.098385, -25.08416, -51.262493, -83.48791,
                  13.7618885, -27.67936],
                 [22.860538, -3.206753, 7.088773, -9.266564, 9.086129, 38.336887, -5.5018206,
                  -14.611612, -56.3311, -15.45004, -53.396973, -28.28218, -21.337872, -12.096494,
                  -10.334918, 34.15882],
                 [14.510194, 5.8553386, 46.264366, 48.255264, 59.452957, -10.785257, -37.62158,
                  -21.013245, 27.443562, -37.70468, 47.483997, 45.192657, -48.475166, 23.719524,
                  -20.216482, 39.61877],
                 [-34.76237, -18.912153, -15.305447, 40.609886, 36.775932, 8.176782, 58.900024,
                  -3.6473684, -19.64814, -50.879185, -2.6716564, -0.3637916, -40.15436, 69.54879,
                  -13.501958, -36.21027],
                 [18.465792, -1.4911053, -23.33458, 8.93105, -26.87484, 26.534943, 18.331825,
                  -16.576189, -39.98937, -35.774918, 4.946005, -40.90561, 13.163196, 8.654997,
                  -50.509357, -30.35211],
                 [20.236588, 7.0106115, -0.28986427, 4.656341, 5.410174, 100.5163, -10.886038,
                  -0.6074112, -38.76137, -23.544804, 35.331203, 6.0220914, -16.625542, 6.9200935,
                  4.0588384, 9.060519],
                 [0.19428214, -1.3231416, -5.2299957, -33.254597, -21.27967, 30.058466, 6.517682,
                  23.636395, 30.269102, -49.317745, -28.657682, -46.117706, -14.092811, 30.278345,
                  18.680742, 8.807749],
                 [-37.062153, 11.695267, 21.65705, 25.472307, 48.086346, 27.411583, 2.4717922,
                  -14.521694, 4.9394326, 29.65824, 5.5334344, 60.088795, -64.676384, 21.27085,
                  -0.41376016, -21.037575],
                 [20.084204, 22.407003, 5.682492, -8.568409, 11.104824, -15.648547, 40.751728,
                  34.34212, -30.418848, -19.157215, -25.052364, -11.061055, -15.193216, 2.3977296,
                  21.636309, -54.332703],
                 [16.222885, -14.960605, -22.779053, 73.241295, -40.405434, 36.036095, -25.953075,
                  -19.03261, -2.2494085, 1.1866648, -23.066977, -56.431007, 21.173912, -17.024328,
                  21.502771, -27.048216],
                 [15.059324, -44.35874, -12.9752245, 63.277855, 43.18295, 73.37316, 1.9087427,
                  8.390652, -62.145287, -19.10268, -25.806421, 39.96025, -4.7639017, 14.110758,
                  -30.03532, 2.1430838],
                 [-15.556754, 14.004875, 31.283297, -2.744943, -43.429317, -39.17835, 34.631756,
                  -0.69758976, -43.569717, -0.5664699, 10.968911, -16.834505, 4.266623, 28.868347,
                  -32.357006, -35.383514],
                 [-40.5279, -55.246815, 4.7010183, -13.901108, -8.203377, 30.613405, -3.338372,
                  35.437572, 44.080704, 53.656525, -7.8996673, -7.4715915, -22.620556, -18.94191,
                  -16.795948, -62.931973],
                 [7.734512, 30.68086, 54.78816, -16.635109, 6.389299, -34.971317, -33.54108,
                  20.384232, 33.6892, 18.862848, -10.244922, -7.5750294, 31.53967, 48.46469,
                  -6.53844, -55.414627],
                 [-36.338287, 9.600195, 103.64737, 4.0998573, -29.730549, -55.74542, 19.158089,
                  -2.063415, -25.407192, 39.397175, -22.879906, -2.120547, 19.740503, -3.0573087,
                  -29.465942, 16.516163],
                 [-46.65641, -35.341522, -5.1604815, -49.357487, -7.4481916, 33.154785, 42.92261,
                  78.6239, -22.605875, 17.347593, 17.86455, 44.902557, 61.193546, -2.0017235,
                  -9.73576, 25.940615],
                 [26.986687, -16.955145, -61.7909, 21.344131, 32.360794, 11.731011, 13.347327,
                  16.393133, 26.925247, -16.31008, 49.596832, 16.926052, 7.465379, 6.349188,
                  -115.29697, 10.992611],
                 [-24.400335, 3.4704297, -1.529322, 19.738535, -8.783454, 53.620804, 33.82783,
                  -1.7632279, -4.37709, 30.026875, -21.32406, -20.140669, -5.7578216, -41.93745,
                  -6.040468, -23.70655],
                 [1.1425552, -14.56987, -47.674175, -28.133352, 9.98738, 57.467335, 0.66775113,
                  14.973906, -37.164387, 11.716427, 29.555517, 20.61046, 15.743041, -41.935616,
                  23.683517, 59.429577],
                 [11.132501, 35.53503, -8.214459, 22.338266, -26.319817, 6.928043, -8.294132,
                  -33.243076, 0.07271509, 1.2337658, 1.8233786, 24.582914, 43.15108, -47.48111,
                  -1.4407989, -3.5063806],
                 [3.4312031, -31.956488, 15.369131, -6.424126, -17.844852, -13.996734, -2.0624332,
                  -17.218218, -19.02211, 59.51039, 47.834023, 8.2282505, -8.577913, 16.639309,
                  -24.743614, -46.94191],
                 [-29.43376, -17.825285, 15.792247, 37.9334, -5.072476, -16.404745, -19.430035,
                  -8.821585, 0.500491, 27.632498, -3.2755888, -18.49506, 28.387522, 27.211506,
                  -38.58747, -28.957466],
                 [1.5005013, -76.10296, -34.59004, -21.724142, -8.517664, 70.11807, 20.664293,
                  -15.473482, 28.106941, -2.2438548, -4.607306, 16.672089, -43.68397, 7.474903,
                  55.901363, 3.9202332],
                 [18.17979, -8.597786, -42.156948, 7.919991, -14.054998, -2.3625739, 3.3361905,
                  -32.53616, 32.317913, 58.398087, 43.773792, 32.49588, 41.33423, -47.814213,
                  7.9863863, 16.481497],
                 [-14.842962, -11.898607, 7.53082, -3.0983672, -20.217888, -31.70345, -31.060503,
                  28.847874, 39.10921, -18.38652, 55.780582, 21.545229, 6.2122474, -10.628372,
                  -2.1694875, -24.56446],
                 [-5.702033, -35.235622, 44.667534, -18.182264, 27.604366, -6.6561966, -15.50789,
                  27.422375, -36.78372, -22.32956, 71.83412, 0.0048601283, -42.151978, 9.921306,
                  -24.350594, 5.663162],
                 [16.6796, 13.556247, -37.73429, 55.77092, 10.139437, -18.635824, -17.473627,
                  13.689203, -47.486507, -34.298244, 9.207698, 28.394865, 6.3139915, -6.274856,
                  60.95638, 28.43586],
                 [-8.736837, 15.213596, 11.168243, -37.029778, -10.404536, -28.065462, -0.953185,
                  -9.913288, -11.940227, -0.5401461, -15.783246, -28.203432, 69.11285, -49.50251,
                  -9.826484, 6.4625907],
                 [1.7428613, -10.922249, 5.124649, -9.252897, 7.3084993, 20.90082, -2.1151593,
                  8.256313, 41.1646, -25.670391, 30.08612, 23.496775, -22.687632, -1.4160494,
                  5.565002, 2.7942765],
                 [-10.653297, 18.791199, -3.3244839, -20.37548, -7.012278, -66.6848, 15.384248,
                  -16.237719, -7.811216, 33.631668, -8.516846, 28.264746, -99.793724, 52.07523,
                  -1.6537282, -4.8026214],
                 [10.054147, -4.847827, 33.504173, 13.271011, -88.681595, -21.639534, -9.045371,
                  -5.896652, 17.906786, 48.053787, -5.2442384, 23.919361, -40.284077, 7.8017845,
                  -17.390766, 3.542049]]
            , dtype=torch.float32).requires_grad_(),
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


# How it is judged.


def form(seen: Outcome) -> Any:
    """Return what the output looks like, as far as KIND asks."""
    if KIND == "shape":
        gradients = {f"gradient of {name}": value for name, value in seen.gradients.items()}
        return list(np.shape({**seen.terms, **gradients}[NAME]))
    if KIND == "presence of the gradient":
        return seen.gradients[NAME] is not None
    forms = {
        "structure": seen.structure,
        "dtype and device": seen.types,
        "altered inputs": list(seen.changed),
    }
    return forms[KIND]


def judge_form(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare what the output looks like with what is documented."""
    observed = form(ranks[RANK][0])
    expected = " or ".join(map(repr, ALLOWED))
    print(WHERE, f"expected {expected}", f"observed {observed!r}", sep="\n  ")
    return observed in ALLOWED


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


load, build, call, judge, decide, ready, gathered = load, construct, call_in_order, judge_form, by_judge, on_cpu, alone

if __name__ == "__main__":
    sys.exit(verdict(0))