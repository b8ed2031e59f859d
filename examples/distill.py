"""DistillClipLoss in one process or in several, with the same numbers printed.

python examples/distill.py
torchrun --nproc-per-node 2 examples/distill.py
"""

import torch
from _world import mean_over_ranks, report, start
from torch.nn.functional import normalize

from verified_losses import DistillClipLoss


def main() -> None:
    rank, world_size = start()
    generator = torch.Generator().manual_seed(0)
    # 13 pairs, the same on every rank, which takes its own rows: 7 and 6 of them for two ranks
    images, texts = torch.randn(2, 13, 16, generator=generator, dtype=torch.float64)
    image, text = (both.tensor_split(world_size)[rank] for both in (images, texts))
    student = torch.randn(2, 16, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 16, 12, generator=generator, dtype=torch.float64)  # may be wider

    loss_function = DistillClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
    contrastive, distill = loss_function(
        normalize(image @ student[0], dim=-1),
        normalize(text @ student[1], dim=-1),
        10.0,
        normalize(image @ teacher[0], dim=-1),
        normalize(text @ teacher[1], dim=-1),
        30.0,
    )
    (gradient,) = torch.autograd.grad(contrastive + distill, [student])

    contrastive, distill = mean_over_ranks(contrastive), mean_over_ranks(distill)
    report(rank, contrastive=contrastive, distill=distill, student_gradient=mean_over_ranks(gradient).norm())


if __name__ == "__main__":
    main()
