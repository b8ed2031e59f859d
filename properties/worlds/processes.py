"""A world of real processes: a persistent pool of gloo ranks under a dispatcher that owns the clock."""

import contextlib
import faulthandler
import functools
import math
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection, forkserver, process, util
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .. import devices
from . import OutOfTime, RankState, WorldError, server

T = TypeVar("T")

COLLECTIVE_SHARE = 0.8
"""A collective times out after this share of the run's time, so that ranks stuck in it say so themselves."""
LINGER_SECONDS = 0.2
REAP_SECONDS = 5.0
STACK_SECONDS = 1.0
OUTPUT_TAIL = 2000
MEMORY_BYTES = 8 * 2**30
FILE_BYTES = 2**28


Join = Callable[[int, int, Path, float], None]
"""Makes ranks a group: gets rank, size, a folder that all ranks share, and seconds a collective may take."""


def join_gloo(rank: int, size: int, folder: Path, collective_timeout: float) -> None:
    """Make torch.distributed's default group."""
    import torch.distributed as dist  # not at the top: naming this function must not import torch

    name_rank(rank, size)
    dist.set_debug_level_from_env()  # type: ignore[attr-defined, unused-ignore]
    store, limit = f"file://{folder}/store", timedelta(seconds=collective_timeout)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=limit)


def name_rank(rank: int, size: int) -> None:
    """Set what torchrun sets where each of `size` hosts has one rank: LOCAL_RANK is no rank of the group."""
    names = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in names.items()})


def join_nothing(rank: int, size: int, folder: Path, collective_timeout: float) -> None:
    """Leave torch.distributed uninitialised."""


def join_on(rank: int, size: int, folder: Path, collective_timeout: float, device: str, join: Join) -> None:
    """Join a group as `join` does, on a device, or on those that ranks have in turn."""
    own = devices.of_rank(device, rank)
    devices.use(own)
    devices.limit(own, MEMORY_BYTES)
    join(rank, size, folder, collective_timeout)
    os.environ["LOCAL_RANK"] = own.partition(":")[2] or "0"


