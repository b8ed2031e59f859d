"""Trainers that are wrong, each in one place."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .trainers import (
    WIDTH,
    Batch,
    Contrastive,
    Ddp,
    Dropped,
    Filtered,
    FsdpOfOne,
    Normalised,
    OneBatch,
    Queued,
    SynchronisedNorm,
    Trainer,
    average,
)


class GradientSum(Trainer):
    def reduce(self) -> None:
        if self.world_size > 1:
            for one in self.model.parameters():
                if one.grad is not None:
                    dist.all_reduce(one.grad)


class GradientAlmostMean(Trainer):
    def reduce(self) -> None:
        super().reduce()
        if self.world_size > 1:
            for one in self.model.parameters():
                if one.grad is not None:
                    one.grad *= 1 + 1e-6


class ReducesWeightsAlone(Trainer):
    def reduce(self) -> None:
        if self.world_size > 1:
            for one in self.model.parameters():
                if one.grad is not None and one.ndim > 1:
                    dist.all_reduce(one.grad)
                    one.grad /= self.world_size


class NeverSynchronises(Ddp):
    def context(self, is_last: bool) -> AbstractContextManager[Any]:
        return super().context(is_last=False)


class TimesAccumulation(Ddp):
    def accumulate(self, batches: tuple[Batch, ...]) -> float:
        total = 0.0
        for number, batch in enumerate(batches, 1):
            with self.context(number == len(batches)):
                loss = self.loss(batch)
                loss.backward()
            total += loss.item() / len(batches)
        return total


class LocalBatchNorm(OneBatch, Normalised, Ddp):
    pass


class _Auxiliary(Ddp):
    times = 1.0

    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) + self.times * 0.1 * self.model(batch["x"]).square().mean()


class AuxiliaryTimesWorld(_Auxiliary):
    @property
    def times(self) -> float:  # type: ignore[override]
        return self.world_size


class AuxiliaryOverWorld(_Auxiliary):
    @property
    def times(self) -> float:  # type: ignore[override]
        return 1 / self.world_size


class ForgetsZeroGrad(Ddp):
    def step(self, *batches: Batch) -> float:
        total = self.accumulate(batches)
        self.update()
        return total


class RepeatsRows(Ddp):
    """Pads its rows to an even number by repeating the first, as a sampler that drops none does."""

    def loss(self, batch: Batch) -> Tensor:
        odd = len(batch["x"]) % 2
        return super().loss({name: torch.cat([one, one[:odd]]) for name, one in batch.items()})


class ClipsBeforeUnscaling(Ddp):
    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.scaler = torch.amp.GradScaler("cpu")

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class ClipsBeforeReducing(Trainer):
    def reduce(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        super().reduce()


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(x)


class FsdpAddsUp(FsdpOfOne):
    def accumulate(self, batches: tuple[Batch, ...]) -> float:
        losses = [self.loss(batch) for batch in batches]
        torch.stack(losses).sum().backward()
        return float(torch.stack(losses).mean())


class FsdpReplicatedScalar(Trainer):
    """FSDP2 shards no scalars; those that it is told to leave alone it does not reduce either."""

    def make(self) -> nn.Module:
        return _Scaled()

    def wrap(self, net: nn.Module) -> nn.Module:
        if self.world_size > 1:
            fully_shard(net, ignored_params={net.scale})  # type: ignore[arg-type]
        return net

    def reduce(self) -> None:
        """FSDP2 has reduced what it shards."""


class LocalNegatives(OneBatch, Contrastive):
    pass


class LogsLastMicroBatch(Ddp):
    def accumulate(self, batches: tuple[Batch, ...]) -> float:
        super().accumulate(batches)
        return float(self.loss(batches[-1]))


class SeedsByRank(Trainer):
    def make(self) -> nn.Module:
        torch.manual_seed(self.rank)
        return super().make()


class NeverUsesHead(Trainer):
    def make(self) -> nn.Module:
        net = super().make()
        net.extra = nn.Linear(2, 2)
        net.forward = lambda x: net[2](net[1](net[0](x)))  # type: ignore[index, operator]
        return net


class OptimizesBeforeReducing(Trainer):
    def step(self, *batches: Batch) -> float:
        self.optimizer.zero_grad()
        total = self.accumulate(batches)
        self.update()
        self.reduce()
        return total


class DdpOfModule(Ddp):
    """Calls the module below DistributedDataParallel, which then does not reduce."""

    def loss(self, batch: Batch) -> Tensor:
        model, self.model = self.model, self.net
        try:
            return super().loss(batch)
        finally:
            self.model = model


class RaisesOnRankOne(Trainer):
    def loss(self, batch: Batch) -> Tensor:
        if self.rank == 1:
            raise ValueError("rank 1 has no data")
        return super().loss(batch)


class _StatisticsOfRank(SynchronisedNorm):
    def note(self, x: Tensor, mean: Tensor, squares: Tensor, rows: Tensor) -> None:
        own = x.mean(0)
        super().note(x, own, (x - own).square().sum(0), torch.tensor(float(len(x))))


class LocalStatistics(OneBatch, Trainer):
    """Normalises by all rows, and keeps running statistics of a rank's own."""

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 6), _StatisticsOfRank(6), nn.GELU(), nn.Linear(6, 3))


