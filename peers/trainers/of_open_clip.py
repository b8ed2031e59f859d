"""open_clip_torch: its own loop, `open_clip_train.train.train_one_epoch`, one epoch of one step at a time.

The package itself is not imported: it needs torchvision, timm and ftfy, and its loop needs neither.
"""

import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from peers.trainers.model import Batch, TwoTowers, paired


def _bare(name: str, **names: Any) -> None:
    """Let a package be imported without running its own `__init__`; it has these names."""
    spec = importlib.util.find_spec(name) if "." not in name else None
    sys.modules[name] = module = types.ModuleType(name)
    if spec is not None and spec.origin:
        module.__path__ = [str(Path(spec.origin).parent)]
    vars(module).update(names)


if "open_clip" not in sys.modules:
    _bare("open_clip", get_input_dtype=lambda precision: None, CLIP=TwoTowers, CustomTextCLIP=TwoTowers)
    _bare("open_clip_train.zero_shot", zero_shot_eval=None)

from open_clip.loss import ClipLoss  # noqa: E402
from open_clip_train.train import train_one_epoch  # noqa: E402


class _Loader:
    def __init__(self, batches: tuple[Batch, ...]) -> None:
        self.batches = batches
        self.num_batches = len(batches)
        self.num_samples = sum(len(one["image"]) for one in batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter([(one["image"], one["text"]) for one in self.batches])


class _Writer:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.values[name] = value


class OpenClip:
    """Its defaults, but for `local_loss` and `gather_with_grad`, which its README recommends."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        frozen: Iterable[str] = (),
        local_loss: bool = True,
        gather_with_grad: bool = True,
    ) -> None:
        net = TwoTowers(frozen)
        self.model = DistributedDataParallel(net) if world_size > 1 else net
        self.loss = ClipLoss(
            local_loss, gather_with_grad, cache_labels=True, rank=rank, world_size=world_size
        )
        self.optimizer = torch.optim.AdamW([one for one in net.parameters() if one.requires_grad], 1e-3)
        self.world_size = world_size
        self.batch = paired

    def step(self, *batches: Batch) -> float:
        """Train an epoch of one step."""
        writer = _Writer()
        # rank: every rank logs, not the first alone
        args = SimpleNamespace(
            device="cpu", precision="fp32", distill=False, accum_freq=len(batches), skip_scheduler=True,
            horovod=False, grad_clip_norm=None, rank=0, local_rank=0, world_size=self.world_size,
            log_every_n_steps=1, batch_size=len(batches[0]["image"]), wandb=False,
        )  # fmt: skip
        data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=_Loader(batches))}
        train_one_epoch(self.model, data, self.loss, 0, self.optimizer, None, None, None, args, writer)
        return writer.values["train/loss"]