class ProcessWorld:
    """`size` real processes joined in a gloo group, started at the first run and kept until a run fails.

    A failed run costs its pool: the processes are killed, and the next run starts fresh ones, so no run
    meets a group that an earlier one left half-way. Runs must not overlap: one thread at a time.

    Args:
        size: number of ranks, at least 1.
        timeout: seconds that a run may take. Collectives time out at four fifths of it.
        start_timeout: seconds that the processes may take to start and join the group.
        grace: seconds that the other ranks get to report by themselves once one has failed.
        join: makes the ranks a group; a function that is importable by name. If not given, `usual_join`.
        prepare: what each rank calls once it has joined, in the time for starting; what it raises is for a
            later run to meet.
        device: where its tensors are, or those devices that ranks have in turn.

    Attributes:
        until: when `time.monotonic()` is past it, a run, or a start, that no rank has failed is given up.

    A rank may hold `MEMORY_BYTES` and write files of `FILE_BYTES`, its output included: beyond, allocating
    and writing raise in it. On a device other than the CPU it may hold so much of that one's memory; the
    CPU's is not limited then, as CUDA reserves more addresses than any limit. Processes that it leaves behind
    are killed with it.

    Raises:
        ValueError: `size` is less than 1, or a time is not positive.
    """

    kind = "processes"
    usual_join: Join = staticmethod(join_gloo)
    """Makes the ranks a group where no `join` is given."""

    def __init__(
        self,
        size: int,
        timeout: float = 60.0,
        start_timeout: float = 120.0,
        grace: float = 3.0,
        join: Join | None = None,
        prepare: Callable[[], object] | None = None,
        device: str = devices.CPU,
    ) -> None:
        self._end: util.Finalize[None] | None = None
        if size < 1:
            raise ValueError(f"a world has at least one rank, not {size}")
        if min(timeout, start_timeout, grace) <= 0:
            raise ValueError(f"times must be positive, not {timeout=} {start_timeout=} {grace=}")
        self.name = f"{self.kind}:{size}"
        self.size = size
        self.timeout = timeout
        self.start_timeout = start_timeout
        self.grace = grace
        self.device = device
        self.join = self._placed(join or self.usual_join)
        self.prepare = prepare
        self.limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: FILE_BYTES}
        if device == devices.CPU:
            self.limits[resource.RLIMIT_DATA] = MEMORY_BYTES
        self.until = math.inf
        self._owner = os.getpid()
        self._ranks: list[_Rank] = []
        self._folder = Path()

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Call `function(rank, size, *arguments)` on every rank; return the results in rank order.

        Function, arguments and results travel pickled, so the function must be importable by name in
        another process: not a lambda, not nested, not in `__main__`. Ranks see this process's `sys.path`
        as of the call, multiply matrices by its settings of then, and have its environment as of their start.

        Raises:
            TypeError: the function or an argument does not pickle; no rank was asked anything.
            WorldError: a rank raised (an unpicklable result counts), exited, was killed or hung; or the
                pool could not start. The next run gets a fresh pool.
        """
        try:
            call = pickle.dumps((function, arguments))
        except Exception as error:
            raise TypeError(
                f"cannot send {function!r} to the ranks: it must be importable by name, and its "
                f"arguments must pickle ({type(error).__name__}: {error})"
            ) from error
        try:
            self.start()
            return self._call(call, self.timeout)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the ranks, if there are none; otherwise the first run does.

        Raises:
            WorldError: the pool could not start.
        """
        if self._end and self._end.still_active() and self._owner == os.getpid():
            return
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _placed(self, join: Join) -> Join:
        """Return what joins the ranks, each on its device."""
        if self.device == devices.CPU:
            return join
        return functools.partial(join_on, device=self.device, join=join)

    def close(self) -> None:
        """Kill the ranks, if there are any. Closing twice is harmless; a later run starts a new pool."""
        if self._end:
            self._end()

    def _start(self) -> None:
        self._ranks, self._owner = [], os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix=f"world-{self.size}-"))
        # at exit too, before multiprocessing would wait for the ranks without a limit; not in a fork
        self._end = util.Finalize(self, _end, (self._ranks, self._folder), exitpriority=0)
        environment = server.rank_environment()
        with server.launching() as context:
            for rank in range(self.size):
                ours, theirs = context.Pipe()
                limit = COLLECTIVE_SHARE * self.timeout
                given = rank, self.size, theirs, self._folder, environment, self.limits, self.join, limit
                child = context.Process(target=_rank_main, args=given, daemon=True)
                child.start()
                theirs.close()
                self._ranks.append(_Rank(child, ours))
        # Once every rank has arrived they join at once, so that joining can have the collectives' timeout.
        self._ask(b"arrive", self.start_timeout)
        self._ask(b"join", self.start_timeout)
        if self.prepare:
            self._call(pickle.dumps((_prepare, (self.prepare,))), self.start_timeout)

    def _call(self, call: bytes, timeout: float) -> list[Any]:
        (self._folder / "call").write_bytes(pickle.dumps((sys.path, products_here(), call)))
        return self._ask(b"call", timeout)

    def _ask(self, request: bytes, timeout: float) -> list[Any]:
        """Return every rank's answer, or raise every rank's state, in `timeout` plus a few seconds."""
        for rank in self._ranks:
            with contextlib.suppress(OSError):  # a dead rank is found, and told, below
                rank.pipe.send_bytes(request)
        states: dict[int, RankState] = {}
        waiting = dict(enumerate(self._ranks))
        deadline, patience = min(time.monotonic() + timeout, self.until), f"no answer in {timeout:g} s"
        while waiting and (remaining := deadline - time.monotonic()) > 0:
            sources = [source for rank in waiting.values() for source in (rank.pipe, rank.process.sentinel)]
            ready = connection.wait(sources, remaining)
            for number, rank in list(waiting.items()):
                if rank.pipe in ready or rank.process.sentinel in ready:
                    states[number] = self._hear(number)
                    del waiting[number]
                    if states[number].state != "returned" and time.monotonic() + self.grace < deadline:
                        deadline = time.monotonic() + self.grace
                        patience = f"no answer in the {self.grace:g} s after rank {number} failed"
        failed = any(state.state != "returned" for state in states.values())
        if waiting and not failed and time.monotonic() >= self.until:
            raise OutOfTime(f"world {self.name}: given up, as the time of the whole command is over")
        for number, stack in self._stacks(waiting).items():
            states[number] = RankState(number, "hung", f"{patience}\n{stack}")

        results: list[Any] = []
        for number, state in sorted(states.items()):
            if state.state == "returned":
                try:
                    results.append(pickle.loads((self._folder / f"answer-{number}").read_bytes()))
                except Exception:
                    detail = f"its result does not unpickle:\n{traceback.format_exc()}"
                    states[number] = RankState(number, "raised", detail)
        if len(results) < self.size:
            raise WorldError(self.name, [states[number] for number in range(self.size)])
        return results

    def _hear(self, number: int) -> RankState:
        """Return the state of a rank that has answered or died."""
        child, pipe = self._ranks[number]
        try:
            verdict = pipe.recv_bytes() if pipe.poll() else b""
        except (EOFError, OSError):
            verdict = b""
        if verdict == b"returned":
            return RankState(number, "returned", "")
        if verdict == b"raised":
            return RankState(number, "raised", self._read("answer", number))
        child.join(self.grace)
        if child.exitcode is None:
            return RankState(number, "hung", "it closed its pipe but did not exit")
        output, stack = self._read("output", number)[-OUTPUT_TAIL:], _readable(self._read("stack", number))
        last_words = "".join("\n" + text for text in (output.rstrip(), stack) if text)
        if child.exitcode >= 0:
            return RankState(number, "exited", f"status {child.exitcode}{last_words}")
        names = {known.value: known.name for known in signal.Signals}
        name = names.get(-child.exitcode, f"signal {-child.exitcode}")
        return RankState(number, "killed", name + last_words)

    def _stacks(self, ranks: "dict[int, _Rank]") -> dict[int, str]:
        """Return the Python stacks of live ranks, which faulthandler writes even from a native call."""
        for rank in ranks.values():
            if rank.process.pid and rank.process.is_alive():
                os.kill(rank.process.pid, signal.SIGUSR1)
        stacks: dict[int, str] = dict.fromkeys(ranks, "")
        deadline = time.monotonic() + STACK_SECONDS
        while ranks and time.monotonic() < deadline:
            time.sleep(0.05)
            before = stacks
            stacks = {number: self._read("stack", number) for number in ranks}
            if stacks == before and all(stacks.values()):
                break
        return {number: _readable(stack) or "it did not write its stack" for number, stack in stacks.items()}

    def _read(self, kind: str, number: int) -> str:
        try:
            return (self._folder / f"{kind}-{number}").read_text(errors="replace")
        except FileNotFoundError:  # it died, or hung, before it could open the file
            return ""


