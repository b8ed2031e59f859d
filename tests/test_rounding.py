"""The bounds of rounding: by hand, against a second formulation, and against arithmetic that rounds.

The second formulation says each bound again in scalars, a loop for every sum. Most of it is compared in an
arithmetic so coarse that no term of a bound hides behind another. That the bounds hold is tried by computing
in few bits, in orders and forms that are drawn.
"""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.helpers import close
from verified_losses.oracles import bounds
from verified_losses.oracles.bounds import (
    BASE_TWO,
    CAP,
    ELEMENTARY,
    FLOAT32,
    FLOAT64,
    WEIGHING,
    Bounded,
    Magnitude,
    Precision,
    Weight,
    product,
    scalars,
    softmax,
    sums,
    unit,
)
from verified_losses.oracles.bounds.product import NOTHING, Further
from verified_losses.oracles.clip import log_softmax
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.dtypes import DTYPES
from verified_losses.oracles.held import HELD

INF = math.inf
U = 1 / 16
EXACT = Precision(0.0, 0.0, 0.0)
"""Arithmetic that never rounds."""
PLAIN = Precision(U, U, 0.0)
"""Arithmetic of one precision, that never underflows."""
COARSE = Precision(2.0**-4, 2.0**-7, 2.0**-5)
PRECISIONS = [
    COARSE,
    Precision(2.0**-7, 2.0**-7, 2.0**-9),
    *(Precision.of(dtype) for dtype in DTYPES if dtype != "float64"),
    COARSE.of_half_logits,
]


def through_logits(slope, weight, *given):
    """Bound the gradients where `weight * slope` is that of the logits; then come its operands."""
    return product.through_logits(sums.weighed(slope, weight, given[3]), *given)


def bounded(value, error=0.0):
    """Return a value whose elements err as given."""
    return Bounded(np.array(value, float), np.broadcast_to(np.array(error, float), np.shape(value)))


# Worked by hand. Numbers are few bits long, so that the results are exact.


@pytest.mark.parametrize(
    ("n", "expected"),
    [(0, 0), (3, 3 / 13), (15, 15), (16, INF), (17, INF), (np.array([1, 16, 17]), [1 / 15, INF, INF])],
)
def test_gamma_by_hand(n, expected):
    # n u / (1 - n u) = n / (16 - n)
    assert np.array_equal(bounds.gamma(n, U), expected)


@pytest.mark.parametrize(
    ("dtype", "stored", "accumulated", "tiny", "narrowed"),
    [
        ("float64", 2.0**-53, 2.0**-53, 2.0**-1022, 0),
        ("float32", 2.0**-24, 2.0**-24, 2.0**-126, 0),
        ("bfloat16", 2.0**-8, 2.0**-24, 2.0**-126, 2.0**-8),
        ("float16", 2.0**-11, 2.0**-24, 2.0**-24, 2.0**-11),
    ],
)
def test_precision_by_hand(dtype, stored, accumulated, tiny, narrowed):
    p = Precision.of(dtype)
    assert (p.stored, p.accumulated, p.tiny, p.narrowed) == (stored, accumulated, tiny, narrowed)
    assert {FLOAT64, FLOAT32} >= {p.accumulated}


@pytest.mark.parametrize(
    ("value", "spacing", "inexact"),
    [
        (0.0, INF, False),
        (1.0, 1, False),
        (-8.0, 8, False),
        (3.0, 1, True),
        (-6.0, 2, True),
        (0.75, 0.25, True),
        (1 + 2.0**-52, 2.0**-52, True),
        (2.0**53 - 1, 1, True),
        (2.0**-1074, 2.0**-1074, False),
        (3 * 2.0**-1074, 2.0**-1074, True),
    ],
)
def test_spacing_and_inexact_by_hand(value, spacing, inexact):
    assert sums.spacing(np.array([value])).tolist() == [spacing]
    assert sums.inexact(np.array([value])).tolist() == [inexact]
    assert sums.inexact(value) == inexact


def test_weight_by_hand():
    assert Weight.of(5.0) == Weight.of(5.0, 1, 2, 0.25) == Weight(5.0, 0)
    assert Weight.of(5.0, 1, 3) == Weight.of(5.0, 3, 1) == Weight(5.0, WEIGHING)
    assert Weight(5.0, 2).times(-4) == Weight(-20.0, 2)
    assert Weight(5.0, 2).times(np.float64(-3)) == Weight(-15.0, 3)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([0, 0], 0),
        ([5], 0),
        ([4, 4], 8 / 15),
        ([4, 4, 4, 4], 16 * 3 / 13),
        ([14, 1], 15 / 15),
        # 1 is 1/16 of 16: it may be lost, and what it was may have erred; the oracle errs by 2 * 16 units
        ([15, 1], 1 + 32 * FLOAT64),
        # two small terms added up may err, and so be lost with what they are too many
        ([7, 1, 7, 1], 16 / 15 + 2 * (1 + 1 / 15) * (1 + 2 / 15) + 64 * FLOAT64),
        # what the oracle may lose, it may lose no more than once
        ([4, 2**-60], 2**-60 + 2**-60),
    ],
)
def test_summed_by_hand(sizes, expected):
    close(sums.summed(np.array(sizes, float), U), expected, expected, 6)
    close(sums.summed(np.array([sizes, sizes], float), U), [expected] * 2, [expected] * 2, 6)


@pytest.mark.parametrize(
    ("small", "result", "expected"),
    [
        (0, 16, 0),
        (8, 16, 1 + 16 * FLOAT64),
        (8, -16, 1 + 16 * FLOAT64),
        (-8, 16, 1 + 16 * FLOAT64),
        (0.5, 16, 0.5 + 16 * FLOAT64),
        (-FLOAT64, 16, 2 * FLOAT64),
    ],
)
def test_added_by_hand(small, result, expected):
    assert sums.added(np.array(small), np.array(result), U) == expected


@pytest.mark.parametrize(
    ("scale", "x", "y", "bias", "value", "error"),
    [
        # of 5 bits, as a precision of 4 bits rounds
        (1, [3], [5], 0, 15, 0),
        (1, [3], [7], 0, 21, 21 / 15),
        (1, [4], [4], 0, 16, 0),
        (1, [4, 1], [4, 0], 0, 16, 0),
        (1, [4, 1], [3, 4], 0, 16, 0),
        (1, [4, 1], [4, 1], 0, 17, 17 * 2 / 14),
        # what adds up is magnitudes
        (1, [-4, 1], [4, -1], 0, -17, 17 * 2 / 14),
        (1, [-4, 1], [4, 1], 0, -15, 17 * 2 / 14),
        # a scale that is a power of two rounds nothing, and any other once more
        (2, [4, 1], [4, 1], 0, 34, 34 * 2 / 14),
        (-2, [4, 1], [4, 1], 0, -34, 34 * 2 / 14),
        (3, [5], [1], 0, 15, 0),
        (3, [5], [3], 0, 45, 45 * ((16 / 15) ** 2 - 1)),
        (-3, [5], [3], 0, -45, 45 * ((16 / 15) ** 2 - 1)),
        # the bias is one more addition, of what has erred already
        (1, [3], [4], 4, 16, 0),
        (1, [3], [4], -4, 8, 0),
        (1, [3], [4], 5, 17, 17 / 16),
        (1, [3], [4], -5, 7, 7 / 16),
        (1, [4], [2], 0.5, 8.5, 8.5 / 16),
        (1, [4], [2], -0.5, 7.5, 7.5 / 16),
        (1, [3], [7], 1, 22, 21 / 15 + (22 + 21 / 15) / 16),
    ],
)
def test_logits_by_hand(scale, x, y, bias, value, error):
    found = product.logits(scale, np.array([x], float), np.array([y], float), bias, PLAIN)
    assert found.value.item() == value
    close(found.error.item(), error, 2 * abs(value), 8)


