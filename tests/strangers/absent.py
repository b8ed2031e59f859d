"""Losses of packages that are not installed, as their users write them."""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput, logging

logger = logging.get_logger(__name__)


class Lit(pl.LightningModule):  # type: ignore[misc]  # it is not installed
    """Asks its trainer for the number of ranks, and reads what it has saved."""

    def __init__(self, temperature: float = 0.07, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["lr"])

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        z1, z2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
        everyone = self.all_gather(z2, sync_grads=True).flatten(0, 1) if self.trainer.world_size > 1 else z2
        logits = z1 @ everyone.T / self.hparams.temperature
        at = torch.arange(len(z1)) + len(z1) * self.trainer.global_rank
        loss = F.cross_entropy(logits, at)
        self.log("train/loss", loss, prog_bar=self.trainer.is_global_zero)
        return loss


@dataclass
class DualOutput(ModelOutput):  # type: ignore[misc]
    loss: Tensor | None = None
    logits_per_image: Tensor | None = None


class Dual(nn.Module):
    """Returns a loss where it is asked for one."""

    def __init__(self, logit_scale_init_value: float = 2.6592) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale_init_value))

    def forward(self, text_embeds: Tensor, image_embeds: Tensor, return_loss: bool | None = None) -> Any:
        text_embeds, image_embeds = F.normalize(text_embeds, dim=-1), F.normalize(image_embeds, dim=-1)
        logits = self.logit_scale.exp() * image_embeds @ text_embeds.T
        at = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2 if return_loss else None
        return DualOutput(loss=loss, logits_per_image=logits)
