"""Accumulation over micro-batches: the gradients of one backward through the whole batch.

What the steps are compared with keeps the graphs of all micro-batches, and goes back through all at once.
The functions that ranks run are imported there by name, as `tests.test_accumulation`.
"""

import contextlib
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.defects.accumulation import DEFECTS, ReducesEveryTime, Step
from tests.helpers import close
from verified_losses import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss, accumulate
from verified_losses.properties.worlds.processes import shared_world

WIDTH = 4


class Model(nn.Module):
    """Two towers with dropout, and a scale that is held as its logarithm."""

    def __init__(self, seed=0, dropout=0.5, normalized=False):
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(3, WIDTH).double(), nn.Linear(3, WIDTH).double()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(WIDTH).double() if normalized else nn.Identity()
        self.log_scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, images, texts):
        return {
            "image_features": F.normalize(self.norm(self.dropout(self.image(images))), dim=1, eps=1.0),
            "text_features": F.normalize(self.dropout(self.text(texts)), dim=1, eps=1.0),
            "logit_scale": self.log_scale.exp(),
        }


def parts_of(rows, rank=0):
    generator = torch.Generator().manual_seed(7 + rank)
    draw = torch.randn(2, sum(rows), 3, generator=generator, dtype=torch.float64)
    return list(zip(*(side.split(list(rows)) for side in draw), strict=True))


def rows_of(outputs):
    """Return the rows that a model gives for several micro-batches, joined."""
    names = [name for name in outputs[0] if "scale" not in name]
    return {name: torch.cat([output[name] for output in outputs]) for name in names}


def whole_step(model, loss, parts):
    """Return the loss, and each parameter's gradient as the parts that the micro-batches give."""
    outputs = [model(*part) for part in parts]
    joined = rows_of(outputs)
    scales = [output["logit_scale"] for output in outputs]
    leaves = {name: value.detach().requires_grad_() for name, value in joined.items()}
    scale = scales[0].detach().requires_grad_()
    value = loss(**leaves, logit_scale=scale)
    value.backward()
    rows, found = 0, {name: [] for name, _ in model.named_parameters()}
    for number, (part, output) in enumerate(zip(parts, outputs, strict=True)):
        own = slice(rows, rows + len(part[0]))
        rows = own.stop
        tensors = [output[name] for name in leaves]
        grads = [leaf.grad[own] for leaf in leaves.values()]
        if number == 0:
            tensors, grads = [*tensors, scales[0]], [*grads, scale.grad]
        gradients = torch.autograd.grad(tensors, list(model.parameters()), grads, allow_unused=True)
        for parts_found, gradient in zip(found.values(), gradients, strict=True):
            if gradient is not None:
                parts_found.append(gradient.numpy())
    return value.detach(), found


def compare(step, rows=(2, 3, 1), loss=None):
    """Raise AssertionError unless a step gives the gradients of the whole batch."""
    loss = loss or ClipLoss()
    right = Model()
    torch.manual_seed(1)
    expected, parts = whole_step(right, loss, parts_of(rows))
    model = Model()
    torch.manual_seed(1)
    value = step(model, loss, parts_of(rows))
    assert value == expected
    for name, parameter in model.named_parameters():
        # each part is one backward through the same graph; their sum rounds as often as there are more
        size = sum(abs(part) for part in parts[name])
        close(parameter.grad.numpy(), sum(parts[name]), size, 2 * len(rows))


