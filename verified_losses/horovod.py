"""Ranks that talk over Horovod: its raw collectives, under the losses' own gradients.

Horovod's own `hvd.allgather` is differentiable, but averages in its backward where a sum is due. Only its
raw operations on detached tensors are used here, so that gradients are the same over either transport.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .transport import Transport, eager

F = TypeVar("F", bound=Callable[..., object])


def choose_transport(rank: int, world_size: int, group: Any, use_horovod: bool) -> Transport:
    """Return how the ranks of a loss talk.

    Raises:
        ValueError: `rank` is outside the world, or `group` is given with `use_horovod`.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: `use_horovod` is set and hvd.init() has not been called.
    """
    return (HorovodTransport if use_horovod else Transport)(rank, world_size, group)


def _hvd() -> Any:
    try:
        import horovod.torch as hvd
    except ImportError as missing:
        raise ImportError(
            "use_horovod=True needs Horovod for this torch: run `make horovod`, which builds and installs it, "
            f'or `pip install "verified-losses[horovod]"` where it builds ({missing})'
        ) from missing
    return hvd


def _normal_mode(function: F) -> F:
    # Horovod's thread, which is not in inference mode, may not resize a tensor that was made under it
    return cast(F, torch.inference_mode(False)(function))


@dataclass(frozen=True)
class HorovodTransport(Transport):
    """The ranks that share a batch, over Horovod.

    Every operation is waited for at once and has a name of its own: names that Horovod counts by itself
    would differ between ranks once an optimizer's hooks interleave with a backward.
    """

    carrier = "Horovod"

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

    @eager
    def check_initialized(self) -> None:
        """Raise RuntimeError unless Horovod runs."""
        if not _hvd().is_initialized():
            raise RuntimeError("use_horovod=True needs a running Horovod: call hvd.init() before the loss")

    def place(self) -> tuple[int, int]:
        """Return this rank and the number of ranks, as Horovod counts them."""
        hvd = _hvd()
        return hvd.rank(), hvd.size()

    def all_gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """Return every rank's `numbers`, which are equally many on every rank."""
        everyone: list[list[int]] = _all_gather(torch.tensor(numbers), "numbers").tolist()
        return everyone

    @_normal_mode
    def all_gather_text(self, text: str) -> list[str]:
        """Return every rank's `text`."""
        texts: list[str] = _hvd().allgather_object(text, name="verified_losses.text")
        return texts

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
        mine: Tensor = hvd.synchronize(hvd.reducescatter_async(given, "verified_losses.sum_scatter", hvd.Sum))
        return mine[0].to(tensor.dtype)


@_normal_mode
def _all_gather(tensor: Tensor, name: str) -> Tensor:
    hvd = _hvd()
    given = tensor.detach().contiguous().unsqueeze(0)
    everyone: Tensor = hvd.synchronize(hvd.allgather_async(given, f"verified_losses.{name}"))
    return everyone
