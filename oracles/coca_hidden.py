"""The contrastive captioner's loss of hidden states, whose logits are products with the vocabulary's weight.

The contrastive loss is that of `coca`, of Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation
Models, 2022, https://arxiv.org/abs/2205.01917; a token costs what it does in `linear_cross_entropy`.
"""

from .clip import clip_loss
from .coca import mean_over_tokens
from .complex_step import Array
from .linear_cross_entropy import linear, token_losses


def caption_loss(
    hidden_states: list[Array],
    weights: list[Array],
    biases: list[Array],
    labels: list[Array],
    rank: int,
    pad_id: int = 0,
    convention: str = "exact",
    label_smoothing: float = 0.0,
    z_loss_factor: float = 0.0,
) -> complex:
    """Return the caption loss of `rank`, unweighted.

    Args:
        hidden_states: [b_r, t, h] of each rank r.
        weights: [v, h], of the vocabulary, as each rank holds it.
        biases: [v], or 0, as each rank holds it.
        labels: [b_r, t] token ids of each rank; `pad_id` is no token.
        rank: whose loss.
        pad_id: the label that counts nothing.
        convention: whose tokens are averaged over, as for `coca`.
        label_smoothing: the share of a label's probability that all of the vocabulary have alike.
        z_loss_factor: the factor of the squared log-sum-exp.
    """
    is_token = labels[rank] != pad_id
    if not is_token.any():
        return 0.0
    logits = linear(hidden_states[rank][is_token], weights[rank], biases[rank])
    losses = token_losses(logits, labels[rank][is_token], label_smoothing, z_loss_factor)
    return mean_over_tokens(losses, labels, rank, pad_id, convention)


def coca_hidden_loss(
    features: tuple[list[Array], list[Array], list[Array], list[Array]],
    projection: tuple[list[Array], list[Array], list[Array]],
    labels: list[Array],
    rank: int,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    convention: str = "exact",
    clip_loss_weight: float = 1.0,
    caption_loss_weight: float = 2.0,
    pad_id: int = 0,
    label_smoothing: float = 0.0,
    z_loss_factor: float = 0.0,
) -> tuple[complex, complex]:
    """Return the contrastive and the caption loss of `rank`, each times its weight.

    A loss of weight 0 is 0, also where its inputs are infinite or NaN.

    Args:
        features: every rank's image features, text features, logit scale and logit bias.
        projection: every rank's hidden states, [b_r, t, h], weight of the vocabulary, [v, h], and bias of it,
            [v] or 0.
        labels: [b_r, t] token ids of each rank.
        rank: whose loss.
        local_loss: as for CLIP.
        gather_with_grad: as for CLIP.
        convention: "exact" or "open_clip", for both losses.
        clip_loss_weight: the factor of the contrastive loss.
        caption_loss_weight: the factor of the caption loss.
        pad_id: the label that counts nothing.
        label_smoothing: as for `caption_loss`.
        z_loss_factor: as for `caption_loss`.
    """
    contrastive: complex = 0.0
    caption: complex = 0.0
    if clip_loss_weight:
        flags = (local_loss, gather_with_grad, convention)
        contrastive = clip_loss_weight * clip_loss(*features, rank, *flags)
    if caption_loss_weight:
        hidden_states, weights, biases = projection
        caption = caption_loss_weight * caption_loss(
            hidden_states,
            weights,
            biases,
            labels,
            rank,
            pad_id,
            convention,
            label_smoothing,
            z_loss_factor,
        )
    return contrastive, caption