# The second formulation, in scalars.


def scalar_gamma(n, u):
    return n * u / (1 - n * u) if n * u < 1 else INF


def scalar_spacing(value):
    numerator, denominator = float(value).as_integer_ratio()
    return (numerator & -numerator) / denominator if numerator else INF


def scalar_inexact(value):
    numerator = abs(float(value).as_integer_ratio()[0])
    return numerator & (numerator - 1) != 0


def scalar_summed(sizes, u):
    total = sum(sizes)
    large = [size for size in sizes if size > u * total]
    lost = sum(size for size in sizes if size <= u * total)
    small = sum(0 < size <= u * total for size in sizes)
    of_large, of_small = (scalar_gamma(max(count - 1, 0), u) for count in (len(large), small))
    error = of_large * total + ((1 + of_large) * (1 + 2 * of_small) * lost if lost else 0)
    return error + min(scalar_gamma(len(sizes), FLOAT64) * total, lost)


def scalar_added(small, result, u):
    return sum(min(roundoff * abs(result), abs(small)) for roundoff in (u, FLOAT64))


def scalar_logit(scale, x, y, bias, p, further=NOTHING):
    """Return one logit and its error; x and y are one row each."""
    products = sum(abs(scale * a * b) for a, b in zip(x, y, strict=True))
    x_unit, y_unit = min(map(scalar_spacing, x)), min(map(scalar_spacing, y))
    unit = scalar_spacing(scale) * x_unit * y_unit
    least = min(unit, scalar_spacing(scale) * x_unit, x_unit * y_unit)
    own = (1 + further.x) * (1 + further.y) * (1 + further.scale)
    rounds = products > unit / p.stored or least < p.tiny or own > 1
    error = 0.0
    value = scale * sum(a * b for a, b in zip(x, y, strict=True))
    if rounds:
        terms = sum(a * b != 0 for a, b in zip(x, y, strict=True))
        grown = 1 + scalar_gamma(terms, p.accumulated)
        if scalar_inexact(scale):
            grown *= 1 + scalar_gamma(1, p.accumulated) + scalar_gamma(2, p.narrowed)
        error = (grown * own - 1) * products
        error += p.narrowed * (abs(value) + error)
    value += bias
    if bias:
        rounds |= products + abs(bias) > min(unit, scalar_spacing(bias)) / p.stored or further.bias > 0
        error += further.bias * abs(bias)
        if rounds:
            error += p.stored * (abs(value) + error) + p.narrowed * abs(bias)
    if rounds:
        error += p.tiny * (2 + sum(map(abs, y)) + abs(scale) * len(x) * (3 if further.x or further.y else 1))
    return value, error


def scalar_grown(log, moved):
    if moved > CAP:
        return math.exp(min(log + moved, CAP))
    return math.exp(log) * math.expm1(moved)


def scalar_softmax(z, e, p):
    """Return what a row's softmax is made of, by name."""
    w, c = p.accumulated, range(len(z))
    top = max(z)
    shifted = [a - top for a in z]
    log_sum = math.log(sum(map(math.exp, shifted)))
    log = [s - log_sum for s in shifted]
    q = [math.exp(v) for v in log]
    mean = sum(q[j] * e[j] for j in c)
    # e_j against the mean of all errors, in which it is itself: (1 - q_j) e_j + sum of the others' q e
    against = [(1 - q[j]) * e[j] + (mean - q[j] * e[j]) for j in c]
    curved = sum(
        scalar_grown(log[j], against[j]) - (q[j] * against[j] if against[j] <= CAP else 0) for j in c
    )
    curved = min(curved, 2 * max(e))
    moved = [a + curved for a in against]
    fits = [e[j] == 0 and -shifted[j] * w <= min(scalar_spacing(z[j]), scalar_spacing(top)) for j in c]
    shift = [0.0 if fits[j] else w * -shifted[j] for j in c]
    larger = [sum((-shifted[k], k) < (-shifted[j], j) for k in c) for j in c]
    behind = sum(q[j] * larger[j] for j in c)
    rescaled = min(math.exp(min(math.log(behind) + 2 * max(moved), CAP)), len(z) - 1) if behind else 0
    terms = 0.0
    for j in c:
        terms += q[j] * math.expm1(shift[j] + BASE_TWO * w * -shifted[j])
        terms += q[j] * ELEMENTARY * w if shifted[j] else 0
    terms += (ELEMENTARY + 1) * w * rescaled + scalar_summed(q, w)
    terms += p.exponentials + scalar_summed(q, p.exponentials)
    of_sum = (ELEMENTARY + BASE_TWO) * w * log_sum - math.log1p(-min(terms, 1 - FLOAT64))
    log_rounded, rounded = [], []
    for j in c:
        place = max(shift[j], scalar_added(log_sum, top + log_sum, w))
        stored = p.narrowed * -log[j]
        last = scalar_added(log_sum, log[j], w) if fits[j] else w * -log[j]
        log_rounded.append(of_sum + place + last + stored)
        exponent = min(of_sum + place + (1 + BASE_TWO) * w * -log[j] + stored, CAP)
        rounded.append(math.expm1(exponent) + (ELEMENTARY + 1) * w + p.narrowed)
    errors = []
    for j in c:
        error = scalar_grown(log[j], moved[j]) * (1 + rounded[j]) + q[j] * rounded[j]
        errors.append(min(error, 1 + q[j] * rounded[j]) + p.tiny)
    excess = sum(min(math.exp(min(log[j] + moved[j], 0)), 1) * rounded[j] + p.tiny for j in c)
    return {
        "log": log,
        "log_error": [m + r for m, r in zip(moved, log_rounded, strict=True)],
        "log_rounded": log_rounded,
        "curved": curved,
        "excess": excess,
        "probability": q,
        "probability_error": errors,
    }


def scalar_cross_entropy(z, e, t, t_error, p, excess=0.0):
    """Return a row's value and error, and its slopes and theirs."""
    w, c = p.accumulated, range(len(z))
    s = scalar_softmax(z, e, p)
    slope = [s["probability"][j] - t[j] for j in c]
    products = [t[j] * -s["log"][j] for j in c]
    error = s["curved"] * (1 + excess) + scalar_summed(products, w) + p.tiny
    for j in c:
        error += s["probability"][j] * e[j] * (1 + excess) + t[j] * e[j]
        error += t[j] * s["log_rounded"][j] + t_error[j] * (e[j] + s["log_rounded"][j] - s["log"][j])
        error += (w + p.narrowed) * products[j] if scalar_inexact(t[j]) else 0
    if excess:
        own = [t[j] * abs(math.log(t[j])) if t[j] else 0.0 for j in c]
        error += 2 * scalar_summed(own, w)
        error += sum((ELEMENTARY + 3) * (w + p.narrowed) * (own[j] + t[j]) for j in c)
    labels = not any(map(scalar_inexact, t))
    slope_errors = []
    for j in c:
        one = s["probability_error"][j] * (1 + excess) + t_error[j] + w * abs(slope[j])
        one += p.narrowed * (t[j] + abs(slope[j]))
        one += t[j] * s["excess"]
        one += (s["probability"][j] + t[j]) * math.expm1(min(2 * w * sum(products), CAP)) * (not excess)
        one += s["probability"][j] * (excess + scalar_summed(t, w) + (0 if labels else 2 * w))
        slope_errors.append(one)
    return sum(products), error, slope, slope_errors


