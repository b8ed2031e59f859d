"""A world of the processes that torchrun started, on one host or several. Imports no torch by itself.

Rank 0 draws, sends and judges; every rank, rank 0 too, runs what it sends, in a group that they make through
the store of torchrun. Calls and answers travel over connections of their own, so that a collective that fails
leaves them whole, and the end of a process is seen at once.

A rank cannot be replaced. One that raises, or hangs where Python can interrupt it, takes part in the next
run, in a new group. One that dies, or hangs elsewhere, ends the world: what has been found so far stays.
Memory and files have no limits here, and what a target does to its process stays done.
"""

import atexit
import contextlib
import errno
import math
import os
import pickle
import secrets
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from .. import devices
from . import OutOfTime, RankState, State, WorldError, WorldLost
from .processes import COLLECTIVE_SHARE, LINGER_SECONDS, multiply_as, products_here

if TYPE_CHECKING:
    from .specs import WorldSpec

T = TypeVar("T")

START_SECONDS = 120.0
"""How long ranks may take to find one another."""
BEAT_SECONDS = 1.0
"""How often ranks tell that they are there."""
SILENCE_SECONDS = 15.0
"""After which a rank counts as lost with its host."""
GRACE_SECONDS = 3.0
"""How long the others may take to answer once a rank is gone, and a rank beyond the time of its run."""
STATES: dict[str, State] = {
    "returned": "returned", "raised": "raised", "exited": "exited", "hung": "hung", "unjoined": "raised",
}  # fmt: skip
UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN)
TOKEN_BYTES = 32
HELLO = struct.Struct(f"!{TOKEN_BYTES}sII")
"""How a rank begins: a secret that lies in the store, its rank, and which host it is on."""
LOST = 3
"""Exit status of a rank that has lost the others."""

last_words: Callable[[str], None] | None = None
"""Called with the reason before rank 0 has to end its process, as its main thread is stuck in a call."""


def ranks() -> int:
    """Return how many processes torchrun started; 0 if it did not start this one."""
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdecimal() and os.environ.get("MASTER_ADDR") else 0


def placed(spec: "WorldSpec") -> "WorldSpec":
    """Return the world on the devices that its ranks have: the GPUs of each host, in turn."""
    if devices.kind_of(spec.device) not in devices.KINDS:
        return spec
    kind, local = devices.kind_of(spec.device), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = min(devices.KINDS[kind].count(), local)
    return replace(spec, device="/".join(f"{kind}:{index}" for index in range(count)))


def is_executor() -> bool:
    """Whether this process only runs what rank 0 sends it."""
    return bool(ranks()) and os.environ.get("RANK", "0") != "0"


def torchrun_missing() -> str | None:
    """Return why there can be no such world here, if so."""
    if not ranks():
        command = "torchrun --nnodes N --nproc-per-node M -m verified_losses.properties certify ..."
        return f"this process was not started by torchrun: {command}"
    return _lead.lost if _lead is not None and _lead.lost else None


class TorchrunWorld:
    """The world of the ranks that torchrun started, as rank 0 has it.

    Args:
        size: how many there are.
        timeout: seconds that a run may take. Collectives time out at four fifths of it.

    Attributes:
        until: when `time.monotonic()` is past it, no run is begun.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self.name = f"torchrun:{size}"
        self.size = size
        self.timeout = timeout
        self.until = math.inf

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Call `function(rank, size, *arguments)` on every rank; see `World.run`.

        Raises:
            TypeError: the function or an argument does not pickle.
            WorldError: a rank raised, hung or died. If it cannot be used any more, the world is `over`.
            WorldLost: it is gone, with a host, or since a run before.
        """
        try:
            call = pickle.dumps((function, arguments, products_here()))
        except Exception as error:
            raise TypeError(f"cannot send {function!r} to the ranks: {error}") from error
        if time.monotonic() >= self.until:
            raise OutOfTime(f"world {self.name}: the time of the whole command is over")
        return lead().run(self.name, call, self.timeout)

    def start(self) -> None:
        """The processes are there."""

    def close(self) -> None:
        """The processes are torchrun's: they end with the command."""


class _Hung(BaseException):
    """A call took too long: raised in it."""


