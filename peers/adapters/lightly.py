"""lightly: SimCLR's loss, and the gather below it."""

import sys
import types
from typing import Any

import torch

from peers.load import bare

bare("lightly", "lightly.loss", "lightly.models", "lightly.models.modules", "lightly.utils")
# the helpers of its models ask for one class of torchvision's, which no loss needs
vision = types.ModuleType("torchvision.ops")
vision.StochasticDepth = torch.nn.Identity  # type: ignore[attr-defined]
sys.modules["torchvision.ops"] = vision
try:
    from lightly.loss import ntx_ent_loss
finally:
    del sys.modules["torchvision.ops"]
from lightly.utils import dist  # noqa: E402


class NTXentLoss(ntx_ent_loss.NTXentLoss):
    """Each rank's views among those of all ranks."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature, gather_distributed=True)


def gather(image_features: Any, text_features: Any) -> Any:
    return tuple(torch.cat(dist.gather(features)) for features in (image_features, text_features))
