"""The symmetric InfoNCE loss of CLIP.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, figure 3,
https://arxiv.org/abs/2103.00020: the mean of the cross-entropies of image-to-text and text-to-image
logits, whose labels are the diagonal.
"""

import numpy as np

from .bounds import linear, product, softmax, step
from .complex_step import Array
from .gather import gather_features


def log_softmax(logits: Array) -> Array:
    """Return log of exp(z_j) / sum_k exp(z_k) along the last axis."""
    # shifted by the largest so that no exponential overflows; the shift cancels, so it may be constant
    shifted = logits - np.max(np.real(logits), axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result


@step(softmax.cross_entropy)
def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log softmax(z)_label for each row of [n, c] logits."""
    picked: Array = log_softmax(logits)[np.arange(len(labels)), labels]
    return -picked


@step(product.scaled_product)
def scaled_product(x: Array, y: Array, scale: Array, bias: Array) -> Array:
    """Return scale times the products of [n, d] rows with [m, d] rows, plus bias, [n, m]."""
    logits: Array = scale * x @ y.T + bias
    return logits


@step(linear.add_up)
def add_up(values: list[Array], counts: list[int]) -> complex:
    """Return the sum of all elements of all values.

    The number of rows, or tokens, of each rank is what its weight is made of, and what bounds ask for.
    """
    parts = [np.sum(one) for one in values]
    result: complex = sum(parts[1:], start=parts[0])
    return result


def get_ground_truth(rows: list[int], rank: int, local_loss: bool) -> Array:
    """Return the column of each row's partner; `rows` are how many each rank holds."""
    if not local_loss:
        return np.arange(sum(rows))
    return sum(rows[:rank]) + np.arange(rows[rank])


def get_logits(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: Array,
    logit_bias: Array,
    rank: int,
    local_loss: bool,
    gather_with_grad: bool,
    convention: str,
) -> tuple[Array, Array]:
    """Return logits per image and per text on `rank`: its rows, or all, against all."""
    all_image = gather_features(image_features, rank, local_loss, gather_with_grad, convention)
    all_text = gather_features(text_features, rank, local_loss, gather_with_grad, convention)
    image = image_features[rank] if local_loss else all_image
    text = text_features[rank] if local_loss else all_text
    return (
        scaled_product(image, all_text, logit_scale, logit_bias),
        scaled_product(text, all_image, logit_scale, logit_bias),
    )


def row_weight(rows: list[int], local_loss: bool) -> float:
    """Return the weight of one row, W/N or 1/N: the mean over ranks is the mean over all rows."""
    return (len(rows) if local_loss else 1) / sum(rows)


def clip_loss(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: list[Array],
    logit_bias: list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
) -> complex:
    """Return the loss of `rank`, given every rank's [n_r, d] features and its own scale and bias."""
    rows = [len(features) for features in image_features]
    per_image, per_text = get_logits(
        image_features, text_features, logit_scale[rank], logit_bias[rank],
        rank, local_loss, gather_with_grad, convention,
    )  # fmt: skip
    labels = get_ground_truth(rows, rank, local_loss)
    losses = [cross_entropy(per_image, labels), cross_entropy(per_text, labels)]
    loss: complex = add_up(losses, rows) * row_weight(rows, local_loss) / 2
    return loss
