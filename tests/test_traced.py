"""What is traced is what the functions of bounds give: each step by itself, in an arithmetic that is coarse.

`test_rounding` says those functions again in another way. Here they are put together by hand.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.test_rounding import COARSE, PLAIN, U, bounded, same
from verified_losses.oracles import distill, gather, held, linear_cross_entropy, siglip
from verified_losses.oracles.bounds import (
    Blocks,
    Bounded,
    Magnitude,
    NotSteps,
    Precision,
    Weight,
    gamma,
    product,
    scalars,
    softmax,
    sums,
    trace,
    unit,
)
from verified_losses.oracles.bounds.product import Further
from verified_losses.oracles.clip import cross_entropy, scaled_product
from verified_losses.oracles.complex_step import Array, constant
from verified_losses.oracles.infonce import divided_product, normalize

X = np.array([[0.75, -1.75, 0.5], [1.25, 0.0, -2.0]])
Y = np.array([[1.5, 0.25, -1.0], [-0.5, 3.0, 0.125], [2.0, -0.75, 1.0]])
SCALE, BIAS = np.array(1.625), np.array(0.375)
COLUMNS = np.array([0.25, -1.375, 3.0])
LABELS = np.array([2, 0])
GIVEN = {"x": X, "y": Y, "scale": SCALE, "bias": BIAS}


def traced(
    function: Callable[..., Any], p: Precision = COARSE, blocks: Blocks | None = None, **inputs: Array
) -> tuple[Any, dict[str, Array]]:
    """Return the error of the sum of what a function gives, and those of its gradients."""

    def loss(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        made = function(**ranks[0])
        return [{"loss": made.sum() if made.ndim else made}]

    terms, gradients = trace(
        loss,
        [inputs], [{"loss": np.array(1.0)}], p, blocks or Blocks(),
    )  # fmt: skip
    return terms[0]["loss"], gradients[0]


def summed(value: Bounded, p: Precision = COARSE, parts: int = 1) -> float:
    return sums.total(value, Weight(1.0, 0), p, parts)


ONES = Magnitude(np.zeros((2, 3)), np.ones((2, 3)))
"""The gradient of the logits, where all are added up."""
COUNTED = gamma(1, COARSE.accumulated)
LOGITS: dict[str, tuple[Callable[..., Any], float, Further]] = {
    # what the inputs that are left out are is a constant; then the scale, and what errs by itself
    "all are inputs": (scaled_product, 1.625, Further()),
    "a scale is a constant": (scaled_product, 1.625, Further(scale=COUNTED)),
    "a bias is a constant": (scaled_product, 1.625, Further(bias=COARSE.stored)),
    "a bias of a few bits is exact": (scaled_product, 1.625, Further()),
    "a temperature": (divided_product, 1 / 1.625, Further(scale=gamma(3, COARSE.accumulated))),
}
CONSTANTS: dict[str, dict[str, Any]] = {
    "a scale is a constant": {"scale": 1.625},
    "a bias is a constant": {"bias": 0.375},
    "a bias of a few bits is exact": {"bias": 0.5},
    "a temperature": {"temperature": 1.625},
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits(name: str) -> None:
    function, scale, further = LOGITS[name]
    given = {key: GIVEN[key] for key in ("x", "y", "scale", "bias")}
    fixed = CONSTANTS.get(name, {})
    if "temperature" in fixed:
        given = {"x": X, "y": Y}
    given = {key: value for key, value in given.items() if key not in fixed}
    value, found = traced(lambda **inputs: function(**inputs, **fixed), **given)
    bias = 0.0 if "temperature" in fixed else float(fixed.get("bias", BIAS))
    z = product.logits(scale, X, Y, bias, COARSE, further)
    same([value], [summed(z)])
    expected = product.through_logits(ONES, scale, X, Y, COARSE, further)
    assert found.keys() == given.keys()
    for key, error in found.items():
        same(error, expected[key].error + COARSE.tiny)


@pytest.mark.parametrize("key", GIVEN)
def test_one_of_the_operands_of_logits_may_be_traced_alone(key: str) -> None:
    fixed = {other: value for other, value in GIVEN.items() if other != key}
    _, found = traced(lambda **inputs: scaled_product(**inputs, **fixed), **{key: GIVEN[key]})
    further = Further(scale=0.0 if key == "scale" else COUNTED, bias=0.0 if key == "bias" else COARSE.stored)
    expected = product.through_logits(ONES, 1.625, X, Y, COARSE, further)
    same(found[key], expected[key].error + COARSE.tiny)


@pytest.mark.parametrize("key", ["x", "y"])
def test_one_of_the_operands_of_a_quotient_may_be_traced_alone(key: str) -> None:
    fixed = {"y" if key == "x" else "x": GIVEN["y" if key == "x" else "x"]}
    _, found = traced(lambda **one: divided_product(**one, **fixed, temperature=0.5), **{key: GIVEN[key]})
    further = Further(scale=gamma(3, COARSE.accumulated))
    expected = product.through_logits(ONES, 2.0, X, Y, COARSE, further)
    same(found[key], expected[key].error + COARSE.tiny)


def test_logits_with_a_bias_of_each_column() -> None:
    value, found = traced(linear_cross_entropy.linear, x=X, weight=Y, bias=COLUMNS)
    same([value], [summed(product.logits(1.0, X, Y, COLUMNS, COARSE))])
    expected = product.through_logits(ONES, 1.0, X, Y, COARSE)
    same(found["x"], expected["x"].error + COARSE.tiny)
    same(found["weight"], expected["y"].error + COARSE.tiny)
    # a sum over both rows, of ones: one addition, and what half precision stores of it
    size = np.full(3, 2.0)
    error = sums.summed(np.ones((3, 2)), COARSE.accumulated) + gamma(3, COARSE.narrowed) * size
    same(found["bias"], error + COARSE.tiny)
    gradient = Magnitude(np.array([[0.5, 2.0], [0.25, 1.0]]), np.array([[1.0, 2.0], [4.0, 8.0]]))
    error, size = product.of_columns(gradient, COARSE)
    same(size, [5.0, 10.0])
    rounded = sums.summed(np.array([[1.0, 4.0], [2.0, 8.0]]), COARSE.accumulated)
    same(error, [0.75, 3.0] + rounded + gamma(3, COARSE.narrowed) * np.array([5.0, 10.0]))


def test_logits_divided_by_what_is_an_input() -> None:
    value, found = traced(divided_product, x=X, y=Y, temperature=SCALE)
    of_inverse = scalars.holding("inverse", 1 / 1.625, COARSE)
    further = Further(scale=of_inverse)
    same([value], [summed(product.logits(1 / 1.625, X, Y, 0.0, COARSE, further))])
    expected = product.through_logits(ONES, 1 / 1.625, X, Y, COARSE, further)
    for key in "x", "y":
        same(found[key], expected[key].error + COARSE.tiny)
    # the inverse's gradient is added up first: what it is made of is stored
    error, size = expected["scale"]
    part = Magnitude(error + COARSE.tiny, size)
    wanted = scalars.through_held("inverse", part, np.array(1 / 1.625), COARSE)
    same(found["temperature"], wanted.error)


def test_a_scale_that_is_held_counts_the_blocks_that_it_is_added_up_from() -> None:
    # two rows, one at a time, and two blocks of columns: four parts of the scale's gradient
    blocks = Blocks(rows=1, columns=2)
    _, found = traced(
        lambda x, y, t: scaled_product(x, y, held.HELD["exp"](t), 0.0),
        PLAIN,
        blocks,
        x=X,
        y=Y,
        t=np.array(0.5),
    )
    scale = np.exp(0.5)
    further = Further(scale=scalars.holding("exp", scale, PLAIN))
    expected = product.through_logits(ONES, scale, X, Y, PLAIN, further)
    error, size = expected["scale"]
    part = Magnitude(error + gamma(3, U) * size, size)
    of_held = scalars.through_held("exp", part, np.array(scale), PLAIN)
    # and they may as well be added up behind it
    same(found["t"], of_held.error)
    same(found["x"], expected["x"].error + gamma(1, U) * expected["x"].size)
    same(found["y"], expected["y"].error + gamma(1, U) * expected["y"].size)


Z = np.array([[1.5, -0.25, 3.0], [0.125, 0.0, -2.0]])
T = np.array([[0.5, 1.0, -1.0], [2.0, -0.75, 0.25]])
SIGNS = np.array([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]])
HALF = COARSE.of_half_logits


def _exact(array: Array) -> Bounded:
    return bounded(array)


def _smoothed() -> tuple[Bounded, Bounded]:
    targets = softmax.smoothed_targets(LABELS, 3, 0.25, HALF)
    return softmax.entropy_of(_exact(Z), targets, HALF, targets.error.sum(1))


def _soft() -> tuple[Bounded, Bounded]:
    targets, excess = softmax.soft_targets(_exact(T), HALF)
    return softmax.entropy_of(_exact(Z), targets, HALF, excess)


CROSS_ENTROPIES: dict[str, tuple[Callable[[Any], Any], Callable[[], tuple[Bounded, Bounded]], int]] = {
    # of logits; value and slope; in how many parts it is stored at least
    "labels": (
        lambda z: cross_entropy(z, LABELS),
        lambda: softmax.entropy_of(_exact(Z), softmax.one_hot(LABELS, 3), HALF),
        1,
    ),
    "smoothed": (lambda z: linear_cross_entropy.smoothed_cross_entropy(z, LABELS, 0.25), _smoothed, 1),
    "z loss": (
        lambda z: linear_cross_entropy.z_loss(z, 0.5),
        lambda: softmax.squared_log_sum_exp(_exact(Z), 0.5, HALF),
        1,
    ),
    "soft": (lambda z: distill.soft_cross_entropy(T, z), _soft, 4),
    "signs": (
        lambda z: siglip.sigmoid_cross_entropy(z, SIGNS),
        lambda: softmax.sigmoid_entropy(_exact(Z), SIGNS, HALF),
        1,
    ),
}


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_cross_entropies(name: str) -> None:
    function, bounds, parts = CROSS_ENTROPIES[name]
    value, slope = bounds()
    error, found = traced(function, z=Z)
    same([error], [summed(value, parts=parts)])
    wanted, size = sums.weighed(slope, Weight(np.ones(()), np.zeros((), int)), COARSE)
    same(found["z"], wanted + COARSE.tiny)
    # logits that are made of others: of twice as much, which is exact, and stored
    _, found = traced(lambda half: function(2.0 * half), half=Z / 2)
    same(found["half"], 2 * wanted + COARSE.tiny)
    assert (size > 0).any()


def test_logits_that_are_stored_in_parts_are_summed_in_as_many() -> None:
    for name in "labels", "smoothed", "z loss", "signs":
        function = CROSS_ENTROPIES[name][0]

        def loss(x: Any, y: Any, function: Callable[[Any], Any] = function) -> Any:
            return function(scaled_product(x, y, 1.0, 0.0))

        whole, _ = traced(loss, x=X, y=Y)
        apart, _ = traced(loss, COARSE, Blocks(1, 3), x=X, y=Y)
        # two rows and three blocks of columns: six parts, where one was
        more = gamma(10, COARSE.narrowed) - gamma(5, COARSE.narrowed)
        same([apart - whole], [more * abs(loss(X, Y)).sum()])


def test_the_logits_of_targets_have_a_gradient_unless_they_are_constant() -> None:
    def loss(z: Any, t: Any) -> Any:
        return distill.soft_cross_entropy(t, z)

    weight = Weight(np.ones(()), np.zeros((), int))
    _, found = traced(loss, z=Z, t=T)
    same(found["z"], sums.weighed(_soft()[1], weight, COARSE).error + COARSE.tiny)
    of_targets = softmax.cross_entropy_targets(_exact(Z), _exact(T), HALF)
    same(found["t"], sums.weighed(of_targets, weight, COARSE).error + COARSE.tiny)
    _, alone = traced(lambda t: distill.soft_cross_entropy(t, Z), t=T)
    same(alone["t"], found["t"])
    _, still = traced(lambda z, t: loss(z, constant(t)), z=Z, t=T)
    same(still["z"], found["z"])
    assert np.all(still["t"] == COARSE.tiny)


@pytest.mark.parametrize("kind", held.HELD)
def test_scales_that_are_held(kind: str) -> None:
    t = np.array(0.75)
    value, found = traced(lambda t: held.HELD[kind](t), t=t)
    scale = np.asarray(held.HELD[kind](t), float)
    error = scalars.holding(kind, float(scale), COARSE) * scale
    same([value], [error])
    part = Magnitude(np.zeros(()), np.ones(()))
    same(found["t"], scalars.through_held(kind, part, scale, COARSE).error)
    with pytest.raises(NotSteps, match="of other than a scalar"):
        traced(lambda t: held.HELD[kind](t * 3.0), t=t)
    with pytest.raises(NotSteps, match="of other than a scalar"):
        traced(lambda y: held.HELD[kind](y), y=Y)


# Linear arithmetic; PLAIN neither underflows nor stores in another precision than it adds up in.

ERRS = 2 * U / (1 - 2 * U)
"""How far a product with a constant errs, relative to it: both are stored."""


def _of_elements(function: Callable[..., Any], **inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Return the error of each element that a function gives, and the errors of the sum's gradients."""
    seen: list[Any] = []

    def loss(**given: Any) -> Any:
        seen.append(function(**given))
        return seen[-1]

    _, found = traced(loss, PLAIN, **inputs)
    return np.asarray(seen[0].bounded.error), found


