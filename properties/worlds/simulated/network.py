"""Communication between simulated ranks: how calls match, and every error in it."""

import math
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from types import CodeType, FrameType
from typing import Literal, NamedTuple

import torch
import torch.distributed.c10d_logger

from . import buffers
from .errors import Abandon, CommunicationError, Finding, InjectedFault, Vanish
from .scheduler import Option, Scheduler

Sends = Literal["rendezvous", "buffered", "drawn"]
Phase = Literal["forward", "backward"]
Stack = list[tuple[CodeType, int]]

_IDLE_POLLS = 1000
"""Polls in a row that found nothing, after which the ranks are taken to poll for ever."""


@dataclass(frozen=True)
class Fault:
    """Something done to one rank at its `at`-th communication call, counted from 0, backward included.

    "raise" raises `InjectedFault` there; "vanish" ends the rank; "delay" lets every other rank run on for as
    long as it can; "flip" inverts bit `bit` of the rank's first input; "reshape" makes the rank's tensor
    one row longer than its peers expect. A fault that finds nothing to do, a flip in a barrier say, does not
    happen.
    """

    rank: int
    at: int
    kind: Literal["raise", "vanish", "delay", "flip", "reshape"]
    bit: int = 0


class Key(NamedTuple):
    """Communication is counted by these."""

    rank: int
    operation: str
    phase: Phase


@dataclass
class Volume:
    """How much one rank communicated in one operation, in one phase.

    A collective is counted as if each rank handed its part directly to every rank that needs it, whatever
    algorithm a backend uses: an all_gather of b bytes sends W - 1 messages of b bytes each.
    """

    calls: int = 0
    messages: int = 0
    sent: int = 0
    """Bytes."""
    received: int = 0
    """Bytes."""


class Signature(NamedTuple):
    """The properties of a collective that every rank must agree on."""

    operation: str
    reduce_op: str | None = None
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None
    device: str | None = None
    root: int | None = None
    stride: tuple[int, ...] | None = None
    """Where a backend moves memory, not elements, and the tensor is not contiguous."""
    detail: object = None

    def __str__(self) -> str:
        shape = None if self.shape is None else tuple(self.shape)
        pairs = zip(self._fields[1:], self._replace(shape=shape)[1:], strict=True)
        return (
            f"{self.operation}({', '.join(f'{name}={value}' for name, value in pairs if value is not None)})"
        )

    def differences(self, other: "Signature") -> str:
        """Return the names of the properties that differ."""
        if self.operation != other.operation:
            return "operation"
        pairs = zip(self._fields, self, other, strict=True)
        return ", ".join(name for name, mine, theirs in pairs if mine != theirs)


class Members:
    """A process group as all its ranks share it."""

    def __init__(self, name: str, ranks: Sequence[int]) -> None:
        self.name = name
        self.ranks = tuple(ranks)
        self.calls = [0] * len(self.ranks)
        self.slots: dict[int, Slot] = {}

    def __str__(self) -> str:
        return f"group {self.name} {self.ranks}"


@dataclass(eq=False, slots=True)
class Operation:
    """One rank's part in one communication."""

    rank: int
    members: Members
    signature: Signature
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]
    asynchronous: bool
    peer: int | None = None
    """The other side's rank in a send or a receive; None in a receive from any source."""
    tag: int = 0
    fill: Callable[["Slot", int], Sequence[torch.Tensor]] | None = None
    """From the filled slot and a rank of the group, what that rank's outputs become."""
    check: Callable[["Slot"], tuple[int, int, str] | None] | None = None
    """Two group ranks that do not fit together, and how, where equal signatures do not tell."""
    in_place: Collection[tuple[int, int]] = ()
    """The inputs and outputs, by index, that may be the same memory."""
    call: int = 0
    payload: list[torch.Tensor] = field(default_factory=list)
    result: Sequence[torch.Tensor] | None = None
    slot: "Slot | None" = None
    done: bool = False
    buffered: bool = False
    landed: bool = False
    doubted: bool = False
    poisoned: bool = False
    stack: Stack = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.signature.operation

    def __str__(self) -> str:
        where = f"{self.members}, its call {self.call}"
        if self.name == "send":
            return f"{self.signature} to rank {self.peer}, tag {self.tag}, in {where}"
        if self.name == "recv":
            source = "any rank" if self.peer is None else f"rank {self.peer}"
            return f"{self.signature} from {source}, tag {self.tag}, in {where}"
        return f"{self.signature} in {where}"

    def missing(self) -> list[int]:
        """The ranks without which this cannot go on."""
        if self.slot is not None:
            return [rank for place, rank in enumerate(self.members.ranks) if place not in self.slot.arrivals]
        if self.peer is None:
            return [rank for rank in self.members.ranks if rank != self.rank]
        return [self.peer]


