"""What the planted and the right trainers are made of: a small model, batches, a reduction by hand."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

Batch = dict[str, Tensor]
WIDTH, CLASSES = 4, 3


class Trainer:
    """A right one that reduces gradients by hand; others change a part of it."""

    lr = 0.1

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        self.rank, self.world_size = rank, world_size
        self.net = self.make()
        for name, one in self.net.named_parameters():
            one.requires_grad_(name not in frozen)
        self.model = self.wrap(self.net)
        self.optimizer = self.optimize([one for one in self.model.parameters() if one.requires_grad])

    def make(self) -> nn.Module:
        """Return the model, without what wraps it."""
        return nn.Sequential(nn.Linear(WIDTH, 6), nn.GELU(), nn.Linear(6, CLASSES))

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return the model as it is trained."""
        return net

    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(parameters, self.lr, momentum=0.9)

    def batch(self, rows: int, seed: int) -> Batch:
        """Return random rows and their classes."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, WIDTH, generator=generator)
        return {"x": x, "y": torch.randint(CLASSES, (rows,), generator=generator)}

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean over rows."""
        return cross_entropy(self.model(batch["x"]), batch["y"])

    def context(self, is_last: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add up gradients."""
        loss.backward()

    def reduce(self) -> None:
        """Average gradients over ranks."""
        if self.world_size > 1:
            for one in self.model.parameters():
                if one.grad is not None:
                    dist.all_reduce(one.grad)
                    one.grad /= self.world_size

    def update(self) -> None:
        """Take the optimizer's step."""
        self.optimizer.step()

    def accumulate(self, batches: tuple[Batch, ...]) -> float:
        """Take all micro-batches; return the loss to be logged."""
        total = 0.0
        for number, batch in enumerate(batches, 1):
            with self.context(number == len(batches)):
                loss = self.loss(batch) / len(batches)
                self.backward(loss)
            total += loss.item()
        return total

    def step(self, *batches: Batch) -> float:
        """Train on micro-batches."""
        self.optimizer.zero_grad()
        total = self.accumulate(batches)
        self.reduce()
        self.update()
        return total


class Ddp(Trainer):
    """DistributedDataParallel, which reduces with the last micro-batch."""

    def wrap(self, net: nn.Module) -> nn.Module:
        return DistributedDataParallel(net) if self.world_size > 1 else net

    def context(self, is_last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()

    def reduce(self) -> None:
        """It has been done."""


class Normalised(Trainer):
    """A model with BatchNorm."""

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, CLASSES))


class TwoTowers(nn.Module):
    """A small CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return normalize(self.image(image), dim=-1), normalize(self.text(text), dim=-1), self.scale.exp()


class Contrastive(Ddp):
    """A loss that compares rows with one another."""

    def make(self) -> nn.Module:
        return TwoTowers()

    def batch(self, rows: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(rows, WIDTH, generator=generator) for name in ("image", "text")}

    def loss(self, batch: Batch) -> Tensor:
        image, text, scale = self.model(batch["image"], batch["text"])
        logits = scale * image @ text.T
        own = torch.arange(len(logits))
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


class OneBatch:
    """Makes `step` take one batch: no micro-batches are drawn."""

    def step(self, batch: Batch) -> float:
        """Train on a batch."""
        found: float = super().step(batch)  # type: ignore[misc]
        return found
