"""The oracles, against values worked by hand and a second formulation in mpmath.

The second formulation is written from the formulas, with a loop for every sum. What carries gradient it
says by two copies of each rank's rows: `live` ones, which are differentiated, and `still` ones.
"""

import itertools

import mpmath
import numpy as np
import pytest

from tests.helpers import (
    TEACHER_WIDTH,
    VOCABULARY,
    close,
    gradient_magnitude,
    operations,
    value_magnitude,
)
from verified_losses.oracles import (
    clip,
    coca,
    coca_hidden,
    complex_step,
    cross_entropy,
    distill,
    exchange,
    gather,
    infonce,
    linear_cross_entropy,
    ntxent,
    siglip,
)

LOG2, LOG3 = np.log(2), np.log(3)

FLAGS = list(itertools.product([False, True], [False, True], ["exact", "open_clip"]))
ROWS = [(3,), (1, 1), (2, 1), (1, 2, 1)]
WIDTH, TOKENS = 2, 2
TEMPERATURE, LENGTH = 0.5, 1.5
"""Cosines over temperature are at most 2; the views' length must not matter."""


# Worked by hand.


EYE = [np.eye(2)]
HALVES = [np.eye(2)[:1], np.eye(2)[1:]]


def test_complex_step_by_hand():
    # f = x^2 y at (3, 5): (2xy, x^2) = (30, 9), along (1, -1) 21
    def function(v):
        return v[0] ** 2 * v[1]

    point = np.array([3.0, 5.0])
    close(complex_step.gradient(function, point), [30, 9], [30, 9], 4)
    close(complex_step.directional_derivative(function, point, np.array([1.0, -1.0])), 21, 39, 6)


def test_constant_and_carry_by_hand():
    # d/dx of x * constant(x) is x, and of carry(x, 3) 3
    point = np.array([2.0])
    close(complex_step.gradient(lambda v: v[0] * complex_step.constant(v[0]), point), [2], [2], 2)
    close(complex_step.gradient(lambda v: gather.carry(v, 3)[0], point), [3], [3], 2)


def test_gradient_keeps_the_shape_of_the_point():
    point = np.arange(6.0).reshape(2, 3)
    # d/dx sum x^2 = 2x
    close(complex_step.gradient(lambda v: np.sum(v * v), point), 2 * point, 2 * point, 4)


def test_exchange_by_hand():
    a, b, c = np.zeros(1), np.ones((2, 1)), np.full(3, 2.0)
    assert exchange.neighbour_exchange([a, b, c], [2, 0, 1]) == [c, a, b]
    # rank 0's right neighbour is 1, its left one 2
    assert exchange.neighbour_exchange_bidir(["l0", "l1", "l2"], ["r0", "r1", "r2"]) == [
        ("l1", "r2"),
        ("l2", "r0"),
        ("l0", "r1"),
    ]
    # of two ranks each is both neighbours of the other
    assert exchange.neighbour_exchange_bidir(["l0", "l1"], ["r0", "r1"]) == [("l1", "r1"), ("l0", "r0")]


@pytest.mark.parametrize(
    ("local_loss", "gather_with_grad", "convention", "expected"),
    [
        (False, False, "exact", [0, 3, 0]),
        (False, False, "open_clip", [0, 1, 0]),
        (True, False, "exact", [0, 0, 0]),
        (True, False, "open_clip", [0, 0, 0]),
        (False, True, "exact", [1, 1, 1]),
        (False, True, "open_clip", [1, 1, 1]),
        (True, True, "exact", [1, 1, 1]),
        (True, True, "open_clip", [1, 1, 1]),
    ],
)
def test_occurrences_by_hand(local_loss, gather_with_grad, convention, expected):
    flags = (local_loss, gather_with_grad, convention)
    assert gather.occurrences(1, 3, *flags) == expected
    assert gather.occurrences(0, 1, *flags) == [1]
    rows = [np.array([[1.0]]), np.array([[2.0], [3.0]]), np.array([[4.0]])]
    moved = [r + 1j * complex_step.STEP for r in rows]
    gathered = gather.gather_features(moved, 1, *flags)
    assert np.real(gathered).ravel().tolist() == [1, 2, 3, 4]
    carried = np.repeat(expected, [1, 2, 1]) * complex_step.STEP
    assert np.imag(gathered).ravel().tolist() == carried.tolist()


def test_clip_parts_by_hand():
    # softmax (3/4, 1/4) of (log 3, 0)
    logits = np.array([[LOG3, 0.0], [0.0, LOG3]])
    expected = [[np.log(3 / 4), np.log(1 / 4)], [np.log(1 / 4), np.log(3 / 4)]]
    close(clip.log_softmax(logits), expected, 2 * LOG3 + LOG2, 8)
    close(clip.cross_entropy(logits, np.array([0, 0])), [np.log(4 / 3), np.log(4)], 2 * LOG3 + LOG2, 8)
    # no exponential overflows: softmax of (1000, 0) is (1, exp(-1000) = 0)
    assert clip.log_softmax(np.array([[1000.0, 0.0]])).tolist() == [[0.0, -1000.0]]
    # each row by its own largest, whatever the others' and however many axes there are
    rows = [[[0.0, -900.0], [6000.0, 5000.0]], [[-3000.0, 0.0], [1e5, 0.0]]]
    expected = [[[0.0, -900.0], [0.0, -1000.0]], [[-3000.0, 0.0], [0.0, -1e5]]]
    assert clip.log_softmax(np.array(rows)).tolist() == expected
    assert clip.get_ground_truth([2, 3], 1, local_loss=True).tolist() == [2, 3, 4]
    assert clip.get_ground_truth([2, 3], 1, local_loss=False).tolist() == [0, 1, 2, 3, 4]
    assert clip.get_ground_truth([2], 0, local_loss=True).tolist() == [0, 1]
    close(clip.row_weight([2, 3], local_loss=True), 2 / 5, 1, 2)
    close(clip.row_weight([2, 3], local_loss=False), 1 / 5, 1, 2)


