"""pytorch-metric-learning: NT-Xent over two views, alone or for several ranks; SupCon; triplets."""

import torch

from peers.load import installed

installed("pytorch_metric_learning")

from pytorch_metric_learning.distances import LpDistance  # noqa: E402
from pytorch_metric_learning.losses import NTXentLoss as Pairs  # noqa: E402
from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss, TripletMarginLoss  # noqa: E402
from pytorch_metric_learning.reducers import MeanReducer  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402

__all__ = ["Distributed", "NTXentLoss", "SupConLoss", "Triplets"]


class Triplets:
    """The mean hinge of squared distances over given triplets."""

    def __init__(self, margin: float) -> None:
        distance = LpDistance(normalize_embeddings=True, p=2, power=2)
        self.loss = TripletMarginLoss(margin, distance=distance, reducer=MeanReducer())

    def __call__(self, anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        n = len(anchor)
        places = torch.arange(3 * n)
        rows = torch.cat((anchor, positive, negative))
        labels = torch.zeros(3 * n, dtype=torch.long)
        return self.loss(rows, labels, indices_tuple=(places[:n], places[n : 2 * n], places[2 * n :]))


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