def test_sums_round_once_and_constants_as_they_are_stored() -> None:
    three = 3.0 * np.ones(X.shape)
    error, found = _of_elements(lambda x: x + three, x=X)
    same(error, 3 * U + U * (abs(X + 3) + 3 * U))
    same(found["x"], np.zeros(X.shape))
    error, _ = _of_elements(lambda x: three - x, x=X)
    same(error, 3 * U + U * (abs(3 - X) + 3 * U))
    error, _ = _of_elements(lambda x: x - three, x=X)
    same(error, 3 * U + U * (abs(X - 3) + 3 * U))
    error, _ = _of_elements(lambda x: x + np.zeros(()), x=X)  # nothing is added
    same(error, np.zeros(X.shape))
    error, _ = _of_elements(lambda x: x + np.zeros(X.shape), x=X)  # a sum as any other
    same(error, U * abs(X))


def test_both_sides_of_a_sum_bring_their_errors_and_get_gradients() -> None:
    other = X[::-1].copy()

    def loss(x: Any, y: Any) -> Any:
        return 3.0 * x - 5.0 * y

    error, found = _of_elements(loss, x=X, y=other)
    brought = ERRS * (3 * abs(X) + 5 * abs(other))
    same(error, brought + U * (abs(3 * X - 5 * other) + brought))
    same(found["x"], np.full(X.shape, ERRS * 3))
    same(found["y"], np.full(X.shape, ERRS * 5))
    for function, size in ((lambda x: -x, 1.0), (lambda x: x / 3.0, 1 / 3)):
        error, found = _of_elements(function, x=X)
        inexact = 0.0 if size == 1 else ERRS
        same(error, inexact * abs(X) * size)
        same(found["x"], np.full(X.shape, inexact * size))


