"""Losses that cannot be called, in every case or in some."""

from typing import Any

import torch
from torch import Tensor, nn

from .defects.plain import Clip


class NoForward(nn.Module):
    """It has no forward."""


class WrongShapes(Clip):
    """It multiplies matrices of shapes that never fit."""

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, **named: Any
    ) -> Any:
        return self.multiplied(image_features, text_features)

    def multiplied(self, image: Tensor, text: Tensor) -> Tensor:
        """Multiply matrices whose inner dimensions differ."""
        return image @ torch.cat([text, text[:1]])[:, :, None].squeeze(2).repeat(1, 2).T


class NoFloat64(Clip):
    """It refuses float64."""

    def forward(self, image_features: Tensor, *given: Any, **named: Any) -> Any:
        if image_features.dtype == torch.float64:
            raise TypeError("float64 is not supported")
        return super().forward(image_features, *given, **named)


class NoSingleRow(Clip):
    """It refuses a batch of one."""

    def forward(self, image_features: Tensor, *given: Any, **named: Any) -> Any:
        if len(image_features) == 1:
            raise ValueError("expected more than one row")
        return super().forward(image_features, *given, **named)


class PowersOfTwo(Clip):
    """It refuses rows that are no power of two wide, as kernels of blocks do."""

    def forward(self, image_features: Tensor, *given: Any, **named: Any) -> Any:
        width = image_features.shape[1]
        if width < 16 or width & (width - 1):
            raise ValueError(f"expected a power of two from 16, got {width}")
        return super().forward(image_features, *given, **named)
