"""Losses of margins."""

import torch
import torch.nn.functional as F
from torch import Tensor


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    near, far = (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)
    return F.relu(near - far + margin).mean()


def triplet_by_module(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """The loss of torch, with a distance of its own."""

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return ((one - other) ** 2).sum(-1)

    return F.triplet_margin_with_distance_loss(
        anchor, positive, negative, distance_function=distance, margin=margin
    )


def not_squared(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    return F.triplet_margin_loss(anchor, positive, negative, margin=margin)


def swapped(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    return triplet(anchor, negative, positive, margin)


def margin_taken_away(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    return triplet(anchor, positive, negative, -margin)


def mean_over_active(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    near, far = (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)
    losses = F.relu(near - far + margin)
    return losses.sum() / (losses > 0).sum().clamp(min=1)


def no_hinge(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    near, far = (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)
    return (near - far + margin).mean()


def softplus(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    near, far = (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)
    return F.softplus(near - far + margin).mean()


def max_margin(image: Tensor, text: Tensor, margin: float) -> Tensor:
    scores = image @ text.T
    own = scores.diagonal()
    itself = torch.eye(len(image), dtype=torch.bool, device=image.device)
    of_images = (margin + scores - own[:, None]).clamp(min=0).masked_fill(itself, 0)
    of_texts = (margin + scores - own).clamp(min=0).masked_fill(itself, 0)
    return (of_images.sum() + of_texts.sum()) / len(image)


def max_margin_by_pair(image: Tensor, text: Tensor, margin: float) -> Tensor:
    """Pairs of others are picked first."""
    one, other = (~torch.eye(len(image), dtype=torch.bool, device=image.device)).nonzero(as_tuple=True)
    own, across = (image * text).sum(1), (image[one] * text[other]).sum(1)
    hinges = F.relu(margin - own[one] + across) + F.relu(margin - own[other] + across)
    return hinges.sum() / len(image)


def with_itself(image: Tensor, text: Tensor, margin: float) -> Tensor:
    scores = image @ text.T
    own = scores.diagonal()
    return (F.relu(margin + scores - own[:, None]) + F.relu(margin + scores - own)).sum() / len(image)


def hardest_alone(image: Tensor, text: Tensor, margin: float) -> Tensor:
    scores = image @ text.T
    own, itself = scores.diagonal(), torch.eye(len(image), dtype=torch.bool)
    of_images = F.relu(margin + scores - own[:, None]).masked_fill(itself, 0).amax(1)
    return (of_images + F.relu(margin + scores - own).masked_fill(itself, 0).amax(0)).mean()


def one_direction(image: Tensor, text: Tensor, margin: float) -> Tensor:
    scores = image @ text.T
    itself = torch.eye(len(image), dtype=torch.bool)
    return F.relu(margin + scores - scores.diagonal()[:, None]).masked_fill(itself, 0).sum() / len(image)


def both_of_images(image: Tensor, text: Tensor, margin: float) -> Tensor:
    return one_direction(image, text, margin) * 2


def mean_over_pairs(image: Tensor, text: Tensor, margin: float) -> Tensor:
    return max_margin(image, text, margin) / len(image)
