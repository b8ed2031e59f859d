"""vissl: SimCLR's loss. An adapter: its buffers are made for a stated batch, its package needs a trainer."""

import sys
import types
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from peers.load import bare

bare("vissl", "vissl.losses", "vissl.utils", "classy_vision", "classy_vision.generic")
# the package that registers losses needs file systems and a plotter
registry = types.ModuleType("classy_vision.losses")
registry.ClassyLoss = torch.nn.Module  # type: ignore[attr-defined]
registry.register_loss = lambda name: lambda loss: loss  # type: ignore[attr-defined]
sys.modules["classy_vision.losses"] = registry

from classy_vision.generic.distributed_util import set_cpu_device  # noqa: E402
from vissl.losses.simclr_info_nce_loss import SimclrInfoNCELoss as Stacked  # noqa: E402


class SimclrInfoNCELoss:
    """Each rank's views among those of all ranks."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        set_cpu_device()

    def __call__(self, first: Any, second: Any) -> Any:
        views = torch.cat((first, second))
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        buffers = SimpleNamespace(
            effective_batch_size=len(views) * world_size,
            world_size=world_size,
            embedding_dim=views.shape[1],
        )
        loss = Stacked(SimpleNamespace(temperature=self.temperature, buffer_params=buffers))
        return loss(views, None)
