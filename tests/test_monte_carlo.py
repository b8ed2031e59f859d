"""Monte Carlo arithmetic: its derivatives, what it scatters, and the tolerances that follow."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from verified_losses.oracles.complex_step import gradient
from verified_losses.oracles.monte_carlo import (
    CHANCE,
    LEFT,
    QUANTILE,
    SAMPLES,
    SPREAD,
    Roundoff,
    Unsupported,
    scatter,
)
from verified_losses.oracles.tolerance import to_array
from verified_losses.properties import assert_within_rounding, rounding_bound

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((4, 3))
MASK = GENERATOR.random((4, 4)) < 0.5
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda x: np.sum(np.log(np.sum(np.exp(x @ x.T - np.max(np.real(x @ x.T))), axis=1))),
    "gathers": lambda x: (
        np.sum(np.concatenate([x[1:], x[:1]])[np.arange(4) % 2, 1] * x.T[2]) + np.trace(x @ x.T)
    ),
    "repeated": lambda x: np.mean(x[[0, 0, 1, 3, 0]] ** 2 * np.broadcast_to(x[0], (5, 3))),
    "where": lambda x: np.sum(np.where(MASK, x @ x.T, 0) / (1 + np.exp(-x.sum(axis=1)))[:, None]),
    "largest": lambda x: (
        np.sum(np.maximum(x, 0.1) * x.max(axis=1, keepdims=True)) + x.min() + np.sort(x[:, 0])[1]
    ),
    "einsum": lambda x: np.sum(np.einsum("id,jd->ij", x, x) ** 2) + np.sum(np.einsum("id->d", x) ** 3),
    "roots": lambda x: np.sum(np.sqrt(np.sum(x * x, axis=1)) * np.log1p(x[:, 0] ** 2)),
    "others": lambda x: np.sum(np.tanh(x) - np.cos(x) * np.expm1(x / 3) + np.square(x) / (2 + np.sin(x))),
    "stacked": lambda x: np.sum(np.tril(np.stack([x[0], x[1], x[2]])) * np.vstack([x[1:], x[:1]])[:3]) ** 2,
    "vectors": lambda x: (x @ x[0]) @ (x[1] @ x.T) + np.dot(x[2], x[3]) + np.outer(x[0], x[1])[1, 2] ** 2,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_complex_steps(name: str) -> None:
    function = FUNCTIONS[name]
    value, (derived,) = scatter(function, [X], Roundoff.of("float32"), [0], samples=2)
    assert value.value == pytest.approx(float(np.real(function(X))), rel=1e-13)
    np.testing.assert_allclose(derived.value, gradient(function, X), rtol=1e-11, atol=1e-12)
    assert np.isfinite(derived.spread).all()
    assert (derived.spread > 0).all()


POSITIVE = abs(X) + 0.5
WEIGHTS = GENERATOR.standard_normal(48)
WHERE = X > -0.5
RULES: dict[str, Callable[[Any], Any]] = {
    # of numbers above 0, to results of any shape
    **{
        f"np.{one.__name__}": one
        for one in (
            np.negative, np.positive, np.reciprocal, np.square, np.absolute, np.sqrt, np.exp, np.exp2,
            np.expm1, np.log, np.log2, np.log10, np.log1p, np.tanh, np.sin, np.cos, np.arctan, np.transpose,
            np.ravel, np.diagonal, np.triu, np.tril, np.flip, np.fliplr, np.flipud, np.rot90, np.copy,
            np.atleast_1d, np.atleast_2d, np.sum, np.mean, np.var, np.std, np.max, np.min, np.trace, np.sort,
            np.linalg.norm,
        )
    },
    "add": lambda x: x + x[0] + 3.0 + (2.0 + x),
    "subtract": lambda x: x - x[:, :1] - (1.0 - x * 3) - 5.0,
    "multiply": lambda x: 3.0 * x * x[:1] * x[:, 1:2],
    "divide": lambda x: (x / x[0]) / 3.0 + 2.0 / x[:, :1],
    "powers": lambda x: x**3 + x**0.5 + x**-1 + 2.0**x + x ** x[0] + np.float_power(x, 1.5),
    "matmul": lambda x: (x @ W)[:3] + W @ x.T @ x + (x @ x.T)[0, 1] + (x.T @ x)[2],
    "stacks of matrices": lambda x: np.stack([x, 2 * x]) @ np.stack([x.T, x.T * 3]) + x @ x.T,
    "logaddexp": lambda x: np.logaddexp(x, x[::-1] * 2.0) + np.logaddexp(1.0, x) + np.logaddexp(x, x),
    "reduced": lambda x: np.logaddexp.reduce(x, axis=1) - np.maximum.reduce(x, axis=1, keepdims=True),
    "reduced by rows": lambda x: np.logaddexp.reduce(x) + np.add.reduce(x) + np.minimum.reduce(x),
    "reduced as a whole": lambda x: (
        np.logaddexp.reduce(x, axis=None) + np.add.reduce(x, None) + np.logaddexp.reduce(x, 1, keepdims=True)
    ),
    "chosen": lambda x: np.maximum(x, 1.0) + np.minimum(x[::-1], x) + np.fmax(0.7, x) - np.fmin(x, x.T[0, 0]),
    "where": lambda x: np.where(x > 1, x * 2, x[0]) + np.where(WHERE, 1.0, x) + np.where(x < 1, 0.0, 2.0) * x,
    "clipped": lambda x: (
        np.clip(x, 0.7, 1.2) + x.clip(0.8, None) + np.clip(x, None, x.max()) + x.clip(min=0.6, max=1.1)
    ),
    "sums": lambda x: x.sum() + x.sum(0) + x.sum(axis=1, keepdims=True) + np.sum(x, axis=(0, -1)),
    "sums of some": lambda x: np.sum(x, axis=1, where=WHERE, keepdims=True) + x.sum(where=x > 1),
    "means": lambda x: x.mean() + x.mean(0) + np.mean(x, axis=1, keepdims=True) + np.mean(x, (0, 1)),
    "means of some": lambda x: (
        np.mean(x, where=WHERE) + x.mean(axis=0, where=WHERE) * 2 + x.mean(where=x > 1, keepdims=True)
    ),
    "variances": lambda x: x.var() + np.var(x, axis=0, ddof=1) + x.std(axis=1, keepdims=True, ddof=0),
    "norms": lambda x: (
        np.linalg.norm(x, axis=1, keepdims=True) + np.linalg.norm(x[0], 2) + np.linalg.norm(x, 2, 0)
    ),
    "largest": lambda x: x.max() + x.max(0) + x.min(1, keepdims=True) + np.max(x, keepdims=True),
    "places": lambda x: x[np.arange(4), x.argmax(axis=1)] + x[x.argmin(0)[0]][0] + x[x.argsort(0)[:, 1], 2],
    "vectors": lambda x: np.dot(x, x[1]) + np.inner(x, x[0]) + x[2].dot(x[1]) + np.outer(x[0], x[:, 0])[1],
    "einsum": lambda x: np.einsum("id,jd->ij", x, x) + np.einsum("id->i", x) * np.einsum("id,d->", x, x[1]),
    "einsum of what is left out": lambda x: np.einsum("id,j->dj", x, W) * np.einsum("ij->", x),
    "shapes": lambda x: x.reshape(2, 6) * x.reshape((2, -1)) + np.reshape(x, (6, 2)).T,
    "axes": lambda x: x.transpose(1, 0) + np.swapaxes(x, 0, 1) + x.swapaxes(1, 0) * np.moveaxis(x, 0, 1),
    "dimensions": lambda x: (
        x[:, None].squeeze(1) + np.squeeze(np.expand_dims(x, 2), axis=2) + x[None].sum(0) * x[..., 2:]
    ),
    "methods": lambda x: (
        x.ravel()[:3] + x.flatten()[3:6] + x.diagonal() + x.take([2, 0, 0], axis=1) + x.copy() + x.trace()
    ),
    "repeated": lambda x: x.repeat(2, axis=0)[:4] + np.repeat(x, 3, 1)[:, 2:5] + np.tile(x, (2, 2))[3:7, 1:4],
    "taken": lambda x: np.take(x, [1, 1, 3], 0) + np.take_along_axis(x, np.array([[0, 2, 2]] * 4), 1)[:3],
    "moved": lambda x: np.roll(x, 1, axis=0) + np.delete(np.vstack([x, x[0]]), 1, axis=0) * np.rot90(x, 2),
    "joined": lambda x: np.hstack([x, np.ones((4, 1)), x[:, :2]]) + np.concatenate([x, x * 2], axis=1),
    "columns": lambda x: np.column_stack([x[:, 0], W[[0, 1, 2, 0]]]) * np.stack([x[0], x[1]], axis=1)[0],
    "parts": lambda x: (
        sum(np.split(x, 2)) + np.vsplit(x, 2)[0] * np.hsplit(x[:2], 3)[1] + np.array_split(x, 3)[2][0]
    ),
    "broadcast": lambda x: np.broadcast_to(x[0], (4, 3)) * x + np.diag(x[0]).sum(0) + np.diag(x),
    "chosen elements": lambda x: (
        x[WHERE][:2].sum() + np.compress([True, False, True], x, axis=1) + np.extract(WHERE, x)[1]
    ),
    "constants": lambda x: x * (np.count_nonzero(x > 1) + np.sign(x - 1) + np.floor(x) + np.zeros_like(x)),
    "masks": lambda x: x * ((x > 1) & (x < 2) | ~(x >= 0.9)) + x * np.logical_or(x == x[0], x != x),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_what_numpy_does_and_its_derivative(name: str) -> None:
    function, p, step = RULES[name], Roundoff.of("float32"), 1e-6
    plain = np.asarray(function(POSITIVE))
    weights = WEIGHTS[: plain.size].reshape(plain.shape)
    value, (derived,) = scatter(function, [POSITIVE], p, [0], weights, samples=8)
    assert value.value.shape == plain.shape
    np.testing.assert_allclose(value.value, plain, rtol=1e-13, atol=1e-14)

    def weighed(point: Any) -> float:
        return float(np.sum(np.asarray(function(point)) * weights))

    units = np.eye(POSITIVE.size).reshape(-1, *POSITIVE.shape) * step
    slopes = [(weighed(POSITIVE + unit) - weighed(POSITIVE - unit)) / (2 * step) for unit in units]
    np.testing.assert_allclose(derived.value.ravel(), slopes, rtol=1e-7, atol=1e-7)
    # single precision errs within what is bounded, and that is not far more than it may be
    single = np.asarray(function(POSITIVE.astype(np.float32)), float)
    exact = np.asarray(function(POSITIVE.astype(np.float32).astype(float)))
    assert (abs(single - exact) <= value.bound).all()
    for found in value, derived:
        assert (found.size >= 0.999 * p.stored * abs(found.value)).all()
        assert (found.bound <= 2000 * np.maximum(found.size, p.tiny)).all()


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: np.sum(x, initial=1.0), "initial of a function"),
        (lambda x: x.max(initial=0.0), "initial of a function"),
        (lambda x: np.max(x, axis=0, where=WHERE, initial=0.0), "where, initial of a function"),
        (lambda x: np.var(x, where=WHERE), "where of a function"),
        (lambda x: np.std(x, correction=1), "correction of a function"),
        (lambda x: np.logaddexp.reduce(x, where=WHERE), "where of a function"),
        (lambda x: np.mean(x, out=np.zeros(())), "out of a function"),
        (lambda x: np.clip(x, 0, 1, out=x), "out of a function"),
        (lambda x: np.add(x, x, out=np.zeros(X.shape)), r"writes into an array: use np\.where"),
        (lambda x: np.add.accumulate(x), r"np\.add\.accumulate with"),
        (lambda x: np.hypot(x, x), r"np\.hypot, which has no rule here; there is one for: absolute, add, "),
        (lambda x: np.cumsum(x), r"np\.cumsum, which has no rule here; there is one for: all, amax, "),
        (lambda x: x.cumsum(), r"\.cumsum of an array, for which Monte Carlo arithmetic has no rule"),
        (lambda x: x * 1j, "computes with complex numbers"),
        (
            lambda x: float(x[0, 0]),
            r"makes a plain array .*\(by np\.asarray, float or an assignment\): keep to",
        ),
        (lambda x: np.linalg.norm(x, 1), r"expected that of vectors, got ord=1, axis=None"),
        (lambda x: np.linalg.norm(x, 2), r"expected that of vectors, got ord=2, axis=None"),
        (lambda x: np.einsum("ij,jk,kl->il", x, x.T, x), "expected one or two operands and an explicit"),
        (lambda x: np.einsum("ij,jk", x, x.T), r"^np\.einsum: .* an explicit result, as 'id,jd->ij'$"),
        (lambda x: np.einsum("...j->j", x), "expected one or two operands and an explicit"),
        (lambda x: np.einsum("ii->i", x @ x.T), "expected no letter twice in one operand, got 'ii->i'"),
    ],
)
def test_what_has_no_rule_is_named(function: Callable[[Any], Any], named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        scatter(function, [X], Roundoff.of("float32"), samples=8)


def test_a_number_is_a_condition_and_has_a_length() -> None:
    def function(x: Any) -> Any:
        assert len(x) == 4
        assert x[0, 0] if x[0, 0] > 0 else not x[0, 0] > 0
        assert {x: 1}[x] == 1
        assert hash(x) != hash(x + 1)
        assert (x.ndim, x.size, x.shape, x.dtype, x.T.shape) == (2, 12, (4, 3), np.float64, (3, 4))
        with pytest.raises(TypeError, match="of a number without dimensions"):
            len(x[0, 0])
        with pytest.raises(ValueError, match="expected arrays, got a number"):
            x @ x[0, 0]
        return x.sum()

    scatter(function, [X], Roundoff.of("float32"), samples=8)


def test_a_mask_in_which_samples_differ_has_its_methods() -> None:
    def function(x: Any) -> Any:
        mask = 3 * x > 3  # a tie
        return x.sum() * (mask.any() + mask.all())

    value, _ = scatter(function, [np.ones(2)], Roundoff.of("float32"), samples=8)
    assert value.value in (0.0, 2.0, 4.0)


def test_an_attribute_that_python_asks_for_is_missing() -> None:
    def function(x: Any) -> Any:
        with pytest.raises(AttributeError, match=r"^__wrapped__$"):
            _ = x.__wrapped__
        return x.sum()

    scatter(function, [X], Roundoff.of("float32"), samples=8)


def test_rows_that_are_far_apart_are_reduced_apart() -> None:
    far = np.array([[0.0, 0.0], [2000.0, 2000.0]])  # exp(-2000) is 0
    reduced, _ = scatter(lambda x: np.logaddexp.reduce(x, axis=1), [far], Roundoff.of("float32"), samples=8)
    np.testing.assert_allclose(reduced.value, far[:, 0] + np.log(2), rtol=1e-13)


def test_logaddexp_is_derived_too() -> None:
    value, (derived,) = scatter(lambda x: np.sum(np.logaddexp(0, x)), [X], Roundoff.of("float32"), [0])
    np.testing.assert_allclose(derived.value, 1 / (1 + np.exp(-X)), rtol=1e-13)
    reduced, _ = scatter(lambda x: np.logaddexp.reduce(x, axis=1), [X], Roundoff.of("float32"))
    np.testing.assert_allclose(reduced.value, np.log(np.exp(X).sum(axis=1)), rtol=1e-13)
    assert value.spread > 0


V = np.random.default_rng(4).standard_normal(X.shape)
SECOND = FUNCTIONS | {
    "logaddexp": lambda x: np.sum(np.logaddexp(0, x) * np.logaddexp(x, x[::-1])),
    "absolute": lambda x: np.sum(abs(x) ** 3),
    "normalised": lambda x: np.sum((x / np.sqrt(np.sum(x * x, axis=1, keepdims=True))) @ X.T),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_are_those_of_differences(name: str) -> None:
    function, p, step = SECOND[name], Roundoff.of("float32"), 1e-5

    def slope(point: Any) -> Any:
        return scatter(function, [point], p, [0], samples=1)[1][0].value

    _, (found,) = scatter(function, [X], p, [0], along={0: V})
    differences = (slope(X + step * V) - slope(X - step * V)) / (2 * step)
    np.testing.assert_allclose(found.value, differences, rtol=1e-6, atol=1e-7)
    moved = found.size > 0
    assert (found.size[moved] >= (1 - 1e-9) * p.stored * abs(found.value[moved])).all()
    if name != "largest":  # of a tie within rounding the second derivative is that of either
        assert (found.bound < 1e-3 * (1 + abs(found.value))).all()


def test_second_derivatives_of_a_sigmoid_round_relative_to_1() -> None:
    """Of s (1 - s) the second factor may be a difference of numbers near 1."""
    large = np.array([40.0])
    _, (found,) = scatter(
        lambda x: np.sum(np.logaddexp(0, x)), [large], Roundoff.of("float64"), [0], along={0: np.ones(1)}
    )
    assert found.value < 1e-17
    assert 2.0**-53 < found.bound < 2.0**-44


def test_scatter_follows_the_unit_roundoff_and_the_seed() -> None:
    function = FUNCTIONS["softmax"]
    single, double, again = (
        scatter(function, [X], Roundoff.of(dtype), seed=1)[0].spread
        for dtype in ("float32", "float64", "float32")
    )
    assert single == again
    assert single / double == pytest.approx(2.0**29, rel=0.7)


SEEDS: list[dict[str, int]] = [{}, {"seed": 0}, {"seed": 1}]


def test_what_is_left_out_of_a_bound_is_the_first_seed() -> None:
    many = np.ones(4096)  # so many that samples decide
    first, same, other = (rounding_bound(lambda x: np.sum(x * x), many, **seed) for seed in SEEDS)
    assert first == same != other


def test_the_quantile_is_that_of_a_run() -> None:
    """Of a million comparisons one is beyond it with the chance that is stated: Student's t, integrated."""
    t, width = np.linspace(QUANTILE, 400, 400_000, retstep=True)
    k = SAMPLES
    density = (
        math.gamma((k + 1) / 2)
        / math.gamma(k / 2)
        / math.sqrt(k * math.pi)
        * (1 + t * t / k) ** (-(k + 1) / 2)
    )
    assert 2 * float(np.sum(density) * width) * 1e6 < CHANCE
    assert SPREAD > 1


