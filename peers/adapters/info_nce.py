"""info-nce-pytorch: queries among the keys of the batch, or against negatives that are given."""

import torch

from peers.load import installed

installed("info_nce")

from info_nce import InfoNCE, info_nce  # noqa: E402

__all__ = ["InfoNCE", "negatives"]


def negatives(
    query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor, temperature: float
) -> torch.Tensor:
    return info_nce(query, key, queue, temperature=temperature, negative_mode="unpaired")
