"""Devices: their names, the cases and worlds on them, and the reports about them."""

import ast
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from torch.utils._pytree import tree_leaves

from verified_losses import neighbour_exchange_bidir
from verified_losses.properties import NotCertified, certify, devices
from verified_losses.properties.ask.cli import main
from verified_losses.properties.cases import Case
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import Falsified, Place
from verified_losses.properties.reference import reference
from verified_losses.properties.running import inputs
from verified_losses.properties.show import certificate as records
from verified_losses.properties.show import counterexample, terminal
from verified_losses.properties.show.html import render
from verified_losses.properties.standalone import file, launch
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify import certifier
from verified_losses.properties.verify import plan as planning
from verified_losses.properties.verify.arguments import Unusable, some_devices
from verified_losses.properties.verify.certifier import (
    Certifier,
    Check,
    Finding,
    checks,
    examples,
    verify,
)
from verified_losses.properties.verify.known import Known
from verified_losses.properties.verify.plan import plan, working
from verified_losses.properties.worlds import RankState, WorldError, nccl, probe, processes, table
from verified_losses.properties.worlds.isolated import IsolatedWorld
from verified_losses.properties.worlds.processes import ProcessWorld
from verified_losses.properties.worlds.simulated import SimulatedWorld, SimulationError
from verified_losses.properties.worlds.single import SingleWorld
from verified_losses.properties.worlds.specs import Worlds, parse, placed

from . import standin
from .children import started
from .test_losses import batch, make

LIMIT_SECONDS = 240
HERE = "standin:0"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in for a GPU, which commands can ask for too."""
    standin.load()
    monkeypatch.setitem(devices.KINDS, "standin", standin.KIND)
    probe.look.cache_clear()
    monkeypatch.setattr(probe, "_ask", devices.facts)  # a process that imports no target does not have it
    return HERE


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worlds, "isolated", lambda self, inner, spec, patience=1.0: inner)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, missing: str | None = None) -> None:
    """Pretend that there are so many GPUs."""
    found = replace(
        devices.KINDS["cuda"],
        missing=lambda: missing,
        count=lambda: count,
        facts=lambda index: devices.Facts(f"GPU {index}", "600.1", "13.0", "2.30.7"),
        limit=lambda index, most: None,
    )
    monkeypatch.setitem(devices.KINDS, "cuda", found)
    monkeypatch.setattr(probe, "_ask", devices.facts)
    probe.look.cache_clear()
    monkeypatch.setattr(nccl, "PLACED", {})


# How they are asked for.


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cpu", ("cpu",)),
        ("cpu:0", ("cpu",)),
        ("cuda", ("cuda:0",)),
        ("cuda, cuda:0,cuda:1 ,cpu", ("cuda:0", "cuda:1", "cpu")),
        ("all", ("all",)),
    ],
)
def test_one_device_has_one_name(text: str, names: tuple[str, ...]) -> None:
    assert some_devices(text) == names


@pytest.mark.parametrize("text", ["", "gpu", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "CUDA", "cuda,,cpu"])
def test_what_is_no_device_is_named(text: str) -> None:
    with pytest.raises(Unusable, match=r"expected cpu, cuda, cuda:1 or all, .* got '"):
        some_devices(text)


def test_all_is_the_cpu_and_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert working(("all",)) == ("cpu", "cuda:0", "cuda:1")
    assert working(("cuda:1", "all")) == ("cuda:1", "cpu", "cuda:0")
    gpus(monkeypatch, 0, "none")
    assert working(("all",)) == ("cpu",)


@pytest.mark.parametrize(
    ("count", "device", "said"),
    [
        (2, "cuda:7", r"cuda:7: there are 2, cuda:0, cuda:1$"),
        (1, "cuda:1", r"cuda:1: there is one, cuda:0$"),
    ],
)
def test_a_device_that_is_not_there_is_named(
    count: int, device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(Unusable, match=said):
        working((device,))


def test_the_driver_has_its_say(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "The NVIDIA driver on your system is too old"

    def refuse() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.init", refuse)
    assert devices.absent("cuda:0") == f"cuda:0: no device was found: {said}"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert devices.absent("cuda:0") is None
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    assert devices.absent("cuda:0") == f"cuda:0: torch {torch.__version__} is built without CUDA"


BUILT = "__version__ = '9.9'\ncuda = {!r}\nhip = {!r}\n"


@pytest.mark.parametrize(
    ("version", "driver", "said"),
    [
        (BUILT.format(None, None), False, "torch 9.9 is built without CUDA"),
        (BUILT.format("13.0", None), True, None),
        (BUILT.format("13.0", None), False, "no device was found: there is no NVIDIA driver: gone"),
        (BUILT.format(None, "6.4"), False, None),
        ("", False, None),
    ],
)
def test_a_device_is_ruled_out_without_torch(
    version: str, driver: bool, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        if not driver:
            raise OSError("gone")

    (tmp_path / "version.py").write_text(version)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    assert devices.cuda_ruled_out() is None, "torch itself says it"
    monkeypatch.delitem(sys.modules, "torch")
    assert devices.cuda_ruled_out() == said
    assert devices.ruled_out("cuda:1") == (said and f"cuda:1: {said}")
    assert devices.ruled_out("cpu") is devices.ruled_out("all") is None


def test_a_device_that_does_not_work_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    monkeypatch.undo()
    monkeypatch.setitem(devices.KINDS, "standin", standin.KIND)
    # which the process that looks has not loaded
    with pytest.raises(Unusable, match=r"^device: standin:0 does not work: rank 0 raised: \w+Error"):
        working((HERE,))


def certified(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["certify", *arguments])
    return ended.value.code


def test_without_a_gpu_a_command_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    if devices.KINDS["cuda"].missing() is None:
        pytest.skip("there is a GPU")
    assert certified("--device", "cuda") == 2
    said = capsys.readouterr().err
    assert re.match(
        r"error --device: cuda:0: (torch .* is built without CUDA|no device was found: .+)\n$", said
    )
    assert certified("--world", "1,nccl:2") == 2
    assert "error --world: nccl:2: " in capsys.readouterr().err
    with pytest.raises(ValueError, match="device: cuda:0: "):
        certify("verified_losses:ClipLoss", "clip", device="cuda")


def test_a_wrong_name_costs_no_import() -> None:
    script = """
