"""Tiles by Triton kernels, which its interpreter runs: equal to all logits at once, at every border."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.helpers import close
from tests.test_losses import KINDS, batch, make
from tests.test_streamed import FAR_APART, check_far_apart, check_same_bits, compare
from verified_losses import ClipLoss, SigLipLoss, implementations, ranks
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.certifier import checks, verify
from verified_losses.properties.worlds import WorldError
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.specs import parse
from verified_losses.tiles import Direction, Statistics

pytestmark = pytest.mark.usefixtures("kernels")

ROOT = Path(__file__).parents[1]
TILE = 4
BORDERS = (1, TILE - 1, TILE, TILE + 1, 2 * TILE + 1)
LAWS = (
    "terms equal the oracle",
    "gradients equal the oracle",
    "cotangents pass through",
    "twice differentiable",
    "mean over ranks equals single process",
    "takes no more memory than stated",
)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_whole_at_each_border_of_a_tile(kind, order):
    for rows in BORDERS:
        compare(kind, rows, order, implementation="triton", tile_size=TILE)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_whole_at_each_border_of_a_block(kind, kernels):
    for rows in (kernels.ROWS, kernels.ROWS + 1, kernels.COLUMNS, kernels.COLUMNS + 1):
        compare(kind, rows, implementation="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_certified_by_kernels(kind):
    contract, shipped = SHIPPED[kind]
    subject = Subject(
        shipped.target, options=(("implementation", "triton"),), scales="any", interpret=True, stated=True
    )
    for check in checks({kind: (contract, subject)}, parse("1,sim:2-3")):
        if check.law.name in LAWS:
            finding = verify(check, 4, base_seed=1)
            assert finding.verdict == "holds", f"{check.law.name}: {finding.reason}\n{finding.counterexample}"


def test_kernels_compile_for_a_gpu(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-m", "tests.compile_kernels"]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.stdout == "compiled\n", ran.stderr


WITHOUT_LAST_BLOCK = """
import torch
from verified_losses import ClipLoss, kernels

launch = kernels._launch


def leaves_out(kernel, tile, dist_tile, factor, *parts, **constants):
    launch(kernel, tile, dist_tile, factor, *parts, **constants)
    if kernel is kernels._sums:
        parts[1][1, -1] = 0


