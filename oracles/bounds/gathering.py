"""Rows that several ranks use: how often each carries gradient."""

from .tape import Part, Traced


def carry(value: Traced, times: float) -> Traced:
    """Trace rows whose gradient counts `times`.

    A part that counts several times is multiplied, or added so many times.
    """

    def back(part: Part) -> None:
        if times:
            error, size, parts = (
                factor * one for factor, one in zip((times, times, max(1.0, times)), part[:3], strict=True)
            )
            value.give(part._replace(error=error, size=size, parts=parts, settled=False))

    return Traced(value.tape, value.bounded, back, value.traits)
