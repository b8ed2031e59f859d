"""Wrong arguments: an exception, on every rank, that names the argument, what was expected and what came.

The functions that ranks run are imported there by name, as `tests.test_arguments`.
"""

import re
import sys
import types
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

from tests.pretend_horovod import install
from verified_losses import (
    ClipLoss,
    CoCaLoss,
    DistillClipLoss,
    SigLipLoss,
    gather_features,
    neighbour_exchange,
    neighbour_exchange_bidir,
    neighbour_exchange_bidir_with_grad,
    neighbour_exchange_with_grad,
)
from verified_losses.properties.worlds.processes import shared_world
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.transport import Transport

X = torch.eye(4)
SCALE = torch.tensor(10.0)
LOGITS = torch.zeros(4, 2, 3)
IDS = torch.ones(4, 2, dtype=torch.int64)

KINDS = ["clip", "coca", "distill", "siglip", "gather"]
EXCHANGES = [neighbour_exchange, neighbour_exchange_with_grad]
BIDIR_EXCHANGES = [neighbour_exchange_bidir, neighbour_exchange_bidir_with_grad]


def call_clip(image=X, text=X, scale=SCALE, bias=None):
    return ClipLoss()(image, text, scale, bias)


def call_clip_logits(image=X, text=X, scale=SCALE, bias=None):
    return ClipLoss().get_logits(image, text, scale, bias)


def call_siglip(image=X, text=X, scale=SCALE, bias=None):
    return SigLipLoss()(image, text, scale, bias)


def call_coca(image=X, text=X, scale=SCALE, bias=None, logits=LOGITS, ids=IDS, pad_id=0):
    return CoCaLoss(2.0, 1.0, pad_id)(image, text, logits, ids, scale, logit_bias=bias)


def call_distill(image=X, text=X, scale=SCALE, bias=None):
    return DistillClipLoss()(image, text, scale, X, X, SCALE, logit_bias=bias)


def call_distill_teacher(image=X, text=X, scale=SCALE, bias=None):
    return DistillClipLoss()(X, X, SCALE, image, text, scale, dist_logit_bias=bias)


def call_siglip_logits(image=X, text=X, scale=SCALE, bias=None):
    return SigLipLoss().get_logits(image, text, scale, bias)


def call_dist_loss(image=X, text=X):
    return DistillClipLoss().dist_loss(teacher_logits=image, student_logits=text)


def call_gather(image=X, text=X):
    return gather_features(image, text)


CALLS = [call_clip, call_clip_logits, call_siglip, call_coca, call_distill, call_distill_teacher, call_gather]
SCALED_CALLS = [call for call in CALLS if call is not call_gather]


def names(error, name, got):
    """Assert that the message is `name: expected ..., got ...`."""
    assert re.search(rf"(^|: ){re.escape(name)}: expected .+got {re.escape(got)}", str(error)), error


def prefix(call):
    return "dist_" if call is call_distill_teacher else ""


@pytest.mark.parametrize("call", CALLS)
def test_right_arguments(call):
    assert all(torch.isfinite(result).all() for result in tree_leaves(call()))


