"""CoCaLoss in one process or in several, with the same numbers printed.

python examples/coca.py
torchrun --nproc-per-node 2 examples/coca.py
"""

import torch
from _world import mean_over_ranks, report, start
from torch.nn.functional import normalize

from verified_losses import CoCaLoss


def main() -> None:
    rank, world_size = start()
    generator = torch.Generator().manual_seed(0)
    # 13 pairs, the same on every rank, which takes its own rows: 7 and 6 of them for two ranks
    images, texts = torch.randn(2, 13, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, 20, (13, 5), generator=generator)
    # captions end early: a padded token, 0, costs nothing, and ranks hold different numbers of tokens
    labels[torch.arange(5) >= torch.arange(13)[:, None] % 5 + 1] = 0
    image, text, label = (both.tensor_split(world_size)[rank] for both in (images, texts, labels))
    towers = torch.randn(2, 16, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    decoder = torch.randn(8, 5, 20, generator=generator, dtype=torch.float64, requires_grad=True)

    loss_function = CoCaLoss(
        caption_loss_weight=2.0,
        clip_loss_weight=1.0,
        local_loss=True,
        gather_with_grad=True,
        rank=rank,
        world_size=world_size,
    )
    image_features, text_features = normalize(image @ towers[0], dim=-1), normalize(text @ towers[1], dim=-1)
    logits = torch.einsum("nd,dtv->ntv", image_features, decoder)
    contrastive, caption = loss_function(image_features, text_features, logits, label, logit_scale=10.0)
    gradients = torch.autograd.grad(contrastive + caption, [towers, decoder])

    mean = [mean_over_ranks(gradient).norm() for gradient in gradients]
    contrastive, caption = mean_over_ranks(contrastive), mean_over_ranks(caption)
    report(rank, contrastive=contrastive, caption=caption, towers_gradient=mean[0], decoder_gradient=mean[1])


if __name__ == "__main__":
    main()
