"""The rounding bounds hold for what they are about, and are no wider than they need be."""

import numpy as np
import pytest

from oracles import rounding
from oracles.clip import log_softmax
from oracles.complex_step import Array
from oracles.rounding import FLOAT32, FLOAT64, Bounded, Precision, Weight

SINGLE = Precision.of("float32")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grid(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Numbers of few bits."""
    return generator(seed).integers(-3, 4, shape) / 4


def random32(shape: tuple[int, ...], seed: int = 0) -> Array:
    return generator(seed).standard_normal(shape).astype(np.float32).astype(float)


def test_spacing_is_the_lowest_bit() -> None:
    values = np.array([0.0, 1.0, -3.0, 0.75, 10.0, 1 + 2.0**-52, 2.0**-149])
    assert rounding.spacing(values).tolist() == [np.inf, 1, 1, 0.25, 2, 2.0**-52, 2.0**-149]


def test_zero_and_powers_of_two_multiply_exactly() -> None:
    assert not rounding.inexact(np.array([0.0, 1.0, -0.5, 2.0**40])).any()
    assert rounding.inexact(np.array([3.0, -0.1])).all()


def test_rows_and_ranks_that_are_powers_of_two_weigh_exactly() -> None:
    assert Weight.of(0.25, 8, 2, 4).roundings == 0
    assert Weight.of(0.25, 6, 2, 4).roundings == rounding.WEIGHING
    assert Weight.of(0.25, 8).times(-2.0) == Weight(-0.5, 0)
    assert Weight.of(0.25, 8).times(1.5) == Weight(0.375, 1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 14.25])
@pytest.mark.parametrize("bias", [0.0, -10.0, 0.375])
def test_logits_of_few_bits_are_exact(scale: float, bias: float) -> None:
    x, y = grid((5, 40)), grid((7, 40), 1)
    z = rounding.logits(scale, x, y, bias, SINGLE)
    assert not z.error.any()
    single = np.float32(scale) * x.astype(np.float32) @ y.astype(np.float32).T + np.float32(bias)
    assert np.array_equal(single, z.value)


def test_logits_that_round_once_err_by_as_much() -> None:
    x, y = random32((5, 1)), random32((7, 1), 1)
    z = rounding.logits(4.0, x, y, 0.0, SINGLE)
    assert np.all(z.error <= 1.001 * FLOAT32 * abs(z.value))
    assert np.any(z.error > 0)
    with_bias = rounding.logits(4.0, x, y, -10.0, SINGLE)
    assert np.all(with_bias.error > z.error)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_hold_in_any_order(dtype: str) -> None:
    kind = np.dtype(dtype).type
    x, y = (random32((4, 30), seed).astype(kind) for seed in (0, 1))
    z = rounding.logits(10.0, x.astype(float), y.astype(float), -3.0, Precision.of(dtype))
    for seed in range(20):
        order = generator(seed).permutation(30)
        total = np.zeros((4, 4), np.float32)
        for k in order:
            total += np.outer((kind(10) * x[:, k]).astype(np.float32), y[:, k].astype(np.float32))
        worst = np.max(abs((total.astype(kind) + kind(-3)).astype(float) - z.value) / z.error)
        assert worst <= 1
    assert worst > 0.01


def sequential(terms: Array) -> float:
    total = np.float32(0)
    for term in terms.astype(np.float32):
        total += term
    return float(total)


@pytest.mark.parametrize("spread", [0, 5, 20, 60])
def test_sums_hold_in_any_order(spread: int) -> None:
    terms = np.exp(-spread * generator().random(40)).astype(np.float32).astype(float)
    bound = rounding.summed(terms, FLOAT32)
    orders = [np.argsort(terms), np.argsort(-terms), *(generator(s).permutation(40) for s in range(50))]
    assert max(abs(sequential(terms[order]) - terms.sum()) for order in orders) <= bound


def test_what_a_sum_loses_counts_once() -> None:
    tail = np.full(1000, 2.0**-40)
    bound = rounding.summed(np.concatenate([[1.0], tail]), FLOAT32)
    assert tail.sum() <= bound <= 1.001 * tail.sum() + 2000 * FLOAT64


def perturbed(z: Array, error: Array, seed: int) -> Array:
    """Logits anywhere within their errors, often at the ends."""
    moved: Array = z + error * np.clip(generator(seed).normal(0, 3, z.shape), -1, 1)
    return moved


def cross_entropy(z: Array, targets: Array) -> Array:
    values: Array = -(targets * log_softmax(z)).sum(-1)
    return values


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 4.0])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_holds_where_logits_err(size: float, soft: bool) -> None:
    z = 3 * generator().standard_normal((30, 6))
    error = size * generator(1).random(z.shape)
    hot = np.eye(6)[np.arange(30) % 6]
    targets = np.exp(log_softmax(generator(2).standard_normal(z.shape))) if soft else hot
    exact = Bounded(targets, np.zeros(targets.shape))
    value, slope = rounding.cross_entropy(Bounded(z, error), exact, SINGLE)
    used = 0.0
    for seed in range(100):
        moved = perturbed(z, error, seed)
        used = max(used, np.max(abs(cross_entropy(moved, targets) - value.value) / value.error))
        found = np.exp(log_softmax(moved)) - targets
        used = max(used, np.max(abs(found - slope.value) / slope.error))
    assert 0.3 < used <= 1


def test_cross_entropy_is_blind_to_what_all_but_a_lost_logit_have_in_common() -> None:
    z = np.array([[50.0, 0.0]])
    error = np.array([[1e-3, 0.0]])
    hot = Bounded(np.array([[1.0, 0.0]]), np.zeros((1, 2)))
    value, slope = rounding.cross_entropy(Bounded(z, error), hot, SINGLE)
    assert value.error[0] < 1e-9
    assert slope.error[0, 0] < 1e-5


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 4.0])
def test_sigmoids_hold_where_logits_err(size: float) -> None:
    z = 5 * generator().standard_normal((20, 20))
    error = size * generator(1).random(z.shape)
    labels = 2 * np.eye(20) - 1
    value, slope = rounding.sigmoid_cross_entropy(Bounded(z, error), labels, SINGLE)
    used = 0.0
    for seed in range(100):
        margin = labels * perturbed(z, error, seed)
        used = max(used, np.max(abs(np.logaddexp(0, -margin) - value.value) / value.error))
        found = -labels * np.exp(-np.logaddexp(0, margin))
        used = max(used, np.max(abs(found - slope.value) / slope.error))
    assert 0.3 < used <= 1


def test_four_units_in_the_last_place_are_more_than_rounding() -> None:
    """One pair that is taken for no match: the sigmoid's loss is the logit, and so is its error."""
    x = np.ones((1, 1))
    z = rounding.logits(10.0, x, -x, 0.0, SINGLE)
    value, _ = rounding.sigmoid_cross_entropy(z, np.ones((1, 1)), SINGLE)
    total = rounding.total(value, Weight.of(1.0, 1), SINGLE)
    assert total < 4 * np.spacing(np.float32(10)) / 2


def test_gradients_hold_in_single_precision() -> None:
    x, y = random32((6, 5)), random32((4, 5), 1)
    slope = random32((6, 4), 2)
    parts = rounding.through_logits(Bounded(slope, np.zeros(slope.shape)), Weight(0.5, 0), 10.0, x, y, SINGLE)
    g = np.float32(0.5) * slope.astype(np.float32)
    single = np.float32(10) * (g @ y.astype(np.float32))
    exact = 10.0 * (0.5 * slope @ y)
    assert np.all(abs(single - exact) <= parts["x"].error)
    assert np.all(parts["x"].error <= 10 * FLOAT32 * parts["x"].size)
    scale = sequential((g * (x.astype(np.float32) @ y.astype(np.float32).T)).reshape(-1))
    assert abs(scale - (0.5 * slope * (x @ y.T)).sum()) <= parts["scale"].error
    assert abs(sequential(g.reshape(-1)) - 0.5 * slope.sum()) <= parts["bias"].error