@pytest.mark.parametrize("gather_with_grad", [False, True])
def test_clip_logits_have_the_bias_once_by_hand(gather_with_grad):
    # scale 2, bias -10: 2 * 1 - 10 for partners, -10 elsewhere; rank 1 locally has the second row
    partners = [[-8.0, -10.0], [-10.0, -8.0]]
    for local_loss, expected in (False, partners), (True, partners[1:]):
        logits = clip.get_logits(HALVES, HALVES, 2.0, -10.0, 1, local_loss, gather_with_grad, "exact")
        assert [z.tolist() for z in logits] == [expected, expected]


def test_clip_value_by_hand():
    # two orthogonal pairs at scale log 3: the partner has probability 3/4 whatever the bias is
    for bias in 0.0, -10.0:
        close(clip.clip_loss(EYE, EYE, [LOG3], [bias], 0), np.log(4 / 3), 4 * (LOG3 + 10), 12)
    for rank, (local_loss, gather_with_grad, convention) in itertools.product([0, 1], FLAGS):
        flags = (local_loss, gather_with_grad, convention)
        loss = clip.clip_loss(HALVES, HALVES, [LOG3] * 2, [0.0] * 2, rank, *flags)
        close(loss, np.log(4 / 3), 4 * LOG3, 12)


def test_clip_uneven_value_by_hand():
    # three orthogonal pairs at scale log 2: probability 2 / (2 + 1 + 1), log 2 for each of the 6 rows.
    # Locally 4 of them count (2/3) / 2 on rank 0 and 2 on rank 1; the mean is log 2 again.
    features = np.split(np.eye(3), [2])
    arguments = (features, features, [LOG2] * 2, [0.0] * 2)
    close(clip.clip_loss(*arguments, 0, local_loss=True), 4 / 3 * LOG2, 12 * LOG2, 16)
    close(clip.clip_loss(*arguments, 1, local_loss=True), 2 / 3 * LOG2, 12 * LOG2, 16)
    close(clip.clip_loss(*arguments, 1, local_loss=False), LOG2, 12 * LOG2, 16)


# With two orthogonal pairs at scale s = log 3, halved for the mean of both directions, the image-to-text row
# of image 0 gives it s/2 (p - 1, 1 - p) = s/2 (-1/4, 1/4) with p = 3/4. The text rows give it s/2 (-1/4, 0)
# from text 0 and s/2 (0, 1/4) from text 1. A single process's gradient is half of s/2 (-1/2, 1/2).
@pytest.mark.parametrize(
    ("local_loss", "gather_with_grad", "convention", "own", "other"),
    [
        (False, True, "exact", (-1 / 4, 1 / 4), (1 / 4, -1 / 4)),
        (False, False, "exact", (-1 / 2, 1 / 2), (0, 0)),
        (False, False, "open_clip", (-1 / 4, 1 / 4), (0, 0)),
        (True, True, "exact", (-1 / 2, 1 / 4), (1 / 4, 0)),
        (True, False, "exact", (-1 / 4, 1 / 4), (0, 0)),
        (True, False, "open_clip", (-1 / 4, 1 / 4), (0, 0)),
    ],
)
def test_clip_gradient_by_hand(local_loss, gather_with_grad, convention, own, other):
    def loss(image):
        flags = (local_loss, gather_with_grad, convention)
        return clip.clip_loss([image[:1], image[1:]], HALVES, [LOG3] * 2, [0.0] * 2, 0, *flags)

    expected = LOG3 / 2 * np.array([own, other])
    close(complex_step.gradient(loss, np.eye(2)), expected, 2 * LOG3 * (1 + LOG3), 24)


def test_clip_scale_gradient_by_hand():
    # each of the 4 rows: p * 1 + (1 - p) * 0 - 1 = -1/4, and their mean
    gradient = complex_step.gradient(lambda s: clip.clip_loss(EYE, EYE, [s], [0.0], 0), np.array(LOG3))
    close(gradient, -1 / 4, 2 * (1 + LOG3), 24)


