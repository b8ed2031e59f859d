"""What moves memory between the ranks of a process group."""

from typing import Any

import torch.distributed as dist


def backend_of(group: Any, device: str) -> str:
    """Return the name of the backend that moves a kind of device's memory, or nothing if none does.

    Args:
        group: the process group; None is the default one.
        device: the kind, "cpu" or "cuda".
    """
    name = str(dist.get_backend(group))
    if name != "undefined" and ":" not in name:
        return name
    # a group that was made without a backend, or with one for each kind of device: "cpu:gloo,cuda:nccl"
    pairs = (pair.partition(":") for pair in dist.get_backend_config(group).split(","))
    return {kind: backend for kind, _, backend in pairs}.get(device, "")
