"""Rows that several ranks use: how often each carries gradient."""

import numpy as np

from .tape import Part, Traced, nowhere


def carry(value: Traced, times: float) -> Traced:
    """Trace rows whose gradient counts `times`.

    A part that counts several times is multiplied, or added so many times.
    """

    def scaled(part: Part) -> Part:
        error, size, parts = (one * times for one in part[:3])
        return part._replace(error=error, size=size, parts=np.maximum(part.parts, parts), settled=False)

    give = (lambda part: value.give(scaled(part))) if times else nowhere
    return Traced(value.tape, value.bounded, give, value.traits)
