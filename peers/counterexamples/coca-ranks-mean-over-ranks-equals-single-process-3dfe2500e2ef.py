# verified-losses counterexample 3dfe2500e2ef
"""coca-ranks: "mean over ranks equals single process" does not hold in 2 ranks (coca, convention exact).

Falsified: mean over ranks of caption_loss: expected 2.80503239, observed 2.63255384, error 0.172 is
9.8e+12 times its bound

    python coca-ranks-mean-over-ranks-equals-single-process-3dfe2500e2ef.py

runs it again in 2 ranks over gloo, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from datetime import timedelta
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
import signal
import subprocess
import sys
import tempfile
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:CoCaLoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"convention": "exact", "local_loss": False, "gather_with_grad": True, "cache_labels": False, "clip_loss_weight": 1.0, "caption_loss_weight": 1.0, "pad_id": 0}
WORLD_SIZE = 2
TERMS = ("contrastive_loss", "caption_loss")
SECONDS = 60  # how long it may run
WHERE = "mean over ranks of caption_loss"
KIND = "term"
NAME = "caption_loss"
INDEX = ()
ALONG = None  # or a direction, instead of one element
IS_SHARED = False  # by all ranks
BOUND = 1.76e-14  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
            "logits": tensor(
                [[[-1.437474190603468, -0.41498570156201836, -1.3429932002933656,
                   -0.5612417633487172, -0.11245475944710084, 0.434955162378588,
                   -0.3932261450167265, -2.4819616624778633, 1.0882316170328357, -1.173387133611585,
                   -1.1385332582320529, -1.1421379031508176, -0.5847339288317824],
                  [-0.9424191735519263, 1.8542416703210043, -1.378607097405267, -0.5150593573061265,
                   0.516416684533311, -0.506325935482659, -1.099723884709927, -0.0919422661857749,
                   0.03825574083694852, 0.30842422294782085, -0.3709689244248676,
                   -0.0746297656576892, 0.10410953637850275],
                  [-0.1304071057985209, 1.7417888940067643, 0.07082225320245655, 0.977678739189777,
                   0.5123654627180212, -0.7558895525617629, -0.5888510988403335, 0.3338096983377953,
                   -0.9656306008541534, 0.18966650308556623, -1.4766851623453592,
                   -0.5629630937279242, 0.6751347146842207],
                  [1.9038992820530598, 1.2587439210683449, 0.7669059406496302, -0.981388893098406,
                   2.0553292775923375, 0.07113488670577854, -0.5756057039853706, 0.7701435512321733,
                   1.9245764881942982, -2.200522683031332, 0.9357793022797145, -0.8887270866658383,
                   -0.07417900972330738],
                  [-0.4102874719524602, -0.2781083563112876, -1.0941556151121565,
                   0.4882673719442173, -0.25184644348934354, -0.24928107921740278,
                   0.1367664982577423, -0.3122476208745981, 0.2846844405387314, 1.0229402046012,
                   0.9589781598775821, 1.7577865805767199, -0.07879582793307527],
                  [1.5659807424912038, -1.4571476652283915, -0.8377658784405264,
                   0.13945671981607147, 2.482037565288735, 0.11464164381002394, -1.0542382797727086,
                   0.48157640174170285, -1.429372330586518, 1.9792672503034883, -0.5844167868166384,
                   -0.4462260329145844, 1.4434931782649265],
                  [1.7705142227689052, 0.6504720058416823, -1.643549514611217, 0.726684010971164,
                   0.3278727191157403, -0.6487674542122477, -1.455753344290854, 0.9560853025707939,
                   -0.29864358463812163, -1.0579423011485367, 0.40630539362653245,
                   1.4336700102686752, 0.16229078478207187],
                  [-0.07320784207014332, -0.07964393460962046, -0.5601552509194999,
                   -1.0249011230484826, -0.7249833215743609, -2.1516481182477554,
                   -0.05503742829682057, -1.1663680524349276, -0.6745633179013902,
                   0.1327543698397784, -0.551413626806318, 0.7556980005582635, 0.0821489578722191],
                  [-1.4288479655103994, 2.1892918264267607, -2.722527633813804, 1.2734184216745537,
                   -0.32389871630564787, -1.0676090929734263, 0.6506101851407836,
                   -0.9722532738830624, 1.2271425893571233, -1.7432454201016203, 0.6936602355945267,
                   0.8392502287706138, -2.319441798765502]]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor([[1, 11, 5, 8, 6, 2, 12, 4, 0]]),
        },
        {
            "image_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
            "logits": tensor(
                [[[-1.2593286275288138, 1.6844457896671783, 1.1069645770760586,
                   -0.23458957918544487, 0.6075640972972498, -0.6901690781693292,
                   -0.38725426880283875, -0.07815640920659872, -1.564768802517044,
                   -1.7918479388896151, 0.35667987934536644, -1.6430598515843955,
                   -0.3473752983805451],
                  [0.40753673329227197, -0.6608710991822963, -1.8485013414068847,
                   -0.07113721362095382, 2.593180213416728, -0.7094613930027268,
                   -2.4986653821996447, -1.3111108849927702, 2.021990356616581, -0.5308101461816572,
                   -0.824630969796167, -1.6379275297986446, -0.9127325520813776],
                  [0.6861299637483453, 0.4143090113278386, -1.3566794458486235, -0.6392396843620244,
                   -0.7809233920649431, -0.584417391128577, 1.5385784636896769, -0.5555956072394556,
                   0.08603046152853655, 1.9019722060135487, -1.612198317469103, 0.2584611453132325,
                   -0.6884264812538857],
                  [-0.41915722214258583, 1.354879945903282, 0.9248665282880081, 0.7397978978972287,
                   -3.246403505253782, 0.5322482168527616, -0.2752092715092071, -2.5043652503019347,
                   0.27630979829301855, -0.6761008112361576, -0.8712162307678151,
                   -2.1002674833485897, -0.39055595885390104],
                  [-0.34544804973443893, -1.4219378638361544, -0.49786072272231224,
                   -1.0928899398011072, -0.46488920582995646, -1.2933793228617523,
                   1.6650094412230798, -0.2854296130321572, 0.3395121685659076, -0.5776103961687683,
                   0.03337993190521661, -0.050152795047431295, -0.579096402899114],
                  [-1.4350561557395425, -0.925597457889421, 0.42474023472483236, 0.1446598651091309,
                   -0.809678270040252, 1.3442488278526425, -1.8406996383106808,
                   0.013522465726077723, -0.8571620565082557, -0.2592053677696639,
                   1.1211948787826944, -1.2157631095861483, 1.6950525085997126],
                  [0.1757514565058946, -1.4648127083854932, 1.02160819770032, -0.638780057920523,
                   1.1892355742499943, -0.7229987060181354, 0.10869157305961391,
                   -0.6075162291297869, -0.02906815473917596, -1.2162719141611527,
                   -1.1205311505972773, -0.18945242797513234, 1.9781990604865687],
                  [-0.5701938580079955, -1.524045401910883, 1.2426326302741513, -0.6283207767047524,
                   0.1410725026612336, 2.0169157568072045, -0.5709412257768761,
                   -0.043166209941965204, 0.8105533434419516, -1.973253626825148,
                   -0.7938166195553574, -1.266136702372277, -1.7875631316608498],
                  [1.280075279582485, -1.7296783928166775, -1.9379938265826782, 0.3107966170815252,
                   -0.11664449453128316, -1.4309140855807605, 0.030410745820360477,
                   0.24833789531418488, 0.01753740847949662, 0.9189073266249943, -1.390058011475555,
                   0.3935752512788038, 0.2446254818206797]]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor([[1, 12, 6, 0, 0, 0, 0, 0, 0]]),
        },
    ]


def whole():
    """Return the whole batch on one rank."""
    return [
        {
            "image_features": tensor([[1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
            "logits": tensor(
                [[[-1.437474190603468, -0.41498570156201836, -1.3429932002933656,
                   -0.5612417633487172, -0.11245475944710084, 0.434955162378588,
                   -0.3932261450167265, -2.4819616624778633, 1.0882316170328357, -1.173387133611585,
                   -1.1385332582320529, -1.1421379031508176, -0.5847339288317824],
                  [-0.9424191735519263, 1.8542416703210043, -1.378607097405267, -0.5150593573061265,
                   0.516416684533311, -0.506325935482659, -1.099723884709927, -0.0919422661857749,
                   0.03825574083694852, 0.30842422294782085, -0.3709689244248676,
                   -0.0746297656576892, 0.10410953637850275],
                  [-0.1304071057985209, 1.7417888940067643, 0.07082225320245655, 0.977678739189777,
                   0.5123654627180212, -0.7558895525617629, -0.5888510988403335, 0.3338096983377953,
                   -0.9656306008541534, 0.18966650308556623, -1.4766851623453592,
                   -0.5629630937279242, 0.6751347146842207],
                  [1.9038992820530598, 1.2587439210683449, 0.7669059406496302, -0.981388893098406,
                   2.0553292775923375, 0.07113488670577854, -0.5756057039853706, 0.7701435512321733,
                   1.9245764881942982, -2.200522683031332, 0.9357793022797145, -0.8887270866658383,
                   -0.07417900972330738],
                  [-0.4102874719524602, -0.2781083563112876, -1.0941556151121565,
                   0.4882673719442173, -0.25184644348934354, -0.24928107921740278,
                   0.1367664982577423, -0.3122476208745981, 0.2846844405387314, 1.0229402046012,
                   0.9589781598775821, 1.7577865805767199, -0.07879582793307527],
                  [1.5659807424912038, -1.4571476652283915, -0.8377658784405264,
                   0.13945671981607147, 2.482037565288735, 0.11464164381002394, -1.0542382797727086,
                   0.48157640174170285, -1.429372330586518, 1.9792672503034883, -0.5844167868166384,
                   -0.4462260329145844, 1.4434931782649265],
                  [1.7705142227689052, 0.6504720058416823, -1.643549514611217, 0.726684010971164,
                   0.3278727191157403, -0.6487674542122477, -1.455753344290854, 0.9560853025707939,
                   -0.29864358463812163, -1.0579423011485367, 0.40630539362653245,
                   1.4336700102686752, 0.16229078478207187],
                  [-0.07320784207014332, -0.07964393460962046, -0.5601552509194999,
                   -1.0249011230484826, -0.7249833215743609, -2.1516481182477554,
                   -0.05503742829682057, -1.1663680524349276, -0.6745633179013902,
                   0.1327543698397784, -0.551413626806318, 0.7556980005582635, 0.0821489578722191],
                  [-1.4288479655103994, 2.1892918264267607, -2.722527633813804, 1.2734184216745537,
                   -0.32389871630564787, -1.0676090929734263, 0.6506101851407836,
                   -0.9722532738830624, 1.2271425893571233, -1.7432454201016203, 0.6936602355945267,
                   0.8392502287706138, -2.319441798765502]],
                 [[-1.2593286275288138, 1.6844457896671783, 1.1069645770760586,
                   -0.23458957918544487, 0.6075640972972498, -0.6901690781693292,
                   -0.38725426880283875, -0.07815640920659872, -1.564768802517044,
                   -1.7918479388896151, 0.35667987934536644, -1.6430598515843955,
                   -0.3473752983805451],
                  [0.40753673329227197, -0.6608710991822963, -1.8485013414068847,
                   -0.07113721362095382, 2.593180213416728, -0.7094613930027268,
                   -2.4986653821996447, -1.3111108849927702, 2.021990356616581, -0.5308101461816572,
                   -0.824630969796167, -1.6379275297986446, -0.9127325520813776],
                  [0.6861299637483453, 0.4143090113278386, -1.3566794458486235, -0.6392396843620244,
                   -0.7809233920649431, -0.584417391128577, 1.5385784636896769, -0.5555956072394556,
                   0.08603046152853655, 1.9019722060135487, -1.612198317469103, 0.2584611453132325,
                   -0.6884264812538857],
                  [-0.41915722214258583, 1.354879945903282, 0.9248665282880081, 0.7397978978972287,
                   -3.246403505253782, 0.5322482168527616, -0.2752092715092071, -2.5043652503019347,
                   0.27630979829301855, -0.6761008112361576, -0.8712162307678151,
                   -2.1002674833485897, -0.39055595885390104],
                  [-0.34544804973443893, -1.4219378638361544, -0.49786072272231224,
                   -1.0928899398011072, -0.46488920582995646, -1.2933793228617523,
                   1.6650094412230798, -0.2854296130321572, 0.3395121685659076, -0.5776103961687683,
                   0.03337993190521661, -0.050152795047431295, -0.579096402899114],
                  [-1.4350561557395425, -0.925597457889421, 0.42474023472483236, 0.1446598651091309,
                   -0.809678270040252, 1.3442488278526425, -1.8406996383106808,
                   0.013522465726077723, -0.8571620565082557, -0.2592053677696639,
                   1.1211948787826944, -1.2157631095861483, 1.6950525085997126],
                  [0.1757514565058946, -1.4648127083854932, 1.02160819770032, -0.638780057920523,
                   1.1892355742499943, -0.7229987060181354, 0.10869157305961391,
                   -0.6075162291297869, -0.02906815473917596, -1.2162719141611527,
                   -1.1205311505972773, -0.18945242797513234, 1.9781990604865687],
                  [-0.5701938580079955, -1.524045401910883, 1.2426326302741513, -0.6283207767047524,
                   0.1410725026612336, 2.0169157568072045, -0.5709412257768761,
                   -0.043166209941965204, 0.8105533434419516, -1.973253626825148,
                   -0.7938166195553574, -1.266136702372277, -1.7875631316608498],
                  [1.280075279582485, -1.7296783928166775, -1.9379938265826782, 0.3107966170815252,
                   -0.11664449453128316, -1.4309140855807605, 0.030410745820360477,
                   0.24833789531418488, 0.01753740847949662, 0.9189073266249943, -1.390058011475555,
                   0.3935752512788038, 0.2446254818206797]]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor(
                [[1, 11, 5, 8, 6, 2, 12, 4, 0], [1, 12, 6, 0, 0, 0, 0, 0, 0]]
            ),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, output_dict=False),
    ]
    return run_each(calls)


def act_alone(target):
    """Return what one process sees."""
    return run_each([called(target, 0, whole, output_dict=False, world_size=1)])


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


def mean_over_ranks(parts: list[Array], is_shared: bool) -> Array:
    """Return the mean of what each rank gives something shared, or each rank's rows."""
    # a shared encoder averages what reaches it from every rank: each row counts 1/W
    return np.mean(parts, axis=0) if is_shared else np.concatenate(parts) / len(parts)


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


