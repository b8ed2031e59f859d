"""The losses by tiles: equal to the dense ones at every border, without their memory."""

import itertools
import re

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import Products, close, gradient_magnitude, operations, tensors_made
from tests.test_losses import CLASSES, KINDS, WEIGHTS, batch, make
from verified_losses import (
    ClipLoss,
    CoCaLoss,
    DistillClipLoss,
    SigLipLoss,
    contrast,
    implementations,
    siglip,
    streamed,
    tiles,
)
from verified_losses.checks import is_in_func, is_transformed
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.certifier import checks, verify
from verified_losses.properties.worlds import WorldError
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.specs import parse

TILE = 4
SIZES = (1, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1)
EXAMPLES = 4
FAR_APART = (1e-30, 1.0, 100.0, 1e4)
"""Scales of logits that are opposite."""
LAWS = (
    "terms equal the oracle",
    "gradients equal the oracle",
    "twice differentiable",
    "second derivatives travel",
    "mean over ranks equals single process",
    "two graphs at once",
    "takes no more memory than stated",
)


def results(loss, inputs, order=1):
    """Return values and gradients, and with `order` 2 the derivatives of its gradients' squares."""
    leaves = [tensor for tensor in inputs.values() if torch.is_tensor(tensor) and tensor.requires_grad]
    values = tree_leaves(loss(**inputs))
    found = torch.autograd.grad(sum(values), leaves, create_graph=order == 2, allow_unused=True)
    everything = [*values, *found]
    if order == 2:
        squares = sum(gradient.square().sum() for gradient in found if gradient is not None)
        everything += torch.autograd.grad(squares, leaves, allow_unused=True, materialize_grads=True)
    return [
        each.detach().numpy() if each.dtype == torch.float64 else each.detach()
        for each in everything
        if each is not None
    ]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_equal_the_whole_at_each_border(kind, order):
    for rows in SIZES:
        compare(kind, rows, order, implementation="streamed", tile_size=TILE)


def compare(kind, rows, order=1, **options):
    """Compare a form of a loss with the dense one, and with `order` 2 second derivatives."""
    inputs = batch(kind, rows=rows)
    expected = results(make(kind, implementation="dense"), inputs, order)
    found = results(make(kind, **options), inputs, order)
    for value, other in zip(found, expected, strict=True):
        size = gradient_magnitude((rows,)) ** order
        close(value, other, 4 * size, 4 * operations((rows,)))


@pytest.mark.parametrize("rows", [(TILE, TILE), (TILE + 1, 1), (1, 2 * TILE, 3)])
def test_rows_may_start_anywhere_in_the_gallery(rows):
    generator = torch.Generator().manual_seed(0)
    gallery = F.normalize(torch.randn(sum(rows), 3, generator=generator).double(), dim=1).requires_grad_()
    dense, streamed = (
        implementations.choose(form, 1, torch.float64, "cpu", (TILE, 3)).sum_sigmoid
        for form in ("dense", "streamed")
    )
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    start = 0
    for count in rows:
        own = gallery[start : start + count].detach().flip(1).requires_grad_()
        parts = [
            torch.autograd.grad(form(own, gallery, scale, -0.5, start), [own, gallery, scale])
            for form in (dense, streamed)
        ]
        for found, expected in zip(*parts, strict=True):
            close(found.numpy(), expected.numpy(), 2 * gradient_magnitude(rows), operations(rows))
        start += count


@pytest.mark.parametrize("kind", KINDS)
def test_certified_by_tiles(kind):
    contract, shipped = SHIPPED[kind]
    subject = Subject(
        shipped.target, shipped.conventions, options=(("implementation", "streamed"),), scales="any"
    )
    for check in checks({kind: (contract, subject)}, parse("1,sim:2-3")):
        if check.law.name in LAWS:
            finding = verify(check, EXAMPLES, base_seed=1)
            assert finding.verdict == "holds", f"{check.law.name}: {finding.reason}\n{finding.counterexample}"


