"""A world of real processes over NCCL, one GPU each, or several on one where NCCL does that."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import devices
from . import WorldError
from .processes import ProcessWorld, name_rank

if TYPE_CHECKING:
    from .specs import WorldSpec

BACKEND = "nccl"
PROBE_SECONDS = 60.0
SHARED = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
"""What lets several ranks of NCCL share a GPU; versions before 2.30 take no notice of it."""


def nccl_missing() -> str | None:
    """Return why there can be no NCCL world, if so."""
    if missing := devices.KINDS["cuda"].missing():
        return missing
    import torch
    import torch.distributed as dist

    return None if dist.is_nccl_available() else f"torch {torch.__version__} is built without NCCL"


def join_nccl(rank: int, size: int, folder: Path, collective_timeout: float) -> None:
    """Make torch.distributed's default group, over NCCL, on the current device of each rank."""
    import torch.distributed as dist

    os.environ.update(SHARED)
    name_rank(rank, size)
    store, limit = f"file://{folder}/store", timedelta(seconds=collective_timeout)
    dist.init_process_group(BACKEND, init_method=store, rank=rank, world_size=size, timeout=limit)


class NcclWorld(ProcessWorld):
    """Real processes joined in an NCCL group, on devices that they have in turn; see `ProcessWorld`."""

    kind = "nccl"
    usual_join = staticmethod(join_nccl)


class Placement(NamedTuple):
    """Where the ranks of an NCCL world can be."""

    device: str
    """The devices that ranks have in turn."""
    found: str
    """What was tried, and what came of it."""
    trouble: str = ""
    """Why NCCL does not join ranks there."""


PLACED: dict[int, Placement] = {}
"""By the number of ranks, what was found so far."""


def placement(size: int) -> Placement:
    """Return where an NCCL world of a size can be, which is tried once, in processes of their own."""
    if size not in PLACED:
        PLACED[size] = _try(size)
    return PLACED[size]


def _try(size: int) -> Placement:
    count = devices.KINDS["cuda"].count()
    device = "/".join(f"cuda:{index}" for index in range(min(count, size)))
    how = "one GPU each" if count >= size else f"sharing {device.replace('/', ', ')}"
    world = NcclWorld(size, PROBE_SECONDS, PROBE_SECONDS, device=device)
    try:
        sums = world.run(exchange)
    except WorldError as error:
        failed = next(state for state in error.ranks if state.state != "returned")
        return Placement(device, f"{size} ranks, {how}", failed.said)
    finally:
        world.close()
    right = [float(sum(range(size)))] * 3
    wrong = next(
        (f"rank {rank} got {seen}, not {right}" for rank, seen in enumerate(sums) if seen != right), ""
    )
    return Placement(device, f"{size} ranks, {how}", wrong)


def exchange(rank: int, size: int) -> list[float]:
    """Return the sum of all ranks, as reduced, as gathered, and as passed round a ring."""
    import torch
    import torch.distributed as dist

    kind = torch.accelerator.current_accelerator() if dist.get_backend() == "nccl" else None
    mine = torch.full((1,), float(rank), device=kind or devices.CPU)
    total, everyone = mine.clone(), [torch.empty_like(mine) for _ in range(size)]
    dist.all_reduce(total)
    dist.all_gather(everyone, mine)
    passed, summed = mine.clone(), mine.clone()
    for _ in range(size - 1):
        received = torch.empty_like(passed)
        ring = [
            dist.P2POp(dist.isend, passed, (rank + 1) % size),
            dist.P2POp(dist.irecv, received, (rank - 1) % size),
        ]
        for work in dist.batch_isend_irecv(ring):
            work.wait()
        passed = received
        summed += passed
    return [total.item(), torch.cat(everyone).sum().item(), summed.item()]


def placed(spec: "WorldSpec", instead: str) -> "WorldSpec":
    """Return an NCCL world on the devices that its ranks have.

    Where NCCL does not join them there, it is one of kind `instead`, with all ranks on the first device.
    """
    where = placement(spec.sizes[0])
    if not where.trouble:
        return replace(spec, device=where.device, found=where.found)
    found = f"in the place of {spec.name}, where NCCL does not work ({where.found}: {where.trouble})"
    return replace(spec, kind=instead, device=where.device.partition("/")[0], found=found)