def test_equal_terms_round_equally() -> None:
    """A mean of equal numbers errs by as much as each: their errors do not average out."""
    ones = np.full(4096, 1 / 3, dtype=np.float32).astype(float)
    spread = scatter(lambda x: np.mean(np.exp(x)), [ones], Roundoff.of("float32"))[0].spread
    assert spread > 0.3 * 2.0**-24


def test_what_overflows_has_no_bound() -> None:
    large = np.array([300.0, 200.0])

    def squared(x: Any) -> Any:
        return np.sum(np.where(x > 0, x * x, -1e9))

    assert np.isinf(rounding_bound(squared, large, dtype="float16"))
    assert rounding_bound(squared, large, dtype="float32") < 1
    assert rounding_bound(squared, large / 10, dtype="float16") < 100
    with pytest.raises(
        ValueError, match=r"^so: reference: there is no bound for 1 of 1 elements, as an inter"
    ):
        assert_within_rounding(np.float16(5), squared, large, err_msg="so")
    assert_within_rounding(np.float16(np.inf), lambda x: np.sum(x / 0.0), large)


def test_the_least_numbers_scatter_too() -> None:
    """Squares of them would underflow, and leave a tolerance of 0."""
    _, (derived,) = scatter(lambda x: np.sum(np.exp(x)), [np.array([-600.0])], Roundoff.of("float64"), [0])
    assert 1e-16 < derived.spread / derived.value < 1e-12


