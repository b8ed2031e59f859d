"""Losses that ask for CUDA by themselves, as losses of training scripts do."""

from typing import Any

import torch
from torch import Tensor

from verified_losses import ClipLoss


class Moves(ClipLoss):
    """It moves what it is given to the GPU."""

    def forward(self, image_features: Tensor, text_features: Tensor, *given: Any, **named: Any) -> Any:
        return super().forward(image_features.cuda(), text_features.cuda(), *given, **named)


class Reads(ClipLoss):
    """It reads which GPU is the current one as it is constructed."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.device = torch.cuda.current_device()
