"""A world of processes that torchrun started: what holds, what fails, and what is lost."""

import contextlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from verified_losses.properties.verify.arguments import Unusable, some_worlds
from verified_losses.properties.worlds import server, torchrun

from . import services
from .children import started, wait_until

LIMIT_SECONDS = 120

ROOT = Path(__file__).parents[1]
cluster = pytest.mark.skipif("CLUSTER" not in os.environ, reason="`make cluster` runs it")
LOSS = """
import ctypes, os, pathlib, signal, sys, time
import verified_losses

RANK = int(os.environ.get("RANK", "-1"))  # -1 in the single process
BESIDE = pathlib.Path(__file__).parent


def stuck():
    lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)  # waits for itself, whatever signals come


class Loss(verified_losses.ClipLoss):
    def forward(self, *given, **named):
        if RANK == {rank}:
            with open(BESIDE / f"called-{{RANK}}", "a") as file:
                file.write(".")
            {deed}
        return super().forward(*given, **named)
"""
MAIN = """
from verified_losses.properties.__main__ import main
from verified_losses.properties.worlds import specs, torchrun

specs.RUN_SECONDS, torchrun.SILENCE_SECONDS, torchrun.GRACE_SECONDS = 5.0, 5.0, 2.0
main()
"""
"""The command, which waits for less long."""
INTERFACE = "between"
"""Of each host, where they are network namespaces."""
ADDRESSES = "10.77.0.1", "10.77.0.2"
DEEDS = """
import json, os, sys, time
import torch, torch.distributed as dist
from verified_losses.properties.worlds import WorldError, torchrun


def summed(rank, size):
    total = torch.tensor(rank + 1)
    dist.all_reduce(total)
    return int(total)

def raising(rank, size):
    if rank == 1:
        raise ValueError("not here")
    return summed(rank, size)

def hanging(rank, size):
    time.sleep(1000 * rank)

def unpicklable(rank, size):
    return lambda: rank

def dying(rank, size):
    os._exit(7 * rank) if rank else None

def states(world, deed):
    try:
        return world.run(deed)
    except WorldError as error:
        return [str(state) for state in error.ranks], error.over

def main():
    torchrun.GRACE_SECONDS = 2.0
    if torchrun.is_executor():
        sys.exit(torchrun.serve())
    world = torchrun.TorchrunWorld(2, 2.0)
    told = {"summed": world.run(summed), "raised": states(world, raising)[0], "again": world.run(summed)}
    told |= {"hung": states(world, hanging)[0], "last": world.run(summed)}
    told["pickled"] = states(world, unpicklable)[0][1]
    told["died"], told["over"] = states(world, dying)
    told["lost"] = torchrun.torchrun_missing()
    print(json.dumps(told))
"""
FEW = ["--max-examples", "3", "--only", "terms*", "inputs*", "deterministic"]


class Run:
    """A run of `certify` under torchrun, one agent a host."""

    def __init__(self, folder: Path, hosts: Sequence[Sequence[str]], ranks: int, arguments: Sequence[str]):
        self.folder = folder
        port = str(services.free_port())
        address = services.LOCALHOST if not any(hosts) else ADDRESSES[0]
        (folder / "main.py").write_text(MAIN)
        self.agents: list[subprocess.Popen[str]] = []
        self.stack = contextlib.ExitStack()
        for number, inside in enumerate(hosts):
            agent = [
                *inside, sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts)),
                "--nproc-per-node", str(ranks), "--node-rank", str(number), "--master-addr", address,
                "--master-port", port, str(folder / "main.py"), "certify", *arguments,
                "--json", str(folder / "certificate.json"), "--counterexamples", str(folder / "kept"),
            ]  # fmt: skip
            environment = {
                **os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
                "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE if any(hosts) else "lo",
            }  # fmt: skip
            log = self.stack.enter_context((folder / f"agent-{number}.out").open("w"))
            process = started(agent, env=environment, stdout=log, stderr=log, cwd=folder)
            self.agents.append(self.stack.enter_context(process))

    @property
    def said(self) -> str:
        """All that was printed."""
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("agent-*.out")))

    @property
    def record(self) -> dict[str, Any]:
        """The certificate."""
        return dict(json.loads((self.folder / "certificate.json").read_text()))

    def wait(self) -> list[int]:
        """Return the agents' exit statuses."""
        try:
            return [agent.wait(LIMIT_SECONDS) for agent in self.agents]
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said) from None

    def status(self) -> int:
        """Return the exit status of rank 0, which torchrun reports."""
        statuses = {int(rank): int(code) for rank, code in
                    re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+)", self.said)}  # fmt: skip
        return statuses.get(0, 0)