def test_values_are_those_of_numpy() -> None:
    seen = []

    def loss(x: Any) -> Any:
        made = [x + 1.0, 1.0 - x, -x, x - 2.0, x * 3.0, x / 4.0, x + x[::-1], x - x[::-1]]
        made += [np.concatenate([x, Y]), np.concatenate([Y, x]), x.T, x.reshape(3, 2), x[:, 1:]]
        seen.append(made)
        return x

    traced(loss, x=X)
    loss(X)
    for one, plain in zip(*seen, strict=True):
        assert np.array_equal(one.bounded.value, plain)


def test_a_mean_is_divided_by_how_many_there_are() -> None:
    # 6 is no power of two: its quotient rounds, as often as a weight may
    mean, _ = traced(lambda x: np.mean(x), PLAIN, x=X)
    size = abs(X).sum()
    exact = sums.summed(abs(X).ravel(), U)
    same([mean], [(exact + gamma(sums.WEIGHING, U) * size) / 6])


def test_totals_of_one_weight_are_one_sum_in_all_their_parts() -> None:
    def twice(x: Any, y: Any) -> Any:
        return (np.sum(x) + np.sum(y)) * 1.0

    error, _ = traced(twice, COARSE, x=X, y=Y)
    whole = np.concatenate([X.ravel(), Y.ravel()])
    same([error], [summed(bounded(whole), parts=2)])
    # of other weights they are two numbers
    error, _ = traced(lambda x, y: np.sum(x) + 2.0 * np.sum(y), PLAIN, x=X, y=Y)
    each = summed(bounded(X), PLAIN) + 2 * summed(bounded(Y), PLAIN)
    own = each + U * (abs(X.sum() + 2 * Y.sum()) + each)
    same([error], [own])