class _BiasedStatistics(SynchronisedNorm):
    def note(self, x: Tensor, mean: Tensor, squares: Tensor, rows: Tensor) -> None:
        super().note(x, mean, squares * (len(x) - 1) / len(x) * rows / (rows - 1), rows)


class BiasedVariance(OneBatch, Trainer):
    """The running variance is divided by other rows than those of all ranks."""

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 6), _BiasedStatistics(6), nn.GELU(), nn.Linear(6, 3))


class AveragesEveryMicroBatch(Ddp):
    """The average of the weights decays with every micro-batch."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def loss(self, batch: Batch) -> Tensor:
        self.average.update_parameters(self.net)
        return super().loss(batch)


class AveragesInAList(Ddp):
    """One of several averages decays with every micro-batch."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.averages = [
            AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(one)) for one in (0.9, 0.99)
        ]

    def loss(self, batch: Batch) -> Tensor:
        self.averages[1].update_parameters(self.net)
        return super().loss(batch)

    def update(self) -> None:
        super().update()
        self.averages[0].update_parameters(self.net)


class _Shadow:
    """An average of the weights in no module, which says what a checkpoint holds of it."""

    def __init__(self, net: nn.Module) -> None:
        self.held = [one.detach().clone() for one in net.parameters()]

    def update(self, net: nn.Module) -> None:
        for own, one in zip(self.held, net.parameters(), strict=True):
            own.lerp_(one.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held, "decay": 0.9}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state["held"]


class StatesAverage(Ddp):
    """An average that is in no module decays with every micro-batch."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.shadow = _Shadow(self.net)

    def loss(self, batch: Batch) -> Tensor:
        self.shadow.update(self.net)
        return super().loss(batch)


class _Callback:
    __slots__ = ("average",)

    def __init__(self, net: nn.Module) -> None:
        self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))


class AveragesInACallback(Ddp):
    """The average of the weights that a callback in a list has decays with every micro-batch."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.callbacks = [_Callback(self.net)]

    def loss(self, batch: Batch) -> Tensor:
        for one in self.callbacks:
            one.average.update_parameters(self.net)
        return super().loss(batch)


class QueueOfRank(OneBatch, Queued):
    """Puts texts of its own rank into the queue alone."""

    def enqueue(self, own: Tensor, keys: Tensor) -> None:
        self.put(own, len(own))


class PointerOfRank(OneBatch, Queued):
    """Moves the pointer by rows of its own rank alone."""

    def enqueue(self, own: Tensor, keys: Tensor) -> None:
        self.put(keys, len(own))


class DrawsOwnRows(Dropped):
    """Draws for its own rows alone, though it promises what one process draws."""

    def step(self, *batches: Batch) -> float:
        masks = [self.drawn(len(one["x"])) for one in batches]
        dropped = ({**one, "x": one["x"] * mask} for one, mask in zip(batches, masks, strict=True))
        return Trainer.step(self, *dropped)


class TakesFirstRows(Dropped):
    """Draws for all rows, and takes those of rank 0."""

    def place(self, kept: Tensor, first: int, rows: int) -> Tensor:
        return kept[:rows]


class SeedsAnew(Dropped):
    """States where its generator is, and seeds it with something else."""

    def step(self, *batches: Batch) -> float:
        found = super().step(*batches)
        torch.manual_seed(self.rank)
        return found

    def rng_state(self, steps: int) -> int:
        return 1000 * steps + self.rank


class ReducesRealParts(Filtered):
    def reduce(self) -> None:
        grads = [one.grad for one in self.model.parameters() if one.grad is not None]
        average(one.real if one.is_complex() else one for one in grads)