@contextlib.contextmanager
def _running(
    folder: Path, *arguments: str, hosts: Sequence[Sequence[str]] = ((), ()), ranks: int = 1
) -> Iterator[Run]:
    run = Run(folder, hosts, ranks, arguments)
    with run.stack:
        yield run


def _target(folder: Path, deed: str, rank: int = 1) -> list[str]:
    (folder / "mine.py").write_text(LOSS.format(deed=deed, rank=rank))
    return [f"{folder}/mine.py:Loss", "--as", "clip", "--world", "torchrun", *FEW]


def _wait_for_calls(run: Run, rank: int) -> None:
    """Wait until some cases have been compared."""
    calls = run.folder / f"called-{rank}"
    wait_until(lambda: calls.exists() and calls.stat().st_size > 10, run.agents[0])


def test_ranks_run_what_rank_0_sends(tmp_path: Path) -> None:
    """Without agents, which take seconds to start: what they tell their processes is set here."""
    (tmp_path / "deeds.py").write_text(DEEDS)
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "MASTER_ADDR": services.LOCALHOST,
        "MASTER_PORT": str(services.free_port()),
    }  # fmt: skip
    command = [sys.executable, "-c", "import deeds; deeds.main()"]
    with (
        started(command, env=environment | {"RANK": "0"}, stdout=subprocess.PIPE) as first,
        started(command, env=environment | {"RANK": "1"}, stderr=subprocess.PIPE) as second,
    ):
        said, _ = first.communicate(timeout=LIMIT_SECONDS)
        _, last = second.communicate(timeout=LIMIT_SECONDS)
    told = json.loads(said)
    assert told["summed"] == [3, 3]
    # a rank that raises keeps no other waiting, and the next run is in a new group
    assert told["raised"][0].startswith("rank 0 raised")
    assert "ValueError: not here" in told["raised"][1]
    assert "Connection closed by peer" in told["raised"][0]
    assert told["again"] == [3, 3]
    assert "rank 1 hung" in told["hung"][1]
    assert told["last"] == [3, 3]
    assert "does not pickle" in told["pickled"]
    # the process of rank 1 dies: that ends the world
    assert told["over"] is True
    assert told["died"][1].startswith("rank 1 exited:\nits process ended")
    assert told["lost"] == "rank 1 exited: its process ended; torchrun's report says how; " + (
        "torchrun starts no other in its place"
    )
    assert (first.returncode, second.returncode, last) == (0, 7, "")


@cluster
def test_two_agents_verify_one_loss(tmp_path: Path) -> None:
    shipped = ["verified_losses:ClipLoss", "--as", "clip", "--world", "torchrun", *FEW]
    with _running(tmp_path, *shipped) as run:
        assert run.wait() == [0, 0], run.said
    assert run.record["verdict"] == "holds"
    assert {one["world"] for one in run.record["properties"]} == {"torchrun:2"}
    assert [one["examples"] > 0 for one in run.record["properties"]] == [True] * 3
    assert (tmp_path / "agent-1.out").read_text() == "", "rank 0 alone prints"


def test_it_is_refused_outside_torchrun() -> None:
    with pytest.raises(
        Unusable, match="world: torchrun: this process was not started by torchrun: torchrun --n"
    ):
        some_worlds("1,torchrun")


