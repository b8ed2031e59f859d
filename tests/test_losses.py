"""The losses beyond the properties: drop-in signatures, caches, compilation, sub-groups, copies, DDP.

The functions that ranks run are imported there by name, as `tests.test_losses`.
"""

import copy
import doctest
import importlib.util
import inspect
import itertools
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

import verified_losses
from tests.helpers import close, gradient_magnitude, operations
from verified_losses import (
    ClipLoss,
    CoCaLoss,
    DistillClipLoss,
    SigLipLoss,
    contrast,
    gather_features,
    neighbour_exchange,
    neighbour_exchange_bidir,
    neighbour_exchange_bidir_with_grad,
    neighbour_exchange_with_grad,
)
from verified_losses.coca import _at_least_one
from verified_losses.gather import broadcast_rows, gather_rows
from verified_losses.properties.names import LOSSES
from verified_losses.properties.worlds.processes import shared_world
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.transport import Transport, eager

X2 = torch.eye(2)
UNIT_ROUNDOFF_BFLOAT16 = 2.0**-8
ROOT = Path(__file__).parents[1]
CLASSES = {
    label: loss
    for label, shipped in LOSSES.items()
    if inspect.isclass(loss := getattr(verified_losses, shipped.name)) and label != "coca_hidden"
}
KINDS = list(CLASSES)
WEIGHTS = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0}
DIST_IMPLS = ["bidir", "shift", "reduce", "gather"]
CLIP_OPTIONS = [
    {"local_loss": local_loss, "gather_with_grad": gather_with_grad, "convention": convention}
    for local_loss, gather_with_grad in itertools.product([False, True], repeat=2)
    for convention in ("exact", "open_clip")
]
SIGLIP_OPTIONS = [{"dist_impl": dist_impl} for dist_impl in DIST_IMPLS]
WORLD_OPTIONS = [
    *(("clip", options) for options in CLIP_OPTIONS),
    ("coca", {"gather_with_grad": True}),
    ("distill", {"local_loss": True, "gather_with_grad": True}),
    *(("siglip", options) for options in SIGLIP_OPTIONS),
    ("siglip", {"chunk_size": 1}),
]


def make(kind, rank=0, size=1, **options):
    takes = inspect.signature(CLASSES[kind]).parameters
    options |= {name: weight for name, weight in WEIGHTS.items() if name in takes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of flags that cannot obey the mean over ranks
        return CLASSES[kind](rank=rank, world_size=size, **options)


def batch(kind, rank=0, rows=2, dtype=torch.float64):
    """Return the keyword arguments of a loss: unit rows of width 3, and logits within 4 of zero."""
    random = torch.Generator().manual_seed(rank)

    def leaf(*shape):
        return F.normalize(torch.randn(shape, generator=random).to(dtype), dim=-1).requires_grad_()

    def scalar(value):
        return torch.tensor(value, dtype=dtype, requires_grad=True)

    make_input = {
        "image_features": lambda: leaf(rows, 3),
        "text_features": lambda: leaf(rows, 3),
        "logit_scale": lambda: scalar(3.0),
        "logit_bias": lambda: scalar(-0.5),
        "labels": lambda: torch.randint(0, 3, (rows, 2), generator=random),
        "logits": lambda: leaf(rows, 2, 3),
        "dist_image_features": lambda: leaf(rows, 3),
        "dist_text_features": lambda: leaf(rows, 3),
        "dist_logit_scale": lambda: scalar(2.0),
        "dist_logit_bias": lambda: scalar(0.5),
    }
    takes = inspect.signature(CLASSES[kind].forward).parameters
    return {name: made() for name, made in make_input.items() if name in takes}


def step(loss, inputs):
    """Return the values and the gradients of one step, as arrays; None where there is no gradient."""
    values = tree_leaves(loss(**inputs))
    sum(values).backward()
    tensors = [tensor for tensor in inputs.values() if tensor.requires_grad]
    arrays = [value.detach().numpy() for value in values]
    return arrays + [None if tensor.grad is None else tensor.grad.numpy() for tensor in tensors]


def same(results, expected):
    return len(results) == len(expected) and all(
        a is b if a is None or b is None else np.array_equal(a, b)
        for a, b in zip(results, expected, strict=True)
    )


# Drop-in for open_clip.


@pytest.fixture(scope="module")
def open_clip_loss():
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip is not installed: pip install --no-deps open_clip_torch==3.3.0")
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


PUBLIC = [
    "ClipLoss",
    "ClipLoss.get_ground_truth",
    "ClipLoss.get_logits",
    "ClipLoss.forward",
    "CoCaLoss",
    "CoCaLoss.get_logits",
    "CoCaLoss.forward",
    "DistillClipLoss",
    "DistillClipLoss.get_logits",
    "DistillClipLoss.dist_loss",
    "DistillClipLoss.forward",
    "SigLipLoss",
    "SigLipLoss.get_ground_truth",
    "SigLipLoss.get_logits",
    "SigLipLoss.forward",
    "gather_features",
    "neighbour_exchange",
    "neighbour_exchange_bidir",
    "neighbour_exchange_with_grad",
    "neighbour_exchange_bidir_with_grad",
]


AFTER_3_3_0 = {"SigLipLoss": ["chunk_size"]}
"""What open_clip's main branch takes too."""


def find(module, path):
    for name in path.split("."):
        module = getattr(module, name)
    return inspect.signature(module).parameters


@pytest.mark.parametrize("path", PUBLIC)
def test_signatures_are_those_of_open_clip(open_clip_loss, path):
    ours, theirs = find(verified_losses, path), find(open_clip_loss, path)
    positional = [name for name, parameter in ours.items() if parameter.kind != parameter.KEYWORD_ONLY]
    assert positional == [*theirs, *(name for name in AFTER_3_3_0.get(path, []) if name not in theirs)]
    for name, parameter in theirs.items():
        if parameter.default is not parameter.empty:
            assert ours[name].default == parameter.default
    assert all(ours[name].default is not inspect.Parameter.empty for name in set(ours) - set(theirs))


def test_every_name_that_open_clip_has_too_is_compared_with_it(open_clip_loss):
    ours = {path.partition(".")[0] for path in PUBLIC}
    assert all(hasattr(open_clip_loss, name) for name in ours)
    assert {name for name in verified_losses.__all__ if hasattr(open_clip_loss, name)} == ours


@pytest.mark.parametrize("name", verified_losses.__all__)
def test_the_example_in_a_docstring_runs(name):
    public = getattr(verified_losses, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(public, name, globs={name: public})
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def run_programs(program, *arguments):
    """Return what each of several processes prints, one for each argument, which they are given."""
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *each], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for each in arguments
    ]  # fmt: skip
    try:
        done = [each.communicate(timeout=60) for each in started]
    finally:
        for each in started:
            each.kill()
    assert all(each.returncode == 0 for each in started), [errors for _, errors in done]
    return [output for output, _ in done]


