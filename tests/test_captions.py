"""Captions: of hidden states as of logits, without the logits of all tokens, over ranks too."""

import inspect
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import close
from verified_losses import CoCaLoss, GenLipLoss, captions, checks, coca, fused_linear_cross_entropy
from verified_losses.captions import TokenLoss
from verified_losses.properties.standalone.acts import Memory
from verified_losses.properties.worlds.simulated import SimulatedWorld

CHUNK = 4
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1)
WIDTH, VOCABULARY = 3, 5
KINDS = [TokenLoss(), TokenLoss(-100, 0.1), TokenLoss(-100, 0.0, 0.5), TokenLoss(2, 1.0, 1e-4)]
LOGIT = 16.0
"""No logit is larger: hidden states are within 2, and weights within 2 in a width of 3, biases within 2."""


def bounded_normal(generator, *shape, dtype=torch.float64):
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-2, 2).to(dtype).requires_grad_()
    )


def tokens(count, kind=KINDS[0], dtype=torch.float64, seed=0):
    """Return hidden states, weight, bias, and labels of which every third is ignored."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (count, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)
    given = [bounded_normal(generator, *shape, dtype=dtype) for shape in shapes]
    labels = torch.randint(0, VOCABULARY, (count,), generator=generator)
    labels[::3] = kind.ignore_index
    return *given, labels


def derived(total, given, order):
    """Return a value and its gradients, and with `order` 2 the derivatives of the gradients' squares."""
    found = [total, *torch.autograd.grad(total, given, create_graph=order == 2)]
    if order == 2:
        squares = sum(gradient.square().sum() for gradient in found[1:])
        found += torch.autograd.grad(squares, given)
    return [each.detach().numpy() for each in found]


def magnitude(count, kind):
    """Bound the sum of the magnitudes of the terms of a value, or of an element of a gradient."""
    largest = LOGIT + math.log(VOCABULARY)
    of_slope = 2 + 2 * kind.z_loss * largest
    return max(count, 1) * max(2 * largest + kind.z_loss * largest**2, 2 * WIDTH * of_slope * LOGIT)


def operations(count):
    return 8 * (count + VOCABULARY + WIDTH + 10)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_equal_the_whole_at_each_border(kind, order):
    for count in SIZES:
        hidden, weight, bias, labels = tokens(count, kind)
        for given in (hidden, weight, bias), (hidden, weight):
            more = None if len(given) == 2 else bias
            found = captions.sum_linear(hidden, weight, more, labels, kind, CHUNK)
            dense = captions.linear_token_losses(hidden, weight, more, labels, kind)
            pairs = zip(derived(found, given, order), derived(dense, given, order), strict=True)
            for value, other in pairs:
                close(value, other, magnitude(count, kind) ** order * 2 * order, order * operations(count))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_logits_equal_the_whole(kind, order):
    for rows, length, chunk in (3, 4, 5), (3, 4, 4), (3, 4, 3), (2, 7, 2), (1, 1, 9), (5, 1, 1):
        generator = torch.Generator().manual_seed(rows)
        logits = bounded_normal(generator, rows, VOCABULARY, length).mT  # whose strides are others
        labels = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
        labels[0, ::2] = kind.ignore_index
        found = captions.sum_logits(logits, labels, kind, chunk)
        dense = captions.token_losses(logits.flatten(0, 1), labels.flatten(), kind)
        pairs = zip(derived(found, (logits,), order), derived(dense, (logits,), order), strict=True)
        for value, other in pairs:
            count = rows * length
            close(value, other, magnitude(count, kind) ** order * 2 * order, order * operations(count))


