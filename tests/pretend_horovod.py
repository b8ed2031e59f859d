"""Horovod's torch module over the simulated ranks' torch.distributed: for where the real one is not built.

As strict as Horovod is: ranks agree on names; dtypes that it does not know, views, tensors that require grad
and inference mode are refused; an operation is done at the second look.
"""

import sys
import types
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

KNOWN = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32,
         torch.float64, torch.bool)  # fmt: skip


NAMES: set[str] = set()
"""Of the operations so far."""


class Handle:
    """An operation under way."""

    def __init__(self, result: Tensor) -> None:
        self.result = result
        self.looks = 0


def _refuse(tensor: Tensor, name: str) -> None:
    NAMES.add(name)
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, name)
    assert names == [name] * len(names), f"ranks disagree about the operation's name: {names}"
    assert tensor.dtype in KNOWN, f"Horovod knows no {tensor.dtype}"
    assert tensor.is_contiguous(), "Horovod copies contiguous tensors"
    assert not tensor.requires_grad, "Horovod would record this for a backward that averages"
    assert not torch.is_inference_mode_enabled(), "Horovod's thread is not in inference mode"


def allgather_async(tensor: Tensor, name: str) -> Handle:
    """Concatenate along the first dimension."""
    _refuse(tensor, name)
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor)
    return Handle(torch.cat(everyone))


def reducescatter_async(tensor: Tensor, name: str, op: str) -> Handle:
    """Sum, and keep this rank's part of the first dimension."""
    _refuse(tensor, name)
    assert op == "Sum", "the others average"
    total = tensor.clone()
    dist.all_reduce(total)
    return Handle(total.chunk(dist.get_world_size())[dist.get_rank()])


def poll(handle: Handle) -> bool:
    """Whether it is done."""
    handle.looks += 1
    return handle.looks > 1


def synchronize(handle: Handle) -> Tensor:
    """Return the result."""
    assert handle.looks > 1, "synchronize waits without a limit: nobody polled"
    return handle.result


def module(initialized: bool = True) -> types.ModuleType:
    """Return what `import horovod.torch` gives."""
    hvd: Any = types.ModuleType("horovod.torch")
    hvd.is_initialized = lambda: initialized
    hvd.rank, hvd.size = dist.get_rank, dist.get_world_size
    hvd.allgather_async, hvd.reducescatter_async, hvd.Sum = allgather_async, reducescatter_async, "Sum"
    hvd.poll, hvd.synchronize = poll, synchronize
    return hvd


def install(monkeypatch: pytest.MonkeyPatch, hvd: types.ModuleType) -> None:
    """Let `import horovod.torch` give `hvd`, Horovod installed or not."""
    package: Any = types.ModuleType("horovod")
    package.torch = hvd
    monkeypatch.setitem(sys.modules, "horovod", package)
    monkeypatch.setitem(sys.modules, "horovod.torch", hvd)
