"""open_clip_torch: the loss module alone."""

from peers.load import bare

bare("open_clip")

from open_clip.loss import (  # noqa: E402
    ClipLoss,
    CoCaLoss,
    DistillClipLoss,
    SigLipLoss,
    gather_features,
    neighbour_exchange_bidir_with_grad,
    neighbour_exchange_with_grad,
)

__all__ = [
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "SigLipLoss",
    "gather_features",
    "neighbour_exchange_bidir_with_grad",
    "neighbour_exchange_with_grad",
]