def test_rows_that_are_carried_several_times_count_as_often() -> None:
    def loss(x: Any, times: float) -> Any:
        return 3.0 * gather.carry(x, times)

    _, once = traced(lambda x: loss(x, 1.0), COARSE, x=X)
    _, thrice = traced(lambda x: loss(x, 3.0), COARSE, x=X)
    _, never = traced(lambda x: loss(x, 0.0), COARSE, x=X)
    # they may be added up three times, which rounds twice
    size = np.full(X.shape, 3.0)
    same(thrice["x"], 3 * (once["x"] - COARSE.tiny) + gamma(2, COARSE.stored) * 3 * size + COARSE.tiny)
    assert np.all(never["x"] == COARSE.tiny)


# Rows of length 1.


def _normalized(p: Precision, *functions: Callable[[Any], Any]) -> tuple[Array, Array]:
    found: list[Any] = []

    def loss(x: Any) -> Any:
        for function in functions:
            x = function(x)
        found.append(x)
        return x

    _, gradients = traced(loss, p, x=X)
    return np.asarray(found[0].bounded.error), gradients["x"]


def test_rows_that_are_normalised_once_or_twice() -> None:
    ones = Magnitude(np.zeros(X.shape), np.ones(X.shape))
    length = X / np.linalg.norm(X, axis=1, keepdims=True)
    error, gradient = _normalized(COARSE, normalize)
    same(error, unit.normalization(3, COARSE) * abs(length))
    first = unit.through_normalize(ones, X, COARSE)
    same(gradient, first.error)
    error, gradient = _normalized(COARSE, normalize, normalize)
    stored = gamma(unit.OWN_STORED, COARSE.stored)
    second = stored + (1 + stored) * unit.normalization(3, COARSE)
    same(error, second * abs(length))
    again = unit.again(unit.through_normalize(ones, length, COARSE), COARSE)
    same(gradient, unit.through_normalize(again, X, COARSE).error)