def test_a_tie_scatters_as_far_as_it_jumps() -> None:
    tie = np.array([0.5, 0.5])
    _, (derived,) = scatter(lambda x: np.sum(np.maximum(x[0] - x[1], 0)), [tie], Roundoff.of("float64"), [0])
    assert (derived.bound > 1).all()


A, B = GENERATOR.standard_normal((2, 3, 3))
W = np.array([3.0, -1.0, 2.0])
ROW = np.array([0.5, -2.0, 1.0])
CANCELLED: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    # |c x| + |c x|, of which nothing is left; the gradient is added up from c and c
    "difference": (lambda x: np.sum(3 * x - x * 3), 6 * abs(ROW), np.full(3, 6.0)),
    # factors do not make a size of 0
    "of a difference": (lambda x: np.sum(W * (x - x)), 2 * abs(W * ROW), 2 * abs(W)),
    "multiplied out": (
        lambda x: np.sum((x - W) * (x - W)),
        (abs(ROW) + abs(W)) ** 2,
        4 * (abs(ROW) + abs(W)) / 2,
    ),
    "products": (
        lambda x: np.sum(A @ x - B @ x),
        (abs(A) + abs(B)) @ abs(ROW),
        (abs(A) + abs(B)).sum(axis=0),
    ),
    "einsum": (
        lambda x: np.sum(np.einsum("ij,j->i", A, x) - np.einsum("ij,j->i", B, x)),
        (abs(A) + abs(B)) @ abs(ROW),
        (abs(A) + abs(B)).sum(axis=0),
    ),
    "gathered": (
        lambda x: np.sum(np.concatenate([x, -x])[[0, 1, 2, 3, 4, 5]] - 0.0),
        np.tile(abs(ROW), 2),
        np.full(3, 2.0),
    ),
    "chosen": (
        lambda x: np.sum(np.where(x > 0, x, np.maximum(x, -9)) - np.min(x)),
        abs(ROW) + 2,
        np.array([1.0, 1 + 3, 1.0]),
    ),
    # rows of one element and of length 1 do not move: c / |x| less c x x / |x|^3
    "normalised": (
        lambda x: np.sum(W * (x / np.sqrt(x * x))), abs(W), 2 * abs(W / ROW)
    ),
    # a softmax of one number is 1
    "logarithm": (lambda x: np.sum(np.log(np.exp(x)) - x), 2 * abs(ROW), np.full(3, 2.0)),
    "power": (
        lambda x: np.sum((x - W) ** 3 + (x - x) ** 1.5),
        (abs(ROW) + abs(W)) ** 3,
        3 * (abs(ROW) + abs(W)) ** 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", CANCELLED)
def test_a_tolerance_is_never_below_a_rounding_of_what_was_added_up(name: str, dtype: str) -> None:
    function, of_value, of_gradient = CANCELLED[name]
    p = Roundoff.of(dtype)
    value, (derived,) = scatter(function, [ROW], p, [0])
    assert value.size == pytest.approx(p.stored * np.sum(of_value), rel=1e-12)
    np.testing.assert_allclose(derived.size, p.stored * of_gradient, rtol=1e-12)
    for found in value, derived:
        assert (found.bound >= LEFT * found.size).all()
        assert (found.bound >= np.minimum(SPREAD * QUANTILE * found.spread, found.most)).all()
        assert (found.size >= p.stored * abs(found.value)).all()


def test_a_huge_mask_does_not_widen_the_gradients_of_what_is_left() -> None:
    def masked(x: Any, where: Any, fill: float) -> Any:
        z = np.where(where, x, fill)
        z = z - np.max(z)
        return np.sum(W * np.exp(z - np.log(np.sum(np.exp(z)))))

    def added(x: Any, mask: Any) -> Any:
        z = x + (1 - mask) * -1e9
        z = z - np.max(z)
        return np.sum(W * (np.exp(z) / np.sum(np.exp(z))))

    x, where = np.array([0.3, -0.2, 0.1]), np.array([True, True, False])
    p = Roundoff.of("float32")
    value, (derived,) = scatter(masked, [x, where, -np.inf], p, [0])
    for function, given in ((masked, [x, where, -1e30]), (added, [x, where.astype(float)])):
        found, (its,) = scatter(function, given, p, [0])
        assert 0 < found.bound < 2 * value.bound
        assert (its.bound[:2] < 2 * derived.bound[:2]).all()


def test_a_mask_of_infinity_has_no_size() -> None:
    def softmax(x: Any) -> Any:
        z = np.where(x < 9, x, -np.inf)
        return np.sum(W * np.exp(z - np.log(np.sum(np.exp(z)))))

    value, (derived,) = scatter(softmax, [np.array([0.3, -0.2, 10.0])], Roundoff.of("float32"), [0])
    assert 0 < value.bound < 1e-5
    assert (derived.bound[:2] < 1e-5).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_right_results_are_within_rounding(dtype: str) -> None:
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(2, 30, 20, generator=generator)).to(kind)

    def cosines(x: Any, y: Any) -> Any:
        of_x, of_y = (one / np.sqrt(np.sum(one * one, axis=1, keepdims=True)) for one in (x, y))
        return of_x @ of_y.T

    seen = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    assert_within_rounding(seen, cosines, x, y)
    assert rounding_bound(cosines, x, y, dtype=dtype).shape == (30, 30)


