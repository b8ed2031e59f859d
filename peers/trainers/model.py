"""A small model, its batches and its towers, which all adapters train."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

Batch = dict[str, Tensor]
WIDTH, CLASSES = 4, 3


class Classifier(nn.Module):
    """Returns the mean loss over rows, as models of transformers do."""

    def __init__(self, frozen: Iterable[str] = ()) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(WIDTH, 6), nn.Linear(6, CLASSES)
        freeze(self, frozen)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss and the logits."""
        logits = self.head(nn.functional.gelu(self.hidden(x)))
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class TwoTowers(nn.Module):
    """A small CLIP, whose outputs have the names of open_clip's."""

    def __init__(self, frozen: Iterable[str] = ()) -> None:
        super().__init__()
        self.visual, self.transformer = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        freeze(self, frozen)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Any]:
        """Return unit rows, and the scale."""
        return {
            "image_features": normalize(self.visual(image), dim=-1),
            "text_features": normalize(self.transformer(text), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Let parameters require no grad."""
    for name, one in model.named_parameters():
        one.requires_grad_(name not in names)


def classified(rows: int, seed: int) -> Batch:
    """Return rows and their classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator)
    return {"x": x, "labels": torch.randint(CLASSES, (rows,), generator=generator)}


def paired(rows: int, seed: int) -> Batch:
    """Return pairs of rows."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, WIDTH, generator=generator) for name in ("image", "text")}
