"""Training steps of the small CLIP of `digits_clip.py`, in five forms, to be certified:

    verified-losses certify examples/digits_step.py:make_step --as step --config form=ddp --world proc:2

Forms: `alone` (one process), `ddp`, `accumulated` (DistributedDataParallel, the features of all micro-batches
first), `fsdp` (FSDP2) and `hand` (gradients are reduced by hand).
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from digits_clip import CAPTIONS, TEMPLATES, TwoTowers, tokenize
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from verified_losses import ClipLoss, SigLipLoss

FORMS = ("alone", "ddp", "accumulated", "fsdp", "hand")
Batch = dict[str, Tensor]


class Step:
    """One trainer: `model`, `step` and `batch` are what is certified."""

    def __init__(self, rank: int, world_size: int, frozen: Iterable[str], form: str, loss: str) -> None:
        self.form, self.world_size = form, world_size
        self.net = TwoTowers(1 / 0.07, None) if loss == "clip" else TwoTowers(10.0, -10.0)
        self.net.to(torch.get_default_dtype())
        for name, one in self.net.named_parameters():
            one.requires_grad_(name not in frozen)
        self.model = self.wrap()
        self.loss: nn.Module = (
            ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
            if loss == "clip"
            else SigLipLoss(rank=rank, world_size=world_size)
        )
        required = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.SGD(required, 0.1 if loss == "clip" else 0.02, momentum=0.9)

    def wrap(self) -> nn.Module:
        """Return the model as it is trained."""
        if self.world_size > 1 and self.form in ("ddp", "accumulated"):
            return DistributedDataParallel(self.net)
        if self.world_size > 1 and self.form == "fsdp":
            fully_shard(self.net.image)
            fully_shard(self.net, ignored_params=set(self.scalars()))  # it shards nothing of no dimensions
        return self.net

    def scalars(self) -> list[nn.Parameter]:
        """Return the scale, and the bias where there is one."""
        return [one for one in (self.net.logit_scale, self.net.logit_bias) if one is not None]

    def batch(self, rows: int, seed: int) -> Batch:
        """Return images of digits and their captions."""
        generator = torch.Generator().manual_seed(seed)
        data = load_digits()
        picked = torch.randint(len(data.data), (rows,), generator=generator)
        template = torch.randint(len(TEMPLATES), (rows,), generator=generator)
        captions = tokenize(CAPTIONS)[torch.tensor(data.target)[picked] * len(TEMPLATES) + template]
        images = torch.tensor(data.data, dtype=torch.get_default_dtype())[picked] / 16
        return {"images": images, "captions": captions}

    def reduce(self) -> None:
        """Average what nobody else does over the ranks."""
        others = {"hand": list(self.net.parameters()), "fsdp": self.scalars()}.get(self.form, [])
        for one in others if self.world_size > 1 else []:
            if one.grad is not None:
                dist.all_reduce(one.grad)
                one.grad /= self.world_size

    def take(self, batch: Batch) -> float:
        """Train on a batch; return its loss."""
        self.optimizer.zero_grad()
        loss: Tensor = self.loss(*self.model(batch["images"], batch["captions"]))
        loss.backward()
        return self.finish(loss)

    def finish(self, loss: Tensor) -> float:
        """Take the optimizer's step, once gradients are there."""
        self.reduce()
        self.optimizer.step()
        with torch.no_grad():
            self.net.logit_scale.clamp_(0, math.log(100))
        return loss.item()


class Alone(Step):
    """Takes one batch."""

    def step(self, batch: Batch) -> float:
        """Train on it."""
        return self.take(batch)


class Accumulated(Step):
    """Takes several micro-batches, whose rows are all negatives of one another."""

    def step(self, *batches: Batch) -> float:
        """Compute features first, then their gradients, then those of parameters by micro-batches."""
        self.optimizer.zero_grad()
        with torch.no_grad():
            parts = [self.net(one["images"], one["captions"]) for one in batches]
        features = [torch.cat(one).requires_grad_() for one in list(zip(*parts, strict=True))[:2]]
        scalars = [one.detach().requires_grad_() for one in parts[0][2:] if one is not None]
        loss: Tensor = self.loss(*features, *scalars)
        loss.backward()
        first = 0
        for number, batch in enumerate(batches, 1):
            own = slice(first, first + len(batch["images"]))
            first, is_last = own.stop, number == len(batches)
            with self.context(is_last):
                seen = self.model(batch["images"], batch["captions"])
                pairs = [(one, whole.grad[own]) for one, whole in zip(seen, features, strict=False)]
                pairs += [(one, is_last * whole.grad) for one, whole in zip(seen[2:], scalars, strict=False)]
                torch.autograd.backward(*zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True))
        return self.finish(loss)

    def context(self, is_last: bool) -> AbstractContextManager[Any]:
        """Reduce gradients with the last micro-batch."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()


def make_step(
    rank: int, world_size: int, frozen: Iterable[str] = (), form: str = "ddp", loss: str = "clip"
) -> Step:
    """Return a trainer of a form.

    Raises:
        ValueError: there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    return (Accumulated if form == "accumulated" else Alone)(rank, world_size, frozen, form, loss)