def test_the_number_of_ranks_is_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "MASTER_ADDR": "x", "WORLD_SIZE": "6"}.items():
        monkeypatch.setenv(name, value)
    (spec,) = some_worlds("torchrun")
    assert (spec.name, spec.sizes, torchrun.is_executor()) == ("torchrun:6", (6,), False)
    monkeypatch.setenv("RANK", "5")
    assert torchrun.is_executor()
    assert not server.rank_environment().keys() & {"RANK", "WORLD_SIZE", "MASTER_ADDR"}
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(Unusable, match="world: torchrun: expected from 2 to 1024 ranks, got 1"):
        some_worlds("torchrun")


def test_ranks_take_a_gpu_each_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (torchrun.backend(), taken) == ("cpu:gloo,cuda:nccl", [1])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert (torchrun.backend(), taken) == ("gloo", [1])


def test_why_a_rank_is_gone_is_read_after_a_send_has_failed() -> None:
    here, there = multiprocessing.Pipe()
    there.send_bytes(pickle.dumps(("gone", "its torchrun agent is gone")))
    there.close()
    peer, lead = torchrun._Peer(here, 2, "1"), torchrun._Lead.__new__(torchrun._Lead)
    lead._news = threading.Condition()
    assert not peer.send("beat")
    assert not peer.closed, "what it said lies there still"
    lead._listen(peer)
    assert (peer.closed, peer.gone) == (True, "its torchrun agent is gone")


@cluster
def test_a_rank_that_raises_is_a_finding_and_the_world_goes_on(tmp_path: Path) -> None:
    deed = "if time.time() % 2 < 3: raise ValueError('no')"
    with _running(tmp_path, *_target(tmp_path, deed)) as run:
        assert run.wait()[0] == 1, run.said
    assert run.status() == 1
    record = run.record
    assert [one["verdict"] for one in record["properties"]] == ["falsified"] * 3
    assert all(
        "rank 1 raised" in one["reason"] and "ValueError: no" in one["reason"] for one in record["properties"]
    )
    assert len([*(tmp_path / "kept").iterdir()]) == 1


@cluster
def test_a_rank_that_hangs_in_python_is_a_finding(tmp_path: Path) -> None:
    with _running(tmp_path, *_target(tmp_path, "time.sleep(1000)")) as run:
        assert run.wait()[0] == 1, run.said
    first, *others = run.record["properties"]
    assert first["verdict"] == "falsified"
    assert "rank 1 hung:\nno answer in 5 s" in first["reason"]
    assert "mine.py" in first["reason"]
    assert [one["reason"] for one in others] == ["the target hung in this world before"] * 2


@cluster
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_dies_ends_the_world_and_is_a_finding(tmp_path: Path, ranks: int) -> None:
    deed = "os.kill(os.getpid(), signal.SIGKILL)"
    with _running(tmp_path, *_target(tmp_path, deed), ranks=ranks) as run:
        assert run.wait()[0] == 1, run.said
    assert run.status() == 1
    first, *others = run.record["properties"]
    assert (run.record["verdict"], first["verdict"]) == ("falsified", "falsified")
    assert "rank 1 exited:\nits process ended; torchrun's report says how" in first["reason"]
    assert all("torchrun starts no other in its place" in one["reason"] for one in others)
    assert len([*(tmp_path / "kept").iterdir()]) == 1


@cluster
def test_a_rank_that_hangs_outside_python_ends_the_world(tmp_path: Path) -> None:
    with _running(tmp_path, *_target(tmp_path, "stuck()")) as run:
        statuses = run.wait()
    assert statuses[0] == 1, run.said
    first, *others = run.record["properties"]
    assert first["verdict"] == "falsified"
    assert "rank 1 hung:\nno answer in 5 s" in first["reason"]
    assert "in stuck" in first["reason"], "where it hangs"
    assert all("torchrun starts no other in its place" in one["reason"] for one in others)


@cluster
def test_what_is_found_is_written_where_rank_0_hangs(tmp_path: Path) -> None:
    with _running(tmp_path, *_target(tmp_path, "stuck()", rank=0)) as run:
        assert run.wait()[0] == 1, run.said
    assert run.status() == 3
    assert run.record["verdict"] == "incomplete"
    assert any("rank 0 hung for more than 5 s" in line for line in run.record["not_verified"])


