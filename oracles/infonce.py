"""InfoNCE: a query among the keys of a batch.

van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, equation 4,
https://arxiv.org/abs/1807.03748, with the cosine similarity and the temperature of Chen et al., A Simple
Framework for Contrastive Learning of Visual Representations, 2020, section 2.1,
https://arxiv.org/abs/2002.05709: the cross-entropy of cos(q_i, k_j) / temperature, whose labels are the
diagonal.
"""

import numpy as np

from .clip import cross_entropy, get_ground_truth, row_weight
from .complex_step import Array
from .gather import gather_features


def normalize(features: Array) -> Array:
    """Return x / |x| for each row of [n, d] features, none of which is zero."""
    unit: Array = features / np.sqrt(np.sum(features * features, axis=1, keepdims=True))
    return unit


def infonce_loss(
    queries: list[Array],
    keys: list[Array],
    temperature: float,
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
) -> complex:
    """Return the loss of `rank`, given every rank's [n_r, d] queries and keys; flags as for CLIP."""
    rows = [len(features) for features in queries]
    flags = (local_loss, gather_with_grad, convention)
    all_keys = normalize(gather_features(keys, rank, *flags))
    anchors = queries[rank] if local_loss else gather_features(queries, rank, *flags)
    logits = normalize(anchors) @ all_keys.T / temperature
    labels = get_ground_truth(rows, rank, local_loss)
    loss: complex = np.sum(cross_entropy(logits, labels)) * row_weight(rows, local_loss)
    return loss