class Largest(TorchDispatchMode):
    """Records how many elements the largest tensor has that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if torch.is_tensor(tensor):
                self.elements = max(self.elements, tensor.numel())
        return returned


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_with_the_rows_and_not_with_their_square(kind):
    rows = 512
    for implementation, squared in ("dense", True), ("streamed", False):
        kept = {}
        inputs = batch(kind, rows=rows, dtype=torch.float32)

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            values = tree_leaves(make(kind, implementation=implementation, tile_size=64)(**inputs))
            sum(values).backward()
        # three of width: features of the pairs; their gradients; captions or the teacher's features
        linear = rows * (3 * 2 * 3 + 8)
        assert (sum(kept.values()) > linear) == squared
        assert (largest.elements >= rows * rows) == squared


@pytest.mark.parametrize(
    ("kind", "forward", "backward"), [("clip", 2, 3), ("coca", 2, 3), ("distill", 4, 5), ("siglip", 2, 0)]
)
def test_tiles_are_made_once(kind, forward, backward):
    rows, tile = 64, 32  # a tile has more elements than features of three columns
    loss = make(kind, implementation="streamed", tile_size=tile)
    assert tensors_made(loss, batch(kind, rows=rows), tile**2) == (forward, backward)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_logits_are_all_that_is_computed(kind):
    rows = 5
    with torch.no_grad(), Products() as products:
        make(kind, implementation="streamed", tile_size=2)(**batch(kind, rows=rows))
    assert products.operations == 2 * rows**2 * 3 * (2 if kind == "distill" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_input_may_learn_alone(kind):
    for name, tensor in batch(kind).items():
        if not tensor.requires_grad or name.startswith("dist"):
            continue
        # a bias of all logits has no part in a softmax: its gradient is the number 0
        for order in (1,) if name == "logit_bias" and kind != "siglip" else (1, 2):
            inputs = {one: value.detach() for one, value in batch(kind, rows=5).items()}
            inputs[name].requires_grad_()
            found, expected = (
                results(make(kind, implementation=form, tile_size=2), inputs, order)
                for form in ("streamed", "dense")
            )
            for value, other in zip(found, expected, strict=True):
                close(value, other, 4 * gradient_magnitude((5,)) ** order, 4 * operations((5,)))


@pytest.mark.parametrize("kind", KINDS)
def test_stated_memory_is_in_proportion_to_the_rows(kind):
    stated = []
    for rows in (1024, 2048, 4096):
        inputs = batch(kind, rows=rows, dtype=torch.float32)
        stated.append(make(kind, implementation="streamed", tile_size=64).stated_memory(**inputs))
        dense = make(kind, implementation="dense").stated_memory(**inputs)
        assert 4 * rows**2 < dense.saved < dense.peak
    for first, second, third in zip(*stated, strict=True):
        assert third - second == 2 * (second - first)


SAVES_ALL = """
from verified_losses import ClipLoss, streamed

forward = streamed._InfoNCE.forward


def saves(ctx, anchors, gallery, scale, *more):
    value = forward(ctx, anchors, gallery, scale, *more)
    ctx.save_for_backward(*ctx.to_save, anchors @ gallery.T)
    return value


