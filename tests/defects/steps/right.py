"""Trainers that are right, in forms that differ."""

import copy
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, grad_and_value
from torch.nn.functional import binary_cross_entropy, cross_entropy, normalize, one_hot
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from verified_losses import ClipLoss

from .trainers import (
    CLASSES,
    WIDTH,
    Batch,
    Contrastive,
    Ddp,
    Dropped,
    Filtered,
    FsdpOfOne,
    NoneFrozen,
    Normalised,
    OneBatch,
    Queued,
    SynchronisedNorm,
    Trainer,
    average,
)


class HandReduced(Trainer):
    pass


class Alone(Trainer):
    """Knows one process alone, and accumulates."""

    def reduce(self) -> None:
        """There are no others."""


class DdpPlain(OneBatch, Ddp):
    pass


class DdpAccumulates(Ddp):
    pass


class DdpWithAdam(Ddp):
    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, 0.01)


class DdpLeavesNoGradients(Ddp):
    """Clears gradients after the optimizer, as many trainers do."""

    def step(self, *batches: Batch) -> float:
        total = self.accumulate(batches)
        self.update()
        self.optimizer.zero_grad()
        return total


class Fsdp(Trainer):
    def wrap(self, net: nn.Module) -> nn.Module:
        if self.world_size > 1:
            fully_shard(net[0])  # type: ignore[index]
            fully_shard(net)
        return net

    def reduce(self) -> None:
        """FSDP2 has reduced each micro-batch."""


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(x)


class FsdpAlone(FsdpOfOne):
    pass


class FsdpReducesScalar(Fsdp):
    def make(self) -> nn.Module:
        return _Scaled()

    def wrap(self, net: nn.Module) -> nn.Module:
        if self.world_size > 1:
            fully_shard(net, ignored_params={net.scale})  # type: ignore[arg-type]
        return net

    def reduce(self) -> None:
        if self.world_size > 1 and self.net.scale.grad is not None:  # type: ignore[union-attr]
            dist.all_reduce(self.net.scale.grad)  # type: ignore[arg-type]
            self.net.scale.grad /= self.world_size  # type: ignore[operator, union-attr]


class SynchronisedBatchNorm(OneBatch, Normalised):
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 6), SynchronisedNorm(6), nn.GELU(), nn.Linear(6, 3))


class SyncBatchNormOfTorch(OneBatch, Normalised, Ddp):
    """Runs on GPUs alone."""

    def wrap(self, net: nn.Module) -> nn.Module:
        return super().wrap(nn.SyncBatchNorm.convert_sync_batchnorm(net))


class DropoutOfRows(Ddp):
    """Drops what a seed in each row says."""

    def batch(self, rows: int, seed: int) -> Batch:
        found = super().batch(rows, seed)
        return {**found, "seed": torch.arange(rows) + 1000 * seed}

    def loss(self, batch: Batch) -> Tensor:
        kept = [
            torch.rand(WIDTH, generator=torch.Generator().manual_seed(int(one))) > 0.3
            for one in batch["seed"]
        ]
        return super().loss({**batch, "x": batch["x"] * torch.stack(kept) / 0.7})


class ClipsUnscaled(Ddp):
    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.scaler = torch.amp.GradScaler("cpu")

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class PairsRows(Trainer):
    """Its rows are pairs, and those of all ranks fill a queue."""

    LENGTH = 12

    def loss(self, batch: Batch) -> Tensor:
        assert len(batch["x"]) % 2 == 0, "rows are pairs"
        assert self.LENGTH % (self.world_size * len(batch["x"])) == 0, "batches do not fill the queue"
        one, other = self.model(batch["x"]).view(-1, 2, CLASSES).unbind(1)
        return super().loss(batch) + (one - other).square().mean()


class WeighsRows(Trainer):
    """Divides by the rows of all ranks and micro-batches: rows may be split unequally."""

    def step(self, *batches: Batch) -> float:
        count = torch.tensor(float(sum(len(one["x"]) for one in batches)))
        if self.world_size > 1:
            dist.all_reduce(count)
        self.optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = (
                cross_entropy(self.model(batch["x"]), batch["y"], reduction="sum") / count * self.world_size
            )
            loss.backward()
            total += loss.item()
        self.reduce()
        self.update()
        return total


