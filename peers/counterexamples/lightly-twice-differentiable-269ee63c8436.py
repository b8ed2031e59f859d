# verified-losses counterexample 269ee63c8436
"""lightly: "twice differentiable" does not hold in 2 ranks (ntxent, convention exact).

Falsified: rank 0, second derivative of first at [0, 0]: expected -0.818085237, observed
-0.86272322, error 0.0446 is 1.77e+06 times its bound

    python lightly-twice-differentiable-269ee63c8436.py

runs it again in 2 ranks over gloo, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

import contextlib
import faulthandler
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

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/lightly.py:NTXentLoss")
ARGUMENTS = {"convention": "exact", "local_loss": True, "gather_with_grad": True, "cache_labels": False, "temperature": 1.0}
WORLD_SIZE = 2
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
COTANGENTS = None
STEP = 0.0001  # of the finite differences
ALONG = [{"first": [[-0.4475715755713424, 0.23715193061217532]],
  "second": [[1.6814874973060678, -0.672259742140708]]},
 {"first": [[0.3489421377793183, 0.8767468561750622]],
  "second": [[0.48449818012000345, 2.3160228168253503]]}]  # how the inputs move
RANK = 0
WHERE = "rank 0, second derivative of first at [0, 0]"
NAME = "first"
INDEX = (0, 0)
BOUND = 2.526e-08  # how far rounding may take a right implementation, derived for these inputs


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


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return target(**accepted(target, {**ARGUMENTS, "rank": rank, "world_size": world_size}))


def gradients(loss, rank, offset):
    """Return what a rank is given, moved along ALONG, and the gradients there."""
    given = inputs()[rank]
    output_dict = False
    with torch.no_grad():
        for name, along in ALONG[rank].items():
            given[name] += offset * tensor(along, dtype=torch.float64)
    output = loss(*given.values())
    several = output if isinstance(output, tuple | list) else [output]
    terms = output if isinstance(output, dict) else dict(zip(TERMS, several, strict=False))
    live = {name: term for name, term in terms.items() if name in TERMS and term.requires_grad}
    weights = [torch.full_like(live[name], COTANGENTS[rank][name] if COTANGENTS else 1.0) for name in live]
    leaves = [given[name] for name in ALONG[rank]]
    derived = torch.autograd.grad(list(live.values()), leaves, weights, create_graph=True, materialize_grads=True)
    return leaves, derived


def act(target, rank):
    """Return how the gradient changes along ALONG: derived again, and as the gradient itself shows."""
    loss = build(target, rank)
    leaves, first = gradients(loss, rank, 0.0)
    along = [tensor(value, dtype=torch.float64) for value in ALONG[rank].values()]
    paired = sum((grad * value).sum() for grad, value in zip(first, along, strict=True))
    derived = [torch.zeros_like(leaf) for leaf in leaves]
    if paired.requires_grad:
        derived = torch.autograd.grad(paired, leaves, materialize_grads=True)
    after, before = gradients(loss, rank, STEP)[1], gradients(loss, rank, -STEP)[1]
    difference = [(a - b) / (2 * STEP) for a, b in zip(after, before, strict=True)]
    return {
        side: {name: value.detach().numpy() for name, value in zip(ALONG[rank], values, strict=True)}
        for side, values in (("expected", difference), ("observed", derived))
    }


def agree(expected, observed):
    """Print both sides; return whether they are as near as rounding allows."""
    expected, observed = float(expected), float(observed)
    error = abs(observed - expected)
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{BOUND:.3g}")
    return error <= BOUND


def judge(target, ranks):
    """Compare the two calls; return whether they agree."""
    return agree(ranks[RANK]["expected"][NAME][INDEX], ranks[RANK]["observed"][NAME][INDEX])


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
