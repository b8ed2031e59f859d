"""InfoNCE without false negatives.

Huynh et al., Boosting Contrastive Self-Supervised Learning with False Negative Cancellation, 2022,
https://arxiv.org/abs/2011.11765: other keys of a query's identity are no negatives of it.
"""

import numpy as np

from .clip import log_softmax
from .complex_step import Array

EXCLUDED = -1e30
"""A logit whose exponential is 0 beside any other."""


def masked_loss(query: Array, key: Array, ids: Array, temperature: float) -> complex:
    """Return the mean loss of [n, d] queries and keys whose pairs have [n] identities."""
    false = np.equal.outer(ids, ids) & ~np.eye(len(ids), dtype=bool)
    logits = np.where(false, EXCLUDED, query @ key.T / temperature)
    loss: complex = -np.sum(np.diagonal(log_softmax(logits))) / len(query)
    return loss
