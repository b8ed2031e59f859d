"""The shipped losses as targets that bring the stand-in for a GPU to whichever process imports them."""

from typing import Any

from torch import Tensor

from verified_losses import (
    ClipLoss,
    CoCaLoss,
    DistillClipLoss,
    SigLipLoss,
    gather_features,
    neighbour_exchange_bidir_with_grad,
    neighbour_exchange_with_grad,
)

from . import standin

__all__ = [
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "MovesToTheCpu",
    "SigLipLoss",
    "gather_features",
    "neighbour_exchange_bidir_with_grad",
    "neighbour_exchange_with_grad",
]

standin.load()


class MovesToTheCpu(ClipLoss):
    """It computes on the CPU, wherever its inputs are."""

    def forward(self, image_features: Tensor, text_features: Tensor, **named: Any) -> Any:
        scalars = {key: value.cpu() for key, value in named.items() if isinstance(value, Tensor)}
        return super().forward(image_features.cpu(), text_features.cpu(), **(named | scalars))
