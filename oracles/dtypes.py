"""The floating dtypes that losses are verified in. Imports no NumPy, as the command checks names first."""

import math
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

    @property
    def largest(self) -> float:
        """The largest value."""
        return math.ldexp(1 - 2.0**-self.bits, self.huge)


DTYPES = {
    "float64": Dtype(53, -1022, 1024, "float64"),
    "float32": Dtype(24, -126, 128, "float32"),
    "bfloat16": Dtype(8, -126, 128, "float32"),
    "float16": Dtype(11, -24, 16, "float32"),
}


class Matmul(NamedTuple):
    """How matrices of some dtypes are multiplied. What is 0 is as in every other operation."""

    dtypes: tuple[str, ...] = ()
    """Whose matrices; others are multiplied as by "exact"."""
    factors: int = 0
    """Bits that the elements of both matrices keep; those that have more are rounded or cut."""
    additions: int = 0
    """An addition errs by at most 2**-additions."""
    splits: bool = False
    """Partial sums are stored in the dtype itself, and added up in it."""


TENSOR_CORE = 22
"""Of the additions of a tensor core.

It adds the products of an instruction and the sum so far in 24 bits: all are shifted to the exponent of the
largest, and what falls off is cut (Fasi, Higham, Mikaitis & Pranesh, Numerical behavior of NVIDIA tensor
cores, PeerJ Computer Science 7, 2021). So each but the largest loses at most 2**-23 of that, and so does
their sum as it is normalised: n products lose n + 1 times 2**-23, which is at most n times 2**-22. Later
ones keep more bits.
"""
MATMULS = {
    "exact": Matmul(),
    "tf32": Matmul(("float32",), factors=11, additions=TENSOR_CORE),
    "truncated": Matmul(("bfloat16", "float16"), additions=TENSOR_CORE),
    "reduced": Matmul(("bfloat16", "float16"), additions=TENSOR_CORE, splits=True),
    "half": Matmul(("float16",), additions=10, splits=True),
}
"""How matrices may be multiplied: as on a CPU; in TF32; by tensor cores that add up in float32, and with the
parts of a sum in half precision; and by those that add up in half precision.

cuBLAS rounds float32 to the nearest of TF32, as cvt.rna.tf32.f32 does. Tensor cores that are handed float32
as it is ignore the bits that TF32 does not have, as with Triton's tl.dot (triton-lang/triton, issue 4574). So
an element errs by a unit in the last of its 11 bits, 2**-10, where rounding alone errs by half of one."""
