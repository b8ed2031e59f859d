"""accelerate: the loop of its guide on gradient accumulation."""

from collections.abc import Iterable

import torch

from peers.trainers.load import installed

installed("accelerate")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

from peers.trainers.model import Batch, Classifier, classified  # noqa: E402


class Accelerate:
    """DistributedDataParallel by accelerate; `accumulate` says when gradients are reduced."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()  # of the trainer before this one
        self.accelerator = Accelerator(cpu=True)
        net = Classifier(frozen)
        optimizer = torch.optim.SGD([one for one in net.parameters() if one.requires_grad], 0.1, momentum=0.9)
        self.model, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.batch = classified

    def step(self, *batches: Batch) -> float:
        """Train on micro-batches."""
        self.accelerator.gradient_accumulation_steps, self.accelerator.step = len(batches), 0
        total = 0.0
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                loss = self.model(**batch)["loss"]
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.item() / len(batches)
        return total
