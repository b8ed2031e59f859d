"""What the planted and the right trainers are made of: a small model, batches, a reduction by hand."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

Batch = dict[str, Tensor]
WIDTH, CLASSES = 4, 3


def average(gradients: Iterable[Tensor | None]) -> None:
    """Average gradients over ranks, where they are."""
    for one in gradients:
        if one is not None and dist.is_initialized():
            dist.all_reduce(one)
            one /= dist.get_world_size()


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
        average(one.grad for one in self.model.parameters())

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


class Spectrum(nn.Module):
    """Multiplies the Fourier coefficients of rows by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        real, imaginary = torch.randn(2, WIDTH // 2 + 1)
        self.weight = nn.Parameter(torch.complex(real, imaginary))

    def forward(self, x: Tensor) -> Tensor:
        filtered: Tensor = torch.fft.irfft(self.weight * torch.fft.rfft(x), n=WIDTH)
        return filtered


class Filtered(Trainer):
    """Its model has complex weights."""

    def make(self) -> nn.Module:
        return nn.Sequential(Spectrum(), nn.Linear(WIDTH, CLASSES))


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


class FsdpOfOne(Trainer):
    """FSDP2, in one process too: its parameters are DTensors there."""

    def wrap(self, net: nn.Module) -> nn.Module:
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        fully_shard(net[0])  # type: ignore[index]
        fully_shard(net)
        return net

    def reduce(self) -> None:
        """FSDP2 has reduced each micro-batch."""


class Normalised(Trainer):
    """A model with BatchNorm."""

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, CLASSES))


class AllReduce(torch.autograd.Function):
    """A sum over ranks, whose gradient is one too."""

    @staticmethod
    def forward(ctx: Any, one: Tensor) -> Tensor:
        total = one.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        total = given[0].clone()
        dist.all_reduce(total)
        return total


class SynchronisedNorm(nn.BatchNorm1d):
    """BatchNorm over the rows of all ranks: torch's SyncBatchNorm takes no tensors on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tensor([float(len(x))])
        sums = torch.cat([x.sum(0), rows])
        if dist.is_initialized():
            sums = AllReduce.apply(sums)
        mean = sums[:-1] / sums[-1]
        squares = (x - mean).square().sum(0)
        if dist.is_initialized():
            squares = AllReduce.apply(squares)
        self.note(x, mean, squares, sums[-1])
        return self.weight * (x - mean) * torch.rsqrt(squares / sums[-1] + self.eps) + self.bias

    @torch.no_grad()
    def note(self, x: Tensor, mean: Tensor, squares: Tensor, rows: Tensor) -> None:
        """Update the running statistics, from those of all rows."""
        self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
        self.running_var.lerp_(squares / (rows - 1).clamp(min=1), self.momentum)  # type: ignore[union-attr, arg-type]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


class Dropped(Trainer):
    """Draws which inputs to drop for the rows of all ranks and micro-batches, and takes those of its own."""

    promises = ("rng",)

    def step(self, *batches: Batch) -> float:
        counts = [len(one["x"]) for one in batches]
        total = torch.zeros(self.world_size, dtype=torch.long)
        total[self.rank] = sum(counts)
        if self.world_size > 1:
            dist.all_reduce(total)
        kept = self.drawn(int(total.sum()))
        own = self.place(kept, int(total[: self.rank].sum()), sum(counts)).split(counts)
        return super().step(*({**one, "x": one["x"] * mask} for one, mask in zip(batches, own, strict=True)))

    def drawn(self, rows: int) -> Tensor:
        """Draw for so many rows."""
        return (torch.rand(rows, WIDTH) > 0.3) / 0.7

    def place(self, kept: Tensor, first: int, rows: int) -> Tensor:
        """Take the own rows."""
        return kept[first : first + rows]


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


class Queued(Contrastive):
    """Compares with the texts of earlier steps, too."""

    LENGTH = 12

    def make(self) -> nn.Module:
        net = super().make()
        net.register_buffer("queue", torch.zeros(self.LENGTH, 5))
        net.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        return net

    def loss(self, batch: Batch) -> Tensor:
        image, text, scale = self.model(batch["image"], batch["text"])
        rows = torch.arange(len(image)) + (self.rank * len(image))
        keys = self.gather(text.detach())
        logits = scale * image @ torch.cat([keys, self.net.queue.clone()]).T  # type: ignore[operator, union-attr]
        self.enqueue(text.detach(), keys)
        logits_of_text = scale * text @ self.gather(image.detach()).T
        return cross_entropy(logits, rows) + cross_entropy(logits_of_text, rows)

    def gather(self, own: Tensor) -> Tensor:
        """Return those of all ranks."""
        if self.world_size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    def enqueue(self, own: Tensor, keys: Tensor) -> None:
        """Put them into the queue, in the place of the oldest."""
        self.put(keys, len(keys))

    def put(self, keys: Tensor, advance: int) -> None:
        """Write keys at the pointer, and move it."""
        first = int(self.net.pointer)  # type: ignore[arg-type]
        places = (first + torch.arange(len(keys))) % self.LENGTH
        self.net.queue[places] = keys  # type: ignore[index, operator]
        self.net.pointer.fill_((first + advance) % self.LENGTH)  # type: ignore[operator, union-attr]


class OneBatch:
    """Makes `step` take one batch: no micro-batches are drawn."""

    def step(self, batch: Batch) -> float:
        """Train on a batch."""
        found: float = super().step(batch)  # type: ignore[misc]
        return found


class NoneFrozen:
    """Takes no names of parameters: none are drawn to be frozen."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)  # type: ignore[call-arg]
