# verified-losses counterexample 1021c3d45812
"""liger: "inputs unchanged" does not hold in one process (cross_entropy, convention exact).

Falsified: rank 0: the call altered logits

    python liger-inputs-unchanged-1021c3d45812.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

import faulthandler
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import tensor

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/liger_kernel.py:LigerCrossEntropyLoss")
ARGUMENTS = {"ignore_index": 0}
WORLD_SIZE = 1
TERMS = ("loss",)
SECONDS = 60  # how long it may run
RANK = 0
WHAT = "altered inputs"
ALLOWED = [[]]  # what is documented


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor([[-0.28025356, 0.51640105]], dtype=torch.float32).requires_grad_(),
            "labels": tensor([1]),
        },
    ]


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return target(**accepted(target, {**ARGUMENTS, "rank": rank, "world_size": world_size}))


def run(loss, given, output_dict=True, cotangents=None):
    """Call the loss and derive it; return what its output and its gradients look like."""
    before = {name: value.detach().clone() for name, value in given.items()}
    output = loss(*given.values())
    several = output if isinstance(output, tuple | list) else [output]
    terms = output if isinstance(output, dict) else dict(zip(TERMS, several, strict=False))
    structure = f"tuple of {len(several)}" if isinstance(output, tuple | list) else type(output).__name__
    structure = f"dict {sorted(output)}" if isinstance(output, dict) else structure
    live = [term for name, term in terms.items() if name in TERMS and term.requires_grad]
    if live:
        torch.autograd.backward(live, [torch.ones_like(term) for term in live])
    types = {f"{terms[name].dtype} {terms[name].device}".removeprefix("torch.") for name in TERMS if name in terms}
    altered = [name for name, value in given.items() if not torch.equal(value.detach(), before[name])]
    seen = {"structure": structure, "dtype and device": sorted(types), "altered inputs": altered}
    seen |= {f"shape of {name}": list(terms[name].shape) for name in TERMS if name in terms}
    for name, value in given.items():
        seen[f"presence of the gradient of {name}"] = value.grad is not None
        seen[f"shape of gradient of {name}"] = None if value.grad is None else list(value.grad.shape)
    return seen


def act(target, rank):
    """Return what a rank sees."""
    return run(build(target, rank), inputs()[rank], output_dict=False)


def judge(target, ranks):
    """Compare what the output looks like with what is documented; return whether it is that."""
    observed = ranks[RANK][WHAT]
    print(f"rank {RANK}, {WHAT}", f"expected {' or '.join(map(repr, ALLOWED))}", f"observed {observed!r}", sep="\n  ")
    return observed in ALLOWED


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
    return verdict(0)


if __name__ == "__main__":
    sys.exit(main())
