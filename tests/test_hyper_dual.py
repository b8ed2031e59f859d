"""Hyper-dual numbers: by hand, and against second derivatives of the second formulation in mpmath."""

import mpmath
import numpy as np
import pytest

from tests.test_oracles import (
    ROWS,
    both_caption,
    both_clip,
    both_cross_entropy,
    both_distill,
    both_infonce,
    both_ntxent,
    both_siglip,
    close,
    point,
)
from verified_losses.oracles.bounds import BASE_TWO, ELEMENTARY, FLOAT32, FLOAT64, Precision
from verified_losses.oracles.hyper_dual import RESCALED, HyperDual

U = 1 / 16
EXACT = Precision(0.0, 0.0, 0.0)
"""Arithmetic that never rounds."""
PLAIN = Precision(U, U, 0.0)
FLOATS = Precision.of("float64")


def number(value, v=0.0, w=(1.0,), p=EXACT):
    """Return a hyper-dual number, or an array of such."""
    value = np.array(value, float)
    v, w = np.broadcast_to(v, value.shape), np.array([np.broadcast_to(one, value.shape) for one in w])
    return HyperDual.at(value, v, w, p)


def gamma(n, u=U):
    return n * u / (1 - n * u)


# Worked by hand.


@pytest.mark.parametrize(
    ("function", "at", "expected"),
    [
        # f, f', f'' at the point; along v = 2 and w = 3 the coefficients are f, 2 f', 3 f', 6 f''
        (lambda x: -x, 3, (-3, -1, 0)),
        (lambda x: x + 1, 3, (4, 1, 0)),
        (lambda x: 1 - x, 3, (-2, -1, 0)),
        (lambda x: x * x, 3, (9, 6, 2)),
        (lambda x: 2 * x * x * x, 3, (54, 54, 36)),
        (lambda x: 1 / x, 2, (0.5, -0.25, 0.25)),
        (lambda x: x / 4, 2, (0.5, 0.25, 0)),
        (np.exp, 0, (1, 1, 1)),
        (np.log, 2, (np.log(2), 0.5, -0.25)),
        (np.sqrt, 4, (2, 0.25, -1 / 32)),
        (lambda x: np.logaddexp(0, x), 0, (np.log(2), 0.5, 0.25)),
        (lambda x: np.exp(x * x), 0, (1, 0, 2)),
    ],
)
def test_functions_by_hand(function, at, expected):
    value, first, second = expected
    parts = function(number(at, 2, [3, 0])).parts[0]
    found = [[value, 3 * first, 0], [2 * first, 6 * second, 0]]
    close(parts, found, np.abs(found), 8)


def test_arrays_by_hand():
    x = number([[1, 2], [3, 4]], [[1, 0], [0, 0]], [np.eye(2), np.ones((2, 2))])
    y = np.array([[5.0], [6.0]])
    assert (x.shape, len(x), x.T.shape) == ((2, 2), 2, (2, 2))
    # row sums of x^2: 5 and 25; that of the first row changes by 2 along v and either w
    for total in (np.sum(x * x, axis=1), (x * x).sum(-1), np.sum((x * x).T, axis=0)):
        assert total.parts[0, 0, 0].tolist() == [5, 25]
        assert total.second()[0].tolist() == [[2, 0], [2, 0]]
    assert np.sum(x * x, axis=-1, keepdims=True).shape == (2, 1)
    assert np.sum(x * x).second()[0].tolist() == [2, 2]
    # x @ y = (17, 39), moved by v (5, 0), by eye (5, 6), by ones (11, 11)
    product = x @ y
    assert product.parts[0, :, :, :, 0].tolist() == [[[17, 39], [5, 6], [11, 11]], [[5, 0], [0, 0], [0, 0]]]
    square = np.sum(x @ x.T)
    # the sum over k of (x_0k + x_1k)^2: along v and eye 2 (1)(1), along v and ones 2 (1)(2)
    assert square.second()[0].tolist() == [2, 4]
    picked = np.concatenate([x[[0, 0], [0, 1]], x[np.array([False, True])].reshape(2), x.reshape((4,))[:1]])
    assert picked.parts[0, 0, 0].tolist() == [1, 2, 3, 4, 1]
    assert [part.shape for part in np.split(picked, [2, 3])] == [(2,), (1,), (2,)]
    assert not np.iscomplexobj(x)


