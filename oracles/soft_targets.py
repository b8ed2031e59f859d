"""Cross-entropies under targets that are no labels: smoothed ones, and those of a teacher."""

from typing import Any

import numpy as np

from .clip import log_softmax
from .complex_step import Array


def smoothed_loss(logits: Array, labels: Array, label_smoothing: float) -> complex:
    """Return the mean cross-entropy of [n, c] logits, where each class has a share of the label's target.

    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7,
    https://arxiv.org/abs/1512.00567.
    """
    classes = logits.shape[1]
    targets = (1 - label_smoothing) * np.eye(classes)[labels] + label_smoothing / classes
    loss: complex = -np.sum(targets * log_softmax(logits)) / len(logits)
    return loss


def softened_loss(student: Array, teacher: Array, temperature: float) -> complex:
    """Return T^2 times the divergence of [n, c] student logits over T from the teacher's, the mean over rows.

    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2,
    https://arxiv.org/abs/1503.02531. The teacher is a constant.
    """
    target = log_softmax(teacher / temperature)
    gap = target - log_softmax(student / temperature)
    loss: complex = np.sum(np.exp(target) * gap) * temperature**2 / len(student)
    return loss


def momentum_loss(
    image: Array,
    text: Array,
    image_momentum: Array,
    text_momentum: Array,
    temperature: float,
    alpha: float,
) -> complex:
    """Return the loss of [n, d] pairs whose targets are in part a momentum model's.

    Li et al., Align before Fuse, 2021, section 3.2, https://arxiv.org/abs/2107.07651: images look among the
    momentum model's texts, and texts among its images; a target is alpha times the momentum model's softmax,
    and the rest the pair's; the mean of both directions. The momentum model is a constant.
    """
    total: Any = 0.0
    for one, momentum, keys in (
        (image, image_momentum, text_momentum),
        (text, text_momentum, image_momentum),
    ):
        soft = np.exp(log_softmax(momentum @ keys.T / temperature))
        targets = alpha * soft + (1 - alpha) * np.eye(len(one))
        total = total - np.sum(targets * log_softmax(one @ keys.T / temperature))
    loss: complex = total / (2 * len(image))
    return loss