class ContrastiveGathers(OneBatch, Contrastive):
    def loss(self, batch: Batch) -> Tensor:
        whole = ClipLoss(local_loss=True, gather_with_grad=True, rank=self.rank, world_size=self.world_size)
        loss: Tensor = whole(*self.model(batch["image"], batch["text"]))
        return loss


class GradCache(Contrastive):
    """Features first, without a graph; then the loss's gradients by features; then each micro-batch again."""

    def step(self, *batches: Batch) -> float:
        self.optimizer.zero_grad()
        loss_function = ClipLoss(
            rank=self.rank, world_size=self.world_size, local_loss=True, gather_with_grad=True
        )
        with torch.no_grad():
            parts = [self.net(one["image"], one["text"])[:2] for one in batches]
        image, text = (torch.cat(one).requires_grad_() for one in zip(*parts, strict=True))
        scale = self.net.scale.exp().detach().requires_grad_()  # type: ignore[operator, union-attr]
        loss: Tensor = loss_function(image, text, scale)
        loss.backward()
        first = 0
        for number, batch in enumerate(batches, 1):
            own = slice(first, first + len(batch["image"]))
            first = own.stop
            with self.context(number == len(batches)):
                seen = self.model(batch["image"], batch["text"])
                surrogate = (seen[0] * image.grad[own]).sum() + (seen[1] * text.grad[own]).sum()  # type: ignore[index]
                if number == len(batches):
                    surrogate = surrogate + seen[2] * scale.grad
                else:
                    surrogate = surrogate + 0 * seen[2]
                if surrogate.requires_grad:
                    surrogate.backward()
        self.update()
        return loss.item()


class Embeds(Ddp):
    """Words with an embedding, which most rows leave alone, and LayerNorm."""

    def make(self) -> nn.Module:
        return nn.Sequential(nn.EmbeddingBag(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))

    def batch(self, rows: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(7, (rows, 4), generator=generator)
        return {"x": words, "y": torch.randint(3, (rows,), generator=generator)}


class Convolves(Ddp):
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))

    def batch(self, rows: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 2, 4, 4, generator=generator)
        return {"x": x, "y": torch.randint(3, (rows,), generator=generator)}


class Attends(Ddp):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(normalize(self.attention(x, x, x, need_weights=False)[0].mean(1), dim=-1))

    def make(self) -> nn.Module:
        return self.Net()

    def batch(self, rows: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 5, 4, generator=generator)
        return {"x": x, "y": torch.randint(3, (rows,), generator=generator)}


class Checkpoints(Ddp):
    """Computes the forward pass again, in backward."""

    def loss(self, batch: Batch) -> Tensor:
        logits = checkpoint(self.model, batch["x"], use_reentrant=False)
        return cross_entropy(logits, batch["y"])