@cluster
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_loss_of_an_agent_ends_the_run_and_accuses_nobody(tmp_path: Path, ranks: int) -> None:
    target = _target(tmp_path, "time.sleep(0.2)", rank=ranks)
    target[target.index("3")] = "1000"
    with _running(tmp_path, *target, ranks=ranks) as run:
        _wait_for_calls(run, rank=ranks)
        run.agents[1].kill()
        assert run.wait()[0] == 1, run.said
    assert run.status() == 3
    assert run.record["verdict"] == "incomplete"
    first = run.record["properties"][0]
    assert (first["verdict"], first["examples"] > 0) == ("skipped", True)
    assert "torchrun agent is gone" in first["reason"]


@cluster
def test_a_cancelled_run_writes_what_it_has(tmp_path: Path) -> None:
    target = _target(tmp_path, "time.sleep(0.2)")
    target[target.index("3")] = "1000"
    with _running(tmp_path, *target) as run:
        _wait_for_calls(run, rank=1)
        for agent in run.agents:
            agent.send_signal(signal.SIGTERM)
        run.wait()
    assert run.record["verdict"] == "incomplete"
    assert any("interrupted after" in line for line in run.record["not_verified"])


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """Two hosts, which one wire joins: what a command is begun with, to run on each."""
    if reason := services.missing("ip"):
        pytest.skip(reason)
    names = [f"verified-{os.getpid()}-{number}" for number in range(2)]
    made = []
    try:
        for name in names:
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
            made.append(name)
        _ip("-n", names[0], "link", "add", INTERFACE, "type", "veth", "peer", INTERFACE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for link in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", link, "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in made:
            _ip("netns", "delete", name)


@cluster
def test_two_hosts_verify_one_loss(tmp_path: Path, hosts: list[list[str]]) -> None:
    shipped = ["--loss", "siglip", "exchange", "--world", "1,torchrun", *FEW]
    with _running(tmp_path, *shipped, hosts=hosts, ranks=2) as run:
        assert run.wait() == [0, 0], run.said
    record = run.record
    assert record["verdict"] == "holds"
    rows = [one for certificate in record["certificates"] for one in certificate["properties"]]
    assert {one["world"] for one in rows} == {"single", "torchrun:4"}
    assert len(rows) == 9


@cluster
def test_a_host_that_is_cut_off_ends_the_run_and_accuses_nobody(
    tmp_path: Path, hosts: list[list[str]]
) -> None:
    target = _target(tmp_path, "time.sleep(0.1)", rank=2)
    target[target.index("3")] = "1000"
    with _running(tmp_path, *target, hosts=hosts, ranks=2) as run:
        _wait_for_calls(run, rank=2)
        _ip("-n", hosts[1][-1], "link", "set", INTERFACE, "down")
        assert run.agents[0].wait(LIMIT_SECONDS) == 1, run.said
    assert run.status() == 3
    record = run.record
    assert record["verdict"] == "incomplete"
    first = record["properties"][0]
    assert (first["verdict"], first["examples"] > 0) == ("skipped", True)
    assert "nothing was heard from host 1" in first["reason"]
    assert not (tmp_path / "kept").exists()


@cluster
def test_a_defect_that_was_found_stays_where_a_host_is_cut_off(
    tmp_path: Path, hosts: list[list[str]]
) -> None:
    deed = "image = given[0] if given else named['image_features']\n            time.sleep(0.1)"
    target = _target(
        tmp_path, f"{deed}\n            if len(image) > 0: return 2 * super().forward(*given, **named)"
    )
    target[target.index("3")] = "1000"
    target[target.index("inputs*")] = "deterministic"
    with _running(tmp_path, *target, hosts=hosts, ranks=1) as run:
        wait_until(lambda: "FALSIFIED" in run.said and "smallest case" in run.said, run.agents[0])
        _ip("-n", hosts[1][-1], "link", "set", INTERFACE, "down")
        assert run.agents[0].wait(LIMIT_SECONDS) == 1, run.said
    assert run.status() == 1
    record = run.record
    assert record["verdict"] == "falsified"
    first, last = record["properties"]
    assert (first["verdict"], last["verdict"]) == ("falsified", "skipped")
    assert len([*(tmp_path / "kept").iterdir()]) == 1
