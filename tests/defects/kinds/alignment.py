"""Alignment and uniformity, of a contract of its own: partners lie close, and all others apart."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from verified_losses.properties import contract, positive, rows


@contract(any_order=True, first=rows(unit=True), second=rows(unit=True, like="first"), t=positive(0.5, 3.0))
def alignment(first: Any, second: Any, t: Any) -> Any:
    """Wang and Isola 2020: the mean squared distance of partners, and the potential of each side."""
    if len(first) < 2:
        raise ValueError("expected two rows or more")
    total = np.sum((first - second) ** 2) / len(first)
    for side in (first, second):
        upper, lower = np.triu_indices(len(side), 1)
        squares = np.sum((side[upper] - side[lower]) ** 2, axis=1)
        total = total + np.log(np.mean(np.exp(-t * squares))) / 2
    return total


def by_distances(first: Tensor, second: Tensor, t: float) -> Tensor:
    """torch.pdist knows no half precision, and gives nothing, without a word, for one row."""
    aligned = (first - second).square().sum(1).mean()
    apart = [torch.pdist(side).square().mul(-t).exp().mean().log() for side in (first, second)]
    return aligned + sum(apart) / 2