streamed._InfoNCE.forward = staticmethod(saves)
"""


def test_a_streamed_form_that_saves_all_logits_takes_more_than_stated(tmp_path, monkeypatch):
    # what the file changes comes back where ranks run in this process
    monkeypatch.setattr(streamed._InfoNCE, "forward", staticmethod(streamed._InfoNCE.forward))
    file = tmp_path / "saves_all.py"
    file.write_text(SAVES_ALL)
    subject = Subject(f"{file}:ClipLoss", options=(("implementation", "streamed"),), scales="any")
    (check,) = [
        check
        for check in checks({"clip": ("clip", subject)}, parse("1"))
        if check.law.name == "takes no more memory than stated"
    ]
    finding = verify(check, 20 * EXAMPLES)
    assert re.search(r"saves \d+ bytes, and states \d+", finding.reason), finding.reason


def test_a_scale_of_zero_has_a_gradient():
    for kind in KINDS:
        inputs = batch(kind, rows=5) | {
            "logit_scale": torch.zeros((), dtype=torch.float64, requires_grad=True)
        }
        found, expected = (results(make(kind, implementation=form), inputs) for form in ("streamed", "dense"))
        for value, other in zip(found, expected, strict=True):
            close(value, other, 2 * gradient_magnitude((5,)), operations((5,)))


def test_scales_may_be_plain_numbers():
    for kind in KINDS:
        tensors = batch(kind, rows=5)
        numbers = {
            name: tensor.item() if tensor.ndim == 0 else tensor.detach() for name, tensor in tensors.items()
        }
        found, expected = (
            tree_leaves(make(kind, implementation="streamed", tile_size=2)(**given))
            for given in (numbers, tensors)
        )
        assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["logit_bias", "dist_logit_bias"])
@pytest.mark.parametrize("bias", [2.0, torch.inf, torch.nan])
def test_a_bias_that_is_not_finite_reaches_the_terms_it_is_in(name, bias):
    inputs = batch("distill", rows=5)
    inputs |= {name: torch.full_like(inputs[name], bias, requires_grad=True)}
    found, expected = (
        tree_leaves(make("distill", implementation=form, tile_size=2)(**inputs))
        for form in ("streamed", "dense")
    )
    assert [value.isfinite() for value in found] == [value.isfinite() for value in expected]


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
@pytest.mark.parametrize("scale", FAR_APART)
def test_logits_far_from_each_other_are_finite(loss, scale):
    check_far_apart(loss, scale, "streamed")


def check_far_apart(loss, scale, implementation):
    # opposite partners, so that all that counts is far below any fixed maximum
    image = torch.eye(6, requires_grad=True)
    value = loss(implementation=implementation, tile_size=2)(image, -image, scale)
    (gradient,) = torch.autograd.grad(value, image)
    dense = loss(implementation="dense")(image, -image, scale)
    assert torch.isfinite(gradient).all()
    assert abs(value - dense) <= 8 * torch.finfo(torch.float32).eps * dense


def test_a_sigmoid_far_below_zero_keeps_its_digits():
    # log(1 + exp(-20)) is exp(-20) to nine digits, which is lost in 1 + exp(-20)
    loss = SigLipLoss(implementation="streamed", tile_size=2)
    image = torch.zeros(3, 2)
    partners = 3 * 20
    close(loss(image, image, 1.0, -20.0).item() * 3, partners, partners, 2**30)
    negatives = implementations.choose("streamed", 3, torch.float32, "cpu").sum_sigmoid(
        image, image, 1.0, -20.0, None
    )
    expected = 9 * torch.tensor(-20.0).double().exp()
    assert abs(negatives - expected) <= 32 * torch.finfo(torch.float32).eps * expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_added_up_in_single_precision(dtype):
    inputs = batch("siglip", rows=512, dtype=dtype) | {"logit_bias": None}
    loss = SigLipLoss(implementation="streamed", tile_size=64)(**inputs)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.finfo(torch.float16).max < loss * 512 < torch.inf
    assert all(tensor.grad.isfinite().all() for tensor in inputs.values() if tensor is not None)


def test_a_teacher_that_learns_gets_its_gradients():
    found, expected = (
        results(DistillClipLoss(convention="open_clip", implementation=form), batch("distill", rows=5))
        for form in ("streamed", "dense")
    )
    assert all((value == other).all() for value, other in zip(found, expected, strict=True))


def test_a_teacher_that_learns_is_dense(taken):
    loss = DistillClipLoss(convention="open_clip")
    inputs = batch("distill", rows=9)
    constant = {name: one.detach() if name.startswith("dist") else one for name, one in inputs.items()}
    loss(**inputs)
    loss(**constant)
    loss(**constant | {"dist_logit_scale": 2.0})
    with torch.no_grad():
        loss(**inputs)
    assert taken == ["dense", "streamed", "streamed", "streamed"]
    taken.clear()
    learning = [name for name in inputs if name.startswith("dist_")]
    for name in learning:
        loss(**constant | {name: inputs[name]})
    assert taken == ["dense"] * len(learning)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_may_be_asked_for_under_autocast(kind):
    inputs = batch(kind, rows=5, dtype=torch.float32)
    loss = make(kind, implementation="streamed", tile_size=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(loss, inputs, 2)
    assert all(value.isfinite().all() for value in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_no_bit(kind, dtype):
    inputs = batch(kind, rows=9, dtype=torch.float32)
    loss = make(kind, implementation="streamed", tile_size=2)
    expected = results(loss, inputs)
    with torch.autocast("cpu", dtype):
        found = results(loss, inputs)
    assert [value.dtype for value in found] == [other.dtype for other in expected]
    assert all(map(torch.equal, found, expected))


def test_a_gradient_of_the_scale_that_float16_does_not_hold_is_finite_under_autocast():
    # every image is near all texts, and the sum over pairs is divided by the rows after it was taken
    features, scale = torch.full((512, 1), 1.0), torch.tensor(3.0, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        SigLipLoss(implementation="streamed")(features, features, scale).backward()
    assert scale.grad.isfinite()


def test_the_same_bits_every_time():
    check_same_bits("streamed")


def check_same_bits(implementation):
    for kind in KINDS:
        inputs = batch(kind, rows=9, dtype=torch.float32)
        loss = make(kind, implementation=implementation, tile_size=2)
        first, again = results(loss, inputs), results(loss, inputs)
        assert all(torch.equal(value, other) for value, other in zip(first, again, strict=True))


# Which is taken when.


def noted(monkeypatch, of):
    """Return a list that grows by of(what is chosen, its last argument) whenever a loss chooses."""
    found = []
    choose = implementations.choose

    def spy(*arguments, **options):
        chosen = choose(*arguments, **options)
        found.append(of(chosen, [*arguments, *options.values()][-1]))
        return chosen

    monkeypatch.setattr(implementations, "choose", spy)
    return found


@pytest.fixture
def taken(monkeypatch):
    """Return the list of implementations that losses choose; `auto` streams from 8 pairs on."""
    monkeypatch.setattr(implementations, "STREAMED_FROM", 8)
    return noted(monkeypatch, lambda chosen, _: chosen.name)


@pytest.mark.parametrize("kind", KINDS)
def test_large_batches_are_streamed(kind, taken):
    for rows in (7, 8):
        make(kind)(**batch(kind, rows=rows))
    assert list(dict.fromkeys(taken)) == ["dense", "streamed"]


@pytest.mark.parametrize("kind", KINDS)
def test_explanations_say_what_is_taken(kind, monkeypatch):
    monkeypatch.setattr(implementations, "STREAMED_FROM", 8)
    loss = make(kind)
    assert loss.explain(7, 3, torch.float32, "cpu").startswith("dense: 7 pairs are fewer than 8")
    assert loss.explain(8, 3, torch.float32, "cpu").startswith("streamed: 8 pairs are at least 8, on a CPU")
    assert loss.explain(8, 3, torch.float32, "cuda").startswith("dense: tiles have not been measured on cuda")
    assert loss.explain(8, 3, torch.bfloat16, "cpu").startswith(
        "dense: products of half precision are faster"
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert loss.explain(8, 3, torch.float32, "cpu").startswith("dense: products of half precision")
    asked = make(kind, implementation="streamed").explain(30_000, 512, torch.float64, "cpu")
    saved, most = {"siglip": ("246 MB", "1.12 GB"), "distill": ("964 kB", "1.74 GB")}.get(
        kind, ("484 kB", "870 MB")
    )
    assert asked == (
        f"streamed: as asked for; beyond its arguments it saves at most {saved} for the backward, "
        f"and takes at most {most}"
    )
    asked = make(kind, implementation="dense").explain(30_000, 512, torch.float32, "cpu")
    assert asked.startswith("dense: as asked for; beyond its arguments it saves at most ")


@pytest.mark.parametrize("kind", KINDS)
def test_explanations_say_that_overridden_methods_are_given_all_logits(kind):
    weights = {name: 1.0 for name in WEIGHTS if kind == "coca"}
    for methods in (["get_logits"], ["get_ground_truth"], ["get_logits", "get_ground_truth"]):
        own = type("Own", (CLASSES[kind],), {name: lambda *_: None for name in methods})
        told = own(**weights, implementation="streamed").explain(30, 3, torch.float64, "cpu")
        stated = own(**weights, implementation="dense").explain(30, 3, torch.float64, "cpu")
        assert told.startswith(f"dense: with {' and '.join(methods)} overridden, all logits are made; ")
        assert told == stated
    loss = DistillClipLoss(implementation="streamed")
    loss.dist_loss = lambda *_: None
    told = loss.explain(30, 3, torch.float64, "cpu")
    assert told.startswith("dense: with dist_loss overridden, all logits are made; ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("there", [True, False])
def test_logits_that_take_more_than_stated_are_streamed_on_a_gpu(kind, there, monkeypatch):
    if there and implementations.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if not there:
        monkeypatch.setattr(implementations, "find_spec", lambda name: None)
    loss = make(kind)
    dense = make(kind, implementation="dense").stated_memory(**batch(kind, rows=70)).peak // 2  # of float64
    for most, found in (
        (2 * dense, "dense: tiles have not been"),
        (dense // 2, "all logits at once would take"),
    ):
        monkeypatch.setattr(implementations, "MOST_BYTES", most)
        name = "triton: " if there else "streamed: "
        explained = loss.explain(70, 3, torch.float32, "cuda")
        assert explained.startswith(found if found.startswith("dense") else name + found)


def test_what_takes_just_as_much_is_dense_on_a_gpu(monkeypatch):
    most = implementations.MOST_BYTES
    names = [
        implementations.choose("auto", 2, torch.float32, "cuda", dense_bytes=count).name
        for count in (most, most + 1)
    ]
    assert names[0] == "dense" != names[1]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = implementations.choose("auto", 2, torch.float32, "cuda", dense_bytes=most + 1)
    assert found[:2] == ("dense", "torch.compile fuses what is in one graph")


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_choose_by_the_one_that_has_most_rows(kind, monkeypatch):
    asked = noted(monkeypatch, lambda _, dense_bytes: dense_bytes)
    options = {} if kind == "siglip" else {"local_loss": True, "gather_with_grad": True}
    loss, other = (make(kind, rank, 2, **options) for rank in range(2))
    inputs = batch(kind, rows=3)
    small, large = (one.stated_memory(rows=[3, 50], **inputs) for one in (loss, other))
    assert small.peak < large.peak
    assert len(set(asked)) == 1
    d = inputs["image_features"].shape[1]
    asked.clear()
    loss.explain(100, d, torch.float64, "cpu")
    loss.stated_memory(rows=[50, 50], **inputs)
    assert len(set(asked)) == 1


def test_calls_choose_by_the_memory_of_all_they_are_given(monkeypatch):
    asked = noted(monkeypatch, lambda _, dense_bytes: dense_bytes)
    for kind in ("clip", "siglip", "distill"):
        inputs = batch(kind, rows=5)
        make(kind)(**inputs)
        assert asked[-1] == make(kind, implementation="dense").stated_memory(**inputs).peak


def learning_on_one_rank(rank, size, implementation):
    loss = make("distill", rank, size, convention="open_clip", implementation=implementation)
    given = {name: one.detach() if name.startswith("dist") else one for name, one in batch("distill").items()}
    if not rank:
        given["dist_logit_scale"].requires_grad_()
    return sum(loss(**given)).isfinite().item()


def test_ranks_agree_on_whether_the_teacher_learns_if_they_compute_otherwise_then():
    assert SimulatedWorld(2).run(learning_on_one_rank, "dense") == [True, True]
    with pytest.raises(WorldError) as error:
        SimulatedWorld(2).run(learning_on_one_rank, "streamed")
    told = [one.detail for one in error.value.ranks]
    assert all("ranks disagree: " in one and "learning teacher" in one for one in told)
    assert len(told) == 2


def test_many_token_logits_are_taken_in_chunks(monkeypatch):
    elements, cpu = implementations.ELEMENTS, torch.device("cpu")
    streams = implementations.streams_tokens
    assert [streams("auto", count, cpu) for count in (elements - 1, elements)] == [False, True]
    assert not streams("auto", elements, torch.device("meta"))
    assert streams("streamed", 1, torch.device("meta"))
    assert not streams("dense", elements, cpu)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not streams("auto", elements, cpu)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func's first use
def test_chunks_of_tokens_are_not_for_functional_derivatives():
    def of_logits(logits):
        with pytest.raises(
            TypeError, match=r"^implementation: 'streamed' is not for torch\.func: use 'auto'"
        ):
            implementations.streams_tokens("streamed", logits.numel(), logits.device)
        return logits.sum()

    torch.func.grad(of_logits)(torch.ones(2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func's first use
def test_functional_derivatives_are_dense(taken):
    image = torch.eye(9)
    gradient = torch.func.grad(lambda x: ClipLoss()(x, image, 2.0))(image)
    _, tangent = torch.func.jvp(lambda x: ClipLoss()(x, image, 2.0), (image,), (gradient,))
    assert tangent > 0
    assert set(taken) == {"dense"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_forward_mode_derivative_is_dense(taken):
    image = torch.eye(9)
    assert not is_transformed()
    with forward_ad.dual_level():
        assert is_transformed()
        assert not is_in_func()
        loss = ClipLoss()(forward_ad.make_dual(image, image), image, 2.0)
        assert forward_ad.unpack_dual(loss).tangent < 0
        explained = ClipLoss().explain(9, 9, torch.float32, "cpu")
        assert explained.startswith("dense: torch.func and forward-mode derivatives go through torch's own")
    assert not is_transformed()
    assert set(taken) == {"dense"}


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_losses_are_dense(kind, monkeypatch):
    monkeypatch.setattr(implementations, "STREAMED_FROM", 1)
    torch._dynamo.reset()
    compiled = torch.compile(make(kind), backend="eager", fullgraph=True)
    dense = make(kind, implementation="dense")
    values, expected = (tree_leaves(loss(**batch(kind))) for loss in (compiled, dense))
    assert all(torch.equal(value, other) for value, other in zip(values, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"implementation": "tiled"},
            ValueError,
            "implementation: expected one of 'auto', 'dense', 'streamed', 'triton', got 'tiled'",
        ),
        ({"tile_size": 0}, ValueError, "tile_size: expected an int of at least 1, got 0"),
        ({"tile_size": True}, TypeError, "tile_size: expected an int or None, got bool"),
        ({"tile_size": 2.0}, TypeError, "tile_size: expected an int or None, got float"),
    ],
)
def test_wrong_options_are_named(kind, options, error, message):
    with pytest.raises(error, match=message):
        make(kind, **options)


def test_chunks_of_images_bound_the_tile(monkeypatch):
    asked = noted(monkeypatch, lambda chosen, _: chosen.tile)
    for chunk_size, tile_size, expected in (2, 4, (2, 4)), (8, 4, (4, 4)), (0, 4, (4, 4)), (None, 3, (3, 3)):
        loss = SigLipLoss(chunk_size=chunk_size, tile_size=tile_size, implementation="streamed")
        loss(**batch("siglip", rows=5))
        assert asked.pop() == expected


def events_of_a_step(rank, size, dist_impl):
    loss = make("siglip", rank, size, dist_impl=dist_impl, implementation="streamed")
    loss(**batch("siglip", rank)).backward()


def test_derivatives_are_formed_where_they_are_recorded_alone():
    slopes = []

    class Noting(tiles.Block):
        def sigmoid(self, *arguments):
            slopes.append(arguments[-1])
            return super().sigmoid(*arguments)

    features = torch.eye(2, requires_grad=True)
    streamed.sum_sigmoid(features, features, 1.0, None, 0, form=Noting)
    with torch.no_grad():
        streamed.sum_sigmoid(features, features, 1.0, None, 0, form=Noting)
    assert [one is None for one in slopes] == [False, True]


@pytest.mark.parametrize("dist_impl", ["shift", "reduce"])
def test_texts_are_scored_as_they_come(dist_impl, monkeypatch):
    events = []
    add = events.append
    name = "exchange_with_grad" if dist_impl == "shift" else "broadcast_rows"
    fetch, score = getattr(siglip, name), SigLipLoss._sum
    monkeypatch.setattr(siglip, name, lambda *given: add("fetch") or fetch(*given))
    monkeypatch.setattr(SigLipLoss, "_sum", lambda *given: add("score") or score(*given))
    world = SimulatedWorld(3)
    world.run(events_of_a_step, dist_impl)
    # of three ranks, one after the other as they wait: nowhere are all texts fetched before any is scored
    assert events.count("fetch") == (6 if dist_impl == "shift" else 9)
    assert events.count("score") == 9
    assert events.index("score") <= 3


def test_every_loss_has_the_options():
    for kind, options in itertools.product(KINDS, [{"implementation": "streamed"}, {"tile_size": 3}]):
        loss = make(kind, **options)
        assert isinstance(loss, nn.Module)
        (shown,) = (f"{name}={value!r}" for name, value in options.items())
        assert shown in repr(loss)
    assert set(CLASSES.values()) == {ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss}
    assert contrast.sum_symmetric is implementations.choose("dense", 1, torch.float32, "cpu").sum_symmetric
