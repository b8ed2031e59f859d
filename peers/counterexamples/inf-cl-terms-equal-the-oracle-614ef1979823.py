# verified-losses counterexample 614ef1979823
"""inf-cl: "terms equal the oracle" does not hold in 2 ranks (clip, convention exact).

Falsified: rank 0, contrastive_loss: expected 600.346574, observed nan, which is not finite

    python inf-cl-terms-equal-the-oracle-614ef1979823.py

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

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/inf_cl.py:RingLoss")
ARGUMENTS = {"convention": "exact", "local_loss": True, "gather_with_grad": True, "cache_labels": False}
WORLD_SIZE = 2
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
RANK = 0
WHERE = "rank 0, contrastive_loss"
NAME = "contrastive_loss"
INDEX = ()
BOUND = 5.388e-05  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor([[30.0]], dtype=torch.float32).requires_grad_(),
            "text_features": tensor([[-20.0]], dtype=torch.float32).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float32).requires_grad_(),
        },
        {
            "image_features": tensor([[-30.0]], dtype=torch.float32).requires_grad_(),
            "text_features": tensor([[-20.0]], dtype=torch.float32).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float32).requires_grad_(),
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


def carry(value: Array, times: float) -> Array:
    """Return `value`, whose derivative counts `times`."""
    return np.real(value) + 1j * times * np.imag(value)


def occurrences(
    rank: int, world_size: int, local_loss: bool, gather_with_grad: bool, convention: str
) -> list[float]:
    """Return how often the gathered rows of each rank carry gradient on `rank`."""
    if gather_with_grad or world_size == 1:
        return [1.0] * world_size
    own = 0.0 if local_loss else float(world_size) if convention == "exact" else 1.0
    return [own if other == rank else 0.0 for other in range(world_size)]


def gather_features(
    features: list[Array],
    rank: int,
    local_loss: bool,
    gather_with_grad: bool,
    convention: str,
) -> Array:
    """Return the rows of all ranks, in rank order, as `rank` sees them."""
    times = occurrences(rank, len(features), local_loss, gather_with_grad, convention)
    return np.concatenate([carry(rows, count) for rows, count in zip(features, times, strict=True)])


def get_logits(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: Array,
    logit_bias: Array,
    rank: int,
    local_loss: bool,
    gather_with_grad: bool,
    convention: str,
) -> tuple[Array, Array]:
    """Return logits per image and per text on `rank`: its rows, or all, against all."""
    all_image = gather_features(image_features, rank, local_loss, gather_with_grad, convention)
    all_text = gather_features(text_features, rank, local_loss, gather_with_grad, convention)
    image = image_features[rank] if local_loss else all_image
    text = text_features[rank] if local_loss else all_text
    return (
        logit_scale * image @ all_text.T + logit_bias,
        logit_scale * text @ all_image.T + logit_bias,
    )


def get_ground_truth(rows: list[int], rank: int, local_loss: bool) -> Array:
    """Return the column of each row's partner; `rows` are how many each rank holds."""
    if not local_loss:
        return np.arange(sum(rows))
    return sum(rows[:rank]) + np.arange(rows[rank])


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


def row_weight(rows: list[int], local_loss: bool) -> float:
    """Return what one row counts, so that the mean over ranks is the mean over all rows: W/N or 1/N."""
    return (len(rows) if local_loss else 1) / sum(rows)


def clip_loss(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: list[Array],
    logit_bias: list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
) -> complex:
    """Return the loss of `rank`, given every rank's [n_r, d] features and its own scale and bias."""
    rows = [len(features) for features in image_features]
    per_image, per_text = get_logits(
        image_features, text_features, logit_scale[rank], logit_bias[rank],
        rank, local_loss, gather_with_grad, convention,
    )  # fmt: skip
    labels = get_ground_truth(rows, rank, local_loss)
    total = np.sum(cross_entropy(per_image, labels)) + np.sum(cross_entropy(per_text, labels))
    return complex(total * row_weight(rows, local_loss) / 2)


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
            "contrastive_loss": clip_loss(image_features, text_features, logit_scale, [0.0] * 2, rank, True, True, "exact"),
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