@pytest.mark.parametrize(
    ("name", "function", "keeps"),
    [
        ("rows", lambda x: x[np.array([1, 0])], True),
        ("a slice of rows", lambda x: x[1:], True),
        ("all columns", lambda x: x[1:, :], True),
        ("some columns", lambda x: x[:, :2], False),
        ("columns in another order", lambda x: x[:, np.array([0, 0, 1])], False),
        ("columns as rows", lambda x: x[:, :2].T, False),
        ("both", lambda x: np.concatenate([x, x]), True),
        ("other rows too", lambda x: np.concatenate([x, Y]), False),
        ("another shape", lambda x: x.reshape(3, 2), False),
    ],
)
def test_what_is_made_of_rows_of_length_1(name: str, function: Callable[[Any], Any], keeps: bool) -> None:
    if keeps:
        _normalized(COARSE, normalize, function, normalize)
    else:
        with pytest.raises(NotSteps, match=r"^normalize of rows that err: "):
            _normalized(COARSE, normalize, function, normalize)


def test_a_square_of_rows_of_length_1_has_other_columns() -> None:
    square = np.array([[0.75, -1.75], [1.25, 0.5]])
    with pytest.raises(NotSteps, match="normalize of rows that err"):
        traced(lambda x: normalize(normalize(x).T), x=square)


def test_large_matrices_are_bounded_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(x: Any, y: Any) -> Any:
        z = scaled_product(x, y, 1.625, 0.0)
        parts = [cross_entropy(z, np.arange(5) % 3), linear_cross_entropy.z_loss(z, 0.5)]
        parts += [distill.soft_cross_entropy(2.0 * z, z), siglip.sigmoid_cross_entropy(z, np.ones((5, 3)))]
        return sum(np.sum(part) for part in parts)

    rows = np.arange(15.0).reshape(5, 3) / 8 - 1
    value, found = traced(lambda **given: everything(**given) * 1.0, x=rows, y=Y)
    monkeypatch.setattr("verified_losses.oracles.bounds.rows.MANY", 1)
    monkeypatch.setattr("verified_losses.oracles.bounds.rows.BLOCK", 6)  # two rows of three columns
    blocked, by_blocks = traced(lambda **given: everything(**given) * 1.0, x=rows, y=Y)
    assert blocked == value
    for key, error in found.items():
        assert np.array_equal(by_blocks[key], error)


def test_the_messages_name_what_is_no_step() -> None:
    for function, named in [
        (lambda x: [*x], "iteration"),
        (lambda x: np.asarray(x), "an array of what is traced"),
        (lambda x: bool(x), "a condition"),
        (lambda x: float(x), "float"),
        (lambda x: x + x[0], "a sum of different shapes"),
    ]:
        with pytest.raises(NotSteps, match=f"^{named}: expected a step of verified_losses.oracles"):
            traced(function, x=X)