def test_a_maximum_may_be_any_element_but_its_value_is_constant():
    top = np.max(np.real(number([1, 3, 2], [4, -5, 6], [[-7, 8, 9]])), axis=-1, keepdims=True)
    value, size, _ = top.parts[..., 0]
    assert value.tolist() == [[3, 0], [0, 0]]
    assert size.tolist() == [[3, 9], [6, 0]]
    with pytest.raises(TypeError, match="expected a constant"):
        np.max(number([1, 2]))


def test_what_has_no_derivative_here_is_refused():
    for function in (np.imag, np.floor, lambda x: np.logaddexp(x, 1), np.mean, np.add.reduce):
        with pytest.raises(TypeError):
            function(number([1, 2]))


def errors(result):
    """Return the error of a scalar's value, of its two first derivatives and of its second."""
    return result.parts[2].reshape(-1).tolist()


def test_errors_of_sums_and_products_by_hand():
    x, y = number(3, 0, [1], PLAIN), number(5, 1, [0], PLAIN)
    # the product is 15, its derivatives 5 along w, 3 along v, 1 along both: each of two or four products, of
    # which one is not 0; these round once, and their sum once or up to three times
    one, three = gamma(1), gamma(3)
    product = x * y
    close(
        errors(product),
        [15 * one, 5 * (one + one * (1 + one)), 3 * (one + one * (1 + one)), one + three * (1 + one)],
        [1] * 4,
        200,
    )
    # a sum adds its operands' errors, and rounds relative to their sizes
    total = x - y
    assert errors(total) == [8 * one, one, one, 0]
    error = 15 * one
    close(errors(product - product)[:1], [2 * error + one * (30 + 2 * error)], [10], 60)
    # an element that broadcasting uses four times gets a sum of four
    assert (number([1.0], 0, [0], PLAIN) + np.zeros(4)).parts[2, 0, 0].tolist() == [gamma(4)] * 4
    # 2 terms, and each may be rescaled
    assert np.sum(number([1, 2], 0, [0], Precision.of("float32"))).parts[2, 0, 0] == (
        3 * gamma(2 * (1 + RESCALED), FLOAT32)
    )


def test_errors_of_a_matrix_product_by_hand():
    x, y = number(np.ones((2, 3)), 0, [0], PLAIN), np.ones((3, 2))
    # three products, and reverse mode may add up all four of the rows' pairs
    assert (x @ y).parts[2, 0, 0].tolist() == [[3 * gamma(7)] * 2] * 2


@pytest.mark.parametrize(("rows", "width", "columns"), [(2, 3, 40), (40, 3, 2), (2, 40, 3)])
def test_errors_of_matrices_that_are_cut_and_added_up_in_parts_by_hand(rows, width, columns):
    stored, cut, of_addition, of_part = 2.0**-12, 2.0**-10, 2.0**-9, 2.0**-8
    p = Precision(stored, stored, 0.0, factors=cut, additions=of_addition, parts=of_part)
    count = width + rows * columns
    # reverse mode may multiply matrices along any of the three axes: 40 terms, in 3 parts
    coarser = gamma(2, cut) + (1 + gamma(2, cut)) * gamma(3, of_part)
    relative = gamma(count, stored) + coarser + gamma(count, of_addition)
    y = np.ones((width, columns))
    x = number(np.ones((rows, width)), 0, [0], p)
    np.testing.assert_allclose((x @ y).parts[2, 0, 0], width * relative, rtol=1e-12)
    # so do derivatives, and then they are added up
    x = number(np.zeros((rows, width)), 1, [0], p)
    added = relative + gamma(1, stored) * (1 + relative)
    np.testing.assert_allclose((x @ y).parts[2, 1, 0], width * added, rtol=1e-12)


def through(slope, curvature, slope_error, curvature_error):
    """Return the errors that a function of x gives its first derivative and its second, where x' is 1."""
    first = slope_error + gamma(1) * (slope + slope_error)
    squared = gamma(1)  # of x' by x'
    second = (curvature + curvature_error) * squared + curvature_error
    second += gamma(1) * (curvature + second)
    return first, second + gamma(1) * (curvature + second)


