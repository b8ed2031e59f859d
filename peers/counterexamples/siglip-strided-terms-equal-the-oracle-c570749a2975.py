# verified-losses counterexample c570749a2975
"""siglip-strided: "terms equal the oracle" does not hold in 2 ranks (siglip, convention exact).

WorldError: world processes:2: not every rank returned
rank 0 raised:
Traceback (most recent call last):
  File "properties/laws/__init__.py", line 98, in _preserving
    return function(rank, world_size, *arguments)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/subjects.py", line 219, in run_steps
    outcomes.append(_run_step(rank, contract, call, step))
                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/subjects.py", line 229, in _run_step
    output = contract.call(loss, tensors, case, rank)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/contracts/siglip.py", line 36, in call
    return super().call(loss, accepted(entry(loss), {"logit_bias": None}) | tensors, case, rank)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/contracts/__init__.py", line 154, in call
    return loss(**tensors, **asked)
           ^^^^^^^^^^^^^^^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/nn/modules/module.py", line 1778, in _wrapped_call_impl
    return self._call_impl(*args, **kwargs)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/nn/modules/module.py", line 1789, in _call_impl
    return forward_call(*args, **kwargs)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "build/peers/open_clip/loss.py", line 408, in forward
    text_features_recv = neighbour_exchange_with_grad(
                         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "build/peers/open_clip/loss.py", line 309, in neighbour_exchange_with_grad
    return NeighbourExchange.apply(from_rank, to_rank, group, tensor)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/autograd/function.py", line 625, in apply
    return super().apply(*args, **kwargs)  # type: ignore[misc]
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "build/peers/open_clip/loss.py", line 301, in forward
    return neighbour_exchange(from_rank, to_rank, tensor, group=group)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "build/peers/open_clip/loss.py", line 256, in neighbour_exchange
    reqs = torch.distributed.batch_isend_irecv([send_op, recv_op])
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3065, in
batch_isend_irecv
    work = p2p_op.op(
           ^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 2652, in isend
    return group.send([tensor], group_dst, tag)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: input tensor has to be contiguous

rank 1 raised:
Traceback (most recent call last):
  File "properties/laws/__init__.py", line 98, in _preserving
    return function(rank, world_size, *arguments)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/subjects.py", line 219, in run_s
[...]

    python siglip-strided-terms-equal-the-oracle-c570749a2975.py

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

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:SigLipLoss")
ARGUMENTS = {"dist_impl": "bidir"}
WORLD_SIZE = 2
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run


def transposed(value):
    """Return the same values, the first dimension's next to one another."""
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": transposed(tensor(
                [[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
            , dtype=torch.float64)).requires_grad_(),
            "text_features": transposed(tensor(
                [[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
            , dtype=torch.float64)).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
        },
        {
            "image_features": transposed(tensor(
                [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
            , dtype=torch.float64)).requires_grad_(),
            "text_features": transposed(tensor(
                [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
            , dtype=torch.float64)).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
        },
    ]


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return target(**accepted(target, {**ARGUMENTS, "rank": rank, "world_size": world_size}))


def run(loss, given, output_dict=True, cotangents=None):
    """Call the loss and derive it; return its terms and the gradients of what it was given."""
    output = loss(**(accepted(getattr(loss, "forward", loss), {"logit_bias": None}) | given), **({"output_dict": True} if output_dict else {}))
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
    return run(build(target, rank), inputs()[rank])


def judge(target, ranks):
    """Every rank returned, which is all that was asked."""
    print("every rank returned")
    return True


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