WRONG_FEATURES = [
    (TypeError, [[1.0]], "list"),
    (TypeError, None, "NoneType"),
    (TypeError, X.numpy(), "ndarray"),
    (TypeError, X.long(), "torch.int64"),
    (TypeError, X.bool(), "torch.bool"),
    (TypeError, X.to(torch.complex64), "torch.complex64"),
    (TypeError, X.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    (ValueError, X[0], "shape [4]"),
    (ValueError, X[None], "shape [1, 4, 4]"),
    (ValueError, X[:, :0], "shape [4, 0]"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("kind", "wrong", "got"), WRONG_FEATURES)
def test_wrong_features(call, kind, wrong, got):
    with pytest.raises(kind) as image:
        call(image=wrong)
    names(image.value, prefix(call) + "image_features", got)
    with pytest.raises(kind) as text:
        call(text=wrong)
    names(text.value, prefix(call) + "text_features", got)
    with pytest.raises(kind) as both:
        call(image=wrong, text=wrong)
    names(both.value, prefix(call) + "image_features", got)


NO_ROWS = {"image": X[:0], "text": X[:0]}


@pytest.mark.parametrize("kind", ["clip", "distill", "siglip", "coca"])
def test_one_process_needs_rows(kind):
    with pytest.raises(ValueError, match=r"^image_features: expected at least one row, got none$"):
        call_loss(kind, make_loss(kind, 0, 1), **NO_ROWS)


@pytest.mark.parametrize(("kind", "wrong", "got"), WRONG_FEATURES)
@pytest.mark.parametrize(
    ("call", "first", "second"),
    [
        (call_siglip_logits, "image_features", "text_features"),
        (call_dist_loss, "teacher_logits", "student_logits"),
    ],
)
def test_wrong_matrices(call, first, second, kind, wrong, got):
    with pytest.raises(kind) as error:
        call(image=wrong)
    names(error.value, first, got)
    with pytest.raises(kind) as error:
        call(text=wrong)
    names(error.value, second, got)


@pytest.mark.parametrize(
    ("arguments", "kind", "name", "expected", "got"),
    [
        ({"text": X[:, :3]}, ValueError, "text_features", "the width of image_features, 4", "3"),
        ({"text": X.double()}, TypeError, "text_features", "the dtype of image_features", "torch.float64"),
        ({"scale": "10"}, TypeError, "logit_scale", "a number", "str"),
        ({"bias": "10"}, TypeError, "logit_bias", "a number", "str"),
    ],
)
def test_wrong_siglip_logits(arguments, kind, name, expected, got):
    with pytest.raises(kind, match=expected) as error:
        call_siglip_logits(**arguments)
    names(error.value, name, got)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("kind", "wrong", "got"),
    [
        (TypeError, X.double(), "torch.float64"),
        (TypeError, X.half(), "torch.float16"),
        (ValueError, X[:3], "[3, 4]"),
        (ValueError, X[:, :3], "[4, 3]"),
        (ValueError, X.to("meta"), "meta"),
    ],
)
def test_features_that_disagree(call, kind, wrong, got):
    with pytest.raises(kind, match="image_features, ") as error:
        call(text=wrong)
    names(error.value, prefix(call) + "text_features", got)


WRONG_SCALARS = [
    (TypeError, True, "bool"),
    (TypeError, "10", "str"),
    (TypeError, 1j, "complex"),
    (TypeError, [10.0], "list"),
    (TypeError, torch.tensor(10), "torch.int64"),
    (TypeError, torch.tensor(True), "torch.bool"),
    (TypeError, torch.tensor(1j), "torch.complex64"),
    (ValueError, torch.ones(2), "[2]"),
    (ValueError, torch.ones(0), "[0]"),
    (ValueError, torch.ones(1, 1), "[1, 1]"),
    (ValueError, torch.ones(4, 4), "[4, 4]"),
    (ValueError, torch.ones(512, 512), "[512, 512]"),
    (ValueError, torch.tensor(10.0, device="meta"), "meta"),
]


@pytest.mark.parametrize("call", SCALED_CALLS)
@pytest.mark.parametrize(("kind", "wrong", "got"), [(TypeError, None, "NoneType"), *WRONG_SCALARS])
def test_wrong_scale(call, kind, wrong, got):
    with pytest.raises(kind) as error:
        call(scale=wrong)
    names(error.value, prefix(call) + "logit_scale", got)


@pytest.mark.parametrize("call", SCALED_CALLS)
@pytest.mark.parametrize(("kind", "wrong", "got"), WRONG_SCALARS)
def test_wrong_bias(call, kind, wrong, got):
    with pytest.raises(kind) as error:
        call(bias=wrong)
    names(error.value, prefix(call) + "logit_bias", got)


@pytest.mark.parametrize("call", SCALED_CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_scale_of_one_element_is_a_scale_whatever_its_dtype(call, dtype):
    expected = tree_leaves(call(scale=10.0, bias=-2.0))
    for shape in (), (1,):
        scale, bias = torch.full(shape, 10.0, dtype=dtype), torch.full(shape, -2.0, dtype=dtype)
        results = tree_leaves(call(scale=scale, bias=bias))
        assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize(
    ("kind", "wrong", "name", "got"),
    [
        (TypeError, {"logits": None}, "logits", "NoneType"),
        (TypeError, {"logits": LOGITS.long()}, "logits", "torch.int64"),
        (ValueError, {"logits": LOGITS[0]}, "logits", "shape [2, 3]"),
        (ValueError, {"logits": LOGITS[:, :, :0]}, "logits", "shape [4, 2, 0]"),
        (ValueError, {"logits": LOGITS.to("meta")}, "logits", "meta"),
        (TypeError, {"ids": [[1, 1]] * 4}, "labels", "list"),
        (TypeError, {"ids": IDS.int()}, "labels", "torch.int32"),
        (TypeError, {"ids": IDS.float()}, "labels", "torch.float32"),
        (ValueError, {"ids": IDS.T}, "labels", "[2, 4]"),
        (ValueError, {"ids": IDS[:3]}, "labels", "[3, 2]"),
        (ValueError, {"ids": IDS[..., None]}, "labels", "[4, 2, 1]"),
        (ValueError, {"ids": IDS.to("meta")}, "labels", "meta"),
        (ValueError, {"ids": 3 * IDS}, "labels", "3"),
        (ValueError, {"ids": -IDS}, "labels", "-1"),
        (ValueError, {"ids": torch.tensor([[-1, 2]] * 4)}, "labels", "-1"),
        (ValueError, {"ids": -100 * IDS}, "labels", "-100"),
        (ValueError, {"ids": 0 * IDS - 100, "pad_id": 1}, "labels", "-100"),
        (TypeError, {"pad_id": "0"}, "pad_id", "str"),
        (TypeError, {"pad_id": None}, "pad_id", "NoneType"),
    ],
)
def test_wrong_captions(kind, wrong, name, got):
    with pytest.raises(kind) as error:
        call_coca(**wrong)
    names(error.value, name, got)


def test_one_wrong_label_among_pads_is_found():
    ids = torch.zeros(4, 2, dtype=torch.int64)
    ids[3, 1] = 7
    with pytest.raises(ValueError, match=r"labels: expected token ids in \[0, 3\) or pad_id=0, got 7"):
        call_coca(ids=ids)


def test_captions_of_another_shape_are_told_the_shape():
    with pytest.raises(ValueError, match=r"the first two dimensions of logits, \[4, 2\], got \[3, 2\]"):
        call_coca(ids=IDS[:3])


def test_a_vocabulary_may_be_of_one_token():
    ids = torch.tensor([[0, 5]] * 4)
    assert call_coca(logits=torch.zeros(4, 2, 1), ids=ids, pad_id=5)[1] == 0


@pytest.mark.parametrize("pad_id", [-100, 3, 1000])
def test_pad_id_need_not_be_a_token(pad_id):
    call_coca(ids=IDS.masked_fill(torch.eye(4, 2).bool(), pad_id), pad_id=pad_id)


def test_teacher_and_student_differ_in_rows():
    with pytest.raises(ValueError, match="the rows of image_features, 4") as error:
        call_distill_teacher(image=X[:3], text=X[:3])
    names(error.value, "dist_image_features", "3")
    with pytest.raises(ValueError, match="student_logits") as error:
        DistillClipLoss().dist_loss(X[:3], X)
    names(error.value, "teacher_logits", "[3, 4]")


MAKERS = [
    ClipLoss,
    partial(CoCaLoss, 2.0, 1.0),
    DistillClipLoss,
    SigLipLoss,
    partial(gather_features, X, X),
]
CLIP_MAKERS = [make for make in MAKERS if make is not SigLipLoss]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("options", "name", "got"),
    [
        ({"rank": 1}, "rank", "1"),
        ({"rank": 2, "world_size": 2}, "rank", "2"),
        ({"rank": -1, "world_size": 2}, "rank", "-1"),
        ({"rank": "0"}, "rank", "'0'"),
        ({"rank": 0.0}, "rank", "0.0"),
        ({"rank": None}, "rank", "None"),
        ({"world_size": 0}, "world_size", "0"),
        ({"world_size": -2}, "world_size", "-2"),
        ({"world_size": 2.0}, "world_size", "2.0"),
        ({"world_size": None}, "world_size", "None"),
    ],
)
def test_wrong_place(make, options, name, got):
    with pytest.raises(ValueError, match="expected") as error:
        make(**options)
    names(error.value, name, got)


@pytest.mark.parametrize("make", MAKERS)
def test_a_place_is_taken_from_a_group_alone(make):
    for name in ("rank", "world_size"):
        words = f"{name}: expected an int, as torch.distributed is not initialised, got None"
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            make(**{name: None})


@pytest.mark.parametrize("make", MAKERS)
def test_horovods_place_is_taken(make, monkeypatch):
    pretend_horovod(monkeypatch)
    made = make(use_horovod=True, rank=None, world_size=None)
    assert isinstance(made, tuple) or (made.rank, made.world_size) == (0, 1)


@pytest.mark.parametrize("make", CLIP_MAKERS)
@pytest.mark.parametrize("convention", ["open-clip", "", None, 3])
def test_wrong_convention(make, convention):
    with pytest.raises(ValueError, match="'exact', 'open_clip'") as error:
        make(convention=convention)
    names(error.value, "convention", repr(convention))


@pytest.mark.parametrize("dist_impl", ["ring", "Bidir", 3])
def test_wrong_dist_impl(dist_impl):
    with pytest.raises(ValueError, match="'bidir', 'shift', 'reduce', 'gather'") as error:
        SigLipLoss(dist_impl=dist_impl)
    names(error.value, "dist_impl", repr(dist_impl))


@pytest.mark.parametrize(
    ("kind", "wrong", "got"),
    [(TypeError, True, "bool"), (TypeError, 2.0, "float"), (TypeError, "2", "str"), (ValueError, -1, "-1")],
)
def test_wrong_chunk_size(kind, wrong, got):
    with pytest.raises(kind) as error:
        SigLipLoss(chunk_size=wrong)
    names(error.value, "chunk_size", got)


@pytest.mark.parametrize("weights", [("2", 1.0), (1.0, None), (torch.tensor(2.0), 1.0)])
def test_wrong_weights(weights):
    wrong = next(k for k, weight in enumerate(weights) if not isinstance(weight, float))
    with pytest.raises(TypeError) as error:
        CoCaLoss(*weights)
    names(error.value, ["caption_loss_weight", "clip_loss_weight"][wrong], type(weights[wrong]).__name__)


@pytest.mark.parametrize("make", MAKERS)
def test_without_horovod(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.delitem(sys.modules, "horovod.torch", raising=False)
    with pytest.raises(
        ImportError, match=r"^use_horovod=True needs Horovod, .*\[horovod\]: `make horovod` builds it for"
    ):
        make(use_horovod=True)


def pretend_horovod(monkeypatch, initialized=True):
    """Put the only rank of one in the place of Horovod, installed or not."""
    monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "1")
    hvd = types.ModuleType("horovod.torch")
    hvd.is_initialized = lambda: initialized
    hvd.rank, hvd.size = lambda: 0, lambda: 1
    hvd.allgather_async = lambda tensor, name: tensor
    hvd.poll = lambda tensor: True
    hvd.synchronize = lambda tensor: tensor
    install(monkeypatch, hvd)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("place", [{}, {"world_size": 2}])
def test_before_horovods_init(make, place, monkeypatch):
    pretend_horovod(monkeypatch, initialized=False)
    with pytest.raises(RuntimeError, match=r"needs a running Horovod: call hvd\.init\(\) before the loss"):
        make(use_horovod=True, **place)


HOROVOD_CALLS = [
    lambda **place: ClipLoss(use_horovod=True, **place)(X, X, SCALE),
    lambda **place: ClipLoss(use_horovod=True, **place).get_logits(X, X, SCALE),
    lambda **place: CoCaLoss(2.0, 1.0, use_horovod=True, **place)(X, X, LOGITS, IDS, SCALE),
    lambda **place: DistillClipLoss(use_horovod=True, **place)(X, X, SCALE, X, X, SCALE),
    lambda **place: SigLipLoss(use_horovod=True, **place)(X, X, SCALE),
    lambda **place: gather_features(X, X, use_horovod=True, **place),
]


@pytest.mark.parametrize("call", HOROVOD_CALLS)
@pytest.mark.parametrize(("rank", "world_size"), [(0, 2), (1, 2), (2, 3)])
def test_a_place_that_contradicts_horovods(call, rank, world_size, monkeypatch):
    pretend_horovod(monkeypatch)
    expected = f"expected those of Horovod, rank 0 of 1, got rank {rank} of {world_size}"
    with pytest.raises(ValueError, match=expected):
        call(rank=rank, world_size=world_size)


@pytest.mark.parametrize("call", HOROVOD_CALLS)
def test_horovod_has_no_process_groups(call, monkeypatch):
    pretend_horovod(monkeypatch)
    call()
    with pytest.raises(
        ValueError, match=r"^group: expected None with use_horovod=True, as Horovod has no process groups$"
    ):
        call(group=object())


@pytest.mark.parametrize("dist_impl", ["bidir", "shift", "reduce"])
def test_siglip_gathers_over_horovod(dist_impl, monkeypatch):
    pretend_horovod(monkeypatch)
    assert SigLipLoss(use_horovod=True).dist_impl == "gather"
    with pytest.raises(ValueError, match=f"dist_impl: expected 'gather' over Horovod, .* got '{dist_impl}'"):
        SigLipLoss(use_horovod=True, dist_impl=dist_impl)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ClipLoss(world_size=2)(X, X, SCALE),
        lambda: ClipLoss(world_size=2).get_logits(X, X, SCALE),
        lambda: CoCaLoss(2.0, 1.0, world_size=2)(X, X, LOGITS, IDS, SCALE),
        lambda: DistillClipLoss(world_size=2)(X, X, SCALE, X, X, SCALE),
        lambda: gather_features(X, X, world_size=2),
        *(lambda i=i: SigLipLoss(world_size=2, dist_impl=i)(X, X, SCALE) for i in ("bidir", "gather")),
    ],
)
def test_several_ranks_need_torch_distributed(call):
    words = (
        "world_size=2 needs torch.distributed: call torch.distributed.init_process_group() before the loss"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(words)}$"):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: ClipLoss(convention="mine"),
            "convention: expected one of 'exact', 'open_clip', got 'mine'",
        ),
        (
            lambda: SigLipLoss(dist_impl="mine"),
            "dist_impl: expected one of 'bidir', 'shift', 'reduce', 'gather', got 'mine'",
        ),
        (
            lambda: call_clip(image=X.to_sparse()),
            "image_features: expected a dense tensor, got layout torch.sparse_coo",
        ),
    ],
    ids=["one of two", "one of many", "layout"],
)
def test_what_is_said_of_a_wrong_argument(call, words):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(words)}$"):
        call()


