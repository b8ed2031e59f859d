"""Where an example runs: in one process, or in the processes that torchrun starts."""

import atexit
import os
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor


def start(backend: str = "gloo") -> tuple[int, int]:
    """Return this process's rank and the number of processes, after joining the others if there are any."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(seconds=60))
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size()


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, as DDP averages gradients."""
    mean = tensor.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


def report(rank: int, **numbers: Tensor) -> None:
    """Print on rank 0."""
    if rank == 0:
        print("  ".join(f"{name} {float(number):.10f}" for name, number in numbers.items()), flush=True)