@pytest.mark.parametrize("most", [1, VOCABULARY, 2 * VOCABULARY, 3 * VOCABULARY - 1])
def test_elementwise_operations_take_a_few_tokens_at_once(most, monkeypatch):
    taken = []

    class Counted(captions._Chunk):
        def __init__(self, logits, *more):
            taken.append(len(logits))
            super().__init__(logits, *more)

    monkeypatch.setattr(captions, "PASS", most)
    monkeypatch.setattr(captions, "_Chunk", Counted)
    hidden, weight, bias, labels = tokens(12)
    found = captions.sum_linear(hidden, weight, bias, labels, KINDS[1], CHUNK)
    dense = captions.linear_token_losses(hidden, weight, bias, labels, KINDS[1])
    pairs = (derived(total, (hidden, weight, bias), 1) for total in (found, dense))
    for value, other in zip(*pairs, strict=True):
        close(value, other, 2 * magnitude(12, KINDS[1]), operations(12))
    assert max(taken) == max(most // VOCABULARY, 1)
    assert sum(taken) == (labels != -100).sum()


def test_a_word_that_cannot_be_has_no_probability():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, VOCABULARY, generator=generator).double()
    logits[..., 0] = -torch.inf
    logits.requires_grad_()
    labels = torch.randint(1, VOCABULARY, (2, 3), generator=generator)
    total = captions.sum_logits(logits, labels, KINDS[0], 2)
    dense = captions.token_losses(logits[..., 1:].flatten(0, 1), labels.flatten() - 1, KINDS[0])
    pairs = (derived(one, (logits,), 1) for one in (total, dense))
    for value, other in zip(*pairs, strict=True):
        close(value, other, magnitude(6, KINDS[0]), operations(6))
    assert captions.sum_logits(logits, labels, KINDS[1], 2) == torch.inf  # smoothing asks for every word


def test_a_vocabulary_may_be_one_word():
    labels = torch.tensor([[-100, 0]])
    logits = torch.ones(1, 2, 1, requires_grad=True)
    total = captions.sum_logits(logits, labels, KINDS[2], 2)
    (gradient,) = torch.autograd.grad(total, logits)
    assert total == 0.5
    assert gradient.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision_logits_are_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(3, 4, VOCABULARY, generator=generator).to(dtype).requires_grad_()
    singles = halves.detach().float().requires_grad_()
    labels = torch.randint(0, VOCABULARY, (3, 4), generator=generator)
    found, exact = (
        torch.autograd.grad(captions.sum_logits(logits, labels, KINDS[2], 5), logits)[0]
        for logits in (halves, singles)
    )
    assert torch.equal(found, exact.to(dtype))


@pytest.mark.parametrize(("rows", "length", "chunk"), [(5, 4, 3), (5, 4, 4), (5, 4, 7), (5, 4, 8), (2, 1, 9)])
def test_no_chunk_has_more_tokens_than_asked_for(rows, length, chunk):
    numbers = torch.arange(rows * length).view(rows, length, 1)
    places = captions._places(numbers, chunk)
    assert all(numbers[place].numel() <= chunk for place in places)
    assert torch.cat([numbers[place].flatten() for place in places]).sort().values.equal(numbers.flatten())


def test_no_logit_of_what_is_no_token_overflows():
    weight = torch.full((VOCABULARY, WIDTH), 4e4, dtype=torch.float16, requires_grad=True)
    hidden = torch.zeros(2, WIDTH, dtype=torch.float16, requires_grad=True)
    total = captions.linear_token_losses(hidden, weight, None, torch.tensor([-100, 1]), KINDS[0])
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, (hidden, weight)))


def test_a_mean_is_over_the_labels_that_count():
    hidden, weight, bias, labels = tokens(7)
    mean, total = (
        fused_linear_cross_entropy(hidden, weight, labels, bias, -100, 2, reduction)
        for reduction in ("mean", "sum")
    )
    assert mean == total / 4


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_but_padding_costs_nothing(count):
    hidden, weight, bias, labels = tokens(count)
    labels[:] = -100
    loss = fused_linear_cross_entropy(hidden, weight, labels, bias, z_loss=1.0)
    loss.backward()
    assert loss == 0
    assert not any(one.grad.any() for one in (hidden, weight, bias))
    logits = torch.zeros(2, 3, 4, requires_grad=True)
    GenLipLoss()(logits, torch.full((2, 3), -100)).backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("content", [torch.nan, torch.inf])
