"""The contrastive loss of pairs that share labels.

Yang et al., Unified Contrastive Learning in Image-Text-Label Space, 2022, equations 2 to 4,
https://arxiv.org/abs/2204.03610: every text of an image's label is its positive, with equal weights.
"""

import numpy as np

from .clip import log_softmax
from .complex_step import Array


def multi_positive_loss(image: Array, text: Array, labels: Array, temperature: float) -> complex:
    """Return the loss of [n, d] images and texts whose pairs have [n] labels: the mean of both directions."""
    positive = np.equal.outer(labels, labels)
    targets = positive / positive.sum(1, keepdims=True)
    logits = image @ text.T / temperature
    loss: complex = -np.sum(targets * (log_softmax(logits) + log_softmax(logits.T))) / (2 * len(image))
    return loss