def shared_world(size: int, kind: type[ProcessWorld] = ProcessWorld) -> ProcessWorld:
    """Return this process's one world of a kind and `size` ranks, with the default times; it closes at exit.

    Raises:
        ValueError: `size` is less than 1.
    """
    key = os.getpid(), size, kind
    if key not in _shared_worlds:
        _shared_worlds[key] = kind(size)
    return _shared_worlds[key]


class _Rank(NamedTuple):
    process: process.BaseProcess
    pipe: connection.Connection


_shared_worlds: dict[tuple[int, int, type[ProcessWorld]], ProcessWorld] = {}


def _end(ranks: list[_Rank], folder: Path) -> None:
    for rank in ranks:
        if rank.process.is_alive():
            rank.process.kill()
        with contextlib.suppress(OSError):  # the processes that the rank started, in its session
            os.killpg(rank.process.pid or 0, signal.SIGKILL)
    for rank in ranks:
        rank.process.join(REAP_SECONDS)
        rank.pipe.close()
    shutil.rmtree(folder, ignore_errors=True)


def _forget_children() -> None:
    # multiprocessing in a forked process still holds the parent's children: it would terminate them at
    # exit, and fail to wait for the fork server, which is not its child.
    vars(process)["_children"].clear()
    held = vars(forkserver._forkserver)
    if held["_forkserver_pid"] is not None:
        os.close(held["_forkserver_alive_fd"])
        held["_forkserver_pid"] = None


