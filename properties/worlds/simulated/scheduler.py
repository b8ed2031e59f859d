"""Rank threads: exactly one runs at a time, and a chooser picks the next."""

import ctypes
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from .errors import Abandon

_GRACE = 2.0
"""Seconds that a rank which outlasted the timeout gets to unwind."""

_TRIM_FROM = 64
"""Ranks from which on the C library is told to give freed memory back, once in eight turns.

It keeps what a thread frees, for that thread: hundreds of ranks that took turns would hold gigabytes.
"""
_library = ctypes.CDLL(None)
_trim: Callable[[int], int] | None = getattr(_library, "malloc_trim", None)
_processor: Callable[[], int] | None = getattr(_library, "sched_getcpu", None)


_warnings: Any = warnings
"""Untyped: it is written to."""


class Option(NamedTuple):
    """Something that can happen next: a rank runs on, or a receive from any source takes a message."""

    kind: str
    rank: int
    call: int = 0
    peer: int = 0
    peer_call: int = 0


class Chooser(Protocol):
    """Decides between options. Index 0 is the plainest: the running rank goes on, else the longest ready."""

    interleaves: bool
    """Whether the order in which ranks run is chosen too; if not, a rank runs until it has to wait."""
    on_caller: bool
    """Whether `choose` must be called in the thread that called `World.run`."""
    exhaustive: bool
    """Whether `choose` sees single options too, and polls wait until no other rank can run."""

    def choose(self, options: Sequence[Option]) -> int: ...


class Network(Protocol):
    """The scheduler's view of the communication between its ranks."""

    def pending(self) -> list[Option]:
        """Matches that may happen now."""
        ...

    def perform(self, option: Option) -> None: ...

    def stalled(self) -> None:
        """No rank can run: make one ready."""
        ...

    def expired(self, rank: int) -> None:
        """The time is up, and `rank` runs."""
        ...