def scalar_squared(z, e, factor, p):
    """Return the squared log-sum-exp of a row times a factor, its error, and its slopes and theirs."""
    s, c, w = scalar_softmax(z, e, p), range(len(z)), p.accumulated + p.narrowed
    whole = math.log(sum(math.exp(v - max(z)) for v in z)) + max(z)
    error = sum(s["probability"][j] * e[j] for j in c) + s["curved"] + min(s["log_rounded"]) + w * abs(whole)
    value = factor * whole**2
    value_error = factor * ((abs(whole) + error) ** 2 - whole**2)
    value_error += scalar_gamma(3, p.accumulated + p.narrowed) * (value + value_error) + p.tiny
    slopes, errors = [], []
    for j in c:
        most = s["probability"][j] + s["probability_error"][j]
        slopes.append(2 * factor * whole * s["probability"][j])
        one = 2 * factor * (error * most + abs(whole) * s["probability_error"][j])
        one += scalar_gamma(4, w) * (2 * factor * (abs(whole) + error) + 1) * most
        errors.append(one + p.tiny)
    return value, value_error, slopes, errors


def scalar_smoothed(label, classes, smoothing, p):
    """Return each class's probability of a label that is smoothed, and its error."""
    values = [smoothing / classes + (1 - smoothing) * (j == label) for j in range(classes)]
    return values, [scalar_gamma(3, p.accumulated) * value for value in values]


def scalar_targets(z, e, t, t_error, p):
    """Return the gradient by the target's logits of a row, and its error."""
    c = range(len(z))
    logp, target = scalar_softmax(z, e, p), scalar_softmax(t, t_error, p)
    q, q_error = target["probability"], target["probability_error"]
    mean = sum(q[j] * logp["log"][j] for j in c)
    mean_error = sum(q[j] * logp["log_error"][j] + q_error[j] * -logp["log"][j] for j in c)
    mean_error += (scalar_gamma(len(z), p.accumulated) + 3 * p.stored) * -mean
    values, errors = [], []
    for j in c:
        spread = logp["log"][j] - mean
        values.append(-q[j] * spread)
        error = q_error[j] * abs(spread) + q[j] * (logp["log_error"][j] + mean_error)
        errors.append(error + 4 * p.stored * q[j] * (-logp["log"][j] - mean) + p.tiny)
    return values, errors


def scalar_sigmoid(z, e, label, p):
    """Return a logit's value, error, slope and its error."""
    w, margin = p.accumulated, label * z
    tail = math.log1p(math.exp(-abs(margin)))
    value = tail if margin > 0 else tail - margin
    slope = 1 / (1 + math.exp(margin))
    moved = scalar_grown(-math.log1p(math.exp(margin)) if margin < 500 else -margin, e)
    exponential = math.expm1(BASE_TWO * w * abs(margin)) + ELEMENTARY * w
    error = min(moved, e) + tail * (exponential + ELEMENTARY * w)
    error += scalar_added(tail, abs(margin) + tail, w) + p.narrowed * value + p.tiny
    slope_error = min(moved, 1) + slope * (exponential + 3 * w + 2 * p.narrowed) + 2 * w + p.tiny
    slope_error += p.exponentials if label > 0 else 0
    return value, error, -label * slope, slope_error


def scalar_total(values, errors, weight, parts, p):
    size = sum(map(abs, values))
    error = sum(errors) + scalar_summed(list(map(abs, values)), p.accumulated)
    error += scalar_gamma(weight.roundings, p.accumulated) * size
    error += scalar_gamma(parts + 4, p.narrowed) * size
    return abs(weight.value) * error + p.tiny


def scalar_weighed(slope, error, weight, p):
    """Return the error of one element, and its size."""
    size = abs(weight.value) * (abs(slope) + error)
    roundings = weight.roundings + (1 if scalar_inexact(weight.value) else 0)
    relative = scalar_gamma(roundings, p.accumulated) + 4 * p.narrowed
    return abs(weight.value) * error + relative * size + p.tiny, size


def scalar_through(errors, sizes, scale, features, p, of_rows, of_scale):
    """Return the errors and sizes of one side's gradient, and its most additions; errors are [n, m]."""
    width = range(len(features[0]))
    found, most = [], 0
    for row_errors, row_sizes in zip(errors, sizes, strict=True):
        row = []
        for k in width:
            column = [abs(f[k]) for f in features]
            products = sum(abs(scale) * g * f for g, f in zip(row_sizes, column, strict=True))
            error = sum(abs(scale) * g * f for g, f in zip(row_errors, column, strict=True))
            terms = sum(g * f != 0 for g, f in zip(row_sizes, column, strict=True))
            count = max(terms - 1, 0) + (any(map(scalar_inexact, column)) or of_rows > 0)
            most = max(most, count)
            rounded = scalar_gamma(count + scalar_inexact(scale), p.accumulated)
            own = (1 + of_rows) * (1 + of_scale)
            error = (error + (1 + rounded + scalar_gamma(5, p.narrowed)) * products) * own - products
            error += p.tiny * abs(scale) * sum(row_sizes) * (of_rows > 0)
            error += p.tiny * (2 + sum(column)) * max(abs(scale), 1)
            row.append((error, products))
        found.append(row)
    return found, most


def scalar_through_logits(slope, error, weight, scale, x, y, p, further=NOTHING):
    """Return the errors and sizes of x's and y's elements, the scale and the bias."""
    n, m, d = range(len(x)), range(len(y)), range(len(x[0]))
    pairs = [[scalar_weighed(slope[i][j], error[i][j], weight, p) for j in m] for i in n]
    e, g = ([[pair[part] for pair in row] for row in pairs] for part in (0, 1))
    of_x, x_most = scalar_through(e, g, scale, y, p, further.y, further.scale)
    transposed = (list(zip(*part, strict=True)) for part in (e, g))
    of_y, y_most = scalar_through(*transposed, scale, x, p, further.x, further.scale)
    every = [(i, j, k) for i in n for j in m for k in d]
    products = sum(g[i][j] * abs(x[i][k] * y[j][k]) for i, j, k in every)
    scale_error = sum(e[i][j] * abs(x[i][k] * y[j][k]) for i, j, k in every)
    scale_error += p.tiny * (2 + sum(abs(v) for row in (*x, *y) for v in row))
    ways = [
        (len(d) + 1, [g[i][j] * sum(abs(x[i][k] * y[j][k]) for k in d) for i in n for j in m]),
        (x_most + 1, [abs(x[i][k]) * sum(g[i][j] * abs(y[j][k]) for j in m) for i in n for k in d]),
        (y_most + 1, [abs(y[j][k]) * sum(g[i][j] * abs(x[i][k]) for i in n) for j in m for k in d]),
    ]
    w = p.accumulated
    scale_error += max(scalar_gamma(count, w) * products + scalar_summed(sizes, w) for count, sizes in ways)
    scale_error += scalar_gamma(6, p.narrowed) * products
    scale_error = (scale_error + products) * (1 + further.x) * (1 + further.y) - products
    flat = [v for row in g for v in row]
    bias_error = sum(v for row in e for v in row) + scalar_summed(flat, w)
    bias_error += scalar_gamma(3, p.narrowed) * sum(flat)
    return {"x": of_x, "y": of_y, "scale": (scale_error, products), "bias": (bias_error, sum(flat))}


