"""Anchors against a gallery: features in, a sum of losses out. Here with all logits in memory at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import Scalar


def sum_infonce(
    anchors: Tensor, gallery: Tensor, logit_scale: Scalar, logit_bias: Scalar | None, start: int
) -> Tensor:
    """Sum over [n, d] anchors the cross-entropy of each one's logits, its label being `start` plus its row.

    Args:
        anchors: [n, d], floating.
        gallery: [m, d]; m is at least start + n.
        logit_scale: a number or a tensor of shape [] or [1].
        logit_bias: likewise; None adds nothing.
        start: the column of the first anchor's partner.

    Returns:
        A scalar of the features' dtype, or float32 if that is narrower.
    """
    return _sum_labelled(scaled_product(anchors, gallery, logit_scale, logit_bias), start)


def sum_symmetric(
    image_features: Tensor, text_features: Tensor, logit_scale: Scalar, logit_bias: Scalar | None
) -> Tensor:
    """Sum `sum_infonce` of [n, d] images against [n, d] texts and of texts against images."""
    return _sum_both_labelled(scaled_product(image_features, text_features, logit_scale, logit_bias))


def sum_sigmoid(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    start: int | None,
) -> Tensor:
    """Sum over [n, d] images and [m, d] texts -log sigmoid(y z), y being 1 for partners, else -1.

    Args:
        image_features: [n, d], floating.
        text_features: [m, d].
        logit_scale: a number or a tensor of shape [] or [1].
        logit_bias: likewise; None adds nothing.
        start: the column of the first image's partner; None if no text is the partner of an image.

    Returns:
        A scalar of the features' dtype, or float32 if that is narrower.
    """
    return sum_log_sigmoid(scaled_product(image_features, text_features, logit_scale, logit_bias), start)


def sum_distill(
    student: tuple[Tensor, Tensor],
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    teacher: tuple[Tensor, Tensor],
    dist_logit_scale: Scalar,
    dist_logit_bias: Scalar | None,
    start: int,
) -> tuple[Tensor, Tensor]:
    """Sum over anchors the cross-entropy with labels, as `sum_infonce`, and that under the teacher.

    Args:
        student: [n, d] anchors and an [m, d] gallery.
        logit_scale: the student's.
        logit_bias: the student's; None adds nothing.
        teacher: [n, e] anchors and an [m, e] gallery.
        dist_logit_scale: the teacher's.
        dist_logit_bias: the teacher's; None adds nothing.
        start: the column of the first anchor's partner.

    Returns:
        The two sums.
    """
    logits = scaled_product(*student, logit_scale, logit_bias)
    dist_logits = scaled_product(*teacher, dist_logit_scale, dist_logit_bias)
    return _sum_labelled(logits, start), sum_dist_loss(dist_logits, logits)


def sum_symmetric_distill(
    student: tuple[Tensor, Tensor],
    logit_scale: Scalar,
    logit_bias: Scalar | None,
    teacher: tuple[Tensor, Tensor],
    dist_logit_scale: Scalar,
    dist_logit_bias: Scalar | None,
) -> tuple[Tensor, Tensor]:
    """Sum `sum_distill` of n images against n texts and of texts against images."""
    logits = scaled_product(*student, logit_scale, logit_bias)
    dist_logits = scaled_product(*teacher, dist_logit_scale, dist_logit_bias)
    taught = sum_dist_loss(dist_logits, logits) + sum_dist_loss(dist_logits.T, logits.T)
    return _sum_both_labelled(logits), taught


def scaled_product(
    anchors: Tensor, gallery: Tensor, logit_scale: Scalar, logit_bias: Scalar | None
) -> Tensor:
    """Return the logits of [n, d] anchors against an [m, d] gallery, [n, m]."""
    logits = flat(logit_scale) * anchors @ gallery.T
    return logits if logit_bias is None else logits + flat(logit_bias)


def flat(value: Scalar) -> Scalar:
    """Return `value`, [1] as []: a tensor of no dimensions leaves the features' dtype as it is."""
    return value.reshape(()) if isinstance(value, Tensor) and value.ndim else value


def widen(tensor: Tensor) -> Tensor:
    """Return `tensor` in at least float32: half-precision sums overflow and lose the loss."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def sum_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy of [n, c] logits with [n] labels, in at least float32."""
    return F.cross_entropy(widen(logits), labels, reduction="sum")


def sum_dist_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Sum over rows the cross-entropy of [n, c] student logits under those of a teacher."""
    teacher = widen(teacher_logits).softmax(dim=1)
    return -(teacher * widen(student_logits).log_softmax(dim=1)).sum()


def sum_log_sigmoid(logits: Tensor, start: int | None) -> Tensor:
    """Sum -log sigmoid(y z) over [n, m] logits z; see `sum_sigmoid`."""
    logits = widen(logits)
    if start is None:
        signed = -logits
    else:
        labels = torch.full_like(logits, -1)
        labels.diagonal(start).fill_(1)
        signed = labels * logits
    # logsigmoid, not softplus: torch's softplus drops exp(-x) beyond 20
    return -F.logsigmoid(signed).sum()


def sum_signed(logits: Tensor, signs: Tensor) -> Tensor:
    """Sum -log sigmoid(y z) over [n, m] logits z with [n, m] signs y, in at least float32."""
    return -F.logsigmoid(signs * widen(logits)).sum()


def _sum_labelled(logits: Tensor, start: int) -> Tensor:
    return sum_cross_entropy(logits, torch.arange(start, start + logits.shape[0], device=logits.device))


def _sum_both_labelled(logits: Tensor) -> Tensor:
    labels = torch.arange(logits.shape[0], device=logits.device)
    return sum_cross_entropy(logits, labels) + sum_cross_entropy(logits.T, labels)
