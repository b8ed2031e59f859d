"""Logits: products of rows with rows, times a scale, plus a bias."""

import math
from typing import Any, NamedTuple

import numpy as np

from ..complex_step import Array
from .precision import Bounded, Magnitude, Precision, gamma
from .rows import by_rows
from .scalars import inverse
from .sums import inexact, narrower, spacing, summed
from .tape import NotSteps, Part, Traced, Traits, bounded, give, tape_of

TEMPERATURE = 3
"""Roundings of a temperature that is no tensor: as it is made one, its inverse, and the product with that."""
SCALE_STORED = 2
"""What half precision stores of a product for a scale that is inexact: the scale, and one of its products."""
ROWS_STORED = 5
"""What half precision stores of a row's gradient: the scale, the gradient of the logits times the scale, the
sum over logits, that times the scale, and the result."""
SUM_STORED = 3
"""What half precision stores of a sum over all logits: sums of rows, their sum, and the result."""
PRODUCTS_STORED = 6
"""And where its terms are products: both products of each, and one more of the scale."""


class Further(NamedTuple):
    """How far what logits are made of errs by itself, relative to it."""

    x: float = 0.0
    """An element of a row of x."""
    y: float = 0.0
    scale: float = 0.0
    bias: float = 0.0

    @property
    def products(self) -> float:
        """A product of an element of one row and one of another."""
        return (1 + self.x) * (1 + self.y) - 1

    @property
    def logits(self) -> float:
        """A product of two such elements and the scale."""
        return (1 + self.products) * (1 + self.scale) - 1


NOTHING = Further()


def logits(
    scale: float, x: Array, y: Array, bias: float | Array, p: Precision, further: Further = NOTHING
) -> Bounded:
    """Bound scale * x @ y.T + bias, [n, d] and [m, d] to [n, m]; the bias is one number, or [m].

    Of d terms p[k], whose magnitudes add up to P, each is computed as p[k] (1 + a) (1 + b) (1 + c), with a, b
    and c of its own: |a| <= gamma_d for the product and all but one addition, |b| for the scale, and |c| as
    `Precision.coarser` bounds it for matrices that are rounded first, and sums that are taken in parts. So
    the sum errs by at most ((1 + |a|) (1 + |b|) (1 + |c|) - 1) P.

    Rows and a scale that err by themselves, as `further` says, give each term one more such factor (Higham
    2002, lemma 3.1). Nothing is exact then, and an element of a normalised row may underflow: it meets one
    of at most 1.
    """
    found: Bounded = by_rows(lambda rows: _logits_of_rows(scale, rows, y, bias, p, further), len(y), x)
    return found


def _logits_of_rows(
    scale: float, x: Array, y: Array, bias: float | Array, p: Precision, further: Further
) -> Bounded:
    plain = scale * x @ y.T
    products = abs(scale) * abs(x) @ abs(y).T
    # of what are all products multiples? then none of them rounds, nor does a sum that is short enough
    of_scale, of_x, of_y = spacing(np.asarray(scale)), spacing(x).min(1)[:, None], spacing(y).min(1)
    unit = of_scale * of_x * of_y
    least = np.minimum(unit, np.minimum(of_scale * of_x, of_x * of_y))
    rounds = (products * p.stored > unit) | (least < p.tiny)
    if p.factors:
        # the scale is multiplied with either matrix first, or with neither
        cut_x, cut_y = (
            np.any(narrower(matrix, p.kept) | narrower(scale * matrix, p.kept), axis=1, keepdims=True)
            for matrix in (x, y)
        )
        rounds |= cut_x | cut_y.T
    rounds = rounds | (further.logits > 0)
    # a rounding for each product that is not zero, and all but one addition; the scale is multiplied with
    # features or products, and cast where it is wider
    terms = (x != 0).astype(float) @ (y != 0).astype(float).T
    scaling = gamma(inexact(scale), p.accumulated) + gamma(SCALE_STORED * inexact(scale), p.narrowed)
    relative = (1 + gamma(terms, p.multiplied)) * (1 + scaling) * (1 + p.coarser(x.shape[1])) - 1
    relative = relative + (1 + relative) * further.logits
    error = np.where(rounds, relative * products, 0)
    error += np.where(rounds, p.narrowed * (abs(plain) + error), 0)
    value = plain + bias
    if np.any(bias):
        bias = np.asarray(bias)
        rounds |= (products + abs(bias)) * p.stored > np.minimum(unit, spacing(bias))
        rounds |= further.bias > 0
        error += further.bias * abs(bias)
        error += np.where(rounds, p.stored * (abs(value) + error) + p.narrowed * abs(bias), 0)
    # an underflow of an element of x, scaled or not, meets each element of y; those of products meet the
    # scale; one of the sum, and one as it is stored
    lost = p.tiny * (2 + abs(y).sum(1)[None, :] + abs(scale) * x.shape[1])
    if p.factors:
        lost = lost + p.tiny * abs(scale) * (abs(x).sum(1)[:, None] + abs(y).sum(1))
    if further.x or further.y:
        lost = lost + p.tiny * 2 * x.shape[1] * abs(scale)
    return Bounded(value, error + np.where(rounds, lost, 0))


