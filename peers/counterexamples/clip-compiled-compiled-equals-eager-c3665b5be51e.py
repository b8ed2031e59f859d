# verified-losses counterexample c3665b5be51e
"""clip-compiled: "compiled equals eager" does not hold in 2 ranks (clip, convention open_clip).

Falsified: rank 0, gradient of image_features at [8, 4]: expected -0.0129235185, observed
-0.025847037, error 0.0129 is 4.38e+13 times its bound

    python clip-compiled-compiled-equals-eager-c3665b5be51e.py

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
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import tensor

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:ClipLoss")
ARGUMENTS = {"convention": "open_clip", "local_loss": False, "gather_with_grad": False, "cache_labels": True}
WORLD_SIZE = 2
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
RANK = 0
WHERE = "rank 0, gradient of image_features at [8, 4]"
NAME = "image_features"
INDEX = (8, 4)
BOUND = 2.948e-16  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor(
                [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.5068200447543594, 0.09461713251133336, 0.7497085748057217, 0.16801500204432762,
                  -0.30753848336024847, 0.22205660015819886],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.5847787973579592, -0.6083540513309663, 0.2343346495981783,
                  -0.12478060932774965, -0.011350786783885344, -0.46618380233836976],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.2253233953039494, 0.7092553439687301, -0.3193895311147011, 0.014161130820105406,
                  -0.3963623239477264, 0.4322880087667057],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.05195238041048272, 0.6379253917641007, 0.22401726383816448, 0.0380637281423809,
                  -0.09467468629557596, -0.7278435728846567],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.7781547307620749, -0.13387267526627836, 0.09534666422829377,
                  0.4835499845075109, -0.05657103211738267, 0.3611668122047619],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.3746765827340724, -0.39487844901208513, 0.3209221285815399, 0.3020187218104726,
                  -0.6975781968500123, -0.1512177476312729],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.24542200276878082, -0.17208250004728845, -0.883868816588996,
                  -0.13845867978419046, 0.3139075159729892, 0.10593787898617683],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.3816195983359408, 0.28601641498147096, -0.6667437345238767, 0.5292222646236401,
                  0.1106015935233473, 0.18895758025794782]]
            , dtype=torch.float64).requires_grad_(),
            "text_features": tensor(
                [[0.03537897892438374, -0.3388984735206974, 0.7032641728447925, 0.2886773473852099,
                  0.23897515607566533, -0.49887064412910603],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.18015016197106404, 0.28937153670054844, 0.5455936251885334, 0.7223930929491293,
                  -0.00439255358117336, -0.2535084885668014],
                 [-0.6197886200697962, -0.4425120721080799, -0.15295969242928661,
                  0.3798253293902368, -0.49009299048016725, 0.11040853589435157],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.2595226937338423, 0.2172991947388312, -0.7707302351572604, -0.48011736629161694,
                  0.24554148835420592, 0.024507715100001194],
                 [-0.5667615246976498, -0.41609726161049165, -0.4329245968901838,
                  0.3691141191006992, -0.1745855937264508, 0.3892240665141541],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.3751630357386905, -0.5337864675004732, 0.09929907010277916, 0.5251281723554004,
                  0.40374690878069097, -0.35453241692986676],
                 [0.3465460464032944, -0.4985501537249065, -0.018714105442220075,
                  0.4779895925856774, 0.137308303412064, 0.6194156467142995],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.12058967010429535, 0.29209466584361143, -0.5630249323292343,
                  -0.5213087114536987, -0.41607540712111274, 0.3718336270121246],
                 [0.49909048275635076, 0.07162533714335767, 0.18964450882471565, -0.622370279687699,
                  0.17034325034259726, -0.5417119838049921],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.6051778746079138, 0.009318943778427971, 0.39038410195151885,
                  -0.1572389628793593, 0.2873668565935198, -0.6115303333438104],
                 [0.060304193535854665, -0.289357359134815, 0.496291585162203, 0.6388257688382651,
                  -0.48140960012278194, 0.16271699183406282]]
            , dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor([1.0], dtype=torch.float64).requires_grad_(),
        },
        {
            "image_features": tensor(
                [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.15712186628036226, 0.4041474495049631, 0.6128739267710739, 0.04666202482861856,
                  -0.26865733267611036, 0.601671838395038],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.45827302153749844, 0.34071979540027525, 0.5462130756832376, 0.5024473071235784,
                  -0.06869508010584474, -0.34405642595286595],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.10170491126891264, -0.6214029901253888, 0.2663833652581343, -0.6830236450523197,
                  0.16879676123214551, 0.19375420330341506],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.2763709009420775, -0.029130584189974617, -0.3985420710085391,
                  -0.04672670326474093, -0.86196194813411, -0.13701447727995114],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.49969404036138443, 0.4386466667629578, -0.4316565619872214,
                  -0.044688526795654014, 0.13370004328621804, 0.5930386279632478],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.3722178979885115, 0.2650561577655816, 0.6533536396547847, -0.14576454825729934,
                  -0.4220430347061828, -0.40615325251036516],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.40076229984717293, -0.357230230567953, 0.6353623935088828, 0.49822149434048885,
                  0.17730578061007887, -0.16860834215309778],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.07009390120024842, -0.876386959758001, 0.4450103786632157, -0.15469137258724622,
                  -0.04531629744101602, -0.05491372411328949]]
            , dtype=torch.float64).requires_grad_(),
            "text_features": tensor(
                [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.5765608913335492, -0.3895100554268132, 0.17781140115796795,
                  -0.32221028566688636, -0.5472029925245768, 0.28459089533383874],
                 [-0.16638036593065153, 0.05215566539450068, 0.8441974598020611,
                  -0.4500872325885921, -0.017197747039943558, 0.23249458019764585],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.3098010172184272, -0.3186818461508074, 0.06466520534922295,
                  -0.7017675744987776, -0.38397267791419964, -0.39795838460696475],
                 [-0.8143406201188501, -0.48846896832312486, 0.02261006981738036,
                  0.03973184195803591, -0.1677128698458647, 0.2608255742355948],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.05311340240187787, -0.6253559569760784, -0.566199892383957,
                  0.24858196345982347, 0.46096309035555266, -0.10605004571683328],
                 [-0.5183154446936897, -0.5142150488927574, 0.425720454155612, -0.18528103650091593,
                  -0.023781600598894885, -0.5007988130815032],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [-0.5980204685268481, -0.12237764348518645, 0.5243554234729287,
                  0.30951181301074654, -0.46649538975377713, -0.19756292774136422],
                 [-0.07356282345941452, -0.7519404356959044, 0.4005010899518254,
                  -0.08274093779541328, 0.5031583127962238, 0.09358749165527024],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                 [0.33296956482251716, -0.7365753732593099, 0.3770602529996805, 0.01941035647096927,
                  0.2110355715472215, 0.39937548700569525],
                 [0.03737082115985604, -0.7030485458995058, -0.2421505303736115,
                  -0.1338273894907139, 0.1283536088676475, 0.6413305430017807],
                 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
            , dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor([1.0], dtype=torch.float64).requires_grad_(),
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
    return run(torch.compile(build(target, rank), backend="aot_eager"), inputs()[rank], output_dict=False)


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
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
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
    local = local_loss and len(image_features) > 1
    image = image_features[rank] if local else all_image
    text = text_features[rank] if local else all_text
    return (
        logit_scale * image @ all_text.T + logit_bias,
        logit_scale * text @ all_image.T + logit_bias,
    )


def get_ground_truth(rows: list[int], rank: int, local_loss: bool) -> Array:
    """Return the column of each row's partner; `rows` are how many each rank holds."""
    if not local_loss or len(rows) == 1:
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
            "contrastive_loss": clip_loss(image_features, text_features, logit_scale, [0.0] * 2, rank, False, False, "open_clip"),
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
