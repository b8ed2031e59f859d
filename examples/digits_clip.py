"""Train a small two-tower CLIP on scikit-learn's digits and their captions.

In one process, or data-parallel over several with DistributedDataParallel or Horovod. The batches are the
same for any number of processes, and so, to rounding, is the result:

    python examples/digits_clip.py
    torchrun --nproc-per-node 2 examples/digits_clip.py --loss siglip
    horovodrun --gloo -np 2 python examples/digits_clip.py --horovod
"""

import argparse
import math
import os
from collections.abc import Sequence

import torch
from _world import barrier, mean_over_ranks, start
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from verified_losses import ClipLoss, SigLipLoss

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ("the digit {}", "a handwritten {}", "a small picture of the number {}", "{}")
CAPTIONS = [template.format(digit) for digit in DIGITS for template in TEMPLATES]
WORDS = ["<pad>", *dict.fromkeys(" ".join(CAPTIONS).split())]
LENGTH = max(len(caption.split()) for caption in CAPTIONS)


class TwoTowers(nn.Module):
    """Both towers in one forward, so that DistributedDataParallel sees one call a step."""

    def __init__(self, init_logit_scale: float, init_logit_bias: float | None, width: int = 32) -> None:
        super().__init__()
        # smooth activations: a kink could turn a rounding error into a jump
        self.image = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, width))
        self.text = nn.EmbeddingBag(len(WORDS), width, mode="mean", padding_idx=0)
        self.logit_scale = nn.Parameter(torch.tensor(init_logit_scale).log())
        self.logit_bias = None if init_logit_bias is None else nn.Parameter(torch.tensor(init_logit_bias))

    def forward(self, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return features of [n, 64] pixels and of [n, LENGTH] words, the scale and the bias."""
        image_features = normalize(self.image(images), dim=-1)
        text_features = normalize(self.text(captions), dim=-1)
        return image_features, text_features, self.logit_scale.exp(), self.logit_bias


def tokenize(captions: Sequence[str]) -> Tensor:
    """Return the words' numbers, [n, LENGTH], padded with 0."""
    ids = [[WORDS.index(word) for word in caption.split()] for caption in captions]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in ids])


def retrieval_accuracy(model: TwoTowers, images: Tensor, digits: Tensor, captions: Tensor) -> float:
    """Return the share of images whose nearest digit, averaged over its captions, is the right one."""
    with torch.no_grad():
        image_features = normalize(model.image(images), dim=-1)
        text_features = normalize(model.text(captions), dim=-1)
        nearest = (image_features @ text_features.unflatten(0, (10, -1)).mean(1).T).argmax(1)
        return float((nearest == digits).double().mean())


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a small two-tower CLIP on digits and captions.")
    parser.add_argument("--loss", choices=("clip", "siglip"), default="clip")
    parser.add_argument("--local-loss", action="store_true", help="clip: compare own rows with all rows")
    parser.add_argument("--gather-with-grad", action="store_true", help="clip: gradients cross ranks")
    parser.add_argument("--convention", choices=("exact", "open_clip"), default="exact", help="clip")
    parser.add_argument("--dist-impl", choices=("bidir", "shift", "reduce", "gather"), help="siglip")
    parser.add_argument("--horovod", action="store_true", help="run over Horovod, under horovodrun")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=255, help="pairs a step, over all processes")
    parser.add_argument("--lr", type=float, help="default 0.1, for siglip 0.02")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", metavar="PATH", help="write the final parameters here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(args.device, local_rank) if args.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, world_size = start("nccl" if device.type == "cuda" else "gloo", args.horovod)
    dtype = torch.float64 if args.dtype == "float64" else torch.float32

    data = load_digits()
    images = (torch.tensor(data.data, dtype=dtype) / 16).to(device)
    digits = torch.tensor(data.target).to(device)
    captions = tokenize(CAPTIONS).to(device)
    held_out = len(images) // 5

    # made in float32, so that a run in float64 starts at the same point
    torch.manual_seed(args.seed)
    model = TwoTowers(1 / 0.07, None) if args.loss == "clip" else TwoTowers(10.0, -10.0)
    model.to(device, dtype)
    towers = DistributedDataParallel(model) if world_size > 1 and not args.horovod else model
    loss_function: nn.Module
    if args.loss == "clip":
        loss_function = ClipLoss(
            args.local_loss,
            args.gather_with_grad,
            rank=rank,
            world_size=world_size,
            use_horovod=args.horovod,
            convention=args.convention,
        )
    else:
        loss_function = SigLipLoss(
            rank=rank, world_size=world_size, dist_impl=args.dist_impl, use_horovod=args.horovod
        )
    lr = args.lr or (0.1 if args.loss == "clip" else 0.02)
    # not Adam: where a gradient is nearly zero, its step follows the sign of a rounding error
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    if args.horovod:
        import horovod.torch as hvd

        # averages gradients over the ranks, as DistributedDataParallel does
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    generator = torch.Generator().manual_seed(args.seed)
    for step in range(1, args.steps + 1):
        # drawn alike on every rank, which takes its own rows; ranks may differ in how many
        picked = torch.randint(held_out, len(images), (args.batch_size,), generator=generator)
        template = torch.randint(len(TEMPLATES), (args.batch_size,), generator=generator)
        mine = picked.tensor_split(world_size)[rank].to(device)
        caption = digits[mine] * len(TEMPLATES) + template.tensor_split(world_size)[rank].to(device)
        loss = loss_function(*towers(images[mine], captions[caption]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step == 1 or step % max(args.steps // 5, 1) == 0:
            whole = mean_over_ranks(loss)
            if rank == 0:
                print(f"step {step:4d}  loss {whole:.6f}", flush=True)

    if rank == 0:
        accuracy = retrieval_accuracy(model, images[:held_out], digits[:held_out], captions)
        print(f"held-out digits matched with the right caption: {accuracy:.1%} of {held_out}", flush=True)
        if args.save:
            torch.save({name: p.detach().cpu() for name, p in model.named_parameters()}, args.save)
    barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)  # towers this small lose time to threads
    main()