def of_whole() -> float:
    """Return what the oracle gives for the whole batch on one rank."""
    given = values(whole())
    if KIND == "term":
        return float(np.real(oracle(given)[0][NAME]))
    along = direction(given[0][NAME].shape)
    return derivative(lambda moved: total(oracle(moved), None), given, 0, NAME, along)


def part(seen: Outcome) -> Array | None:
    """Return the term, or the gradient, that is compared."""
    return (seen.gradients if KIND == "gradient" else seen.terms)[NAME]


def judge_mean(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare the mean over ranks with one process that has the whole batch."""
    single, everyone = act_alone(target)[0], [outcomes[0] for outcomes in ranks]
    expected = component(part(single))
    if KIND == "term":
        mean = np.mean([seen.terms[NAME] for seen in everyone])
    else:
        pairs = zip(inputs(), map(part, everyone), strict=True)
        parts = [np.zeros(own[NAME].shape) if value is None else value for own, value in pairs]
        mean = mean_over_ranks(parts, IS_SHARED)[INDEX]
    by_numpy = "" if oracle is None else f", and in NumPy {of_whole()!r}"
    print(f"the whole batch in one process gives {float(expected)!r}{by_numpy}")
    return agree(expected, mean)


# The oracle, in NumPy: derivatives are taken by complex steps, exact to rounding.


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    image_features, text_features, logit_scale, logits, labels = (
        [one[name] for one in given] for name in ["image_features", "text_features", "logit_scale", "logits", "labels"]
    )
    return [
        {
            "contrastive_loss": coca_loss((image_features, text_features, logit_scale, [0.0] * 1), logits, labels, rank, False, True, "exact", 1.0, 1.0, 0)[0],
            "caption_loss": coca_loss((image_features, text_features, logit_scale, [0.0] * 1), logits, labels, rank, False, True, "exact", 1.0, 1.0, 0)[1],
        }
        for rank in range(len(given))
    ]


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


def add_up(values: list[Array], counts: list[int]) -> complex:
    """Return the sum of all elements of all values."""
    parts = [np.sum(one) for one in values]
    result: complex = sum(parts[1:], start=parts[0])
    return result


def mean_over_tokens(
    losses: list[Any], labels: list[Array], rank: int, pad_id: int, convention: str
) -> complex:
    """Return what the tokens of `rank` cost, in parts to add up, by the number of tokens that counts."""
    tokens = [int(np.count_nonzero(ids != pad_id)) for ids in labels]
    divisor = sum(tokens) / len(tokens) if convention == "exact" else tokens[rank]
    loss: complex = add_up(losses, tokens) / divisor
    return loss


def caption_loss(
    logits: list[Array], labels: list[Array], rank: int, pad_id: int = 0, convention: str = "exact"
) -> complex:
    """Return the caption loss of `rank`, unweighted."""
    is_token = labels[rank] != pad_id
    if not is_token.any():
        return 0.0
    losses = [cross_entropy(logits[rank][is_token], labels[rank][is_token])]
    return mean_over_tokens(losses, labels, rank, pad_id, convention)


def get_ground_truth(rows: list[int], rank: int, local_loss: bool) -> Array:
    """Return the column of each row's partner; `rows` are how many each rank holds."""
    if not local_loss:
        return np.arange(sum(rows))
    return sum(rows[:rank]) + np.arange(rows[rank])


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


def scaled_product(x: Array, y: Array, scale: Array, bias: Array) -> Array:
    """Return scale times the products of [n, d] rows with [m, d] rows, plus bias, [n, m]."""
    logits: Array = scale * x @ y.T + bias
    return logits


def get_logits(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: Array,
    logit_bias: Array,
    rank: int,
    local_loss: bool,
    gather_with_grad: bool,
    convention: str,
) -> tuple[Array, Array]:
    """Return logits per image and per text on `rank`: its rows, or all, against all."""
    all_image = gather_features(image_features, rank, local_loss, gather_with_grad, convention)
    all_text = gather_features(text_features, rank, local_loss, gather_with_grad, convention)
    image = image_features[rank] if local_loss else all_image
    text = text_features[rank] if local_loss else all_text
    return (
        scaled_product(image, all_text, logit_scale, logit_bias),
        scaled_product(text, all_image, logit_scale, logit_bias),
    )


def row_weight(rows: list[int], local_loss: bool) -> float:
    """Return the weight of one row, W/N or 1/N: the mean over ranks is the mean over all rows."""
    return (len(rows) if local_loss else 1) / sum(rows)


def clip_loss(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: list[Array],
    logit_bias: list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
) -> complex:
    """Return the loss of `rank`, given every rank's [n_r, d] features and its own scale and bias."""
    rows = [len(features) for features in image_features]
    per_image, per_text = get_logits(
        image_features, text_features, logit_scale[rank], logit_bias[rank],
        rank, local_loss, gather_with_grad, convention,
    )
    labels = get_ground_truth(rows, rank, local_loss)
    losses = [cross_entropy(per_image, labels), cross_entropy(per_text, labels)]
    loss: complex = add_up(losses, rows) * row_weight(rows, local_loss) / 2
    return loss


def coca_loss(
    features: tuple[list[Array], list[Array], list[Array], list[Array]],
    logits: list[Array],
    labels: list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
    clip_loss_weight: float = 1.0,
    caption_loss_weight: float = 2.0,
    pad_id: int = 0,
) -> tuple[complex, complex]:
    """Return the contrastive and the caption loss of `rank`, each times its weight."""
    contrastive: complex = 0.0
    caption: complex = 0.0
    if clip_loss_weight:
        flags = (local_loss, gather_with_grad, convention)
        contrastive = clip_loss_weight * clip_loss(*features, rank, *flags)
    if caption_loss_weight:
        caption = caption_loss_weight * caption_loss(logits, labels, rank, pad_id, convention)
    return contrastive, caption


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


load, build, call, judge, decide, ready, start, gathered = load_alone, construct, call_by_name, judge_mean, by_judge, on_cpu, torchrun, over_gloo

if __name__ == "__main__":
    sys.exit(launched())