def scalar_normalization(width, p):
    return scalar_gamma(width / 2 + 2, p.accumulated) + scalar_gamma(3, p.stored)


def scalar_renormalize(errors, sizes, features, p):
    """Return the same of a row that is normalised twice."""
    norm = math.sqrt(sum(v * v for v in features))
    again = scalar_normalize(errors, sizes, [v / norm for v in features], p)
    further = scalar_normalization(len(features), p) + scalar_gamma(4, p.stored)
    errors, sizes = zip(*((error + further * (error + size), size) for error, size in again), strict=True)
    return scalar_normalize(errors, sizes, features, p)


def scalar_holding(kind, held, p):
    """Return the relative error of the scale that follows from what is held."""
    if kind == "inverse":
        return (scalar_gamma(1, p.accumulated) + scalar_gamma(1, p.narrowed)) * (math.frexp(held)[0] != 0.5)
    if "softplus" in kind:
        result = math.log(1 + math.exp(held))
        relative = math.exp(BASE_TWO * p.accumulated * held) - 1 + scalar_gamma(1, p.narrowed)
        relative += scalar_gamma(2 * ELEMENTARY + 1, p.accumulated) * (1 + 1 / result)
        relative += math.exp(-20) * (result > 20)  # from where on torch's returns its argument
        once = scalar_gamma(1, p.accumulated) + scalar_gamma(1, p.narrowed)
        return relative + once * (kind == "inverse_softplus")
    relative = math.exp(BASE_TWO * p.accumulated * held) - 1
    return relative + scalar_gamma(ELEMENTARY + 1, p.accumulated) + scalar_gamma(1, p.narrowed)


def scalar_held(kind, held, error, size, p):
    """Return the error and the size of the gradient of what is held."""
    result, sigmoid = math.log(1 + math.exp(held)), 1 / (1 + math.exp(-held))
    slope = {
        "exp": math.exp(held), "inverse": 1 / held**2, "exp_negative": math.exp(-held),
        "softplus": sigmoid, "inverse_softplus": sigmoid / result**2,
    }[kind]  # fmt: skip
    relative = (1 + scalar_holding(kind, held, p)) ** 2
    relative *= (1 + scalar_gamma(2, p.accumulated)) * (1 + scalar_gamma(4, p.narrowed))
    error += (relative - 1) * (error + size)
    return slope * error + p.tiny * (1 + slope), slope * size


def scalar_normalize(errors, sizes, features, p, parts=1):
    """Return the errors and sizes of one row's gradient."""
    norm = math.sqrt(sum(v * v for v in features))
    width = range(len(features))
    found = []
    for k in width:
        error, size = (
            (part[k] + abs(features[k]) * sum(abs(features[j]) * part[j] for j in width) / norm**2) / norm
            for part in (errors, sizes)
        )
        relative = scalar_gamma(2.5 * len(width) + 8, p.accumulated) + scalar_gamma(14, p.stored)
        lost = p.tiny * (4 + 2 * len(width)) * (1 + 1 / norm) ** 2 * parts
        found.append((error + relative * size + lost, size))
    return found


def drawn(rng, *shape, bits=5, zeros=0.2, low=-4, high=3):
    """Return numbers of a few bits, some of them zero."""
    numbers = np.ldexp(rng.integers(-(2**bits), 2**bits, shape), rng.integers(low, high, shape) - bits)
    return np.where(rng.random(shape) < zeros, 0.0, numbers)


def drawn_errors(rng, *shape):
    """Return errors of logits: none, small ones, or ones beyond what is capped."""
    size = rng.choice([0.0, 2.0**-8, 0.5, 2 * CAP], p=[0.3, 0.3, 0.3, 0.1])
    return size * np.where(rng.random(shape) < 0.3, 0.0, rng.random(shape))


def drawn_targets(rng, *shape):
    """Return rows that sum up to 1: one label each, or a probability for each."""
    if rng.random() < 0.5:
        return np.eye(shape[1])[rng.integers(0, shape[1], shape[0])]
    weights = rng.random(shape)
    return weights / weights.sum(1, keepdims=True)


def drawn_weight(rng):
    return Weight(float(rng.choice([-1.5, 0.25, 1.0, 3.0])), int(rng.integers(0, 5)))


CASES = [(p, seed) for p in PRECISIONS for seed in range(20)]
OPERATIONS = 400
"""At most so many, one after another, make up a bound: 4 rows of 4, with what is done to each."""


def same(observed, expected):
    """Assert that two formulations of a bound agree, but for their own rounding in float64."""
    expected = np.array(expected, float)
    assert np.array_equal(np.isinf(observed), np.isinf(expected))
    finite = np.isfinite(expected)
    # bounds are sums of what is positive, and differences of numbers below 100
    magnitude = 100 + abs(np.where(finite, expected, 0))
    close(np.where(finite, observed, 0), np.where(finite, expected, 0), magnitude, OPERATIONS)


