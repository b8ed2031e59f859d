"""InfoNCE: a query among the keys of a batch.

van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, equation 4,
https://arxiv.org/abs/1807.03748, with the cosine similarity and the temperature of Chen et al., A Simple
Framework for Contrastive Learning of Visual Representations, 2020, section 2.1,
https://arxiv.org/abs/2002.05709: the cross-entropy of cos(q_i, k_j) / temperature, whose labels are the
diagonal.
"""

from typing import Any

import numpy as np

from .bounds import product, step, unit
from .clip import add_up, cross_entropy, get_ground_truth, row_weight, scaled_product
from .complex_step import Array
from .gather import gather_features


@step(unit.normalize)
def normalize(features: Array) -> Array:
    """Return x / |x| for each row of [..., d] features; no row is zero."""
    unit: Array = features / np.sqrt(np.sum(features * features, axis=-1, keepdims=True))
    return unit


@step(product.divided_product)
def divided_product(x: Array, y: Array, temperature: float) -> Array:
    """Return the products of [n, d] rows with [m, d] rows, divided by a temperature, [n, m]."""
    logits: Array = x @ y.T / temperature
    return logits


def compared(x: Array, y: Array, temperature: Any, rank: int) -> Array:
    """Return the logits of rows; a list holds every rank's inverse temperature, which is learned."""
    if isinstance(temperature, list):
        return scaled_product(x, y, temperature[rank], np.asarray(0.0))
    return divided_product(x, y, temperature)


def infonce_loss(
    queries: list[Array],
    keys: list[Array],
    temperature: float | list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
    cosine: bool = True,
) -> complex:
    """Return the loss of `rank`, given every rank's [n_r, d] queries and keys.

    Args:
        queries: of each rank.
        keys: of each rank.
        temperature: what similarities are divided by; or of each rank its inverse, which is learned.
        rank: whose loss.
        local_loss: as for CLIP, and so are the flags that follow.
        gather_with_grad: whether gathered rows carry gradient.
        convention: "exact" or "open_clip".
        cosine: the similarity is the cosine; else it is the dot product.
    """
    rows = [len(features) for features in queries]
    flags = (local_loss, gather_with_grad, convention)
    all_keys = gather_features(keys, rank, *flags)
    anchors = queries[rank] if local_loss else gather_features(queries, rank, *flags)
    if cosine:
        anchors, all_keys = normalize(anchors), normalize(all_keys)
    logits = compared(anchors, all_keys, temperature, rank)
    labels = get_ground_truth(rows, rank, local_loss)
    loss: complex = add_up([cross_entropy(logits, labels)], rows) * row_weight(rows, local_loss)
    return loss
