"""How far rounding may take a correct implementation from the oracle, worked out from the case itself.

Forward error analysis after Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002:
section 2.2 (each operation errs by at most u, relative to what it gives), section 3.1 (gamma_n = n u /
(1 - n u)), section 3.3 (running error: what is rounded counts, not what it was made from) and section 4.2
(a sum in any order). Errors of logits pass through exponentials by expm1, not by their first order, so that
the bounds hold in half precision too.

An oracle is written with steps: small functions of NumPy, each marked with its rule here. `trace` runs the
oracle on traced values, for which each step follows its rule: forward it bounds what it gives, backward what
gradients its operands get. An oracle that is written with steps has its bounds too.

    precision   unit roundoffs, and several roundings in a row
    sums        sums in any order, and the weights of sums
    tape        traced values, and their gradients
    linear      sums, multiples, rows that are joined
    unit        x / |x|
    scalars     exp(t), 1 / t
    product     scale * x @ y.T + bias
    softmax     cross-entropies of labels, of soft targets, of the sigmoid
    rows        large matrices, by blocks of rows
    gathering   rows of other ranks

Operations that are exact for this case add nothing: products with zero and with powers of two, and sums of
few enough bits. The other roundings are those that some right implementation makes:

- products and sums are taken in any order and association, with fused multiply-add or without;
- exponentials and logarithms err by `ELEMENTARY`, and may be taken to base two;
- a softmax may subtract its largest logit or its log-sum-exp, and be rescaled column by column;
- means may be sums that are divided, or means of parts that are multiplied again.

Half-precision tensors are modelled as the libraries compute them: what is stored is rounded to half
precision, what is accumulated is rounded to float32. How GPUs multiply matrices otherwise, `MATMULS` says.
"""

# with it traced values are added up, joined and multiplied
from . import linear as linear
from .precision import (
    BASE_TWO,
    CAP,
    ELEMENTARY,
    FLOAT32,
    FLOAT64,
    Bounded,
    Magnitude,
    Precision,
    gamma,
)
from .sums import WEIGHING, Weight, added, inexact, spacing, summed
from .tape import Blocks, NotSteps, Traced, step, trace

__all__ = [
    "BASE_TWO",
    "CAP",
    "ELEMENTARY",
    "FLOAT32",
    "FLOAT64",
    "WEIGHING",
    "Blocks",
    "Bounded",
    "Magnitude",
    "NotSteps",
    "Precision",
    "Traced",
    "Weight",
    "added",
    "gamma",
    "inexact",
    "spacing",
    "step",
    "summed",
    "trace",
]