@pytest.mark.parametrize(
    ("function", "at", "sizes", "rounded"),
    [
        # |f|, |f'| and |f''|; what each rounds relative to, where it is another number
        (np.exp, 0, (1, 1, 1), None),
        (np.sqrt, 4, (2, 1 / 4, 1 / 32), None),
        (np.log, 4, (np.log(4), 1 / 4, 1 / 16), (1 + np.log(4), 1 / 4, 1 / 16)),
        (lambda x: np.logaddexp(0, x), 0, (np.log(2), 1 / 2, 1 / 4), (np.log(2), 1, 1)),
    ],
)
def test_errors_of_functions_by_hand(function, at, sizes, rounded):
    f, slope, curvature = (gamma(order * ELEMENTARY) * size for order, size in enumerate(rounded or sizes, 1))
    first, second = through(*sizes[1:], slope, curvature)
    found = function(number(at, 1, [1], PLAIN))
    close(errors(found), [f, first, first, second], [1] * 4, 100)


def test_errors_move_functions_by_hand():
    at = 2.0
    x = number(at, 1, [0], PLAIN) - 0
    error = gamma(1) * at
    # an exponential by the error of its exponent, which log2(e) rounds too, and its slope by twice that
    grown = np.exp(error + BASE_TWO * U * at)
    value = np.exp(at)
    moved = value * (grown - 1)
    first = moved + gamma(ELEMENTARY) * (value + moved)
    moved = value * (grown**2 - 1)
    slope = moved + gamma(2 * ELEMENTARY) * (value + moved)
    # x' = 1 errs as x does
    erring = (value + slope) * gamma(1) + slope
    found = np.exp(x).parts[2, :, 0]
    expected = np.array([first, erring + gamma(1) * (value + erring)])
    close(found, expected, expected, 100)
    # a root and a logarithm by the error relative to what the argument is at least
    relative = error / (at - error)
    root = np.sqrt(at) * relative
    close(np.sqrt(x).parts[2, 0, 0], root + gamma(4) * (np.sqrt(at) + root), 10, 100)
    moved = np.log(at) * relative + gamma(4) * (1 + np.log(at)) * (1 + relative)
    close(np.log(x).parts[2, 0, 0], moved, moved, 100)


def test_an_argument_that_may_be_zero_has_no_bound():
    x = number(1, 1, [1], PLAIN)
    for _ in range(20):
        x = x - 0
    assert np.log(x).second()[1] > 1e9


def test_a_bound_that_overflows_accuses_nobody():
    with np.errstate(over="ignore", invalid="ignore"):
        huge = number([1e200, 0], 1, [1], PLAIN) * 1e200
        bound = (huge * 0).second()[1]
    assert np.isinf(bound).tolist() == [[True, False]]


def test_a_sigmoid_errs_relative_to_one():
    # as 1 - 1 / (1 + exp(z)) it is some u, however small it should be
    value, error = np.logaddexp(0, number(-100, 1, [1], FLOATS)).second()
    assert value < FLOAT64**2
    assert 2 * FLOAT64 < error < 100 * FLOAT64


# Against the second formulation.

TRUE = (False, True, "exact"), (True, True, "open_clip")
LOSSES = [
    *((both, rows, flags) for both in (both_clip, both_distill, both_infonce, both_ntxent)
      for rows in ROWS[:3] for flags in TRUE),
    *((both_siglip, rows, ()) for rows in ROWS[:3]),
    (both_cross_entropy, ROWS[0], (0,)),
    (both_caption, ROWS[2], (0, "exact")),
]  # fmt: skip


