"""SimCLR's loss without its positive among the negatives, and without the bias of the negatives."""

import numpy as np

from .complex_step import Array


def _similarities(first: Array, second: Array, temperature: float) -> tuple[Array, Array]:
    """Return each view's logit with its partner, [2n], and those with all views of others, [2n, 2n - 2].

    Raises:
        ValueError: there are no others.
    """
    views, count = np.concatenate([first, second]), len(first)
    if count < 2:
        raise ValueError(f"expected two rows or more, got {count}")
    logits = views @ views.T / temperature
    own = np.arange(2 * count)
    partner = (own + count) % (2 * count)
    others = (own != own[:, None]) & (own != partner[:, None])
    return logits[own, partner], logits[others].reshape(2 * count, 2 * count - 2)


def _log_sum_exp(z: Array) -> Array:
    """Return log sum_k exp(z_k) for each row."""
    top = np.max(np.real(z), axis=1, keepdims=True)
    result: Array = np.log(np.sum(np.exp(z - top), axis=1)) + top[:, 0]
    return result


def decoupled_loss(first: Array, second: Array, temperature: float) -> complex:
    """Return the mean over both views of [n, d] rows, 2 or more, of log sum exp(negatives) - positive.

    Yeh et al., Decoupled Contrastive Learning, 2022, equation 6, https://arxiv.org/abs/2110.06848.
    """
    positive, negative = _similarities(first, second, temperature)
    loss: complex = np.sum(_log_sum_exp(negative) - positive) / len(positive)
    return loss


def debiased_loss(first: Array, second: Array, temperature: float, tau_plus: float) -> complex:
    """Return the mean over both views of [n, d] unit rows, 2 or more, of -log(p / (p + m g)), m = 2n - 2.

    Chuang et al., Debiased Contrastive Learning, 2020, equations 7 and 8, https://arxiv.org/abs/2007.00224:
    p is exp(positive), and g the larger of (mean of exp(negatives) - tau_plus p) / (1 - tau_plus) and
    exp(-1 / temperature).
    """
    positive, negative = _similarities(first, second, temperature)
    p, count = np.exp(positive), negative.shape[1]
    estimate = (np.sum(np.exp(negative), axis=1) / count - tau_plus * p) / (1 - tau_plus)
    least = np.exp(-1 / temperature)
    g = np.where(np.real(estimate) > least, estimate, least)
    loss: complex = np.sum(np.log(p + count * g) - positive) / len(positive)
    return loss
