"""ClipLoss in one process or in several, with the same numbers printed.

python examples/clip.py
torchrun --nproc-per-node 2 examples/clip.py
"""

import torch
from _world import mean_over_ranks, report, start
from torch.nn.functional import normalize

from verified_losses import ClipLoss


def main() -> None:
    rank, world_size = start()
    generator = torch.Generator().manual_seed(0)
    # 13 pairs, the same on every rank, which takes its own rows: 7 and 6 of them for two ranks
    images, texts = torch.randn(2, 13, 16, generator=generator, dtype=torch.float64)
    image, text = (both.tensor_split(world_size)[rank] for both in (images, texts))
    towers = torch.randn(2, 16, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    logit_scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)

    loss_function = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
    loss = loss_function(
        normalize(image @ towers[0], dim=-1), normalize(text @ towers[1], dim=-1), logit_scale
    )
    gradients = torch.autograd.grad(loss, [towers, logit_scale])

    mean = [mean_over_ranks(gradient).norm() for gradient in gradients]
    report(rank, loss=mean_over_ranks(loss), towers_gradient=mean[0], scale_gradient=mean[1])


if __name__ == "__main__":
    main()