class Functional(Trainer):
    """Takes gradients by `torch.func`."""

    def accumulate(self, batches: tuple[Batch, ...]) -> float:
        named = dict(self.net.named_parameters())
        given = {name: one.detach() for name, one in named.items() if one.requires_grad}
        rest = {name: one.detach() for name, one in named.items() if not one.requires_grad}

        def mean(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
            logits = functional_call(self.net, {**parameters, **rest}, (batch["x"],))
            return cross_entropy(logits, batch["y"]) / len(batches)

        total = 0.0
        for batch in batches:
            gradients, loss = grad_and_value(mean)(given, batch)
            total += loss.item()
            for name, one in gradients.items():
                own = named[name]
                own.grad = one if own.grad is None else own.grad + one
        return total


class Compiles(Trainer):
    def wrap(self, net: nn.Module) -> nn.Module:
        compiled: nn.Module = torch.compile(super().wrap(net), backend="eager")  # type: ignore[assignment]
        return compiled


class Autocasts(Ddp):
    def loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().loss(batch)


class FrozenStatistics(Ddp):
    """BatchNorm in eval mode, which normalises each row alone."""

    def make(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(WIDTH, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 3))
        net[1].eval()
        return net


class CountsBatches(Ddp):
    """Counts what its model has seen: micro-batches, rows, and those of this rank, which it says."""

    local_buffers = ("own", "loss_of_*")

    def make(self) -> nn.Module:
        net = super().make()
        for name in ("batches", "rows", "own"):
            net.register_buffer(name, torch.tensor(0))
        net.register_buffer("loss_of_rank", torch.tensor(0.0))
        net.register_buffer("cache", torch.tensor(0.0), persistent=False)
        return net

    def loss(self, batch: Batch) -> Tensor:
        rows = torch.tensor(len(batch["x"]))
        self.net.own += rows  # type: ignore[operator]
        if self.world_size > 1:
            dist.all_reduce(rows)
        self.net.rows += rows  # type: ignore[operator]
        self.net.batches += 1  # type: ignore[operator]
        loss = super().loss(batch)
        self.net.loss_of_rank.fill_(loss.detach())  # type: ignore[operator, union-attr]
        self.net.cache.fill_(loss.detach())  # type: ignore[operator, union-attr]
        return loss


class Averages(Ddp):
    """Keeps an average of the weights beside the model."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def update(self) -> None:
        super().update()
        self.average.update_parameters(self.net)


class AveragesOnRankZero(Averages):
    """Rank 0 alone keeps it: it writes the checkpoint."""

    def update(self) -> None:
        Ddp.update(self)
        if self.rank == 0:
            self.average.update_parameters(self.net)


class BroadcastsBuffers(OneBatch, Ddp):
    """Rank 0 alone updates a buffer, which DistributedDataParallel then gives to the others."""

    def make(self) -> nn.Module:
        net = super().make()
        net.register_buffer("steps", torch.tensor(0.0))
        return net

    def update(self) -> None:
        super().update()
        if self.rank == 0:
            self.net.steps += 1  # type: ignore[operator]


class QueueGathers(OneBatch, Queued):
    pass


class SavesState(OneBatch, Ddp):
    """Holds a bias in no module; a checkpoint has it, as it says."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.bias = torch.zeros(3)

    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) + (self.model(batch["x"]) @ self.bias).mean()

    def update(self) -> None:
        super().update()
        self.bias = self.bias + 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"bias": self.bias}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bias = state["bias"]


class StatesAPart(SavesState):
    """A checkpoint of a rank has its own loss, and its part of an average and of what the optimizer holds."""

    logged = 0.0

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.average = self.flat()

    def flat(self) -> Tensor:
        """Return the rank's part of all parameters in a row."""
        flat = torch.cat([one.detach().flatten() for one in self.net.parameters()])
        return flat.tensor_split(self.world_size)[self.rank].clone()

    def step(self, batch: Batch) -> float:
        self.logged = super().step(batch)
        self.average.lerp_(self.flat(), 0.1)
        return self.logged

    def state_dict(self) -> dict[str, Any]:
        own = torch.full((3,), float(self.world_size))
        return {
            **super().state_dict(),
            "average": self.average,
            "loss": torch.tensor(self.logged),
            "optimizer": {**self.optimizer.state_dict(), "state": own},
            "generator": torch.get_rng_state(),
        }


class DrawsAllRows(Dropped):
    pass


class DrawsAllRowsUnpromised(Dropped):
    promises = ()


class StatesGenerator(Ddp):
    """Each rank draws numbers of its own, from a seed of rank and step."""

    promises = ("rng",)
    taken = 0

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 6), nn.GELU(), nn.Linear(6, 3))

    def step(self, *batches: Batch) -> float:
        found = super().step(*batches)
        self.taken += 1
        torch.manual_seed(1000 * self.taken + self.rank)
        return found

    def rng_state(self, steps: int) -> int:
        return 1000 * steps + self.rank


class DropsOfRank(Ddp):
    """Each rank drops what it draws, of which nothing is promised."""

    def make(self) -> nn.Module:
        drops = nn.Dropout(0.3), nn.AlphaDropout(0.2)
        return nn.Sequential(nn.Linear(WIDTH, 6), drops[0], nn.GELU(), drops[1], nn.Linear(6, 3))

    def loss(self, batch: Batch) -> Tensor:
        kept = torch.rand(len(batch["x"]), 1) < 0.8
        noise = 0.1 * torch.randn_like(batch["x"])
        return super().loss({**batch, "x": (batch["x"] + noise) * kept})