def test_what_is_at_padding_does_not_matter(content, monkeypatch):
    hidden, weight, bias, labels = tokens(7)
    right = fused_linear_cross_entropy(hidden, weight, labels, bias, chunk_size=2)
    expected = torch.autograd.grad(right, (hidden, weight, bias))
    filled = hidden.detach().masked_fill((labels == -100).unsqueeze(1), content).requires_grad_()
    for is_cpu in True, False:  # on a GPU the rows stay
        monkeypatch.setattr(torch.Tensor, "is_cpu", is_cpu)
        loss = fused_linear_cross_entropy(filled, weight, labels, bias, chunk_size=2)
        found = torch.autograd.grad(loss, (filled, weight, bias))
        for value, other in zip((loss, *found), (right, *expected), strict=True):
            close(value.detach().numpy(), other.detach().numpy(), magnitude(7, KINDS[0]), operations(7))
        assert not found[0][labels == -100].any()
    logits = F.linear(filled, weight, bias).detach().requires_grad_()
    total = captions.sum_logits(logits.unsqueeze(1), labels.unsqueeze(1), KINDS[2], 2)
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite()
    assert gradient.isfinite().all()
    assert not gradient[labels == -100].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_added_up_in_single_precision(dtype):
    # 2,048 equal tokens: a sum of the gradients of half of them is beyond float16, their mean is not
    hidden = torch.full((2048, 2), 128.0, dtype=dtype, requires_grad=True)
    weight = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    loss = fused_linear_cross_entropy(hidden, weight, torch.zeros(2048, dtype=torch.int64))
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss - math.log(3)) <= 4 * torch.finfo(torch.float32).eps
    expected = 128 * (torch.tensor([1 / 3, 1 / 3, 1 / 3]) - torch.tensor([1.0, 0, 0]))
    assert weight.grad.dtype == dtype
    assert ((weight.grad[:, 0] - expected).abs() <= 4 * torch.finfo(dtype).eps * expected.abs()).all()


def test_products_of_slopes_and_weights_may_be_beyond_float16():
    # products of 8,700, 8 and 2 are added up, and divided by the four tokens afterwards
    hidden, weight, target = torch.ones(4, 1), torch.full((2, 1), 8.0), torch.zeros(4, dtype=torch.int64)
    found, exact = (
        torch.autograd.grad(fused_linear_cross_entropy(*given, target, z_loss=1e3), given)
        for given in (
            [one.to(dtype).requires_grad_() for one in (hidden, weight)]
            for dtype in (torch.float16, torch.float64)
        )
    )
    unit_roundoff = torch.finfo(torch.float16).eps / 2
    bound = (1 + unit_roundoff) ** 2 - 1  # a slope and a sum are rounded
    for value, other in zip(found, exact, strict=True):
        assert ((value - other).abs() <= bound * other.abs()).all()


def test_autocast_multiplies_in_half_precision():
    hidden, weight, bias, labels = tokens(7, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_linear_cross_entropy(hidden, weight, labels, bias)
    halves = [one.bfloat16() for one in (hidden, weight, bias)]
    assert loss == fused_linear_cross_entropy(halves[0], halves[1], labels, halves[2])
    loss.backward()
    assert hidden.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    hidden, weight, bias, labels = tokens(7)
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 as it is
        assert fused_linear_cross_entropy(hidden, weight, labels, bias).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func's first use
def test_functional_derivatives():
    hidden, weight, bias, labels = tokens(7)
    right = torch.autograd.grad(fused_linear_cross_entropy(hidden, weight, labels, bias), weight)[0]
    found = torch.func.grad(lambda w: fused_linear_cross_entropy(hidden, w, labels, bias))(weight)
    close(found.detach().numpy(), right.numpy(), magnitude(7, KINDS[0]), operations(7))


def test_without_gradients_none_are_formed():
    *given, labels = tokens(8)

    def most(given, recorded):
        with torch.set_grad_enabled(recorded), Memory([*given, labels]) as memory:
            captions.sum_linear(*given, labels, KINDS[0], 8)
        return memory.most

    constants = [one.detach() for one in given]
    assert most(given, False) == most(constants, True) < most(given, True)


@pytest.mark.parametrize("wanted", list(itertools.product((True, False), repeat=3))[:-1])
def test_the_gradients_that_are_wanted_alone_are_saved(wanted):
    *given, labels = tokens(7)
    given = [one.detach().requires_grad_(want) for one, want in zip(given, wanted, strict=True)]
    right = torch.autograd.grad(
        captions.linear_token_losses(*given, labels, KINDS[0]), [one for one in given if one.requires_grad]
    )
    labels_of_tokens = labels[labels != -100]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        total = captions.sum_linear(*given, labels, KINDS[0], CHUNK)
    shapes = (len(labels_of_tokens), WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)
    assert [saved.count(shape) - 1 for shape in shapes] == list(wanted)
    found = torch.autograd.grad(total, [one for one in given if one.requires_grad])
    for value, other in zip(found, right, strict=True):
        close(value.numpy(), other.numpy(), magnitude(7, KINDS[0]), operations(7))


def test_one_gradient_at_a_time_is_in_single_precision_and_in_half():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (bounded_normal(generator, 64, 64, dtype=torch.bfloat16) for _ in range(2))
    labels = torch.randint(0, 64, (64,), generator=generator)
    with Memory([hidden, weight, labels]) as memory:
        total = fused_linear_cross_entropy(hidden, weight, labels, reduction="sum")
        memory.most = before = memory.held
        total.backward()
    # both gradients in half precision, one in single precision besides, and the scalar backward begins with
    assert memory.most - before <= 2 * hidden.numel() * 2 + weight.numel() * 4 + 4


def test_logits_of_other_strides_are_copied_once():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 64, (4, 8), generator=generator)
    found = []
    for logits in torch.zeros(4, 8, 64), torch.zeros(4, 64, 8).mT:
        logits.requires_grad_()
        with Memory([logits, labels]) as memory:
            captions.sum_logits(logits, labels, KINDS[2], 16).backward()
        found.append(memory.most)
    assert found[0] == found[1]


