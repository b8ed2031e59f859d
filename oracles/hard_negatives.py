"""InfoNCE with negatives of its own for every query.

Karpukhin et al., Dense Passage Retrieval for Open-Domain Question Answering, 2020, equation 2,
https://arxiv.org/abs/2004.04906: a query looks for its positive among the positives and the negatives of all.
"""

import numpy as np

from .clip import cross_entropy
from .complex_step import Array


def hard_negatives_loss(query: Array, positive: Array, negatives: Array, temperature: float) -> complex:
    """Return the mean loss of [n, d] queries and positives, and [n, k, d] negatives."""
    passages = np.concatenate([positive, negatives.reshape(-1, query.shape[1])])
    logits = query @ passages.T / temperature
    loss: complex = np.sum(cross_entropy(logits, np.arange(len(query)))) / len(query)
    return loss