@pytest.mark.parametrize(("p", "seed"), CASES)
def test_bounds_equal_the_second_formulation(p, seed):
    rng = np.random.default_rng(seed)
    n, m, d = rng.integers(1, 5, 3)
    x, y = drawn(rng, n, d), drawn(rng, m, d)
    scale, bias = (float(rng.choice([-3.0, 0.0, 0.5, 1.0, 1.625])) for _ in range(2))
    sizes = abs(drawn(rng, n, m, low=-8))
    same(sums.summed(sizes, p.accumulated), [scalar_summed(row, p.accumulated) for row in sizes.tolist()])

    z = product.logits(scale, x, y, bias, p)
    expected = [[scalar_logit(scale, a, b, bias, p) for b in y.tolist()] for a in x.tolist()]
    same(np.stack(z, -1), expected)

    z = bounded(drawn(rng, n, m, bits=int(rng.integers(1, 9))), drawn_errors(rng, n, m))
    t = Bounded(drawn_targets(rng, n, m), drawn_errors(rng, n, m) / CAP)
    rows = list(zip(*(part.tolist() for part in (*z, *t)), strict=True))
    softmaxes = [scalar_softmax(*row[:2], p) for row in rows]
    same(np.stack(softmax.log_softmax(z, p)), [[s[k] for s in softmaxes] for k in ("log", "log_error")])
    expected = [[s[k] for s in softmaxes] for k in ("probability", "probability_error")]
    same(np.stack(softmax.softmax(z, p)), expected)
    targets, excess = softmax.soft_targets(z, p)
    same(np.stack(targets), expected)
    same(excess, [s["excess"] for s in softmaxes])

    for given, each in (((), [()] * n), ((excess,), [(one,) for one in excess])):
        value, slope = softmax.entropy_of(z, t, p, *given)
        expected = [scalar_cross_entropy(*row, p, *one) for row, one in zip(rows, each, strict=True)]
        for observed, wanted in zip((*value, *slope), zip(*expected, strict=True), strict=True):
            same(observed, wanted)
    value, slope = softmax.squared_log_sum_exp(z, 0.75, p)
    expected = [scalar_squared(*row[:2], 0.75, p) for row in rows]
    for observed, wanted in zip((*value, *slope), zip(*expected, strict=True), strict=True):
        same(observed, wanted)
    labels = rng.integers(0, m, n)
    expected = [scalar_smoothed(label, m, 0.125, p) for label in labels]
    same(np.stack(softmax.smoothed_targets(labels, m, 0.125, p), 1), expected)
    logits = Bounded(drawn(rng, n, m), t.error)
    rows = list(zip(*(part.tolist() for part in (*z, *logits)), strict=True))
    expected = [scalar_targets(*row, p) for row in rows]
    same(np.stack(softmax.cross_entropy_targets(z, logits, p), 1), expected)

    labels = rng.choice([-1.0, 1.0], (n, m))
    value, slope = softmax.sigmoid_entropy(z, labels, p)
    expected = np.vectorize(lambda *one: scalar_sigmoid(*one, p))(*z, labels)
    for observed, wanted in zip((*value, *slope), expected, strict=True):
        same(observed, wanted)

    weight, parts = drawn_weight(rng), int(rng.integers(1, 4))
    flat = [part.ravel().tolist() for part in slope]
    same(sums.total(slope, weight, p), scalar_total(*flat, weight, 1, p))
    same(sums.total(slope, weight, p, parts), scalar_total(*flat, weight, parts, p))
    slope = bounded(drawn(rng, n, m), drawn_errors(rng, n, m) / CAP)
    expected = np.vectorize(lambda *one: scalar_weighed(*one, weight, p))(*slope)
    same(np.stack(sums.weighed(slope, weight, p)), expected)

    found = through_logits(slope, weight, scale, x, y, p)
    lists = [part.tolist() for part in (*slope, x, y)]
    expected = scalar_through_logits(*lists[:2], weight, scale, *lists[2:], p)
    assert found.keys() == expected.keys()
    for name, part in found.items():
        same(np.stack(part, -1), expected[name])

    further = Further(*rng.choice([0.0, 2.0**-5, 2.0**-9], 4).tolist())
    z = product.logits(scale, x, y, bias, p, further)
    expected = [[scalar_logit(scale, a, b, bias, p, further) for b in y.tolist()] for a in x.tolist()]
    same(np.stack(z, -1), expected)
    found = through_logits(slope, weight, scale, x, y, p, further)
    expected = scalar_through_logits(*lists[:2], weight, scale, *lists[2:], p, further)
    for name, part in found.items():
        same(np.stack(part, -1), expected[name])

    features = x + 1
    gradient = Magnitude(abs(drawn(rng, n, d)), abs(drawn(rng, n, d)))
    rows = list(zip(*(part.tolist() for part in (*gradient, features)), strict=True))
    found = unit.through_normalize(gradient, features, p)
    same(np.stack(found, -1), [scalar_normalize(*row, p) for row in rows])
    found = unit.through_normalize(gradient, features, p, parts)
    same(np.stack(found, -1), [scalar_normalize(*row, p, parts) for row in rows])
    found = unit.through_renormalize(gradient, features, p)
    same(np.stack(found, -1), [scalar_renormalize(*row, p) for row in rows])
    for kind, held in itertools.product(HELD, (0.75, 2.0, 25.0)):
        value = float(HELD[kind](held))
        same([scalars.holding(kind, value, p)], [scalar_holding(kind, held, p)])
        part = Magnitude(np.array(0.5), np.array(3.0))
        found = scalars.through_held(kind, part, np.array(value), p)
        same(np.array(found), scalar_held(kind, held, *map(float, part), p))


def test_a_scale_that_is_held_may_be_exact():
    assert scalars.holding("", 3.0, PLAIN) == scalars.holding("exp", 1.0, PLAIN) == 0
    assert scalars.holding("inverse", 4.0, PLAIN) == 0 < scalars.holding("inverse", 3.0, PLAIN)
    assert scalars.holding("exp", 2.0, PLAIN) > 0
    # up to 20 softplus is what it says, whatever rounds
    assert scalars.holding("softplus", 20.0, EXACT) == 0
    assert scalars.holding("softplus", 20.5, EXACT) == math.exp(-20)
    assert scalars.holding("inverse_softplus", 1 / 20.5, EXACT) == math.exp(-20)


def test_a_difference_of_as_many_units_as_fit_is_exact():
    # 1 and -15 are 16 units apart, which is 1 / u
    z = [1.0, -15.0]
    shifted = scalar_softmax(z, [0.0, 0.0], PLAIN)["log_error"]
    same(softmax.log_softmax(bounded([z]), PLAIN).error, [shifted])
    assert shifted[1] < scalar_softmax([1.0, -15.5], [0.0, 0.0], PLAIN)["log_error"][1] - 1


# Soundness: what computes in few bits is no further off than its bound.


class Machine:
    """Arithmetic that rounds to the nearest of so many bits, in orders and forms that are drawn.

    What is stored has its own number of bits, no greater. Of numbers of these bits the operations in
    float64 that come before a rounding are exact, or as good as exact.
    """

    def __init__(self, stored, accumulated, seed):
        self.bits = {"stored": stored, "accumulated": accumulated}
        self.precision = Precision(2.0**-stored, 2.0**-accumulated, 0.0)
        self.random = random.Random(seed)

    def rounded(self, value, kind="accumulated"):
        mantissa, exponent = math.frexp(value)
        return math.ldexp(round(math.ldexp(mantissa, self.bits[kind])), exponent - self.bits[kind])

    def store(self, value):
        return self.rounded(value, "stored")

    def either(self, *forms):
        return self.random.choice(forms)

    def near(self, value, error):
        """Return a number of this machine no further from a value than that, or the value."""
        moved = self.rounded(value + error * self.either(-1, 1, self.random.uniform(-1, 1)))
        return moved if abs(moved - value) <= error else value

    def number(self, bits, low=-3, high=2):
        """Return a number of at most so many bits, at times zero."""
        if self.random.random() < 0.1:
            return 0.0
        whole = self.random.randint(-(2**bits) + 1, 2**bits - 1)
        return math.ldexp(whole, self.random.randint(low, high) - bits)

    def numbers(self, rows, columns, bits, **limits):
        return np.array([[self.number(bits, **limits) for _ in range(columns)] for _ in range(rows)])

    def sum(self, terms):
        """Add in any order and association."""
        terms = list(terms)
        while len(terms) > 1:
            self.random.shuffle(terms)
            terms.append(self.rounded(terms.pop() + terms.pop()))
        return terms[0]

    def dot(self, x, y):
        pairs = list(zip(x, y, strict=True))
        if self.either(True, False):
            return self.sum(self.rounded(a * b) for a, b in pairs)
        self.random.shuffle(pairs)
        result = 0.0
        for a, b in pairs:
            result = self.rounded(result + a * b)
        return result

    def elementary(self, value):
        """Return the result of a function that errs by up to two units in the last place."""
        ulps = self.random.choice([-1.0, 1.0, self.random.uniform(-1, 1)])
        return self.rounded(value * (1 + 2 * ulps * self.precision.accumulated))

    def exp(self, value):
        if value == 0:
            return 1.0
        if self.either(True, False):
            return self.elementary(2 ** self.rounded(value * self.rounded(math.log2(math.e))))
        return self.elementary(math.exp(value))

    def log(self, value):
        return self.elementary(math.log(value))


