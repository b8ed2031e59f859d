# verified-losses counterexample 61846268c45c
"""liger: "deterministic" does not hold in one process (cross_entropy, convention exact).

Falsified: rank 0, gradient of logits derived twice at [1, 0]: expected -0.00852559321, observed
0.00852559321, error 0.0171 is inf times its bound

    python liger-deterministic-61846268c45c.py

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
COTANGENTS = [{"loss": -1.0}]  # what each rank's terms are multiplied with
RANK = 0
WHAT = "gradient of logits"
WHERE = "rank 0, gradient of logits derived twice at [1, 0]"


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor(
                [[-0.53316635, -0.28935188, -0.02477932, -1.5785174, -1.517056, -0.88227725,
                  1.0790602, -1.0812261, -0.376158, -1.0453836, -0.39890108, 0.7598942, 1.0524957,
                  -0.08961415, 0.3131154, 0.027187107, 1.1399155, -0.44433412, 1.1129487],
                 [0.73896265, -0.8988759, 1.1267874, -0.90183294, 0.85257936, 0.4127145, -1.2488017,
                  1.3985523, -2.4324276, -0.2157706, -0.8019891, -0.22743332, 0.21680051,
                  0.39937732, 0.5437388, -0.77589667, -0.6348757, -0.7400913, -2.5347047],
                 [-0.30951792, 0.6147734, 0.9847476, 0.2477467, 2.1627119, 1.5755285, 1.6169052,
                  0.45154715, 1.3687813, 1.3533808, 0.55241185, -0.5911954, -0.21256253,
                  -0.066679455, -0.61725587, 0.19127288, 0.97464854, -0.09849687, -0.20610051],
                 [-0.79901713, -0.5141728, -0.3650885, -0.622167, -0.89803076, -1.0597247,
                  -2.0705206, 1.4596847, 1.5389856, -0.5100514, -1.0477481, 0.90938365, 0.4672455,
                  -0.5425258, -0.5588453, -1.7488564, 0.44812292, 0.18567505, 1.8425823],
                 [1.5866567, 1.127711, 0.81342125, 0.13380356, -0.60507196, 0.5933573, 0.2624692,
                  0.3133597, -0.83767307, -1.219564, -0.7058308, -1.7727832, -0.66270226,
                  -0.5433104, 1.3052365, -0.4149661, 0.34972855, -0.49126595, -0.85784465],
                 [-0.15777767, -0.7362575, -0.4432427, 0.7473728, 0.96376204, -0.033984378,
                  1.387274, 2.3997505, -0.44329643, 0.8650287, -0.51667875, -0.5922721, -2.9770956,
                  -0.013277718, 1.2956269, -1.0198919, -0.08637072, -0.8339666, -0.8470889],
                 [0.5763791, -0.54390097, -0.07225924, 1.7619472, -0.8252339, -0.5606796, 1.2835314,
                  -0.3222417, 0.23215435, 1.6185331, -0.7950912, -1.599994, -1.1394818,
                  -0.010901097, -1.3712087, -0.7909688, 1.3314073, 1.3547654, -0.17473163],
                 [-1.3129618, -0.3363996, 0.520211, -0.729804, 0.40865842, 0.5954375, 0.723694,
                  0.8525901, 0.5332323, 0.46617693, -1.1346945, 0.29981282, 0.98355174, 0.020608358,
                  -0.5101426, 0.95120364, 0.74496233, 1.151389, -0.9689091],
                 [0.2940589, 1.8131518, -0.012215433, -0.36391127, -0.19780795, 0.5595399,
                  -0.10210038, -0.55717915, -1.3378853, -1.7868497, -1.0648489, -0.87848103,
                  0.9555631, 1.129478, -0.11293885, -1.4013481, 2.5289276, -1.5152742, 0.91023946],
                 [-1.6321265, -1.5448892, -1.5671725, -0.30312195, 1.4018698, -1.0047052,
                  -0.44239938, 0.30862877, 0.3336544, -0.25561213, 0.44126305, -1.1133969,
                  0.045125943, -1.1553465, -0.5754517, -0.95436174, -0.8318335, 0.29900524,
                  0.81299406],
                 [2.1561675, -0.5087706, -0.679923, 0.23083146, 0.40905756, 1.0035497, -0.9683051,
                  1.4050065, 0.4695025, -1.9025303, -0.48216084, 1.5402488, -1.1385076, 0.34472674,
                  0.3531971, 0.26485285, -0.24209295, -0.17258134, 0.7948871],
                 [-1.2956071, -0.1467646, -0.44350627, -0.7302699, -0.54189515, -0.036125418,
                  1.2345616, 0.064293906, 1.5024191, 0.95153326, 1.1862369, 0.8465515, -0.1941109,
                  0.24391139, -0.9238653, -1.1479299, 0.2677533, -1.308317, -0.97739625],
                 [0.2933386, -1.8196982, 0.98585606, -0.15203805, -0.6432678, -0.0948837,
                  0.87054265, 0.19037099, 0.17660797, 0.32535177, 1.8460813, -1.4773482,
                  -0.18689887, -1.1148962, 0.35364702, 0.1853849, -0.8417126, 0.09986999,
                  1.2541811],
                 [0.31413716, -1.1302997, -0.29876187, -0.1441338, -2.9732904, 0.19635694,
                  -0.4844614, -0.40357393, -1.7464823, 1.3900895, -2.1775172, -1.7214942,
                  0.30157053, -1.3490957, 1.0010995, 1.3649739, 1.1292408, 1.1029667, -0.14651549],
                 [-1.7764508, 0.1871108, -1.546889, -0.13394754, 1.2181025, 0.30109823, -0.40802875,
                  -0.578559, 0.5616298, 1.5489086, 0.9034203, 1.8599087, -0.040359057, 0.3881822,
                  0.10729194, 0.7447032, 0.011980721, -0.7152598, 0.71975404]]
            , dtype=torch.float32).requires_grad_(),
            "labels": tensor(
                [0, 5, 4, 1, 0, 0, 18, 8, 16, 15, 12, 18, 0, 8, 10]
            ),
        },
    ]


def build(target, rank, world_size=WORLD_SIZE):
    """Construct what is tested."""
    return target(**accepted(target, {**ARGUMENTS, "rank": rank, "world_size": world_size}))


def run(loss, given, output_dict=True, cotangents=None, times=1):
    """Call the loss and derive it; return its terms and the gradients of what it was given."""
    output = loss(*given.values())
    several = output if isinstance(output, tuple | list) else [output]
    terms = output if isinstance(output, dict) else dict(zip(TERMS, several, strict=False))
    live = {name: term for name, term in terms.items() if name in TERMS and term.requires_grad}
    weights = [tensor(cotangents[name]) if cotangents else torch.ones(term.shape) for name, term in live.items()]
    weights = [weight.to(term.dtype) for weight, term in zip(weights, live.values(), strict=True)]
    if live:
        for _ in range(times):
            for value in given.values():
                value.grad = None
            torch.autograd.backward(list(live.values()), weights, retain_graph=True)
    seen = {name: term.detach().double().numpy() for name, term in terms.items() if name in TERMS}
    for name, value in given.items():
        seen[f"gradient of {name}"] = None if value.grad is None else value.grad.double().numpy()
    return seen


def act(target, rank):
    """Return what a rank sees of the same call, again and again, and of deriving it twice."""
    seen = [run(build(target, rank), inputs()[rank], cotangents=COTANGENTS[rank]) for _ in range(20)]
    seen.append(run(build(target, rank), inputs()[rank], cotangents=COTANGENTS[rank], times=2))
    other = [one for one in seen if not same(one[WHAT], seen[0][WHAT])]
    return {"expected": seen[0], "observed": (other or seen)[0]}


def same(one, other):
    """Whether two results agree bit by bit."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)


def judge(target, ranks):
    """Compare the two calls, bit by bit; return whether they agree."""
    expected, observed = ranks[RANK]["expected"][WHAT], ranks[RANK]["observed"][WHAT]
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n")
    return same(expected, observed)


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