@pytest.mark.parametrize("rows", [(4,), (2, 2), (2, 3, 1), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("loss", [ClipLoss(), ClipLoss(implementation="streamed", tile_size=2), SigLipLoss()])
def test_gradients_are_those_of_the_whole_batch(loss, rows):
    compare(accumulate, rows, loss)


def test_the_whole_batch_is_one_backward():
    # what steps are compared with is torch's own gradient of the loss of all rows
    model, rows = Model(), (2, 3, 1)
    torch.manual_seed(1)
    value, parts = whole_step(model, ClipLoss(), parts_of(rows))
    torch.manual_seed(1)
    outputs = [model(*part) for part in parts_of(rows)]
    joined = rows_of(outputs)
    loss = ClipLoss()(**joined, logit_scale=outputs[0]["logit_scale"])
    loss.backward()
    assert loss == value
    for name, parameter in model.named_parameters():
        close(parameter.grad.numpy(), sum(parts[name]), sum(abs(one) for one in parts[name]), 2 * len(rows))


@pytest.mark.parametrize("defect", [one for one in DEFECTS if one is not ReducesEveryTime])
def test_defects_are_caught(defect):
    with pytest.raises(AssertionError):
        compare(defect())


def test_the_plain_step_is_right():
    compare(Step())
    compare(ReducesEveryTime())  # of one process nothing is reduced


def test_random_numbers_go_on_as_after_one_pass():
    model = Model()
    torch.manual_seed(1)
    for part in parts_of((2, 2)):
        model(*part)
    expected = torch.rand(1)
    torch.manual_seed(1)
    accumulate(model, ClipLoss(), parts_of((2, 2)))
    assert torch.rand(1) == expected


def test_running_statistics_see_each_micro_batch_once():
    expected, model = Model(normalized=True), Model(normalized=True)
    for part in parts_of((2, 3)):
        expected(*part)
    accumulate(model, ClipLoss(), parts_of((2, 3)))
    assert model.norm.num_batches_tracked == 2
    # dropout differs, so that only the count is the same; without it all is
    expected, model = Model(dropout=0.0, normalized=True), Model(dropout=0.0, normalized=True)
    for part in parts_of((2, 3)):
        expected(*part)
    accumulate(model, ClipLoss(), parts_of((2, 3)))
    assert torch.equal(model.norm.running_mean, expected.norm.running_mean)


def test_gradients_are_added_to_those_there_are():
    once, twice = Model(dropout=0.0), Model(dropout=0.0)
    accumulate(once, ClipLoss(), parts_of((2, 2)))
    for _ in range(2):
        accumulate(twice, ClipLoss(), parts_of((2, 2)))
    for one, other in zip(once.parameters(), twice.parameters(), strict=True):
        close(other.grad.numpy(), 2 * one.grad.numpy(), 4 * abs(one.grad.numpy()).max(), 8)


def test_a_scaled_loss_scales_gradients_and_not_the_value():
    plain, scaled = Model(dropout=0.0), Model(dropout=0.0)
    value = accumulate(plain, ClipLoss(), parts_of((2, 2)))
    assert accumulate(scaled, ClipLoss(), parts_of((2, 2)), scale_loss=lambda total: 4 * total) == value
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(4 * one.grad, other.grad)


class Captioner(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tower, self.words = nn.Linear(3, 3).double(), nn.Linear(3, 5).double()

    def forward(self, batch):
        features = F.normalize(self.tower(batch), dim=1)
        hidden = features.unsqueeze(1).expand(-1, 2, -1)
        return {
            "image_features": features,
            "text_features": features.flip(1),
            "logits": None,
            "labels": batch.abs().round().long()[:, :2].clamp(max=4),
            "logit_scale": 2.0,
            "hidden_states": hidden,
            "vocabulary_weight": self.words.weight,
            "vocabulary_bias": self.words.bias,
        }


SHARED = ("logit_scale", "vocabulary_weight", "vocabulary_bias")


@pytest.mark.parametrize("named", [{}, {"shared": SHARED}])
@pytest.mark.parametrize("output_dict", [False, True])
def test_all_terms_count_and_what_is_shared_may_be_named(output_dict, named):
    batch = parts_of((4,))[0][0]
    whole, model = Captioner(), Captioner()
    loss = CoCaLoss(2.0, 1.0)
    expected = loss(**whole(batch))
    sum(expected).backward()

    def of_parts(**given):
        return loss(**given, output_dict=output_dict)

    found = accumulate(model, of_parts, [batch[:1], batch[1:]], **named)
    assert type(found) is (dict if output_dict else tuple)
    values = list(found.values()) if output_dict else found
    assert not any(value.requires_grad for value in values)
    for value, other in zip(values, expected, strict=True):
        close(value.item(), other.item(), 64, 64)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        close(one.grad.numpy(), other.grad.numpy(), 256, 64)


def test_a_teacher_and_its_scalars_are_those_of_the_whole_batch():
    batch, tower = parts_of((4,))[0][0], nn.Linear(3, 3).double()
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (2.0, -1.0))

    def model(rows):
        features = tower(rows)
        return {
            "image_features": features, "text_features": rows, "logit_scale": scale, "logit_bias": bias,
            "dist_image_features": rows, "dist_text_features": rows.flip(1), "dist_logit_scale": scale,
            "dist_logit_bias": bias,
        }  # fmt: skip

    found = accumulate(model, DistillClipLoss(), [batch[:1], batch[1:]])
    expected = DistillClipLoss()(**model(batch))
    for value, other in zip(found, expected, strict=True):
        close(value.item(), other.item(), 64, 64)


def test_what_has_no_rows_is_named():
    def model(batch):
        return {"rows": tower(batch), "factor": torch.tensor(2.0)}

    tower, batches = nn.Linear(3, 3).double(), [first for first, _ in parts_of((1, 2))]
    message = (
        "factor: expected rows of each micro-batch, or 'factor' in shared, got a tensor of no dimensions"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        accumulate(model, lambda rows, factor: (factor * rows).sum(), batches)


def test_one_memory_of_two_micro_batches_is_named():
    head, batches = nn.Linear(3, 3).double(), [first for first, _ in parts_of((1, 2))]

    def loss(rows, weight):
        return (rows @ weight.T).square().sum()

    for weight in (head.weight, head.weight.T):
        message = (
            "weight: expected rows of each micro-batch, or 'weight' in shared, got the same memory for two"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            accumulate(lambda batch, own=weight: {"rows": batch, "weight": own}, loss, batches)
    value = accumulate(lambda batch: {"rows": batch, "weight": head.weight}, loss, batches, shared=["weight"])
    assert value == loss(torch.cat(batches), head.weight)


@pytest.mark.parametrize("make", [lambda rows: rows, lambda rows: (rows,), lambda rows: {"batch": rows}])
def test_one_tensor_may_be_in_two_micro_batches(make):
    tower, rows = nn.Linear(3, 3).double(), torch.eye(3, dtype=torch.float64)
    for own in (rows, rows[:0], rows.to_sparse()):
        accumulate(
            lambda batch: {"image_features": tower(rows), "text_features": batch.to_dense()},
            lambda image_features, text_features: image_features.sum() + text_features.sum(),
            [make(own), make(own)],
        )


def test_batches_may_be_tuples_dicts_tensors_or_objects():
    model = nn.Linear(3, 3).double()
    rows = parts_of((2, 2))

    def of_one(batch):
        return {"image_features": model(batch), "text_features": batch, "logit_scale": 1.0}

    def of_named(*, first, second):
        return {"image_features": model(first), "text_features": second, "logit_scale": 1.0}

    found = [
        accumulate(of_one, ClipLoss(), [first for first, _ in rows]),
        accumulate(of_named, ClipLoss(), [{"first": first, "second": first} for first, _ in rows]),
        accumulate(lambda *both: of_one(both[0]), ClipLoss(), [list(both) for both in rows]),
        accumulate(
            lambda batch: of_one(batch.first), ClipLoss(), [SimpleNamespace(first=first) for first, _ in rows]
        ),
    ]
    assert all(value == found[0] for value in found)


def test_one_micro_batch_has_its_activations_in_memory():
    alive, most = [], []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            alive.append(1)
            most.append(len(alive))
            return value.clone()

        @staticmethod
        def backward(ctx, grad):
            alive.pop()
            return grad

    tower = nn.Linear(3, 3).double()

    def model(batch):
        features = tower(batch)
        if torch.is_grad_enabled():
            features = Watched.apply(features)
        return {"image_features": features, "text_features": batch, "logit_scale": 1.0}

    accumulate(model, ClipLoss(), [first for first, _ in parts_of((1, 1, 1))])
    assert most == [1, 1, 1]


@pytest.mark.parametrize(
    ("model", "batches", "error", "message"),
    [
        (Model(), [], ValueError, "micro_batches: expected at least one, got none"),
        (
            lambda *_: 1.0,
            [()],
            TypeError,
            "model: expected it to return a dict with the arguments of the loss, got float",
        ),
        (
            lambda *names: dict.fromkeys(names),
            [("a",), ("b",)],
            ValueError,
            "model: expected ['a'] for every micro-batch, as for the first, got ['b']",
        ),
    ],
)
def test_wrong_arguments_are_named(model, batches, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        accumulate(model, ClipLoss(), batches)


def test_without_gradients_there_is_no_step():
    message = "^accumulate: expected gradients to be on, got torch.no_grad or inference mode$"
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        accumulate(Model(), ClipLoss(), parts_of((2, 2)))


def test_gradients_are_reduced_with_the_last_micro_batch_alone():
    seen = []

    class Reducing(Model):
        """Knows whether it would reduce, as DistributedDataParallel does."""

        reduces = True

        @contextlib.contextmanager
        def no_sync(self):
            self.reduces = False
            yield
            self.reduces = True

        def forward(self, *batch):
            seen.append((torch.is_grad_enabled(), self.reduces))
            return super().forward(*batch)

    accumulate(Reducing(), ClipLoss(), parts_of((1, 2, 1)))
    assert seen == [(False, False)] * 3 + [(True, False)] * 2 + [(True, True)]


def test_what_gets_no_gradient_is_passed_over():
    tower = nn.Linear(3, 3).double()

    def model(batch):
        # a number, which differs; what is not of floating type; then what learns
        return {"first": float(batch[0, 0]), "ids": torch.arange(len(batch)), "rows": tower(batch)}

    def loss(first, ids, rows):
        numbers.append(first)
        assert not ids.requires_grad
        return rows.square().sum()

    numbers = []
    batches = [first for first, _ in parts_of((1, 2))]
    accumulate(model, loss, batches)
    assert numbers == [float(batches[0][0, 0])]
    whole = nn.Linear(3, 3).double()
    whole.load_state_dict(tower.state_dict())
    whole(torch.cat(batches)).square().sum().backward()
    close(tower.weight.grad.numpy(), whole.weight.grad.numpy(), 64, 16)


def test_a_scale_may_come_before_the_rows():
    tower, rows = nn.Linear(3, 3).double(), torch.arange(12, dtype=torch.float64).view(4, 3)
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    accumulate(
        lambda batch: {"logit_scale": scale.exp(), "rows": tower(batch)},
        lambda logit_scale, rows: (logit_scale * rows).sum(),
        rows.split(2),
    )
    found = tower.weight.grad, scale.grad
    tower.weight.grad = scale.grad = None
    (scale.exp() * tower(rows)).sum().backward()
    for gradient, right in zip(found, (tower.weight.grad, scale.grad), strict=True):
        close(gradient.numpy(), right.numpy(), float(right.abs().max()), 16)


class Device:
    """A device's generator, which counts what is drawn from it."""

    def __init__(self):
        self.states = {}

    def get_rng_state(self, device):
        return self.states.setdefault(device, 0)

    def set_rng_state(self, state, device):
        assert device in self.states
        self.states[device] = state


@pytest.mark.parametrize("place", ["parameter", "buffer", "dict", "tuple", "tensor"])
def test_the_random_numbers_of_every_device_are_drawn_again(place, monkeypatch):
    here, there = torch.empty(1, device="meta"), torch.device("xpu", 1)
    monkeypatch.setattr(torch, "get_device_module", {there: (generator := Device())}.__getitem__)
    drawn = []

    class There(torch.Tensor):
        @property
        def device(self):
            return there

    far = torch.zeros(1, 3, dtype=torch.float64).as_subclass(There)

    class Model(nn.Module):
        def forward(self, *batch, **named):
            drawn.append(generator.states[there])
            generator.states[there] += 1
            return {"rows": torch.ones(1, 1, dtype=torch.float64, requires_grad=True) * 2}

    model = Model()
    if place == "parameter":
        monkeypatch.setattr(model, "parameters", lambda: iter([far]))
    elif place == "buffer":
        monkeypatch.setattr(model, "buffers", lambda: iter([far]))
    batch = {"dict": {"near": here, "far": far}, "tuple": (here, far), "tensor": far}.get(place, (here,))
    other = {"near": here} if place == "dict" else batch
    accumulate(model, lambda rows: rows.sum(), [batch, other])
    # once without a graph, and then the same numbers with it
    assert drawn == [0, 1, 0, 1]
    assert generator.states == {there: 2}


# Over ranks.


def rank_step(rank, size, step, rows, kind, options):
    """Return the gradients of a step under DDP, how often it reduced, and what it is compared with."""
    loss = kind(rank=rank, world_size=size, **options)
    right, parts = Model(), parts_of(rows[rank], rank)
    torch.manual_seed(1 + rank)
    _, found = whole_step(right, loss, parts)
    model = DistributedDataParallel(Model())
    reduced = []

    def count(state, bucket):
        reduced.append(1)
        return allreduce_hook(state, bucket)

    model.register_comm_hook(None, count)
    torch.manual_seed(1 + rank)
    step(model, loss, parts)
    expected, sizes = [], []
    for own in found.values():
        total, magnitude = (torch.from_numpy(np.asarray(sum(each))) for each in (own, map(abs, own)))
        for tensor in total, magnitude:
            dist.all_reduce(tensor)
        expected.append(total.numpy() / size)
        sizes.append(magnitude.numpy() / size)
    return [one.grad.numpy() for one in model.parameters()], expected, sizes, len(reduced)


def compare_ranks(step, rows, kind=ClipLoss, options=None):
    options = {"gather_with_grad": True} if options is None else options
    for gradients, expected, sizes, reduced in shared_world(2).run(rank_step, step, rows, kind, options):
        assert reduced == 1, f"reduced {reduced} times"
        for gradient, right, size in zip(gradients, expected, sizes, strict=True):
            close(gradient, right, size, 2 * (max(map(len, rows)) + 2))


@pytest.mark.processes
@pytest.mark.parametrize("rows", [((2, 3), (2, 3)), ((1, 2, 2), (3, 1))])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ClipLoss, {"gather_with_grad": True}),
        (ClipLoss, {"local_loss": True, "gather_with_grad": True}),
        (SigLipLoss, {}),
    ],
)
def test_under_ddp_gradients_are_the_mean_of_whole_batches(kind, options, rows):
    compare_ranks(accumulate, rows, kind, options)


@pytest.mark.processes
@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_caught_under_ddp(defect):
    with pytest.raises(AssertionError):
        compare_ranks(defect(), ((2, 3), (2, 3)))


@pytest.mark.processes
def test_the_mean_over_ranks_is_the_single_process():
    rows = ((2, 1), (1, 3))
    every = [parts_of(own, rank) for rank, own in enumerate(rows)]
    model = Model()
    model.dropout.p = 0.0
    _, found = whole_step(model, ClipLoss(), list(itertools.chain(*every)))
    ranks = shared_world(2).run(without_dropout, rows)
    largest = max(abs(part).max() for own in found.values() for part in own)
    for gradients in ranks:
        for gradient, own in zip(gradients, found.values(), strict=True):
            # features, logits, their softmax and the towers' products are each computed anew
            close(gradient, sum(own), 64 * max(1.0, largest), 8 * (sum(map(sum, rows)) + 3 * WIDTH))


def without_dropout(rank, size, rows):
    model = DistributedDataParallel(Model(dropout=0.0))
    loss = ClipLoss(rank=rank, world_size=size, gather_with_grad=True)
    accumulate(model, loss, parts_of(rows[rank], rank))
    return [one.grad.numpy() for one in model.parameters()]