def test_a_scalar_may_stay_on_the_cpu_if_it_has_no_dimensions():
    far = X.to("meta")
    call_clip_logits(far, far, SCALE, SCALE)
    for call in (call_clip_logits, call_siglip):
        with pytest.raises(ValueError, match=r"^logit_bias: expected device meta, got cpu$"):
            call(far, far, SCALE, SCALE.reshape(1))


@pytest.mark.parametrize("call", EXCHANGES + BIDIR_EXCHANGES)
def test_exchange_needs_torch_distributed(call):
    with pytest.raises(RuntimeError) as error:
        call(0, 0, *[X] * (2 if call in BIDIR_EXCHANGES else 1))
    assert str(error.value) == (
        "neighbour exchange needs torch.distributed, as Horovod sends no messages from one rank to another: "
        "call init_process_group() first"
    )


# In real processes. A rank function returns what its rank raised, so that the world stays.


def raised(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def make_loss(kind, rank=0, world_size=1, **options):
    options |= {"rank": rank, "world_size": world_size}
    if kind == "gather":
        return partial(gather_features, **options)
    if kind == "coca":
        return CoCaLoss(2.0, 1.0, **options)
    return {"clip": ClipLoss, "distill": DistillClipLoss, "siglip": SigLipLoss}[kind](**options)


def call_loss(kind, loss, image, text, scale=SCALE, bias=None, logits=LOGITS, ids=IDS):
    if kind == "gather":
        return loss(image, text)
    if kind == "coca":
        return loss(image, text, logits, ids, scale, logit_bias=bias)
    if kind == "distill":
        return loss(image, text, scale, image, text, scale, logit_bias=bias)
    return loss(image, text, scale, bias)


def still_works(rank, size):
    loss = ClipLoss(rank=rank, world_size=size, gather_with_grad=True)
    image = X.clone().requires_grad_()
    loss(image, X, SCALE).backward()
    received = neighbour_exchange((rank - 1) % size, (rank + 1) % size, torch.tensor(rank))
    return bool(torch.isfinite(image.grad).all()) and received.item() == (rank - 1) % size


WRONG_ON_ONE_RANK = {
    "image": ({"image": X.long()}, "TypeError", "image_features", "torch.int64"),
    "text": ({"text": X[:3]}, "ValueError", "text_features", "[3, 4]"),
    "type": ({"text": [[1.0]]}, "TypeError", "text_features", "list"),
    "device": ({"text": X.to("meta")}, "ValueError", "text_features", "meta"),
    "empty": ({"image": X[:, :0], "text": X[:, :0]}, "ValueError", "image_features", "shape [4, 0]"),
    "scale": ({"scale": "10"}, "TypeError", "logit_scale", "str"),
    "bias": ({"bias": torch.ones(512, 512)}, "ValueError", "logit_bias", "[512, 512]"),
    "labels": ({"ids": 9 * IDS}, "ValueError", "labels", "9"),
    "logits": ({"logits": LOGITS[0]}, "ValueError", "logits", "shape [2, 3]"),
}


def wrong_on_one_rank(rank, size, culprit, kind, case):
    wrong = WRONG_ON_ONE_RANK[case][0] if rank == culprit else {}
    arguments = {"image": X, "text": X} | wrong
    error = raised(lambda: call_loss(kind, make_loss(kind, rank, size), **arguments))
    return error, still_works(rank, size)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("kind", "case"),
    [(kind, case) for kind in ("clip", "distill", "siglip", "coca") for case in list(WRONG_ON_ONE_RANK)[:7]]
    + [("coca", "labels"), ("coca", "logits")],
)
def test_a_wrong_argument_on_one_rank_raises_on_every_rank(size, kind, case):
    culprit = size - 1
    _, expected, name, got = WRONG_ON_ONE_RANK[case]
    for rank, (error, works) in enumerate(shared_world(size).run(wrong_on_one_rank, culprit, kind, case)):
        assert error is not None
        assert error[0] == expected
        names(error[1], name, got)
        assert (f"rank {culprit} raised" in error[1]) == (rank != culprit)
        assert works


