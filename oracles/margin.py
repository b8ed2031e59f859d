"""Losses of margins: triplets, and hinges over all pairs of a batch."""

import numpy as np

from .complex_step import Array


def _hinge(z: Array) -> Array:
    """Return max(0, z)."""
    result: Array = np.where(np.real(z) > 0, z, 0)
    return result


def triplet_loss(anchor: Array, positive: Array, negative: Array, margin: float) -> complex:
    """Return the mean over [n, d] triplets of max(0, |a - p|^2 - |a - n|^2 + margin).

    Schroff et al., FaceNet, 2015, equation 2, https://arxiv.org/abs/1503.03832.
    """
    near = np.sum((anchor - positive) ** 2, axis=1)
    far = np.sum((anchor - negative) ** 2, axis=1)
    loss: complex = np.sum(_hinge(near - far + margin)) / len(anchor)
    return loss


def max_margin_loss(image: Array, text: Array, margin: float) -> complex:
    """Return the mean over [n, d] pairs of the sum over others of max(0, margin - s(i, i) + s(i, j)).

    The sum is over both directions: an image's other texts, and a text's other images. Kiros et al., Unifying
    Visual-Semantic Embeddings with Multimodal Neural Language Models, 2014, https://arxiv.org/abs/1411.2539.
    """
    scores = image @ text.T
    own = np.diagonal(scores)
    others = ~np.eye(len(image), dtype=bool)
    of_images = _hinge(margin - own[:, None] + scores)[others]
    of_texts = _hinge(margin - own[None, :] + scores)[others]
    loss: complex = (np.sum(of_images) + np.sum(of_texts)) / len(image)
    return loss
