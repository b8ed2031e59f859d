# verified-losses counterexample 3abb26a8ddb9
"""clip-uneven: "terms equal the oracle" does not hold in 2 ranks (clip, convention exact).

WorldError: world processes:2: not every rank returned
rank 0 hung:
no answer in the 3 s after rank 1 failed
Current thread 0x00007fe6c9838b80 (most recent call first):
  File ".venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 4287 in
all_gather
  File ".venv/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "build/peers/open_clip/loss.py", line 56 in gather_features
  File "build/peers/open_clip/loss.py", line 106 in get_logits
  File "build/peers/open_clip/loss.py", line 141 in forward
  File ".venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1789 in _call_impl
  File ".venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1778 in
_wrapped_call_impl
  File "verified_losses/properties/contracts/__init__.py", line 65 in call_by_name
  File "verified_losses/properties/contracts/__init__.py", line 352 in call
  File "verified_losses/properties/running.py", line 207 in <lambda>
  File "verified_losses/properties/running.py", line 230 in <lambda>
  File "verified_losses/properties/standalone/acts.py", line 105 in run
  File "verified_losses/properties/standalone/acts.py", line 139 in <listcomp>
  File "verified_losses/properties/standalone/acts.py", line 139 in run_each
  File "verified_losses/properties/running.py", line 171 in perform
  File "verified_losses/properties/laws/__init__.py", line 219 in _preserving
rank 1 killed:
SIGABRT
terminate called after throwing an instance of 'gloo::EnforceNotMet'
  what():  [enforce fail at /__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:456]
op.preamble.length <= op.nbytes. 12 vs 8. Received data size doesn't match expected size. Is there a
distributed collective mismatch in your code?
Thread 0x00007fe6c9838b80 (most recent call first):
  File ".venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 4287 in
all_gather
  File ".venv/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "build/peers/open_clip/loss.py", line 56 in gather_features
  File "build/peers/open_clip/loss.py", line 106 in get_logits
  File "build/peers/open_clip/loss.py", line 141 in forward
  File ".venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1789 in _call_impl
  File ".venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1778 in
_wrapped_call_impl
  File "verified_losses/properties/contracts/__init__.py", line 65 in call_by_name
  File "verified_losses/properties/contracts/__init__.py", line 352 in call
  File "verified_losses/properties/running.py", line 207 in <lambda>
  File "verified_losses/properties/running.py", line 230 in <lambda>
  File "verified_losses/properties/standalone/acts.py", line 105 in run
  File "verified_losses/properties/standalone/acts.py", line 139 in <listcomp>
  File "verified_losses/properties/standalone/acts.py", line 139 in run_each
  File "verified_losses/properties/running.py", line 171 i
[...]

    python clip-uneven-terms-equal-the-oracle-3abb26a8ddb9.py

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
import os
import signal
import subprocess
import sys
import tempfile
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:ClipLoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"convention": "exact", "local_loss": False, "gather_with_grad": False, "cache_labels": False}
WORLD_SIZE = 2
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor([[1.0], [1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0], [1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
        },
        {
            "image_features": tensor([[1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, output_dict=False),
        called(target, rank, inputs, mode="inference", output_dict=False),
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


def judge_nothing(target: Any, ranks: list[Any]) -> bool:
    """Every rank returned, which is all that was asked."""
    print("every rank returned")
    return True


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


load, build, call, judge, decide, ready, start, gathered = load_alone, construct, call_by_name, judge_nothing, by_judge, on_cpu, torchrun, over_gloo

if __name__ == "__main__":
    sys.exit(launched())