"""The contrastive captioner's loss.

Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, 2022, equations 3 and 4,
https://arxiv.org/abs/2205.01917: a weighted contrastive loss and a weighted mean, over the tokens that
are not padding, of the cross-entropy of the next token.
"""

from typing import Any

import numpy as np

from .clip import add_up, clip_loss, cross_entropy
from .complex_step import Array


def caption_loss(
    logits: list[Array], labels: list[Array], rank: int, pad_id: int = 0, convention: str = "exact"
) -> complex:
    """Return the caption loss of `rank`, unweighted.

    Args:
        logits: [b_r, t, v] of each rank r.
        labels: [b_r, t] token ids of each rank; `pad_id` is no token.
        rank: whose loss.
        pad_id: the label that counts nothing.
        convention: "exact" divides by the mean number of tokens of a rank, so that the mean over ranks
            is the mean over all tokens; "open_clip" by this rank's own.
    """
    is_token = labels[rank] != pad_id
    if not is_token.any():
        return 0.0
    losses = [cross_entropy(logits[rank][is_token], labels[rank][is_token])]
    return mean_over_tokens(losses, labels, rank, pad_id, convention)


def mean_over_tokens(
    losses: list[Any], labels: list[Array], rank: int, pad_id: int, convention: str
) -> complex:
    """Return what the tokens of `rank` cost, in parts to add up, by the number of tokens that counts."""
    tokens = [int(np.count_nonzero(ids != pad_id)) for ids in labels]
    divisor = sum(tokens) / len(tokens) if convention == "exact" else tokens[rank]
    loss: complex = add_up(losses, tokens) / divisor
    return loss


def coca_loss(
    features: tuple[list[Array], list[Array], list[Array], list[Array]],
    logits: list[Array],
    labels: list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
    clip_loss_weight: float = 1.0,
    caption_loss_weight: float = 2.0,
    pad_id: int = 0,
) -> tuple[complex, complex]:
    """Return the contrastive and the caption loss of `rank`, each times its weight.

    A loss of weight 0 is 0, also where its inputs are infinite or NaN.

    Args:
        features: every rank's image features, text features, logit scale and logit bias.
        logits: [b_r, t, v] of each rank r.
        labels: [b_r, t] token ids of each rank.
        rank: whose loss.
        local_loss: as for CLIP.
        gather_with_grad: as for CLIP.
        convention: "exact" or "open_clip", for both losses.
        clip_loss_weight: the factor of the contrastive loss.
        caption_loss_weight: the factor of the caption loss.
        pad_id: the label that counts nothing.
    """
    contrastive: complex = 0.0
    caption: complex = 0.0
    if clip_loss_weight:
        flags = (local_loss, gather_with_grad, convention)
        contrastive = clip_loss_weight * clip_loss(*features, rank, *flags)
    if caption_loss_weight:
        caption = caption_loss_weight * caption_loss(logits, labels, rank, pad_id, convention)
    return contrastive, caption
