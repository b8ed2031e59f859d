# verified-losses counterexample f8fadf377933
"""exchange-two: "terms equal the oracle" does not hold in 2 ranks (exchange, convention exact).

Falsified: rank 0, received at [0, 0]: expected -0.75, observed -0.5, error 0.25 is inf times its
bound

    python exchange-two-terms-equal-the-oracle-f8fadf377933.py

runs it again in 2 ranks over gloo, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

import contextlib
import faulthandler
import functools
import importlib
import importlib.util
import inspect
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import tensor

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:neighbour_exchange_bidir_with_grad")
ARGUMENTS = {"bidirectional": True}
WORLD_SIZE = 2
TERMS = ("received", "received_from_left")
SECONDS = 60  # how long it may run
RANK = 0
WHERE = "rank 0, received at [0, 0]"
NAME = "received"
INDEX = (0, 0)
BOUND = 0.0  # nothing may be rounded


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor([[0.75]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[-0.75]], dtype=torch.float64).requires_grad_(),
        },
        {
            "image_features": tensor([[-0.75]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[-0.5]], dtype=torch.float64).requires_grad_(),
        },
    ]


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return functools.partial(target, (rank - 1) % world_size, (rank + 1) % world_size)


def run(loss, given, output_dict=True, cotangents=None):
    """Call the loss and derive it; return its terms and the gradients of what it was given."""
    output = loss(*given.values())
    several = output if isinstance(output, tuple | list) else [output]
    terms = output if isinstance(output, dict) else dict(zip(TERMS, several, strict=False))
    live = {name: term for name, term in terms.items() if name in TERMS and term.requires_grad}
    weights = [tensor(cotangents[name]) if cotangents else torch.ones(term.shape) for name, term in live.items()]
    weights = [weight.to(term.dtype) for weight, term in zip(weights, live.values(), strict=True)]
    if live:
        torch.autograd.backward(list(live.values()), weights)
    seen = {name: term.detach().double().numpy() for name, term in terms.items() if name in TERMS}
    for name, value in given.items():
        seen[f"gradient of {name}"] = None if value.grad is None else value.grad.double().numpy()
    return seen


def act(target, rank):
    """Return what a rank sees."""
    return run(build(target, rank), inputs()[rank], output_dict=False)


def agree(expected, observed):
    """Print both sides; return whether they are as near as rounding allows."""
    expected, observed = float(expected), float(observed)
    error = abs(observed - expected)
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{BOUND:.3g}")
    return error <= BOUND


def judge(target, ranks):
    """Compare one element of one rank's term with the oracle's; return whether they agree."""
    expected = np.asarray(oracle(values(inputs()))[RANK][NAME]).real[INDEX]
    return agree(expected, ranks[RANK][NAME][INDEX])


# What is right, in NumPy: derivatives are taken by complex steps, exact to rounding.

Array = np.ndarray


def neighbour_exchange_bidir(
    tensors_to_left: list[Array], tensors_to_right: list[Array]
) -> list[tuple[Array, Array]]:
    """Return what each rank receives from its right and from its left neighbour in the ring."""
    world_size = len(tensors_to_left)
    return [
        (tensors_to_left[(rank + 1) % world_size], tensors_to_right[(rank - 1) % world_size])
        for rank in range(world_size)
    ]


def values(ranks):
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: v.detach().double().numpy() if v.is_floating_point() else v.numpy() for k, v in given.items()}
        for given in ranks
    ]


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    image_features, text_features = (
        [one[name] for one in given] for name in ["image_features", "text_features"]
    )
    return [
        {
            "received": neighbour_exchange_bidir(image_features, text_features)[rank][0],
            "received_from_left": neighbour_exchange_bidir(image_features, text_features)[rank][1],
        }
        for rank in range(len(given))
    ]


# How it is run.


def accepted(target, arguments):
    """Return those of `arguments` that `target` takes."""
    if getattr(target, "__init__", None) is torch.nn.Module.__init__:
        return {}  # its signature takes all, and it refuses each
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def find_target():
    """Import TARGET, seen from the current folder or from the one that this file was written from."""
    place, _, name = TARGET.rpartition(":")
    folders = [Path.cwd(), Path(__file__).resolve().parent / "../.."]
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    file = next((folder / place for folder in folders if (folder / place).exists()), Path(place))
    sys.path.append(str(file.resolve().parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location("target", file)
    sys.modules["target"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def launch():
    """Run this file under torchrun, once a rank; return the verdict that rank 0 writes down."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD_SIZE}"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder, "verdict")
        environment["VERDICT"] = str(verdict)
        ranks = subprocess.Popen([*command, __file__], env=environment, start_new_session=True)
        try:
            ranks.wait(SECONDS + 30)
        except subprocess.TimeoutExpired:
            print(f"no verdict in {SECONDS + 30} s")
        finally:
            ranks.terminate()  # torchrun then kills every rank and what it started
            ranks.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ranks.pid, signal.SIGKILL)
            ranks.wait(60)
        return int(verdict.read_text()) if verdict.exists() else 2


def verdict(rank):
    """Run one rank; return 0 where the law holds, 1 where it does not, 2 where that cannot be seen."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # whoever hangs says where
    try:
        target = find_target()
    except BaseException:
        traceback.print_exc()
        return 2
    dist.init_process_group("gloo", timeout=timedelta(seconds=0.8 * SECONDS))
    everyone = [None] * WORLD_SIZE
    dist.all_gather_object(everyone, act(target, rank))
    dist.destroy_process_group()
    if rank > 0:
        return 0
    return 0 if judge(target, everyone) else 1


def main():
    """Return the exit status."""
    if "RANK" not in os.environ:
        return launch()
    rank, note = int(os.environ["RANK"]), Path(os.environ.get("VERDICT", os.devnull))
    if rank > 0:
        return verdict(rank)
    note.write_text("1")  # should this process not come back
    code = verdict(rank)
    note.write_text(str(code))
    return 0 if "VERDICT" in os.environ else code  # else torchrun reports a crash besides


if __name__ == "__main__":
    sys.exit(main())