def no_rows_on_any_rank(rank, size, kind):
    captions = {"logits": LOGITS[:0], "ids": IDS[:0]} if kind == "coca" else {}
    return raised(lambda: call_loss(kind, make_loss(kind, rank, size), **NO_ROWS, **captions))


@pytest.mark.parametrize("kind", ["clip", "distill", "siglip", "coca"])
def test_several_ranks_need_rows_on_one_of_them(kind):
    for error in shared_world(2).run(no_rows_on_any_rank, kind):
        assert error[0] == "ValueError"
        names(error[1], "image_features", "none")


def wrong_gather_on_one_rank(rank, size):
    error = raised(lambda: gather_features(X, X[:, : 4 - rank], rank=rank, world_size=size))
    return error, still_works(rank, size)


def test_gather_features_raises_on_every_rank():
    for error, works in shared_world(2).run(wrong_gather_on_one_rank):
        assert error[0] == "ValueError"
        names(error[1], "text_features", "[4, 3]")
        assert works


DISAGREEMENTS = {
    # how (rank) calls the loss, and what of each is named
    "width": (
        lambda rank: ("clip", {}, X[:, : 4 - rank]),
        [
            "widths [[4], [4]] torch.float32 requires_grad any;",
            "widths [[3], [3]] torch.float32 requires_grad any",
        ],
    ),
    "dtype": (lambda rank: ("clip", {}, X if rank else X.double()), ["torch.float64", "torch.float32"]),
    "local_loss": (
        lambda rank: ("clip", {"local_loss": rank == 0, "gather_with_grad": True}, X),
        ["local_loss=True", "local_loss=False"],
    ),
    "implementation": (
        lambda rank: ("clip", {"implementation": ["dense", "streamed"][rank % 2]}, X),
        ["large batches dense, widths", "large batches streamed, widths"],
    ),
    "siglip implementation": (
        lambda rank: ("siglip", {"implementation": ["dense", "streamed"][rank % 2]}, X),
        ["large batches dense, widths", "large batches streamed, widths"],
    ),
    "gather_with_grad": (
        lambda rank: ("clip", {"gather_with_grad": rank == 0}, X),
        ["gather_with_grad=True", "gather_with_grad=False"],
    ),
    "convention": (
        lambda rank: ("clip", {"convention": ["exact", "open_clip"][rank % 2]}, X),
        ["convention='exact'", "convention='open_clip'"],
    ),
    "class": (lambda rank: (["clip", "siglip"][rank % 2], {}, X), ["ClipLoss", "SigLipLoss"]),
    "subclass": (lambda rank: (["clip", "coca"][rank % 2], {}, X), ["ClipLoss", "CoCaLoss"]),
    "dist_impl": (
        lambda rank: ("siglip", {"dist_impl": ["shift", "gather"][rank % 2]}, X),
        ["dist_impl='shift'", "dist_impl='gather'"],
    ),
    "requires_grad": (
        lambda rank: ("clip", {"gather_with_grad": True}, X.clone().requires_grad_(rank == 0)),
        ["requires_grad [True, True]", "requires_grad [False, False]"],
    ),
    "siglip requires_grad": (
        lambda rank: ("siglip", {}, X.clone().requires_grad_(rank == 0)),
        ["requires_grad [True]", "requires_grad [False]"],
    ),
    "siglip width": (lambda rank: ("siglip", {}, X[:, : 4 - rank]), ["[4]", "[3]"]),
    "distill width": (lambda rank: ("distill", {}, X[:, : 4 - rank]), ["[4]", "[3]"]),
    "gather width": (lambda rank: ("gather", {}, X[:, : 4 - rank]), ["[[4], [4]]", "[[3], [3]]"]),
    "gather local_loss": (
        lambda rank: ("gather", {"local_loss": rank == 0}, X),
        ["gather_features(local_loss=True", "gather_features(local_loss=False"],
    ),
    "gather gather_with_grad": (
        lambda rank: ("gather", {"gather_with_grad": rank == 0}, X),
        ["gather_with_grad=True", "gather_with_grad=False"],
    ),
    "gather convention": (
        lambda rank: ("gather", {"convention": ["exact", "open_clip"][rank % 2]}, X),
        ["convention='exact'", "convention='open_clip'"],
    ),
    "gather requires_grad": (
        lambda rank: ("gather", {"gather_with_grad": True}, X.clone().requires_grad_(rank == 0), X),
        ["requires_grad [True, False]", "requires_grad [False, False]"],
    ),
    "gather requires_grad of texts": (
        lambda rank: ("gather", {"gather_with_grad": True}, X, X.clone().requires_grad_(rank == 0)),
        ["requires_grad [False, True]", "requires_grad [False, False]"],
    ),
}


