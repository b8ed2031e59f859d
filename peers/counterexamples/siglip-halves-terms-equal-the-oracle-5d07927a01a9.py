# verified-losses counterexample 5d07927a01a9
"""siglip-halves: "terms equal the oracle" does not hold in one process (siglip, convention exact).

Falsified: rank 0, contrastive_loss: expected 4575, observed inf, which is not finite

    python siglip-halves-terms-equal-the-oracle-5d07927a01a9.py

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

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:SigLipLoss")
ARGUMENTS = {"dist_impl": "bidir"}
WORLD_SIZE = 1
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
RANK = 0
WHERE = "rank 0, contrastive_loss"
NAME = "contrastive_loss"
INDEX = ()
BOUND = 13.46  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor(
                [[30.0], [-30.0], [-30.0], [-30.0], [-30.0], [30.0], [30.0], [-30.0], [-30.0],
                 [30.0], [30.0], [-30.0], [30.0], [30.0], [30.0], [30.0]]
            , dtype=torch.float16).requires_grad_(),
            "text_features": tensor(
                [[-20.0], [20.0], [-20.0], [-20.0], [20.0], [20.0], [20.0], [-20.0], [-20.0],
                 [-20.0], [-20.0], [-20.0], [20.0], [20.0], [20.0], [-20.0]]
            , dtype=torch.float16).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float16).requires_grad_(),
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


def log1p(z: Array) -> Array:
    """Return log(1 + z), exact for small z: NumPy's is not where z is complex."""
    x, y = np.real(z), np.imag(z)
    result: Array = np.log1p(x * (2 + x) + y * y) / 2 + 1j * np.arctan2(y, 1 + x)
    return result


def softplus(z: Array) -> Array:
    """Return log(1 + exp(z)) = -log sigmoid(-z)."""
    # split by sign so that the exponential never overflows
    tail = np.exp(np.where(np.real(z) > 0, -z, z))
    result: Array = np.where(np.real(z) > 0, z, 0) + log1p(tail)
    return result


def siglip_loss(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: list[Array],
    logit_bias: list[Array],
    rank: int,
) -> complex:
    """Return the loss of `rank`: its images against every rank's texts."""
    rows = [len(features) for features in image_features]
    all_text = np.concatenate(text_features)
    logits = logit_scale[rank] * image_features[rank] @ all_text.T + logit_bias[rank]
    labels = -np.ones(logits.shape)
    labels[np.arange(rows[rank]), sum(rows[:rank]) + np.arange(rows[rank])] = 1
    return complex(np.sum(softplus(-labels * logits)) * len(rows) / sum(rows))


def values(ranks):
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: v.detach().double().numpy() if v.is_floating_point() else v.numpy() for k, v in given.items()}
        for given in ranks
    ]


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    image_features, text_features, logit_scale = (
        [one[name] for one in given] for name in ["image_features", "text_features", "logit_scale"]
    )
    return [
        {
            "contrastive_loss": siglip_loss(image_features, text_features, logit_scale, [0.0] * 1, rank),
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