def test_all_is_made_on_the_device_of_the_tokens():
    hidden, weight, bias, labels = (
        torch.zeros(shape, device="meta", dtype=dtype)
        for shape, dtype in (
            ((4, WIDTH), torch.float32),
            ((VOCABULARY, WIDTH), torch.float32),
            (VOCABULARY, torch.float32),
            (4, torch.int64),
        )
    )
    assert fused_linear_cross_entropy(hidden, weight, labels, bias).is_meta
    assert GenLipLoss()(hidden, labels).is_meta


def test_tokens_are_as_many_as_an_index_can_count(monkeypatch):
    given = caption_batch(0, 2)
    elements = 2 * LENGTH * VOCABULARY
    loss = CoCaLoss(2.0, 1.0)
    monkeypatch.setattr(checks, "MOST_ELEMENTS", elements)
    loss(logits=None, **given)
    monkeypatch.setattr(checks, "MOST_ELEMENTS", elements - 1)
    with pytest.raises(ValueError, match=r"^hidden_states: expected at most 5 tokens, got 6$"):
        loss(logits=None, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_tokens_times_vocabulary(dtype):
    width, chunk, item = 8, 32, 4
    for count, vocabulary in (512, 64), (64, 1024), (512, 1024):
        generator = torch.Generator().manual_seed(0)
        hidden = bounded_normal(generator, count, width, dtype=dtype)
        weight = bounded_normal(generator, vocabulary, width, dtype=dtype)
        labels = torch.randint(0, vocabulary, (count,), generator=generator)
        with Memory([hidden, weight, labels]) as memory:
            fused_linear_cross_entropy(hidden, weight, labels, chunk_size=chunk).backward()
        # two of half precision: the chunk's logits in its dtype and in float32, and their product with 0
        chunks = 2 * chunk * (vocabulary + 2 * width)
        stated = chunks + 3 * (count + vocabulary) * width + 16 * count
        assert memory.most <= item * stated < item * count * vocabulary or count * vocabulary < 2**17


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_logits_are_not_copied(dtype):
    logits = torch.zeros(4, 256, 2048, dtype=dtype, requires_grad=True)
    labels = torch.zeros(4, 256, dtype=torch.int64)
    loss = GenLipLoss()
    with Memory([logits, labels]) as memory:
        value = loss(logits, labels)
        forward = memory.most
        value.backward()
    # chunks of float32; in the backward the gradient besides
    assert forward <= 4 * (3 * captions.PASS + 16 * labels.numel())
    assert memory.most <= forward + 4 * captions.PASS + logits.numel() * logits.element_size()
    assert (value - math.log(2048)).abs() < 1e-6 * math.log(2048)


SIGNATURES = {
    fused_linear_cross_entropy: {
        "hidden": inspect.Parameter.empty,
        "weight": inspect.Parameter.empty,
        "target": inspect.Parameter.empty,
        "bias": None,
        "ignore_index": -100,
        "chunk_size": 1024,
        "reduction": "mean",
    },
    GenLipLoss: {"ignore_index": -100},
    GenLipLoss.forward: {
        "self": inspect.Parameter.empty,
        "logits": inspect.Parameter.empty,
        "labels": inspect.Parameter.empty,
        "output_dict": False,
    },
}
"""As open_clip's main branch has them (89fb801); what comes after is given by name alone."""


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_are_those_of_open_clips_main_branch(function):
    parameters = inspect.signature(function).parameters
    expected = SIGNATURES[function]
    assert {name: parameters[name].default for name in list(parameters)[: len(expected)]} == expected
    more = list(parameters.values())[len(expected) :]
    assert all(one.kind is one.KEYWORD_ONLY and one.default is not one.empty for one in more)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"hidden": None}, TypeError, "hidden: expected a torch.Tensor, got NoneType"),
        (
            {"hidden": torch.zeros(3)},
            ValueError,
            "hidden: expected 2 dimensions, none empty but the first, got shape [3]",
        ),
        (
            {"hidden": torch.zeros(2, 0)},
            ValueError,
            "hidden: expected 2 dimensions, none empty but the first, got shape [2, 0]",
        ),
        ({"weight": None}, TypeError, "weight: expected a torch.Tensor, got NoneType"),
        ({"weight": torch.zeros(5, 2)}, ValueError, "weight: expected the width of hidden, 3, got 2"),
        (
            {"weight": torch.zeros(5, 3).double()},
            TypeError,
            "weight: expected the dtype of hidden, torch.float32",
        ),
        ({"bias": torch.zeros(4)}, ValueError, "bias: expected one number for each row of weight, 5, got 4"),
        ({"bias": torch.zeros(5).double()}, TypeError, "bias: expected the dtype of weight, torch.float32"),
        ({"bias": 0.0}, TypeError, "bias: expected a torch.Tensor, got float"),
        ({"target": torch.zeros(2)}, TypeError, "target: expected an int64 tensor, got torch.float32"),
        ({"target": [0, 1]}, TypeError, "target: expected an int64 tensor, got list"),
        (
            {"target": torch.tensor([1, 4]).as_subclass(type("DTensor", (torch.Tensor,), {}))},
            TypeError,
            "target: expected a plain tensor, got a DTensor: give its full_tensor() or to_local()",
        ),
        (
            {"target": torch.tensor([1, 4], device="meta")},
            ValueError,
            "target: expected the device of hidden, cpu, got meta",
        ),
        (
            {"target": torch.tensor([1])},
            ValueError,
            "target: expected the shape of the tokens in hidden, [2], got [1]",
        ),
        (
            {"target": torch.tensor([1, 5])},
            ValueError,
            "target: expected token ids in [0, 5) or ignore_index=-100, got 5",
        ),
        (
            {"target": torch.tensor([1, -1])},
            ValueError,
            "target: expected token ids in [0, 5) or ignore_index=-100, got -1",
        ),
        ({"ignore_index": 1.0}, TypeError, "ignore_index: expected an int, got float"),
        ({"ignore_index": True}, TypeError, "ignore_index: expected an int, got bool"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected an int of at least 1, got 0"),
        ({"chunk_size": 1.0}, TypeError, "chunk_size: expected an int, got float"),
        ({"chunk_size": True}, TypeError, "chunk_size: expected an int, got bool"),
        ({"reduction": "none"}, ValueError, "reduction: expected one of 'mean', 'sum', got 'none'"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a number in [0, 1], got 1.5"),
        ({"label_smoothing": "0"}, TypeError, "label_smoothing: expected a number, got str"),
        ({"z_loss": -1}, ValueError, "z_loss: expected a finite number of at least 0, got -1"),
        ({"z_loss": math.inf}, ValueError, "z_loss: expected a finite number of at least 0, got inf"),
        ({"z_loss": math.nan}, ValueError, "z_loss: expected a finite number of at least 0, got nan"),
        ({"z_loss": True}, TypeError, "z_loss: expected a number, got bool"),
    ],
)
def test_wrong_arguments_are_named(changed, error, message):
    given = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "target": torch.tensor([1, 4])}
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        fused_linear_cross_entropy(**given | changed)


