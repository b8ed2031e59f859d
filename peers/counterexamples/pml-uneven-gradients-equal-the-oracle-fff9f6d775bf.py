# verified-losses counterexample fff9f6d775bf
"""pml-uneven: "gradients equal the oracle" does not hold in 2 ranks (ntxent, convention exact).

Falsified: rank 0, gradient of first at [19, 7]: expected 0.0335561599, observed 0.0854504406, error
0.0519 is 1.98e+03 times its bound

    python pml-uneven-gradients-equal-the-oracle-fff9f6d775bf.py

runs it again in 2 ranks over gloo, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from datetime import timedelta
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
import signal
import subprocess
import sys
import sysconfig
import tempfile
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/pytorch_metric_learning.py:Distributed")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"convention": "exact", "local_loss": False, "gather_with_grad": False, "cache_labels": False, "temperature": 0.006666666666666667}
WORLD_SIZE = 2
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
COTANGENTS = None  # ones
WHERE = "rank 0, gradient of first at [19, 7]"
RANK = 0
KIND = "gradient"
NAME = "first"
INDEX = (19, 7)
ALONG = None  # or a direction, instead of one element
BOUND = 2.621e-05  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "first": tensor(
                [[1.6456125, -1.538394, -2.653121, -2.0228393, -7.152536, -5.209936, -1.0372506,
                  -3.7678127],
                 [4.635065, 0.21164612, -1.6529179, -3.7747343, 2.056034, -2.3999128, -7.504935,
                  -2.227071],
                 [-4.270438, 2.8511229, -5.0011287, 2.2022877, 2.5618448, 5.6938505, -2.228502,
                  -3.099036],
                 [-4.745409, -0.5652294, -2.0601404, 1.9482864, -1.7194684, -1.6254107, 8.347185,
                  1.9046535],
                 [1.7903827, 1.0196147, 5.5574274, 1.3840016, 6.035377, -5.6051426, -2.1682017,
                  -0.43598968],
                 [-4.7970204, 2.0259643, 3.1402383, -3.3797333, -7.65462, 0.97517616, -1.1209682,
                  0.761411],
                 [4.444043, 1.3425533, -1.3694744, -1.1058651, 2.1164393, -7.8841434, 4.008477,
                  -1.5565478],
                 [-4.4700227, -2.0016625, -4.508157, -5.917296, 2.2945435, 3.4283504, 0.632052,
                  -3.6106095],
                 [-1.0841762, -6.4246006, 4.6942, -3.1140342, 1.6814116, 0.9042216, 2.8827765,
                  -4.8622336],
                 [6.0775642, -1.0931424, -3.6710894, -3.4938402, -3.6152852, 2.1119194, -2.5315456,
                  4.693117],
                 [-0.18477301, -7.8493557, -5.373131, 0.5428476, 1.3043636, -1.3917831, -3.6531458,
                  -1.4087185],
                 [1.1047075, -0.014694187, 2.917755, 1.1009569, -3.3142512, -4.636629, 7.5220366,
                  -3.1257808],
                 [2.5237827, -3.0431116, 6.0418615, 0.308464, -2.2675035, -1.9050121, 5.184713,
                  4.679636],
                 [-1.9478728, -3.8546846, -4.880468, -1.0114077, 3.1198313, -5.4244123, 4.6653857,
                  -2.3155994],
                 [-2.7757587, -2.737001, -3.4032485, 3.6360607, -0.46466282, -7.792139, 2.5919547,
                  -1.4592832],
                 [-0.5065627, 0.95356864, -0.7944961, -6.4423633, -7.14647, 1.7810979, -3.395257,
                  -0.84074455],
                 [-2.5116627, 1.765695, 6.143199, -0.25861627, -7.4599867, -1.8973228, -1.743889,
                  -0.5058022],
                 [-2.0153058, -6.7514462, 1.5755774, -4.3175273, 1.4938874, 4.6801076, -3.819277,
                  -0.53960484],
                 [1.7660067, 0.8107923, -4.3863535, 3.003116, 7.2573266, 0.24270704, 4.61375,
                  -1.9315218],
                 [7.2075787, 0.79402024, -3.163756, -0.5123348, 0.18043888, 0.61821425, -6.4295235,
                  2.274887],
                 [2.3861964, 1.442143, 6.372356, 7.5370293, -0.7838447, -1.204673, 1.2541658,
                  0.97678757],
                 [-3.0665517, 4.2543826, 1.3343304, 3.970748, 3.0044944, 5.1898646, -4.632157,
                  2.703846],
                 [0.58221304, 3.0083737, 2.4617457, 6.4567347, 5.0380716, 4.922729, 1.1983665,
                  -1.2608413],
                 [-5.686774, -3.7106986, 0.8981848, 1.6661545, -0.2816364, 0.36637956, 7.6714134,
                  1.0121785]]
            , dtype=torch.float32).requires_grad_(),
            "second": tensor(
                [[-3.2657216, 2.6460793, 1.3429568, 1.6676254, -4.5882087, -2.1907008, -0.8150157,
                  -0.15782835],
                 [-0.21563199, 4.192841, 0.12333293, 3.334781, -3.0966277, -0.4095929, 2.870498,
                  1.4255356],
                 [4.1509347, 3.8531413, -3.8383124, 0.039216843, 1.191414, -0.6406782, -0.24286827,
                  0.3018448],
                 [0.17586641, -5.5939126, 1.106619, -1.1951562, 3.2133389, -1.966525, -0.69039136,
                  0.382058],
                 [-1.3606731, 1.2439848, 4.6779785, -3.2191987, 2.2633567, -2.143951, 1.4689783,
                  -1.1261917],
                 [-0.74709445, -1.8072195, -1.7438668, 4.1081896, 1.7095484, 1.6246798, 0.4859552,
                  4.3875265],
                 [-0.22106478, -2.0359366, 0.19965354, -2.8602674, 0.63518226, 0.8769364, 5.675881,
                  1.7286326],
                 [-0.013730604, 0.76481575, 0.4390176, 3.0325072, -0.053824916, -5.870162,
                  1.0470586, 1.8053178],
                 [0.87346643, -2.4953952, 1.0939827, 0.89699376, 4.9303102, 1.6331846, -3.2535405,
                  1.496347],
                 [2.9429157, 2.94768, 2.4119842, -3.382511, 2.9869735, 0.68383795, 0.065356135,
                  -2.1882951],
                 [0.80828196, -2.2126126, 2.4424198, 0.5146813, 4.7481303, -1.8499472, -2.6135876,
                  2.0528026],
                 [-2.6863177, 3.276515, 1.2578963, 0.10203551, 3.537004, 1.1877301, 3.8866007,
                  -0.46886387],
                 [5.5024123, 0.68671745, -3.687691, 1.2198673, -0.3031133, -0.010644709, 0.06350582,
                  -1.6911186],
                 [1.1018878, -1.1433272, 1.5566529, 1.7420776, -0.76023644, 4.0826006, 1.3082901,
                  4.6748905],
                 [-0.1021984, 1.5988836, 4.56047, -0.71482223, -0.15632126, -1.363955, -3.0162723,
                  3.732657],
                 [-3.8334873, -2.3405674, 0.48047304, 2.24812, -1.6920824, -1.1327637, 2.3791108,
                  -3.677761],
                 [0.7779257, -0.1146581, 2.5554655, 3.2058406, -1.0521846, -3.31561, 4.318395,
                  -0.7849433],
                 [1.8488412, -1.4453725, -1.3478776, 0.5401312, 0.6223799, 6.3616023, -0.39783266,
                  0.39965504],
                 [-0.92728364, 0.5300494, -0.66564834, 1.8825166, -3.598742, 2.6340473, -4.1156173,
                  2.6145647],
                 [-5.059872, -1.0205685, 0.7636913, 3.6943395, 1.3841014, -1.5093337, -1.8076609,
                  0.6741454],
                 [-2.394975, -4.6086407, 1.4390328, 2.665503, -0.55842197, 3.3258488, 0.6713057,
                  -0.9034462],
                 [-1.2668185, 1.879989, -3.1411793, -1.0540483, -2.2344055, -2.393295, 1.0410857,
                  -4.568333],
                 [-1.2531321, 1.6428415, -2.759896, -5.5546227, 1.4027455, 1.3421154, -0.9628168,
                  1.1640689],
                 [-4.093887, -2.1606107, -1.9940077, -1.313299, 1.5210782, 2.134698, -3.5663514,
                  1.439696]]
            , dtype=torch.float32).requires_grad_(),
        },
        {
            "first": tensor(
                [[-0.50332785, 4.0768223, -2.8290892, -1.9235064, 1.9384363, -2.0738509, 8.538553,
                  -0.48724598],
                 [3.923775, -0.62046355, -0.29066607, 2.822515, 4.424593, -2.8995538, -2.3925338,
                  7.2276835],
                 [-4.2992735, 4.800435, -0.27752456, 0.39833492, -3.5848694, 5.630337, -4.825519,
                  -0.42295033],
                 [-5.682387, -4.1136975, 1.6666927, -0.5881354, 6.201413, -3.2530067, 2.7312884,
                  0.97201777],
                 [-0.3696784, -6.141773, -0.1585097, -3.556246, 4.5058613, -3.5466368, -2.2571845,
                  4.6123505],
                 [-6.4098644, 4.7482543, -2.0246303, 1.644439, -5.435265, -1.2638599, -2.198443,
                  1.8362845],
                 [2.643716, -4.4724307, -2.7478282, -0.6622256, -3.055848, 6.04196, -5.354599,
                  -0.5328587],
                 [-1.5511765, 3.8946354, -1.0978389, 6.682136, 4.1210704, -3.343915, 2.775486,
                  3.2374825],
                 [-0.63314843, -1.6173931, 3.606954, -7.14007, 2.6740975, -4.590515, 3.6722145,
                  -1.0313998],
                 [-2.3632433, 3.874909, 3.5774236, 2.1719825, 0.49650246, 0.26509365, -1.9870802,
                  -8.2097225],
                 [-0.016308261, 4.117933, -2.2020772, 2.3003027, 3.1216507, 7.9870477, 0.61301214,
                  -2.9611716],
                 [1.7772406, -3.9513226, 5.916115, -0.77135617, 6.3864875, -3.3211684, 1.1962993,
                  -1.4712837],
                 [4.11764, 0.4973709, 6.382938, 6.7767415, -0.71116817, -0.23581414, 0.21873248,
                  -2.3027065],
                 [-6.110987, -1.5863719, -0.09766489, -6.9506583, -0.32450745, 1.6066211,
                  -4.3443108, 0.19653195],
                 [1.450899, 6.842221, 3.6266046, -1.3536284, 4.424075, 1.3840508, 4.3332167,
                  -2.3684716],
                 [4.3713956, 1.4861298, -1.3773504, -1.0587255, -6.859576, -3.0890188, -4.057177,
                  -3.5196512],
                 [3.664476, -6.2236056, -3.3036652, -2.5648377, -1.5435805, 0.4179431, -3.7850058,
                  -4.821027],
                 [2.595695, 2.3088849, 2.0431218, -1.9552207, -3.8562834, -3.1556091, -3.9493105,
                  7.0205746],
                 [-2.8262086, 9.012862, -2.582074, 0.35634685, -3.2173681, -0.27762344, 1.3116659,
                  -1.2719636],
                 [3.5060422, -0.9716278, 0.007863429, -0.4882155, 2.494572, 1.7428129, -7.978106,
                  4.8368235],
                 [-0.22682153, 4.5350385, -5.3348055, -5.5848246, -0.7939903, 0.2773646, -5.2756577,
                  0.9857843],
                 [-4.5002036, 4.0663295, -5.974408, -5.1841474, -1.0941887, 1.1586485, 2.7565112,
                  -0.5350276],
                 [-1.4510766, -0.9410291, 0.2692923, -0.20823991, 6.3322663, 7.6899548, -0.7323675,
                  2.6274936],
                 [3.6152413, 7.569161, -1.4714503, -0.3976416, -0.15008108, -4.84658, -1.0893322,
                  3.5208197]]
            , dtype=torch.float32).requires_grad_(),
            "second": tensor(
                [[-2.3019063, -1.8587613, 2.902916, 3.0179825, 0.33579773, 4.6213603, -0.98124623,
                  0.26398432],
                 [1.2415028, 1.4317244, 5.138193, 0.18139362, -1.0350167, 1.6212342, 0.97490877,
                  -3.7571223],
                 [0.86494666, 5.2607293, 0.51310474, -0.66717726, -3.4045196, 2.5429382,
                  -0.74301934, 1.0246938],
                 [1.8905969, -0.10314299, 3.7169785, -0.38428265, -0.26601255, -5.3988795,
                  0.9896745, 1.0219847],
                 [-0.26352176, -1.5925336, -5.3565173, 1.184691, 0.73234516, 1.4784555, 1.1784071,
                  -3.4610672],
                 [0.17421812, -3.0585248, 5.5371633, -1.373283, -0.78409564, 0.90673614,
                  -0.40073392, 2.2940342],
                 [5.132272, 2.344781, 1.3938128, 1.1455064, 2.8760755, -2.047827, 0.47932646,
                  -1.0014468],
                 [2.8111598, -0.53098065, 0.6881589, -2.0882077, -0.8125956, 4.446089, -3.2548573,
                  -2.179523],
                 [-3.8406641, 1.5218971, 5.158751, -0.51882607, 0.380402, -0.53573966, 0.6644423,
                  1.992284],
                 [0.03169109, -0.40779638, -1.8123711, 0.28811207, 0.3778572, 4.2712793, 5.008674,
                  1.3351966],
                 [-1.3912559, 1.6625239, 0.030056108, 0.5708345, 1.7051609, 5.399718, -2.8932066,
                  -1.8247368],
                 [-3.0511189, 2.9284632, 1.7782182, 1.9858216, 3.0355945, 2.477289, 1.8711493,
                  2.2242758],
                 [0.0012831871, 1.1346985, -4.299729, 1.8203663, -0.018265242, 0.99384207,
                  -4.7665367, 1.4121947],
                 [-2.5187209, -2.985191, -2.6132455, -3.1807237, 1.5153905, -1.9399508, 3.2423804,
                  -0.13017029],
                 [4.556607, -0.74423623, -0.97233, -3.321784, 2.5161576, 2.6334388, 0.5811554,
                  1.3751915],
                 [1.1403329, 1.8063284, -2.118743, 2.704187, 0.9644363, -0.083815776, -3.9031353,
                  -4.031707],
                 [2.8813455, -2.297467, 0.38644037, -0.8917281, 1.7597563, -0.8270779, 0.86247,
                  -5.453576],
                 [-1.6972646, -2.271988, 4.355543, -0.468438, 0.8324429, 4.3917856, 1.2371985,
                  -0.21665566],
                 [-3.3940806, -0.24588877, 2.496078, -1.7055984, 0.71598524, -4.7001143, -2.337493,
                  0.06219343],
                 [-1.1822128, 1.8452413, 0.49451706, -1.6358888, 1.0582533, -4.2049613, -2.9277828,
                  3.7005994],
                 [2.533807, 0.02177808, 0.8392745, -1.1624122, -3.2287245, -0.49474728, 1.7596834,
                  -5.152573],
                 [-4.9690156, -1.942445, -0.29954588, 3.508605, 1.6836852, 1.040339, 1.5690476,
                  1.2441504],
                 [-1.2857583, 2.5261676, -4.849122, 2.928157, -0.4490176, 0.39654768, -1.1095723,
                  2.6605194],
                 [0.15329261, -0.7602448, 1.4770819, 1.6483989, -3.1624465, 4.3445325, 1.9100213,
                  3.281234]]
            , dtype=torch.float32).requires_grad_(),
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
            "contrastive_loss": ntxent_loss(first, second, 0.006666666666666667, rank, False, False, "exact"),
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


def launch() -> int:
    """Run this file once a rank; return the verdict that rank 0 writes down."""
    command, environment = start()
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "verdict")
        environment["VERDICT"] = str(note)
        ranks = subprocess.Popen([*command, __file__], env=environment, start_new_session=True)
        try:
            ranks.wait(SECONDS + 30)
        except subprocess.TimeoutExpired:
            print(f"no verdict in {SECONDS + 30} s")
        finally:
            if WORLD_SIZE > 1:
                ranks.terminate()  # the launcher then kills every rank and what it started
                ranks.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ranks.pid, signal.SIGKILL)
            ranks.wait(60)
        return int(note.read_text()) if note.exists() else 2


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


def launched() -> int:
    """Return the exit status: of a rank where this is one, else of all, in processes of their own."""
    place = os.environ.get("HOROVOD_RANK") or os.environ.get("RANK")
    if place is None:
        return launch()
    rank, note = int(place), Path(os.environ.get("VERDICT", os.devnull))
    if rank > 0:
        return verdict(rank)
    note.write_text("1")  # should this process not come back
    code = verdict(rank)
    note.write_text(str(code))
    return 0 if "VERDICT" in os.environ else code  # else a launcher reports a crash besides


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


def torchrun() -> tuple[list[str], dict[str, str]]:
    """Return torchrun's command, and its environment."""
    ranks = f"--nproc-per-node={WORLD_SIZE}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return command, environment


def over_gloo(target: Any, rank: int) -> list[Any]:
    """Return what every rank saw, over gloo."""
    import torch.distributed as dist  # not above: the command knows launchers before torch is imported

    dist.init_process_group("gloo", timeout=timedelta(seconds=0.8 * SECONDS))
    everyone: list[Any] = [None] * WORLD_SIZE
    dist.all_gather_object(everyone, act(target, rank))
    dist.destroy_process_group()
    return everyone


load, build, call, judge, decide, ready, start, gathered = load, construct, call_in_order, judge_gradient, by_judge, on_cpu, torchrun, over_gloo

if __name__ == "__main__":
    sys.exit(launched())