"""pytorch-metric-learning: NT-Xent over two views, alone or in its wrapper for several ranks."""

import torch

from peers.load import installed

installed("pytorch_metric_learning")

from pytorch_metric_learning.losses import NTXentLoss as Pairs  # noqa: E402
from pytorch_metric_learning.losses import SelfSupervisedLoss  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402


class NTXentLoss:
    """The views of one rank."""

    def __init__(self, temperature: float) -> None:
        self.loss = SelfSupervisedLoss(Pairs(temperature))

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.loss(first, second)


class Distributed:
    """The views of all ranks, on every rank."""

    def __init__(self, temperature: float, rank: int) -> None:
        self.loss = DistributedLossWrapper(Pairs(temperature), efficient=False)
        self.rank = rank

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        # pairs are told apart by their labels: no two ranks may share one
        labels = 1_000_000 * self.rank + torch.arange(len(first))
        return self.loss(torch.cat((first, second)), torch.cat((labels, labels)))
