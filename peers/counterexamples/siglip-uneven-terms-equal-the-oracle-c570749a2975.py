# verified-losses counterexample c570749a2975
"""siglip-uneven: "terms equal the oracle" does not hold in 2 ranks (siglip, convention exact).

WorldError: world processes:2: not every rank returned
rank 0 killed:
SIGABRT
terminate called after throwing an instance of 'gloo::EnforceNotMet'
  what():  [enforce fail at /__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:456]
op.preamble.length <= op.nbytes. 224 vs 192. Received data size doesn't match expected size. Is
there a distributed collective mismatch in your code?
Thread 0x00007f2231647b80 (most recent call first):
  File "build/peers/open_clip/loss.py", line 258 in neighbour_exchange
  File "build/peers/open_clip/loss.py", line 301 in forward
  File ".venv/lib/python3.11/site-packages/torch/autograd/function.py", line 625 in apply
  File "build/peers/open_clip/loss.py", line 309 in neighbour_exchange_with_grad
  File "build/peers/open_clip/loss.py", line 408 in forward
  File ".venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1789 in _call_impl
  File ".venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1778 in
_wrapped_call_impl
  File "properties/contracts/__init__.py", line 146 in call
  File "properties/contracts/siglip.py", line 36 in call
  File "properties/subjects.py", line 221 in _run_step
  File "properties/subjects.py", line 211 in run_steps
  File "properties/laws/__init__.py", line 98 in _preserving
rank 1 raised:
Traceback (most recent call last):
  File "properties/laws/__init__.py", line 98, in _preserving
    return function(rank, world_size, *arguments)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/subjects.py", line 211, in run_steps
    outcomes.append(_run_step(rank, contract, call, step))
                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/subjects.py", line 232, in _run_step
    backward(rank, contract, case, terms)
  File "properties/subjects.py", line 262, in backward
    torch.autograd.backward(
  File ".venv/lib/python3.11/site-packages/torch/autograd/__init__.py", line 395, in backward
    _engine_run_backward(
  File ".venv/lib/python3.11/site-packages/torch/autograd/graph.py", line 979, in
_engine_run_backward
    return Variable._execution_engine.run_backward(  # Calls into the C++ engine to run the backward
pass
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File ".venv/lib/python3.11/site-packages/torch/autograd/function.py", line 325, in apply
    return user_fn(self, *args)
           ^^^^^^^^^^^^^^^^^^^^
  File "build/peers/open_clip/loss.py", line 305, in backward
    return (None, None, None) + (NeighbourExchange.apply(ctx.to_rank, ctx.from_rank, ctx.group,
grad_output),)
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File ".venv/lib/python3.11/site-packages/torch/autograd/function.py", line 625, in apply
    return super().apply(*args, **kwargs)  # type: ignore[misc]
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "build/peers/open_clip/loss.py", line 301, in forward
    re
[...]

    python siglip-uneven-terms-equal-the-oracle-c570749a2975.py

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
COTANGENTS = [{"contrastive_loss": 0.5}, {"contrastive_loss": 0.5}]  # what each rank's terms are multiplied with


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor(
                [[-1.6372663875501465, -16.619690881932762, 13.007108665508115,
                  -21.258418518997672],
                 [4.293673419014126, -19.979563595410863, 21.962210086513537, -0.20672499516863757],
                 [12.603590587917774, 6.790750018639264, -12.689594000787062, -23.108643892961144],
                 [8.928085656997649, -18.08528265155294, 22.104281009132478, 2.1476962038557548],
                 [8.450805954970427, -17.267553116991774, 15.60884370393039, 16.934564839096893],
                 [5.423532379838047, -8.093961885861678, 28.373702012322592, 0.07817692106737532]]
            , dtype=torch.float64).requires_grad_(),
            "text_features": tensor(
                [[12.555232683674994, 6.689505013570235, 9.5401397809183, -10.32484323816773],
                 [-17.01927078623811, -5.409579206961924, -3.0743707980388013, 8.463398779714533],
                 [-3.9416025692558945, -5.320780276045242, -17.225677006047388, 7.709028351446997],
                 [-10.664662885761434, 11.749532921306319, -2.2517920156670006,
                  -11.964233129723771],
                 [16.696978162380386, 4.612005936329093, -8.079820099449341, 5.887005066142892],
                 [-12.520512337114432, 0.26406209325737623, 15.554996871380727, 1.0995973619491732]]
            , dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor([0.0821], dtype=torch.float64).requires_grad_(),
        },
        {
            "image_features": tensor(
                [[-11.394002525141685, 22.892170490385464, 14.560786558091968, -5.840268102225982],
                 [-19.440545612032405, 3.9066339457006736, -22.37982778371105, -2.438586863784401],
                 [4.830112877017422, 12.515955504900571, 1.7136323182285467, 26.778430343702787],
                 [-13.33114095622558, 0.38782252391312183, -19.48631900903426, -18.50442233557537],
                 [-1.382266815644855, 19.310620412894014, -19.608111588141263, 11.862176767629478],
                 [-26.51181267006287, -13.019484798110057, -3.2210659532117534, -4.15229318140414],
                 [5.410749705370057, -9.350310573176007, 27.390199674584952, -5.750864421750628]]
            , dtype=torch.float64).requires_grad_(),
            "text_features": tensor(
                [[-12.054490402302132, -7.6004760489136665, 10.28449097430084, -9.547317443670762],
                 [7.9823372470817375, -12.54776327047934, 5.766297498275435, -12.06589168454796],
                 [4.539873849929536, -12.196997981326623, 14.59791037530586, -4.186143612536213],
                 [10.417488247519852, 4.899955624244985, -15.737908200425172, 4.447990441559629],
                 [2.459349870934555, 8.156378445801455, 10.270356299254065, -14.897814280879327],
                 [-5.3844642189122585, -12.574049417846968, -2.7650631289320056,
                  -14.326732083968652],
                 [-6.249622815885156, -4.29200409624329, -8.459786827630069, 16.460647688595223]]
            , dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor([0.0821], dtype=torch.float64).requires_grad_(),
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
    return run(build(target, rank), inputs()[rank], output_dict=False, cotangents=COTANGENTS[rank])


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
