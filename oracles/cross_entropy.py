"""The cross-entropy of class labels, where ignored labels add nothing.

Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990,
https://doi.org/10.1007/978-3-642-76153-9_28: minus the mean, over the rows whose label is not
`ignore_index`, of the label's log softmax.
"""

import numpy as np

from .clip import add_up, cross_entropy
from .complex_step import Array


def cross_entropy_loss(logits: Array, labels: Array, ignore_index: int) -> complex:
    """Return the mean of [n, c] logits' cross-entropies, at least one of whose [n] labels counts."""
    kept = labels != ignore_index
    tokens = int(np.count_nonzero(kept))
    loss: complex = add_up([cross_entropy(logits[kept], labels[kept])], [tokens]) / tokens
    return loss
