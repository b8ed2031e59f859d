"""The sigmoid loss of SigLIP.

Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, section 3.2, equation 2,
https://arxiv.org/abs/2303.15343: minus the mean over images of the sum over texts of
log sigmoid(y_ij (s x_i.t_j + b)), where y is 1 for partners and -1 elsewhere.
"""

import numpy as np

from .bounds import softmax, step
from .clip import add_up, scaled_product
from .complex_step import Array


def softplus(z: Array) -> Array:
    """Return log(1 + exp(z)) = -log sigmoid(-z)."""
    if not np.iscomplexobj(z):
        real: Array = np.logaddexp(0, z)
        return real
    # split by sign so that the exponential never overflows
    tail = np.exp(np.where(np.real(z) > 0, -z, z))
    result: Array = np.where(np.real(z) > 0, z, 0) + log1p(tail)
    return result


def log1p(z: Array) -> Array:
    """Return log(1 + z), exact for small z: NumPy's is not where z is complex."""
    x, y = np.real(z), np.imag(z)
    result: Array = np.log1p(x * (2 + x) + y * y) / 2 + 1j * np.arctan2(y, 1 + x)
    return result


def get_ground_truth(rows: list[int], rank: int) -> Array:
    """Return 1 for partners and -1 elsewhere, [rows of `rank`, all rows]."""
    labels = -np.ones((rows[rank], sum(rows)))
    labels[np.arange(rows[rank]), sum(rows[:rank]) + np.arange(rows[rank])] = 1
    return labels


@step(softmax.sigmoid_cross_entropy)
def sigmoid_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log sigmoid(y z) for each logit z and its label y, 1 or -1."""
    return softplus(-labels * logits)


def siglip_loss(
    image_features: list[Array],
    text_features: list[Array],
    logit_scale: list[Array],
    logit_bias: list[Array],
    rank: int,
) -> complex:
    """Return the loss of `rank`: its images against every rank's texts.

    Args:
        image_features: [n_r, d] of each rank r.
        text_features: [n_r, d] of each rank.
        logit_scale: of each rank.
        logit_bias: of each rank; 0 where there is none.
        rank: whose loss.
    """
    rows = [len(features) for features in image_features]
    all_text = np.concatenate(text_features)
    logits = scaled_product(image_features[rank], all_text, logit_scale[rank], logit_bias[rank])
    labels = get_ground_truth(rows, rank)
    loss: complex = add_up([sigmoid_cross_entropy(logits, labels)], rows) * len(rows) / sum(rows)
    return loss


def sigmoid_mean_loss(image: Array, text: Array, scale: Array, bias: Array) -> complex:
    """Return the loss of [n, d] pairs as a mean over all n^2 of them, where SigLIP sums over texts."""
    logits = scaled_product(image, text, scale, bias)
    loss: complex = np.sum(softplus(-get_ground_truth([len(image)], 0) * logits)) / logits.size
    return loss
