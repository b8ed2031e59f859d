"""A world of many ranks in one process: they are threads that run one at a time, in a chosen order."""

import copy
import random
import struct
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils._pytree import tree_flatten

from .. import RankState
from . import buffers
from .errors import Abandon, CommunicationError, Finding, InjectedFault, SimulationError, Vanish
from .explore import Exploration, Explorer
from .group import entered, installed
from .network import Fault, Key, Network, Sends, Volume
from .scheduler import Chooser, Option, Scheduler

__all__ = [
    "CommunicationError",
    "Exploration",
    "Fault",
    "Finding",
    "InjectedFault",
    "Key",
    "Schedule",
    "Sends",
    "SimulatedWorld",
    "SimulationError",
    "Volume",
]

T = TypeVar("T")
Schedule = None | int | Sequence[int] | Callable[[int], int]


class _Plain:
    """Every rank runs until it has to wait."""

    interleaves = False
    on_caller = False
    exhaustive = False

    def choose(self, options: Sequence[Option]) -> int:
        return 0


class _Drawn:
    """Every choice comes from a function of the number of options."""

    interleaves = True
    exhaustive = False

    def __init__(self, draw: Callable[[int], int], on_caller: bool) -> None:
        self.draw = draw
        self.on_caller = on_caller

    def choose(self, options: Sequence[Option]) -> int:
        return self.draw(len(options))


def _chooser(schedule: Schedule) -> Chooser:
    if schedule is None:
        return _Plain()
    if isinstance(schedule, int):
        return _Drawn(random.Random(schedule).randrange, on_caller=False)
    if isinstance(schedule, Sequence):
        left = iter(schedule)
        return _Drawn(lambda count: min(next(left, 0), count - 1), on_caller=False)
    return _Drawn(schedule, on_caller=True)


def _alike(one: object, other: object) -> bool:
    """Whether two results are the same, bit for bit."""
    leaves, structure = tree_flatten(one)
    others, other_structure = tree_flatten(other)
    return structure == other_structure and all(map(_same_leaf, leaves, others))