@pytest.mark.parametrize("label", [2**63, -(2**63) - 1])
def test_a_label_of_more_than_64_bits_is_named(label):
    with pytest.raises(ValueError, match=f"^pad_id: expected an int of 64 bits, got {label}$"):
        CoCaLoss(1.0, 1.0, pad_id=label)
    hidden, target = torch.zeros(2, 3), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=f"^ignore_index: expected an int of 64 bits, got {label}$"):
        fused_linear_cross_entropy(hidden, hidden, target, ignore_index=label)
    nearest = max(min(label, 2**63 - 1), -(2**63))
    assert GenLipLoss(nearest).ignore_index == nearest


def test_the_label_that_is_ignored_may_be_a_word():
    hidden, weight, bias, labels = tokens(7, TokenLoss(0))
    expected = F.cross_entropy(F.linear(hidden, weight, bias), labels, ignore_index=0)
    found = fused_linear_cross_entropy(hidden, weight, labels, bias, ignore_index=0)
    close(found.item(), expected.item(), magnitude(7, KINDS[0]), operations(7))


# GenLipLoss.


def test_genlip_is_the_mean_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    for shape in (2, 3), (2,), (2, 3, 2):
        logits = bounded_normal(generator, *shape, VOCABULARY)
        labels = torch.randint(0, VOCABULARY, shape, generator=generator)
        labels[0] = -100
        right = F.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1))
        assert GenLipLoss()(logits, labels, output_dict=True).keys() == {"caption_loss"}
        close(GenLipLoss()(logits, labels).item(), right.item(), magnitude(12, KINDS[0]), operations(12))
    smoothed = GenLipLoss(label_smoothing=0.1, z_loss=0.5)
    right = captions.token_losses(logits.flatten(0, -2), labels.flatten(), KINDS[1]._replace(z_loss=0.5))
    close(smoothed(logits, labels).item(), right.item() / 6, magnitude(12, KINDS[2]), operations(12))
    assert repr(smoothed) == "GenLipLoss(label_smoothing=0.1, z_loss=0.5)"
    assert repr(GenLipLoss(5)) == "GenLipLoss(ignore_index=5)"