MACHINES = [(6, 6), (4, 6), (11, 24), (24, 24)]
"""Stored and accumulated bits, in which log2(e) is a quarter of a unit off, as in float32."""


def log_sum_exp(m, shifted):
    """Return log sum exp of numbers whose largest is 0, at times column by column."""
    if m.either(True, False):
        return m.log(m.sum(m.exp(s) for s in shifted))
    columns = list(shifted)
    m.random.shuffle(columns)
    top, total = columns[0], 1.0
    for s in columns[1:]:
        if s > top:
            total = m.rounded(total * m.exp(m.rounded(top - s)))
            top = s
        total = m.rounded(total + m.exp(m.rounded(s - top)))
    return m.log(total)


def computed_softmax(m, z):
    """Return the log-softmax and the softmax of a row."""
    top = max(z)
    shifted = [m.rounded(a - top) for a in z]
    log_sum = log_sum_exp(m, shifted)
    if m.either(True, False):
        log = [m.rounded(s - log_sum) for s in shifted]
    else:
        whole = m.rounded(top + log_sum)
        log = [m.rounded(a - whole) for a in z]
    form = m.either("stored logarithm", "logarithm", "quotient")
    if form == "quotient":
        terms = [m.exp(s) for s in shifted]
        total = m.sum(terms)
        probability = [m.rounded(a / total) for a in terms]
    else:
        probability = [m.exp(m.store(v) if form == "stored logarithm" else v) for v in log]
    return log, [m.store(q) for q in probability]


def exact_softmax(z):
    log_sum = math.log(sum(math.exp(a - max(z)) for a in z))
    log = [a - max(z) - log_sum for a in z]
    return np.array(log), np.exp(log)


def holds(observed, expected, error):
    """Assert that what a machine has computed is within its bound of what is exact, as float64 has it."""
    off = abs(np.subtract(observed, expected))
    own = 16 * FLOAT64 * (1 + abs(np.asarray(expected)))
    assert np.all(off <= error + own), f"{observed} is not {expected}: off {off}, bound {error}"


SOUND = pytest.mark.parametrize(("bits", "seed"), [(bits, seed) for bits in MACHINES for seed in range(5)])
REPEATS = 20


@SOUND
def test_logits_err_within_their_bound(bits, seed):
    m = Machine(*bits, seed)
    for _ in range(REPEATS):
        few = m.either(2, bits[0])
        x, y = m.numbers(1, m.either(1, 2, 3, 5), few), None
        y = m.numbers(1, x.shape[1], few)
        scale, bias = m.number(m.either(1, *bits)) or 1.0, m.either(0.0, m.number(m.either(1, *bits)))
        bound = product.logits(scale, x, y, bias, m.precision)
        stored = m.store(scale)
        if m.either(True, False):
            logit = m.store(m.dot([m.store(stored * a) for a in x[0]], y[0]))
        elif m.either(True, False):
            logit = m.store(stored * m.store(m.dot(x[0], y[0])))
        else:
            logit = m.store(m.rounded(scale * m.dot(x[0], y[0])))
        if bias:
            logit = m.store(logit + m.store(bias))
        holds(logit, bound.value.item(), bound.error.item())


@SOUND
def test_softmax_and_cross_entropy_err_within_their_bounds(bits, seed):
    m = Machine(*bits, seed)
    p = m.precision
    for _ in range(REPEATS):
        c = m.either(1, 2, 3, 6)
        z = m.numbers(1, c, m.either(2, bits[0]), low=-2, high=4)
        error = np.array([[m.either(0.0, 0.0, 2.0**-9, 0.25) for _ in range(c)]])
        label = np.eye(c)[m.random.randrange(c)]
        teacher = bounded(m.numbers(1, c, bits[0]), m.either(0.0, 2.0**-7))
        labels = m.either(True, False)
        t = bounded([label]) if labels else softmax.softmax(teacher, p)
        wanted, excess = label, 0.0
        if not labels:
            own_log, wanted = computed_softmax(
                m, [m.near(*pair) for pair in zip(*np.concatenate(teacher), strict=True)]
            )
            _, excess = softmax.soft_targets(teacher, p)
            holds(math.fsum(wanted), 1.0, excess)
        moved = [m.near(*pair) for pair in zip(z[0], error[0], strict=True)]
        bound = Bounded(z, error)
        log, probability = computed_softmax(m, moved)
        exact_log, exact_probability = exact_softmax(z[0])
        for found, expected, of in (
            ([m.store(v) for v in log], exact_log, softmax.log_softmax(bound, p)),
            (probability, exact_probability, softmax.softmax(bound, p)),
        ):
            close(of.value[0], expected, 1 + abs(expected), 16)
            holds(found, expected, of.error[0])

        value, slope = softmax.entropy_of(bound, t, p, excess)
        log, probability = computed_softmax(m, moved)
        kept = [m.either(v, m.store(v)) for v in log]
        terms = [m.store(m.rounded(-a * v)) for a, v in zip(wanted, kept, strict=True)]
        holds(m.sum(terms), -np.dot(t.value[0], exact_log), value.error.item())
        found = [m.store(m.rounded(q - a)) for q, a in zip(probability, wanted, strict=True)]
        holds(found, exact_probability - t.value[0], slope.error[0])
        if labels:
            own = np.dot(moved, label)
            _, probability = computed_softmax(m, [m.rounded(a - own) for a in moved])
            whole = m.sum(probability)
            found = [m.store(m.rounded(q - a * whole)) for q, a in zip(probability, wanted, strict=True)]
            holds(found, exact_probability - t.value[0], slope.error[0])
        else:
            divergence = [
                m.store(m.rounded(a * m.rounded(b - v)))
                for a, b, v in zip(wanted, own_log, kept, strict=True)
            ]
            entropy = [m.store(m.rounded(-a * m.log(a))) if a else 0.0 for a in wanted]
            given = m.rounded(m.sum(divergence) + m.sum(entropy))
            holds(given, -np.dot(t.value[0], exact_log), value.error.item())
            whole = m.sum(wanted)
            found = [m.rounded(q * whole) for q in probability]
            found = [m.store(m.rounded(q - a)) for q, a in zip(found, wanted, strict=True)]
            holds(found, exact_probability - t.value[0], slope.error[0])


@SOUND
def test_the_gradient_of_targets_errs_within_its_bound(bits, seed):
    m = Machine(*bits, seed)
    for _ in range(REPEATS):
        c = m.either(2, 3, 5)
        z, t = (m.numbers(1, c, bits[0], low=-2, high=3) for _ in range(2))
        error = m.either(0.0, 2.0**-6)
        bound = softmax.cross_entropy_targets(bounded(z, error), bounded(t, error), m.precision)
        log, _ = computed_softmax(m, [m.near(a, error) for a in z[0]])
        log = [m.store(v) for v in log]
        _, q = computed_softmax(m, [m.near(a, error) for a in t[0]])
        mean = m.store(m.sum(m.store(a * b) for a, b in zip(q, log, strict=True)))
        if m.either(True, False):
            found = [m.store(a * m.store(mean - v)) for a, v in zip(q, log, strict=True)]
        else:
            found = [m.store(m.store(a * mean) - m.store(a * v)) for a, v in zip(q, log, strict=True)]
        exact_log, (_, exact_q) = exact_softmax(z[0])[0], exact_softmax(t[0])
        expected = -exact_q * (exact_log - np.dot(exact_q, exact_log))
        holds(found, expected, bound.error[0])
        close(bound.value[0], expected, 1 + max(abs(exact_log)), 32)


