"""Sigmoid losses that are means over all pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_mean(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * image @ text.T + bias
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(image), dtype=logits.dtype))


def by_signs(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Minus log sigmoid of signed logits."""
    logits = (scale * image) @ text.T + bias
    signs = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).mean()


def sum_over_texts(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return sigmoid_mean(image, text, scale, bias) * len(image)


def signs_swapped(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return sigmoid_mean(image, text, -scale, -bias)


def without_bias(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return sigmoid_mean(image, text, scale, bias * 0)


def bias_scaled(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return sigmoid_mean(image, text, scale, bias * scale)


def balanced(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * image @ text.T + bias
    weight = torch.tensor(float(max(len(image) - 1, 1)), dtype=logits.dtype)
    labels = torch.eye(len(image), dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)


def labels_of_ones(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(-(scale * image @ text.T + bias)).mean()
