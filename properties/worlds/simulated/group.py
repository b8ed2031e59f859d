"""The process group that torch.distributed sees in a simulated rank."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from typing import Any

import torch

# Import this before ranks start: its functions bind the default group at import time.
import torch.distributed.nn.functional
from torch import distributed as dist
from torch._C import _distributed_c10d as bindings
from torch.distributed import distributed_c10d as c10d

from . import buffers
from .network import Members, Network, Operation, Signature, Slot

Tensors = Sequence[torch.Tensor]

_REDUCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "SUM": torch.add,
    "AVG": torch.add,
    "PRODUCT": torch.mul,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "BAND": torch.bitwise_and,
    "BOR": torch.bitwise_or,
    "BXOR": torch.bitwise_xor,
}


class Work(dist.Work):
    """The handle of one communication."""

    def __init__(self, network: Network, operation: Operation) -> None:
        super().__init__()
        self.network = network
        self.operation = operation

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.network.wait(self.operation)
        return True

    def synchronize(self) -> None:
        self.network.wait(self.operation)

    def is_completed(self) -> bool:
        return self.network.poll(self.operation)

    def is_success(self) -> bool:
        return self.operation.landed

    def source_rank(self) -> int:
        assert self.operation.peer is not None
        return self.operation.members.ranks.index(self.operation.peer)

    _source_rank = source_rank

    def result(self) -> list[torch.Tensor]:
        return list(self.operation.outputs)

    def get_future(self) -> Any:
        raise NotImplementedError("simulated world: Work.get_future")


class _Landed(dist.Work):
    """The handle of every communication that was complete when the call returned."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True


_LANDED = _Landed()


def _bytes(tensors: Tensors) -> int:
    try:
        return sum([tensor.nbytes for tensor in tensors])
    except RuntimeError as error:
        raise NotImplementedError("simulated world: tensors that are not dense") from error


def _describe(name: str, tensor: torch.Tensor, **more: Any) -> Signature:
    return Signature(name, dtype=tensor.dtype, shape=tensor.shape, device=tensor.device.type, **more)