class AttendsWithDropout(Attends):
    def make(self) -> nn.Module:
        return nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(20, 3)
        )


class GivesClosure(Ddp):
    """Computes gradients within the optimizer's step, as Lightning does."""

    def step(self, *batches: Batch) -> float:
        def closure() -> float:
            self.optimizer.zero_grad()
            total = self.accumulate(batches)
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            return total

        total: float = self.optimizer.step(closure)  # type: ignore[arg-type]
        return total


class CompilesDdp(OneBatch, Compiles, Ddp):
    """torch.compile around DistributedDataParallel."""


class WrapsPart(NoneFrozen, OneBatch, Trainer):
    """A part of the model is frozen, another within DistributedDataParallel, as one of two towers."""

    def wrap(self, net: nn.Module) -> nn.Module:
        net[0].requires_grad_(False)  # type: ignore[index]
        if self.world_size > 1:
            net[2] = nn.parallel.DistributedDataParallel(net[2])  # type: ignore[index, operator]
        return net

    def reduce(self) -> None:
        """It has been done."""


class Experts(NoneFrozen, OneBatch, Ddp):
    """Each row goes to one of three experts: those without rows get no gradient."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(WIDTH, 3)
            self.experts = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            gate, chosen = self.router(x).softmax(-1).max(-1)
            found = x.new_zeros(len(x), 3)
            for number, expert in enumerate(self.experts):
                rows = torch.nonzero(chosen == number)[:, 0]
                if len(rows):
                    found = found.index_add(0, rows, gate[rows, None] * expert(x[rows]))
            return found

    def make(self) -> nn.Module:
        return self.Net()

    def wrap(self, net: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return net
        return nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)


class ShardsOptimizer(Trainer):
    """Each parameter has an owner, which alone gets its gradient, updates it and sends it to the others."""

    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        self.trained = parameters
        own = parameters[self.rank :: self.world_size]
        return torch.optim.SGD([{"params": own}], self.lr, momentum=0.9)

    def reduce(self) -> None:
        for number, one in enumerate(self.trained):
            if self.world_size > 1 and one.grad is not None:
                dist.reduce(one.grad, number % self.world_size)
                one.grad /= self.world_size

    def update(self) -> None:
        super().update()
        self.net.zero_grad()
        for number, one in enumerate(self.trained):
            if self.world_size > 1:
                dist.broadcast(one.data, number % self.world_size)


class WithoutOptimizer(OneBatch, Trainer):
    """Updates parameters by hand, and leaves no gradient."""

    def backward(self, loss: Tensor) -> None:
        trained = [one for one in self.net.parameters() if one.requires_grad]
        with torch.no_grad():
            for one, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                if self.world_size > 1:
                    dist.all_reduce(gradient)
                one.sub_(self.lr / self.world_size * gradient)

    def reduce(self) -> None:
        """It has been done."""

    update = reduce


class CountsSteps(Ddp):
    """A term grows with the number of steps, which is an int."""

    steps = 0

    def loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch["x"])
        return cross_entropy(logits, batch["y"]) + self.steps / 5 * logits.square().mean()

    def update(self) -> None:
        super().update()
        self.steps += 1


@dataclass(slots=True)
class _Progress:
    steps: int = 0
    averages: dict[str, float] = field(default_factory=dict)


class CountsInItsProgress(Ddp):
    """Terms grow with the number of steps, and with an average of the loss, which an object of its holds."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.progress = _Progress()

    def loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch["x"])
        weight = self.progress.steps / 5 + self.progress.averages.get("loss", 0.0)
        return cross_entropy(logits, batch["y"]) + weight * logits.square().mean()

    def step(self, *batches: Batch) -> float:
        total = super().step(*batches)
        self.progress.steps += 1
        self.progress.averages["loss"] = 0.9 * self.progress.averages.get("loss", 0.0) + 0.1 * total
        return total


class FirstFsdp(NoneFrozen, OneBatch, Trainer):
    """FullyShardedDataParallel, the first of its kind."""

    def wrap(self, net: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return net
        return FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))

    def reduce(self) -> None:
        """It has been done."""


