"""The supervised contrastive loss.

Khosla et al., Supervised Contrastive Learning, 2020, equation 2, https://arxiv.org/abs/2004.11362: each row
is an anchor whose positives are the other rows of its label; minus the mean over positives of the log of the
softmax over all other rows; the mean over anchors.
"""

import numpy as np

from .clip import log_softmax
from .complex_step import Array


def supcon_loss(features: Array, labels: Array, temperature: float) -> complex:
    """Return the loss of [n, d] features and [n] labels; each label stands on two rows or more."""
    logits = features @ features.T / temperature
    count = len(features)
    others = ~np.eye(count, dtype=bool)
    # a row is not compared with itself: its column is left out, and those behind it move up
    kept = log_softmax(logits[others].reshape(count, count - 1))
    positive = np.equal.outer(labels, labels)[others].reshape(count, count - 1)
    loss: complex = -np.sum(positive / positive.sum(1, keepdims=True) * kept) / count
    return loss