TORCH_ALONE = """
import sys
for name in "numpy hypothesis pytest msgspec oracles properties tests".split():
    sys.modules[name] = None
import torch
"""


@pytest.mark.processes
def test_importable_with_torch_alone():
    program = """
before = set(sys.modules)
import verified_losses
for name in verified_losses.__all__:
    getattr(verified_losses, name)
after = {name for name in sys.modules if name.partition(".")[0] != "verified_losses"}
assert "torch._dynamo" not in after
assert after <= before, after - before
loss = verified_losses.ClipLoss()(torch.eye(2), torch.eye(2), 10.0)
print(bool(torch.isfinite(loss)))
"""
    assert run_programs(TORCH_ALONE + program, []) == ["True\n"]


@pytest.mark.processes
def test_without_numpy_each_rank_hears_what_is_wrong(tmp_path):
    program = """
import torch.distributed as dist
from verified_losses import ClipLoss

rank = int(sys.argv[1])
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
x = torch.eye(2) if rank == 0 else torch.eye(2).long()
try:
    ClipLoss(rank=rank, world_size=2)(x, x, 10.0)
except TypeError as error:
    print(error)
dist.destroy_process_group()
"""
    words = "image_features: expected a floating dtype of 16 to 64 bits, got torch.int64\n"
    store = str(tmp_path / "store")
    assert run_programs(TORCH_ALONE + program, ["0", store], ["1", store]) == [
        f"rank 1 raised TypeError: {words}",
        words,
    ]


# One process.


def test_the_bias_is_in_each_logit_once():
    inputs = batch("clip", rows=4)
    plain = inputs | {"logit_bias": None}
    for biased, unbiased in zip(ClipLoss().get_logits(**inputs), ClipLoss().get_logits(**plain), strict=True):
        assert torch.equal(biased, unbiased - 0.5)


@pytest.mark.parametrize("kind", ["clip", "coca", "distill"])
def test_impossible_flags_warn(kind):
    weights = WEIGHTS if kind == "coca" else {}

    def build(**options):
        return CLASSES[kind](**weights, **options)

    words = (
        f"{CLASSES[kind].__name__}(local_loss=True, gather_with_grad=False) treats the gathered rows as "
        "constants: its gradients differ from a single process's. Use gather_with_grad=True."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(words)}$") as seen:
        build(local_loss=True, world_size=2)
    (warning,) = seen
    # the line that calls ClipLoss.__init__, which a subclass may do for its user, or mutmut for anybody
    caller = "coca.py" if kind == "coca" else Path(__file__).name
    assert Path(warning.filename).name in (caller, "trampoline.py")
    # filterwarnings = error: these do not warn
    build(local_loss=True, world_size=2, gather_with_grad=True)
    build(local_loss=True, world_size=2, convention="open_clip")
    build(local_loss=True)
    build(world_size=2)


def test_cached_labels_follow_device_and_size():
    loss = ClipLoss(cache_labels=True)
    for device, n in [("cpu", 4), ("meta", 8), ("cpu", 8), ("cpu", 4), ("meta", 4), ("cpu", 8)]:
        labels = loss.get_ground_truth(torch.device(device), n)
        assert labels.device.type == device
        assert labels.shape == (n,)
        assert device == "meta" or labels.tolist() == list(range(n))


def test_cached_labels_follow_rank_and_local_loss():
    loss = ClipLoss(True, True, cache_labels=True, world_size=3)
    for rank, local_loss in itertools.product([0, 2, 1, 0], [True, False, True]):
        loss.rank, loss.local_loss = rank, local_loss
        start = 4 * rank if local_loss else 0
        assert loss.get_ground_truth("cpu", 4).tolist() == list(range(start, start + 4))