def disagree(rank, size, case):
    kind, options, image, *text = DISAGREEMENTS[case][0](rank)
    error = raised(lambda: call_loss(kind, make_loss(kind, rank, size, **options), image, *(text or [image])))
    return error, still_works(rank, size)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", list(DISAGREEMENTS))
def test_ranks_that_disagree_all_raise(size, case):
    for (kind, message), works in shared_world(size).run(disagree, case):
        assert kind == "ValueError"
        assert "ranks disagree: rank 0 calls" in message
        assert all(word in message for word in DISAGREEMENTS[case][1]), message
        assert works


def disagree_about_dtypes(rank, size, kind):
    text = X.to(torch.bfloat16 if rank else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        error = raised(lambda: call_loss(kind, make_loss(kind, rank, size), X.bfloat16(), text))
    return error, still_works(rank, size)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_disagree_about_dtypes_all_raise(kind):
    told = ["torch.float32", "torch.bfloat16"]
    if kind != "siglip":  # texts alone travel
        told[0] = "torch.bfloat16 and torch.float32"
    for (error, message), works in shared_world(2).run(disagree_about_dtypes, kind):
        assert error == "ValueError"
        one, other = message.removeprefix("ranks disagree: ").split("; ")
        assert f"] {told[0]} requires_grad" in one
        assert f"] {told[1]} requires_grad" in other
        assert kind != "distill" or " any teacher large batches " in one
        assert works


def differ_in_what_requires_grad(rank, size, kind):
    features = X.clone().requires_grad_(rank == 0)
    return raised(lambda: call_loss(kind, make_loss(kind, rank, size), features, X))


@pytest.mark.parametrize("kind", ["clip", "coca", "distill", "gather"])
def test_ranks_may_differ_in_what_requires_grad_where_no_gradient_is_gathered(kind):
    assert shared_world(2).run(differ_in_what_requires_grad, kind) == [None, None]


def disagree_about_weights(rank, size):
    loss = CoCaLoss(2.0, float(rank), rank=rank, world_size=size)
    return raised(lambda: call_loss("coca", loss, X, X)), still_works(rank, size)


def test_ranks_that_disagree_about_weights_all_raise():
    for (kind, message), works in shared_world(2).run(disagree_about_weights):
        assert kind == "ValueError"
        assert "ranks disagree" in message
        assert "weights 0.0, 2.0" in message
        assert "weights 1.0, 2.0" in message
        assert works


NOWHERE = {"rank": None, "world_size": None}


def take_the_place_of_the_group(rank, size, kind):
    here = {"rank": rank, "world_size": size}
    x = X[: rank + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, *results = [
            tree_leaves(call_loss(kind, make_loss(kind, **place), x, x))
            for place in (here, NOWHERE, here | {"rank": None}, here | {"world_size": None})
        ]
    return all(all(map(torch.equal, result, expected)) for result in results)


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_may_be_taken_from_the_group(kind):
    assert shared_world(2).run(take_the_place_of_the_group, kind) == [True, True]


def alone_in_a_group(rank, size, kind):
    pair = dist.new_group([0, 1])
    single = [dist.new_group([each]) for each in range(size)][rank]
    said = []
    for group in [None, pair, single] if rank < 2 else [None, single]:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            result = call_loss(kind, make_loss(kind, group=group), X, X)
        assert all(torch.isfinite(each).all() for each in tree_leaves(result))
        said.append([(each.category, str(each.message)) for each in seen])
        # the line that made the loss, or the one that made it for a subclass; mutmut puts lines between
        callers = (Path(__file__).name, "coca.py", "horovod.py", "trampoline.py")
        assert all(Path(each.filename).name in callers for each in seen)
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_one_rank_among_several_warns(kind):
    def warned(rank, size):
        words = (
            f"world_size=1 in a process group of {size} ranks compares local rows alone: pass "
            f"rank={rank}, world_size={size}, or rank=None, world_size=None"
        )
        return [(UserWarning, words)]

    zero, one, two = shared_world(3).run(alone_in_a_group, kind)
    assert zero == [warned(0, 3), warned(0, 2), []]
    assert one == [warned(1, 3), warned(1, 2), []]
    assert two == [warned(2, 3), []]


def claim_rank_zero(rank, size, kind):
    error = raised(lambda: call_loss(kind, make_loss(kind, 0, size), X, X))
    return error, still_works(rank, size)


def claim_a_larger_world(rank, size, kind):
    error = raised(lambda: call_loss(kind, make_loss(kind, rank, size + 1), X, X))
    return error, still_works(rank, size)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_ranks_with_one_number_all_raise(kind):
    for (error, message), works in shared_world(2).run(claim_rank_zero, kind):
        assert error == "ValueError"
        names(message, "rank, world_size", "rank 0 of 2")
        assert "rank 1 of 2" in message
        assert works
    for (error, message), works in shared_world(2).run(claim_a_larger_world, kind):
        assert error == "ValueError"
        names(message, "rank, world_size", "rank")
        assert "of 3" in message
        assert works


WRONG_TENSORS = {
    "list": ([1.0], "TypeError", "list"),
    "unsigned": (torch.zeros(2, dtype=torch.uint16), "TypeError", "torch.uint16"),
    "dtype": (X.to(torch.float8_e4m3fn), "TypeError", "torch.float8_e4m3fn"),
    "dimensions": (torch.zeros([1] * 9), "ValueError", "9"),
}


def exchange_wrong_tensor(rank, size, call, case):
    tensor = WRONG_TENSORS[case][0] if rank == 1 else torch.ones(2)
    error = raised(lambda: call((rank - 1) % size, (rank + 1) % size, tensor))
    return error, still_works(rank, size)


def exchange_wrong_tensor_to_right(rank, size, call, case):
    tensor = WRONG_TENSORS[case][0] if rank == 1 else torch.ones(2)
    good = torch.ones((), dtype=torch.float64)
    error = raised(lambda: call((rank - 1) % size, (rank + 1) % size, good, tensor))
    return error, still_works(rank, size)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("call", EXCHANGES + BIDIR_EXCHANGES)
@pytest.mark.parametrize("case", list(WRONG_TENSORS))
def test_a_wrong_tensor_raises_where_it_is_sent_and_where_it_is_awaited(size, call, case):
    program = exchange_wrong_tensor_to_right if call in BIDIR_EXCHANGES else exchange_wrong_tensor
    results = shared_world(size).run(program, call, case)
    sender, receiver = 1, 2 % size
    _, kind, got = WRONG_TENSORS[case]
    assert results[sender][0][0] == kind
    names(results[sender][0][1], "tensor_to_right" if call in BIDIR_EXCHANGES else "tensor", got)
    assert results[receiver][0][0] == "ValueError"
    assert "rank 1 could not send its tensor" in results[receiver][0][1]
    assert all(works for _, works in results)
    assert all(results[rank][0] is None for rank in range(size) if rank not in (sender, receiver))


def exchange_wrong_tensors(rank, size, call, case):
    tensors = [WRONG_TENSORS[case][0]] * (2 if call in BIDIR_EXCHANGES else 1)
    error = raised(lambda: call((rank - 1) % size, (rank + 1) % size, *tensors))
    return error, still_works(rank, size)


@pytest.mark.parametrize("call", EXCHANGES + BIDIR_EXCHANGES)
@pytest.mark.parametrize("case", list(WRONG_TENSORS))
def test_one_mistake_on_all_ranks_is_named(call, case):
    _, kind, got = WRONG_TENSORS[case]
    for error, works in shared_world(2).run(exchange_wrong_tensors, call, case):
        assert error[0] == kind
        names(error[1], "tensor_to_right" if call in BIDIR_EXCHANGES else "tensor", got)
        assert works


def exchange_eight_dimensions(rank, size):
    return neighbour_exchange(1 - rank, 1 - rank, torch.full([1] * 7 + [rank + 1], rank)).tolist()


def test_exchanged_tensors_may_have_eight_dimensions():
    zero, one = shared_world(2).run(exchange_eight_dimensions)
    assert zero == [[[[[[[[1, 1]]]]]]]]
    assert one == [[[[[[[[0]]]]]]]]


RANK_DTYPES = [torch.float32, torch.int64, torch.float64]


def exchange_what_differs(rank, size, call):
    tensors = [torch.full((r + 1, 2) if r else (), r, dtype=RANK_DTYPES[r]) for r in range(size)]
    left, right = (rank - 1) % size, (rank + 1) % size
    if call in BIDIR_EXCHANGES:
        from_right, from_left = call(left, right, tensors[rank], -tensors[rank])
        pairs = [(from_right, tensors[right]), (from_left, -tensors[left])]
    else:
        pairs = [(call(left, right, tensors[rank]), tensors[left])]
    return [(got.dtype == want.dtype, torch.equal(got.detach(), want)) for got, want in pairs]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("call", EXCHANGES + BIDIR_EXCHANGES)
def test_exchanged_tensors_may_differ_in_shape_and_dtype(size, call):
    for checks in shared_world(size).run(exchange_what_differs, call):
        assert all(same_dtype and same for same_dtype, same in checks)


def exchange_with_wrong_peer(rank, size, call, peer):
    tensors = [X] * (2 if call in BIDIR_EXCHANGES else 1)
    errors = raised(lambda: call(peer, 1 - rank, *tensors)), raised(lambda: call(1 - rank, peer, *tensors))
    return errors, still_works(rank, size)


def rank_names(call):
    return ("left_rank", "right_rank") if call in BIDIR_EXCHANGES else ("from_rank", "to_rank")


@pytest.mark.parametrize("call", EXCHANGES + BIDIR_EXCHANGES)
@pytest.mark.parametrize("peer", [2, -1, None, "0"])
def test_peer_outside_the_world(call, peer):
    for errors, works in shared_world(2).run(exchange_with_wrong_peer, call, peer):
        for name, (kind, message) in zip(rank_names(call), errors, strict=True):
            assert kind == "ValueError"
            names(message, name, repr(peer))
        assert works


def exchange_with_wrong_peer_on_rank_1(rank, size, call, place, peer):
    ranks = [(rank - 1) % size, (rank + 1) % size]
    if rank == 1:
        ranks[place] = peer
    tensors = [torch.full((rank + 1,), rank)] * (2 if call in BIDIR_EXCHANGES else 1)
    error = raised(lambda: call(*ranks, *tensors))
    return error, still_works(rank, size)


@pytest.mark.parametrize("call", EXCHANGES + BIDIR_EXCHANGES)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("size", "peer"), [(2, 7), (3, None), (4, -1)])
def test_a_wrong_peer_raises_where_a_tensor_is_awaited(size, peer, place, call):
    results = SimulatedWorld(size).run(exchange_with_wrong_peer_on_rank_1, call, place, peer)
    (kind, message), _ = results[1]
    assert kind == "ValueError"
    names(message, rank_names(call)[place], repr(peer))
    awaiting = {2 % size, 0} if call in BIDIR_EXCHANGES else {2 % size}
    told = ("ValueError", "rank 1 could not send its tensor: see the exception on rank 1")
    assert all(results[rank][0] == (told if rank in awaiting else None) for rank in range(size) if rank != 1)
    assert all(works for _, works in results)


def exchange_in_pairs(rank, size):
    return raised(lambda: neighbour_exchange(rank ^ 1, 9 if rank == 0 else rank ^ 1, X))


def test_a_wrong_peer_is_named_where_the_ring_is_none(monkeypatch):
    # rank 0 tells rank 3, which awaits nothing from it
    exchange = Transport.exchange

    def timed_out(self, sends, receives):
        if self.rank in (0, 1):
            raise RuntimeError("timed out")
        exchange(self, sends, receives)

    monkeypatch.setattr(Transport, "exchange", timed_out)
    zero, one, *others = SimulatedWorld(4).run(exchange_in_pairs)
    assert zero == ("ValueError", "to_rank: expected an int in [0, 4), got 9")
    assert one == ("RuntimeError", "timed out")
    assert others == [None, None]


def exchange_with_wrong_peers(rank, size):
    return raised(lambda: neighbour_exchange("left", "right", X))


def test_two_wrong_peers_raise_without_a_message():
    world = SimulatedWorld(2)
    for error in world.run(exchange_with_wrong_peers):
        assert error == ("ValueError", "from_rank: expected an int in [0, 2), got 'left'")
    assert not world.traffic
