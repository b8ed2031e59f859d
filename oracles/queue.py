"""InfoNCE against a queue.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, equation 1,
https://arxiv.org/abs/1911.05722: a query looks for its key among that and the keys of earlier batches.
"""

import numpy as np

from .clip import cross_entropy
from .complex_step import Array


def queue_loss(query: Array, key: Array, queue: Array, temperature: float) -> complex:
    """Return the mean loss of [n, d] queries and keys, and a queue of [m, d] keys."""
    own = np.sum(query * key, axis=1, keepdims=True)
    logits = np.concatenate([own, query @ queue.T], axis=1) / temperature
    loss: complex = np.sum(cross_entropy(logits, np.zeros(len(query), dtype=int))) / len(query)
    return loss
