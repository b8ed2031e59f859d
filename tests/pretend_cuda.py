"""The part of `torch.cuda` that laws of CUDA use, over tensors of the CPU.

Streams are clocks: an operation that reads what another stream wrote, without having waited for that
stream, gives what is no number, as a GPU may. A graph records the operations below autograd, with the memory
that they read and write, and does them again as it is replayed. What makes the host wait, or copies to it, is
refused while a graph is captured or the host must not wait. Memory is that of the tensors that Python holds.

It cannot show: that a GPU's race really happens, backward on the stream of its forward, collectives, copies
from the host, which calls of libraries wait or cannot be captured, memory that autograd or a library holds,
how a caching allocator hands it out, nor what kernels round.
"""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import Bench, Law, laws
from verified_losses.properties.laws.cuda import recorded
from verified_losses.properties.reference import Reference
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.certifier import Check
from verified_losses.properties.worlds.single import SingleWorld
from verified_losses.properties.worlds.specs import parse

T = TypeVar("T")

SYNCHRONIZES = "called a synchronizing CUDA operation"
CAPTURES = "operation not permitted when stream is capturing"
WAITING = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
)
SHARE = 0.4
"""Of the cases that are asked for, for each law."""
TO_HOST = ("cpu", "tolist", "numpy", "item")


class Stream:
    """A clock, and how much of the others it has waited for."""

    def __init__(self) -> None:
        self.time = 0
        self.waited: dict[Stream, int] = {}

    def wait_stream(self, other: "Stream") -> None:
        """Wait for all that the other one was given so far."""
        for stream, time in {**other.waited, other: other.time}.items():
            self.waited[stream] = max(time, self.waited.get(stream, 0))

    def knows(self, writer: "tuple[Stream, int] | None") -> bool:
        """Whether what a stream wrote at a time is there."""
        if writer is None or writer[0] is self:
            return True
        return self.waited.get(writer[0], 0) >= writer[1]


class CUDAGraph:
    """Operations below autograd, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Do them again, in the same memory."""
        for function, given, named, out in self.done:
            again = function(*given, **named)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [one for part in value for one in _tensors(part)]
    return []


class Device(TorchDispatchMode):
    """Runs operations as a device with streams does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.default = self.current = Stream()
        self.streams = [self.default]
        self.writers: dict[int, tuple[Stream, int]] = {}
        self.graph: CUDAGraph | None = None
        self.sync_mode: Any = 0

    def check(self) -> None:
        """Raise if the host must not wait now."""
        if self.graph is not None:
            raise RuntimeError(CAPTURES)
        if self.sync_mode == "error":
            raise RuntimeError(SYNCHRONIZES)

    def synchronize(self) -> None:
        """Wait for all streams."""
        self.check()
        now = {stream: stream.time for stream in self.streams}
        for stream in self.streams:
            stream.waited = now.copy()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func.name() in WAITING:
            self.check()
        given = [*_tensors(list(args)), *_tensors(list(named.values()))]
        written = [_address(one) for one in given] if func._schema.is_mutable else []
        known = {_address(one) for one in given}
        if func.name() == "aten::lift_fresh":  # what `torch.tensor` made, where another tensor may have been
            known.clear()
        late = not all(self.current.knows(self.writers.get(address)) for address in known)
        out = func(*args, **named)
        made = _tensors(out)
        self.current.time += 1
        if late and not written:
            out, made = self._garbage(out)
        for address in [*written, *({_address(one) for one in made} - known)]:
            self.writers[address] = self.current, self.current.time
        if self.graph is not None and made and (written or not {_address(one) for one in made} <= known):
            self.graph.done.append((func, args, named, out))
        return out

    def _garbage(self, out: Any) -> tuple[Any, list[torch.Tensor]]:
        """Return what was read too early."""
        if isinstance(out, torch.Tensor):
            wrong = torch.full_like(out, float("nan")) if out.is_floating_point() else torch.zeros_like(out)
            return wrong, [wrong]
        return out, _tensors(out)


class OnDevice(SingleWorld):
    """One rank, whose tensors are the device's; the oracle's are not."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """Run a function on the rank."""
        with self.device:
            return super().run(function, *arguments)


def placed(law: Law, device: Device) -> Law:
    """Return the law with its subject on the device, in this process."""

    def check(bench: Bench, reference: Reference) -> float:
        ours = Bench(bench.contract, bench.subject, OnDevice(device), SingleWorld())
        for case in (reference.case, law.prepare(reference.case)):
            for known in (case, recorded(case)):  # made here, not on the device
                assert ours.reference(known).inputs
                assert ours.reference(known).cotangents
        return law.check(ours, reference)

    return dataclasses.replace(law, check=check, needs="")


@contextmanager
def checks(label: str, contract: str, subject: Subject) -> Iterator[list[Check]]:
    """Let a target be asked about the laws of CUDA, over this."""
    (single,) = parse("1")
    with pytest.MonkeyPatch.context() as patch, installed(patch) as device:
        # the tenth that some have on a GPU is two cases of the default budget
        known = [dataclasses.replace(law, share=SHARE) for law in laws() if law.needs == "cuda"]
        asked = [placed(law, device) for law in known]
        yield [Check(label, contracts()[contract], subject, law, single) for law in asked]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _held() -> int:
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({_address(one): one.untyped_storage().nbytes() for one in tensors}.values())


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Let `torch.cuda` be this; inside `with device`, the CPU's tensors are its own."""
    device = Device()

    class Known(Stream):
        def __init__(self) -> None:
            super().__init__()
            device.streams.append(self)

    @contextmanager
    def stream(one: Stream) -> Iterator[None]:
        before, device.current = device.current, one
        try:
            yield
        finally:
            device.current = before

    @contextmanager
    def graph(one: CUDAGraph) -> Iterator[None]:
        device.synchronize()
        device.graph = one
        try:
            with stream(device.default):
                yield
        finally:
            device.graph = None

    def to_host(right: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*given: Any, **named: Any) -> Any:
            device.check()
            return right(*given, **named)

        return checked

    surface = {
        "is_available": lambda: True,
        "Stream": Known,
        "current_stream": lambda: device.current,
        "default_stream": lambda: device.default,
        "set_stream": lambda one: setattr(device, "current", one),
        "is_current_stream_capturing": lambda: device.graph is not None,
        "stream": stream,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "synchronize": device.synchronize,
        "get_sync_debug_mode": lambda: device.sync_mode,
        "set_sync_debug_mode": lambda mode: setattr(device, "sync_mode", mode),
        "memory_allocated": _held,
        "_sleep": lambda cycles: None,
    }
    with monkeypatch.context() as patch:
        for name, value in surface.items():
            patch.setattr(torch.cuda, name, value)
        for name in TO_HOST:
            patch.setattr(torch.Tensor, name, to_host(getattr(torch.Tensor, name)))
        gc.freeze()  # what is there already is not counted, nor looked through
        try:
            yield device
        finally:
            gc.unfreeze()