class _Signed(torch.optim.Optimizer):
    """Moves every element by as much, as Lion does, down its gradient."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is not None:
                    one.sub_(group["lr"] * one.grad.sign())


class AttendsAndSigns(Attends):
    """The gradient of the keys' bias is 0 but for rounding, which decides about its sign."""

    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return _Signed(parameters)


class Overflows(ClipsUnscaled):
    """Gradients of scaled losses overflow, so that no step is taken; clipping makes some of them NaN."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=math.inf)


class OverflowsAndClears(Overflows):
    """Clears gradients after the step that is skipped."""

    def step(self, *batches: Batch) -> float:
        total = super().step(*batches)
        self.optimizer.zero_grad()
        return total


class OverflowsOnRanks(Trainer):
    """In half precision gradients of a rank's mean over few rows overflow, and those of all rows do not."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.scaler = torch.amp.GradScaler("cpu")

    def loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return super().loss({**batch, "x": 3 * batch["x"]})

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()


class _Averages(torch.optim.SGD):
    """Averages gradients over ranks before it steps, as Horovod's does."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            average([one.grad for one in group["params"]])
        super().step(closure)


class AveragesInStep(Trainer):
    """The optimizer's own step reduces gradients where they are."""

    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return _Averages(parameters, self.lr, momentum=0.9)

    def reduce(self) -> None:
        """The optimizer does."""


class _AveragesApart(torch.optim.Optimizer):
    """Averages copies of the gradients over ranks, as ZeRO's second stage does."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            copies = [None if one.grad is None else one.grad.clone() for one in group["params"]]
            average(copies)
            for one, gradient in zip(group["params"], copies, strict=True):
                if gradient is not None:
                    one.sub_(group["lr"] * gradient)


class AveragesApart(AveragesInStep):
    """Nobody sees the gradients of all ranks but the optimizer."""

    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return _AveragesApart(parameters, self.lr)


class UpdatesCopies(Trainer):
    """Adds up gradients apart from the model, for an optimizer of copies of its parameters."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.trained = [one for one in self.net.parameters() if one.requires_grad]
        self.copies = [one.detach().clone().requires_grad_() for one in self.trained]
        self.optimizer = self.optimize(self.copies)  # type: ignore[arg-type]
        self.scaler = torch.amp.GradScaler("cpu")

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        for copied, one in zip(self.copies, self.trained, strict=True):
            added = torch.zeros_like(one) if one.grad is None else one.grad
            copied.grad = added if copied.grad is None else copied.grad + added
            one.grad = None

    def reduce(self) -> None:
        average(one.grad for one in self.copies)

    def update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for copied, one in zip(self.copies, self.trained, strict=True):
                one.copy_(copied)


class AveragesInHook(AveragesInStep):
    """A hook of the optimizer's reduces gradients."""

    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, self.lr, momentum=0.9)
        optimizer.register_step_pre_hook(lambda *given: average([one.grad for one in parameters]))
        return optimizer


class Probabilities(Ddp):
    """Its loss checks that targets are from 0 to 1."""

    def loss(self, batch: Batch) -> Tensor:
        targets = one_hot(batch["y"], CLASSES).to(batch["x"].dtype)
        return binary_cross_entropy(self.model(batch["x"]).sigmoid(), targets)


class CountsInFloats(Ddp):
    """Each row uses as many of its numbers as a mask of floats says, whose sum is an index."""

    def loss(self, batch: Batch) -> Tensor:
        mask = (torch.arange(WIDTH) <= batch["y"][:, None]).to(batch["x"].dtype)
        last = batch["x"].cumsum(1)[torch.arange(len(mask)), mask.sum(1).long() - 1]
        return cross_entropy(self.model(batch["x"] * mask) + last[:, None] * mask[:, :CLASSES], batch["y"])


class _Average:
    """An average of a model's weights, as a plain object keeps it."""

    def __init__(self, net: nn.Module) -> None:
        self.module, self.updates = copy.deepcopy(net).requires_grad_(False), 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self.updates += 1
        for one, own in zip(self.module.parameters(), net.parameters(), strict=True):
            one.lerp_(own, 1 / (1 + self.updates))


