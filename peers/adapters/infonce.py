"""infonce: two views of a batch, one behind the other."""

import torch

from peers.load import installed

installed("infonce")

from infonce import InfoNCE, SupervisedInfoNCE  # noqa: E402


class TwoViews(InfoNCE):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat((first, second)))


class TwoViewsByLabel(SupervisedInfoNCE):
    """Each pair of views has a label of its own, so the loss is NT-Xent."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        labels = torch.arange(len(first))
        return super().forward(torch.cat((first, second)), torch.cat((labels, labels)))
