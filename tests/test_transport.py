"""How ranks talk: over Horovod, pretended on simulated ranks, and over NCCL, as far as a CPU shows it."""

import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from verified_losses import horovod as over_horovod
from verified_losses import neighbour_exchange, neighbour_exchange_bidir
from verified_losses import transport as transports
from verified_losses.backends import backend_of
from verified_losses.horovod import HorovodTransport, choose_transport
from verified_losses.properties import names
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify.certifier import Check, checks, verify
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.specs import Worlds, parse
from verified_losses.transport import Transport

from . import pretend_horovod


def put(monkeypatch: pytest.MonkeyPatch, hvd: types.ModuleType) -> types.ModuleType:
    """Let `import horovod.torch` give `hvd`, in this process, where targets then run too."""
    pretend_horovod.install(monkeypatch, hvd)
    monkeypatch.setattr(Worlds, "isolated", lambda self, inner, spec, patience=1.0: inner)
    return hvd


@pytest.fixture
def hvd(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return put(monkeypatch, pretend_horovod.module())


def _over_horovod() -> list[Check]:
    options: dict[str, Any] = dict.fromkeys(("clip", "coca", "distill", "gather"), (("use_horovod", True),))
    options["siglip"] = (("dist_impl", "gather"), ("use_horovod", True))
    subjects = {
        name: (SHIPPED[name][0], replace(SHIPPED[name][1], options=chosen))
        for name, chosen in options.items()
    }
    laws = ("terms equal the oracle", "gradients equal the oracle", "used equals fresh", "backward is silent")
    return [check for check in checks(subjects, parse("sim:2-4")) if check.law.name in laws]


@pytest.mark.usefixtures("hvd")
@pytest.mark.parametrize("check", _over_horovod(), ids=lambda check: f"{check.label}-{check.law.name}")
def test_losses_hold_over_horovod(check: Check) -> None:
    finding = verify(check, 6)
    assert finding.verdict == "holds", f"{finding.reason}\n{finding.counterexample}"


DTYPES = [getattr(torch, name) for name in names.DTYPES]


def talk(rank: int, size: int, make: Callable[[int, int], Transport], dtype: torch.dtype) -> list[Any]:
    """Return what every operation gives this rank."""
    transport = make(rank, size)
    transport.check_initialized()
    transport.check_place()
    mine = (torch.arange(6.0).reshape(2, 3) + 10 * rank).to(dtype).T.requires_grad_()
    parts = (
        (torch.arange(6.0 * size).reshape(size, 3, 2) * (rank + 1)).to(dtype).transpose(1, 2).requires_grad_()
    )
    with torch.no_grad():
        gathered, part = transport.all_gather(mine), transport.sum_scatter(parts)
        total, largest = transport.sum(mine), transport.maximum(mine)
    assert gathered.dtype == part.dtype == dtype
    assert gathered.is_contiguous()
    assert part.is_contiguous()
    return [
        transport.all_gather_numbers([rank, 2**40 + rank]),
        transport.all_gather_text("Größe " * (rank + 1)),
        gathered.double().tolist(),
        part.double().tolist(),
        total.double().tolist(),
        largest.double().tolist(),
        transport.alone,
        transport.place(),
    ]


def pretend_backend(monkeypatch: pytest.MonkeyPatch, name: str, config: str = "") -> None:
    monkeypatch.setattr(dist, "get_backend", lambda group=None: name)
    monkeypatch.setattr(dist, "get_backend_config", lambda group=None: config or name)


def over_nccl(monkeypatch: pytest.MonkeyPatch, name: str = "nccl") -> list[str]:
    """Pretend that groups are NCCL's; return the names of devices asked for, where the CPU then stands in."""
    devices: list[str] = []
    tensor, empty = torch.tensor, torch.empty
    pretend_backend(monkeypatch, name)

    def made(make: Callable[..., torch.Tensor], *arguments: Any, **options: Any) -> torch.Tensor:
        if isinstance(options.get("device"), str):
            devices.append(options.pop("device"))
        return make(*arguments, **options)

    monkeypatch.setattr(torch, "tensor", lambda *arguments, **options: made(tensor, *arguments, **options))
    monkeypatch.setattr(torch, "empty", lambda *arguments, **options: made(empty, *arguments, **options))
    return devices


BOTH = "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize("over", ["gloo", "nccl", "cuda:nccl", BOTH, "horovod"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 3])
def test_every_operation(over: str, dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, pretend_horovod.module())
    pretend_horovod.NAMES.clear()
    devices = over_nccl(monkeypatch, over) if "nccl" in over else []
    make = {"horovod": HorovodTransport}.get(over, Transport)
    world = SimulatedWorld(size)
    for rank, found in enumerate(world.run(talk, make, dtype)):
        numbers, texts, gathered, part, summed, largest, alone, place = found
        assert numbers == [[r, 2**40 + r] for r in range(size)]
        assert texts == ["Größe " * (r + 1) for r in range(size)]
        mine = torch.arange(6.0).reshape(2, 3).T
        assert gathered == [(mine + 10 * r).tolist() for r in range(size)]
        assert summed == sum(mine + 10 * r for r in range(size)).tolist()
        assert largest == gathered[-1]
        total = torch.arange(6.0 * size).reshape(size, 3, 2).transpose(1, 2) * sum(range(1, size + 1))
        assert part == total[rank].tolist()
        assert not alone
        assert place == (rank, size)
    if over == "horovod":
        # distinct, as one may still be under way on another rank
        parts = ("numbers", "text", "all_gather", "sum_scatter")
        assert {f"verified_losses.{part}" for part in parts} == pretend_horovod.NAMES
    if "nccl" in over:
        assert ("cuda" in devices) == (over != BOTH)  # which moves the host's memory too
        assert set(devices) <= {"cuda", "cpu"}  # torch itself makes some
    scattered = {key.operation for key in world.traffic if "reduce_scatter" in key.operation}
    assert bool(scattered) == (over == "nccl")  # gloo has none


def pass_on(rank: int, size: int) -> float:
    return neighbour_exchange((rank - 1) % size, (rank + 1) % size, torch.ones(2) * rank).sum().item()


@pytest.mark.parametrize("over", ["nccl", "cuda:nccl", BOTH])
def test_exchanges_announce_themselves_on_the_gpu_over_nccl(
    over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = over_nccl(monkeypatch, over)
    assert SimulatedWorld(3).run(pass_on) == [4.0, 0.0, 2.0]
    # what is sent and what is received, each with the shape and dtype ahead of it
    assert devices == ["cuda"] * 6


def pass_on_what_is_wrong(rank: int, size: int) -> str:
    wrong: Any = torch.ones(2) if rank != 1 else "wrong"
    try:
        neighbour_exchange_bidir((rank - 1) % size, (rank + 1) % size, torch.ones(2), wrong)
    except (TypeError, ValueError) as error:
        return type(error).__name__
    return ""


def test_what_is_ignored_after_an_error_arrives_on_the_gpu_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = over_nccl(monkeypatch)
    assert SimulatedWorld(3).run(pass_on_what_is_wrong) == ["", "TypeError", "ValueError"]
    # four announcements on each of three ranks; then rank 1 ignores what came from both sides, and rank 2
    # what came from the right
    assert devices == ["cuda"] * (3 * 4 + 2 + 1)


def talk_in_a_group(rank: int, size: int) -> list[Any]:
    group = dist.new_group([1, 2, 3])
    if rank == 0:
        return []
    transport = Transport(rank - 1, 3, group)
    received = neighbour_exchange((rank - 2) % 3, rank % 3, torch.ones(2) * rank, group)
    return [
        transport.sum_scatter(torch.ones(3, 1, 2)).tolist(),
        transport.all_gather_numbers([rank]),
        received.sum().item(),
    ]


def test_the_backend_is_that_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = over_nccl(monkeypatch)
    monkeypatch.setattr(dist, "get_backend", lambda group=None: "gloo" if group is None else "nccl")
    world = SimulatedWorld(4)
    numbers = [[1], [2], [3]]
    shared = [[[3.0, 3.0]], numbers]
    assert world.run(talk_in_a_group) == [[], [*shared, 6.0], [*shared, 2.0], [*shared, 4.0]]
    assert any("reduce_scatter" in key.operation for key in world.traffic)
    # on each of three ranks: its number, and what is sent and what is received
    assert devices.count("cuda") == 9


def test_what_moves_the_hosts_memory_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Transport(0, 2, group=cast(dist.ProcessGroup, "a group of gloo"))
    monkeypatch.setattr(dist, "get_backend", lambda group: "gloo" if group else "nccl")
    assert transport.on_host() is transport
    pretend_backend(monkeypatch, BOTH)
    assert transport.on_host() is transport
    monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    assert transport.on_host() is transport


@pytest.mark.parametrize(
    ("name", "config"), [("nccl", ""), ("cuda:nccl", ""), ("undefined", "cuda:nccl"), ("cuda:gloo", "")]
)
def test_beside_nccl_numbers_go_over_gloo_among_the_same_ranks(
    name: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, made = cast(dist.ProcessGroup, "a group of nccl"), {}
    monkeypatch.setattr(dist, "get_backend", lambda group: name if group else "gloo")
    monkeypatch.setattr(dist, "get_backend_config", lambda group: config or name)
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda of: [1, 3] if of is group else [])

    def new_group(ranks: list[int], **options: Any) -> str:
        made.update(options, ranks=ranks)
        return "beside"

    monkeypatch.setattr(dist, "new_group", new_group)
    transport = Transport(1, 2, group=group)
    assert transport.on_host() == replace(transport, group=cast(dist.ProcessGroup, "beside"))
    assert made == {"ranks": [1, 3], "backend": "gloo", "use_local_synchronization": True}


@pytest.mark.parametrize(
    ("name", "config", "cpu", "cuda"),
    [
        ("nccl", "cuda:nccl", "nccl", "nccl"),
        ("gloo", "cpu:gloo,cuda:gloo", "gloo", "gloo"),
        ("undefined", "cpu:gloo", "gloo", ""),
        ("undefined", BOTH, "gloo", "nccl"),
        ("undefined", "cuda:nccl", "", "nccl"),
        (BOTH, BOTH, "gloo", "nccl"),
        ("cuda:nccl", "cuda:nccl", "", "nccl"),
    ],
)
def test_a_backend_is_that_of_a_kind_of_device(
    name: str, config: str, cpu: str, cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_backend(monkeypatch, name, config)
    assert (backend_of(None, "cpu"), backend_of(None, "cuda")) == (cpu, cuda)


@pytest.mark.parametrize(
    ("name", "cpu"), [(None, "gloo"), ("gloo", "gloo"), ("cpu:gloo", "gloo"), ("cuda:gloo", "")]
)
def test_the_backend_of_torch_s_own_groups(name: str | None, cpu: str) -> None:
    if name is None and torch.accelerator.is_available():
        pytest.skip("the default backend is the accelerator's")
    dist.init_process_group(name, rank=0, world_size=1, store=dist.HashStore())
    try:
        assert backend_of(None, "cpu") == cpu
        assert Transport(0, 1).on_host().all_gather_numbers([1, 2]) == [[1, 2]]
    finally:
        dist.destroy_process_group()


# a tensor of the meta device stands in for a GPU's


@pytest.mark.parametrize("over", ["nccl", "meta:nccl", "cpu:gloo,meta:nccl"])
def test_a_gpu_s_sums_are_scattered_by_nccl(over: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scattered = []

    def scatter(mine: torch.Tensor, parts: torch.Tensor, group: object) -> None:
        scattered.append((mine.shape, parts.shape))

    monkeypatch.setattr(transports, "_reduce_scatter_single", scatter)
    pretend_backend(monkeypatch, over)
    Transport(0, 2).sum_scatter(torch.zeros(2, 3, device="meta"))
    assert scattered == [((3,), (2, 3))]


@pytest.mark.parametrize(
    ("over", "landing"),
    [
        ("gloo", "cpu"),
        ("cpu:gloo", "cpu"),
        ("nccl", "meta"),
        ("meta:nccl", "meta"),
        ("cpu:gloo,meta:nccl", "meta"),
    ],
)
def test_what_comes_for_a_gpu_lands_on_the_host_over_gloo_alone(
    over: str, landing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []
    monkeypatch.setattr(
        dist, "P2POp", lambda op, tensor, group, group_peer: places.append(tensor.device.type)
    )
    monkeypatch.setattr(dist, "batch_isend_irecv", lambda ops: [])
    pretend_backend(monkeypatch, over)
    Transport(0, 2).exchange([(torch.zeros(2), 1)], [(torch.zeros(2, device="meta"), 1)])
    assert places == ["cpu", landing]


def sum_other_strides(rank: int, size: int, source: int) -> list[Any]:
    transport = Transport(rank, size)
    mine = torch.arange(6.0).reshape(2, 3)
    if rank == 0:
        mine = mine.T.contiguous().T
    return [transport.sum(mine).tolist(), transport.broadcast(mine, source).tolist(), mine.tolist()]


@pytest.mark.parametrize("source", [0, 1])
def test_strides_may_differ_between_ranks(source: int) -> None:
    right = torch.arange(6.0).reshape(2, 3)
    for total, received, mine in SimulatedWorld(2).run(sum_other_strides, source):
        assert total == (2 * right).tolist()
        assert received == mine == right.tolist()


def use_in_inference_mode(rank: int, size: int) -> list[Any]:
    transport = HorovodTransport(rank, size)
    with torch.inference_mode():
        mine = torch.full((size, 2), float(rank))
        return [transport.all_gather(mine).tolist(), transport.sum_scatter(mine).tolist()]


@pytest.mark.usefixtures("hvd")
def test_horovod_in_inference_mode() -> None:
    for gathered, part in SimulatedWorld(2).run(use_in_inference_mode):
        assert gathered == [[[0.0, 0.0]] * 2, [[1.0, 1.0]] * 2]
        assert part == [1.0, 1.0]


def test_the_transport_is_what_was_asked_for(hvd: Any) -> None:
    hvd.is_initialized = lambda: True
    assert type(choose_transport(1, 2, None, use_horovod=False)) is Transport
    assert type(choose_transport(1, 2, None, use_horovod=True)) is HorovodTransport
    group: Any = object()
    assert choose_transport(1, 3, group, use_horovod=False) == Transport(1, 3, group)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("initialized", [True, False])
def test_a_rank_of_horovod_is_alone_if_horovod_agrees(
    hvd: Any, ours: int, theirs: int, initialized: bool
) -> None:
    transport = HorovodTransport(0, ours)
    hvd.size = lambda: theirs
    hvd.is_initialized = lambda: initialized
    assert transport.alone is (initialized and ours == theirs == 1)


class Clock:
    """Time that passes as one sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 5.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.mark.parametrize(("setting", "limit"), [("3", 3.0), ("0", 1800.0), (None, 1800.0)])
def test_a_wait_for_horovod_has_a_limit(
    hvd: Any, setting: str | None, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(over_horovod, "time", clock)
    if setting is None:
        monkeypatch.delenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", raising=False)
    else:
        monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", setting)
    hvd.poll = lambda handle: False
    with pytest.raises(
        TimeoutError, match=rf"^some: not every rank of Horovod took part within {limit:g} s$"
    ):
        over_horovod._wait(0, "some")
    assert limit <= clock.slept <= limit + 2 * over_horovod.POLL_SECONDS
    # what is done is not waited for, however late
    hvd.poll = lambda handle: clock.now > 4 * limit
    hvd.synchronize = lambda handle: handle
    clock.now = 5 * limit
    assert over_horovod._wait(7, "some") == 7


def test_horovod_never_runs_in_inference_mode() -> None:
    def enabled() -> bool:
        return torch.is_inference_mode_enabled()

    with torch.inference_mode():
        assert enabled()
        assert not over_horovod._normal_mode(enabled)()
