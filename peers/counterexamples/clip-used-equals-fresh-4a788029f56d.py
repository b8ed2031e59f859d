# verified-losses counterexample 4a788029f56d
"""clip: "used equals fresh" does not hold in one process (clip, convention exact).

WorldError: world single: not every rank returned
rank 0 raised:
Traceback (most recent call last):
  File "properties/worlds/single.py", line 21, in run
    return [function(0, 1, *arguments)]
            ^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/laws/__init__.py", line 98, in _preserving
    return function(rank, world_size, *arguments)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/subjects.py", line 219, in run_steps
    outcomes.append(_run_step(rank, contract, call, step))
                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/subjects.py", line 229, in _run_step
    output = contract.call(loss, tensors, case, rank)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "properties/contracts/__init__.py", line 154, in call
    return loss(**tensors, **asked)
           ^^^^^^^^^^^^^^^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/nn/modules/module.py", line 1778, in _wrapped_call_impl
    return self._call_impl(*args, **kwargs)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/nn/modules/module.py", line 1789, in _call_impl
    return forward_call(*args, **kwargs)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "build/peers/open_clip/loss.py", line 151, in forward
    F.cross_entropy(logits_per_image, labels) +
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "lib/python3.11/site-packages/torch/nn/functional.py", line 3555, in cross_entropy
    return torch._C._nn.cross_entropy_loss(
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: Inference tensors cannot be saved for backward. Please do not use Tensors created in
inference mode in computation tracked by autograd. To work around this, you can make a clone to get
a normal tensor and use it in autograd, or use `torch.no_grad()` instead of
`torch.inference_mode()`.

    python clip-used-equals-fresh-4a788029f56d.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
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
from pathlib import Path

import numpy as np
import torch
from torch import tensor

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:ClipLoss")
ARGUMENTS = {"convention": "exact", "local_loss": False, "gather_with_grad": False, "cache_labels": True}
WORLD_SIZE = 1
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
        },
    ]


def before_1():
    """Return what each rank was given before."""
    return [
        {
            "image_features": tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
        },
    ]


def before_2():
    """Return what each rank was given before."""
    return [
        {
            "image_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
        },
    ]


def before_3():
    """Return what each rank was given before."""
    return [
        {
            "image_features": tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64),
            "text_features": tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64),
            "logit_scale": tensor(1.0, dtype=torch.float64),
        },
    ]


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return target(**accepted(target, {**ARGUMENTS, "rank": rank, "world_size": world_size}))


def run(loss, given, output_dict=True, cotangents=None):
    """Call the loss and derive it; return its terms and the gradients of what it was given."""
    output = loss(**given, **({"output_dict": True} if output_dict else {}))
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
    """Return what a rank sees of the last call, on a fresh object and on one that was called before."""
    loss = build(target, rank)
    run(loss, before_1()[rank], output_dict=False)
    run(loss, before_2()[rank], output_dict=False)
    with torch.inference_mode():
        run(loss, before_3()[rank], output_dict=False)
    used = run(loss, inputs()[rank], output_dict=False)
    return {"expected": run(build(target, rank), inputs()[rank], output_dict=False), "observed": used}


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
    """Run this file in a process of its own; return the verdict that it writes down."""
    command = [sys.executable]
    environment = {**os.environ, "RANK": "0"}
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder, "verdict")
        environment["VERDICT"] = str(verdict)
        ranks = subprocess.Popen([*command, __file__], env=environment, start_new_session=True)
        try:
            ranks.wait(SECONDS + 30)
        except subprocess.TimeoutExpired:
            print(f"no verdict in {SECONDS + 30} s")
        finally:
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
    everyone = [act(target, rank)]
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
