"""Rows of length 1: x / |x|, once or twice."""

import numpy as np

from ..complex_step import Array
from .precision import Bounded, Magnitude, Precision, gamma
from .tape import NotSteps, Part, Traced

NORM_STORED = 3
"""How often an element of x / |x| is stored: the sum of squares, its root, and the quotient."""
QUOTIENT = 2
"""Roundings of an element of x / |x| besides those of the sum: the root and the quotient."""
OWN_STORED = 2
"""How often an element of a row that is normalised twice errs by itself alone: its quotient was stored, and
is once as it is and once in the second norm."""
NORMS = 3
"""How often the norm divides in the gradient: twice in the projection, and once more."""
PROJECTING = 5
"""Roundings of that besides its norms and its sum: of both x / |x|, their product with the sum, the
difference, and the quotient."""
PROJECTING_STORED = 14
"""What is stored of that: three norms, both x / |x|, the product with the gradient, the sum, its product, the
difference, the quotient; and four more where the quotient's gradient and the norm's are taken apart and
added."""
SECOND_STORED = 4
"""How often rows of length 1 that were stored err in the gradient by themselves: two, each in two
products."""
LOST = 4
"""Underflows of an element's gradient: of both x / |x|, the product, and the quotient."""


def normalization(width: int, p: Precision) -> float:
    """Return the relative error of an element of x / |x|.

    The sum of squares is of factors (1 + d), `width` for each term: one of the square, the rest of additions.
    Its root has half as many, and `QUOTIENT` more follow (Higham 2002, lemma 3.1); `NORM_STORED` are stored.
    """
    return float(gamma(width / 2 + QUOTIENT, p.accumulated) + gamma(NORM_STORED, p.stored))


def renormalization(width: int, p: Precision) -> float:
    """Return the same where x / |x| was stored, and may have been normalised again.

    What was stored is c x[k] (1 + a[k]) / |x|, |a[k]| at most u for the quotient, with a c that all elements
    share: the error of the norm. A second normalisation divides by c |x (1 + a)| / |x|, so c cancels, and
    what is left of the first are the a[k], once as they are and once in the norm. Without a second one, what
    is stored errs as `normalization` says.
    """
    first = float(gamma(OWN_STORED, p.stored))
    return first + (1 + first) * normalization(width, p)


def through_normalize(
    gradient: Magnitude, features: Array, p: Precision, parts: Array | float = 1
) -> Magnitude:
    """Bound the gradient of [..., d] features through x / |x|: (g - x (x.g) / |x|^2) / |x|.

    It is linear in g: what g is summed from may be taken through it in `parts`, which are then summed.

    The second term is a product of the sum x.g, of d factors (1 + e) each, `NORMS` norms of d / 2 + 1, and
    `PROJECTING` others; the first term has fewer. So both err by gamma_(5 d / 2 + 8) relative to their
    magnitudes (Higham 2002, lemma 3.1 and section 3.1), and in half precision by `PROJECTING_STORED` more.
    """
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    unit = abs(features) / norms
    width = features.shape[-1]

    def projected(part: Array) -> Array:
        moved: Array = (part + unit * (unit * part).sum(-1, keepdims=True)) / norms
        return moved

    size = projected(gradient.size)
    rounded = (
        gamma((NORMS / 2 + 1) * width + NORMS + PROJECTING, p.accumulated)
        + gamma(PROJECTING_STORED, p.stored)
    ) * size
    lost = p.tiny * (LOST + 2 * width) * (1 + 1 / norms) ** 2 * np.maximum(parts, 1)
    return Magnitude(projected(gradient.error) + rounded + lost, size)


def through_renormalize(
    gradient: Magnitude, features: Array, p: Precision, parts: Array | float = 1
) -> Magnitude:
    """Bound the gradient of [..., d] features through one or two normalisations.

    The second one's rows err by two roundings, and are twice in its gradient; their norm errs as
    `normalization` says. Where it is missing, the first is given no more than what it would be.
    """
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return through_normalize(again(through_normalize(gradient, unit, p, parts), p), features, p, parts)


def again(gradient: Magnitude, p: Precision) -> Magnitude:
    """Bound the gradient through a normalisation of rows of length 1, given that of rows which do not err."""
    further = normalization(np.shape(gradient.error)[-1], p) + gamma(SECOND_STORED, p.stored)
    error, size = gradient
    return Magnitude(error + further * (error + size), size)


def normalize(features: Traced) -> Traced:
    """Trace x / |x| for each row."""
    tape, p = features.tape, features.tape.p
    value, error = features.bounded
    second = features.traits.unit
    if not second and np.any(error):
        raise NotSteps("normalize of rows that err")
    unit = tape.once(_unit, value, second, p)

    def back(part: Part) -> None:
        part = part.counted(p.accumulated)
        gradient = Magnitude(*(np.broadcast_to(one, value.shape) for one in part[:2]))
        # each element's gradient is made of those of all elements of its row
        parts = np.broadcast_to(part.parts, value.shape).max(-1, keepdims=True)
        gradient = through_normalize(gradient, value, p, parts)
        if second:
            gradient = again(gradient, p)
        features.give(Part(*gradient, parts))

    return tape.node(unit, back, features.traits._replace(given=False, unit=True))


def _unit(value: Array, second: bool, p: Precision) -> Bounded:
    unit = value / np.sqrt(np.sum(value * value, axis=-1, keepdims=True))
    relative = (renormalization if second else normalization)(value.shape[-1], p)
    return Bounded(unit, relative * abs(unit))