def _same_leaf(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and buffers.equal(one, other)
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


class SimulatedWorld:
    """`size` ranks in this process, one running at a time.

    Unchanged code that uses torch.distributed with the default group, or with groups from `new_group`, runs
    in it; what it does not implement raises a NotImplementedError that names the operation. Each rank has its
    own copy of the arguments, its own states of torch's generators (forked from the caller's) and its own
    warning filters. Module globals are shared: what keeps a cache in one shares it between ranks, where
    processes would not. Intra-operator parallelism is off during a run.

    A buffer in flight is watched at every operator. What reads memory without one, through a NumPy view,
    cannot be named: it finds NaN where a message is still to come. What writes without one is named at the
    wait.

    Args:
        size: Ranks, at least 1.
        schedule: Who runs next. None: a rank runs until it has to wait. An int seeds a random order. A
            callable gets a number of options n >= 2 and returns an index below n; 0 is the plainest order. It
            is called in the thread that called `run`, so it may draw from Hypothesis. A sequence replays
            `SimulationError.schedule`, with 0 once it is used up.
        sends: "rendezvous", a send completes when it is received; "buffered", at once; "drawn", the schedule
            decides for each.
        faults: What is done to the ranks. `fired` tells after a run which ones happened. A run with flipped
            bits that no rank complained of is repeated without each, to see whether the results are the same.
        timeout: Seconds that one run may take.
        backend: What `dist.get_backend` answers. "gloo" and "nccl" steer code that asks; the rules on what is
            accepted stay gloo's.
        copies: Whether every rank gets its own deep copy of the arguments, as processes do.

    Attributes:
        traffic: The volume of the last run, by rank, operation and phase.
        fired: The faults that happened in the last run.
        unobserved: The flipped bits of the last run without which its results would be the same, bit for bit.
        schedule_taken: The choices of the last run.
    """

    def __init__(
        self,
        size: int,
        schedule: Schedule = None,
        *,
        sends: Sends = "rendezvous",
        faults: Iterable[Fault] = (),
        timeout: float = 60.0,
        backend: Literal["simulated", "gloo", "nccl"] = "simulated",
        copies: bool = True,
    ) -> None:
        if size < 1:
            raise ValueError(f"a world has at least one rank, not {size}")
        self.size = size
        self.name = f"simulated:{size}"
        self.schedule = schedule
        self.sends: Sends = sends
        self.faults = tuple(faults)
        self.timeout = timeout
        self.backend = backend
        self.copies = copies
        self.traffic: dict[Key, Volume] = {}
        self.fired: list[Fault] = []
        self.unobserved: list[Fault] = []
        self.schedule_taken: tuple[int, ...] = ()

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Call `function(rank, size, *arguments)` on every rank; return the results in rank order.

        Raises:
            SimulationError: a rank did not return, or the communication was wrong. The world stays usable.
        """
        self.unobserved = []
        results = self._run(_chooser(self.schedule), self.sends, function, arguments)
        for flip in [fault for fault in self.fired if fault.kind == "flip"]:
            others = [fault for fault in self.faults if fault != flip]
            world = SimulatedWorld(
                self.size,
                self.schedule_taken,
                sends=self.sends,
                faults=others,
                timeout=self.timeout,
                backend=self.backend,
                copies=self.copies,
            )
            with suppress(SimulationError):
                if _alike(results, world._run(_chooser(world.schedule), world.sends, function, arguments)):
                    self.unobserved.append(flip)
        return results

    def explore(
        self,
        function: Callable[..., T],
        *arguments: object,
        limit: int = 10_000,
        sends: Literal["rendezvous", "buffered"] = "rendezvous",
    ) -> Exploration[T]:
        """Run every schedule that some rank can tell from the others, once each.

        Ranks without receives from any source and without polls cannot tell schedules apart: there is one.
        Rendezvous sends report a program that needs them buffered. Buffered ones let a rank run ahead of
        its messages, so that more of them can reach a receive from any source.

        Raises:
            RuntimeError: there are more than `limit` schedules.
        """
        return Explorer().explore(
            lambda chooser: self._run(chooser, sends, function, arguments), SimulationError, limit
        )

    def close(self) -> None:
        """Nothing is held: idle threads serve every simulated world."""

    def _run(
        self, chooser: Chooser, sends: Sends, function: Callable[..., T], arguments: Sequence[object]
    ) -> list[T]:
        scheduler = Scheduler(self.size, chooser, self.timeout)
        network = Network(scheduler, sends, self.faults)
        copied = [copy.deepcopy(arguments) if self.copies else arguments for _ in range(self.size)]
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}
        states: dict[int, RankState] = {}

        def body(rank: int) -> None:
            try:
                with entered(network, rank, self.backend), torch.enable_grad():
                    try:
                        results[rank] = function(rank, self.size, *copied[rank])
                    finally:
                        if rank in network.watches:
                            network.watches[rank].stop()
                network.leave(rank, "returned")
                states[rank] = RankState(rank, "returned", "")
            except Vanish:
                network.leave(rank, "vanished")
                network.fail("vanished", f"rank {rank} vanished")
                states[rank] = RankState(rank, "exited", "vanished")
            except BaseException as error:
                errors[rank] = error
                network.leave(rank, "raised")
                ended: Literal["raised", "exited", "killed"] = "raised"
                if isinstance(error, Abandon):
                    ended = "killed"
                elif isinstance(error, SystemExit):
                    ended = "exited"
                if not isinstance(error, CommunicationError | Abandon):
                    network.fail("raised", f"rank {rank} raised {type(error).__name__}: {error}")
                states[rank] = RankState(rank, ended, traceback.format_exc())

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with installed():
                scheduler.run(body, network)
                network.conclude()
        finally:
            torch.set_num_threads(threads)
            network.release()
            self.traffic, self.fired = network.traffic, network.fired
            self.schedule_taken = tuple(scheduler.choices)
        if network.failure is None:
            return [results[rank] for rank in range(self.size)]
        finding, message, stacks = network.failure
        for rank in range(self.size):
            states.setdefault(rank, RankState(rank, "hung", ""))
            if finding in ("deadlock", "early_exit", "needs_buffering") and rank in stacks:
                states[rank] = RankState(rank, "hung", stacks[rank])
        cause = next((error for error in errors.values() if not isinstance(error, CommunicationError)), None)
        ranks = [states[rank] for rank in range(self.size)]
        raise SimulationError(self.name, ranks, finding, message, scheduler.choices) from cause
