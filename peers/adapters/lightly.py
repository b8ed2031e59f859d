"""lightly: SimCLR's loss, alone and against a memory bank, its decoupled form, and the gather below it."""

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
    from lightly.loss import dcl_loss, ntx_ent_loss
    from lightly.models.modules import memory_bank
finally:
    del sys.modules["torchvision.ops"]
from lightly.utils import dist  # noqa: E402


class NTXentLoss(ntx_ent_loss.NTXentLoss):
    """Each rank's views among those of all ranks."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature, gather_distributed=True)


class DCLLoss(dcl_loss.DCLLoss):
    """Two views of one process."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature)


def gather(image_features: Any, text_features: Any) -> Any:
    return tuple(torch.cat(dist.gather(features)) for features in (image_features, text_features))


class AlwaysUpdated(memory_bank.MemoryBankModule):
    """A bank that takes keys in whether or not queries require a gradient."""

    def forward(self, output: torch.Tensor, labels: Any = None, update: bool = False) -> Any:
        return super().forward(output, labels, update=True)


class MemoryBank(torch.nn.Module):
    """Queries, whose keys come from a momentum encoder, against a bank of earlier keys."""

    def __init__(self, queue_size: int, width: int, temperature: float) -> None:
        super().__init__()
        size = (queue_size, width)
        self.loss = ntx_ent_loss.NTXentLoss(temperature, memory_bank_size=size)
        self.loss.memory_bank = AlwaysUpdated(size)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return self.loss(query, key.detach())