def _stride(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The layout, None if contiguous.

    gloo's broadcast, reductions and scatter move memory as it lies: ranks whose strides differ get each
    other's elements in the wrong places, without an error (torch 2.13).
    """
    if tensor.is_contiguous():
        return None
    return tuple(step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def _reduction(op: Any) -> str:
    name = str(getattr(op, "op", op)).rpartition(".")[2]
    if name not in _REDUCTIONS:
        raise NotImplementedError(f"simulated world: reduce op {name}")
    return name


def _combine(parts: Tensors, name: str) -> torch.Tensor:
    total = reduce(_REDUCTIONS[name], parts)
    return total / len(parts) if name == "AVG" else total


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


_ProcessGroup: Any = dist.ProcessGroup
"""Untyped: the stubs of its methods change from one version of torch to the next."""


class SimulatedGroup(_ProcessGroup):  # type: ignore[misc]
    """One rank's handle on a group; its methods are the ones torch.distributed calls."""

    def __init__(self, network: Network, members: Members, rank: int, backend: str) -> None:
        place = members.ranks.index(rank)
        super().__init__(place, len(members.ranks))
        self.network = network
        self.members = members
        self.global_rank = rank
        self.place = place
        self.width = len(members.ranks)
        self.backend = backend
        # Functional collectives look a group up by name in a registry that all ranks share.
        self.registered_name: Any = f"simulated:{id(network)}:{rank}:{next(network.group_names)}"

    @property
    def group_name(self) -> Any:
        return self.registered_name

    @property
    def group_desc(self) -> str:
        return self.members.name

    def size(self) -> int:
        return self.width

    def rank(self) -> int:
        return self.place

    def getBackendName(self) -> str:
        return self.backend

    def __repr__(self) -> str:
        return f"rank {self.place} of the simulated {self.members}"

    def _start(
        self,
        signature: Signature,
        inputs: Tensors,
        outputs: Tensors,
        options: Any,
        volume: tuple[int, int, int],
        fill: Callable[[Slot, int], Tensors] | None = None,
        **more: Any,
    ) -> dist.Work:
        if _router.world is None or _router.world.rank != self.global_rank:
            raise RuntimeError(f"{self} was kept from another rank, in a global or a default argument say")
        asynchronous = bool(getattr(options, "asyncOp", True))
        operation = Operation(
            self.global_rank, self.members, signature, inputs, outputs, asynchronous, fill=fill, **more
        )
        self.network.start(operation, *volume)
        if asynchronous:
            return Work(self.network, operation)
        self.network.wait(operation)
        return _LANDED

    # Everyone gets everything

    def _gather_all(
        self, name: str, outputs: list[list[torch.Tensor]], inputs: Tensors, opts: Any
    ) -> dist.Work:
        for parts, tensor in zip(outputs, inputs, strict=True):
            _expect(len(parts) == self.width, f"{name}: {len(parts)} outputs for {self.width} ranks")
            shape, dtype = tensor.shape, tensor.dtype
            for part in parts:
                if part.shape != shape or part.dtype != dtype:
                    raise ValueError(
                        f"{name}: an output of {tuple(part.shape)} {part.dtype} "
                        f"for an input of {tuple(tensor.shape)} {tensor.dtype}"
                    )

        def fill(slot: Slot, place: int) -> Tensors:
            if slot.shared is None:
                everyone = [slot.arrivals[j].payload for j in range(self.width)]
                slot.shared = [payload[i] for i in range(len(inputs)) for payload in everyone]
            return slot.shared

        peers, part_bytes = self.width - 1, _bytes(inputs)
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        return self._start(
            _describe(name, inputs[0], detail=shapes if len(shapes) > 1 else None),
            inputs,
            [part for parts in outputs for part in parts],
            opts,
            (peers, peers * part_bytes, peers * part_bytes),
            fill,
            in_place={(i, i * self.width + self.place) for i in range(len(inputs))},
        )

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: Tensors, opts: Any = None) -> dist.Work:
        return self._gather_all("all_gather", outputs, inputs, opts)

    def all_gather_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any = None) -> dist.Work:
        name = "all_gather_single"
        if buffers.overlap(output, input):
            # Right where the input is this rank's own part, so each part is looked at.
            return self._gather_all(name, [self._parts(name, output, input)], [input], opts)
        self._joined(name, output, input)
        if output.dtype != input.dtype:
            raise ValueError(f"{name}: an output of {output.dtype} for an input of {input.dtype}")

        def fill(slot: Slot, place: int) -> Tensors:
            if slot.shared is None:
                slot.shared = [torch.stack([slot.arrivals[j].payload[0] for j in range(self.width)])]
            return [slot.shared[0].view(output.shape)]

        peers, part_bytes = self.width - 1, input.nbytes
        volume = (peers, peers * part_bytes, peers * part_bytes)
        return self._start(_describe(name, input), [input], [output], opts, volume, fill)

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> dist.Work:
        pairs = zip(outputs, inputs, strict=True)
        parts = [self._parts("all_gather_single", output, tensor) for output, tensor in pairs]
        return self._gather_all("all_gather_single", parts, inputs, opts)

    def _joined(self, name: str, whole: torch.Tensor, part: torch.Tensor) -> bool:
        """Whether `whole` is the concatenation of one `part` a rank; else it must be their stack."""
        if part.dim() > 0 and tuple(whole.shape) == (self.width * part.shape[0], *part.shape[1:]):
            return True
        # gloo refuses a stack (torch 2.13)
        if self.backend == "gloo" or tuple(whole.shape) != (self.width, *part.shape):
            raise ValueError(f"{name}: {tuple(whole.shape)} is not {self.width} times {tuple(part.shape)}")
        return False

    def _parts(self, name: str, whole: torch.Tensor, part: torch.Tensor) -> list[torch.Tensor]:
        """Views of `whole`, one a rank, shaped like `part`."""
        joined = self._joined(name, whole, part)
        whole = whole.detach()
        if joined:
            rows = part.shape[0]
            return [whole[place * rows : (place + 1) * rows] for place in range(self.width)]
        return list(whole.unbind(0))

    # Reductions

    def _all_reduce(self, tensors: Tensors, opts: Any) -> dist.Work:
        name = _reduction(opts.reduceOp)

        def fill(slot: Slot, place: int) -> Tensors:
            if slot.shared is None:
                slot.shared = [
                    _combine([slot.arrivals[j].payload[i] for j in range(self.width)], name)
                    for i in range(len(tensors))
                ]
            return slot.shared

        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        peers = self.width - 1
        return self._start(
            _describe(
                "all_reduce",
                tensors[0],
                reduce_op=name,
                stride=_stride(tensors[0]),
                detail=shapes if len(shapes) > 1 else None,
            ),
            tensors,
            tensors,
            opts,
            (peers, peers * _bytes(tensors), peers * _bytes(tensors)),
            fill,
            in_place={(i, i) for i in range(len(tensors))},
        )

    def allreduce(self, tensors: Tensors, opts: Any) -> dist.Work:
        return self._all_reduce(tensors, opts)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any) -> dist.Work:
        return self._all_reduce(tensors, opts)

    def reduce(self, tensors: Tensors, opts: Any) -> dist.Work:
        name, root, mine = _reduction(opts.reduceOp), opts.rootRank, opts.rootRank == self.place

        def fill(slot: Slot, place: int) -> Tensors:
            return [_combine([slot.arrivals[j].payload[0] for j in range(self.width)], name)]

        size = _bytes(tensors)
        return self._start(
            _describe(
                "reduce",
                tensors[0],
                reduce_op=name,
                root=self.members.ranks[root],
                stride=_stride(tensors[0]),
            ),
            tensors,
            tensors if mine else [],
            opts,
            (0, 0, (self.width - 1) * size) if mine else (1, size, 0),
            fill,
            in_place={(0, 0)},
        )

    def _reduce_parts(self, kind: str, outputs: Tensors, parts: Sequence[Tensors], opts: Any) -> dist.Work:
        name, lists = _reduction(opts.reduceOp), len(parts)
        for output, row in zip(outputs, parts, strict=True):
            _expect(len(row) == self.width, f"{kind}: {len(row)} inputs for {self.width} ranks")
            _expect(
                row[self.place].shape == output.shape and row[self.place].dtype == output.dtype,
                f"{kind}: an output of {tuple(output.shape)} {output.dtype} for an input of "
                f"{tuple(row[self.place].shape)} {row[self.place].dtype}",
            )

        def fill(slot: Slot, place: int) -> Tensors:
            return [
                _combine([slot.arrivals[j].payload[i * self.width + place] for j in range(self.width)], name)
                for i in range(lists)
            ]

        flat = [part for row in parts for part in row]
        others = _bytes([part for row in parts for place, part in enumerate(row) if place != self.place])
        shapes = tuple(tuple(part.shape) for part in flat)
        return self._start(
            _describe(
                kind,
                parts[0][0],
                reduce_op=name,
                stride=_stride(outputs[0]) if kind == "reduce_scatter" else None,
                detail=shapes if len(set(shapes)) > 1 else None,
            ),
            flat,
            outputs,
            opts,
            (self.width - 1, others, (self.width - 1) * _bytes(outputs)),
            fill,
            in_place={(i * self.width + self.place, i) for i in range(lists)},
        )

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> dist.Work:
        for output, row in zip(outputs, inputs, strict=True):
            self._check_strides("reduce_scatter", output, row)
        return self._reduce_parts("reduce_scatter", outputs, inputs, opts)

    def reduce_scatter_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> dist.Work:
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any) -> dist.Work:
        name = "reduce_scatter_single"
        pairs = zip(outputs, inputs, strict=True)
        return self._reduce_parts(
            name, outputs, [self._parts(name, whole, output) for output, whole in pairs], opts
        )

    def _check_strides(self, name: str, output: torch.Tensor, inputs: Tensors) -> None:
        if self.width > 1:
            for part in inputs:
                if _stride(part) != _stride(output):
                    raise self.network.fail(
                        "mismatch",
                        f"different stride: rank {self.global_rank} calls {name} with an input of strides "
                        f"{part.stride()} and an output of {output.stride()}",
                    )

    # One rank to all, all to one

    def broadcast(self, tensors: Tensors, opts: Any) -> dist.Work:
        root, mine, size = opts.rootRank, opts.rootRank == self.place, _bytes(tensors)
        return self._start(
            _describe("broadcast", tensors[0], root=self.members.ranks[root], stride=_stride(tensors[0])),
            tensors if mine else [],
            [] if mine else tensors,
            opts,
            (self.width - 1, (self.width - 1) * size, 0) if mine else (0, 0, size),
            lambda slot, place: slot.arrivals[root].payload,
        )

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> dist.Work:
        root, mine, size = opts.rootRank, opts.rootRank == self.place, _bytes(inputs)
        parts = outputs[0] if mine else []
        _expect(not mine or len(parts) == self.width, f"gather: {len(parts)} outputs for {self.width} ranks")
        for part in parts:
            _expect(part.shape == inputs[0].shape, "gather: an output is not shaped like the input")
        return self._start(
            _describe("gather", inputs[0], root=self.members.ranks[root]),
            inputs,
            parts,
            opts,
            (0, 0, (self.width - 1) * size) if mine else (1, size, 0),
            lambda slot, place: [slot.arrivals[j].payload[0] for j in range(self.width)],
            in_place={(0, self.place)},
        )

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> dist.Work:
        root, mine, size = opts.rootRank, opts.rootRank == self.place, _bytes(outputs)
        parts = inputs[0] if mine else []
        _expect(not mine or len(parts) == self.width, f"scatter: {len(parts)} inputs for {self.width} ranks")
        for part in parts:
            _expect(part.shape == outputs[0].shape, "scatter: an input is not shaped like the output")
        self._check_strides("scatter", outputs[0], parts)
        return self._start(
            _describe("scatter", outputs[0], root=self.members.ranks[root], stride=_stride(outputs[0])),
            parts,
            outputs,
            opts,
            (self.width - 1, (self.width - 1) * size, 0) if mine else (0, 0, size),
            lambda slot, place: [slot.arrivals[root].payload[place]],
            in_place={(self.place, 0)},
        )

    # All to all

    def _exchange(self, name: str, outputs: Tensors, inputs: Tensors, opts: Any, by_rows: bool) -> dist.Work:
        _expect(
            len(outputs) == len(inputs) == self.width,
            f"{name}: {len(inputs)} inputs and {len(outputs)} outputs for {self.width} ranks",
        )

        def check(slot: Slot) -> tuple[int, int, str] | None:
            for source, sender in slot.arrivals.items():
                for target, receiver in slot.arrivals.items():
                    sent, expected = sender.inputs[target].shape, receiver.outputs[source].shape
                    if sent != expected:
                        how = f"different shape, {tuple(sent)} sent, {tuple(expected)} expected"
                        return source, target, how
            return None

        others = [place for place in range(self.width) if place != self.place]
        signature = _describe(name, inputs[0])
        return self._start(
            signature._replace(shape=inputs[0].shape[1:] if by_rows else None),
            inputs,
            outputs,
            opts,
            (self.width - 1, _bytes([inputs[i] for i in others]), _bytes([outputs[i] for i in others])),
            lambda slot, place: [slot.arrivals[j].payload[place] for j in range(self.width)],
            check=check,
        )

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> dist.Work:
        return self._exchange("all_to_all", outputs, inputs, opts, by_rows=False)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        opts: Any = None,
    ) -> dist.Work:
        return self._exchange(
            "all_to_all_single",
            self._split(output, output_split_sizes),
            self._split(input, input_split_sizes),
            opts,
            by_rows=True,
        )

    def _split(self, tensor: torch.Tensor, sizes: Sequence[int]) -> Tensors:
        _expect(tensor.is_contiguous(), "all_to_all_single: tensors must be contiguous")
        if not sizes:
            _expect(
                tensor.shape[0] % self.width == 0,
                f"all_to_all_single: {tensor.shape[0]} rows do not divide into {self.width} parts",
            )
            sizes = [tensor.shape[0] // self.width] * self.width
        _expect(sum(sizes) == tensor.shape[0], f"all_to_all_single: splits {sizes} of {tensor.shape[0]} rows")
        return torch.split(tensor.detach(), list(sizes))

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._start(Signature("barrier"), [], [], opts, (self.width - 1, 0, 0))

    # Point to point

    def _peer(self, name: str, tensors: Tensors, peer: int | None, tag: int) -> dist.Work:
        (tensor,) = tensors
        _expect(tensor.is_contiguous(), f"{name}: the tensor must be contiguous")
        # gloo has no point-to-point of a GPU's memory
        _expect(
            tensor.device.type == "cpu" or self.backend != "gloo",
            f"{name}: gloo sends no tensor of {tensor.device}",
        )
        _expect(peer is None or 0 <= peer < self.width, f"{name}: no rank {peer} in {self.members}")
        sends, size = name == "send", _bytes(tensors)
        return self._start(
            _describe(name, tensor),
            tensors if sends else [],
            [] if sends else tensors,
            None,
            (1, size, 0) if sends else (0, 0, size),
            peer=None if peer is None else self.members.ranks[peer],
            tag=tag,
        )

    def send(self, tensors: Tensors, dst: int, tag: int) -> dist.Work:
        return self._peer("send", tensors, dst, tag)

    def recv(self, tensors: Tensors, src: int, tag: int) -> dist.Work:
        return self._peer("recv", tensors, src, tag)

    def recv_anysource(self, tensors: Tensors, tag: int) -> dist.Work:
        return self._peer("recv", tensors, None, tag)

    def shutdown(self) -> None:
        """End this rank's part in a group, as `destroy_process_group` asks; the world ends with its run."""
        if self.members is self.network.world:
            raise NotImplementedError("simulated world: destroy_process_group of the whole world")
        self._start = self._ended  # type: ignore[method-assign]

    def _ended(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self!r}: communication after destroy_process_group")

    # The names of earlier versions of torch
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single


def _unimplemented(name: str) -> Callable[..., Any]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"simulated world: {name}")

    return refuse


