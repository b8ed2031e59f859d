"""The cross-entropy of hidden states, whose logits are products with the vocabulary's weight.

Minus the log softmax of each token's label, summed or averaged over the labels that are not ignored. Szegedy
et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7,
https://arxiv.org/abs/1512.00567, smooth the labels; Chowdhery et al., PaLM: Scaling Language Modeling with
Pathways, 2022, section 5, https://arxiv.org/abs/2204.02311, add the square of log-sum-exp.
"""

from typing import Any

import numpy as np

from .bounds import product, softmax, step
from .clip import add_up, cross_entropy, log_softmax
from .complex_step import Array


@step(product.linear)
def linear(x: Array, weight: Array, bias: Array) -> Array:
    """Return the products of [n, d] rows with [m, d] rows, plus a bias of [m], [n, m]."""
    logits: Array = x @ weight.T + bias
    return logits


@step(softmax.smoothed_cross_entropy)
def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float) -> Array:
    """Return -log softmax(z)_label for each row, a share of which is the mean over all classes."""
    logs = log_softmax(logits)
    picked = logs[np.arange(len(labels)), labels]
    result: Array = -(1 - smoothing) * picked - smoothing / logits.shape[1] * np.sum(logs, axis=1)
    return result


@step(softmax.z_loss)
def z_loss(logits: Array, factor: float) -> Array:
    """Return factor * log-sum-exp squared for each row."""
    top = np.max(np.real(logits), axis=1, keepdims=True)
    log_sum = np.log(np.sum(np.exp(logits - top), axis=1)) + top[:, 0]
    result: Array = factor * log_sum * log_sum
    return result


def token_losses(logits: Array, labels: Array, smoothing: float, factor: float) -> list[Any]:
    """Return what each of [n] tokens costs, in parts to add up."""
    entropy = (
        smoothed_cross_entropy(logits, labels, smoothing) if smoothing else cross_entropy(logits, labels)
    )
    return [entropy, z_loss(logits, factor)] if factor else [entropy]


def linear_cross_entropy_loss(
    hidden: Array,
    weight: Array,
    bias: Array,
    target: Array,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss_factor: float = 0.0,
) -> complex:
    """Return the loss of [n, d] hidden states, 0 where no label counts.

    Args:
        hidden: [n, d].
        weight: [v, d], of the vocabulary.
        bias: [v], or 0.
        target: [n] token ids; `ignore_index` is no token.
        ignore_index: the label that counts nothing.
        reduction: "mean" over the labels that count, or "sum".
        label_smoothing: the share of a label's probability that all of the vocabulary have alike.
        z_loss_factor: the factor of the squared log-sum-exp.
    """
    kept = target != ignore_index
    tokens = int(np.count_nonzero(kept))
    if not tokens:
        return 0.0
    logits = linear(hidden[kept], weight, bias)
    loss: complex = add_up(token_losses(logits, target[kept], label_smoothing, z_loss_factor), [tokens])
    return loss / tokens if reduction == "mean" else loss