def test_infonce_by_hand():
    # two orthogonal pairs of any length at temperature 1 / log 3: the key has probability 3/4
    queries, keys = np.diag([2.0, 5.0]), np.diag([0.5, 3.0])
    close(infonce.normalize(queries), np.eye(2), np.eye(2), 4)
    three = np.array([[[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]])  # rows of rows
    close(infonce.normalize(three), [[[0.6, 0.8, 0], [0, 0, 1]]], 1, 8)
    close(infonce.infonce_loss([queries], [keys], 1 / LOG3, 0), np.log(4 / 3), 4 * LOG3, 16)
    # its gradient by the first query is -log 3 (1/4, -1/4) / 2, less what lies along it, over its length 2

    def moved(query):
        return infonce.infonce_loss([np.stack([query, queries[1]])], [keys], 1 / LOG3, 0)

    close(complex_step.gradient(moved, queries[0]), [0, LOG3 / 16], LOG3, 24)
    # locally each of two ranks has one query, among all keys; a list holds what they multiply by
    views = [queries[:1], queries[1:]], [keys[:1], keys[1:]]
    for rank, temperature in itertools.product(range(2), _temperatures(LOG3)):
        close(infonce.infonce_loss(*views, temperature[rank], rank, True, True), np.log(4 / 3), 4 * LOG3, 16)


def _temperatures(scale):
    """Return what each of two ranks is given: a temperature, or the inverse ones of all ranks."""
    return [1 / scale] * 2, [[np.asarray(scale), np.asarray(7.0)], [np.asarray(7.0), np.asarray(scale)]]


def test_ntxent_by_hand():
    # the only other view is the partner
    close(ntxent.ntxent_loss([np.ones((1, 3))], [np.full((1, 3), 2.0)], 0.1, 0), 0, 10, 12)
    # two orthogonal pairs at temperature 1 / log 2: 2 for the partner, 1 for each of two others
    first, second = np.diag([2.0, 5.0]), np.diag([0.5, 3.0])
    close(ntxent.ntxent_loss([first], [second], 1 / LOG2, 0), LOG2, 6 * LOG2 + 2, 16)
    views = [first[:1], first[1:]], [second[:1], second[1:]]
    for rank, local_loss, temperature in itertools.product([0, 1], [False, True], _temperatures(LOG2)):
        close(ntxent.ntxent_loss(*views, temperature[rank], rank, local_loss, True), LOG2, 6 * LOG2 + 2, 16)


def test_places_by_hand():
    own, partner = ntxent.places([2, 1], 1, local_loss=True)
    assert (own.tolist(), partner.tolist()) == ([2, 5], [5, 2])
    own, partner = ntxent.places([2, 1], 1, local_loss=False)
    assert (own.tolist(), partner.tolist()) == ([0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2])


def test_cross_entropy_by_hand():
    # softmax (3/4, 1/4); the second row counts nothing, whatever it is
    logits = np.array([[LOG3, 0.0], [700.0, -700.0], [LOG3, 0.0]])
    loss = cross_entropy.cross_entropy_loss(logits, np.array([0, -100, 1]), -100)
    close(loss, (np.log(4 / 3) + np.log(4)) / 2, 4 * LOG3, 12)


def test_caption_by_hand():
    # all scores equal: log 4 a token. Rank 0 has 3 tokens, rank 1 has 1, rank 2 none: 4/3 a rank.
    logits = [np.zeros((2, 2, 4))] * 3
    for pad_id in 0, 3, -100:
        labels = [np.full((2, 2), pad_id) for _ in range(3)]
        labels[0].flat[:3], labels[1].flat[0] = [1, 2, 1], 2
        exact = [coca.caption_loss(logits, labels, rank, pad_id) for rank in range(3)]
        close(exact, np.array([3, 1, 0]) * np.log(4) * 3 / 4, 9 * np.log(4), 12)
        close(sum(exact) / 3, np.log(4), 9 * np.log(4), 14)
        own = [coca.caption_loss(logits, labels, rank, pad_id, "open_clip") for rank in range(3)]
        close(own, np.array([1, 1, 0]) * np.log(4), 3 * np.log(4), 12)
        assert coca.caption_loss(logits[:1], [labels[2]], 0, pad_id) == 0


@pytest.mark.parametrize(
    "flags", [(False, False, "exact"), (True, True, "exact"), (True, False, "open_clip")]
)
def test_coca_weighs_both_losses(flags):
    image, text, scale, bias = split(features([2, 1], WIDTH, 3), [2, 1], WIDTH)
    columns = image, text, [scale] * 2, [bias] * 2
    # a token id of 3 is padding, so that both ranks have another number of tokens
    logits, labels = (
        [np.eye(4)[None], np.ones((1, 4, 4))],
        [np.array([[0, 1, 3, 2]]), np.array([[3, 3, 3, 1]])],
    )
    for rank in range(2):
        both = coca.coca_loss(columns, logits, labels, rank, *flags, 0.5, 3.0, 3)
        assert both[0] == 0.5 * clip.clip_loss(*columns, rank, *flags)
        assert both[1] == 3 * coca.caption_loss(logits, labels, rank, 3, flags[2])


def test_coca_defaults():
    image, text, scale, bias = split(features([2, 1], WIDTH, 3), [2, 1], WIDTH)
    image = [rows * (1 + 1e-20j) for rows in image]  # flags change what carries gradient
    columns = image, text, [scale] * 2, [bias] * 2
    logits, labels = (
        [np.eye(4)[None], np.ones((1, 4, 4))],
        [np.array([[0, 1, 3, 2]]), np.array([[0, 0, 0, 1]])],
    )
    contrastive, caption = coca.coca_loss(columns, logits, labels, 1)
    assert contrastive == clip.clip_loss(*columns, 1, False, False, "exact")
    assert caption == 2 * coca.caption_loss(logits, labels, 1, 0, "exact")


def test_a_loss_of_weight_0_is_0_whatever_its_inputs():
    infinite = [np.full((1, 2), np.inf)]
    columns = infinite, infinite, [np.asarray(1.0)], [np.asarray(0.0)]
    logits, labels = [np.full((1, 1, 2), np.nan)], [np.array([[1]])]
    assert coca.coca_loss(columns, logits, labels, 0, clip_loss_weight=0.0, caption_loss_weight=0.0) == (0, 0)


def test_caption_gradient_by_hand():
    # one token of class 1 beside a pad: softmax - onehot = (1/4, -3/4, 1/4, 1/4), and nothing for the pad
    labels = [np.array([[1, 0]])]
    gradient = complex_step.gradient(lambda z: coca.caption_loss([z], labels, 0), np.zeros((1, 2, 4)))
    expected = np.array([[[1 / 4, -3 / 4, 1 / 4, 1 / 4], [0, 0, 0, 0]]])
    close(gradient, expected, np.abs(expected), 12)


def test_captions_of_hidden_states_are_those_of_their_logits():
    generator = np.random.default_rng(1)
    weight, bias = generator.integers(-3, 4, (4, 2)).astype(float), np.arange(4.0)
    hidden = [generator.integers(-3, 4, (rows, 3, 2)).astype(float) for rows in (1, 2, 1)]
    labels = [np.tile([[1, 2, 0]], (rows, 1)) for rows in (1, 2, 1)]
    labels[2][:] = 0
    logits = [h @ weight.T + bias for h in hidden]  # of whole numbers: exact
    for rank, convention in itertools.product(range(3), ("exact", "open_clip")):
        given = hidden, [weight] * 3, [bias] * 3, labels, rank, 0, convention
        right = coca.caption_loss(logits, labels, rank, 0, convention)
        assert coca_hidden.caption_loss(*given) == right
        # equal logits: log(4), and its square times the factor
        none = [np.zeros((4, 2))] * 3
        flat = coca_hidden.caption_loss(hidden, none, [np.zeros(4)] * 3, *given[3:], 0.5, 2.0)
        tokens = np.count_nonzero(labels[rank])
        divisor = 2 if convention == "exact" else max(tokens, 1)
        close(flat, tokens / divisor * (np.log(4) + 2 * np.log(4) ** 2), 8, 50)


@pytest.mark.parametrize(
    "flags", [(False, False, "exact"), (True, True, "exact"), (True, False, "open_clip")]
)
def test_coca_of_hidden_states_weighs_both_losses(flags):
    image, text, scale, bias = split(features([2, 1], WIDTH, 3), [2, 1], WIDTH)
    columns = [rows * (1 + 1e-20j) for rows in image], text, [scale] * 2, [bias] * 2
    generator = np.random.default_rng(2)
    weight, bias = generator.standard_normal((4, 2)), np.arange(4.0)
    projection = [generator.standard_normal((rows, 3, 2)) for rows in (2, 1)], [weight] * 2, [bias] * 2
    labels = [np.array([[0, 1, 3], [2, 3, 3]]), np.array([[3, 3, 1]])]
    loss, of_captions = coca_hidden.coca_hidden_loss, coca_hidden.caption_loss
    for rank in range(2):
        # a token id of 3 is padding
        both = loss(columns, projection, labels, rank, *flags, 0.5, 3.0, 3, 0.25, 0.5)
        assert both[0] == 0.5 * clip.clip_loss(*columns, rank, *flags)
        caption = of_captions(*projection, labels, rank, 3, flags[2], 0.25, 0.5)
        assert both[1] == 3 * caption
        # the mean of what `linear_cross_entropy` takes of each token
        tokens = 2 if flags[2] == "exact" else np.count_nonzero(labels[rank] != 3)
        hidden = projection[0][rank].reshape(-1, 2)
        summed = linear_cross_entropy.linear_cross_entropy_loss(
            hidden, weight, bias, labels[rank].ravel(), 3, "sum", 0.25, 0.5
        )
        close(caption, summed / tokens, 100, 24)
        assert loss(columns, projection, labels, rank, clip_loss_weight=0.0)[0] == 0
        assert loss(columns, projection, labels, rank, caption_loss_weight=0.0)[1] == 0
        # what is left out
        both = loss(columns, projection, labels, rank)
        assert both[0] == clip.clip_loss(*columns, rank, False, False, "exact")
        plain = of_captions(*projection, labels, rank, 0, "exact", 0.0, 0.0)
        assert both[1] == 2 * plain == 2 * of_captions(*projection, labels, rank)


def test_the_square_of_log_sum_exp_by_hand():
    # log(2 exp 0), and log(2 exp 2000), though one exponential overflows and the other is 0 beside it
    logits = np.array([[0.0, 0.0], [2000.0, 2000.0]])
    squares = LOG2**2, (2000 + LOG2) ** 2
    close(linear_cross_entropy.z_loss(logits, 0.5), np.divide(squares, 2), squares, 8)


def test_linear_cross_entropy_of_equal_logits():
    hidden, weight, bias, target = np.zeros((3, 2)), np.ones((4, 2)), np.zeros(4), np.array([1, 3, -100])
    loss = linear_cross_entropy.linear_cross_entropy_loss
    assert loss(hidden, weight, bias, target) == np.log(4)
    both = 2 * (np.log(4) + 2 * np.log(4) ** 2)
    close(loss(hidden, weight, bias, target, -100, "sum", 0.5, 2.0), both, both, 16)
    assert loss(hidden, weight, bias, np.full(3, -100)) == 0
    # all of the probability is its own label's, or every label's alike
    bias = np.array([50.0, 0, 0, 0])
    first = np.zeros(3, dtype=int)
    assert abs(loss(hidden, weight, bias, first)) < 1e-20
    close(loss(hidden, weight, bias, first, label_smoothing=1.0), 37.5, 100, 16)


def test_distill_by_hand():
    student = (EYE, EYE, [LOG3], [0.0])
    # teacher (1/2, 1/2) over student (3/4, 1/4): -(log 3/4 + log 1/4) / 2 = log 4 - log(3) / 2
    loss = distill.distill_loss(student, (EYE, EYE, [0.0], [0.0]), 0)
    close(loss, np.log(4) - LOG3 / 2, 6 * LOG3, 20)
    # the teacher as student pays its entropy, 3/4 log 4/3 + 1/4 log 4 = log 4 - 3/4 log 3, and learns nothing
    close(distill.distill_loss(student, student, 0), np.log(4) - 3 / 4 * LOG3, 6 * LOG3, 20)
    gradient = complex_step.gradient(
        lambda s: distill.distill_loss((EYE, EYE, [s], [0.0]), student, 0), np.array(LOG3)
    )
    close(gradient, 0.0, 4 * (1 + LOG3), 24)
    # row by row: uniform teacher and student cost log 2
    losses = distill.soft_cross_entropy(np.zeros((2, 2)), np.array([[LOG3, 0.0], [0.0, 0.0]]))
    close(losses, [np.log(4) - LOG3 / 2, np.log(2)], 3 * LOG3, 12)


def test_softplus_is_one_function_of_real_and_complex_numbers():
    z = np.array([-3.0, 0.0, 3.0])
    close(np.real(siglip.softplus(z + 0j)), siglip.softplus(z), np.abs(siglip.softplus(z)), 8)


def test_siglip_by_hand():
    # scale log 3 and bias 0: log(1 + 1/3) for 2 partners, log 2 for 2 others, over 2 images: log 8/3
    close(siglip.siglip_loss(EYE, EYE, [LOG3], [0.0], 0), np.log(8 / 3), np.log(8 / 3), 12)
    # on each of two ranks: one partner, one other, weighed 2/2
    for rank in 0, 1:
        loss = siglip.siglip_loss(HALVES, HALVES, [LOG3] * 2, [0.0] * 2, rank)
        close(loss, np.log(8 / 3), np.log(8 / 3), 12)
    # bias -log 3: log 2 for partners, log(1 + 1/3) for others
    close(siglip.siglip_loss(EYE, EYE, [LOG3], [-LOG3], 0), np.log(8 / 3), np.log(8 / 3) + 2 * LOG3, 12)


def test_siglip_gradient_by_hand():
    def loss(v):
        return siglip.siglip_loss(EYE, EYE, [v[0]], [v[1]], 0)

    # -sigmoid(-log 3) = -1/4 for each partner, sigmoid(0) = 1/2 for each other, over 2 images:
    # by scale 2 (-1/4) / 2, by bias (2 (-1/4) + 2 / 2) / 2
    gradient = complex_step.gradient(loss, np.array([LOG3, 0.0]))
    close(gradient, [-1 / 4, 1 / 4], 1 + LOG3, 16)


def test_softplus_of_large_logits_by_hand():
    # log(1 + e^700) = 700 + e^-700, which rounds to 700; log(1 + e^-700) = e^-700 to 304 digits
    assert siglip.softplus(np.array(700.0)) == 700.0
    assert siglip.softplus(np.array(1e6)) == 1e6
    close(siglip.softplus(np.array(-700.0)), np.exp(-700.0), np.exp(-700.0), 4)
    assert siglip.softplus(np.array(-1e6)) == 0.0
    close(siglip.softplus(np.array(0.0)), LOG2, LOG2, 4)
    # the derivative is the sigmoid: 1 above and e^-700 below, but for what e^-700 times the step underflows
    underflow = np.finfo(float).smallest_subnormal / complex_step.STEP
    slopes = [complex_step.gradient(siglip.softplus, np.array(z)) for z in (700.0, -400.0, -700.0)]
    expected = [1.0, np.exp(-400.0), np.exp(-700.0)]
    close(slopes, expected, expected, 8, floor=underflow)


@pytest.mark.parametrize("x", [0.0, 1e-300, 1e-20, 1e-8, 1e-3, 1.0])
def test_log1p_is_exact_for_small_values(x):
    close(np.real(siglip.log1p(np.array(x))), np.log1p(x), np.log1p(x), 6)
    # log(1 + x + ih) = log(1 + x) + ih / (1 + x)
    slope = complex_step.gradient(siglip.log1p, np.array(x))
    close(slope, 1 / (1 + x), 1 / (1 + x), 6)


def test_log1p_of_any_complex_number_by_hand():
    # |1 + i| is sqrt(2), its angle pi / 4
    close(siglip.log1p(np.array(1j)), LOG2 / 2 + 0.25j * np.pi, 1, 6)


# The second formulation, in mpmath.


def split(flat, rows, width):
    """Return every rank's [n, width] image and text features, the scale and the bias that `flat` holds."""
    image, text = flat[:-2].reshape(2, sum(rows), width)
    cuts = np.cumsum(rows)[:-1]
    return np.split(image, cuts), np.split(text, cuts), flat[-2], flat[-1]


def mp_times(world_size, rank, source, local_loss, gather_with_grad, convention):
    """Return how often what `rank` gathered from `source` carries gradient."""
    if world_size == 1 or gather_with_grad:
        return 1
    if local_loss or source != rank:
        return 0
    return world_size if convention == "exact" else 1


def mp_logits(live, still, rank, local_loss, gather_with_grad, convention):
    """Return image-to-text and text-to-image logits as lists of rows, and each row's label."""
    world_size = len(live[0])
    scale, bias = live[2], live[3]
    mine = [(rank, i) for i in range(len(live[0][rank]))]
    everyone = [(source, i) for source in range(world_size) for i in range(len(live[0][source]))]
    local = local_loss and world_size > 1

    def gathered(side, source, i, k):
        value, constant = live[side][source][i][k], still[side][source][i][k]
        times = mp_times(world_size, rank, source, local_loss, gather_with_grad, convention)
        return times * value + (1 - times) * constant

    def dot(side, a, b):
        total = mpmath.mpf(0)
        for k in range(len(live[0][0][0])):
            anchor = live[side][a[0]][a[1]][k] if local else gathered(side, *a, k)
            total += anchor * gathered(1 - side, *b, k)
        return total

    anchors = mine if local else everyone
    logits = [[[scale * dot(side, a, b) + bias for b in everyone] for a in anchors] for side in (0, 1)]
    return logits, [everyone.index(a) for a in anchors]


def mp_clip(live, still, rank, *flags):
    logits, labels = mp_logits(live, still, rank, *flags)
    total = mpmath.mpf(0)
    for direction in logits:
        for row, label in zip(direction, labels, strict=True):
            total -= mpmath.log(mpmath.exp(row[label]) / sum(mpmath.exp(z) for z in row))
    return total * mp_row_weight(live, flags[0]) / 2


def mp_row_weight(live, local_loss):
    pairs = mpmath.mpf(sum(len(rows) for rows in live[0]))
    return len(live[0]) / pairs if local_loss else 1 / pairs


def mp_views(live, still, rank, *flags):
    """Return all rows of each side as `rank` gathers them, its anchors of each side, and their places."""
    world_size = len(live[0])
    everyone = [(source, i) for source in range(world_size) for i in range(len(live[0][source]))]
    local = flags[0] and world_size > 1
    gathered, anchors = [], []
    for side in (0, 1):
        rows = []
        for source, i in everyone:
            times = mp_times(world_size, rank, source, *flags)
            pairs = zip(live[side][source][i], still[side][source][i], strict=True)
            rows.append([times * value + (1 - times) * constant for value, constant in pairs])
        gathered.append(rows)
        anchors.append(list(live[side][rank]) if local else rows)
    return gathered, anchors, [k for k, (source, _) in enumerate(everyone) if not local or source == rank]


def mp_cosine(x, y):
    def dot(a, b):
        return sum(p * q for p, q in zip(a, b, strict=True))

    return dot(x, y) / mpmath.sqrt(dot(x, x) * dot(y, y))


def mp_infonce(live, still, rank, *flags):
    (_, keys), (queries, _), places = mp_views(live, still, rank, *flags)
    total = mpmath.mpf(0)
    for query, place in zip(queries, places, strict=True):
        likely = [mpmath.exp(mp_cosine(query, key) / TEMPERATURE) for key in keys]
        total -= mpmath.log(likely[place] / sum(likely))
    return total * mp_row_weight(live, flags[0])


def mp_ntxent(live, still, rank, *flags):
    gathered, anchors, places = mp_views(live, still, rank, *flags)
    total = mpmath.mpf(0)
    for side in (0, 1):
        for anchor, place in zip(anchors[side], places, strict=True):
            others = {
                (other, k): mpmath.exp(mp_cosine(anchor, view) / TEMPERATURE)
                for other in (0, 1)
                for k, view in enumerate(gathered[other])
                if (other, k) != (side, place)
            }
            total -= mpmath.log(others[1 - side, place] / sum(others.values()))
    return total * mp_row_weight(live, flags[0]) / 2


def mp_cross_entropy(logits, labels, ignore_index):
    terms = [
        -mpmath.log(mpmath.exp(row[label]) / sum(mpmath.exp(z) for z in row))
        for row, label in zip(logits, labels, strict=True)
        if label != ignore_index
    ]
    return sum(terms) / len(terms)


def mp_distill(live, still, rank, *flags):
    student, _ = mp_logits(live[0], still[0], rank, *flags)
    teacher, _ = mp_logits((live if flags[2] == "open_clip" else still)[1], still[1], rank, *flags)
    total = mpmath.mpf(0)
    for direction, teacher_direction in zip(student, teacher, strict=True):
        for row, teacher_row in zip(direction, teacher_direction, strict=True):
            for z, t in zip(row, teacher_row, strict=True):
                wanted = mpmath.exp(t) / sum(mpmath.exp(u) for u in teacher_row)
                total -= wanted * mpmath.log(mpmath.exp(z) / sum(mpmath.exp(u) for u in row))
    return total * mp_row_weight(live[0], flags[0]) / 2


def mp_siglip(live, still, rank):
    image, text, scale, bias = live
    total = mpmath.mpf(0)
    for i, x in enumerate(image[rank]):
        for source, texts in enumerate(text):
            for j, y in enumerate(texts):
                logit = scale * sum(a * b for a, b in zip(x, y, strict=True)) + bias
                sign = 1 if (source, j) == (rank, i) else -1
                total += mpmath.log(1 + mpmath.exp(-sign * logit))
    return total * len(image) / sum(len(rows) for rows in image)


def mp_caption(logits, labels, rank, pad_id, convention):
    total, tokens = mpmath.mpf(0), [0] * len(labels)
    for source, captions in enumerate(labels):
        for i, caption in enumerate(captions):
            for t, label in enumerate(caption):
                if label == pad_id:
                    continue
                tokens[source] += 1
                if source == rank:
                    row = logits[source][i][t]
                    total -= mpmath.log(mpmath.exp(row[label]) / sum(mpmath.exp(z) for z in row))
    if not tokens[rank]:
        return total
    return total / (mpmath.mpf(sum(tokens)) / len(tokens) if convention == "exact" else tokens[rank])


# Each loss as two functions of one flat point: the oracle, and the second formulation of (live, still).


def both_clip(rows, rank, flags):
    def oracle(flat):
        image, text, scale, bias = split(flat, rows, WIDTH)
        return clip.clip_loss(image, text, [scale] * len(rows), [bias] * len(rows), rank, *flags)

    def second(live, still):
        return mp_clip(split(live, rows, WIDTH), split(still, rows, WIDTH), rank, *flags)

    return oracle, second


def both_infonce(rows, rank, flags):
    return _both_views(rows, rank, flags, infonce.infonce_loss, mp_infonce)


def both_ntxent(rows, rank, flags):
    return _both_views(rows, rank, flags, ntxent.ntxent_loss, mp_ntxent)


def _both_views(rows, rank, flags, loss, mp_loss):
    def oracle(flat):
        first, second, _, _ = split(LENGTH * flat, rows, WIDTH)
        return loss(first, second, TEMPERATURE, rank, *flags)

    def second(live, still):
        return mp_loss(split(LENGTH * live, rows, WIDTH), split(LENGTH * still, rows, WIDTH), rank, *flags)

    return oracle, second


def both_cross_entropy(rows, rank, flags):
    labels = np.arange(rows[0] * TOKENS) % VOCABULARY

    def oracle(flat):
        return cross_entropy.cross_entropy_loss(flat.reshape(-1, VOCABULARY), labels, *flags)

    def second(live, still):
        return mp_cross_entropy(live.reshape(-1, VOCABULARY), labels, *flags)

    return oracle, second


def mp_linear_cross_entropy(live, labels, ignore_index, reduction, smoothing=0.0, factor=0.0):
    hidden, weight, bias = live
    terms = []
    for row, label in zip(hidden, labels, strict=True):
        logits = [sum(h * w for h, w in zip(row, own, strict=True)) for own in weight]
        logits = [z + b for z, b in zip(logits, bias, strict=True)]
        log_sum = mpmath.log(sum(mpmath.exp(z) for z in logits))
        shares = [smoothing / mpmath.mpf(len(logits))] * len(logits)
        shares[label] += 1 - mpmath.mpf(smoothing)
        own = sum(share * (log_sum - z) for share, z in zip(shares, logits, strict=True))
        if label != ignore_index:
            terms.append(own + factor * log_sum**2)
    return sum(terms) / (len(terms) if reduction == "mean" else 1)


def both_linear_cross_entropy(rows, rank, flags):
    labels = np.arange(rows[0] * TOKENS) % VOCABULARY
    cuts = np.cumsum([len(labels) * WIDTH, VOCABULARY * WIDTH])

    def parts(flat):
        hidden, weight, bias = np.split(flat, cuts)
        return hidden.reshape(-1, WIDTH), weight.reshape(-1, WIDTH), bias

    def oracle(flat):
        return linear_cross_entropy.linear_cross_entropy_loss(*parts(flat), labels, *flags)

    def second(live, still):
        return mp_linear_cross_entropy(parts(live), labels, *flags)

    return oracle, second


def both_distill(rows, rank, flags):
    cut = 2 * sum(rows) * WIDTH + 2

    def parts(flat):
        return split(flat[:cut], rows, WIDTH), split(flat[cut:], rows, TEACHER_WIDTH)

    def oracle(flat):
        student, teacher = (
            (image, text, [scale] * len(rows), [bias] * len(rows)) for image, text, scale, bias in parts(flat)
        )
        return distill.distill_loss(student, teacher, rank, *flags)

    def second(live, still):
        return mp_distill(parts(live), parts(still), rank, *flags)

    return oracle, second


def both_siglip(rows, rank, flags):
    def oracle(flat):
        image, text, scale, bias = split(flat, rows, WIDTH)
        return siglip.siglip_loss(image, text, [scale] * len(rows), [bias] * len(rows), rank)

    def second(live, still):
        return mp_siglip(split(live, rows, WIDTH), split(still, rows, WIDTH), rank)

    return oracle, second


def both_caption(rows, rank, flags):
    pad_id, convention = flags
    # no pads but one, so that the ranks have unequal numbers of tokens
    ids = (pad_id + 1 + np.arange(sum(rows) * TOKENS).reshape(-1, TOKENS) % (VOCABULARY - 1)) % VOCABULARY
    ids[0, 0] = pad_id
    cuts = np.cumsum(rows)[:-1]
    labels = np.split(ids, cuts)

    def oracle(flat):
        logits = np.split(flat.reshape(-1, TOKENS, VOCABULARY), cuts)
        return coca.caption_loss(logits, labels, rank, pad_id, convention)

    def second(live, still):
        logits = np.split(live.reshape(-1, TOKENS, VOCABULARY), cuts)
        return mp_caption(logits, labels, rank, pad_id, convention)

    return oracle, second


def features(rows, width, seed, scale=2.0, bias=-0.5):
    """Return a flat point of unit rows, scale and bias."""
    unit = np.random.default_rng(seed).standard_normal((2 * sum(rows), width))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.concatenate([unit.ravel(), [scale, bias]])


def point(both, rows):
    if both in (both_caption, both_cross_entropy):
        return np.random.default_rng(1).standard_normal(sum(rows) * TOKENS * VOCABULARY)
    if both is both_linear_cross_entropy:
        return np.random.default_rng(1).uniform(-1, 1, (sum(rows) * TOKENS + VOCABULARY) * WIDTH + VOCABULARY)
    if both is both_distill:
        return np.concatenate([features(rows, WIDTH, 1), features(rows, TEACHER_WIDTH, 2, 3.0, 0.25)])
    return features(rows, WIDTH, 1)


GATHERING = (both_clip, both_distill, both_infonce, both_ntxent)
OTHERS = [
    *((both_cross_entropy, ROWS[0], (ignore_index,)) for ignore_index in (0, -100)),
    *(
        (both_linear_cross_entropy, ROWS[0], flags)
        for flags in ((1, "mean"), (-100, "sum", 0.25), (0, "mean", 0.0, 0.5), (0, "sum", 1.0, 0.5))
    ),
    *((both_siglip, rows, ()) for rows in ROWS),
    *(
        (both_caption, rows, (pad_id, c))
        for rows in ROWS
        for pad_id in (0, 2)
        for c in ("exact", "open_clip")
    ),
]
CASES = [*((both, rows, flags) for both in GATHERING for rows in ROWS for flags in FLAGS), *OTHERS]
# Of flags, all but local_loss act through the occurrences of gathered rows alone, whatever the rows.
SPLIT, SHARED = (2, 1), (True, True, "exact")


@pytest.mark.parametrize(
    ("both", "rows", "flags"),
    [case for case in CASES if case in OTHERS or case[1] == SPLIT or case[2] == SHARED],
)
def test_values_and_gradients_equal_the_second_formulation(both, rows, flags):
    flat = point(both, rows)
    with mpmath.workdps(50):
        still = np.array([mpmath.mpf(x) for x in flat], dtype=object)
        for rank in range(len(rows)):
            oracle, second = both(rows, rank, flags)
            value = second(still, still)
            close(oracle(flat), complex(value), value_magnitude(rows), operations(rows))
            gradient = []
            for k in range(len(flat)):

                def along(t, k=k, second=second):
                    live = still.copy()
                    live[k] = t
                    return second(live, still)

                gradient.append(float(mpmath.diff(along, still[k])))
            close(complex_step.gradient(oracle, flat), gradient, gradient_magnitude(rows), operations(rows))


@pytest.mark.parametrize("both", GATHERING)
def test_flags_left_out_are_those_of_a_single_process(both):
    # local_loss weighs this rank's rows, gather_with_grad and open_clip carry other gradients
    rows, flags = (2, 1), (False, False, "exact")
    flat = point(both, rows)
    found = [complex_step.gradient(both(rows, 0, some)[0], flat).tolist() for some in ((), *FLAGS)]
    assert [gradient == found[0] for gradient in found[1:]] == [some == flags for some in FLAGS]


def test_large_siglip_logits_equal_the_second_formulation():
    rows = (2, 1)
    flat = np.concatenate([np.tile([1.0, 0.0], 3), np.tile([-1.0, 0.0, 1.0, 0.0], 2)[:6], [700.0, 0.0]])
    with mpmath.workdps(50):
        still = np.array([mpmath.mpf(x) for x in flat], dtype=object)
        for rank in range(2):
            oracle, second = both_siglip(rows, rank, ())
            value = complex(second(still, still))
            assert value.real >= 700
            close(oracle(flat), value, value, operations(rows))
            assert np.all(np.isfinite(complex_step.gradient(oracle, flat)))


def law_holds(both, flags, rows):
    """Whether the mean over ranks of the gradients is a single process's."""
    if len(rows) == 1 or both is both_siglip:
        return True
    if both is both_caption:
        return flags[1] == "exact"
    local_loss, gather_with_grad, convention = flags
    return gather_with_grad or (not local_loss and convention == "exact")


@pytest.mark.parametrize(("both", "rows", "flags"), CASES)
def test_the_mean_over_ranks_is_the_single_process(both, rows, flags):
    flat, world_size = point(both, rows), len(rows)
    ranks = [both(rows, rank, flags)[0] for rank in range(world_size)]
    single = both((sum(rows),), 0, flags)[0]
    mean = sum(complex_step.gradient(loss, flat) for loss in ranks) / world_size
    expected = complex_step.gradient(single, flat)
    if both is not both_caption or law_holds(both, flags, rows):
        mean_value = sum(loss(flat) for loss in ranks) / world_size
        close(mean_value, single(flat), 2 * value_magnitude(rows), operations(rows))
    if law_holds(both, flags, rows):
        close(mean, expected, 2 * gradient_magnitude(rows), operations(rows))
    else:
        with pytest.raises(AssertionError, match="is not"):
            close(mean, expected, 2 * gradient_magnitude(rows), operations(rows))