os.register_at_fork(after_in_child=_forget_children)


def _readable(stack: str) -> str:
    """Cut the frames that all ranks share from faulthandler's dump: this module's, and their callers."""
    threads = [thread.partition(f'  File "{__file__}"')[0].rstrip() for thread in stack.split("\n\n")]
    return "\n\n".join(thread for thread in threads if "\n" in thread) or stack


def _rank_main(
    rank: int,
    size: int,
    pipe: connection.Connection,
    folder: Path,
    environment: dict[str, str],
    limits: dict[int, int],
    join: Join,
    collective_timeout: float,
) -> None:
    """Join the group, then answer calls until the dispatcher is gone.

    Calls and answers lie in files and the pipe carries one word, so that neither side can block on a pipe
    that the other has stopped reading.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the dispatcher decides
    threading.Thread(target=_exit_with_dispatcher, args=[folder], daemon=True).start()
    os.setsid()
    del sys.argv[1:]  # they are the command's, not the target's
    for limited, most in limits.items():
        resource.setrlimit(limited, (most, most))
    output = os.open(folder / f"output-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = open(output, "w", buffering=1, errors="replace")  # noqa: SIM115
    stack = open(folder / f"stack-{rank}", "w")  # noqa: SIM115
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    os.environ.clear()
    os.environ.update(environment)

    def enter() -> None:
        import torch

        torch.set_num_threads(1)  # it was read from the fork server's environment, which imported torch
        join(rank, size, folder, collective_timeout)

    def call() -> object:
        sys.path[:], products, pickled = pickle.loads((folder / "call").read_bytes())
        multiply_as(products)
        try:
            function, arguments = pickle.loads(pickled)
        except Exception as error:
            raise TypeError("a rank cannot import what the call names (__main__ it never can)") from error
        return function(rank, size, *arguments)

    jobs = {b"arrive": lambda: None, b"join": enter, b"call": call}
    while True:
        job = jobs[pipe.recv_bytes()]
        os.ftruncate(output, 0)
        _answer(job, folder / f"answer-{rank}", pipe)


def products_here() -> tuple[Any, ...] | None:
    """Return how this process multiplies matrices, which the bounds of its cases go by; None before torch."""
    if "torch" not in sys.modules:
        return None
    from .. import process_state

    return process_state.products()


def multiply_as(products: tuple[Any, ...] | None) -> None:
    """Let matrices be multiplied as where `products_here` returned these settings."""
    if products is not None:
        from .. import process_state

        process_state.set_products(products)


def _prepare(rank: int, size: int, prepare: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        prepare()


def _answer(job: Callable[[], object], file: Path, pipe: connection.Connection) -> None:
    process_id = os.getpid()
    try:
        try:
            result = job()
        finally:
            if os.getpid() != process_id:  # the job forked, and this is the copy
                os._exit(0)
        try:
            pickled = pickle.dumps(result)
        except Exception as error:
            raise TypeError(f"a result of type {type(result).__name__} does not pickle") from error
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        file.write_text("".join(traceback.format_exception(error.with_traceback(trace))), errors="replace")
        pipe.send_bytes(b"raised")
        # Peers that wait for this rank in a collective raise once its sockets close. Not at once: a peer
        # may be reading from one the message that lets it raise an error of its own, as this rank did.
        time.sleep(LINGER_SECONDS)
        os._exit(1)
    file.write_bytes(pickled)
    pipe.send_bytes(b"returned")


def _exit_with_dispatcher(folder: Path) -> None:
    dispatcher = multiprocessing.parent_process()
    assert dispatcher is not None
    os.read(dispatcher.sentinel, 1)  # nothing is ever written: this returns when the dispatcher is gone
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
