"""Lightning Fabric: the loop of its guide on gradient accumulation."""

import os
from collections.abc import Iterable

import torch

from peers.trainers.load import installed

installed("lightning")

from lightning.fabric import Fabric  # noqa: E402
from lightning.fabric.plugins.environments import TorchElasticEnvironment  # noqa: E402

from peers.trainers.model import Batch, Classifier, classified  # noqa: E402


class LightningFabric:
    """DistributedDataParallel by Fabric; `no_backward_sync` says when gradients are reduced."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        os.environ.setdefault("TORCHELASTIC_RUN_ID", "none")
        several = {"strategy": "ddp", "plugins": [TorchElasticEnvironment()]} if world_size > 1 else {}
        self.fabric = Fabric(accelerator="cpu", devices=world_size, **several)
        self.fabric.launch()
        net = Classifier(frozen)
        optimizer = torch.optim.SGD([one for one in net.parameters() if one.requires_grad], 0.1, momentum=0.9)
        self.trained, self.optimizer = self.fabric.setup(net, optimizer)
        self.model = net
        self.batch = classified

    def step(self, *batches: Batch) -> float:
        """Train on micro-batches."""
        self.optimizer.zero_grad()
        total = 0.0
        for number, batch in enumerate(batches, 1):
            with self.fabric.no_backward_sync(self.trained, enabled=number < len(batches)):
                loss = self.trained(**batch)["loss"] / len(batches)
                self.fabric.backward(loss)
            total += loss.item()
        self.optimizer.step()
        return total