for _name in (
    "_start_coalescing",
    "_end_coalescing",
    "_get_backend",
    "_get_sequence_number_for_group",
    "_register_on_completion_hook",
    "_wait_for_pending_works",
    "abort",
    "allgather_coalesced",
    "get_group_store",
    "merge_remote_group",
    "monitored_barrier",
    "split_group",
):
    setattr(SimulatedGroup, _name, _unimplemented(_name))


class RankWorld:
    """The groups of one process, under the attribute names of torch.distributed's own record."""

    def __init__(self, network: Network, rank: int, backend: str) -> None:
        self.network = network
        self.rank = rank
        self.backend = backend
        self.group_count = 0
        self.pg_map: dict[Any, Any] = {}
        self.pg_names: dict[Any, Any] = {}
        self.pg_group_ranks: dict[Any, dict[int, int]] = {}
        self.pg_backend_config: dict[Any, str] = {}
        self.tags_to_pg: dict[str, list[Any]] = {}
        self.pg_to_tag: dict[Any, str] = {}
        self.pg_coalesce_state: dict[Any, list[Any]] = {}
        self.comms: list[Any] = []
        self.named: dict[str, int] = {}
        self.default_pg: Any = self.register(network.world)

    @property
    def pg_config_info(self) -> Any:
        raise NotImplementedError("simulated world: pg_config_info")

    def register(self, members: Members) -> SimulatedGroup:
        group = SimulatedGroup(self.network, members, self.rank, self.backend)
        self.pg_map[group] = (self.backend, None)
        self.pg_names[group] = group.registered_name
        self.pg_backend_config[group] = self.backend
        self.pg_group_ranks[group] = {rank: place for place, rank in enumerate(members.ranks)}
        self.tags_to_pg[f"ptd:{group.registered_name}"] = [group]
        self.pg_to_tag[group] = f"ptd:{group.registered_name}"
        bindings._register_process_group(group.registered_name, group)
        return group

    def new_group(self, ranks: Sequence[int], name: str) -> Any:
        """Make a group; a collective of the world unless its name was derived from its ranks alone."""
        number = self.named[name] = self.named.get(name, 0) + 1
        if name.isdigit():
            default: SimulatedGroup = self.default_pg
            signature = Signature("new_group", detail=(tuple(ranks), name))
            default._start(signature, [], [], c10d.BarrierOptions(), (0, 0, 0)).wait()
        members = self.network.groups.setdefault((name, number), Members(name, ranks))
        return self.register(members) if self.rank in ranks else dist.GroupMember.NON_GROUP_MEMBER

    def forget(self) -> None:
        for name in self.pg_names.values():
            bindings._unregister_process_group(name)
        self.network = None  # type: ignore[assignment]


