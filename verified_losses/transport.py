"""How ranks talk: the few collectives that the losses are built on."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .backends import backend_of
from .lost import naming_lost_ranks

F = TypeVar("F", bound=Callable[..., object])

# torch 2.13 renamed them; a torch without torch.distributed has neither
_all_gather_single: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
_reduce_scatter_single: Any = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)


def eager(function: F) -> F:
    """Keep torch.compile out of `function`: it would rewrite the collectives inside."""
    disabled: Callable[..., object] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> object:
        nonlocal disabled
        if disabled is None:
            # nothing compiles before the compiler is imported, which disable() does, and takes a second
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    # torch.compile keeps what it compiles by code object: shared by all, what it made for a function that is
    # disabled would run for one that is not yet
    kept = cast(FunctionType, call)
    kept.__code__ = kept.__code__.replace(co_name=function.__name__)
    return cast(F, call)


@dataclass(frozen=True)
class Transport:
    """The ranks that share a batch, over torch.distributed.

    Args:
        rank: this rank, counted within `group`.
        world_size: how many ranks the group has.
        group: a process group; None is the default group.
    """

    rank: int
    world_size: int
    group: "dist.ProcessGroup | None" = None
    carrier: ClassVar[str] = "the process group"
    carries_in_func: ClassVar[bool] = True
    """Whether ranks can tell each other anything while torch.func is at work."""

    def __post_init__(self) -> None:
        if not isinstance(self.world_size, int) or self.world_size < 1:
            raise ValueError(f"world_size: expected an int of at least 1, got {self.world_size!r}")
        if not isinstance(self.rank, int) or not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected an int in [0, {self.world_size}), got {self.rank!r}")

    def __deepcopy__(self, memo: dict[int, object]) -> "Transport":
        """Return itself: it does not change, and its process group cannot be copied."""
        return self

    @property
    def alone(self) -> bool:
        """Whether the group has one rank alone."""
        return self.world_size == 1

    def is_initialized(self) -> bool:
        """Whether there are ranks to talk to, this one among them."""
        return dist.is_available() and dist.is_initialized()

    def check_initialized(self) -> None:
        """Raise RuntimeError unless torch.distributed can carry this world's messages."""
        if not self.is_initialized():
            raise RuntimeError(
                f"world_size={self.world_size} needs torch.distributed: "
                "call torch.distributed.init_process_group() before the loss"
            )

    def place(self) -> tuple[int, int]:
        """Return this rank and the number of ranks, as the process group counts them."""
        return dist.get_rank(self.group), dist.get_world_size(self.group)

    def check_place(self) -> None:
        """Raise ValueError unless `rank` and `world_size` are those of the process group."""
        rank, world_size = self.place()
        if (rank, world_size) != (self.rank, self.world_size):
            raise ValueError(
                f"rank, world_size: expected those of {self.carrier}, rank {rank} of {world_size}, "
                f"got rank {self.rank} of {self.world_size}"
            )

    def on_host(self) -> "Transport":
        """Return these ranks over what moves the host's memory: a gloo group beside one of NCCL; collective.

        Numbers that the host reads then keep no GPU waiting.
        """
        if self._moves_host_memory() or not dist.is_gloo_available():
            return self
        ranks = dist.get_process_group_ranks(self.group or dist.group.WORLD)
        if ranks != sorted(ranks):  # which the group beside would be
            return self
        # by the group's ranks alone: others may not be about to call a loss
        beside = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        return replace(self, group=beside)

    def _moves_host_memory(self) -> bool:
        return backend_of(self.group, "cpu") not in ("nccl", "")

    @naming_lost_ranks
    def all_gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """Return every rank's `numbers`, which are equally many on every rank."""
        device = "cpu" if self._moves_host_memory() else "cuda"
        mine = torch.tensor(numbers, dtype=torch.int64, device=device)
        everyone = mine.new_empty(dist.get_world_size(self.group) * len(numbers))
        _all_gather_single(everyone, mine, group=self.group)
        return everyone.view(-1, len(numbers)).tolist()

    def all_gather_text(self, text: str) -> list[str]:
        """Return every rank's `text`."""
        # as numbers: all_gather_object needs NumPy
        mine = text.encode()
        lengths = [length for (length,) in self.all_gather_numbers([len(mine)])]
        everyone = self.all_gather_numbers(list(mine.ljust(max(lengths))))
        return [bytes(row[:length]).decode() for row, length in zip(everyone, lengths, strict=True)]

    @naming_lost_ranks
    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack every rank's tensor, [n, ...] on each, to [world_size, n, ...]."""
        everyone = tensor.new_empty(self.world_size * tensor.shape[0], *tensor.shape[1:])
        _all_gather_single(everyone, tensor.contiguous(), group=self.group)
        return everyone.view(self.world_size, *tensor.shape)

    @naming_lost_ranks
    def sum_scatter(self, tensor: Tensor) -> Tensor:
        """Sum [world_size, ...] over the ranks, perhaps in place, and keep this rank's part, [...]."""
        tensor = tensor.contiguous()
        if backend_of(self.group, tensor.device.type) == "nccl":
            mine = torch.empty_like(tensor[0])
            _reduce_scatter_single(mine, tensor, group=self.group)
            return mine
        dist.all_reduce(tensor, group=self.group)
        return tensor[self.rank]

    @naming_lost_ranks
    def sum(self, tensor: Tensor) -> Tensor:
        """Sum equally shaped tensors over the ranks."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    @naming_lost_ranks
    def maximum(self, tensor: Tensor) -> Tensor:
        """Take the largest of equally shaped tensors over the ranks, element by element."""
        largest = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest

    @naming_lost_ranks
    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Return the tensor of rank `source`; every rank passes one of its shape and dtype."""
        received = tensor.clone(memory_format=torch.contiguous_format)
        dist.broadcast(received, group=self.group, group_src=source)
        return received

    @naming_lost_ranks
    def exchange(self, sends: list[tuple[Tensor, int]], receives: list[tuple[Tensor, int]]) -> None:
        """Send tensors to ranks and fill others with what ranks send, all at once."""
        sends = [(tensor.cpu() if self._goes_by_host(tensor) else tensor, rank) for tensor, rank in sends]
        landing = [
            (torch.empty_like(tensor, device="cpu") if self._goes_by_host(tensor) else tensor, rank)
            for tensor, rank in receives
        ]
        ops = [
            dist.P2POp(dist.isend, tensor.contiguous(), group=self.group, group_peer=rank)
            for tensor, rank in sends
        ] + [dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=rank) for tensor, rank in landing]
        for work in dist.batch_isend_irecv(ops) if ops else ():
            work.wait()
        for (tensor, _), (landed, _) in zip(receives, landing, strict=True):
            if landed is not tensor:
                tensor.copy_(landed)

    def _goes_by_host(self, tensor: Tensor) -> bool:
        # gloo sends the CPU's memory alone
        return not tensor.is_cpu and backend_of(self.group, tensor.device.type) in ("gloo", "")
