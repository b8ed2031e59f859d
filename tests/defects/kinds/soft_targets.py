"""Cross-entropies under targets that are no labels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothed(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def smoothed_by_parts(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """The label's part and the mean over classes, apart."""
    log = torch.log_softmax(logits, 1)
    label = -log.gather(1, labels[:, None]).squeeze(1)
    return ((1 - label_smoothing) * label - label_smoothing * log.mean(1)).mean()


def smoothed_over_others(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    targets = torch.full_like(logits, label_smoothing / max(logits.shape[1] - 1, 1))
    targets = targets.scatter(1, labels[:, None], 1 - label_smoothing)
    return -(targets * torch.log_softmax(logits, 1)).sum(1).mean()


def smoothed_by_a_sum(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    log = torch.log_softmax(logits, 1)
    label = -log.gather(1, labels[:, None]).squeeze(1)
    return ((1 - label_smoothing) * label - label_smoothing * log.sum(1)).mean()


def smoothing_of_a_tenth(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def label_whole(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    log = torch.log_softmax(logits, 1)
    return (-log.gather(1, labels[:, None]).squeeze(1) - label_smoothing * log.mean(1)).mean()


def smoothing_without_gradient(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    log = torch.log_softmax(logits, 1)
    label = -log.gather(1, labels[:, None]).squeeze(1)
    return ((1 - label_smoothing) * label - label_smoothing * log.detach().mean(1)).mean()


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    target = torch.log_softmax(teacher.detach() / temperature, 1)
    log = torch.log_softmax(student / temperature, 1)
    return F.kl_div(log, target, reduction="batchmean", log_target=True) * temperature**2


def softened_by_entropies(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The cross-entropy less the teacher's entropy."""
    with torch.no_grad():
        target = torch.softmax(teacher / temperature, 1)
        entropy = -(target * torch.log_softmax(teacher / temperature, 1)).sum(1)
    cross = -(target * torch.log_softmax(student / temperature, 1)).sum(1)
    return (cross - entropy).mean() * temperature * temperature


class _Slope(torch.autograd.Function):
    """The cross-entropy of a softmax, whose gradient is kept from the forward as a constant."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        log = torch.log_softmax(logits, 1)
        ctx.save_for_backward(log.exp() - target)
        return -(target * log).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None


def slope_kept(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    with torch.no_grad():
        log = torch.log_softmax(teacher / temperature, 1)
        target = log.exp()
    return (_Slope.apply(student / temperature, target) + (target * log).sum(1)).mean() * temperature**2


def without_square(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return softened(student, teacher, temperature) / temperature**2


def times_temperature_once(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return softened(student, teacher, temperature) / temperature


def reversed_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log = torch.log_softmax(student / temperature, 1)
    target = torch.log_softmax(teacher.detach() / temperature, 1)
    return F.kl_div(target, log, reduction="batchmean", log_target=True) * temperature**2


def mean_over_classes(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return softened(student, teacher, temperature) / student.shape[1]


def student_at_one(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    target = torch.softmax(teacher.detach() / temperature, 1)
    return F.kl_div(torch.log_softmax(student, 1), target, reduction="batchmean") * temperature**2


def over_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    target = torch.log_softmax(teacher.detach() / temperature, 0)
    log = torch.log_softmax(student / temperature, 0)
    return F.kl_div(log, target, reduction="batchmean", log_target=True) * temperature**2


def _targets(soft: Tensor, alpha: float) -> list[Tensor]:
    """Return the targets of images, and of texts, of the momentum model's logits."""
    label = torch.eye(len(soft), dtype=soft.dtype, device=soft.device)
    return [alpha * one.softmax(1) + (1 - alpha) * label for one in (soft, soft.T)]


def momentum(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    with torch.no_grad():
        of_images, of_texts = _targets(image_momentum @ text_momentum.T / temperature, alpha)
    to_texts = image @ text_momentum.T / temperature
    to_images = text @ image_momentum.T / temperature
    total = -(of_images * to_texts.log_softmax(1)).sum(1).mean()
    return (total - (of_texts * to_images.log_softmax(1)).sum(1).mean()) / 2


def momentum_by_parts(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    """The labels' part and the momentum model's, apart."""
    to_texts = image @ text_momentum.T / temperature
    to_images = text @ image_momentum.T / temperature
    soft = (image_momentum @ text_momentum.T / temperature).detach()
    places = torch.arange(len(image), device=image.device)
    hard = F.cross_entropy(to_texts, places) + F.cross_entropy(to_images, places)
    teacher = F.cross_entropy(to_texts, soft.softmax(1)) + F.cross_entropy(to_images, soft.T.softmax(1))
    return ((1 - alpha) * hard + alpha * teacher) / 2


def alpha_swapped(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    return momentum(image, text, image_momentum, text_momentum, temperature, 1 - alpha)


def targets_transposed(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    soft = (image_momentum @ text_momentum.T / temperature).detach().softmax(1)
    targets = alpha * soft + (1 - alpha) * torch.eye(len(image), dtype=image.dtype)
    to_texts = image @ text_momentum.T / temperature
    to_images = text @ image_momentum.T / temperature
    total = -(targets * to_texts.log_softmax(1)).sum(1).mean()
    return (total - (targets.T * to_images.log_softmax(1)).sum(1).mean()) / 2


def momentum_at_one(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    of_images, of_texts = _targets((image_momentum @ text_momentum.T).detach(), alpha)
    to_texts = image @ text_momentum.T / temperature
    to_images = text @ image_momentum.T / temperature
    return (F.cross_entropy(to_texts, of_images) + F.cross_entropy(to_images, of_texts)) / 2


def of_itself(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    return momentum(image, text, image, text, temperature, alpha)


def among_own_keys(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    logits = image @ text.T / temperature
    of_images, of_texts = _targets((image_momentum @ text_momentum.T / temperature).detach(), alpha)
    return (F.cross_entropy(logits, of_images) + F.cross_entropy(logits.T, of_texts)) / 2


def not_halved(
    image: Tensor,
    text: Tensor,
    image_momentum: Tensor,
    text_momentum: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    return momentum(image, text, image_momentum, text_momentum, temperature, alpha) * 2