@SOUND
def test_sigmoid_cross_entropy_errs_within_its_bound(bits, seed):
    m = Machine(*bits, seed)
    for _ in range(REPEATS):
        z, label, error = m.number(bits[0], high=5), m.either(-1.0, 1.0), m.either(0.0, 2.0**-7, 0.5)
        value, slope = softmax.sigmoid_entropy(bounded([z], error), np.array([label]), m.precision)
        margin = label * m.near(z, error)
        power = m.exp(-abs(margin))
        tail = m.elementary(math.log1p(power))
        if margin < 0:
            loss = m.rounded(tail - margin)
        else:
            loss = m.either(tail, m.rounded(m.rounded(margin + tail) - margin))
        expected = math.log1p(math.exp(-abs(label * z))) + max(-label * z, 0)
        holds(m.store(loss), expected, value.error.item())
        share = m.rounded(1 / m.rounded(1 + power))
        likely = share if margin >= 0 else m.rounded(power * share)
        wrong = m.either(m.rounded(1 - likely), share if margin < 0 else m.rounded(power * share))
        holds(m.store(-label * m.store(wrong)), -label / (1 + math.exp(label * z)), slope.error.item())


@SOUND
def test_totals_err_within_their_bound(bits, seed):
    m = Machine(*bits, seed)
    for _ in range(REPEATS):
        rows, ranks, parts = m.random.randint(1, 6), m.either(1, 2, 3), m.either(1, 2)
        values = bounded([m.number(bits[1], high=4) for _ in range(rows)], m.either(0.0, 2.0**-6))
        weight = Weight.of(ranks / rows, rows, ranks)
        moved = [m.near(*pair) for pair in zip(*values, strict=True)]
        cut = m.random.randrange(rows) if parts == 2 else 0
        stored = [m.store(m.sum(part)) for part in (moved[:cut], moved[cut:]) if part]
        result = m.store(m.sum(stored))
        if m.either(True, False):
            result = m.rounded(m.rounded(result / rows) * ranks)
        else:
            result = m.rounded(m.rounded(result * m.rounded(1 / rows)) * ranks)
        holds(
            m.store(result),
            values.value.sum() * ranks / rows,
            sums.total(values, weight, m.precision, parts),
        )


