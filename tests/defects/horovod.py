"""Upstream's two gathers over Horovod, each with what is wrong with it; see `index`."""

from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor

import verified_losses as good


class AveragesInBackward(good.ClipLoss):
    def get_logits(self, image_features: Tensor, text_features: Tensor, *scalars: Any) -> Any:
        if self.world_size == 1:
            return super().get_logits(image_features, text_features, *scalars)
        everyone = [all_gather(mine) for mine in (image_features, text_features)]
        return logits(self, image_features, text_features, everyone, *scalars)


class ChunksByWorldSize(good.ClipLoss):
    def get_logits(self, image_features: Tensor, text_features: Tensor, *scalars: Any) -> Any:
        if self.world_size == 1:
            return super().get_logits(image_features, text_features, *scalars)
        everyone = []
        for mine in (image_features, text_features):
            parts = list(all_gather(mine.detach()).chunk(self.world_size))
            if not self.local_loss:
                parts[self.rank] = mine
            everyone.append(torch.cat(parts))
        return logits(self, image_features, text_features, everyone, *scalars)


def all_gather(mine: Tensor) -> Tensor:
    # under inference mode Horovod raises, which is not what is planted
    with torch.inference_mode(False):
        everyone: Tensor = hvd.allgather(mine.contiguous())
    return everyone


def logits(
    loss: good.ClipLoss,
    image_features: Tensor,
    text_features: Tensor,
    everyone: list[Tensor],
    logit_scale: Any,
    logit_bias: Any = None,
) -> tuple[Tensor, Tensor]:
    bias = 0 if logit_bias is None else logit_bias
    images, texts = (image_features, text_features) if loss.local_loss else everyone
    per_image = logit_scale * images @ everyone[1].T + bias
    return per_image, logit_scale * texts @ everyone[0].T + bias if loss.local_loss else per_image.T
