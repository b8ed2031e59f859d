"""sentence-transformers: `SentenceTransformerTrainer.train`, one step at a time, ranking among documents."""

import tempfile
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from peers.trainers.load import installed

installed("sentence_transformers")

from sentence_transformers import (  # noqa: E402
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss  # noqa: E402
from transformers.utils import logging  # noqa: E402

from peers.trainers.model import WIDTH, Batch, freeze, paired  # noqa: E402
from peers.trainers.of_transformers import forget  # noqa: E402

logging.set_verbosity_error()


class _Tower(nn.Module):
    """Embeds what it gets as an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(WIDTH, 6), nn.Linear(6, 5)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        embedding = self.out(nn.functional.gelu(self.hidden(features["sentence_embedding"])))
        return {**features, "sentence_embedding": embedding}

    def preprocess(self, texts: Any, **_: Any) -> Any:
        return texts

    tokenize = preprocess


class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
    batches: list[Batch]

    def get_train_dataloader(self) -> list[Batch]:
        return self.batches


class SentenceTransformers:
    """Its defaults, with SGD, without clipping; `gather_across_devices` compares rows of all ranks."""

    def __init__(
        self, rank: int, world_size: int, frozen: Iterable[str] = (), gather_across_devices: bool = True
    ) -> None:
        forget()
        self.model = SentenceTransformer(modules=[_Tower()], device="cpu")
        freeze(self.model, frozen)
        self.gather = gather_across_devices and world_size > 1
        self.backend = {"ddp_backend": "gloo"} if world_size > 1 else {}
        required = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.SGD(required, 0.1, momentum=0.9)
        self.batch = paired
        self.folder = tempfile.mkdtemp()

    def step(self, batch: Batch) -> float:
        """Train on a batch."""
        return self.train(batch)

    def train(self, *batches: Batch) -> float:
        """Train on micro-batches."""
        arguments = SentenceTransformerTrainingArguments(
            self.folder, gradient_accumulation_steps=len(batches), use_cpu=True, max_steps=1, report_to=[],
            save_strategy="no", disable_tqdm=True, logging_strategy="no", max_grad_norm=0.0, **self.backend,
        )  # fmt: skip
        trainer = _Trainer(
            self.model,
            arguments,
            train_dataset=None,  # `get_train_dataloader` above brings the data
            loss=MultipleNegativesRankingLoss(self.model, gather_across_devices=self.gather),
            data_collator=lambda rows: rows,
            optimizers=(self.optimizer, torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)),
        )
        names = {"anchor": "image", "positive": "text"}
        trainer.batches = [
            {f"{name}_sentence_embedding": one[own] for name, own in names.items()} for one in batches
        ]
        return float(trainer.train().training_loss)


class Accumulates(SentenceTransformers):
    """With micro-batches, whose rows are no negatives of one another."""

    def step(self, *batches: Batch) -> float:  # type: ignore[override]
        """Train on micro-batches."""
        return self.train(*batches)