class _Router(threading.local):
    """Stands in for c10d's record of its groups; a rank's thread sees that rank's, any other the original."""

    world: RankWorld | None = None

    def enter(self, world: RankWorld) -> None:
        # c10d asks dozens of times a case: attributes that a thread holds itself are found without a call.
        vars(self).update(vars(world), world=world)

    def leave(self) -> None:
        vars(self).clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world or _originals[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.world is None:
            setattr(_originals[0], name, value)
        else:
            super().__setattr__(name, value)


_router = _Router()
_lock = threading.Lock()
_installed = 0
_originals: list[Any] = []


def _make_group(*args: Any, **kwargs: Any) -> Any:
    if _router.world is None:
        return _originals[1](*args, **kwargs)
    _, _, ranks, _, _, name = args[:6]
    return _router.world.new_group(ranks, name), None


@contextmanager
def installed() -> Iterator[None]:
    """Make torch.distributed see a rank's own groups in the threads that `enter` one."""
    global _installed
    with _lock:
        if _installed == 0:
            _originals[:] = [c10d._world, c10d._new_process_group_helper]
            c10d._world, c10d._new_process_group_helper = _router, _make_group  # type: ignore[assignment]
        _installed += 1
    try:
        yield
    finally:
        with _lock:
            _installed -= 1
            if _installed == 0:
                c10d._world, c10d._new_process_group_helper = _originals


@contextmanager
def entered(network: Network, rank: int, backend: str) -> Iterator[None]:
    """Be one rank in this thread."""
    world = RankWorld(network, rank, backend)
    _router.enter(world)
    try:
        yield
    finally:
        _router.leave()
        world.forget()
