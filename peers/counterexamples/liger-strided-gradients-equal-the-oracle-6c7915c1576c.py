# verified-losses counterexample 6c7915c1576c
"""liger-strided: "gradients equal the oracle" does not hold in one process (cross_entropy, convention exact).

Falsified: rank 0, gradient of logits at [0, 0]: expected 0.155370792, observed -0.280253559, error
0.436 is 2.84e+06 times its bound

    python liger-strided-gradients-equal-the-oracle-6c7915c1576c.py

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
from collections.abc import Callable
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
WHERE = "rank 0, gradient of logits at [0, 0]"
NAME = "logits"
INDEX = (0, 0)
BOUND = 1.535e-07  # how far rounding may take a right implementation, derived for these inputs


def transposed(value):
    """Return the same values, the first dimension's next to one another."""
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": transposed(tensor(
                [[-0.28025356, 0.51640105], [0.6173148, 0.6291497]]
            , dtype=torch.float32)).requires_grad_(),
            "labels": tensor([1, 1]),
        },
    ]


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return target(**accepted(target, {**ARGUMENTS, "rank": rank, "world_size": world_size}))


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
    """Compare one rank's gradient, along one direction, with the oracle's; return whether they agree."""
    given = values(inputs())
    along = unit(given[RANK][NAME].shape, INDEX)
    expected = derivative(given, RANK, NAME, along)
    gradient = ranks[RANK][f"gradient of {NAME}"]
    return agree(expected, 0.0 if gradient is None else gradient[INDEX])


# What is right, in NumPy: derivatives are taken by complex steps, exact to rounding.

Array = np.ndarray
STEP = 1e-100


def directional_derivative(function: Callable[[Array], complex], point: Array, direction: Array) -> float:
    """Return the derivative of `function` at `point` along `direction`, of the same shape."""
    return float(np.imag(function(point + 1j * STEP * direction)) / STEP)


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


def cross_entropy_loss(logits: Array, labels: Array, ignore_index: int) -> complex:
    """Return the mean of [n, c] logits' cross-entropies, at least one of whose [n] labels counts."""
    kept = labels != ignore_index
    return complex(np.sum(cross_entropy(logits[kept], labels[kept])) / np.count_nonzero(kept))


def values(ranks):
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: v.detach().double().numpy() if v.is_floating_point() else v.numpy() for k, v in given.items()}
        for given in ranks
    ]


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    logits, labels = (
        [one[name] for one in given] for name in ["logits", "labels"]
    )
    return [
        {
            "loss": cross_entropy_loss(logits[rank], labels[rank], 0),
        }
        for rank in range(len(given))
    ]


def derivative(given, rank, name, along):
    """Return how the sum over ranks of cotangent times term changes with an input of one rank."""

    def total(point):
        moved = [*given[:rank], {**given[rank], name: point}, *given[rank + 1 :]]
        return sum(np.sum(term) for terms in oracle(moved) for term in terms.values())

    return directional_derivative(total, given[rank][name], along)


def unit(shape, index):
    """Return the direction of one element."""
    direction = np.zeros(shape)
    direction[index] = 1
    return direction


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