def test_genlip_of_one_token_and_of_none():
    one = GenLipLoss()(torch.zeros(4).double(), torch.tensor(1))
    close(one.item(), math.log(4), 4, 4)
    assert GenLipLoss()(torch.zeros(0, 3), torch.zeros(0).long()) == 0
    assert GenLipLoss()(torch.zeros(0, 2, 3), torch.zeros(0, 2).long()) == 0


def test_genlips_chunks_equal_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = bounded_normal(generator, 3, 4, VOCABULARY)
    labels = torch.randint(0, VOCABULARY, (3, 4), generator=generator)
    whole = derived(GenLipLoss()(logits, labels), (logits,), 1)
    monkeypatch.setattr("verified_losses.implementations.ELEMENTS", 1)
    monkeypatch.setattr(captions, "PASS", 2 * VOCABULARY)
    with Memory([logits, labels]) as memory:
        found = derived(GenLipLoss()(logits, labels), (logits,), 1)
    assert memory.most < 2 * logits.numel() * 8
    for value, other in zip(found, whole, strict=True):
        close(value, other, magnitude(12, KINDS[0]), operations(12))


def test_genlip_takes_few_tokens_all_at_once(monkeypatch):
    monkeypatch.delattr(captions, "sum_logits")
    GenLipLoss()(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (None, torch.zeros(2).long(), "logits: expected a torch.Tensor, got NoneType"),
        (
            torch.zeros(2, 3),
            torch.zeros(3).long(),
            "labels: expected the shape of the tokens in logits, [2], got [3]",
        ),
        (
            torch.zeros(2, 3),
            torch.tensor([0, 3]),
            "labels: expected token ids in [0, 3) or ignore_index=-100, got 3",
        ),
        (torch.zeros(()), torch.tensor(0), "logits: expected 1 dimensions, none empty, got shape []"),
        (torch.zeros(0), torch.tensor(0), "logits: expected 1 dimensions, none empty, got shape [0]"),
        (
            torch.zeros(2, 0),
            torch.zeros(2).long(),
            "logits: expected 2 dimensions, none empty but the first, got shape [2, 0]",
        ),
    ],
)
def test_genlip_names_wrong_arguments(logits, labels, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        GenLipLoss()(logits, labels)


# CoCaLoss.

LENGTH = 3


def caption_batch(rank, rows, pads=True):
    """Return features and hidden states of a rank, and the weight and bias that all ranks share."""
    own, shared = torch.Generator().manual_seed(1 + rank), torch.Generator().manual_seed(0)
    labels = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=own)
    if pads:
        labels[:, 1 + rank % 2 :] = 0
    return {
        "image_features": F.normalize(bounded_normal(own, rows, 3), dim=1).detach().requires_grad_(),
        "text_features": F.normalize(bounded_normal(own, rows, 3), dim=1).detach().requires_grad_(),
        "labels": labels,
        "logit_scale": torch.tensor(3.0, dtype=torch.float64),
        "hidden_states": bounded_normal(own, rows, LENGTH, WIDTH),
        "vocabulary_weight": bounded_normal(shared, VOCABULARY, WIDTH),
        "vocabulary_bias": bounded_normal(shared, VOCABULARY),
    }