def test_labels_are_made_once_if_cached():
    for cached in (True, False):
        loss = ClipLoss(cache_labels=cached)
        assert (loss.get_ground_truth("cpu", 4) is loss.get_ground_truth("cpu", 4)) == cached


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("kind", KINDS)
def test_training_after_evaluation_equals_training(kind, mode):
    loss = make(kind, cache_labels=True)
    with mode():
        loss(**batch(kind))
    assert same(step(loss, batch(kind)), step(make(kind), batch(kind)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_holds_the_whole_loss(kind, backend):
    torch._dynamo.reset()
    loss = make(kind, cache_labels=True)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for rows in 4, 3, 4:
        results, expected = step(compiled, batch(kind, 0, rows)), step(make(kind), batch(kind, 0, rows))
        close_gradients(results, expected, (rows,))


@pytest.mark.parametrize("convention", ["exact", "open_clip"])
def test_one_graph_holds_captions_with_and_without_tokens(convention):
    torch._dynamo.reset()
    losses = [make("coca", pad_id=2, convention=convention) for _ in range(2)]
    losses[0] = torch.compile(losses[0], fullgraph=True, backend="aot_eager")
    for labels in [[0, 2], [2, 2], [1, 1]], [[2, 2]] * 3:
        results, expected = (
            step(loss, batch("coca", rows=3) | {"labels": torch.tensor(labels)}) for loss in losses
        )
        close_gradients(results, expected, (3,))
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        losses[0](**batch("coca", rows=3) | {"labels": torch.tensor([[3, 2]] * 3)})


def close_gradients(results, expected, rows):
    for result, value in zip(results, expected, strict=True):
        if value is None:
            assert result is None
        else:
            close(result, value, 2 * gradient_magnitude(rows), operations(rows))


@pytest.mark.parametrize("clip_loss_weight", [0.0, 1.0])
@pytest.mark.parametrize("caption_loss_weight", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_term_of_weight_zero_is_a_floating_zero(caption_loss_weight, clip_loss_weight, dtype):
    loss = CoCaLoss(caption_loss_weight, clip_loss_weight)
    terms = loss(**batch("coca", dtype=dtype), output_dict=True)
    weights = {"contrastive_loss": clip_loss_weight, "caption_loss": caption_loss_weight}
    for name, term in terms.items():
        assert (term.item() == 0) == (weights[name] == 0)
        assert term.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        assert term.device.type == "cpu"
        assert term.shape == ()
    if any(weights.values()):
        sum(terms.values()).backward()


def test_captions_of_weight_zero_are_not_looked_at():
    inputs = batch("coca") | {"labels": torch.full((2, 2), -1), "logits": torch.full((2, 2, 3), torch.nan)}
    contrastive, caption = CoCaLoss(0.0, 1.0)(**inputs)
    assert torch.isfinite(contrastive)
    assert caption == 0


@pytest.mark.parametrize("pad_id", [0, 2, -100])
@pytest.mark.parametrize("convention", ["exact", "open_clip"])
def test_a_batch_of_pads_costs_nothing(pad_id, convention):
    inputs = batch("coca") | {"labels": torch.full((2, 2), pad_id)}
    contrastive, caption = CoCaLoss(2.0, 1.0, pad_id, convention=convention)(**inputs)
    (contrastive + caption).backward()
    assert caption == 0
    assert torch.equal(inputs["logits"].grad, torch.zeros(2, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("convention", ["exact", "open_clip"])
def test_a_single_token_counts_one(convention):
    inputs = batch("coca") | {"labels": torch.tensor([[0, 0], [1, 0]])}
    _, caption = CoCaLoss(1.0, 0.0, convention=convention)(**inputs)
    assert caption == F.cross_entropy(inputs["logits"][1, :1], torch.tensor([1]))


def test_the_teacher_gets_no_gradient():
    inputs = batch("distill")
    step(DistillClipLoss(), inputs)
    assert all((tensor.grad is None) == name.startswith("dist_") for name, tensor in inputs.items())
    inputs = batch("distill")
    step(DistillClipLoss(convention="open_clip"), inputs)
    assert all(tensor.grad is not None for tensor in inputs.values())
    # called alone, too
    teacher, student = (torch.eye(3, requires_grad=True) for _ in range(2))
    DistillClipLoss().dist_loss(teacher, 2 * student).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_distillation_loss_is_a_mean_over_rows():
    # of a uniform teacher and student: log of the number of columns
    loss = DistillClipLoss().dist_loss(torch.ones(2, 4).double(), torch.zeros(2, 4).double())
    close(loss.item(), np.log(4), 2, 8)


def test_siglip_labels():
    loss = SigLipLoss()
    labels = loss.get_ground_truth(torch.device("cpu"), torch.float16, 3)
    assert labels.dtype == torch.float16
    assert labels.tolist() == (2 * np.eye(3) - 1).tolist()
    assert loss.get_ground_truth(torch.device("cpu"), torch.float64, 2, negative_only=True).eq(-1).all()
    assert loss.get_ground_truth(torch.device("meta"), torch.float32, 2).device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_made_on_the_device_of_the_features(kind):
    inputs = {
        name: value.detach().to("meta") if value.ndim else value.item() for name, value in batch(kind).items()
    }
    if kind == "coca":  # of which the labels are read
        with pytest.raises(RuntimeError, match="meta"):
            make(kind)(**inputs)
    else:
        for loss in make(kind), with_doubled_logits(kind):
            assert all(term.device.type == "meta" for term in tree_leaves(loss(**inputs)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_dtype_does_not_matter(kind):
    inputs = batch(kind, dtype=torch.float32)
    expected = make(kind)(**inputs)
    torch.set_default_dtype(torch.float64)
    try:
        terms = make(kind)(**inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    for term, value in zip(tree_leaves(terms), tree_leaves(expected), strict=True):
        assert term.dtype == torch.float32
        assert torch.equal(term, value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_shows_what_it_was_made_with(kind):
    for given in ({}, {"cache_labels": True}):
        loss = make(kind, **given)
        parameters = inspect.signature(type(loss)).parameters
        defaults = {name: parameters[name].default for name in ("cache_labels", "use_horovod")}
        for name, value in (defaults | given).items():
            assert getattr(loss, name) is value


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (ClipLoss(), "ClipLoss()"),
        (ClipLoss(True, True), "ClipLoss(local_loss=True, gather_with_grad=True)"),
        (
            ClipLoss(cache_labels=True, rank=1, world_size=2, convention="open_clip"),
            "ClipLoss(cache_labels=True, rank=1, world_size=2, convention='open_clip')",
        ),
        (DistillClipLoss(gather_with_grad=True), "DistillClipLoss(gather_with_grad=True)"),
        (CoCaLoss(2.0, 1), "CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1)"),
        (
            CoCaLoss(2.0, 1.0, -100, gather_with_grad=True),
            "CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=-100, gather_with_grad=True)",
        ),
        (SigLipLoss(), "SigLipLoss(dist_impl='bidir')"),
        (SigLipLoss(dist_impl="shift", chunk_size=8), "SigLipLoss(dist_impl='shift', chunk_size=8)"),
    ],
)
def test_repr_shows_what_differs_from_the_defaults(loss, shown):
    assert repr(loss) == shown


def with_doubled_logits(kind):
    """Return a loss whose class makes its own logits, as one derived from open_clip's may."""

    class Doubled(CLASSES[kind]):
        def get_logits(self, *arguments):
            logits = super().get_logits(*arguments)
            return 2 * logits if kind == "siglip" else tuple(2 * each for each in logits)

    return Doubled(**{name: WEIGHTS[name] for name in WEIGHTS if kind == "coca"})


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_labels_of_a_subclass_count(kind):
    inputs = batch(kind)
    values = tree_leaves(with_doubled_logits(kind)(**inputs))
    scalars = {name: 2 * value for name, value in inputs.items() if name.endswith(("_scale", "_bias"))}
    expected = tree_leaves(make(kind)(**inputs | scalars))
    for value, other in zip(values, expected, strict=True):
        close(value.item(), other.item(), 8, 8)
    if kind in ("clip", "distill"):
        labels = type("Fixed", (CLASSES[kind],), {"get_ground_truth": lambda *_: torch.tensor([0, 0])})
        student = {name: value for name, value in inputs.items() if not name.startswith("dist_")}
        per_image, per_text = ClipLoss().get_logits(**student)
        wanted = -(per_image.log_softmax(1)[:, 0].mean() + per_text.log_softmax(1)[:, 0].mean()) / 2
        close(tree_leaves(labels()(**inputs))[0].item(), wanted.item(), 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_subclass_are_made_of_what_the_loss_is_called_with(kind):
    seen = []

    class Listening(CLASSES[kind]):
        def get_logits(self, *arguments):
            seen.append(arguments)
            return super().get_logits(*arguments)

    inputs = batch(kind)
    Listening(**{name: WEIGHTS[name] for name in WEIGHTS if kind == "coca"})(**inputs)
    for name, value in zip(
        ("image_features", "text_features", "logit_scale", "logit_bias"), seen[0], strict=True
    ):
        assert value is inputs.get(name)
    if kind == "distill":
        assert list(seen[1][2:]) == [inputs[f"dist_logit_{name}"] for name in ("scale", "bias")]


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(("method", "rows"), [("get_logits", (3, 1, 2)), ("get_ground_truth", (2, 2, 2))])
def test_logits_and_labels_of_a_subclass_are_those_of_its_rank(method, rows, local):
    # the same numbers by another way
    original = getattr(ClipLoss, method)
    own = type("Own", (ClipLoss,), {method: lambda *arguments: original(*arguments)})

    def values(rank, size):
        flags = {"rank": rank, "world_size": size, "local_loss": local, "gather_with_grad": True}
        inputs = batch("clip", rank, rows[rank])
        return [kind(**flags)(**inputs).item() for kind in (own, ClipLoss)]

    for value, expected in SimulatedWorld(len(rows), copies=False).run(values):
        close(value, expected, 8, 8)


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=0, label_smoothing=0.5)


def derived(loss):
    """Return a class whose own method open_clip's forward calls."""

    class Derived(loss):
        def get_ground_truth(self, *arguments, **named):
            signs = super().get_ground_truth(*arguments, **named)
            if loss.__name__ == "SigLipLoss":
                signs[0, 1] = 1.0  # a text is the partner of two images
            return signs

        def dist_loss(self, teacher_logits, student_logits):
            return (teacher_logits - student_logits).square().mean()

        def caption_loss(self, logits, labels):
            return smoothed(logits, labels)

    return Derived


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("kind", ["coca", "distill", "siglip"])
def test_methods_that_open_clip_calls_of_a_subclass_are_called(open_clip_loss, kind, implementation):
    given = {"coca": WEIGHTS}.get(kind, {})
    theirs = derived(getattr(open_clip_loss, CLASSES[kind].__name__))(**given)
    ours = derived(CLASSES[kind])(**given, implementation=implementation)
    found, expected = (
        step(
            loss,
            {name: v for name, v in batch(kind, rows=3).items() if kind == "siglip" or "bias" not in name},
        )
        for loss in (ours, theirs)
    )
    teacher = 3 if kind == "distill" else 0  # which has no gradient here
    assert [one is None for one in found] == [False] * (len(found) - teacher) + [True] * teacher
    for value, other in zip(found, expected, strict=True):
        if value is not None:
            close(value, other, gradient_magnitude((3,)), operations((3,)))


@pytest.mark.parametrize(
    ("kind", "name", "own"),
    [
        ("coca", "caption_loss", nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.5)),
        ("coca", "caption_loss", smoothed),
        ("distill", "dist_loss", lambda teacher, student: (teacher - student).square().mean()),
    ],
)
def test_what_an_object_has_in_place_of_a_method_is_called(kind, name, own):
    given = {"coca": WEIGHTS}.get(kind, {})
    loss = CLASSES[kind](**given)
    setattr(loss, name, own)
    assert same(step(loss, batch(kind)), step(derived(CLASSES[kind])(**given), batch(kind)))


def test_hidden_states_reach_a_caption_loss_as_logits():
    inputs = batch("coca") | {"logits": None}
    weight, bias = torch.arange(6, dtype=torch.float64).view(3, 2), torch.ones(3, dtype=torch.float64)
    hidden = torch.linspace(0, 1, 8, dtype=torch.float64).view(2, 2, 2)
    loss = CoCaLoss(2.0, 1.0)
    loss.caption_loss = smoothed
    given = {"hidden_states": hidden, "vocabulary_weight": weight, "vocabulary_bias": bias}
    _, found = loss(**inputs, **given)
    _, expected = loss(**inputs | {"logits": F.linear(hidden, weight, bias)})
    assert found == expected


@pytest.mark.parametrize("option", ["label_smoothing", "z_loss"])
def test_options_that_a_caption_loss_would_ignore_are_named(option):
    loss = CoCaLoss(2.0, 1.0, **{option: 0.5})
    loss.caption_loss = smoothed
    with pytest.raises(ValueError, match=f"^{option}: expected 0 where caption_loss is overridden, got 0.5$"):
        loss(**batch("coca"))


def by_another_way(kind):
    """Return a loss whose own methods give the same numbers."""

    class Own(CLASSES[kind]):
        pass

    if kind == "siglip":
        Own.get_ground_truth = lambda self, *given: SigLipLoss.get_ground_truth(self, *given)
    if kind == "distill":
        Own.dist_loss = lambda self, *given: DistillClipLoss.dist_loss(self, *given)
    if kind == "coca":
        Own.caption_loss = lambda self, logits, labels: F.cross_entropy(logits, labels, ignore_index=0)
    return Own


@pytest.mark.parametrize("rows", [(3,), (3, 0, 2), (1, 3)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("coca", {"gather_with_grad": True}),
        ("distill", {"gather_with_grad": True}),
        ("distill", {"gather_with_grad": True, "local_loss": True}),
        *(("siglip", {"dist_impl": dist_impl}) for dist_impl in DIST_IMPLS),
        ("siglip", {"chunk_size": 2}),
    ],
)
def test_methods_of_a_subclass_are_weighed_as_those_of_the_loss(kind, options, rows):
    given = options | {"coca": WEIGHTS}.get(kind, {})

    def steps(rank, size):
        place = {"rank": rank, "world_size": size}
        return [
            step(loss(**given, **place), batch(kind, rank, rows[rank]))
            for loss in (by_another_way(kind), CLASSES[kind])
        ]

    for found, expected in SimulatedWorld(len(rows), copies=False).run(steps):
        for value, other in zip(found, expected, strict=True):
            assert (value is None) == (other is None)
            if value is not None:
                close(value, other, gradient_magnitude(rows), operations(rows))


def test_captions_of_padding_alone_reach_no_caption_loss():
    inputs = batch("coca") | {"labels": torch.zeros(2, 2, dtype=torch.int64)}
    loss = CoCaLoss(2.0, 1.0)
    loss.caption_loss = smoothed  # of no tokens it is NaN
    _, found = loss(**inputs)
    found.backward()
    assert found == 0
    assert inputs["logits"].grad.eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_holds_the_methods_of_a_subclass(kind):
    torch._dynamo.reset()
    loss = by_another_way(kind)(**{"coca": WEIGHTS}.get(kind, {}))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert all(map(torch.equal, tree_leaves(compiled(**batch(kind))), tree_leaves(loss(**batch(kind)))))


def test_labels_made_under_inference_mode_serve_a_later_backward():
    loss = ClipLoss(cache_labels=True)
    with torch.inference_mode():
        assert not loss.get_ground_truth("cpu", 2).is_inference()
    assert loss.get_ground_truth("cpu", 2) is loss.get_ground_truth("cpu", 2)


@pytest.mark.parametrize("convention", ["exact", "open_clip"])
@pytest.mark.parametrize("training", [True, False])
def test_distill_keeps_nothing_of_a_teacher_that_does_not_learn(convention, training):
    inputs = batch("distill")
    kept = []
    with (
        torch.set_grad_enabled(training),
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
        ),
    ):
        make("distill", convention=convention)(**inputs)
    teacher = {inputs[name].data_ptr() for name in ("dist_image_features", "dist_text_features")}
    assert bool(kept) == training
    learns = training and convention == "open_clip"
    assert bool(teacher & {tensor.data_ptr() for tensor in kept}) == learns


def test_siglip_logits_may_be_rectangular():
    inputs = batch("siglip", rows=4)
    logits = SigLipLoss().get_logits(**inputs | {"text_features": inputs["text_features"][:2]})
    assert torch.equal(logits, ClipLoss().get_logits(**inputs)[0][:, :2])
    for name in ("image_features", "text_features"):
        assert 0 in SigLipLoss().get_logits(**inputs | {name: inputs[name][:0]}).shape


def test_eager_functions_stay_out_of_the_compiler():
    def double(x):
        assert not torch.compiler.is_compiling()
        return 2 * x

    kept = eager(double)
    assert torch.equal(kept(X2), 2 * X2)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda x: kept(x), fullgraph=True, backend="eager")(X2)


def test_each_eager_function_is_kept_out_as_it_is_first_called():
    def times(factor):
        def multiply(x):
            assert not torch.compiler.is_compiling()
            return factor * x

        return eager(multiply)

    class Both(torch.nn.Module):
        def __init__(self, *kept):
            super().__init__()
            self.kept = kept

        def forward(self, x):
            for one in self.kept:
                x = one(x + 1)
            return x

    first, second, third = times(2), times(3), times(4)
    torch._dynamo.reset()
    for kept in ((first,), (first, second), (third, first), (second, third)):
        loss = Both(*kept)
        assert torch.equal(torch.compile(loss, backend="aot_eager")(X2), loss(X2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copied_loss_is_the_loss(kind, duplicate):
    loss = make(kind, cache_labels=True)
    expected = step(loss, batch(kind))
    twin = duplicate(loss)
    assert same(step(twin, batch(kind)), expected)
    assert same(step(loss, batch(kind)), expected)
    assert twin.state_dict() == loss.state_dict() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_runs_and_is_finite(kind):
    inputs = batch(kind, rows=8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        terms = tree_leaves(make(kind)(**inputs))
    assert all(term.dtype == torch.float32 for term in terms)
    sum(terms).backward()
    assert all(torch.isfinite(term) for term in terms)
    for tensor in inputs.values():
        assert tensor.grad is None or (tensor.grad.isfinite().all() and tensor.grad.dtype == torch.float32)


def two_dtypes(kind, rank, dtype):
    """Return bfloat16 inputs; the texts of teacher and student have another dtype."""
    inputs = batch(kind, rank, 4, torch.bfloat16)
    return {
        name: value.detach().to(dtype).requires_grad_() if "text" in name else value
        for name, value in inputs.items()
    }


def autocast_step(rank, size, kind, options, dtype):
    """Return values, gradients rounded to bfloat16, and whether gradients have the dtypes of their inputs."""
    inputs = two_dtypes(kind, rank, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        values = tree_leaves(make(kind, rank, size, **options)(**inputs))
    sum(values).backward()
    gradients = {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}
    kept = all(gradient.dtype == inputs[name].dtype for name, gradient in gradients.items())
    return [value.item() for value in values], [g.bfloat16().tolist() for g in gradients.values()], kept


def autocast_in_a_world(rank, size, kind, options):
    mixed, narrow = (autocast_step(rank, size, kind, options, t) for t in (torch.float32, torch.bfloat16))
    # added up in bfloat16, several gradients of one text are less exact
    several = options.get("local_loss") or options.get("chunk_size")
    return mixed[0] == narrow[0], several or mixed[1] == narrow[1], mixed[2]


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_makes_one_dtype_of_two(kind):
    assert all(autocast_in_a_world(0, 1, kind, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_holds_the_loss_of_two_dtypes_under_autocast(kind):
    torch._dynamo.reset()
    compiled = torch.compile(make(kind), fullgraph=True, backend="aot_eager")
    inputs = two_dtypes(kind, 0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, tree_leaves(compiled(**inputs)), tree_leaves(make(kind)(**inputs))))


@pytest.mark.parametrize(("kind", "options"), WORLD_OPTIONS)
def test_autocast_makes_one_dtype_of_two_on_every_rank(kind, options):
    assert all(all(rank) for rank in shared_world(2).run(autocast_in_a_world, kind, options))


@pytest.mark.parametrize("kind", KINDS)
def test_two_dtypes_under_autocast_give_the_loss(kind):
    random = torch.Generator().manual_seed(1)
    inputs = batch(kind, rows=4, dtype=torch.bfloat16)
    for name in inputs:
        if "text" in name:  # not representable in bfloat16
            inputs[name] = F.normalize(torch.randn(4, 3, generator=random), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        values = tree_leaves(make(kind)(**inputs))
    exact = {name: value if name == "labels" else value.double() for name, value in inputs.items()}
    # logits of magnitude 3 + 0.5: text, scaled image, 3 products, 2 sums, the result and the biased one
    error = 3.5 * 9 * UNIT_ROUNDOFF_BFLOAT16 / (1 - 9 * UNIT_ROUNDOFF_BFLOAT16)
    # a row's cross-entropy moves by twice that, a teacher's entropy by that range of logits, 7, times more;
    # a sigmoid's by once that for each of 4 texts
    bound = {"siglip": 4, "distill": 2 + 2 * 7}.get(kind, 2) * error
    for value, expected in zip(values, tree_leaves(make(kind)(**exact)), strict=True):
        assert abs(value.item() - expected.item()) <= bound


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("meta", torch.float16)])
def test_autocast_leaves_what_it_does_not_know(device, dtype):
    image = X2.to(device)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"^text_features: expected"):
        ClipLoss()(image, image.to(dtype), 3.0)


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("chunk_size", [1, 2, 4, 7])
def test_chunks_of_images_cost_what_all_cost(rows, chunk_size):
    results = step(SigLipLoss(chunk_size=chunk_size), batch("siglip", rows=rows))
    close_gradients(results, step(SigLipLoss(chunk_size=0), batch("siglip", rows=rows)), (rows,))


def test_logits_are_made_of_so_many_images_at_a_time(monkeypatch):
    scored, scaled_product = [], contrast.scaled_product

    def spy(image_features, *arguments):
        scored.append(len(image_features))
        return scaled_product(image_features, *arguments)

    monkeypatch.setattr(contrast, "scaled_product", spy)
    for chunk_size, expected in (0, [5]), (None, [5]), (2, [2, 2, 1]), (5, [5]), (8, [5]):
        scored.clear()
        SigLipLoss(chunk_size=chunk_size)(**batch("siglip", rows=5))
        assert scored == expected


def test_labels_are_made_on_the_device_of_the_features():
    image, text = torch.zeros(2, 3, device="meta"), torch.zeros(4, 3, device="meta")
    assert contrast.sum_infonce(image, text, 1.0, None, 1).is_meta
    assert contrast.sum_symmetric(image, image, 1.0, None).is_meta
    assert contrast.sum_sigmoid(image, text, 1.0, None, 1).is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_siglip_in_half_precision_is_finite(dtype):
    inputs = batch("siglip", rows=512, dtype=dtype) | {"logit_bias": None}
    loss = SigLipLoss()(**inputs)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.finfo(torch.float16).max < loss * 512 < torch.inf
    assert all(tensor.grad.isfinite().all() for tensor in inputs.values() if tensor is not None)


# Real processes.


def both_ways_of_logits(rank, size, rows):
    inputs = batch("clip", rank, rows[rank])
    with torch.no_grad():
        return [
            [
                z.numpy()
                for z in make("clip", rank, size, local_loss=local, gather_with_grad=True).get_logits(
                    **inputs
                )
            ]
            for local in (False, True)
        ]


@pytest.mark.parametrize("rows", [(3, 3), (2, 4), (2, 1, 3)])
def test_local_logits_are_rows_of_the_global_ones(rows):
    start = 0
    for n, (everyone, own) in zip(rows, shared_world(len(rows)).run(both_ways_of_logits, rows), strict=True):
        for all_logits, logits in zip(everyone, own, strict=True):
            expected = all_logits[start : start + n]
            # dot products of 3 unit terms at scale 3, and a bias of 0.5
            close(logits, expected, 2 * 3.5, 6)
        start += n


def cached_and_fresh(rank, size, kind, sequence):
    loss = make(kind, rank, size, local_loss=True, gather_with_grad=True, cache_labels=True)
    agree = []
    for rows in sequence:
        fresh = make(kind, rank, size, local_loss=True, gather_with_grad=True)
        inputs = [batch(kind, rank, rows[rank]) for _ in range(2)]
        agree.append(same(step(loss, inputs[0]), step(fresh, inputs[1])))
    return agree


@pytest.mark.parametrize("kind", ["clip", "coca", "distill"])
def test_cached_labels_follow_the_other_ranks_rows(kind):
    sequence = [(2, 2), (1, 2), (3, 2), (2, 2), (2, 1)]
    assert shared_world(2).run(cached_and_fresh, kind, sequence) == [[True] * 5] * 2


def compiled_and_eager(rank, size, kind, options, backend):
    torch._dynamo.reset()
    loss = make(kind, rank, size, **options)
    compiled = torch.compile(make(kind, rank, size, **options), backend=backend)
    return [step(each, batch(kind, rank, 2)) for each in (compiled, loss)]


COMPILED = [
    *(("clip", options, "aot_eager") for options in CLIP_OPTIONS if options["convention"] == "exact"),
    *(("clip", options, "eager") for options in CLIP_OPTIONS),
    *((kind, options, "eager") for kind, options in WORLD_OPTIONS if kind != "clip"),
]


@pytest.mark.processes
@pytest.mark.parametrize(("kind", "options", "backend"), COMPILED)
def test_compiled_gradients_equal_eager_ones(kind, options, backend):
    for results, expected in shared_world(2).run(compiled_and_eager, kind, options, backend):
        close_gradients(results, expected, (2, 2))


def run_in_group(rank, size, members):
    """Return what each loss and exchange gives among `members`, of which the other ranks make groups too."""
    groups = [dist.new_group(list(ranks)) for ranks in members]
    group = next(g for g, ranks in zip(groups, members, strict=True) if rank in ranks)
    results = everything(dist.get_rank(group), dist.get_world_size(group), group)
    dist.barrier()
    for made, ranks in zip(groups, members, strict=True):
        if rank in ranks:
            dist.destroy_process_group(made)
    return results


def everything(rank, size, group=None):
    results = [
        step(make(kind, rank, size, group=group, **o), batch(kind, rank, 2)) for kind, o in WORLD_OPTIONS
    ]
    mine = batch("clip", rank, rank + 1)["image_features"]
    left, right = (rank - 1) % size, (rank + 1) % size
    received = [
        neighbour_exchange(left, right, mine, group),
        neighbour_exchange_with_grad(left, right, mine, group),
        *neighbour_exchange_bidir(left, right, mine, -mine, group),
        *neighbour_exchange_bidir_with_grad(left, right, mine, -mine, group),
        *gather_features(mine, mine, rank=rank, world_size=size, gather_with_grad=True, group=group),
    ]
    sum((k + 1) * (tensor**2).sum() for k, tensor in enumerate(received)).backward()
    return [*results, [tensor.detach().numpy() for tensor in received], [mine.grad.numpy()]]


@pytest.mark.processes
@pytest.mark.parametrize("members", [((1, 2), (0, 3)), ((2, 3), (0, 1))])
def test_a_group_is_a_world_of_its_own(members):
    results = shared_world(4).run(run_in_group, members)
    expected = shared_world(2).run(everything)
    check_groups(members, results, expected)


def check_groups(members, results, expected):
    for ranks in members:
        for local_rank, rank in enumerate(ranks):
            for result, value in zip(results[rank], expected[local_rank], strict=True):
                assert same(result, value)


@pytest.mark.parametrize("members", [((1, 3), (0, 2)), ((1, 3, 5), (0, 2, 4))])
def test_a_group_of_simulated_ranks_is_a_world_of_its_own(members):
    size = len(members[0])
    results = SimulatedWorld(2 * size).run(run_in_group, members)
    check_groups(members, results, SimulatedWorld(size).run(everything))


def disagree_in_group(rank, size, members):
    groups = [dist.new_group(ranks) for ranks in members]  # each rank takes part in making each
    group = next(g for g, ranks in zip(groups, members, strict=True) if rank in ranks)
    assert Transport(dist.get_rank(group), 2, group).all_gather_text("a") == ["a", "a"]
    other = 1 - dist.get_rank(group)
    with pytest.raises(ValueError, match=r"^to_rank: expected an int in \[0, 2\), got 2$"):
        neighbour_exchange(other, 2, X2, group)
    with pytest.raises(TypeError if other == 0 else ValueError, match=r"^(tensor|rank 1 could not)"):
        neighbour_exchange_bidir(other, other, X2, X2 if other else "wrong", group)
    inputs = batch("clip", rank)
    with pytest.raises(ValueError, match="ranks disagree: rank 0 calls") as error:
        ClipLoss(
            rank=dist.get_rank(group), world_size=2, gather_with_grad=dist.get_rank(group) == 0, group=group
        )(**inputs)
    return str(error.value)


def test_ranks_that_disagree_in_a_group_all_raise():
    members = [[1, 3], [0, 2]]
    for message in SimulatedWorld(4).run(disagree_in_group, members):
        assert "gather_with_grad=True" in message.partition("rank 1 calls")[0]
        assert "gather_with_grad=False" in message.partition("rank 1 calls")[2]


def gathered_dtypes(rank, size, caption_loss_weight, clip_loss_weight):
    """Return the dtypes of the features gathered while a loss is computed."""
    carried, all_gather = [], Transport.all_gather

    def spy(transport, tensor):
        carried.append(tensor.dtype)
        return all_gather(transport, tensor)

    Transport.all_gather = spy
    try:
        loss = CoCaLoss(
            caption_loss_weight, clip_loss_weight, rank=rank, world_size=size, gather_with_grad=True
        )
        terms = loss(**batch("coca", rank))
        sum(terms).backward()
    finally:
        Transport.all_gather = all_gather
    return carried, [term.item() for term in terms], [str(term.dtype) for term in terms]


@pytest.mark.processes
def test_a_contrastive_term_of_weight_zero_gathers_nothing():
    for carried, (contrastive, caption), dtypes in shared_world(2).run(gathered_dtypes, 2.0, 0.0):
        assert carried == []
        assert contrastive == 0 < caption
        assert dtypes == ["torch.float64"] * 2
    for carried, (contrastive, caption), _ in shared_world(2).run(gathered_dtypes, 0.0, 1.0):
        assert carried == [torch.float64]
        assert caption == 0 < contrastive


def one_rank_of_pads(rank, size):
    inputs = batch("coca", rank)
    inputs["labels"] = torch.full((2, 2), 0 if rank == 0 else 1)
    _, caption = make("coca", rank, size)(**inputs)
    caption.backward()
    alone = batch("coca", rank) | {"labels": inputs["labels"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # this rank's rows alone are what is asked for
        CoCaLoss(2.0, 1.0)(**alone)[1].backward()
    return caption.item(), inputs["logits"].grad.numpy(), alone["logits"].grad.numpy()


def test_a_rank_of_pads_costs_nothing():
    (pads, pad_grad, _), (tokens, grad, alone) = shared_world(2).run(one_rank_of_pads)
    assert pads == 0
    assert not pad_grad.any()
    # all tokens are rank 1's, and the mean over two ranks halves
    assert tokens > 0
    close(grad, 2 * alone, gradient_magnitude((4,)), operations((4,)))


def teacher_gradients(rank, size, options):
    inputs = batch("distill", rank)
    step(make("distill", rank, size, **options), inputs)
    return {name: tensor.grad is not None for name, tensor in inputs.items()}


@pytest.mark.parametrize("options", CLIP_OPTIONS[::2])
def test_the_teacher_gets_no_gradient_from_any_rank(options):
    for has_gradient in shared_world(2).run(teacher_gradients, options):
        assert all(has == (not name.startswith("dist_")) for name, has in has_gradient.items())


def frozen_and_free(rank, size, dist_impl):
    free, frozen = batch("siglip", rank), batch("siglip", rank)
    frozen["text_features"].requires_grad_(False)
    for inputs in free, frozen:
        make("siglip", rank, size, dist_impl=dist_impl)(**inputs).backward()
    names = ["image_features", "logit_scale", "logit_bias"]
    equal = all(torch.equal(free[name].grad, frozen[name].grad) for name in names)
    return equal and frozen["text_features"].grad is None


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dist_impl", DIST_IMPLS)
def test_frozen_texts_neither_hang_nor_change_the_images_gradients(size, dist_impl):
    assert all(shared_world(size).run(frozen_and_free, dist_impl))


def exchange_one_that_requires_grad(rank, size, bidir):
    left, right = (rank - 1) % size, (rank + 1) % size
    mine = torch.ones(2, requires_grad=rank == 0)
    if bidir:
        received = neighbour_exchange_bidir_with_grad(left, right, mine, mine)
    else:
        received = (neighbour_exchange_with_grad(left, right, mine),)
    sum(((rank + 1) * tensor).sum() for tensor in received).backward()
    return mine.grad.tolist() if rank == 0 else mine.grad


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("bidir", [False, True])
def test_gradients_come_back_through_ranks_that_need_none(size, bidir):
    gradients = shared_world(size).run(exchange_one_that_requires_grad, bidir)
    # rank 1 counts what it gets from rank 0 twice, and the last rank `size` times
    assert gradients == [[2.0 + size * bidir] * 2] + [None] * (size - 1)


def gather_and_derive(rank, size, **options):
    inputs = [batch("clip", rank, rank + 1)[name] for name in ("image_features", "text_features")]
    everyone = gather_features(*inputs, rank=rank, world_size=size, **options)
    if any(each.requires_grad for each in everyone):
        sum((each**2).sum() for each in everyone).backward()
    return [tensor.grad if tensor.grad is None else tensor.grad.numpy() for tensor in inputs]


def gather_by_default(rank, size):
    return gather_and_derive(rank, size), gather_and_derive(
        rank, size, local_loss=False, gather_with_grad=False
    )


def test_gather_features_by_default():
    for default, explicit in shared_world(2).run(gather_by_default):
        assert all(gradient is not None for gradient in default)
        assert same(default, explicit)


def derive_thrice(rank, size, how):
    """Return three derivatives, one after the other, of the sum over ranks of y^4."""
    transport, rows = Transport(rank, size), tuple(range(1, size + 1))
    left, right = (rank - 1) % size, (rank + 1) % size
    x = (torch.arange(2.0 * rows[rank], dtype=torch.float64).reshape(-1, 2) - rank).requires_grad_()
    outputs = {
        "gather": lambda: gather_rows(transport, rows, [x]),
        "broadcast": lambda: [broadcast_rows(transport, rows, x, 1)],
        "exchange": lambda: [neighbour_exchange_with_grad(left, right, x)],
        "exchange_bidir": lambda: neighbour_exchange_bidir_with_grad(left, right, x, x),
    }[how]()
    total = sum((y**4).sum() for y in outputs)
    derivatives = []
    for _ in range(3):
        (derivative,) = torch.autograd.grad(total, x, create_graph=True)
        derivatives.append(derivative.detach().numpy())
        total = (2 * derivative).sum()
    return x.detach().numpy(), derivatives


@pytest.mark.parametrize("how", ["gather", "broadcast", "exchange", "exchange_bidir"])
@pytest.mark.parametrize("size", [2, 3])
def test_any_derivative_travels(size, how):
    for rank, (x, derivatives) in enumerate(shared_world(size).run(derive_thrice, how)):
        # how many outputs each row is in
        times = {"gather": size, "broadcast": size * (rank == 1), "exchange": 1, "exchange_bidir": 2}[how]
        # of small integers, so without rounding; each is derived along 2
        for derivative, expected in zip(derivatives, [4 * x**3, 2 * 12 * x**2, 4 * 24 * x], strict=True):
            assert np.array_equal(derivative, times * expected)


def derive_by_a_cotangent(rank, size, bidir):
    """Return the derivative of <gradient, rank + 2> by cotangents that only rank 1 has as variables."""
    left, right = (rank - 1) % size, (rank + 1) % size
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    y = (
        neighbour_exchange_bidir_with_grad(left, right, x, x)
        if bidir
        else [neighbour_exchange_with_grad(left, right, x)]
    )
    cotangents = [torch.full((2,), 3.0, dtype=torch.float64, requires_grad=rank == 1) for _ in y]
    (gradient,) = torch.autograd.grad(y, x, cotangents, create_graph=True)
    ((rank + 2.0) * gradient).sum().backward()
    return [None if cotangent.grad is None else cotangent.grad.tolist() for cotangent in cotangents]


@pytest.mark.parametrize("bidir", [False, True])
def test_a_rank_whose_cotangents_are_constants_serves_the_others(bidir):
    # y from the right was sent by rank 2, y from the left by rank 0
    expected = [[4.0, 4.0], [2.0, 2.0]] if bidir else [[2.0, 2.0]]
    nothing = [None] * len(expected)
    assert shared_world(3).run(derive_by_a_cotangent, bidir) == [nothing, expected, nothing]


def without_gradients(rank, size, kind, options):
    loss, inputs = make(kind, rank, size, **options), batch(kind, rank)
    expected = tree_leaves(loss(**inputs))
    with torch.no_grad():
        quiet = tree_leaves(loss(**inputs))
    with torch.inference_mode():
        inference = tree_leaves(loss(**inputs))
    sum(tree_leaves(loss(**inputs))).backward()
    return [
        torch.equal(a, b) and torch.equal(a, c) and not b.requires_grad and not c.requires_grad
        for a, b, c in zip(expected, quiet, inference, strict=True)
    ]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("kind", "options"), WORLD_OPTIONS)
def test_values_without_gradients_are_the_values(size, kind, options):
    assert all(all(rank) for rank in shared_world(size).run(without_gradients, kind, options))


class Towers(nn.Module):
    """Two orthogonal towers: unit rows in, unit rows out."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        weights = [torch.linalg.qr(torch.randn(3, 3, generator=random).double())[0] for _ in range(2)]
        self.image, self.text = map(nn.Parameter, weights)
        self.logit_scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def forward(self, image, text):
        return image @ self.image, text @ self.text, self.logit_scale, self.logit_bias


def train_step(rank, size, kind, options, rows, distributed):
    everyone = [batch("clip", other, n) for other, n in enumerate(rows)]
    towers = Towers()
    if distributed:
        model, mine = DistributedDataParallel(towers), [everyone[rank]]
    else:
        model, mine = towers, everyone
    inputs = [torch.cat([b[name].detach() for b in mine]) for name in ("image_features", "text_features")]
    make(kind, rank, size, **options)(*model(*inputs)).backward()
    return [parameter.grad.numpy() for parameter in towers.parameters()]


@pytest.mark.processes
@pytest.mark.parametrize("rows", [(3, 3), (1, 4)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("clip", {}),
        ("clip", {"gather_with_grad": True}),
        ("clip", {"local_loss": True, "gather_with_grad": True}),
        *(("siglip", options) for options in SIGLIP_OPTIONS),
        ("siglip", {"chunk_size": 2}),
    ],
)
def test_ddp_gives_the_gradients_of_one_process(kind, options, rows):
    expected = train_step(0, 1, kind, options, rows, distributed=False)
    for gradients in shared_world(2).run(train_step, kind, options, rows, True):
        for gradient, value in zip(gradients, expected, strict=True):
            # a weight sums over the rows what reaches a feature
            close(gradient, value, sum(rows) * gradient_magnitude(rows), operations(rows) + 2 * sum(rows))


def test_names_are_imported_at_first_use(monkeypatch):
    for name in verified_losses.__all__:
        known = getattr(verified_losses, name)
        monkeypatch.delitem(vars(verified_losses), name)
        assert getattr(verified_losses, name) is known
        assert vars(verified_losses)[name] is known
    assert {*verified_losses.__all__, "__version__"} <= {*dir(verified_losses)}
    with pytest.raises(AttributeError) as error:
        verified_losses.NoSuchLoss  # noqa: B018
    assert str(error.value) == "module 'verified_losses' has no attribute 'NoSuchLoss'"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_graph_counts_tokens_in_the_dtype_of_the_loss(monkeypatch, dtype):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    logits, labels = torch.zeros(2, 3, 5, dtype=dtype), torch.tensor([[1, 0, 2], [0, 4, 3]])
    tokens = CoCaLoss(2.0, 1.0)._count_tokens(logits, labels, 5, "logits")
    assert tokens == 4
    assert tokens.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


def test_a_divisor_is_at_least_one_token():
    for tokens, expected in (0, 1), (1, 1), (3, 3):
        assert _at_least_one(tokens) == expected
        assert _at_least_one(torch.tensor(tokens)) == expected