@SOUND
def test_gradients_through_logits_err_within_their_bounds(bits, seed):
    m = Machine(*bits, seed)
    p = m.precision
    for _ in range(REPEATS // 2):
        n, k, d = (m.random.randint(1, 4) for _ in range(3))
        x, y = m.numbers(n, d, bits[0]), m.numbers(k, d, bits[0])
        scale = m.number(m.either(1, bits[0])) or 1.0
        rows, ranks = m.either(1, 2, 3), m.either(1, 2, 3)
        weight = Weight.of(ranks / rows, rows, ranks)
        slope = bounded(m.numbers(n, k, bits[0], high=0), m.either(0.0, 2.0**-6))
        exact = weight.value * slope.value

        def weighed(i, j, slope=slope, rows=rows, ranks=ranks):
            moved = m.near(slope.value[i, j], slope.error[i, j])
            share = m.rounded(m.rounded(1 / rows) * ranks)
            return m.store(m.rounded(m.either(moved * share, m.rounded(moved / rows) * ranks)))

        g = np.array([[weighed(i, j) for j in range(k)] for i in range(n)])
        holds(g, exact, sums.weighed(slope, weight, p).error)
        bounds = through_logits(slope, weight, scale, x, y, p)

        def through(gradient, features, scale=scale):
            # the scale comes before the sum or after it
            if m.either(True, False):
                scaled = [[m.store(scale * v) for v in row] for row in gradient]
                return [[m.store(m.dot(row, column)) for column in features.T] for row in scaled]
            return [
                [m.store(scale * m.store(m.dot(row, column))) for column in features.T] for row in gradient
            ]

        holds(through(g, y), scale * exact @ y, bounds["x"].error)
        holds(through(g.T, x), scale * exact.T @ x, bounds["y"].error)
        form = m.either("logits", "x", "y")
        if form == "logits":
            whole = m.sum(m.rounded(g[i, j] * m.store(m.dot(x[i], y[j]))) for i in range(n) for j in range(k))
        else:
            first, second, gradient = (x, y, g) if form == "x" else (y, x, g.T)
            part = [[m.store(m.dot(row, column)) for column in second.T] for row in gradient]
            terms = zip(first.ravel(), np.ravel(part), strict=True)
            whole = m.sum(m.rounded(a * b) for a, b in terms)
        holds(m.store(whole), (exact * (x @ y.T)).sum(), bounds["scale"].error)
        holds(m.store(m.sum(g.ravel())), exact.sum(), bounds["bias"].error)


@SOUND
def test_normalised_rows_err_within_their_bounds(bits, seed):
    m = Machine(*bits, seed)
    p = m.precision

    def normalised(row):
        norm = m.rounded(math.sqrt(m.dot(row, row)))
        norm = m.either(norm, m.store(norm))
        return norm, [m.store(m.rounded(v / norm)) for v in row]

    for _ in range(REPEATS):
        width = m.random.randint(1, 4)
        raw = m.numbers(2, width, bits[0], low=0)
        raw[:, 0] += raw[:, 0] == 0
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        normal = raw / norms
        temperature = m.either(0.25, 0.0625 * 3)
        (_, x), (_, y) = map(normalised, raw)
        logit = m.store(m.rounded(m.store(m.dot(x, y)) / temperature))
        further = Further(*[unit.normalization(width, p)] * 2, 3 * p.accumulated)
        bound = product.logits(1 / temperature, normal[:1], normal[1:], 0.0, p, further)
        holds(logit, normal[0] @ normal[1] / temperature, bound.error.item())

        slope = m.number(bits[0], high=0)
        weight = Weight.of(1.0)
        parts = through_logits(
            bounded([[slope]]), weight, 1 / temperature, normal[:1], normal[1:], p, further
        )
        found = [[m.store(m.store(m.rounded(slope / temperature)) * v) for v in row] for row in (y, x)]
        for gradient, name, of in zip(found, "xy", normal[::-1], strict=True):
            holds(gradient, slope / temperature * of, parts[name].error[0])

        gradient = m.numbers(1, width, bits[0])[0]
        size = Magnitude(np.full((1, width), 2.0**-7), abs(gradient)[None] + 2.0**-7)
        bound = unit.through_normalize(size, raw[:1], p)
        moved = [m.near(v, 2.0**-7) for v in gradient]
        norm, x = normalised(raw[0])
        along = m.store(m.dot(moved, x))
        found = [m.store(m.store(g - m.store(along * v)) / norm) for g, v in zip(moved, x, strict=True)]
        expected = (gradient - normal[0] * (gradient @ normal[0])) / norms[0]
        holds(found, expected, bound.error[0])


# Bounds that are attained: exactly, with the worst of numbers.


def test_a_product_attains_its_bound():
    # 3 * 11 = 33 is half-way between 32 and 34, the neighbours of 5 bits
    m = Machine(5, 5, 0)
    u = m.precision.stored
    bound = product.logits(1.0, np.array([[3.0]]), np.array([[11.0]]), 0.0, m.precision).error.item()
    off = 33 - m.store(33)
    assert (off, Fraction(u) * 32) == (1, 1)
    # the bound is of what an operation gives, 33, and of gamma; nothing further
    close(bound, off * 33 / 32 / (1 - u), 2 * 33, 4)


def test_lost_terms_attain_their_bound():
    m = Machine(5, 5, 0)
    u = m.precision.stored
    sizes = [1.0, u, u, u]
    total = 1.0
    for size in sizes[1:]:
        total = m.rounded(total + size)
    lost = sum(sizes) - total
    assert lost == 3 * u
    bound = sums.summed(np.array(sizes), u)
    by_oracle = scalar_gamma(4, FLOAT64) * sum(sizes)
    close(bound, lost * (1 + 2 * scalar_gamma(2, u)) + by_oracle, bound, 8)


# In float32, as NumPy computes it.


SINGLE = Precision.of("float32")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grid(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Numbers of few bits."""
    return generator(seed).integers(-3, 4, shape) / 4


def random32(shape: tuple[int, ...], seed: int = 0) -> Array:
    return generator(seed).standard_normal(shape).astype(np.float32).astype(float)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 14.25])
@pytest.mark.parametrize("bias", [0.0, -10.0, 0.375])
def test_logits_of_few_bits_are_exact(scale: float, bias: float) -> None:
    x, y = grid((5, 40)), grid((7, 40), 1)
    z = product.logits(scale, x, y, bias, SINGLE)
    assert not z.error.any()
    single = np.float32(scale) * x.astype(np.float32) @ y.astype(np.float32).T + np.float32(bias)
    assert np.array_equal(single, z.value)


def test_logits_that_round_once_err_by_as_much() -> None:
    x, y = random32((5, 1)), random32((7, 1), 1)
    z = product.logits(4.0, x, y, 0.0, SINGLE)
    assert np.all(z.error <= 1.001 * FLOAT32 * abs(z.value))
    assert np.any(z.error > 0)
    with_bias = product.logits(4.0, x, y, -10.0, SINGLE)
    assert np.all(with_bias.error > z.error)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_hold_in_any_order(dtype: str) -> None:
    kind = np.dtype(dtype).type
    x, y = (random32((4, 30), seed).astype(kind) for seed in (0, 1))
    z = product.logits(10.0, x.astype(float), y.astype(float), -3.0, Precision.of(dtype))
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
    bound = sums.summed(terms, FLOAT32)
    orders = [np.argsort(terms), np.argsort(-terms), *(generator(s).permutation(40) for s in range(50))]
    assert max(abs(sequential(terms[order]) - terms.sum()) for order in orders) <= bound


def test_what_a_sum_loses_counts_once() -> None:
    tail = np.full(1000, 2.0**-40)
    bound = sums.summed(np.concatenate([[1.0], tail]), FLOAT32)
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
    value, slope = softmax.entropy_of(Bounded(z, error), exact, SINGLE)
    used = 0.0
    for seed in range(100):
        moved = perturbed(z, error, seed)
        used = max(used, np.max(abs(cross_entropy(moved, targets) - value.value) / value.error))
        found = np.exp(log_softmax(moved)) - targets
        used = max(used, np.max(abs(found - slope.value) / slope.error))
    assert 0.3 < used <= 1


def test_a_slope_is_blind_to_what_all_but_a_lost_logit_have_in_common() -> None:
    z = np.array([[50.0, 0.0]])
    error = np.array([[1e-3, 0.0]])
    hot = Bounded(np.array([[1.0, 0.0]]), np.zeros((1, 2)))
    value, slope = softmax.entropy_of(Bounded(z, error), hot, SINGLE)
    # the logit of the label may be computed apart from that under the sum
    assert 2e-3 <= value.error[0] < 2.1e-3
    assert slope.error[0, 0] < 1e-5


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 4.0])
def test_sigmoids_hold_where_logits_err(size: float) -> None:
    z = 5 * generator().standard_normal((20, 20))
    error = size * generator(1).random(z.shape)
    labels = 2 * np.eye(20) - 1
    value, slope = softmax.sigmoid_entropy(Bounded(z, error), labels, SINGLE)
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
    z = product.logits(10.0, x, -x, 0.0, SINGLE)
    value, _ = softmax.sigmoid_entropy(z, np.ones((1, 1)), SINGLE)
    total = sums.total(value, Weight.of(1.0, 1), SINGLE)
    assert total < 4 * np.spacing(np.float32(10)) / 2


def test_gradients_hold_in_single_precision() -> None:
    x, y = random32((6, 5)), random32((4, 5), 1)
    slope = random32((6, 4), 2)
    parts = through_logits(Bounded(slope, np.zeros(slope.shape)), Weight(0.5, 0), 10.0, x, y, SINGLE)
    g = np.float32(0.5) * slope.astype(np.float32)
    single = np.float32(10) * (g @ y.astype(np.float32))
    exact = 10.0 * (0.5 * slope @ y)
    assert np.all(abs(single - exact) <= parts["x"].error)
    assert np.all(parts["x"].error <= 10 * FLOAT32 * parts["x"].size)
    scale = sequential((g * (x.astype(np.float32) @ y.astype(np.float32).T)).reshape(-1))
    assert abs(scale - (0.5 * slope * (x @ y.T)).sum()) <= parts["scale"].error
    assert abs(sequential(g.reshape(-1)) - 0.5 * slope.sum()) <= parts["bias"].error


@pytest.mark.parametrize("classes", [2, 3, 17, 40])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torchs_cross_entropy_of_half_precision_logits_is_within_its_bound(dtype: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    spread = 2.0 ** rng.integers(-2, 4, (400, 1))
    logits = torch.tensor(spread * rng.standard_normal((400, classes))).to(getattr(torch, dtype))
    logits[::2, 0] += 5  # a confident row: its loss is near 0, and the sum of its exponentials near 1
    logits.requires_grad_()
    labels = torch.zeros(400, dtype=torch.int64)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    losses.sum().backward()
    z, hot = bounded(logits.detach().double().numpy()), bounded(np.eye(classes)[labels.numpy()])
    precision = Precision.of(dtype)
    value, slope = softmax.entropy_of(z, hot, precision.of_half_logits)
    assert (abs(losses.detach().double().numpy() - value.value) <= value.error).all()
    assert logits.grad is not None
    assert (abs(logits.grad.double().numpy() - slope.value) <= slope.error).all()
    plain, _ = softmax.entropy_of(z, hot, precision)
    assert (abs(losses.detach().double().numpy() - plain.value) > plain.error).any()


def test_a_sum_of_too_many_half_precision_exponentials_keeps_a_finite_bound() -> None:
    # 32 additions in units of 1/16: no digit of the sum is sure
    z, hot = bounded(np.zeros((1, 32))), bounded(np.eye(32)[:1])
    value, slope = softmax.entropy_of(z, hot, COARSE.of_half_logits)
    assert np.isfinite(value.error).all()
    assert np.isfinite(slope.error).all()