class _Group:
    """The place of a process in the group; each generation is a new group."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.generation = -1

    def perform(self, call: bytes, generation: int, seconds: float) -> tuple[str, bytes]:
        """Run a call; return how it ended, as `RankState` has it, and the pickled result or the traceback.

        "unjoined" is the state of a rank that could not join the group.
        """
        try:
            self._join(generation, COLLECTIVE_SHARE * seconds)
        except Exception:
            self.leave()
            return "unjoined", traceback.format_exc().encode(errors="replace")
        try:
            with _at_most(seconds):
                try:
                    function, arguments, products = pickle.loads(call)
                except Exception as error:
                    raise TypeError("a rank cannot import what the call names") from error
                multiply_as(products)
                result = function(self.rank, self.size, *arguments)
            try:
                return "returned", pickle.dumps(result)
            except Exception as error:
                raise TypeError(f"a result of type {type(result).__name__} does not pickle") from error
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            trace = error.__traceback__
            while trace and trace.tb_frame.f_code.co_filename == __file__:
                trace = trace.tb_next
            text = "".join(traceback.format_exception(error.with_traceback(trace)))
            state = {_Hung: "hung", SystemExit: "exited"}.get(type(error), "raised")
            words = f"no answer in {seconds:g} s\n{text}" if state == "hung" else text
            time.sleep(LINGER_SECONDS)  # a peer may be reading what lets it raise an error of its own
            self.leave()
            return state, words.encode(errors="replace")

    def _join(self, generation: int, seconds: float) -> None:
        if generation == self.generation:
            return
        import torch.distributed as dist

        self.leave()
        given = _within(self.store, f"group/{generation}")
        dist.init_process_group(
            backend(), store=given, rank=self.rank, world_size=self.size, timeout=timedelta(seconds=seconds)
        )
        self.generation = generation

    def leave(self) -> None:
        """Leave the group, if it is in one."""
        import torch.distributed as dist

        self.generation = -1
        with contextlib.suppress(Exception):
            if dist.is_initialized():
                dist.destroy_process_group()


def backend() -> str:
    """Return over what the ranks talk: NCCL too, where each has a GPU, which it then takes."""
    import torch
    import torch.distributed as dist

    local, place = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available() and dist.is_nccl_available() and torch.cuda.device_count() >= local:
        torch.cuda.set_device(place)
        return "cpu:gloo,cuda:nccl"
    return "gloo"


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `_Hung` in the main thread once so many seconds are over."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Peer:
    """A connection to another rank: messages are sent from any thread, and read by one of its own."""

    def __init__(self, link: Connection, rank: int, host: str) -> None:
        self.link = link
        self.rank = rank
        self.host = host
        self.heard = time.monotonic()
        self.closed = False
        self.cut = False
        self.gone = ""
        """Why it says that it goes."""
        self.stack = b""
        """Where it hangs."""
        self._sending = threading.Lock()

    def send(self, *message: object) -> bool:
        """Send a message; return whether that was possible."""
        try:
            with self._sending:
                self.link.send_bytes(pickle.dumps(message))
        except OSError as error:
            self._note(error)  # not closed yet: why it is gone may still be read
            return False
        return True

    def close(self, error: Exception) -> None:
        """Take note that all is read, and the connection closed by its process or for want of an answer."""
        self._note(error)
        self.closed = True

    def _note(self, error: Exception) -> None:
        self.cut = self.cut or (isinstance(error, OSError) and error.errno in UNREACHABLE)

    @property
    def silent(self) -> bool:
        """Whether its host does not answer, or nothing was heard of it for long."""
        return self.cut or (not self.closed and time.monotonic() > self.heard + SILENCE_SECONDS)


class _Lead:
    """What rank 0 knows of the other ranks."""

    def __init__(self) -> None:
        self.size = ranks()
        self.store = _store()
        self.lost = ""
        """Why the world cannot be used any more."""
        self.group = _Group(self.store, 0, self.size)
        self.peers: dict[int, _Peer] = {}
        self._news = threading.Condition()
        self._answers: dict[int, tuple[str, bytes]] = {}
        self._number = 0
        self._made: tuple[int, float] = (0, 0.0)
        """The generation of the group, and the time that its collectives have."""
        self._broken = True
        self._accept()
        for peer in self.peers.values():
            threading.Thread(target=self._listen, args=[peer], daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        atexit.register(self.finish)

    def run(self, name: str, call: bytes, seconds: float) -> list[Any]:
        """Run a call on every rank."""
        if self.lost:
            raise WorldLost(f"world {name}: {self.lost}")
        if self._broken or self._made[1] != seconds:
            self._made, self._broken = (self._made[0] + 1, seconds), False
        self._number += 1
        self._answers = {}
        for peer in self.peers.values():
            peer.stack = b""
            peer.send("call", self._number, call, self._made[0], seconds)
        longest = (1 + COLLECTIVE_SHARE) * seconds + GRACE_SECONDS  # to join, and to run
        deadline = time.monotonic() + longest
        watch = threading.Timer(longest + GRACE_SECONDS, self._give_up, [name, seconds])
        watch.daemon = True
        watch.start()
        try:
            own = self.group.perform(call, self._made[0], seconds)
            watch.cancel()
            self._await(deadline)
        except KeyboardInterrupt:
            # torchrun ends this process, as it does where a process beside it has died
            own = "exited", b"torchrun ended it"
            self._await(time.monotonic() + GRACE_SECONDS)
            if not any(peer.closed and not peer.gone for peer in self.peers.values()):
                self._broken = True
                raise
        finally:
            watch.cancel()
        return self._conclude(name, {0: own, **self._answers})

    def _await(self, deadline: float) -> None:
        """Wait until every rank has answered or is gone."""
        with self._news:
            while waiting := [p for p in self.peers.values() if p.rank not in self._answers and not p.closed]:
                if any(peer.closed for peer in self.peers.values()):
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                remaining = deadline - time.monotonic()
                if remaining <= 0 or all(peer.silent for peer in waiting):
                    return
                self._news.wait(min(remaining, BEAT_SECONDS))

    def _conclude(self, name: str, answers: dict[int, tuple[str, bytes]]) -> list[Any]:
        """Return the results, or raise the states, of all ranks."""
        results: list[Any] = []
        states = []
        for rank in range(self.size):
            state = self._state(rank, answers)
            if state.state == "returned":
                try:
                    results.append(pickle.loads(answers[rank][1]))
                except Exception:
                    detail = f"its result does not unpickle:\n{traceback.format_exc()}"
                    state = RankState(rank, "raised", detail)
            states.append(state)
        if len(results) == self.size:
            return results
        self._broken = True
        absent = {rank for rank in range(1, self.size) if rank not in answers}
        if absent:
            told = [f"{rank} {states[rank].state}: {_first(states[rank].detail)}" for rank in sorted(absent)]
            self.lost = f"rank {'; rank '.join(told)}; torchrun starts no other in its place"
            # torchrun sends it now, and kills half a minute later: what was found is to be written first
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        unjoined = [rank for rank, (state, _) in answers.items() if state == "unjoined"]
        if unjoined and not self.lost:
            self.lost = f"rank {unjoined[0]} could not join the group: {_last(answers[unjoined[0]][1])}"
        if self.lost and (unjoined or not self._is_of_the_target(absent)):
            raise WorldLost(f"world {name}: {self.lost}")
        raise WorldError(name, states, over=bool(self.lost))

    def _state(self, rank: int, answers: dict[int, tuple[str, bytes]]) -> RankState:
        if rank in answers:
            state, detail = answers[rank]
            kind = STATES[state]
            return RankState(rank, kind, "" if kind == "returned" else detail.decode(errors="replace"))
        peer = self.peers[rank]
        if peer.gone:
            return RankState(rank, "exited", peer.gone)
        if peer.silent:
            silence = f"nothing was heard from host {peer.host} for {SILENCE_SECONDS:g} s"
            return RankState(rank, "hung", silence)
        if peer.closed:
            return RankState(rank, "exited", "its process ended; torchrun's report says how")
        stack = peer.stack.decode(errors="replace") or "it did not tell its stack"
        return RankState(rank, "hung", f"no answer in {self._made[1]:g} s\n{stack}")

    def _is_of_the_target(self, absent: set[int]) -> bool:
        """Whether a rank is gone by what it ran, and not with its host."""
        for rank in absent:
            peer = self.peers[rank]
            beside = [one for one in self.peers.values() if one.host == peer.host]
            all_ended = len(beside) > 1 and all(one.closed and not one.gone for one in beside)
            if not peer.gone and not peer.silent and not all_ended:
                return True
        return False

    def _give_up(self, name: str, seconds: float) -> None:
        """End the process: its main thread is stuck in a call that nothing can interrupt."""
        stack = _stack_of_main()
        why = f"world {name}: rank 0 hung for more than {seconds:g} s, and ends the run\n{stack}"
        print(why, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            if last_words:
                last_words(why)
        os._exit(LOST)

    def _accept(self) -> None:
        """Wait for the other ranks."""
        token, deadline = secrets.token_bytes(TOKEN_BYTES), time.monotonic() + START_SECONDS
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=self.size) as server:
            self.store.set("verified-losses/lead", pickle.dumps((server.getsockname()[1], token)))
            while len(self.peers) < self.size - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    accepted, _ = server.accept()
                except TimeoutError:
                    absent = sorted({*range(1, self.size)} - self.peers.keys())
                    raise TimeoutError(f"ranks {absent} did not come within {START_SECONDS:g} s") from None
                accepted.settimeout(GRACE_SECONDS)
                with contextlib.suppress(OSError):
                    hello = _received(accepted, HELLO.size)
                    # who does not know the token is not heard
                    if len(hello) == HELLO.size and secrets.compare_digest(HELLO.unpack(hello)[0], token):
                        _, rank, host = HELLO.unpack(hello)
                        self.peers[rank] = _Peer(_connection(accepted), rank, str(host))
                        continue
                accepted.close()

    def _listen(self, peer: _Peer) -> None:
        """Read what a rank says until it is gone."""
        try:
            while True:
                kind, *rest = pickle.loads(peer.link.recv_bytes())
                with self._news:
                    peer.heard = time.monotonic()
                    if kind == "answer" and rest[0] == self._number:
                        self._answers[peer.rank] = rest[1], rest[2]
                    elif kind == "stuck":
                        peer.stack = rest[0]
                    elif kind == "gone":
                        peer.gone = rest[0]
                    self._news.notify_all()
        except (EOFError, OSError) as error:
            with self._news:
                peer.close(error)
                self._news.notify_all()

    def _beat(self) -> None:
        while True:
            for peer in self.peers.values():
                peer.send("beat")
            time.sleep(BEAT_SECONDS)

    def finish(self) -> None:
        """Tell the other ranks that all is done."""
        for peer in self.peers.values():
            peer.send("done")
        self.group.leave()


_lead: _Lead | None = None


def lead() -> _Lead:
    """Return rank 0's side; at the first call it waits for the other ranks.

    Raises:
        TimeoutError: some did not come.
    """
    global _lead
    if _lead is None:
        _lead = _Lead()
    return _lead


def serve() -> int:
    """Run what rank 0 sends, until it is done; return the exit status: 0, or 3 where rank 0 is lost."""
    import torch

    torch.set_num_threads(1)
    rank, size, agent, store = int(os.environ["RANK"]), ranks(), os.getppid(), _store()
    store.wait(["verified-losses/lead"], timedelta(seconds=START_SECONDS))
    port, token = pickle.loads(store.get("verified-losses/lead"))
    reached = socket.create_connection((os.environ["MASTER_ADDR"], port), START_SECONDS)
    reached.sendall(HELLO.pack(token, rank, int(os.environ.get("GROUP_RANK", "0"))))
    link = _connection(reached)
    peer, group, busy = _Peer(link, 0, "0"), _Group(store, rank, size), _Busy()

    def go(why: str, status: int) -> None:
        peer.send("gone", why)
        os._exit(status)

    def beat() -> None:
        while peer.send("beat"):
            if os.getppid() != agent:
                go("its torchrun agent is gone", LOST)
            if busy.is_late():
                peer.send("stuck", _stack_of_main().encode(errors="replace"))
            time.sleep(BEAT_SECONDS)
        time.sleep(GRACE_SECONDS)
        if busy.since < math.inf:  # rank 0 is gone, and the main thread may never see it
            os._exit(LOST)

    def terminate(number: int, frame: FrameType | None) -> None:
        # in a thread: the main thread may be about to send
        threading.Thread(target=go, args=["torchrun ended it", 128 + signal.SIGTERM], daemon=True).start()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    threading.Thread(target=beat, daemon=True).start()
    try:
        while link.poll(SILENCE_SECONDS):
            kind, *rest = pickle.loads(link.recv_bytes())
            if kind == "done":
                group.leave()
                return 0
            if kind == "call":
                number, call, generation, seconds = rest
                busy.since, busy.seconds = time.monotonic(), seconds
                outcome = group.perform(call, generation, seconds)
                busy.since = math.inf
                peer.send("answer", number, *outcome)
    except (EOFError, OSError):
        pass
    print(f"rank {rank}: rank 0 is gone", file=sys.stderr, flush=True)
    return LOST


class _Busy:
    """Since when a rank runs a call, and how long it may take."""

    since = math.inf
    seconds = math.inf

    def is_late(self) -> bool:
        return time.monotonic() > self.since + self.seconds + 1.0


def _store() -> Any:
    """Return torchrun's store, under a name for each of its attempts."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
    return _within(store, f"verified-losses/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")


def _within(store: Any, name: str) -> Any:
    """Return a part of a store."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined, unused-ignore]

    return PrefixStore(name, store)


def _received(link: socket.socket, size: int) -> bytes:
    """Return so many bytes; fewer, if the other side ends before."""
    received = b""
    while len(received) < size and (part := link.recv(size - len(received))):
        received += part
    return received


def _connection(link: socket.socket) -> Connection:
    """Return a connection over a socket, which notices that the other host is gone."""
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENCE_SECONDS))
    return Connection(link.detach())


def _stack_of_main() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    lines = traceback.format_stack(frame) if frame else []
    own = [number for number, line in enumerate(lines) if __file__ in line]
    return "".join(lines[own[-1] + 1 :] if own else lines)


def _first(text: str) -> str:
    return text.partition("\n")[0]


def _last(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or [""])[-1]