def test_what_is_rounded_to_less_is_not() -> None:
    x = torch.linspace(-3, 3, 50)
    right = torch.softmax(x, 0)

    def softmax(x: Any) -> Any:
        return np.exp(x) / np.sum(np.exp(x))

    assert_within_rounding(right, softmax, x)
    with pytest.raises(
        AssertionError, match=r"mine: \d+ of 50 elements .*; the worst at \[\d+\]: expected .* bound"
    ):
        assert_within_rounding(right.bfloat16().float(), softmax, x, err_msg="mine")
    with pytest.raises(AssertionError, match=r"expected shape \[50\], observed \[49\]"):
        assert_within_rounding(right[1:], softmax, x)
    with pytest.raises(AssertionError, match="of 50 elements"):
        assert_within_rounding(right * torch.nan, softmax, x)


def _triple(x: Any) -> Any:
    return 3 * x


def test_elements_are_as_near_as_their_bounds_say() -> None:
    x = np.array([1.0, -2.0, 0.5, 4.0])
    bound = rounding_bound(_triple, x, dtype="float32", samples=8)
    given: dict[str, Any] = {"dtype": "float32", "samples": 8}
    assert_within_rounding(3 * x + 0.999 * bound, _triple, x, **given)
    off = np.array([0.0, 1.5, 0.999, -4.0])
    said = (
        r"^2 of 4 elements are farther from the reference than rounding in float32 takes them; the worst at "
        r"\[3\]: expected 12, observed 11\.99\d*, error \S+ is 4 times its bound \S+$"
    )
    with pytest.raises(AssertionError, match=said):
        assert_within_rounding(3 * x + off * bound, _triple, x, **given)
    for over in (1.001, -1.001):
        with pytest.raises(AssertionError, match=r"^1 of 4 .* is 1 times its bound"):
            assert_within_rounding(3 * x + over * bound * [0, 0, 1, 0], _triple, x, **given)
    # a number has no place
    with pytest.raises(AssertionError, match=r"takes them; the worst: expected 3, observed 4, "):
        assert_within_rounding(4.0, _triple, 1.0)
    assert_within_rounding(3.0, _triple, 1.0)
    assert_within_rounding(np.zeros((0, 2)), _triple, np.zeros((0, 2)))


