# verified-losses counterexample 3dfe2500e2ef
"""coca-ranks: "mean over ranks equals single process" does not hold in 2 ranks (coca, convention exact).

Falsified: mean over ranks of caption_loss: expected 2.98974927, observed 3.14131898, error 0.152 is
7.02e+12 times its bound

    python coca-ranks-mean-over-ranks-equals-single-process-3dfe2500e2ef.py

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

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/open_clip.py:CoCaLoss")
ARGUMENTS = {"convention": "exact", "local_loss": False, "gather_with_grad": True, "cache_labels": False, "clip_loss_weight": 1.0, "caption_loss_weight": 1.0, "pad_id": 1}
WORLD_SIZE = 2
TERMS = ("contrastive_loss", "caption_loss")
SECONDS = 60  # how long it may run
WHERE = "mean over ranks of caption_loss"
NAME = "caption_loss"
BOUND = 2.158e-14  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
            "logits": tensor(
                [[[-0.2802535553958334, 0.51640104767057, 0.6173147913528491, 0.6291496895425023,
                   -0.4249558694190025, -1.3614865034073644, -1.3922354860852997,
                   1.3854603351339416, -1.0291542168222179, 0.5215796227545516, -0.5824877649187601,
                   -0.5960085143286955, -1.542561910624472, -1.1242275194171698,
                   -0.18144594704524236, -0.7361560237844393, 0.2431488743964088,
                   -1.163806516596053, -0.8913711105154816, 0.6912215262914319, -1.5882187176932996,
                   -0.16626890680419784, -0.5075764157333273, 2.640509247945015,
                   0.17797221217001188, -0.4452702204910848, -1.9488323725307741],
                  [-0.22287508395536032, 0.3846456580537722, 0.6411591877949328, 1.6516317101071218,
                   0.19467343238251525, -1.9309314014488381, 2.609362084511991, 1.4777860353311896,
                   -0.0874740414854823, 0.7032935837465033, -0.010001543532041845,
                   -0.056974846438233764, -0.28185019330008554, -0.16304737335420483,
                   0.5405777031106018, 1.084300254311854, 0.25719908804403246, -0.5342256842960658,
                   1.0284069772644882, 0.1558387285088327, -1.036269349558, 1.329949758181425,
                   -1.484487466292692, -0.8922403557682927, -1.546294066909406, 0.08339972986014496,
                   -0.6707701512994174],
                  [-0.07919103038250332, 0.8899353780445795, 1.7894930373906932,
                   -0.46669906616803214, -0.6101602463963506, 0.24451384261484652,
                   -1.2955683448208297, 0.4756385057296503, -1.2582107536133602,
                   0.46132759000410367, -0.36349102508941405, 1.5339818543764527,
                   -0.6742376399934388, 0.9261818317238053, 0.18853802924429824,
                   -2.3246775036545304, -0.2070657948339111, -0.3408768413434407,
                   1.0636815667070287, -0.008383740633692053, 0.1740653290344874,
                   0.08302940925305098, -1.0363192170390865, -0.88492992764251,
                   -0.01736804322587736, 0.06163042038927383, 1.3580121488231096]]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor([[1, 1, 21]]),
        },
        {
            "image_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
            "logits": tensor(
                [[[0.3075409885008492, -0.958160927272046, -0.3451326339880384, -1.2553997953469964,
                   -0.16406883071633663, 0.645736110545349, -1.3901205564570354,
                   -0.3612479652623697, -1.0206398245402097, -0.5271293498984375,
                   0.5373191793828243, 0.274372437970781, -0.9939869730363852, -0.12216667315132891,
                   0.9687079830936114, -0.06011679943101381, 0.6407305492866078,
                   0.02953055193036531, 1.3221878998671683, 0.46869329730467385,
                   -0.48942349753772524, -2.1598217442605527, -0.9075524375000038,
                   -1.300727328988792, 0.9505954375454863, 0.032520896618593934,
                   1.1039911591167177],
                  [0.1549038105006933, -1.5771888068122049, 0.10789358162394416,
                   -1.7525702704527637, -0.6511787348115801, -0.0600692167217991,
                   0.3991716963723443, -0.7888842146076324, 0.013492706291399871,
                   -0.7443437703672683, -0.3354194221643648, 0.03579133929624118, 2.271512834094959,
                   0.5086444821685931, -0.3785417431306351, 1.6196744930458598, -0.8705379113686315,
                   -1.223453756822463, -0.5150871510446098, 2.435023386814839, 1.1895608631536236,
                   0.5144374617978807, 0.04843231564652863, 0.7228969579221877, -0.1965413723394037,
                   -0.27246693128040456, -0.4201824940492359],
                  [0.7755125083024642, -0.21192202075142322, -0.7303842263803985,
                   0.08453902833093374, 2.3790263200159827, 0.6995202390681677, 1.0953281145639382,
                   0.9214878051240701, -0.854007361131822, 1.4730546451420614, 0.18832972142845236,
                   -1.3890006671263804, 0.09813931630210915, -0.607382396797395, 2.1690173714558996,
                   1.061192218386558, 1.1377796108066536, -0.21838823332743632, 0.12784767119410592,
                   0.2616922618821014, -0.41545752151869214, -1.0535782050317006,
                   -0.015138408619235731, 1.1820104768595647, 0.41587580496955173,
                   -1.7034049736932535, -0.1514700072241832]]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor([[1, 19, 18]]),
        },
    ]


def whole():
    """Return the whole batch on one rank."""
    return [
        {
            "image_features": tensor([[1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "text_features": tensor([[1.0], [1.0]], dtype=torch.float64).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float64).requires_grad_(),
            "logits": tensor(
                [[[-0.2802535553958334, 0.51640104767057, 0.6173147913528491, 0.6291496895425023,
                   -0.4249558694190025, -1.3614865034073644, -1.3922354860852997,
                   1.3854603351339416, -1.0291542168222179, 0.5215796227545516, -0.5824877649187601,
                   -0.5960085143286955, -1.542561910624472, -1.1242275194171698,
                   -0.18144594704524236, -0.7361560237844393, 0.2431488743964088,
                   -1.163806516596053, -0.8913711105154816, 0.6912215262914319, -1.5882187176932996,
                   -0.16626890680419784, -0.5075764157333273, 2.640509247945015,
                   0.17797221217001188, -0.4452702204910848, -1.9488323725307741],
                  [-0.22287508395536032, 0.3846456580537722, 0.6411591877949328, 1.6516317101071218,
                   0.19467343238251525, -1.9309314014488381, 2.609362084511991, 1.4777860353311896,
                   -0.0874740414854823, 0.7032935837465033, -0.010001543532041845,
                   -0.056974846438233764, -0.28185019330008554, -0.16304737335420483,
                   0.5405777031106018, 1.084300254311854, 0.25719908804403246, -0.5342256842960658,
                   1.0284069772644882, 0.1558387285088327, -1.036269349558, 1.329949758181425,
                   -1.484487466292692, -0.8922403557682927, -1.546294066909406, 0.08339972986014496,
                   -0.6707701512994174],
                  [-0.07919103038250332, 0.8899353780445795, 1.7894930373906932,
                   -0.46669906616803214, -0.6101602463963506, 0.24451384261484652,
                   -1.2955683448208297, 0.4756385057296503, -1.2582107536133602,
                   0.46132759000410367, -0.36349102508941405, 1.5339818543764527,
                   -0.6742376399934388, 0.9261818317238053, 0.18853802924429824,
                   -2.3246775036545304, -0.2070657948339111, -0.3408768413434407,
                   1.0636815667070287, -0.008383740633692053, 0.1740653290344874,
                   0.08302940925305098, -1.0363192170390865, -0.88492992764251,
                   -0.01736804322587736, 0.06163042038927383, 1.3580121488231096]],
                 [[0.3075409885008492, -0.958160927272046, -0.3451326339880384, -1.2553997953469964,
                   -0.16406883071633663, 0.645736110545349, -1.3901205564570354,
                   -0.3612479652623697, -1.0206398245402097, -0.5271293498984375,
                   0.5373191793828243, 0.274372437970781, -0.9939869730363852, -0.12216667315132891,
                   0.9687079830936114, -0.06011679943101381, 0.6407305492866078,
                   0.02953055193036531, 1.3221878998671683, 0.46869329730467385,
                   -0.48942349753772524, -2.1598217442605527, -0.9075524375000038,
                   -1.300727328988792, 0.9505954375454863, 0.032520896618593934,
                   1.1039911591167177],
                  [0.1549038105006933, -1.5771888068122049, 0.10789358162394416,
                   -1.7525702704527637, -0.6511787348115801, -0.0600692167217991,
                   0.3991716963723443, -0.7888842146076324, 0.013492706291399871,
                   -0.7443437703672683, -0.3354194221643648, 0.03579133929624118, 2.271512834094959,
                   0.5086444821685931, -0.3785417431306351, 1.6196744930458598, -0.8705379113686315,
                   -1.223453756822463, -0.5150871510446098, 2.435023386814839, 1.1895608631536236,
                   0.5144374617978807, 0.04843231564652863, 0.7228969579221877, -0.1965413723394037,
                   -0.27246693128040456, -0.4201824940492359],
                  [0.7755125083024642, -0.21192202075142322, -0.7303842263803985,
                   0.08453902833093374, 2.3790263200159827, 0.6995202390681677, 1.0953281145639382,
                   0.9214878051240701, -0.854007361131822, 1.4730546451420614, 0.18832972142845236,
                   -1.3890006671263804, 0.09813931630210915, -0.607382396797395, 2.1690173714558996,
                   1.061192218386558, 1.1377796108066536, -0.21838823332743632, 0.12784767119410592,
                   0.2616922618821014, -0.41545752151869214, -1.0535782050317006,
                   -0.015138408619235731, 1.1820104768595647, 0.41587580496955173,
                   -1.7034049736932535, -0.1514700072241832]]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor([[1, 1, 21], [1, 19, 18]]),
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
    """Compare the mean over ranks with one process that has the whole batch; return whether they agree."""
    single = run(build(target, 0, 1), whole()[0], output_dict=False)
    mean = np.mean([seen[NAME] for seen in ranks])
    expected = single[NAME]
    given = values(whole())
    right = np.real(oracle(given)[0][NAME])
    print(f"the whole batch in one process gives {float(expected)!r}, and in NumPy {float(right)!r}")
    return agree(expected, mean)


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


def caption_loss(
    logits: list[Array], labels: list[Array], rank: int, pad_id: int = 0, convention: str = "exact"
) -> complex:
    """Return the caption loss of `rank`, unweighted."""
    tokens = [np.count_nonzero(ids != pad_id) for ids in labels]
    divisor = sum(tokens) / len(tokens) if convention == "exact" else tokens[rank]
    is_token = labels[rank] != pad_id
    if not is_token.any():
        return 0j
    return complex(np.sum(cross_entropy(logits[rank][is_token], labels[rank][is_token])) / divisor)


def values(ranks):
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: v.detach().double().numpy() if v.is_floating_point() else v.numpy() for k, v in given.items()}
        for given in ranks
    ]


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    image_features, text_features, logit_scale, logits, labels = (
        [one[name] for one in given] for name in ["image_features", "text_features", "logit_scale", "logits", "labels"]
    )
    return [
        {
            "contrastive_loss": 1.0 * clip_loss(image_features, text_features, logit_scale, [0.0] * 1, rank, False, True, "exact"),
            "caption_loss": 1.0 * caption_loss(logits, labels, rank, 1, "exact"),
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