class TaughtByAverage(Ddp):
    """A term has the average for a teacher."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.teacher = _Average(self.net)

    def loss(self, batch: Batch) -> Tensor:
        taught = self.teacher.module(batch["x"]).softmax(-1)
        return super().loss(batch) + cross_entropy(self.model(batch["x"]), taught)

    def update(self) -> None:
        super().update()
        self.teacher.update(self.net)


class ReadsScheduler(Ddp):
    """A term grows with the steps that the scheduler counts."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch["x"])
        return cross_entropy(logits, batch["y"]) + self.scheduler.last_epoch / 5 * logits.square().mean()

    def update(self) -> None:
        super().update()
        self.scheduler.step()


class CountsInATensor(CountsSteps):
    """The number of steps is a tensor."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.steps = torch.zeros(())  # type: ignore[assignment]

    def update(self) -> None:
        Ddp.update(self)
        self.steps = self.steps + 1


class TakesTurns(NoneFrozen, Trainer):
    """One head is trained for ten steps, then the other."""

    steps = 0

    def make(self) -> nn.Module:
        return nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.net[self.steps // 10 % 2](batch["x"]), batch["y"])

    def update(self) -> None:
        super().update()
        self.steps += 1


class RoundsItsLoss(Ddp):
    """It logs four decimals."""

    def step(self, *batches: Batch) -> float:
        return round(super().step(*batches), 4)


class LogsOneDecimal(Trainer):
    def step(self, *batches: Batch) -> float:
        return float(f"{10 * super().step(*batches):.1f}")


class LogsThreeDigits(Trainer):
    """Of losses about 10, whose last digits are decimals of two kinds."""

    def step(self, *batches: Batch) -> float:
        return float(f"{9 * super().step(*batches):.3g}")


class SeedsItself(Ddp):
    """Each rank seeds the masks of its dropout by itself and the step."""

    steps = 0

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 6), nn.Dropout(0.1), nn.Linear(6, CLASSES))

    def step(self, *batches: Batch) -> float:
        torch.manual_seed(1000 * self.steps + self.rank)
        self.steps += 1
        return super().step(*batches)


class DrawsByItself(Ddp):
    """Noise is from a generator of each rank's own."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str] = ()) -> None:
        super().__init__(rank, world_size, frozen)
        self.steps = 0

    def step(self, *batches: Batch) -> float:
        generator = torch.Generator().manual_seed(1000 * self.steps + self.rank)
        self.steps += 1
        noisy = [one | {"x": one["x"] + torch.randn(one["x"].shape, generator=generator)} for one in batches]
        return super().step(*noisy)


@functools.cache
def ranks() -> int:
    """Of this process's group, asked once."""
    return dist.get_world_size() if dist.is_initialized() else 1


class AsksOnce(Trainer):
    """Simulated ranks share what it asks for once in a process."""

    def reduce(self) -> None:
        for one in self.net.parameters():
            if ranks() > 1 and one.grad is not None:
                dist.all_reduce(one.grad)
                one.grad /= ranks()


class PlansBuckets(Trainer):
    """The first step plans what is reduced together."""

    bucket: list[nn.Parameter] | None = None
    is_planned = False

    def reduce(self) -> None:
        if not self.is_planned:
            self.bucket = [one for one in self.net.parameters() if one.grad is not None]
            self.is_planned = True
        average(one.grad for one in self.bucket)  # type: ignore[union-attr]


class FilteredRows(Filtered):
    pass


class Wrapper(nn.Module):
    """Calls a module, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class WrapsByHand(Trainer):
    """Its parameters have a prefix where there are several ranks."""

    def wrap(self, net: nn.Module) -> nn.Module:
        return Wrapper(net) if self.world_size > 1 else net


class LogsOnRankZero(Trainer):
    """The mean over ranks, where it is logged."""

    def step(self, *batches: Batch) -> float | None:  # type: ignore[override]
        total = torch.tensor(super().step(*batches))
        average([total])
        return total.item() if self.rank == 0 else None


class LeavesABias(Trainer):
    """The first bias is as it was made."""

    def optimize(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        found = super().optimize(parameters)
        bias = self.net[0].bias  # type: ignore[index]
        found.param_groups[0]["params"] = [one for one in parameters if one is not bias]
        return found

    def step(self, *batches: Batch) -> float:
        self.net.zero_grad()
        return super().step(*batches)
