"""InfoNCE against a queue, and against one that the loss holds itself.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, equation 1,
https://arxiv.org/abs/1911.05722: a query looks for its key among that and the keys of earlier batches.
"""

from typing import Any

import numpy as np

from .clip import cross_entropy
from .complex_step import Array


def queue_loss(query: Array, key: Array, queue: Array, temperature: float) -> complex:
    """Return the mean loss of [n, d] queries and keys, and a queue of [m, d] keys."""
    own = np.sum(query * key, axis=1, keepdims=True)
    logits = np.concatenate([own, query @ queue.T], axis=1) / temperature
    loss: complex = np.sum(cross_entropy(logits, np.zeros(len(query), dtype=int))) / len(query)
    return loss


def held_queue_loss(query: Array, key: Array, queue: Array, temperature: float) -> Any:
    """Return the sum of the losses of several calls, each of which puts its keys into the queue afterwards.

    Algorithm 1 of the same: keys are constants, and the newest take the place of the oldest.

    Args:
        query: [n, calls, d].
        key: [n, calls, d].
        queue: before the first call, [n, batches, d], the oldest batch first.
        temperature: what products are divided by.
    """
    total: Any = 0.0
    batches = [queue[:, place] for place in range(queue.shape[1])]
    for call in range(query.shape[1]):
        total = total + queue_loss(query[:, call], key[:, call], np.concatenate(batches), temperature)
        batches = [*batches[1:], key[:, call]]
    return total
