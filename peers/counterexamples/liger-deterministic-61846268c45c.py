# verified-losses counterexample 61846268c45c
"""liger: "deterministic" does not hold in one process (cross_entropy).

Falsified: rank 0, gradient of logits derived twice at [0, 0]: expected -0.00139973778, observed
0.00109398644, error 0.00249 is inf times its bound

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
import contextlib
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
WHERE = "rank 0, gradient of logits derived twice at [0, 0]"
RANK = 0
KIND = "gradient"
NAME = "logits"


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor(
                [[-0.24395548, 0.774131, 0.7073606, -0.69774085, 0.55125034, -1.909835, -0.34616706,
                  -0.22005887, -0.13303451, -1.0841347, -0.34206316, 0.4582152, -0.020448474,
                  -1.010451, -0.33509064, 1.1195413],
                 [-0.92493004, -0.15538523, 0.8900765, -0.9873193, -1.2108729, 0.14923613,
                  -1.328814, 0.42314914, 0.78745884, -3.4831781, -0.6093594, -0.99260724,
                  -0.6920129, -0.26556614, -0.3072725, 1.4356222],
                 [1.5523556, -0.7303551, -0.63230956, -0.74770963, -1.1193863, 1.3842374,
                  -0.3049527, 0.18270545, 0.2473835, 0.9879, -1.5290726, 0.28091162, -1.7274473,
                  -2.1768997, -0.78764814, 0.19864017],
                 [0.972788, 0.3267488, 0.42051792, -1.5209861, 0.30193597, 1.7902073, 0.42070487,
                  -0.33530754, -0.7443799, 0.113437295, 0.8586248, 0.29001743, -0.45989773,
                  -1.8226691, -1.3254889, 0.8973811],
                 [-0.47297895, 0.63367736, 0.6017641, 0.38221762, -0.06389315, 0.33535635, -0.22349,
                  -1.0447825, 0.5582445, -0.2563907, -0.55484587, -0.16577479, 0.09428035,
                  1.6590631, -0.24810041, 0.13638052],
                 [0.22048256, 0.75946224, -0.866629, 0.14444911, -0.33322734, -0.5909621,
                  -0.121616006, -0.59124285, 2.0269787, 0.8649939, -0.01545066, -0.97910804,
                  -1.1979965, 0.05287228, 2.6559403, 0.11526409],
                 [-0.7355163, -0.8915443, 2.225732, 1.2204604, -0.59201413, 0.5289334, -1.5990992,
                  0.9420835, 0.24868426, 0.9621128, -1.1977923, 0.65093726, -0.19546175, 0.509295,
                  -0.18213305, 0.30938315],
                 [-0.45311138, -0.083747745, -0.3167402, -0.66853076, -0.6783863, 1.73817,
                  -0.148843, 0.1765079, -1.5468942, 0.13879383, 1.4859827, 2.5497072, 1.9978734,
                  1.160003, 0.95074123, 0.9025455],
                 [-0.4322059, 0.088350005, 0.10231203, -1.687618, -0.15108956, 0.42896423,
                  0.056831036, 0.7205308, 0.110629484, 0.29738718, -0.83862215, -0.24640402,
                  0.42581016, -0.06616479, 0.8099735, 0.05442776],
                 [-1.4129338, 0.8855751, 1.670643, -0.8003263, -0.77248234, 0.69575906,
                  -0.036446713, -0.5430048, -0.73117447, 2.0109096, -0.4699866, 1.8995167,
                  0.03365751, 1.2314541, -1.0057057, 1.057063],
                 [-0.79495704, 0.40771028, -1.3239918, -0.48859143, 0.56836873, -0.587727,
                  -0.009166996, -0.25634634, 0.92508876, 0.5831688, -0.44174242, -0.12729909,
                  1.2238611, 0.030223476, 1.5032439, -1.0333596],
                 [-0.046419565, -0.8350207, 0.07305328, -1.0701631, -1.9420303, 0.0024996873,
                  -0.009394594, -2.0115752, 0.5258237, -1.073257, -0.5366128, -0.83613867,
                  -1.7087498, -2.7829301, 0.4587296, -0.92264533],
                 [0.76201797, -0.106891766, 0.23629244, -0.30888548, 0.30287096, 1.2778962,
                  -0.18339401, -0.48705375, -1.8777033, -0.51500136, -1.7798991, -0.94273937,
                  -0.7112624, -0.40321645, -0.34449726, 1.1386274],
                 [0.48367313, 0.19517796, 1.5421455, 1.6085088, 1.9817653, -0.35950857, -1.2540526,
                  -0.7004415, 0.9147853, -1.2568227, 1.5827999, 1.5064219, -1.6158389, 0.79065084,
                  -0.6738827, 1.3206257],
                 [-1.1587458, -0.63040507, -0.51018155, 1.3536628, 1.2258644, 0.27255937, 1.9633342,
                  -0.12157895, -0.65493804, -1.6959728, -0.08905521, -0.012126387, -1.3384788,
                  2.3182929, -0.45006526, -1.2070091],
                 [0.6155264, -0.049703512, -0.7778193, 0.2977017, -0.895828, 0.8844981, 0.6110608,
                  -0.55253965, -1.332979, -1.1924973, 0.16486682, -1.3635203, 0.43877319, 0.2884999,
                  -1.6836452, -1.011737],
                 [0.6745529, 0.23368704, -0.009662143, 0.15521137, 0.18033914, 3.350543,
                  -0.36286792, -0.02024704, -1.2920457, -0.78482676, 1.1777067, 0.20073637,
                  -0.5541847, 0.23066978, 0.13529462, 0.3020173],
                 [0.0064760717, -0.04410472, -0.1743332, -1.1084865, -0.70932233, 1.0019488,
                  0.21725607, 0.7878798, 1.00897, -1.6439248, -0.9552561, -1.5372568, -0.46976036,
                  1.0092782, 0.6226914, 0.29359165],
                 [-1.2354051, 0.3898422, 0.72190166, 0.8490769, 1.6028782, 0.9137194, 0.08239307,
                  -0.48405644, 0.16464776, 0.98860794, 0.18444782, 2.0029597, -2.1558795, 0.7090283,
                  -0.013792004, -0.7012525],
                 [0.66947347, 0.7469001, 0.1894164, -0.28561363, 0.3701608, -0.52161825, 1.3583909,
                  1.1447374, -1.0139617, -0.6385738, -0.83507884, -0.36870185, -0.5064405,
                  0.07992432, 0.7212103, -1.81109],
                 [0.54076284, -0.49868685, -0.7593017, 2.4413764, -1.3468478, 1.2012032, -0.8651025,
                  -0.63442034, -0.07498029, 0.039555494, -0.7688992, -1.8810337, 0.7057971,
                  -0.5674776, 0.716759, -0.90160716],
                 [0.50197744, -1.4786247, -0.4325075, 2.1092618, 1.4394317, 2.4457722, 0.063624755,
                  0.27968842, -2.0715096, -0.636756, -0.86021405, 1.3320084, -0.15879673,
                  0.47035858, -1.0011773, 0.07143612],
                 [-0.5185585, 0.46682915, 1.0427766, -0.0914981, -1.4476439, -1.3059449, 1.1543918,
                  -0.023252992, -1.4523239, -0.018882329, 0.36563036, -0.5611502, 0.14222077,
                  0.9622782, -1.0785668, -1.1794504],
                 [-1.3509301, -1.8415605, 0.15670061, -0.46337026, -0.2734459, 1.0204468,
                  -0.11127907, 1.1812525, 1.4693568, 1.7885509, -0.26332223, -0.24905306,
                  -0.7540185, -0.63139695, -0.5598649, -2.0977323],
                 [0.25781706, 1.0226953, 1.826272, -0.5545037, 0.21297663, -1.1657106, -1.1180359,
                  0.6794744, 1.1229734, 0.62876165, -0.3414974, -0.25250098, 1.0513223, 1.6154897,
                  -0.217948, -1.8471541],
                 [-1.2112763, 0.3200065, 3.4549124, 0.1366619, -0.9910183, -1.8581806, 0.638603,
                  -0.0687805, -0.84690636, 1.3132392, -0.76266354, -0.0706849, 0.6580168,
                  -0.101910286, -0.98219806, 0.5505388],
                 [-1.5552137, -1.1780508, -0.17201604, -1.6452496, -0.24827306, 1.1051595,
                  1.4307538, 2.620797, -0.7535292, 0.5782531, 0.595485, 1.4967519, 2.039785,
                  -0.066724114, -0.32452533, 0.86468714],
                 [0.8995563, -0.5651715, -2.0596967, 0.711471, 1.0786932, 0.3910337, 0.4449109,
                  0.54643774, 0.8975082, -0.5436693, 1.6532278, 0.5642017, 0.24884596, 0.2116396,
                  -3.8432324, 0.36642036],
                 [-0.81334454, 0.11568099, -0.0509774, 0.6579511, -0.29278177, 1.7873601, 1.1275944,
                  -0.058774263, -0.145903, 1.0008959, -0.710802, -0.6713556, -0.19192739, -1.397915,
                  -0.20134895, -0.79021835],
                 [0.038085174, -0.4856623, -1.5891392, -0.9377784, 0.33291265, 1.9155778,
                  0.022258371, 0.4991302, -1.2388129, 0.39054754, 0.9851839, 0.6870153, 0.52476805,
                  -1.3978539, 0.7894506, 1.9809859],
                 [0.37108335, 1.1845009, -0.2738153, 0.7446089, -0.8773272, 0.23093477, -0.27647108,
                  -1.1081026, 0.0024238364, 0.04112553, 0.060779285, 0.8194305, 1.4383694,
                  -1.5827036, -0.04802663, -0.11687935],
                 [0.11437344, -1.0652162, 0.51230437, -0.21413754, -0.59482837, -0.4665578,
                  -0.068747774, -0.57394063, -0.63407034, 1.9836797, 1.5944674, 0.274275,
                  -0.28593042, 0.55464363, -0.82478714, -1.5647303],
                 [-0.98112535, -0.5941761, 0.5264082, 1.2644467, -0.16908252, -0.5468249,
                  -0.6476678, -0.2940528, 0.016683035, 0.9210832, -0.10918629, -0.616502,
                  0.94625074, 0.9070502, -1.286249, -0.9652489],
                 [0.05001671, -2.5367653, -1.1530013, -0.724138, -0.28392214, 2.337269, 0.68880975,
                  -0.5157827, 0.936898, -0.07479516, -0.15357687, 0.5557363, -1.4561324, 0.24916343,
                  1.8633788, 0.13067444],
                 [0.60599303, -0.28659287, -1.4052316, 0.2639997, -0.46849996, -0.078752466,
                  0.11120635, -1.0845387, 1.0772638, 1.946603, 1.4591264, 1.083196, 1.3778076,
                  -1.5938071, 0.26621288, 0.5493832],
                 [-0.4947654, -0.39662024, 0.25102732, -0.103278905, -0.6739296, -1.0567816,
                  -1.0353501, 0.96159583, 1.3036404, -0.612884, 1.8593527, 0.7181743, 0.20707491,
                  -0.3542791, -0.07231625, -0.81881535],
                 [-0.19006775, -1.1745207, 1.4889177, -0.60607547, 0.9201455, -0.22187322,
                  -0.5169297, 0.9140791, -1.2261239, -0.74431866, 2.3944707, 0.00016200427,
                  -1.405066, 0.33071017, -0.81168646, 0.18877207],
                 [0.55598664, 0.45187488, -1.2578096, 1.8590306, 0.33798122, -0.6211941, -0.5824542,
                  0.45630676, -1.5828835, -1.1432748, 0.30692327, 0.9464955, 0.21046638,
                  -0.20916188, 2.0318792, 0.94786197],
                 [-0.2912279, 0.5071199, 0.3722748, -1.234326, -0.34681788, -0.9355154,
                  -0.031772833, -0.33044294, -0.39800757, -0.01800487, -0.5261082, -0.94011444,
                  2.3037615, -1.6500837, -0.3275495, 0.2154197],
                 [0.058095373, -0.36407498, 0.17082164, -0.3084299, 0.24361664, 0.69669396,
                  -0.070505306, 0.27521044, 1.3721534, -0.8556797, 1.0028707, 0.78322583,
                  -0.7562544, -0.047201645, 0.18550007, 0.09314255],
                 [-0.3551099, 0.62637323, -0.11081613, -0.67918265, -0.23374261, -2.2228267,
                  0.51280826, -0.54125726, -0.26037386, 1.1210556, -0.28389487, 0.9421582,
                  -3.3264575, 1.735841, -0.055124275, -0.16008739],
                 [0.33513823, -0.16159423, 1.1168058, 0.44236705, -2.956053, -0.7213178,
                  -0.30151236, -0.19655508, 0.5968929, 1.6017929, -0.17480794, 0.797312, -1.3428025,
                  0.26005948, -0.5796922, 0.1180683]]
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