import sys
from verified_losses.properties.__main__ import main
for device in ("gpu", "cuda:x"):
    sys.argv = ["verified-losses", "certify", "--device", device]
    try:
        main()
    except SystemExit as ended:
        print(ended.code, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.stdout.splitlines() == ["2 False"] * 2, done.stderr


# What is drawn for them, and made on them.


def drawn(check: Check, most: int = 60) -> list[Example]:
    found: list[Example] = []

    @settings(
        max_examples=most, phases=[Phase.generate], database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(examples(check))
    def collect(example: Example) -> None:
        found.append(example)

    collect()
    return found


def one_check(device: str, law: str = "used equals fresh", world: str = "1", loss: str = "clip") -> Check:
    planned = checks({loss: SHIPPED[loss]}, parse(world, [device]))
    return next(check for check in planned if check.law.name == law)


def test_for_the_cpu_nothing_is_drawn_that_was_not_before() -> None:
    for example in drawn(one_check("cpu")):
        assert "cpu_scalars" not in example.to_json() + str(example)
        assert all(case.device == "cpu" for case in (example.case, *(step.case for step in example.steps)))


def test_scalars_stay_on_the_cpu_now_and_then(stand_in: str) -> None:
    found = drawn(one_check(stand_in))
    assert {example.case.cpu_scalars for example in found} == {False, True}
    for example in found:
        assert Example.from_json(example.to_json()) == example
        cases = [example.case, *(step.case for step in example.steps)]
        assert {case.device for case in cases} == {stand_in}
        assert all(case.scalar_shape == () for case in cases if case.cpu_scalars)
    assert {
        one.case.cpu_scalars for one in drawn(one_check(stand_in, "inputs unchanged", loss="gather"))
    } == {False}


@pytest.mark.parametrize("cpu_scalars", [False, True])
def test_inputs_are_made_where_the_case_says(device: str, cpu_scalars: bool) -> None:
    cpu_scalars = cpu_scalars and device != "cpu"
    case = Case(rows=(2,), bias=1.0, device=device, cpu_scalars=cpu_scalars)
    given = inputs(0, reference(one_check("cpu").contract, Example(case)))
    scalars = "cpu" if cpu_scalars else device
    assert {name: str(value.device) for name, value in given.items()} == {
        "image_features": device, "text_features": device, "logit_scale": scalars, "logit_bias": scalars,
    }  # fmt: skip


def test_ranks_have_devices_in_turn() -> None:
    case = Case(rows=(1, 1, 1), device="cuda:0/cuda:1")
    assert [case.device_of(rank) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]


# What runs on them.


ON_STAND_IN = ("clip", "siglip", "exchange")
"""Between them they take every way of the others."""


def _everything() -> list[Any]:
    # the shipped losses own no parameters
    planned = [one for one in checks(SHIPPED, parse("1,sim:2-4")) if not one.law.name.startswith("owned")]
    places = [("standin:0", one) for one in planned if one.label in ON_STAND_IN]
    places += [("cuda:0", one) for one in planned]
    return [
        pytest.param(place, one, id=f"{place[:-2]}-{one.label}-{one.law.name}-{one.world.kind}")
        for place, one in places
    ]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("device", "check"), _everything(), indirect=["device"])
def test_shipped_losses_hold(device: str, check: Check) -> None:
    finding = verify(replace(check, world=replace(check.world, device=device)), 2, 1)
    assert finding.verdict == "holds", f"{finding.reason}\n{finding.counterexample}"
    assert {case.device for case in finding.cases} == {device}


def step_by_tiles(rank: int, size: int, kind: str, device: str, scalars: str) -> list[Any]:
    """Return the values of a step and the gradients of features; scalars are numbers, or on a device."""
    inputs: dict[str, Any] = {}
    for name, value in batch(kind, rank).items():
        own = value.detach().to(device if value.ndim else scalars.replace("number", "cpu"))
        inputs[name] = own.item() if scalars == "number" and not own.ndim else own.requires_grad_()
    loss = make(kind, rank, size, implementation="streamed", gather_with_grad=True)
    values = tree_leaves(loss(**inputs))
    sum(values).backward()
    gradients = [inputs[name].grad for name in ("image_features", "text_features")]
    assert {str(one.device) for one in (*values, *gradients)} == {device}
    return [one.tolist() for one in (*values, *gradients)]


@pytest.mark.parametrize("kind", ["clip", "distill"])
@pytest.mark.parametrize("scalars", ["number", "cpu"])
def test_scales_of_ranks_may_be_numbers_or_stay_on_the_cpu(kind: str, scalars: str, device: str) -> None:
    found, expected = (
        SimulatedWorld(2).run(step_by_tiles, kind, device, place) for place in (scalars, device)
    )
    assert found == expected


@pytest.mark.parametrize("world", ["1", "sim:2-3"])
def test_a_target_in_processes_of_its_own(world: str, stand_in: str) -> None:
    record = certify("tests.on_standin:ClipLoss", "clip", world=world, device="cpu,standin:1", max_examples=2)
    assert {(one.device, one.world.endswith(" on standin:1")) for one in record.properties} == {
        ("cpu", False), ("standin:1", True)
    }  # fmt: skip
    assert [(one.device, one.name, one.verdict) for one in record.devices[1:]] == [
        ("standin:1", "stand-in 1", "holds"), ("cuda", "", "not verified")
    ]  # fmt: skip
    assert record.devices[0].torch == torch.__version__
    assert record.version == 5


def test_a_target_that_moves_its_inputs_is_found_out_and_its_file_runs(stand_in: str, tmp_path: Path) -> None:
    with pytest.raises(NotCertified) as raised:
        certify(
            "tests.on_standin:MovesToTheCpu", "clip", world="1", device=stand_in, max_examples=4,
            only=["outputs*", "gradients*"], counterexamples=tmp_path,
        )  # fmt: skip
    verdicts = {one.property: one.verdict for one in raised.value.certificate.properties}  # type: ignore[union-attr]
    assert verdicts == {"gradients equal the oracle": "holds", "outputs well formed": "falsified"}
    assert "on standin:0, observed ['float64 cpu']" in str(raised.value)
    (file,) = tmp_path.glob("*.py")
    assert 'device="standin:0"' in file.read_text()
    assert "does not hold in one process on standin:0" in file.read_text()
    run = functools.partial(subprocess.run, [sys.executable, str(file)], capture_output=True, text=True)
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    wrong = run(timeout=LIMIT_SECONDS, env=path)
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert "observed ['float64 cpu']" in wrong.stdout
    gone = run(timeout=LIMIT_SECONDS, env=path | {"VERIFIED_LOSSES_TARGET": "verified_losses:ClipLoss"})
    assert (gone.returncode, gone.stderr) == (2, ""), gone.stdout
    assert re.match(r"standin:0 is not there: .+\n$", gone.stdout)


def exchanged(rank: int, size: int) -> list[str]:
    given = torch.full((rank + 1,), float(rank), device=HERE)
    received = neighbour_exchange_bidir((rank - 1) % size, (rank + 1) % size, given, -given)
    assert {str(one.device) for one in received} == {HERE}
    return [str(one.tolist()) for one in received]


def test_what_is_exchanged_over_gloo_goes_by_the_cpu(stand_in: str) -> None:
    world = SimulatedWorld(3, backend="gloo")
    assert world.run(exchanged)[0] == ["[1.0, 1.0]", "[-2.0, -2.0, -2.0]"]
    with pytest.raises(SimulationError, match="gloo sends no tensor of standin:0"):
        world.run(sends_from_a_device)


def sends_from_a_device(rank: int, size: int) -> None:
    dist.isend(torch.ones(1, device=HERE), (rank + 1) % size).wait()


class Spoilt(Exception):
    """What a kernel leaves behind."""


def spoil(rank: int, size: int) -> None:
    raise Spoilt


def number(rank: int, size: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("device", ["cpu", HERE])
def test_a_process_whose_device_is_spoilt_is_not_used_again(device: str) -> None:
    # in processes that have no stand-in it does not work
    with contextlib.closing(ProcessWorld(1, join=processes.join_nothing)) as host:
        world = IsolatedWorld(SingleWorld(), host, device)
        before = world.run(number)
        with pytest.raises(WorldError, match="Spoilt"):
            world.run(spoil)
        assert (world.run(number) == before) == (device == "cpu")


def test_a_device_that_vanishes_falsifies_nothing(stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Example] = []

    def vanish(check: Check, example: Example) -> float:
        ran.append(example)
        if len(ran) > 2:
            raise WorldError("single", [RankState(0, "raised", "RuntimeError: CUDA error: unspecified")])
        return 0.0

    monkeypatch.setattr(certifier, "falsify", vanish)
    monkeypatch.setattr(probe, "trouble", lambda device: f"{device} does not work: gone")
    each, laws = Certifier(25), ("terms equal the oracle", "gradients equal the oracle")
    found = [each.verify(one_check(stand_in, law)) for law in laws]
    assert [(one.verdict, one.not_run, one.reason) for one in found] == [
        ("skipped", True, "standin:0 does not work: gone")
    ] * 2
    assert len(ran) == 3, "nothing more is tried there"


def test_a_failure_where_the_device_works_is_the_targets(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(check: Check, example: Example) -> float:
        raise WorldError("single", [RankState(0, "raised", "RuntimeError: no")])

    monkeypatch.setattr(certifier, "falsify", fail)
    assert verify(one_check(stand_in), 2).verdict == "falsified"


def test_no_memory_of_the_cpu_is_limited_where_cuda_reserves_addresses() -> None:
    limited = processes.resource.RLIMIT_DATA
    assert limited in ProcessWorld(1).limits
    assert limited not in ProcessWorld(1, device="cuda:0").limits


# NCCL, as far as a CPU shows it.


def test_an_nccl_world_takes_gpus_whichever_devices_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "nccl_missing", lambda: None)
    assert [spec.name for spec in parse("1,nccl:2-3", ["cpu", "cuda:1"])] == [
        "single", "nccl:2", "nccl:3", "single on cuda:1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "size", "device", "found"),
    [
        (2, 2, "cuda:0/cuda:1", "2 ranks, one GPU each"),
        (1, 2, "cuda:0", "2 ranks, sharing cuda:0"),
        (2, 3, "cuda:0/cuda:1", "3 ranks, sharing cuda:0, cuda:1"),
    ],
)
def test_ranks_are_placed_where_nccl_was_tried(
    count: int, size: int, device: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    monkeypatch.setattr(nccl, "BACKEND", "gloo")
    tried = []

    def run(world: ProcessWorld, function: Any) -> list[list[float]]:
        tried.append((world.size, world.device))
        return [[float(sum(range(size)))] * 3] * size

    monkeypatch.setattr(nccl.NcclWorld, "run", run)
    monkeypatch.setattr(table, "nccl_missing", lambda: None)
    (spec,) = placed(parse(f"nccl:{size}"))
    assert (spec.name, spec.device, spec.found) == (f"nccl:{size}", device, found)
    assert spec.alone.name == "single on cuda:0"
    placed(parse(f"nccl:{size}"))
    assert tried == [(size, device)]


def test_where_nccl_does_not_share_a_gpu_gloo_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    monkeypatch.setattr(table, "nccl_missing", lambda: None)
    said = "Traceback ...\ntorch.distributed.DistBackendError: NCCL error: Duplicate GPU detected"

    def run(world: ProcessWorld, function: Any) -> None:
        raise WorldError(world.name, [RankState(0, "raised", said), RankState(1, "raised", said)])

    monkeypatch.setattr(nccl.NcclWorld, "run", run)
    monkeypatch.setattr(certifier, "falsify", lambda check, example: 0.0)
    monkeypatch.setattr(Worlds, "start", lambda self, spec, patience: None)
    planned = plan({"clip": SHIPPED["clip"]}, "2,nccl:2", only=["terms*"], places=["cuda:0"])
    assert {check.world.name for check in planned} == {"processes:2 on cuda:0"}
    (check,) = planned
    assert "in the place of nccl:2" in check.world.found
    (line,) = [line for line in planning.not_verified(planned) if line.startswith("NCCL")]
    assert line == f"NCCL: {check.world.found}"
    assert "Duplicate GPU detected" in check.world.found
    finding = verify(check, 2)
    used = records.used([finding], records.Asked(0, 2, "nccl:2"), Known(), True)
    gpu = next(one for one in used if one.device == "cuda:0")
    assert (gpu.name, gpu.driver, gpu.cuda, gpu.nccl) == ("GPU 0", "600.1", "13.0", "2.30.7")
    assert any("Duplicate GPU detected" in note for note in gpu.notes)


def test_ranks_join_and_the_probe_sees_every_way_to_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's part is taken by gloo: how ranks join, and what the probe makes them do."""
    world = ProcessWorld(3, join=functools.partial(join_by, "gloo"))
    with contextlib.closing(world):
        assert world.run(nccl.exchange) == [[3.0] * 3] * 3


def join_by(backend: str, rank: int, size: int, folder: Path, collective_timeout: float) -> None:
    nccl.BACKEND = backend
    nccl.join_nccl(rank, size, folder, collective_timeout)


def test_the_probe_is_interrupted_at_once_and_leaves_no_rank(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    script = f"""
import pathlib
from tests.test_devices import wait_for_ever
from verified_losses.properties import devices
from verified_losses.properties.worlds import nccl
from verified_losses.properties.__main__ import main
import dataclasses, sys
cuda = devices.KINDS["cuda"]
devices.KINDS["cuda"] = dataclasses.replace(cuda, missing=lambda: None, count=lambda: 1)
from verified_losses.properties.worlds import table
table.nccl_missing = lambda: None
nccl.NcclWorld.usual_join = staticmethod(nccl.ProcessWorld.usual_join)
nccl.NcclWorld.__init__ = lambda self, size, timeout, start_timeout, device: nccl.ProcessWorld.__init__(
    self, size, timeout, start_timeout)
nccl.exchange = wait_for_ever
import os
os.environ["BEGUN"] = {str(begun)!r}
sys.argv = ["verified-losses", "certify", "--world", "nccl:2"]
main()
"""
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script]
    with started(command, env=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not begun.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        interrupted = time.monotonic()
        _, said = running.communicate(timeout=LIMIT_SECONDS)
    assert running.returncode == 130, said
    assert said.endswith("interrupted before a check ran\n")
    assert "Traceback" not in said
    assert time.monotonic() - interrupted < 30
    pid = int(begun.read_text())
    assert not Path(f"/proc/{pid}").exists()


def wait_for_ever(rank: int, size: int) -> None:
    if rank == 0:
        part = Path(os.environ["BEGUN"]).with_suffix(".part")
        part.write_text(str(os.getpid()))
        part.replace(os.environ["BEGUN"])
    time.sleep(1000)


def test_a_finding_over_nccl_is_a_file_that_starts_its_ranks_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setattr(table, "nccl_missing", lambda: None)
    check = one_check("cpu", "terms equal the oracle", "nccl:2")
    check = replace(check, world=replace(check.world, device="cuda:0/cuda:1"))
    place = Place("term", "contrastive_loss", 1, expected=1.0, observed=2.0, bound=0.1)
    example = Example(Case(rows=(1, 1))).on(check.world.device, cpu_scalars=True)
    finding = Finding(
        check, 0, "falsified", reason="wrong", smallest=example, error=Falsified("wrong", place)
    )
    text = counterexample.render(finding, tmp_path / "one.py")
    compile(text, "one.py", "exec")
    assert "does not hold in 2 ranks on cuda:0, cuda:1 (clip" in text
    assert "runs it again in 2 ranks over NCCL" in text
    assert 'dist.init_process_group("nccl"' in text
    assert 'DEVICES = ("cuda:0", "cuda:1")  # of the ranks, in turn' in text
    features = [re.findall(r'device="(cuda:\d)"', one) for one in text.split('"logit_scale"')[:2]]
    assert features == [["cuda:0", "cuda:0"], ["cuda:1", "cuda:1"]]


@pytest.mark.parametrize(
    ("dtype", "matmul", "settings"),
    [
        ("float32", "tf32", {"allow_tf32": True}),
        ("float32", "exact", {"allow_tf32": False}),
        ("float64", "exact", {}),
        ("bfloat16", "truncated", {"allow_bf16_reduced_precision_reduction": False}),
        ("float16", "reduced", {"allow_fp16_reduced_precision_reduction": True}),
        ("float16", "half", {"allow_fp16_accumulation": True}),
    ],
)
def test_a_file_multiplies_as_the_device_did(
    dtype: str, matmul: str, settings: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(rows=(1,), dtype=dtype, device="cuda:0", matmul=matmul)
    check = replace(one_check("cpu", "terms equal the oracle"), world=replace(parse("1")[0], device="cuda:0"))
    place = Place("term", "contrastive_loss", 0, expected=1.0, observed=2.0, bound=0.1)
    error = Falsified("wrong", place)
    finding = Finding(check, 0, "falsified", reason="wrong", smallest=Example(case), error=error)
    text = counterexample.render(finding, tmp_path / "one.py")
    line = re.search("^PRODUCTS = (.*)  # settings of torch.backends.cuda.matmul$", text, re.MULTILINE)
    assert line is not None
    assert ast.literal_eval(line[1]) == settings

    class Products:
        pass

    monkeypatch.setattr(torch.backends.cuda, "matmul", Products)
    monkeypatch.setattr(file, "PRODUCTS", settings)
    monkeypatch.setattr(file, "DEVICES", ("no such device",))
    assert not launch.on_device(0)
    assert {name: getattr(Products, name) for name in settings} == settings


def test_pages_and_terminals_show_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    found = [
        Finding(replace(one_check(device)), 0, "holds", (0.1,), (Case(device=device),))
        for device in ("cpu", "cuda:0")
    ]
    asked = records.Asked(0, 1, "1", devices="cpu,cuda:0")
    lost = replace(found[1], verdict="skipped", reason="cuda:0 does not work: gone", not_run=True, lost=True)
    used = records.used([*found, lost], asked, Known(), True)
    assert terminal.devices(used[:1]) == []
    lines = terminal.devices(used)
    software = f"torch {torch.__version__}, driver 600.1, CUDA 13.0, NCCL 2.30.7"
    assert lines[0].startswith("cpu (")
    assert lines[0].endswith("): holds")
    assert lines[1:] == [
        f"cuda:0 (GPU 0, {software}): incomplete",
        "cuda:0: used equals fresh in world single on cuda:0: cuda:0 does not work: gone",
    ]
    record = records.certificate(
        SHIPPED["clip"][1],
        "clip",
        found,
        [],
        records.Asked(0, 1, "1", devices="cpu,cuda:0"),
        Known(),
        [],
        True,
    )
    assert [one.device for one in record.properties] == ["cpu", "cuda:0"]
    assert record.drawn["device"] == {"cpu": 1, "cuda:0": 1}
    page = render(record, {})
    assert "GPU 0" in page
    assert software in page
    jsonschema.validate(json.loads(msgspec.json.encode(record)), records.schema())


# Targets that ask for CUDA themselves.


@pytest.mark.parametrize("device", ["cpu", "cuda:0"], ids=["cpu", "cuda"], indirect=True)
def test_a_target_that_asks_for_cuda_is_told_where_it_is_verified(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--as", "clip", "--world", "1", "--device", device, "--max-examples", "2", "--only", "terms*"]
    asked += ["--json", str(tmp_path / "one.json"), "--counterexamples", str(tmp_path)]
    status = {name: certified(f"tests.asks_for_cuda:{name}", *asked) for name in ("Moves", "Reads")}
    said = capsys.readouterr()
    if device == "cuda:0":
        assert status == {"Moves": 0, "Reads": 0}
        return
    assert status["Moves"] == 2
    assert said.err.count("it asks for CUDA, so verify it with device cuda, where there is a GPU") >= 1
    if not torch.backends.cuda.is_built():
        assert status["Reads"] == 2
        assert said.err.count("it asks for CUDA, so verify it with device cuda, where there is a GPU") == 2
