"""transformers: `Trainer.train`, one step at a time."""

import tempfile
from collections.abc import Iterable
from typing import Any

import torch

from peers.trainers.load import installed

installed("transformers")

from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402
from transformers.utils import logging  # noqa: E402

from peers.trainers.model import Batch, Classifier, classified  # noqa: E402

logging.set_verbosity_error()


def forget() -> None:
    """Forget the trainer before this one, whose state is shared."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


class _Rows(Dataset):  # type: ignore[type-arg]
    """Stands for the data that `get_train_dataloader` below brings."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Batch:
        raise NotImplementedError


class _Trainer(Trainer):  # type: ignore[misc]
    batches: list[Batch]

    def get_train_dataloader(self) -> list[Batch]:
        return self.batches


class HuggingFace:
    """Its defaults, with SGD, without clipping."""

    def __init__(
        self, rank: int, world_size: int, frozen: Iterable[str] = (), max_grad_norm: float = 0.0
    ) -> None:
        forget()
        self.model = Classifier(frozen)
        self.arguments: dict[str, Any] = {
            "use_cpu": True, "max_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
            "logging_strategy": "no", "max_grad_norm": max_grad_norm, "remove_unused_columns": False,
        }  # fmt: skip
        if world_size > 1:
            self.arguments["ddp_backend"] = "gloo"
        required = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.SGD(required, 0.1, momentum=0.9)
        self.batch = classified
        self.folder = tempfile.mkdtemp()

    def step(self, *batches: Batch) -> float:
        """Train on micro-batches."""
        constant = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        arguments = TrainingArguments(self.folder, gradient_accumulation_steps=len(batches), **self.arguments)
        trainer = _Trainer(
            self.model, arguments, train_dataset=_Rows(), optimizers=(self.optimizer, constant)
        )
        trainer.batches = list(batches)
        return float(trainer.train().training_loss)