def through_logits(
    gradient: Magnitude, scale: float, x: Array, y: Array, p: Precision, further: Further = NOTHING
) -> dict[str, Magnitude]:
    """Bound the gradients of x, y, scale and bias, given that of the logits.

    Those of x and y are products of matrices, and that of the scale is a sum over one: they err as `logits`
    does, the gradient of the logits being one of the matrices that are rounded first. What rows and scale err
    by themselves counts as in `logits`, one row less for the gradient of a row, the scale less for its own.
    """
    w = p.accumulated
    e, g = gradient
    bounds = {}
    additions = {}
    sides = (("x", y, e, g, further.y), ("y", x, e.T, g.T, further.x))
    for name, features, error, size, own in sides:
        scaled = (1 + own) * (1 + further.scale) - 1
        products = abs(scale) * size @ abs(features)
        terms = (size != 0).astype(float) @ (features != 0).astype(float)
        additions[name] = np.maximum(terms - 1, 0) + (inexact(features).any(0) | (own > 0))
        rounded = gamma(additions[name] + inexact(scale), p.multiplied) + gamma(ROWS_STORED, p.narrowed)
        coarser = p.coarser(len(features))
        rounded = rounded + (1 + rounded) * coarser
        rounded = (rounded + (1 + rounded) * scaled) * products
        # an underflow of each gradient meets a feature; one of the sum, and one as it is stored, the scale
        lost = p.tiny * (2 + abs(features).sum(0))[None, :] * max(abs(scale), 1)
        if p.factors or own:
            lost = lost + p.tiny * abs(scale) * size.sum(1)[:, None]
        erring = abs(scale) * error @ abs(features)
        bounds[name] = Magnitude(erring * (1 + scaled) + rounded + lost, products)
    products = (abs(x) * (g @ abs(y))).sum()
    error = (abs(x) * (e @ abs(y))).sum() + p.tiny * (2 + abs(x).sum() + abs(y).sum())
    # features are multiplied with features first, or either with the gradient
    first = [
        (x.shape[1], x.shape[1] + 1, g * (abs(x) @ abs(y).T)),
        (len(y), additions["x"].max(initial=0) + 1, abs(x) * (g @ abs(y))),
        (len(x), additions["y"].max(initial=0) + 1, abs(y) * (g.T @ abs(x))),
    ]
    error += max(
        (gamma(count, p.multiplied) + p.coarser(terms)) * products + summed(sizes.ravel(), w)
        for terms, count, sizes in first
    )
    error += gamma(PRODUCTS_STORED, p.narrowed) * products
    error = error * (1 + further.products) + further.products * products
    bounds["scale"] = Magnitude(np.asarray(error), np.asarray(products))
    error = e.sum() + summed(g.ravel(), w) + gamma(SUM_STORED, p.narrowed) * g.sum()
    bounds["bias"] = Magnitude(np.asarray(error), np.asarray(g.sum()))
    return bounds


def of_columns(gradient: Magnitude, p: Precision) -> Magnitude:
    """Bound the gradient of a bias of each column: a sum over rows, as that of one bias is over all."""
    e, g = gradient.error.T, gradient.size.T
    size = g.sum(1)
    error = e.sum(1) + summed(g, p.accumulated) + gamma(SUM_STORED, p.narrowed) * size
    return Magnitude(error, size)


def scaled_product(x: Any, y: Any, scale: Any, bias: Any) -> Traced:
    """Trace scale * x @ y.T + bias."""
    tape = tape_of(x, y, scale, bias)
    return _logits(x, y, scale, bias, 0.0 if isinstance(scale, Traced) else gamma(1, tape.p.accumulated))


def linear(x: Any, weight: Any, bias: Any) -> Traced:
    """Trace x @ weight.T + bias, the bias being [m]."""
    return _logits(x, weight, 1.0, bias, 0.0, by_column=np.ndim(bias) == 1)


def divided_product(x: Any, y: Any, temperature: Any) -> Traced:
    """Trace x @ y.T / temperature: an implementation may multiply with its inverse."""
    if isinstance(temperature, Traced):
        return _logits(x, y, inverse(temperature), 0.0, 0.0)
    return _logits(x, y, 1 / temperature, 0.0, gamma(TEMPERATURE, tape_of(x, y).p.accumulated))


def _logits(x: Any, y: Any, scale: Any, bias: Any, of_scale: float, by_column: bool = False) -> Traced:
    tape = tape_of(x, y, scale, bias)
    p, blocks = tape.p, tape.blocks
    operands = [bounded(one) for one in (x, y, scale, bias)]
    of_bias = 0.0 if isinstance(bias, Traced) or not np.any(inexact(bias)) else p.stored
    further = Further(*(tape.once(_relative, one) for one in operands))
    further = further._replace(scale=further.scale + of_scale, bias=further.bias + of_bias)
    rows, columns = operands[0].value, operands[1].value
    factor = float(np.reshape(operands[2].value, ()))
    more = operands[3].value if by_column else float(np.reshape(operands[3].value, ()))
    chunks = math.ceil(len(rows) / (blocks.rows or max(len(rows), 1)))

    def back(part: Part) -> None:
        part = part.counted(p.accumulated)
        gradient = Magnitude(*(np.broadcast_to(one, z.value.shape) for one in part[:2]))
        found = through_logits(gradient, factor, rows, columns, p, further)
        if by_column:
            found["bias"] = of_columns(gradient, p)
        of_all = chunks * blocks.columns
        each = (("x", x, blocks.columns), ("y", y, chunks), ("scale", scale, of_all), ("bias", bias, of_all))
        for name, operand, parts in each:
            give(operand, Part(*found[name], float(parts), settled=False))

    z = tape.once(logits, factor, rows, columns, more, p, further)
    return tape.node(z, back, Traits(parts=chunks * blocks.columns))


def _relative(operand: Bounded) -> float:
    """Return how far an operand's elements err, relative to them."""
    value, error = operand
    erring = np.asarray(error) > 0
    if not erring.any():
        return 0.0
    with np.errstate(divide="ignore"):
        relative = float(np.max(np.asarray(error)[erring] / abs(np.asarray(value)[erring])))
    if relative == math.inf:
        raise NotSteps("a product of rows that err where they are 0")
    return relative