def test_what_is_not_finite_equals_itself_alone() -> None:
    x = np.array([np.inf, np.nan, 1.0])
    assert_within_rounding(3 * x, _triple, x)
    for wrong in (
        [np.inf, 3.0, 3.0],
        [-np.inf, np.nan, 3.0],
        [np.inf, np.nan, np.nan],
        [3.0, np.nan, 3.0],
        [np.inf, np.nan, 4.0],
    ):
        with pytest.raises(AssertionError, match=r"^1 of 3 elements"):
            assert_within_rounding(np.array(wrong), _triple, x)


def test_what_is_computed_in_float32_is_stored_in_half_precision() -> None:
    given: dict[str, Any] = {"widened": True, "dtype": "float16"}
    one = np.array([1 / 3])
    narrow = rounding_bound(_triple, one, **given)
    assert 0 < narrow < 2.0**-20 < rounding_bound(_triple, one, dtype="float16")
    below = np.array([1 - 2.0**-11], np.float16)  # half a unit of 1: it rounds to either
    assert_within_rounding(below, _triple, one, **given)
    for wrong in (1 - 2.0**-10, 1 + 2.0**-10):
        with pytest.raises(AssertionError, match=r"^1 of 1"):
            assert_within_rounding(np.array([wrong], np.float16), _triple, one, **given)
    # in float32 it is stored as it was computed
    with pytest.raises(AssertionError, match=r"^1 of 1"):
        assert_within_rounding(below.astype(np.float32), _triple, one, **given)


