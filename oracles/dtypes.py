"""The floating dtypes that losses are verified in. Imports no NumPy, as the command checks names first."""

from typing import NamedTuple


class Dtype(NamedTuple):
    """How a dtype rounds."""

    bits: int
    """Of a significand, the leading one included: the unit roundoff is 2**-bits."""
    tiny: int
    """An underflow loses at most 2**tiny."""
    huge: int
    """Every value is below 2**huge."""
    accumulated: str
    """The dtype in which the libraries add up."""


DTYPES = {
    "float64": Dtype(53, -1022, 1024, "float64"),
    "float32": Dtype(24, -126, 128, "float32"),
    "bfloat16": Dtype(8, -126, 128, "float32"),
    "float16": Dtype(11, -24, 16, "float32"),
}