kernels._launch = leaves_out
"""


def test_a_block_that_is_left_out_is_seen(tmp_path):
    file = tmp_path / "leaves_out.py"
    file.write_text(WITHOUT_LAST_BLOCK)
    subject = Subject(f"{file}:ClipLoss", options=(("implementation", "triton"),), interpret=True)
    (check,) = (
        check
        for check in checks({"clip": ("clip", subject)}, parse("1"))
        if check.law.name == "terms equal the oracle"
    )
    assert verify(check, 20).verdict == "falsified"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
def test_halves_are_multiplied_as_they_are_and_added_up_in_single_precision(
    loss, dtype, monkeypatch, kernels
):
    taken = []
    products = kernels._Products.products
    monkeypatch.setattr(
        kernels._Products, "products", lambda *given: taken.append(products(*given)) or taken[-1]
    )
    inputs = batch("clip", rows=20, dtype=dtype)
    exact = {
        name: None if one is None else one.detach().double().requires_grad_() for name, one in inputs.items()
    }
    value = loss(implementation="triton", tile_size=2)(**inputs)
    value.backward()
    loss(implementation="dense")(**exact).backward()
    assert value.dtype == torch.float32
    assert {tile.dtype for tile in taken} == {dtype}
    for name in ("image_features", "text_features", "logit_scale"):
        expected = exact[name].grad
        error = (inputs[name].grad.double() - expected).abs().max()
        # logits of up to 2 are rounded, and derivatives, and what is returned
        assert error <= 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_many_derivatives_of_half_precision_do_not_overflow(loss, autocast):
    # one text that is near all images has the sum of all their derivatives, before it is divided by the rows
    dtype = torch.bfloat16 if autocast else torch.float16
    image = torch.tensor([[0.6, 0.8]]).expand(1024, 2).to(dtype).requires_grad_()
    text = torch.tensor([[0.6, 0.8]]).repeat(1024, 1)
    text[1:] *= -1
    text = text.to(dtype).requires_grad_()
    bias = None if loss is ClipLoss else 0.0
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        loss(implementation="triton", tile_size=1024)(image, text, 100.0, bias).backward()
    assert image.grad.isfinite().all()
    assert text.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_autocast(kind, monkeypatch, kernels):
    taken = set()
    products = kernels._Products.products

    def spy(*given):
        taken.add(products(*given).dtype)
        return products(*given)

    monkeypatch.setattr(kernels._Products, "products", spy)
    inputs = batch(kind, rows=9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        values = tree_leaves(make(kind, implementation="triton", tile_size=2)(**inputs))
    sum(values).backward()
    assert taken == {torch.bfloat16}
    exact = batch(kind, rows=9, dtype=torch.float32)
    sum(tree_leaves(make(kind, implementation="dense")(**exact))).backward()
    for name in ("image_features", "text_features", "logit_scale"):
        assert inputs[name].grad.dtype == torch.float32
        error = (inputs[name].grad - exact[name].grad).abs().max()
        assert error <= 8 * torch.finfo(torch.bfloat16).eps * exact[name].grad.abs().max()


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_features_and_no_sum(loss, dtype, kernels):
    given = batch("clip", rows=20, dtype=torch.float32)

    def gradients(autocast):
        halves = {
            name: value.detach().to(dtype) for name, value in given.items() if name.endswith("_features")
        }
        inputs = given if autocast else given | halves
        with torch.autocast("cpu", dtype, enabled=autocast):
            value = loss(implementation="triton", tile_size=2)(**inputs)
            return value, *torch.autograd.grad(value, inputs["logit_scale"])

    assert all(map(torch.equal, gradients(True), gradients(False)))


def test_a_product_of_half_precision_is_wide_on_a_gpu_too(kernels):
    matrix, other = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((3, 4), (4, 5)))
    found = kernels._wide_product(matrix, other, torch.float32)
    assert (found.dtype, found.shape) == (torch.float32, (3, 5))


def test_a_block_of_logits_of_minus_infinity_adds_nothing(kernels):
    rows = 2 * kernels.ROWS
    image, text = torch.zeros(2, rows, 1)
    image[0], text[kernels.COLUMNS :] = 3e20, -3e20
    tile_size = kernels.ROWS
    found, expected = (
        ClipLoss(implementation=form, tile_size=tile_size)(image, text, 1.0) for form in ("triton", "dense")
    )
    assert expected.isfinite()
    assert abs(found - expected) <= 8 * torch.finfo(torch.float32).eps * expected


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
@pytest.mark.parametrize("scale", FAR_APART)
def test_logits_far_from_each_other_are_finite(loss, scale):
    check_far_apart(loss, scale, "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-80.0, -20.0, -3.0, -1e-3, 0.0, 0.5, 3.0, 40.0])
def test_a_sigmoid_keeps_its_digits(dtype, logit):
    image = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    sums = implementations.choose("triton", 3, dtype, "cpu").sum_sigmoid
    bias = torch.tensor(logit, dtype=dtype, requires_grad=True)
    total = sums(image, image, 1.0, bias, None)
    total.backward()
    exact = torch.tensor(logit, dtype=dtype).double()
    expected = 9 * (exact.clamp(min=0) + torch.log1p(torch.exp(-exact.abs())))
    # the exponential errs by half a unit for each unit of its exponent
    allowed = (8 + abs(logit)) * torch.finfo(dtype).eps
    assert abs(total.double() - expected) <= allowed * expected
    assert abs(bias.grad.double() - 9 * exact.sigmoid()) <= allowed * 9 * exact.sigmoid()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which the interpreter computes with
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("kind", ["clip", "siglip", "distill"])
def test_what_is_not_finite_is_so_in_the_loss(kind, value):
    inputs = batch(kind, rows=5)
    inputs["image_features"].data[1, 0] = value
    found, expected = (
        tree_leaves(make(kind, implementation=form, tile_size=2)(**inputs)) for form in ("triton", "streamed")
    )
    assert [one.isfinite() for one in found] == [one.isfinite() for one in expected]


def test_the_same_bits_every_time():
    check_same_bits("triton")


def test_one_direction_may_be_derived_alone(kernels):
    features = torch.eye(3, dtype=torch.float64)
    inputs = features, features.flip(0).contiguous(), torch.tensor(2.0, dtype=torch.float64)
    log_sums, weights = [torch.zeros(3, dtype=torch.float64)], torch.full((1, 3), 0.5, dtype=torch.float64)
    for dim in (0, 1):
        found, expected = (
            form([inputs], (2, 2)).slope(slice(0, 2), slice(1, 3), [Direction(dim, log_sums, weights)])
            for form in (kernels.Kernels, implementations.Block)
        )
        close(found.numpy(), expected.numpy(), 8, 8)


def test_a_logit_of_minus_infinity_has_no_share(kernels):
    inputs = torch.full((1, 1), torch.inf), -torch.ones(2, 1), torch.tensor(1.0)
    for dim in (0, 1):
        found = kernels.Kernels([inputs], (2, 2), start=1).slope(
            slice(0, 1), slice(0, 2), [Direction(dim, [torch.zeros(2)])]
        )
        assert found.tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_parts_add_up_to_the_whole(taught, weighted):
    generator = torch.Generator().manual_seed(1)
    logits, products, dist_logits = torch.randn(3, 2, 12, generator=generator, dtype=torch.float64).unbind()
    whole, parted = (Statistics(2, 1, logits, taught, weighted) for _ in range(2))
    out, spare = torch.empty_like(logits), torch.empty_like(logits)
    for tile in (slice(0, 6), slice(6, 12)):
        given = [each[:, tile] for each in (products, logits)]
        taught_by = dist_logits[:, tile] if taught else None
        whole.add(*given, taught_by, slice(0, 2), out[:, tile], spare[:, tile])
        parts = []
        for first in (tile.start, tile.start + 3):
            part = slice(first, first + 3)
            maximum = logits[:, part].amax(1)
            less = logits[:, part] - maximum[:, None]
            parts.append([maximum, less.exp().sum(1)])
            if weighted:
                parts[-1].append((less.exp() * products[:, part]).sum(1))
            if taught:
                most = dist_logits[:, part].amax(1)
                shares = (dist_logits[:, part] - most[:, None]).exp()
                parts[-1] += [most, shares.sum(1), (shares * less).sum(1)]
                if weighted:
                    parts[-1].append((shares * products[:, part]).sum(1))
        parted.merge(torch.stack([torch.stack(each) for each in parts], 1), slice(0, 2))
    for name in ("moment", "products", "dist_products"):
        close(getattr(parted, name).numpy(), getattr(whole, name).numpy(), 100, 100)
    for value, other in zip(parted.log_sums(), whole.log_sums(), strict=True):
        close(value.numpy(), other.numpy(), 10, 100)


@pytest.mark.parametrize(("kind", "count"), [("clip", 2), ("distill", 5)])
def test_parts_hold_what_is_added_up_and_no_more(kind, count, monkeypatch, kernels):
    counts = set()
    merge = Statistics.merge
    monkeypatch.setattr(
        Statistics, "merge", lambda self, parts, where: counts.add(len(parts)) or merge(self, parts, where)
    )
    make(kind, implementation="triton")(**batch(kind))
    assert counts == {count}


def test_a_kernel_is_launched_with_its_options(kernels):
    asked = {}

    class Kernel:
        def __getitem__(self, grid):
            return lambda *given, **options: asked.update(options, grid=grid, given=given)

    tile = torch.empty(kernels.ROWS + 1, 1)
    kernels._launch(Kernel(), tile, 7, TERMS=3)
    assert asked.pop("given")[1:] == (7,)
    block = {"ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS, "num_warps": kernels.WARPS}
    assert asked == {"grid": (2, 1), "TERMS": 3, **block, **kernels.OPTIONS}


def test_scalars_of_the_host_go_to_the_device_as_numbers(kernels):
    features = torch.zeros(2, 2, device="meta")
    given = [(features, features, torch.tensor(3.0))]
    found = kernels.Kernels(given, (2, 2), factor=torch.tensor(3.0, dtype=torch.float64)).factor
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float32, ())
    assert kernels.Kernels(given, (2, 2)).factor is None
    there = torch.tensor(3.0, dtype=torch.float64, device="meta", requires_grad=True)
    found = kernels.Kernels(given, (2, 2), factor=there).factor
    assert (found.dtype, found.requires_grad) == (torch.float32, False)


OF_RANK = threading.local()


def ask(rank, size, kind):
    OF_RANK.number = rank
    return make(kind, rank, size, implementation="triton")(**batch(kind, rank))


@pytest.mark.parametrize("kind", KINDS)
def test_where_one_rank_has_no_kernels_all_are_told(kind, kernels, monkeypatch):
    def lacking(device):
        if OF_RANK.number:
            raise ValueError("implementation: no kernels here")
        return kernels.Kernels

    monkeypatch.setattr(implementations, "_kernels", lacking)
    with pytest.raises(
        WorldError, match=r"rank 0 raised:[\s\S]*no kernels here[\s\S]*rank 1 raised:[\s\S]*no kernels"
    ):
        SimulatedWorld(2).run(ask, kind)


@pytest.mark.parametrize(("kind", "name"), [("clip", "sum_symmetric"), ("distill", "sum_symmetric_distill")])
def test_ranks_pass_over_tiles_in_kernels(kind, name, kernels, monkeypatch):
    original, forms = getattr(ranks, name), []

    def noting(*arguments):
        forms.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(ranks, name, noting)
    SimulatedWorld(2, copies=False).run(ask, kind)
    assert forms == [kernels.Kernels] * 2


def test_where_there_are_no_kernels_that_is_said(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    image = torch.eye(3)
    assert implementations.choose("triton", 3, torch.float32, "cuda").form is kernels.Kernels
    message = (
        "^implementation: 'triton' is for tensors on cuda, got cpu: use 'auto' or 'streamed'; "
        "TRITON_INTERPRET=1, set before triton is imported, runs its kernels on a CPU, slowly$"
    )
    for loss in (ClipLoss, SigLipLoss):
        with pytest.raises(ValueError, match=message):
            loss(implementation="triton")(image, image, 1.0)
    monkeypatch.setattr(implementations, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^implementation: 'triton' needs the package triton: "):
        ClipLoss(implementation="triton")(image, image, 1.0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func's first use
def test_kernels_are_not_for_functional_derivatives():
    image = torch.eye(3)
    with pytest.raises(
        TypeError, match=r"^implementation: 'triton' is not for torch\.func: use 'auto' or 'dense'"
    ):
        torch.func.grad(lambda x: ClipLoss(implementation="triton")(x, image, 2.0))(image)


@pytest.mark.parametrize("kind", ["clip", "siglip", "distill"])
def test_explanations_name_kernels_and_their_memory(kind):
    explained = make(kind, implementation="triton").explain(30_000, 512, torch.float32, "cuda")
    assert explained.startswith("triton: as asked for; beyond its arguments it saves at most ")
    rows, columns = implementations.LARGE_TILE
    most = {"clip": 3, "siglip": 3, "distill": 5}[kind] * 4 * rows * columns
    assert float(explained.rpartition("at most ")[2].split()[0]) * 1e9 > most