def test_whole_numbers_stay_whole() -> None:
    large = 2**60 + 1
    for whole in (np.array([large]), torch.tensor([large])):
        assert to_array(whole, "x").tolist() == [large]
    assert to_array(np.array([True]), "x").dtype == bool
    for kind in (np.float32(0.5), torch.tensor(0.5), 0.5, np.float16(0.5)):
        assert to_array(kind, "x").dtype == np.float64
    with pytest.raises(ValueError, match=r"^x: expected an array of numbers or a tensor, got str$"):
        to_array("1", "x")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: rounding_bound(np.sum, X, dtype="tf32"), "dtype: expected one of float64"),
        (lambda: rounding_bound(3, X), r"^reference: expected a function of NumPy arrays, got int$"),
        (lambda: rounding_bound(np.sum, X, samples=7), r"^samples: expected at least 8, got 7$"),
        (lambda: rounding_bound(np.sum, np.array(["a"])), r"^inputs\[0\]: expected an array of numbers"),
        (lambda: rounding_bound(np.sum, X, seed=-1), "seed: expected 0 or more"),
        (lambda: assert_within_rounding("x", np.sum, X, dtype="float32"), "actual: expected an array"),
        (
            lambda: assert_within_rounding(np.arange(3), np.sum, X),
            "actual: expected one of float64, float32, bfloat16, float16, got int64; or give dtype=",
        ),
        (lambda: rounding_bound(np.linalg.det, X @ X.T), "np.det"),
        (lambda: rounding_bound(np.arctan2, X, X), "np.arctan2"),
        (lambda: rounding_bound(lambda x: np.asarray(x), X), "keep to functions of NumPy"),
        (lambda: rounding_bound(lambda x: x.astype(int), X), "astype"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


def test_writing_into_an_array_is_refused() -> None:
    def writes(x: Any) -> Any:
        x[0] = 1
        return x

    with pytest.raises(Unsupported, match=r"^the formula writes .* use np\.where, or make a new one$"):
        rounding_bound(writes, X)


def test_neither_torch_nor_hypothesis_is_imported() -> None:
    program = (
        "import sys; from verified_losses.properties import assert_within_rounding, contract, rows; "
        "assert not {'torch', 'hypothesis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def most(function: Callable[[Any], Any], x: Any, dtype: str = "float32") -> tuple[Any, Any]:
    """Return what roundings add up to, in units roundoff, of a value and its gradient."""
    p = Roundoff.of(dtype)
    value, (derived,) = scatter(function, [np.asarray(x, float)], p, [0], samples=0)
    assert np.isnan(value.spread)
    return value.most / p.stored, derived.most / p.stored


SHARE = 1 / (1 + np.exp(-2))
"""Of the larger of 3 and 1."""
ADDED_UP: dict[str, tuple[Callable[[Any], Any], Any, float, Any]] = {
    # two products, each rounded, and their sum, of two terms, which is stored
    "products": (lambda x: np.sum(3 * x), [1.5, 4.5], 2 * 18 + 2 * 18 + 2 * 18, [2 * 3, 2 * 3]),
    # the error of 3 x is multiplied with the slope; then the square rounds
    "inherited": (lambda x: np.sum((3 * x) * (3 * x)), [1.5], 2 * 2 * 20.25 + 2 * 20.25, None),
    # of values that cancel their magnitudes do not
    "cancelled": (lambda x: np.sum(3 * x - x * 3), [2.5], 2 * (7.5 + 7.5) + 2 * 7.5, None),
    "a matrix": (lambda x: (x @ x).sum(), [1.0, 2.0, 2.0], 9 * (3 + 1) + 2 * 9, None),
    "einsum": (lambda x: np.einsum("i, i->", x, x), [1.0, 2.0, 2.0], 9 * (3 + 1) + 2 * 9, None),
    "einsum of one": (
        # the gradient is 1 for each, a product of one term
        lambda x: np.einsum("ij->", x), [[1.0, -2.0], [2.0, 4.0]], 9 * (4 + 1) + 2 * 5,
        np.full((2, 2), 1 + 1 + 2),
    ),
    # relative to 1 and to both arguments: two roundings, and the slope three
    "softplus": (lambda x: np.sum(np.logaddexp(0, x)), [0.0], 2 * 2, [2 * 3 + 2 * 0.5]),
    "logaddexp of errors": (
        lambda x: np.sum(np.logaddexp(2.5 * x, 1.0)), [1.2], SHARE * 6 + 2 * 2 * 3,
        [2.5 * (SHARE * (1 - SHARE) * 6 + 2 * 3 + 2 * SHARE) + 2 * 2.5 * SHARE],
    ),
    "logaddexp of both": (
        lambda x: np.sum(np.logaddexp(1.2 - x, 2.5 * x)), [1.2],
        (1 - 1 / (1 + np.exp(-3))) * 2.4 + 6 / (1 + np.exp(-3)) + 2 * 2 * 3, None,
    ),
    # of whole numbers sums and products are exact; beyond 2^24 float32 has not all of them
    "whole numbers": (lambda x: np.sum((1 - x) * -9.0 * (x + 2)), [1.0, 5.0, 0.0], 3 * 270 + 2 * 234, None),
    "large whole numbers": (
        lambda x: np.sum(x * x), [2.0**12, 2.0**13], 2 * 2.0**26 + (2 + 2) * 5 * 2.0**24, None,
    ),
    "moved whole numbers": (lambda x: np.sum(x / x - 1), [3.0], 2 * 1.5 + 2, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ADDED_UP)
def test_roundings_add_up(name: str) -> None:
    function, x, of_value, of_gradient = ADDED_UP[name]
    value, derived = most(function, x)
    assert value == pytest.approx(of_value, rel=1e-6)
    if of_gradient is not None:
        np.testing.assert_allclose(derived, of_gradient, rtol=1e-6)


def test_in_float64_the_formula_errs_too() -> None:
    function = ADDED_UP["products"][0]
    assert most(function, [1.5, 4.5], "float64")[0] == pytest.approx(2 * most(function, [1.5, 4.5])[0])


def test_of_few_roundings_samples_are_not_believed_beyond_their_sum() -> None:
    few, many = (
        scatter(lambda x: np.sum(x * x), [np.full(count, 1.1)], Roundoff.of("float32"))[0]
        for count in (3, 4096)
    )
    assert few.bound == few.most < SPREAD * QUANTILE * few.spread
    assert many.bound == SPREAD * QUANTILE * many.spread < many.most


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.sum(np.where(3 * x > 3.3, x, 0.0)),
        lambda x: np.sum(np.maximum(3 * x, 3.3)),
        lambda x: np.max(3 * x) * 1.0,
        lambda x: np.sum(np.sign(x * 3 - 3.3) * x),
        lambda x: np.sum(1 / (3 * x - 3.3 + 1e-7)),
    ],
)
def test_where_errors_decide_nothing_is_known_of_their_sum(function: Callable[[Any], Any]) -> None:
    assert np.isinf(most(function, [1.1, 1.1])[0])
    assert np.isfinite(most(function, [1.1 + 2.0**-10, 2.1])[0])


def test_large_errors_grow_as_exponentials_do() -> None:
    """In bfloat16 a logit of 100 errs by half a unit or more."""
    power, exponent = (
        most(function, [33.25], "bfloat16")[0] * 2.0**-8
        for function in (lambda x: np.sum(np.exp(-3 * x)), lambda x: np.sum(-x * 3.0))
    )
    assert power > np.exp(-99.75) * np.expm1(exponent - 2.0**-7 * 99.75)
