"""Tiles over ranks: equal to all logits at once, each computed by one rank, and sent is what is stated."""

import itertools
import re

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests import pretend_horovod
from tests.helpers import Products, close, gradient_magnitude, operations, tensors_made
from tests.test_losses import batch, make
from verified_losses import ranks
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.certifier import checks, verify
from verified_losses.properties.worlds.processes import shared_world
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.specs import parse
from verified_losses.transport import Transport

KINDS = ["clip", "coca", "distill"]
FLAGS = [
    {"local_loss": local, "gather_with_grad": grad}
    for local, grad in itertools.product([True, False], repeat=2)
]
UNEVEN = (5, 0, 9)
TILE = 4


def derive(rank, size, kind, options, rows, order, learns):
    """Return values and gradients of unlike cotangents; with `order` 2 derivatives of these, too."""
    inputs = batch(kind, rank, rows[rank])
    for name, tensor in inputs.items():
        tensor.requires_grad_(tensor.requires_grad and name in (learns or inputs))
    leaves = [tensor for tensor in inputs.values() if tensor.requires_grad]
    values = tree_leaves(make(kind, rank, size, **options)(**inputs))
    total = sum((rank + number + 1) * value for number, value in enumerate(values))
    found = torch.autograd.grad(total, leaves, create_graph=order == 2, allow_unused=True)
    everything = [*values, *found]
    if order == 2:
        squares = sum(gradient.square().sum() for gradient in found if gradient is not None)
        everything += torch.autograd.grad(squares, leaves, allow_unused=True, materialize_grads=True)
    return [None if each is None else each.detach().numpy() for each in everything]


def compare(world, kind, options, rows=UNEVEN, order=1, learns=()):
    forms = {"implementation": "dense"}, {"implementation": "streamed", "tile_size": TILE}
    expected, found = (world.run(derive, kind, options | form, rows, order, learns) for form in forms)
    largest = (len(rows) + 2) * gradient_magnitude(rows) ** order
    for values, others in zip(found, expected, strict=True):
        for value, other in zip(values, others, strict=True):
            assert (value is None) == (other is None)
            if value is not None:
                close(value, other, largest, 4 * operations(rows))


