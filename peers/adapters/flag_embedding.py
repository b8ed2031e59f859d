"""FlagEmbedding: queries among the passages of all ranks. An adapter, as the loss is a method of a model."""

from typing import Any

import torch
import torch.distributed as dist

from peers.load import bare

bare(
    "FlagEmbedding", "FlagEmbedding.abc", "FlagEmbedding.abc.finetune", "FlagEmbedding.abc.finetune.embedder"
)
bare(
    "FlagEmbedding.finetune",
    "FlagEmbedding.finetune.embedder",
    "FlagEmbedding.finetune.embedder.encoder_only",
)
bare("FlagEmbedding.finetune.embedder.encoder_only.base")

import FlagEmbedding.abc.finetune.embedder as embedder  # noqa: E402
from FlagEmbedding.abc.finetune.embedder.AbsModeling import AbsEmbedderModel  # noqa: E402

embedder.AbsEmbedderModel = AbsEmbedderModel

from FlagEmbedding.finetune.embedder.encoder_only.base.modeling import BiEncoderOnlyEmbedderModel as Model  # noqa: E402


class BiEncoderOnlyEmbedderModel:
    """The loss of representations, which the model's own forward normalises."""

    def __init__(self, temperature: float) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.model = Model(None, negatives_cross_device=several, temperature=temperature)
        name = "_compute_cross_device_neg_loss" if several else "_compute_in_batch_neg_loss"
        self.loss = getattr(self.model, name)

    def __call__(self, first: Any, second: Any) -> Any:
        unit = torch.nn.functional.normalize
        return self.loss(unit(first, dim=-1), unit(second, dim=-1))[1]
