# verified-losses counterexample 269ee63c8436
"""vissl: "twice differentiable" does not hold in 2 ranks (ntxent, convention exact).

Falsified: rank 0, second derivative of first at [0, 0]: expected -0.818085229, observed
-0.86272322, error 0.0446 is 8.66e+09 times its bound

    python vissl-twice-differentiable-269ee63c8436.py

runs it again in 2 ranks over gloo, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from dataclasses import dataclass
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

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/vissl.py:SimclrInfoNCELoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"convention": "exact", "local_loss": True, "gather_with_grad": True, "cache_labels": False, "temperature": 1.0}
WORLD_SIZE = 2
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
MOVES = [{"first": [[-0.4475715755713424, 0.23715193061217532]],
  "second": [[1.6814874973060678, -0.672259742140708]]},
 {"first": [[0.3489421377793183, 0.8767468561750622]],
  "second": [[0.48449818012000345, 2.3160228168253503]]}]  # how each rank's inputs move
WHERE = "rank 0, second derivative of first at [0, 0]"
RANK = 0
NAME = "first"
INDEX = (0, 0)
ALONG = None  # or a direction, instead of one element
EXPECTED = -0.8180852287656181  # what the oracle gives
BOUND = 5.153e-12  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "first": tensor([[0.0, 1.0]], dtype=torch.float64).requires_grad_(),
            "second": tensor([[0.0, 1.0]], dtype=torch.float64).requires_grad_(),
        },
        {
            "first": tensor([[1.0, 0.0]], dtype=torch.float64).requires_grad_(),
            "second": tensor([[1.0, 0.0]], dtype=torch.float64).requires_grad_(),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, output_dict=False),
    ]
    return derive_twice(calls, MOVES)


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


def to_array(value: torch.Tensor) -> Array:
    """Return the values as float64, wherever the tensor is."""
    return value.detach().double().cpu().numpy()


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


def judge_derived_twice(target: Any, ranks: list[dict[str, Array]]) -> bool:
    """Compare one rank's second derivative, or the mean over ranks, with what is expected."""
    chosen = ranks if RANK is None else [ranks[RANK]]
    return agree(EXPECTED, np.mean([component(seen[NAME]) for seen in chosen]))


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


load, build, call, judge, decide, ready, start, gathered = load_alone, construct, call_in_order, judge_derived_twice, by_judge, on_cpu, torchrun, over_gloo

if __name__ == "__main__":
    sys.exit(launched())