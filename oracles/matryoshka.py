"""InfoNCE of nested prefixes.

Kusupati et al., Matryoshka Representation Learning, 2022, equation 1, https://arxiv.org/abs/2205.13147:
the sum of the losses of the first few dimensions, for several numbers of them, each normalised anew.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .clip import cross_entropy
from .complex_step import Array
from .infonce import normalize


def matryoshka_loss(query: Array, key: Array, temperature: float, dims: Sequence[int]) -> complex:
    """Return the loss of [n, d] queries and keys, the sum over their prefixes of `dims` elements."""
    total: Any = 0.0
    for dim in dims:
        logits = normalize(query[:, :dim]) @ normalize(key[:, :dim]).T / temperature
        total = total + np.sum(cross_entropy(logits, np.arange(len(query)))) / len(query)
    loss: complex = total
    return loss
