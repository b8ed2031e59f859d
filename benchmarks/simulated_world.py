"""Speed and memory of the simulated world: cases per second by world size, and the cost of one call.

    python benchmarks/simulated_world.py [--loss NAME] [--sizes 2,4,8,64,256] [--seconds 3] [--workers 2]

A case is ClipLoss forward and backward on 4 rows by 16 a rank. `--loss` names a module, or a file, with
a `ClipLoss` that takes open_clip's arguments; without it, a plain one over torch.distributed.nn stands in.
A world uses one processor; `--workers` runs as many at once, each in its own process, as `pytest -n` does,
and adds up their cases per second.
"""

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as functional

from verified_losses.properties.worlds.simulated import SimulatedWorld

ROWS, WIDTH = 4, 16


class PlainClipLoss(torch.nn.Module):
    """InfoNCE over gathered features, in the fewest calls."""

    def __init__(self, rank: int, world_size: int, gather_with_grad: bool) -> None:
        super().__init__()
        self.rank, self.world_size, self.gather_with_grad = rank, world_size, gather_with_grad

    def gather(self, features: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return features
        if self.gather_with_grad:
            return torch.cat(functional.all_gather(features))
        parts = [torch.empty_like(features) for _ in range(self.world_size)]
        dist.all_gather(parts, features)
        parts[self.rank] = features
        return torch.cat(parts)

    def forward(
        self, image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor
    ) -> Any:
        logits = logit_scale * self.gather(image_features) @ self.gather(text_features).T
        labels = torch.arange(len(logits), device=logits.device)
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def case(rank: int, size: int, loss: Callable[..., Any], gather_with_grad: bool, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed + rank)
    image, text = (torch.randn(ROWS, WIDTH, generator=generator).requires_grad_() for _ in range(2))
    scale = torch.tensor(10.0, requires_grad=True)
    value = loss(rank=rank, world_size=size, gather_with_grad=gather_with_grad)(image, text, scale)
    value.backward()
    return value.item()


def alone(rank: int, size: int, width: int, seed: int) -> None:
    """The arithmetic of one of `width` ranks, without communication."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(ROWS * width, WIDTH, generator=generator).requires_grad_() for _ in range(2))
    PlainClipLoss(0, 1, False)(image, text, torch.tensor(10.0, requires_grad=True)).backward()


def barriers(rank: int, size: int, calls: int) -> None:
    for _ in range(calls):
        dist.barrier()


def gathers(rank: int, size: int, calls: int) -> None:
    features = torch.zeros(ROWS, WIDTH)
    parts = [torch.empty_like(features) for _ in range(size)]
    for _ in range(calls):
        dist.all_gather(parts, features)


def measure(run: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Wall and processor seconds of one call, over about `seconds` in all."""
    run()
    wall, processor, calls = time.perf_counter(), time.process_time(), 0
    while calls == 0 or time.perf_counter() - wall < seconds:
        run()
        calls += 1
    return (time.perf_counter() - wall) / calls, (time.process_time() - processor) / calls


def load(name: str) -> Callable[..., Any]:
    if name.endswith(".py"):
        specification = importlib.util.spec_from_file_location("loss_under_benchmark", name)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    else:
        module = importlib.import_module(name)
    loss: Callable[..., Any] = module.ClipLoss
    return loss


def rate(name: str | None, size: int, gradient: bool, seconds: float) -> tuple[float, float]:
    """Wall and processor seconds of one case in this process."""
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    loss = load(name) if name else PlainClipLoss
    world = SimulatedWorld(size, timeout=600)
    return measure(lambda: world.run(case, loss, gradient, 0), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss")
    parser.add_argument("--sizes", default="2,4,8,64,256")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"{'ranks':>5} {'gradient':>8} {'ms/case':>9} {'cpu ms':>9} {'cases/s':>8} {'arithmetic ms':>13}")
    pool = ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn"))
    everyone = range(options.workers)
    list(pool.map(rate, *zip(*[(options.loss, 2, False, 3.0) for _ in everyone], strict=True)))  # imports
    for size in map(int, options.sizes.split(",")):
        arithmetic, _ = measure(lambda size=size: alone(0, 1, size, 0), options.seconds / 10)
        for gradient in (False, True):
            tasks = [(options.loss, size, gradient, options.seconds) for _ in everyone]
            walls, processors = zip(*pool.map(rate, *zip(*tasks, strict=True)), strict=True)
            print(
                f"{size:5} {gradient!s:>8} {sum(walls) / len(walls) * 1e3:9.2f} "
                f"{sum(processors) / len(processors) * 1e3:9.2f} {sum(1 / wall for wall in walls):8.1f} "
                f"{arithmetic * size * 1e3:13.2f}",
                flush=True,
            )
    pool.shutdown()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak memory of a worker {peak / 2**20:.2f} GiB")
    print(f"{'ranks':>5} {'empty run us/rank':>17} {'barrier us':>10} {'all_gather us':>13}")
    calls = 50
    for size in (2, 4, 8, 32):
        world = SimulatedWorld(size)
        empty, _ = measure(lambda world=world: world.run(barriers, 0), options.seconds / 5)
        barrier, _ = measure(lambda world=world: world.run(barriers, calls), options.seconds / 5)
        gather, _ = measure(lambda world=world: world.run(gathers, calls), options.seconds / 5)
        per_call = [(time - empty) / calls / size * 1e6 for time in (barrier, gather)]
        print(f"{size:5} {empty / size * 1e6:17.1f} {per_call[0]:10.1f} {per_call[1]:13.1f}")


if __name__ == "__main__":
    main()