def as_logits(given):
    given = dict(given)
    made = given.pop("hidden_states"), given.pop("vocabulary_weight"), given.pop("vocabulary_bias")
    return {**given, "logits": F.linear(*made)}


CAPTION_INPUTS = ("hidden_states", "vocabulary_weight", "vocabulary_bias")
OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 0.5}]


@pytest.mark.parametrize("form", ["auto", "dense", "streamed"])
@pytest.mark.parametrize("options", OPTIONS)
def test_hidden_states_cost_what_their_logits_cost(form, options):
    given = caption_batch(0, 4)
    wanted = [given[name] for name in CAPTION_INPUTS]
    plain = CoCaLoss(2.0, 1.0, implementation="dense", **options)
    expected = plain(**as_logits(given))
    loss = CoCaLoss(2.0, 1.0, implementation=form, tile_size=5, **options)
    for found in loss(logits=None, **given), loss(**as_logits(given)):
        assert abs(found[0] - expected[0]) <= 64 * torch.finfo(torch.float64).eps * expected[0]
        pairs = zip(
            derived(found[1], wanted, 1), derived(plain(**as_logits(given))[1], wanted, 1), strict=True
        )
        for value, other in pairs:
            close(value, other, 2 * magnitude(12, KINDS[2]), operations(12))


@pytest.mark.parametrize(
    ("form", "size", "chunk"), [("dense", 5, None), ("streamed", 5, 5), ("auto", None, 7)]
)
def test_hidden_states_are_taken_in_chunks_as_asked(form, size, chunk, monkeypatch):
    chunks = []
    sum_linear = captions.sum_linear
    monkeypatch.setattr(captions, "CHUNK", 7)
    monkeypatch.setattr(captions, "sum_linear", lambda *given: chunks.append(given[5]) or sum_linear(*given))
    CoCaLoss(2.0, 1.0, implementation=form, tile_size=size)(logits=None, **caption_batch(0, 4))
    assert chunks == ([] if chunk is None else [chunk])


def test_a_number_of_tokens_that_is_a_tensor_is_not_read():
    assert coca._at_least_one(torch.ones((), device="meta")).device.type == "meta"
    assert [coca._at_least_one(torch.tensor(number)).item() for number in (0, 3)] == [1, 3]
    assert [coca._at_least_one(number) for number in (0, 3)] == [1, 3]


def coca_on_rank(rank, size, rows, convention):
    loss = CoCaLoss(
        2.0, 1.0, rank=rank, world_size=size, gather_with_grad=True, convention=convention, z_loss=0.5
    )
    given = caption_batch(rank, rows[rank])
    value = loss(logits=None, **given)[1]
    return derived(value, [given[name] for name in CAPTION_INPUTS], 1)


@pytest.mark.parametrize("rows", [(2, 2, 2), (1, 4, 2)])
def test_the_mean_over_ranks_is_the_single_process(rows):
    ranks = SimulatedWorld(3).run(coca_on_rank, rows, "exact")
    every = [caption_batch(rank, count) for rank, count in enumerate(rows)]
    together = every[0] | {
        name: torch.cat([given[name] for given in every]).detach().requires_grad_(name != "labels")
        for name in ("image_features", "text_features", "hidden_states", "labels")
    }
    value = CoCaLoss(2.0, 1.0, z_loss=0.5)(logits=None, **together)[1]
    loss, hidden, *shared = derived(value, [together[name] for name in CAPTION_INPUTS], 1)
    size = 3 * 2 * magnitude(LENGTH * sum(rows), KINDS[2])
    close(np.mean([found[0] for found in ranks]), loss, size, operations(LENGTH * sum(rows)))
    close(np.concatenate([found[1] for found in ranks]) / 3, hidden, size, operations(LENGTH * sum(rows)))
    for place, right in enumerate(shared, 2):
        mean = np.mean([found[place] for found in ranks], axis=0)
        close(mean, right, size, operations(LENGTH * sum(rows)))


