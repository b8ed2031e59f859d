"""Where an example runs: in one process, or in the processes that torchrun or horovodrun starts."""

import atexit
import os
import sys
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor


def start(backend: str = "gloo", horovod: bool = False) -> tuple[int, int]:
    """Return this process's rank and the number of processes, after joining the others if there are any."""
    if horovod:
        import horovod.torch as hvd

        hvd.init()
        return hvd.rank(), hvd.size()
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(seconds=60))
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size()


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, as DDP and Horovod average gradients."""
    mean = tensor.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    elif hvd := _running_horovod():
        mean = hvd.allreduce(mean, name="mean_over_ranks")
    return mean


def barrier() -> None:
    """Wait until every process is here, so that none leaves before the others are done."""
    if dist.is_initialized():
        dist.barrier()
    elif hvd := _running_horovod():
        hvd.barrier()


def _running_horovod() -> Any:
    hvd = sys.modules.get("horovod.torch")
    return hvd if hvd is not None and hvd.is_initialized() else None


def report(rank: int, **numbers: Tensor) -> None:
    """Print on rank 0."""
    if rank == 0:
        print("  ".join(f"{name} {float(number):.10f}" for name, number in numbers.items()), flush=True)