class RankThread(threading.Thread):
    """A thread that runs one job after another, each when its gate opens."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="simulated rank")
        self.gate = threading.Lock()
        self.gate.acquire()
        self.job: Callable[[], None] | None = None
        self.discarded = False
        self.processor = -1

    def settle(self, processor: int) -> None:
        """Stay on one processor: the baton then passes in half the time, and finds the caches warm."""
        if processor != self.processor:
            os.sched_setaffinity(self.native_id or 0, {processor})
            self.processor = processor

    def run(self) -> None:
        if hasattr(os, "SCHED_BATCH"):
            # A thread that is woken waits for its waker to block: a handoff is one context switch, not three.
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        # Backward stays in this thread, so that its communication is this rank's.
        torch.autograd.set_multithreading_enabled(False)
        while not self.discarded:
            self.gate.acquire()
            # The last rank to end releases the caller, which may give this thread its next job at once.
            job, self.job = self.job, None
            if job is not None:
                job()
            del job


_idle: list[RankThread] = []


def _borrow(count: int) -> list[RankThread]:
    threads: list[RankThread] = []
    while len(threads) < count:
        try:
            threads.append(_idle.pop())
        except IndexError:
            threads.append(RankThread())
            threads[-1].start()
    return threads


def _gpu_generators() -> Sequence[torch.Generator]:
    return torch.cuda.default_generators if torch.cuda.is_initialized() else ()


class _Ambient(NamedTuple):
    """State that a process owns and that the ranks of one process would otherwise share."""

    random: torch.Tensor
    gpus: list[torch.Tensor]
    # What `warnings.catch_warnings` replaces:
    filters: list[Any]
    show: Any
    show_message: Any

    @classmethod
    def read(cls) -> "_Ambient":
        state = torch.default_generator.get_state()
        # cheap: no kernel waits
        gpus = [one.get_state() for one in _gpu_generators()]
        return cls(state, gpus, _warnings.filters, _warnings.showwarning, _warnings._showwarnmsg_impl)

    def write(self) -> None:
        torch.default_generator.set_state(self.random)
        for generator, gpu in zip(_gpu_generators(), self.gpus, strict=False):
            generator.set_state(gpu)
        if _warnings.filters != self.filters:
            # Only what the filters say, not which list says it, outdates what warnings remembers.
            _warnings._filters_mutated()
        _warnings.filters = self.filters
        _warnings.showwarning = self.show
        _warnings._showwarnmsg_impl = self.show_message

    def fork(self) -> "_Ambient":
        return self._replace(filters=list(self.filters))


class Scheduler:
    """Runs `body(rank)` on `size` threads, one at a time, until each has returned.

    Every method but `run` is called by the rank that runs at the time.
    """

    def __init__(self, size: int, chooser: Chooser, timeout: float) -> None:
        self.size = size
        self.chooser = chooser
        self.timeout = timeout
        self.choices: list[int] = []
        self.ready = list(range(size))
        self.late: list[int] = []
        """Ranks that run only when no other can: delayed ones, and those that poll."""
        self.current = -1
        self.unfinished = size
        self.unwinding = False
        self.steps = 0
        self.interruption: BaseException | None = None
        self._abandoned = False
        self._caller = threading.Lock()
        self._caller.acquire()
        self._question: Sequence[Option] | None = None
        self._answer = 0
        self.threads: list[RankThread] = []
        self._ambient: list[_Ambient] = []

    def run(self, body: Callable[[int], None], network: Network) -> None:
        """Run every rank to its end.

        Raises:
            BaseException: whatever the chooser raised, or the interrupt that the caller got.
        """
        self.network = network
        self.threads = _borrow(self.size)
        processor = -1 if _processor is None else _processor()
        for rank, thread in enumerate(self.threads):
            thread.job = partial(self._lead, rank, body)
            if processor >= 0:
                thread.settle(processor)
        mine = _Ambient.read()
        self._ambient = [mine.fork() for _ in range(self.size)]
        try:
            self._open(self._next(None))
            self._attend(time.monotonic() + self.timeout)
            if self.unfinished:
                self._abandon()
        except BaseException as error:
            self.interrupt(error)
            self._abandon()
        finally:
            mine.write()
            if not self._abandoned:
                _idle.extend(self.threads)
                del self.network
            self.threads = []
        if self.interruption is not None:
            raise self.interruption

    def _attend(self, deadline: float) -> None:
        """Answer the ranks' questions until all have ended or the time is up."""
        expired = False
        while True:
            if not self._caller.acquire(timeout=max(0.0, deadline - time.monotonic())):
                if expired:
                    self._abandon()
                    return
                expired, deadline = True, time.monotonic() + _GRACE
                self.network.expired(self.current)
                ident = ctypes.c_ulong(self.threads[self.current].ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Abandon))
                continue
            if self._question is None:
                return
            question, self._question = self._question, None
            self._choose(question)
            self.threads[self.current].gate.release()

    def _abandon(self) -> None:
        """Give the threads up; each unwinds when it next asks for the baton."""
        self._abandoned = True
        for rank, thread in enumerate(self.threads):
            thread.discarded = True
            if rank != self.current and thread.gate.locked():
                thread.gate.release()

    def _lead(self, rank: int, body: Callable[[int], None]) -> None:
        if self._abandoned:
            return
        self._ambient[rank].write()
        try:
            body(rank)
        finally:
            self.unfinished -= 1
            if not self._abandoned:
                try:
                    following = self._next(None)
                except BaseException as error:
                    self.interrupt(error)
                    self._caller.release()
                else:
                    self._open(following)

    def _open(self, rank: int) -> None:
        if self.size >= _TRIM_FROM and self.steps % 8 == 0 and _trim is not None:
            _trim(0)
        self.current = rank
        (self._caller if rank < 0 else self.threads[rank].gate).release()

    def interrupt(self, error: BaseException) -> None:
        """Unwind every rank, and raise `error` in the caller of `run`."""
        if self.interruption is None:
            self.interruption = error
        self.unwinding = True

    def block(self, rank: int) -> None:
        """Let others run until `wake(rank)`."""
        self._hand_over(rank, self._next(None))

    def wake(self, rank: int) -> None:
        self.ready.append(rank)

    def turn(self, rank: int) -> None:
        """A point at which another rank may be chosen to run."""
        if self.chooser.interleaves and not self.unwinding:
            following = self._next(rank)
            if following != rank:
                self.ready.append(rank)
                self._hand_over(rank, following)

    def step_aside(self, rank: int, until_fence: bool) -> None:
        """Let others run first; with `until_fence`, until none of them can."""
        if until_fence or not self.chooser.interleaves:
            self.late.append(rank)
        else:
            self.ready.append(rank)
        following = self._next(None)
        if following != rank:
            self._hand_over(rank, following)

    def _hand_over(self, rank: int, following: int) -> None:
        self._ambient[rank] = _Ambient.read()
        self._open(following)
        self._await(rank)
        self._ambient[rank].write()

    def _await(self, rank: int) -> None:
        if not self.threads[rank].gate.acquire(timeout=2 * self.timeout + 10) or self._abandoned:
            raise Abandon

    def _next(self, running: int | None) -> int:
        """Choose who runs next and take them off the ready list; -1, the caller, when all have ended."""
        self.steps += 1
        while True:
            interleaves = self.chooser.interleaves and not self.unwinding
            if not interleaves:
                if running is not None:
                    return running
                if self.ready:
                    return self.ready.pop(0)
            options = [] if running is None else [Option("run", running)]
            options += [Option("run", rank) for rank in self.ready]
            if interleaves or not options:
                options += self.network.pending()
            if not options:
                options += [Option("late", rank) for rank in self.late]
            if not options:
                if self.unfinished == 0:
                    return -1
                self.network.stalled()
                if not self.ready:
                    self.interrupt(RuntimeError("simulated world: a rank was lost"))
                    return -1
                continue
            unwound = self.unwinding
            option = options[self.decide(options)]
            if self.unwinding and not unwound:
                continue
            if option.kind == "run":
                if option.rank != running:
                    self.ready.remove(option.rank)
                return option.rank
            if option.kind == "late":
                self.late.remove(option.rank)
                return option.rank
            self.network.perform(option)

    def decide(self, options: Sequence[Option]) -> int:
        """The index of the option taken; recorded, so that the run can be replayed."""
        if self.unwinding or (len(options) == 1 and not self.chooser.exhaustive):
            return 0
        if self.chooser.on_caller and self.current >= 0:
            asker = self.current
            self._question = options
            self._caller.release()
            self._await(asker)
        else:
            self._choose(options)
        if self.unwinding:
            return 0
        if len(options) > 1:
            self.choices.append(self._answer)
        return self._answer

    def _choose(self, options: Sequence[Option]) -> None:
        try:
            self._answer = self.chooser.choose(options)
            if not 0 <= self._answer < len(options):
                raise IndexError(f"the schedule chose {self._answer} of {len(options)} options")
        except BaseException as error:
            self.interrupt(error)