def test_upstreams_convention_is_each_ranks_own_mean():
    rows = (1, 4, 2)
    for rank, found in enumerate(SimulatedWorld(3).run(coca_on_rank, rows, "open_clip")):
        given = caption_batch(rank, rows[rank])
        value = CoCaLoss(2.0, 1.0, z_loss=0.5)(logits=None, **given)[1]
        close(found[0], value.item(), 2 * magnitude(12, KINDS[2]), operations(12))


def weights_differ(rank, size):
    loss = CoCaLoss(2.0, 1.0, rank=rank, world_size=size, z_loss=0.5 * rank)
    loss(logits=None, **caption_batch(rank, 2))


def test_ranks_agree_on_what_a_token_costs():
    weights = r"weights 1\.0, 2\.0, label_smoothing 0\.0, z_loss 0\.5"
    with pytest.raises(Exception, match=f"ranks disagree: .*{weights}"):
        SimulatedWorld(2).run(weights_differ)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": torch.zeros(2, 3, 5)}, "logits: expected None where hidden_states are given"),
        ({"hidden_states": None}, "vocabulary_weight: expected None where hidden_states are not given"),
        (
            {"hidden_states": None, "vocabulary_weight": None},
            "vocabulary_bias: expected None where hidden_states are not given",
        ),
        (
            {"hidden_states": torch.zeros(2, 3)},
            "hidden_states: expected 3 dimensions, none empty but the first, got shape [2, 3]",
        ),
        (
            {"hidden_states": torch.zeros(2, 3, 3, device="meta").double()},
            "hidden_states: expected the device of image_features, cpu, got meta",
        ),
        ({"vocabulary_weight": None}, "vocabulary_weight: expected a torch.Tensor, got NoneType"),
        (
            {"vocabulary_weight": torch.zeros(5, 2).double()},
            "vocabulary_weight: expected the width of hidden_states, 3, got 2",
        ),
        (
            {"hidden_states": torch.zeros(2, 3, 4).double()},
            "vocabulary_weight: expected the width of hidden_states, 4, got 3",
        ),
        (
            {"vocabulary_bias": torch.zeros(4).double()},
            "vocabulary_bias: expected one number for each row of vocabulary_weight, 5, got 4",
        ),
        ({"labels": torch.full((2, 3), 7)}, "labels: expected token ids in [0, 5) or pad_id=0, got 7"),
        (
            {"labels": torch.zeros(2, 4).long()},
            "labels: expected the first two dimensions of hidden_states, [2, 3], got [2, 4]",
        ),
        (
            {"labels": torch.zeros(2, 3).long().as_subclass(type("DTensor", (torch.Tensor,), {}))},
            "labels: expected a plain tensor, got a DTensor: give its full_tensor() or to_local()",
        ),
    ],
)
def test_coca_names_wrong_hidden_states(changed, message):
    given = {"logits": None, **caption_batch(0, 2), **changed}
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        CoCaLoss(2.0, 1.0)(**given)


def test_coca_names_wrong_options():
    for options in {"label_smoothing": 2.0}, {"z_loss": -1.0}, {"pad_id": 0.5}:
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            CoCaLoss(2.0, 1.0, **options)


def test_large_captions_are_taken_in_chunks(monkeypatch):
    given = as_logits(caption_batch(0, 4))
    taken = []
    chunked = captions.sum_logits
    monkeypatch.setattr(captions, "sum_logits", lambda *every: taken.append(every[3]) or chunked(*every))
    CoCaLoss(2.0, 1.0)(**given)
    assert not taken
    monkeypatch.setattr("verified_losses.implementations.ELEMENTS", given["logits"].numel())
    CoCaLoss(2.0, 1.0, tile_size=7)(**given)
    CoCaLoss(2.0, 1.0)(**given)
    assert taken == [7, None]
    CoCaLoss(2.0, 1.0, implementation="dense")(**given)
    assert len(taken) == 2


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, where a graph breaks
def test_compiled_hidden_states_equal_eager():
    given = caption_batch(0, 4)
    torch._dynamo.reset()
    compiled = torch.compile(CoCaLoss(2.0, 1.0), backend="eager")(logits=None, **given)
    eager = CoCaLoss(2.0, 1.0)(logits=None, **given)
    assert all(torch.equal(one, other) for one, other in zip(compiled, eager, strict=True))


def test_the_losses_are_modules():
    assert isinstance(GenLipLoss(), nn.Module)
