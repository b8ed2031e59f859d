"""Ranks that talk over Horovod: its raw collectives, under the losses' own gradients.

Horovod's own `hvd.allgather` is differentiable, but averages in its backward where a sum is due. Only its
raw operations on detached tensors are used here, so that gradients are the same over either transport.
"""

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .transport import Transport, eager

F = TypeVar("F", bound=Callable[..., object])

POLL_SECONDS = 0.0005
PATIENCE_SECONDS = 1800
"""As long as torch.distributed waits, unless HOROVOD_STALL_SHUTDOWN_TIME_SECONDS says otherwise."""


def choose_transport(rank: int | None, world_size: int | None, group: Any, use_horovod: bool) -> Transport:
    """Return how the ranks of a loss talk; called by what the user calls, which a warning then points to.

    Args:
        rank: this rank, counted within `group`; None takes it from there.
        world_size: the number of ranks in `group`; None takes it from there.
        group: the process group; None is the default one.
        use_horovod: the ranks are those of Horovod.

    Raises:
        ValueError: `rank` is outside the world or None without a group, or `group` is given with
            `use_horovod`.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: `use_horovod` is set and hvd.init() has not been called.

    Warns:
        UserWarning: `world_size=1` is one of several ranks of the process group.
    """
    kind = HorovodTransport if use_horovod else Transport
    if rank is None or world_size is None:
        alone = kind(0, 1, group)
        if not alone.is_initialized():
            name = "rank" if rank is None else "world_size"
            raise ValueError(f"{name}: expected an int, as torch.distributed is not initialised, got None")
        group_rank, group_size = alone.place()
        rank = group_rank if rank is None else rank
        world_size = group_size if world_size is None else world_size
    transport = kind(rank, world_size, group)
    if not use_horovod and world_size == 1 and transport.is_initialized():
        group_rank, group_size = transport.place()
        if group_size > 1:
            warnings.warn(
                f"world_size=1 in a process group of {group_size} ranks compares local rows alone: pass "
                f"rank={group_rank}, world_size={group_size}, or rank=None, world_size=None",
                stacklevel=3,
            )
    return transport


def _hvd() -> Any:
    try:
        import horovod.torch as hvd
    except ImportError as missing:
        raise ImportError(
            "use_horovod=True needs Horovod, the extra verified-losses[horovod]: `make horovod` builds it "
            f"for the installed torch ({missing})"
        ) from missing
    return hvd


def _normal_mode(function: F) -> F:
    # Horovod's thread, which is not in inference mode, may not resize a tensor that was made under it
    return torch.inference_mode(False)(function)


@dataclass(frozen=True)
class HorovodTransport(Transport):
    """The ranks that share a batch, over Horovod.

    Every operation is waited for at once, and has a fixed name: those that Horovod counts by itself differ
    between ranks once an optimizer's hooks interleave with a backward. A wait that outlasts
    HOROVOD_STALL_SHUTDOWN_TIME_SECONDS raises TimeoutError.
    """

    carrier = "Horovod"
    carries_in_func = False  # its thread reads the memory of a tensor, which one of torch.func lacks

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is not None:
            raise ValueError("group: expected None with use_horovod=True, as Horovod has no process groups")
        self.check_initialized()

    @property
    @eager
    def alone(self) -> bool:
        """Whether there is no other rank, in Horovod's eyes too."""
        hvd = _hvd()
        return bool(self.world_size == 1 and hvd.is_initialized() and hvd.size() == 1)

    def is_initialized(self) -> bool:
        """Whether Horovod runs."""
        return bool(_hvd().is_initialized())

    @eager
    def check_initialized(self) -> None:
        """Raise RuntimeError unless Horovod runs."""
        if not self.is_initialized():
            raise RuntimeError("use_horovod=True needs a running Horovod: call hvd.init() before the loss")

    def place(self) -> tuple[int, int]:
        """Return this rank and the number of ranks, as Horovod counts them."""
        hvd = _hvd()
        return hvd.rank(), hvd.size()

    def on_host(self) -> Transport:
        """Return this: Horovod moves the host's memory."""
        return self

    def all_gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """Return every rank's `numbers`, which are equally many on every rank."""
        everyone: list[list[int]] = _all_gather(torch.tensor(numbers), "numbers").tolist()
        return everyone

    def all_gather_text(self, text: str) -> list[str]:
        """Return every rank's `text`."""
        mine = text.encode()
        lengths = [length for (length,) in self.all_gather_numbers([len(mine)])]
        padded = torch.frombuffer(bytearray(mine.ljust(max(lengths))), dtype=torch.uint8)
        everyone = _all_gather(padded, "text").tolist()
        return [bytes(row[:length]).decode() for row, length in zip(everyone, lengths, strict=True)]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack every rank's tensor, [...] on each, to [world_size, ...]."""
        # Horovod knows no bfloat16; to be copied, bits need no type
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        return _all_gather(bits, "all_gather").view(tensor.dtype)

    @_normal_mode
    def sum_scatter(self, tensor: Tensor) -> Tensor:
        """Sum [world_size, ...] over the ranks and keep this rank's part, [...]."""
        hvd = _hvd()
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        given = wide.detach().contiguous()
        name = "verified_losses.sum_scatter"
        return _wait(hvd.reducescatter_async(given, name, hvd.Sum), name)[0].to(tensor.dtype)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum equally shaped tensors over the ranks."""
        return self.all_gather(tensor).sum(0)

    def maximum(self, tensor: Tensor) -> Tensor:
        """Take the largest of equally shaped tensors over the ranks, element by element."""
        return self.all_gather(tensor).amax(0)


@_normal_mode
def _all_gather(tensor: Tensor, name: str) -> Tensor:
    given, name = tensor.detach().contiguous().unsqueeze(0), f"verified_losses.{name}"
    return _wait(_hvd().allgather_async(given, name), name)


def _wait(handle: int, name: str) -> Tensor:
    # not left to Horovod: over gloo, 0.28.1 neither ends a stalled operation nor warns of it
    hvd = _hvd()
    patience = float(os.environ.get("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", 0)) or PATIENCE_SECONDS
    deadline = time.monotonic() + patience
    while not hvd.poll(handle):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name}: not every rank of Horovod took part within {patience:g} s")
        time.sleep(POLL_SECONDS)
    result: Tensor = hvd.synchronize(handle)
    return result