@pytest.mark.parametrize("convention", ["exact", "open_clip"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_flag_means_what_it_means_densely(kind, flags, convention):
    options = flags | {"convention": convention}
    if kind == "distill" and convention == "open_clip":  # whose teacher learns: it is dense
        options["convention"] = "exact"
    compare(SimulatedWorld(3), kind, options)
    compare(SimulatedWorld(3), kind, options, order=2)


@pytest.mark.parametrize("learns", ["image_features", "text_features", "logit_scale"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_one_input_may_learn_alone(flags, learns):
    for order in 1, 2:
        compare(SimulatedWorld(3), "clip", flags, order=order, learns=(learns,))


def has_finite_terms(rank, size, options, inputs):
    return [
        value.isfinite().item() for value in tree_leaves(make("distill", rank, size, **options)(**inputs))
    ]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", ["logit_bias", "dist_logit_bias"])
def test_a_bias_that_is_not_finite_reaches_the_terms_it_is_in(name, flags):
    inputs = batch("distill", rows=3)
    inputs[name] = torch.tensor(torch.inf, dtype=torch.float64)
    dense, tiles = (
        SimulatedWorld(2).run(has_finite_terms, flags | {"implementation": form}, inputs)
        for form in ("dense", "streamed")
    )
    assert tiles == dense == 2 * [[name != "logit_bias", False]]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_over_gloo(flags):
    compare(shared_world(2), "distill", flags, (3, 6))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_over_horovod(flags, monkeypatch):
    pretend_horovod.install(monkeypatch, pretend_horovod.module())
    compare(SimulatedWorld(3), "distill", flags | {"use_horovod": True})


@pytest.mark.parametrize("kind", ["clip", "distill"])
def test_certified_over_ranks(kind):
    contract, shipped = SHIPPED[kind]
    options = (("implementation", "streamed"), ("tile_size", TILE))
    subject = Subject(shipped.target, options=options, scales="any", empty_ranks=True)
    laws = "cotangents pass through", "backward is silent"
    for check in checks({kind: (contract, subject)}, parse("sim:2-4")):
        if check.law.name in laws:
            finding = verify(check, 6, base_seed=1)
            assert finding.verdict == "holds", f"{check.law.name}: {finding.reason}\n{finding.counterexample}"


@pytest.mark.parametrize(
    ("kind", "name"), [("clip", "logit_scale"), ("coca", "logit_scale"), ("distill", "dist_logit_scale")]
)
def test_ranks_that_hold_other_scales_are_told(kind, name):
    scale = batch(kind)[name].item()
    told = (
        f"{name}: expected the same number on all ranks, got {scale:g} to {3 * scale:g}: by tiles "
        'each logit is computed by one rank alone; implementation="dense" takes different ones'
    )

    def raised(rank, size):
        inputs = batch(kind, rank, 3)
        loss = make(kind, rank, size, implementation="streamed", gather_with_grad=True)
        # what devices differ by in an exponential is taken; so is NaN
        for factor in (1 + rank * 2.0**-51, float("nan")):
            loss(**inputs | {name: inputs[name].detach() * factor})
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            loss(**inputs | {name: inputs[name].detach() * (1 + rank)})
        with pytest.raises(ValueError, match=f"^{name}: expected the same number on all ranks, got "):
            loss(**inputs | {name: inputs[name].detach() * (1 + rank * 1e-6)})
        return True

    assert SimulatedWorld(3, copies=False).run(raised) == [True] * 3


def count(rank, size, kind, flags, rows):
    inputs = batch(kind, rank, rows, dtype=torch.float32)
    loss = make(kind, rank, size, implementation="streamed", tile_size=TILE, **flags)
    with Products() as forward:
        values = tree_leaves(loss(**inputs))
    with Products() as backward:
        sum(values).backward()
    return forward.operations, backward.operations


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", ["clip", "distill"])
def test_operations_and_bytes_are_those_stated(kind, flags):
    world, n, d, w = SimulatedWorld(4), 6, 3, torch.float32.itemsize
    counts = world.run(count, kind, flags, n)
    e, k = (3, 2) if kind == "distill" else (0, 1)
    every, local = 4 * n, flags["local_loss"]
    gathered, reduced = [w * n * d, w * n * e], [w * (every + 2) * k, w * every * (3 * k - 1)]
    sent = {("all_gather_single", "backward"): [w * k], ("all_reduce", "backward"): [w * every * d]}
    if flags["gather_with_grad"]:
        expected = 2 * n * every * (d + e), 2 * n * every * (3 * d + e)
    else:
        expected = 2 * n * every * (d + e), 4 * n * every * (2 * d + e)
        gathered = [2 * each for each in gathered]
        reduced[1] += 0 if local else w * every * k
        sent = {}
    if not local:
        reduced.append(2 * w * k)
    # the ranks first agree, in three numbers
    sent["all_gather_single", "forward"] = [3 * 8, *(each for each in gathered if each)]
    sent["all_reduce", "forward"] = reduced
    assert counts == [expected] * 4
    assert {(key.operation, key.phase) for key in world.traffic} == set(sent)
    for key, volume in world.traffic.items():
        each = sent[key.operation, key.phase]
        assert (volume.calls, volume.messages) == (len(each), 3 * len(each))
        assert volume.sent == volume.received == 3 * sum(each)


def count_tiles(rank, size, kind, flags, rows, tile):
    loss = make(kind, rank, size, implementation="streamed", tile_size=tile, **flags)
    return tensors_made(loss, batch(kind, rank, rows), tile**2)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize(("kind", "forward", "of_sweep"), [("clip", 3, 3), ("distill", 5, 5)])
def test_tiles_are_made_once(kind, forward, of_sweep, flags):
    # a tile has more elements than features of three columns, of all ranks
    found = SimulatedWorld(2).run(count_tiles, kind, flags, 32, 32)
    # without gathered gradients images and texts have a sweep each
    sweeps = 1 if flags["gather_with_grad"] else 2
    spared = 0 if flags["gather_with_grad"] or not flags["local_loss"] else 1
    assert found == 2 * [(forward, sweeps * (of_sweep - spared))]


def of_tiles(rank, size, flags, tile):
    inputs = batch("clip", rank, UNEVEN[rank])
    pair = inputs["image_features"], inputs["text_features"]
    taking_part = ranks.Ranks(Transport(rank, size), UNEVEN, flags["local_loss"], flags["gather_with_grad"])
    total = ranks.sum_symmetric(pair, inputs["logit_scale"], None, taking_part, tile)
    gradients = torch.autograd.grad(total, pair)
    return [each.detach().numpy() for each in (total, *gradients)]


@pytest.mark.parametrize("tile", [(2, 5), (5, 2)])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_tiles_need_not_be_square(flags, tile):
    found, expected = (SimulatedWorld(3).run(of_tiles, flags, size) for size in (tile, (16, 16)))
    for values, others in zip(found, expected, strict=True):
        for value, other in zip(values, others, strict=True):
            close(value, other, 5 * gradient_magnitude(UNEVEN), 4 * operations(UNEVEN))


def dtypes(rank, size, kind, flags):
    inputs = batch(kind, rank, 3, torch.float32)
    inputs |= {name: one.detach().double() for name, one in inputs.items() if one.ndim == 0}
    values = tree_leaves(make(kind, rank, size, implementation="streamed", **flags)(**inputs))
    return {value.dtype for value in values}


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_another_dtype_changes_none(kind, flags):
    assert SimulatedWorld(2).run(dtypes, kind, flags) == 2 * [{torch.float32}]


def save(rank, size, kind, flags, rows):
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = batch(kind, rank, rows, dtype=torch.float32)
    loss = make(kind, rank, size, implementation="streamed", tile_size=TILE, **flags)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(**inputs)
    given = {tensor.data_ptr() for tensor in inputs.values()}
    return sum(size for place, size in kept.items() if place not in given)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", ["clip", "distill"])
def test_what_is_kept_for_the_backward_is_what_is_stated(kind, flags):
    n, d, w = 6, 3, torch.float32.itemsize
    every, (e, k) = 4 * n, (3, 2) if kind == "distill" else (0, 1)
    texts, rows = w * every * (d + e), w * k * n
    if not flags["gather_with_grad"]:
        texts *= 2
        rows *= 1 if flags["local_loss"] else 4
    stated = texts + rows + w * k * every
    for kept in SimulatedWorld(4).run(save, kind, flags, n):
        # weights and derivatives by the scale besides
        assert 0 <= kept - stated <= 2 * w * k + 8


def test_each_logit_is_computed_by_one_rank():
    # four ranks, one process: the same operations in all, backward included
    flags = {"local_loss": True, "gather_with_grad": True}
    shared = SimulatedWorld(4).run(count, "clip", flags, 6)
    ((forward, backward),) = SimulatedWorld(1).run(count, "clip", flags, 24)
    assert [sum(each) for each in zip(*shared, strict=True)] == [forward, backward]


def derive_in_order(rank, size, flags):
    inputs = batch("clip", rank, rows=5, dtype=torch.float32)
    return [make("clip", rank, size, implementation="streamed", tile_size=TILE, **flags)(**inputs).item()]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_the_same_bits_in_any_order_of_the_ranks(flags):
    one, other = (SimulatedWorld(3, schedule).run(derive_in_order, flags) for schedule in (1, 2))
    assert one == other