class Slot:
    """One collective of a group: who has arrived."""

    def __init__(self) -> None:
        self.arrivals: dict[int, Operation] = {}
        self.shared: list[torch.Tensor] | None = None
        """What the first rank to need it computed for all, a sum say."""


class Failure(NamedTuple):
    finding: Finding
    message: str
    states: dict[int, str]
    """The stack of every rank that waited when the run failed."""


def _here() -> Stack:
    frame: FrameType | None = sys._getframe(2)
    stack = []
    while frame is not None:
        stack.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return stack


_HIDDEN = (
    __file__.rpartition("/")[0],
    threading.__file__,
    str(torch.distributed.c10d_logger.__file__),
)


def render(stack: Stack) -> str:
    """The stack as a traceback prints it, without this package's own frames."""
    lines = (
        traceback.FrameSummary(code.co_filename, line, code.co_name)
        for code, line in reversed(stack)
        if not code.co_filename.startswith(_HIDDEN)
    )
    return "".join(traceback.format_list(list(lines)))


class Network:
    """The communication of one run."""

    def __init__(self, scheduler: Scheduler, sends: Sends, faults: Iterable[Fault]) -> None:
        self.scheduler = scheduler
        self.sends = sends
        self.size = scheduler.size
        self.world = Members("world", range(self.size))
        self.groups: dict[tuple[str, int], Members] = {}
        self.faults = {(fault.rank, fault.at): fault for fault in faults}
        self.fired: list[Fault] = []
        self.traffic: dict[Key, Volume] = {}
        self.calls = [0] * self.size
        self.waiting: dict[int, Operation] = {}
        self.finished: dict[int, str] = {}
        self.flights: list[list[Operation]] = [[] for _ in range(self.size)]
        self.watches: dict[int, buffers.Watch] = {}
        """Of the ranks that ever had a buffer in flight."""
        self.posted: dict[int, list[Operation]] = {}
        """By destination, sends that no receive has taken; oldest first."""
        self.wanted: dict[int, list[Operation]] = {}
        """By destination, receives that have no message yet; oldest first."""
        self.failure: Failure | None = None
        self.starved: Failure | None = None
        """The state in which the run would have ended had sends not been let go unreceived."""
        self.idle_polls = 0
        self.group_names = count()

    # Failing

    def stacks(self) -> dict[int, str]:
        """Every waiting rank's Python stack."""
        frames = sys._current_frames()
        found = {}
        for rank, operation in self.waiting.items():
            frame = frames.get(self.scheduler.threads[rank].ident or 0)
            stack: Stack = []
            while frame is not None:
                stack.append((frame.f_code, frame.f_lineno))
                frame = frame.f_back
            found[rank] = f"waits in {operation}\n{render(stack)}"
        return found

    def fail(self, finding: Finding, message: str) -> CommunicationError:
        """Record the first failure; from now on every communication call raises it."""
        if self.failure is None:
            if self.fired:
                message += f" (after {', '.join(map(str, self.fired))})"
            self.failure = Failure(finding, message, self.stacks())
            self.scheduler.unwinding = True
        return CommunicationError(self.failure.finding, self.failure.message)

    def _refuse(self) -> None:
        if self.failure is not None:
            raise CommunicationError(self.failure.finding, self.failure.message)
        if self.scheduler.unwinding:
            raise Abandon

    def expired(self, rank: int) -> None:
        frame = sys._current_frames().get(self.scheduler.threads[rank].ident or 0)
        stack: Stack = []
        while frame is not None:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        timeout = self.scheduler.timeout
        self.fail("hung", f"the run was not over after {timeout} s; rank {rank} ran, at\n{render(stack)}")

    def stalled(self) -> None:
        """No rank can run: find out why, and make those that wait raise it."""
        if not self.scheduler.unwinding:
            lines = [f"rank {rank} waits in {operation}" for rank, operation in sorted(self.waiting.items())]
            gone = {
                f"rank {missing} {self.finished[missing]}"
                for operation in self.waiting.values()
                for missing in operation.missing()
                if missing in self.finished
            }
            if gone:
                self.fail("early_exit", "; ".join([*sorted(gone), *lines]))
            elif (crossed := self._crossed_groups()) is not None:
                self.fail("mismatch", f"the order of groups differs: {crossed}")
            else:
                story = "no rank can run: " + "; ".join(lines)
                stuck = [op for op in self.waiting.values() if op.name == "send"]
                if stuck:
                    self.starved = self.starved or Failure("needs_buffering", story, self.stacks())
                    self.sends = "buffered"
                    for sends in self.posted.values():
                        for operation in sends:
                            operation.buffered = True
                            self._finish(operation)
                    return
                self.fail("deadlock", story)
        for rank in sorted(self.waiting):
            self.scheduler.wake(rank)
        self.waiting.clear()

    def _crossed_groups(self) -> str | None:
        """Two ranks that wait for each other in collectives of different groups which both belong to."""
        for rank, one in self.waiting.items():
            for other in (self.waiting.get(peer) for peer in one.missing()):
                if (
                    other is not None
                    and one.slot is not None
                    and other.slot is not None
                    and one.members is not other.members
                    and rank in other.missing()
                ):
                    return f"rank {rank} calls {one}; rank {other.rank} calls {other}"
        return None

    # One rank's calls

    def start(self, operation: Operation, messages: int, sent: int, received: int) -> None:
        """Begin a communication; its volume is counted whether or not it ends."""
        rank = operation.rank
        self._refuse()
        self.idle_polls = 0
        operation.call = self.calls[rank]
        self.calls[rank] += 1
        fault = self.faults.get((rank, operation.call))
        if fault is not None:
            self._inflict(fault, operation)
        self.scheduler.turn(rank)
        self._refuse()
        phase: Phase = "forward" if torch._C._current_graph_task_id() == -1 else "backward"
        key = Key(rank, operation.signature.operation, phase)
        volume = self.traffic.get(key)
        if volume is None:
            volume = self.traffic[key] = Volume()
        volume.calls += 1
        volume.messages += messages
        volume.sent += sent
        volume.received += received
        with torch._C._DisableTorchDispatch():
            self._check_memory(operation)
            # A rank that waits here cannot touch its inputs before all have arrived.
            operation.payload = (
                buffers.snapshots(operation.inputs) if operation.asynchronous else list(operation.inputs)
            )
            if fault is not None and fault.kind == "flip" and any(part.numel() for part in operation.payload):
                place = next(i for i, part in enumerate(operation.payload) if part.numel())
                operation.payload[place] = buffers.flip_bit(operation.payload[place], fault.bit)
                self.fired.append(fault)
            if operation.asynchronous:
                operation.stack = _here()
                self._take_off(operation)
        if operation.slot is None and operation.name in ("send", "recv"):
            self._post(operation)
        else:
            self._join(operation)
        if operation.asynchronous:
            if rank not in self.watches:
                self.watches[rank] = buffers.Watch(self._toucher(rank))
            self.watches[rank].start()

    def _inflict(self, fault: Fault, operation: Operation) -> None:
        if fault.kind == "raise":
            self.fired.append(fault)
            raise InjectedFault(f"rank {fault.rank}, communication call {fault.at}: {operation.name}")
        if fault.kind == "vanish":
            self.fired.append(fault)
            raise Vanish
        if fault.kind == "delay":
            self.fired.append(fault)
            self.scheduler.step_aside(fault.rank, until_fence=True)
        if fault.kind == "reshape" and operation.signature.shape:
            self.fired.append(fault)
            rows, *rest = operation.signature.shape
            operation.signature = operation.signature._replace(shape=(rows + 1, *rest))

    def wait(self, operation: Operation) -> None:
        """Return when the communication is complete and its outputs are filled."""
        if operation.landed:
            return
        rank = operation.rank
        self._refuse()
        if operation.asynchronous:
            self.scheduler.turn(rank)
            self._refuse()
        while not operation.done:
            self.waiting[rank] = operation
            self.scheduler.block(rank)
            if not operation.done:
                self._refuse()
        if not operation.landed:
            self._land(operation)

    def poll(self, operation: Operation) -> bool:
        """Whether the communication is complete; a real backend may notice late, and so may this one."""
        if operation.landed:
            return True
        self._refuse()
        self.scheduler.step_aside(operation.rank, until_fence=self.scheduler.chooser.exhaustive)
        self._refuse()
        if not operation.done:
            self.idle_polls += 1
            if self.idle_polls > _IDLE_POLLS:
                raise self.fail("deadlock", f"rank {operation.rank} polls for ever: {operation}")
            return False
        if not operation.doubted:
            operation.doubted = True
            if self.scheduler.decide(_either(operation, "complete", "not seen complete")):
                return False
        self._land(operation)
        return True

    def leave(self, rank: int, how: str) -> None:
        """The rank's function is over.

        Raises:
            CommunicationError: it left a communication that it never waited for.
        """
        self.finished[rank] = how
        left = [operation for operation in self.flights[rank] if not operation.landed]
        if left and self.failure is None and how == "returned":
            where = "\n".join(f"{operation}, started at\n{render(operation.stack)}" for operation in left)
            raise self.fail("unwaited", f"rank {rank} returned without waiting for {where}")

    def conclude(self) -> None:
        """All ranks have ended: look for messages that no rank received."""
        unreceived = [operation for sends in self.posted.values() for operation in sends]
        if self.starved is not None:
            finding: Finding = "deadlock" if self.failure is not None or unreceived else "needs_buffering"
            self.failure = self.starved._replace(finding=finding)
        elif unreceived and self.failure is None:
            lines = [f"rank {operation.rank}'s {operation}" for operation in unreceived]
            self.fail("unreceived", "never received: " + "; ".join(lines))

    def release(self) -> None:
        """Let go of all tensors: torch keeps handles of functional collectives that nobody waited for.

        Nothing may be left in a cycle: to collect the hundreds of tensors of a run takes a tenth of its time.
        """
        for flights in self.flights:
            for operation in flights:
                operation.inputs = operation.outputs = operation.payload = []
        self.posted.clear()
        self.wanted.clear()
        self.watches.clear()

    # Matching

    def _finish(self, operation: Operation) -> None:
        operation.done = True
        self.idle_polls = 0
        if self.waiting.get(operation.rank) is operation:
            del self.waiting[operation.rank]
            self.scheduler.wake(operation.rank)

    def _join(self, operation: Operation) -> None:
        members = operation.members
        place = members.ranks.index(operation.rank)
        number = members.calls[place]
        members.calls[place] += 1
        slot = members.slots.setdefault(number, Slot())
        operation.slot = slot
        for other in slot.arrivals.values():
            if other.signature != operation.signature:
                raise self._mismatch(other, operation)
            break
        slot.arrivals[place] = operation
        if len(slot.arrivals) == len(members.ranks):
            del members.slots[number]
            if operation.check is not None and (conflict := operation.check(slot)) is not None:
                one, other_place, how = conflict
                raise self._mismatch(slot.arrivals[one], slot.arrivals[other_place], how)
            self._land_together(slot)
            for arrival in slot.arrivals.values():
                self._finish(arrival)

    def _mismatch(self, one: Operation, other: Operation, how: str = "") -> CommunicationError:
        how = how or f"different {one.signature.differences(other.signature)}"
        return self.fail("mismatch", f"{how}: rank {one.rank} calls {one}; rank {other.rank} calls {other}")

    def _post(self, operation: Operation) -> None:
        """Match a send with the oldest receive that wants it, or a receive with the oldest message for it.

        A receive from any source takes its message in `perform`, once the choice among sources is due.
        """
        if operation.name == "send":
            assert operation.peer is not None
            queue = self.wanted.get(operation.peer, [])
            for index, receive in enumerate(queue):
                if receive.peer is None and self._fits(operation, receive):
                    break
                if self._fits(operation, receive):
                    del queue[index]
                    self._deliver(operation, receive)
                    return
            self.posted.setdefault(operation.peer, []).append(operation)
            if self.sends == "buffered" or (
                self.sends == "drawn" and self.scheduler.decide(_either(operation, "rendezvous", "buffered"))
            ):
                operation.buffered = True
                self._finish(operation)
            return
        if operation.peer is not None:
            earlier = self.wanted.get(operation.rank, [])
            for index, send in enumerate(self.posted.get(operation.rank, [])):
                # An earlier receive from any source has the first claim on the message.
                if self._fits(send, operation) and not any(self._fits(send, other) for other in earlier):
                    del self.posted[operation.rank][index]
                    self._deliver(send, operation)
                    return
        self.wanted.setdefault(operation.rank, []).append(operation)

    @staticmethod
    def _fits(send: Operation, receive: Operation) -> bool:
        return (
            send.members is receive.members and send.tag == receive.tag and receive.peer in (None, send.rank)
        )

    def _deliver(self, send: Operation, receive: Operation) -> None:
        one, other = send.signature._replace(operation=""), receive.signature._replace(operation="")
        if math.prod(one.shape or ()) == math.prod(other.shape or ()):
            one = one._replace(shape=other.shape)  # the same elements, laid out differently, are one message
        if one != other:
            raise self._mismatch(send, receive, f"different {one.differences(other)}")
        receive.peer = send.rank
        receive.result = [send.payload[0].view(receive.outputs[0].shape)]
        self._finish(send)
        self._finish(receive)

    def _open_matches(self) -> Iterable[tuple[Option, Operation, Operation]]:
        for receives in self.wanted.values():
            taken: list[Operation] = []
            for receive in receives:
                if receive.peer is None and not any(
                    other.members is receive.members and other.tag == receive.tag for other in taken
                ):
                    sources = set()
                    for send in self.posted.get(receive.rank, []):
                        if self._fits(send, receive) and send.rank not in sources:
                            sources.add(send.rank)
                            yield (
                                Option("match", receive.rank, receive.call, send.rank, send.call),
                                send,
                                receive,
                            )
                taken.append(receive)

    def pending(self) -> list[Option]:
        """The messages that receives from any source may take."""
        return sorted(option for option, _, _ in self._open_matches())

    def perform(self, option: Option) -> None:
        """Let a receive from any source take a message, then serve the receives that stood behind it."""
        send, receive = next((send, recv) for found, send, recv in self._open_matches() if found == option)
        self.posted[receive.rank].remove(send)
        self.wanted[receive.rank].remove(receive)
        waiting, self.wanted[receive.rank] = self.wanted[receive.rank], []
        # Whichever rank runs makes the match; one that does not fit is the failure of its two sides.
        with suppress(CommunicationError):
            self._deliver(send, receive)
            for later in waiting:
                self._post(later)

    # Memory

    def _check_memory(self, operation: Operation) -> None:
        for kind, one, place in buffers.overlaps(operation.inputs, operation.outputs):
            if kind is None:
                what = f"outputs {one} and {place}"
            elif (one, place) in operation.in_place and buffers.same(
                operation.inputs[one], operation.outputs[place]
            ):
                continue
            else:
                what = f"input {one} and output {place}"
            raise self.fail("aliasing", f"rank {operation.rank}: {what} of {operation} share memory")
        for flying in self.flights[operation.rank]:
            for source in operation.inputs:
                if any(buffers.overlap(source, output) for output in flying.outputs):
                    raise self._hazard("read_in_flight", operation, flying, "reads what it fills")
            for output in operation.outputs:
                if any(buffers.overlap(output, other) for other in flying.outputs):
                    raise self._hazard("aliasing", operation, flying, "fills what it fills")
                if any(buffers.overlap(output, other) for other in flying.inputs):
                    raise self._hazard("written_in_flight", operation, flying, "fills what it reads")

    def _hazard(self, finding: Finding, one: Operation, flying: Operation, how: str) -> CommunicationError:
        return self.fail(
            finding,
            f"rank {one.rank}: {one} {how}: {flying}, not yet waited for, started at\n{render(flying.stack)}",
        )

    def _take_off(self, operation: Operation) -> None:
        self.flights[operation.rank].append(operation)
        if not any(buffers.overlaps(operation.inputs, operation.outputs)):
            operation.poisoned = True
            for output in operation.outputs:
                buffers.poison(output)

    def _toucher(self, rank: int) -> Callable[[torch.Tensor, bool], None]:
        def touched(tensor: torch.Tensor, writes: bool) -> None:
            if tensor.device.type == "meta" or self.failure is not None:
                return
            for operation in self.flights[rank]:
                watched = [*operation.outputs, *(operation.inputs if writes else ())]
                if any(buffers.overlap(tensor, buffer) for buffer in watched):
                    finding: Finding = "written_in_flight" if writes else "read_in_flight"
                    did = "writes" if writes else "reads"
                    raise self.fail(
                        finding,
                        f"rank {rank} {did} a buffer before it has waited for {operation}, started at\n"
                        f"{render(operation.stack)}then, at\n{render(_here())}",
                    )

        return touched

    def _land_together(self, slot: Slot) -> None:
        """Fill the outputs of ranks that all wait; else keep what they gave until each fills its own."""
        waiting = [place for place, arrival in slot.arrivals.items() if not arrival.asynchronous]
        results: dict[int, Sequence[torch.Tensor]] = {}
        # Inference mode, since outputs made under it are not written outside.
        with torch._C._DisableTorchDispatch(), torch.inference_mode(), suppress(Exception):
            if len(waiting) == len(slot.arrivals):
                outputs: list[torch.Tensor] = []
                for place, arrival in slot.arrivals.items():
                    if arrival.outputs:
                        assert arrival.fill is not None
                        results[place] = arrival.fill(slot, place)
                        outputs += arrival.outputs
                if outputs:
                    torch._foreach_copy_(outputs, [part for result in results.values() for part in result])
                for arrival in slot.arrivals.values():
                    arrival.landed, arrival.slot = True, None
                return
        # Where that was impossible each rank tries, and raises, by itself.
        for place in waiting:
            arrival = slot.arrivals[place]
            if place in results:
                arrival.result = buffers.snapshots(results[place])
            arrival.payload = buffers.snapshots(arrival.payload)

    def _land(self, operation: Operation) -> None:
        """Fill the outputs."""
        operation.landed = True
        slot, operation.slot = operation.slot, None
        if not operation.asynchronous and not operation.outputs:
            return
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            if operation.asynchronous:
                self._check_untouched(operation)
                self.flights[operation.rank].remove(operation)
            if operation.outputs:
                result = operation.result
                if result is None:
                    assert operation.fill is not None
                    assert slot is not None
                    result = operation.fill(slot, operation.members.ranks.index(operation.rank))
                torch._foreach_copy_(list(operation.outputs), list(result))
        if operation.asynchronous and not self.flights[operation.rank]:
            self.watches[operation.rank].stop()

    def _check_untouched(self, operation: Operation) -> None:
        """Writes that no operator made, through NumPy say."""
        flipped = any(fault.rank == operation.rank and fault.at == operation.call for fault in self.fired)
        changed = not flipped and any(
            not buffers.equal(tensor, before)
            for tensor, before in zip(operation.inputs, operation.payload, strict=True)
        )
        if operation.poisoned:
            changed = changed or not all(map(buffers.poisoned, operation.outputs))
        if changed:
            raise self.fail(
                "written_in_flight",
                f"rank {operation.rank} wrote a buffer before it waited for {operation}, started at\n"
                f"{render(operation.stack)}",
            )


def _either(operation: Operation, one: str, other: str) -> list[Option]:
    return [Option(kind, operation.rank, operation.call) for kind in (one, other)]