@pytest.mark.parametrize(("both", "rows", "flags"), LOSSES)
def test_second_derivatives_equal_the_second_formulation(both, rows, flags):
    flat = point(both, rows)
    v, *w = np.random.default_rng(3).choice([-1.0, 0.5, 2.0], (4, len(flat)))
    if both is both_distill and flags[2] == "exact":
        for direction in (v, *w):  # the teacher stays
            direction[2 * sum(rows) * 2 + 2 :] = 0
    for rank in range(len(rows)):
        oracle, formula = both(rows, rank, flags)
        values, bounds = oracle(HyperDual.at(flat, v, np.array(w), FLOATS)).second()
        with mpmath.workdps(50):
            still = np.array([mpmath.mpf(x) for x in flat], dtype=object)
            for value, bound, along in zip(values, bounds, w, strict=True):

                def moved(s, t, along=along, formula=formula, still=still):
                    live = still + s * v + t * along
                    return formula(live, live)

                expected = mpmath.diff(moved, (0, 0), (1, 1))
                assert abs(value - expected) <= bound
                # what single precision would do to it is seen
                assert bound < FLOAT32 * abs(expected)


def test_the_error_of_a_sum_counts_its_elements():
    # errors 1 and 2 of the values, sizes 3 and 5
    parts = np.zeros((3, 2, 2, 2))
    parts[0, 0, 0] = parts[1, 0, 0] = [3, 5]
    parts[2, 0, 0] = [1, 2]
    p = Precision(2.0**-8, 2.0**-8, 0.0)
    rounded = gamma((1 + RESCALED) * 2, 2.0**-8)
    close(HyperDual(parts, p).sum().parts[2, 0, 0], 3 + rounded * (8 + 3), 20, 8)
    # along an axis only the elements of that axis count: one each here
    once = gamma(1 + RESCALED, 2.0**-8)
    column = HyperDual(parts[..., None], p).sum(axis=-1).parts[2, 0, 0]
    close(column, [1 + once * (3 + 1), 2 + once * (5 + 2)], [20, 20], 8)


def test_second_derivatives_round_as_often_as_the_whole_does():
    x = number(3, 1, [1], PLAIN)
    square = x * x
    error, size = square.parts[2, 1, 1], square.parts[1, 1, 1]
    assert square.second()[1].tolist() == [error]
    close(square.second(3)[1], [error + gamma(3) * (size + error)], [20], 8)


def test_a_product_rounds_as_often_as_broadcasting_uses_a_factor():
    one, five = number(3, 0, [1], PLAIN), number(np.ones(5), 0, [0], PLAIN)
    for product in (one * five, five * one):
        close(product.parts[2, 0, 0], [3 * gamma(5)] * 5, [3] * 5, 20)


def test_the_error_of_a_softplus_is_relative_to_its_argument_too():
    result = np.logaddexp(0, number(3, 0, [1], PLAIN))
    relative = np.expm1(BASE_TWO * U * 3)
    value, slope = np.logaddexp(0, 3), 1 / (1 + np.exp(-3))
    expected = value * relative + gamma(ELEMENTARY) * (value + 3) * (1 + relative)
    close(result.parts[2, 0, 0], expected, 20, 40)
    assert result.parts[2, 0, 1] > slope * gamma(ELEMENTARY)


def test_an_underflow_is_added_to_errors():
    coarse = Precision(0.0, 0.0, 0.5)
    assert np.exp(number(0, 0, [1], coarse)).parts[2, 0, 0] == 0.5
    assert (number(3, 0, [1], coarse) * number(5, 0, [1], coarse)).parts[2, 0, 0] == 0.5


def test_axes_are_numpys():
    x = np.real(number([[1, 3, 2], [4, 0, 5]]))
    assert np.max(x, axis=1).parts[0, 0, 0].tolist() == [3, 5]
    assert np.max(x, axis=0).parts[0, 0, 0].tolist() == [4, 3, 5]
    assert np.concatenate([x, x], axis=1).shape == (2, 6)
    assert [part.shape for part in np.split(x, [1], axis=1)] == [(2, 1), (2, 2)]
    with pytest.raises(
        TypeError, match=r"^max: expected a constant, as np\.real returns, got what is derived$"
    ):
        np.max(number([1, 2]))


def test_a_reduction_and_an_unknown_function_are_refused():
    x = number([1, 2])
    for function in (
        np.multiply.reduce,
        np.cumsum,
        np.sin,
        lambda one: np.logaddexp(1, one),
        lambda one: np.add(one, 1, where=True),
    ):
        with pytest.raises(TypeError, match=r"HyperDual|not supported|no implementation"):
            function(x)
