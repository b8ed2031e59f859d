"""The worlds of real processes, and of one: results, every way that a rank can fail, and what is left behind.

The functions that ranks run are imported there by name, as `tests.test_worlds`.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from verified_losses.properties import devices
from verified_losses.properties.process_state import preserved
from verified_losses.properties.worlds import OutOfTime, RankState, WorldError
from verified_losses.properties.worlds.processes import ProcessWorld, shared_world
from verified_losses.properties.worlds.single import SingleWorld

from .children import started

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world() -> Iterator[ProcessWorld]:
    with contextlib.closing(ProcessWorld(2)) as world:
        yield world


def describe(rank, size, *arguments):
    return rank, size, arguments


def process_id(rank, size):
    return os.getpid()


def sum_of_ranks(rank, size):
    total = torch.tensor([float(rank)])
    dist.all_reduce(total)
    return total


def environment(rank, size):
    return torch.get_num_threads(), sys.argv[1:], sys.path, os.environ.get("GIVEN_BY_A_TEST")


def how_matrices_are_multiplied(rank, size):
    return [devices.matmul_of(dtype, "cuda:0") for dtype in ("float32", "float16", "bfloat16")]


def raise_on(rank, size, failing):
    if rank in failing:
        raise ArithmeticError(f"rank {rank} cannot")
    return rank


def raise_before_a_collective(rank, size):
    if rank == 0:
        raise ArithmeticError("no part in it")
    dist.barrier()


def exit_at_once(rank, size, status):
    if rank == 1:
        os._exit(status)


def exit_with_words(rank, size):
    if rank == 1:
        sys.exit("these are last words")


def exit_quietly(rank, size):
    if rank == 1:
        sys.exit()


def exit_and_leave_a_child(rank, size, file):
    if rank == 1:
        child = os.fork()
        if child == 0:
            sleep_for_ever()
        file.write_text(str(child))
        os._exit(0)


def say(rank, size, text):
    print(text)


def die_of(rank, size, signal_number):
    if rank == 1:
        print("said on stdout")
        os.kill(os.getpid(), signal_number)
    dist.barrier()


def stop_or_raise(rank, size):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    raise ArithmeticError("after a peer stopped")


def ignore_sigterm(rank, size):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def gather_two_dtypes(rank, size):
    mine = torch.ones(4, dtype=torch.float64 if rank == 1 else torch.float32)
    dist.all_gather([torch.empty_like(mine) for _ in range(size)], mine)


def sleep_for_ever():
    while True:
        time.sleep(0.1)


def hang_on(rank, size, hanging):
    if rank in hanging:
        sleep_for_ever()


def raise_or_hang(rank, size):
    if rank == 0:
        raise ArithmeticError("rank 0 cannot")
    sleep_for_ever()


def skip_a_collective(rank, size):
    if rank == 0:
        dist.barrier()


def hang_busily(rank, size, folder):
    """Rank 0 waits in a collective for rank 1, which sleeps; both have written their process id."""
    (folder / str(rank)).write_text(str(os.getpid()))
    if rank == 1:
        sleep_for_ever()
    dist.barrier()


def return_a_lambda(rank, size):
    return lambda: rank


class Unreadable:
    def __reduce__(self):
        return int, ("not a number",)


def return_unreadable(rank, size):
    return Unreadable()


def run_script(tmp_path, text):
    """Start a Python script that has no `__main__` guard, as a user might write it."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    return started(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def await_end(pids, seconds=30.0):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def await_pids(folder, size, seconds=300.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        texts = [file.read_text() for file in folder.iterdir()]
        if len(texts) == size and all(texts):
            return [int(text) for text in texts]
        time.sleep(0.02)
    raise TimeoutError(f"{size} ranks did not start in {seconds} s")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_results_come_in_rank_order(size):
    with contextlib.closing(ProcessWorld(size)) as world:
        assert world.name == f"processes:{size}"
        assert world.run(describe, "a", 1) == [(rank, size, ("a", 1)) for rank in range(size)]
        assert world.run(sum_of_ranks) == [torch.tensor([size * (size - 1) / 2.0])] * size


def test_large_arguments_and_results_travel(world):
    tensor = torch.arange(1_000_000)
    for rank, (_, _, (returned,)) in enumerate(world.run(describe, tensor)):
        assert torch.equal(returned, tensor), rank


def test_ranks_see_one_thread_and_this_process_as_it_is(monkeypatch):
    monkeypatch.setenv("GIVEN_BY_A_TEST", "seen")
    with contextlib.closing(ProcessWorld(1)) as world:
        world.run(process_id)
        monkeypatch.syspath_prepend("/added/while/the/pool/lives")
        assert world.run(environment) == [(1, [], sys.path, "seen")]


def test_a_pool_serves_many_runs(world):
    pids = world.run(process_id)
    assert len({os.getpid(), *pids}) == 3
    assert world.run(process_id) == pids


def test_one_rank_raises(world):
    before = world.run(process_id)
    with pytest.raises(WorldError, match="world processes:2: not every rank returned") as caught:
        world.run(raise_on, [1])
    assert [state.state for state in caught.value.ranks] == ["returned", "raised"]
    detail = caught.value.ranks[1].detail
    assert "ArithmeticError: rank 1 cannot" in detail
    assert "in raise_on" in detail
    assert "processes.py" not in detail
    assert set(before).isdisjoint(world.run(process_id))


def test_every_rank_raises(world):
    with pytest.raises(WorldError) as caught:
        world.run(raise_on, [0, 1])
    assert [state.state for state in caught.value.ranks] == ["raised", "raised"]
    assert [f"rank {rank} cannot" in caught.value.ranks[rank].detail for rank in (0, 1)] == [True, True]


def test_a_rank_that_raises_frees_its_peers_from_a_collective():
    with contextlib.closing(ProcessWorld(2, grace=50.0)) as world:
        world.run(process_id)
        began = time.monotonic()
        with pytest.raises(WorldError) as caught:
            world.run(raise_before_a_collective)
        assert time.monotonic() - began < 40.0
    assert [state.state for state in caught.value.ranks] == ["raised", "raised"]


@pytest.mark.parametrize(
    ("function", "arguments", "detail"),
    [
        (exit_at_once, [3], "status 3"),
        (exit_at_once, [0], "status 0"),
        (exit_with_words, [], "status 1\nthese are last words"),
        (exit_quietly, [], "status 0"),
    ],
)
def test_a_rank_exits(world, function, arguments, detail):
    with pytest.raises(WorldError) as caught:
        world.run(function, *arguments)
    assert [state.state for state in caught.value.ranks] == ["returned", "exited"]
    assert caught.value.ranks[1].detail == detail
    assert world.run(describe) == [(0, 2, ()), (1, 2, ())]


def test_a_ranks_child_does_not_hide_its_exit(world, tmp_path):
    file = tmp_path / "child"
    with pytest.raises(WorldError) as caught:
        world.run(exit_and_leave_a_child, file)
    os.kill(int(file.read_text()), signal.SIGKILL)
    assert [state.state for state in caught.value.ranks] == ["returned", "exited"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_kills_a_rank(world, number, capfd):
    world.run(say, "in an earlier run")
    with pytest.raises(WorldError) as caught:
        world.run(die_of, number)
    assert [state.state for state in caught.value.ranks] == ["raised", "killed"]
    assert caught.value.ranks[1].detail.startswith(f"{number.name}\nsaid on stdout")
    assert world.run(describe) == [(0, 2, ()), (1, 2, ())]
    assert capfd.readouterr() == ("", "")


def test_gloo_aborts_on_a_dtype_mismatch(world, capfd):
    with pytest.raises(WorldError) as caught:
        world.run(gather_two_dtypes)
    killed = [state.detail for state in caught.value.ranks if state.state == "killed"]
    assert killed
    for detail in killed:
        assert detail.startswith("SIGABRT\nterminate called")
        assert "in gather_two_dtypes" in detail
    assert world.run(describe) == [(0, 2, ()), (1, 2, ())]
    assert capfd.readouterr() == ("", "")


def test_the_debug_level_is_that_of_the_pools_start(world, monkeypatch):
    world.run(process_id)
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    with contextlib.closing(ProcessWorld(2)) as detailed, pytest.raises(WorldError) as caught:
        detailed.run(gather_two_dtypes)
    assert [state.state for state in caught.value.ranks] == ["raised", "raised"]
    assert any("Detected mismatch between collectives" in state.detail for state in caught.value.ranks)


def test_a_rank_dies_between_runs(world):
    pids = world.run(process_id)
    os.kill(pids[0], signal.SIGKILL)
    assert await_end(pids[:1])
    with pytest.raises(WorldError) as caught:
        world.run(process_id)
    assert str(caught.value.ranks[0]) == "rank 0 killed:\nSIGKILL"
    assert set(pids).isdisjoint(world.run(process_id))


@pytest.mark.parametrize("hanging", [[1], [0, 1]])
def test_a_rank_hangs(hanging):
    with contextlib.closing(ProcessWorld(2)) as world:
        pids = world.run(process_id)
        world.timeout = 2.0
        began = time.monotonic()
        with pytest.raises(WorldError) as caught:
            world.run(hang_on, hanging)
        assert time.monotonic() - began < 30.0
        for state in caught.value.ranks:
            assert state.state == ("hung" if state.rank in hanging else "returned")
            if state.rank in hanging:
                assert state.detail.startswith("no answer in 2 s\n")
                assert "in sleep_for_ever" in state.detail
                assert "in hang_on" in state.detail
                assert "processes.py" not in state.detail
        assert not any(map(psutil.pid_exists, pids))
        world.timeout = 60.0
        assert world.run(describe) == [(0, 2, ()), (1, 2, ())]


def test_a_collective_that_one_rank_skips_raises_before_the_run_expires(monkeypatch):
    monkeypatch.setattr("verified_losses.properties.worlds.processes.COLLECTIVE_SHARE", 0.05)
    with (
        contextlib.closing(ProcessWorld(2, timeout=60.0, grace=30.0)) as world,
        pytest.raises(WorldError) as caught,
    ):
        world.run(skip_a_collective)
    assert [state.state for state in caught.value.ranks] == ["raised", "returned"]
    assert "in skip_a_collective" in caught.value.ranks[0].detail


def test_a_run_is_given_up_when_the_time_of_its_caller_is_over():
    with contextlib.closing(ProcessWorld(2)) as world:
        world.run(process_id)
        world.until = time.monotonic() + 0.5
        with pytest.raises(OutOfTime):
            world.run(hang_on, [1])
        with pytest.raises(OutOfTime):  # nor does it start again
            world.run(process_id)
        assert time.monotonic() - world.until < 20.0
        world.until = math.inf
        assert len(world.run(process_id)) == 2


def test_a_failure_is_told_of_though_the_time_is_over():
    with contextlib.closing(ProcessWorld(2)) as world:
        world.run(process_id)
        world.until = time.monotonic() + 5.0
        with pytest.raises(WorldError, match="rank 0 cannot"):
            world.run(raise_or_hang)


def test_a_stopped_rank_hangs_without_a_stack():
    with contextlib.closing(ProcessWorld(2, grace=1.0)) as world, pytest.raises(WorldError) as caught:
        world.run(stop_or_raise)
    assert [state.state for state in caught.value.ranks] == ["raised", "hung"]
    assert caught.value.ranks[1].detail == (
        "no answer in the 1 s after rank 0 failed\nit did not write its stack"
    )


def test_a_pool_that_cannot_start_in_time():
    with contextlib.closing(ProcessWorld(2, start_timeout=1e-6)) as world:
        with pytest.raises(WorldError) as caught:
            world.run(describe)
        assert [state.state for state in caught.value.ranks] == ["hung", "hung"]
        world.start_timeout = 60.0
        assert world.run(describe) == [(0, 2, ()), (1, 2, ())]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (return_a_lambda, "TypeError: a result of type function does not pickle"),
        (return_unreadable, "its result does not unpickle"),
    ],
)
def test_a_result_that_does_not_travel(world, function, words):
    with pytest.raises(WorldError) as caught:
        world.run(function)
    assert [state.state for state in caught.value.ranks] == ["raised", "raised"]
    assert all(words in state.detail for state in caught.value.ranks)


@pytest.mark.parametrize(
    ("function", "arguments"), [(lambda rank, size: rank, []), (describe, [threading.Lock()])]
)
def test_a_call_that_does_not_travel(world, function, arguments):
    pids = world.run(process_id)
    with pytest.raises(TypeError, match=r"cannot send <function .*> to the ranks: it must be importable"):
        world.run(function, *arguments)
    assert world.run(process_id) == pids


def test_a_function_that_ranks_cannot_import(world, monkeypatch):
    monkeypatch.setattr(describe, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "describe", describe, raising=False)
    with pytest.raises(WorldError, match="__main__ it never can"):
        world.run(describe)


def test_close_leaves_nothing(world, tmp_path, monkeypatch):
    world.run(process_id)  # the fork server keeps a folder of its own
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    world = ProcessWorld(3)
    world.close()
    pids = world.run(process_id)
    assert all(map(psutil.pid_exists, pids))
    assert list(tmp_path.iterdir())
    world.close()
    assert not any(map(psutil.pid_exists, pids))
    assert not list(tmp_path.iterdir())
    world.close()
    assert world.run(describe) == [(rank, 3, ()) for rank in range(3)]
    pids = world.run(process_id)
    del world
    assert not any(map(psutil.pid_exists, pids))


def test_a_killed_dispatcher_takes_its_busy_ranks_along(tmp_path):
    folder = tmp_path / "pids"
    folder.mkdir()
    script = f"""
        from pathlib import Path
        from verified_losses.properties.worlds.processes import shared_world
        from tests.test_worlds import hang_busily
        shared_world(2).run(hang_busily, Path({str(folder)!r}))
    """
    with run_script(tmp_path, script) as dispatcher:
        pids = await_pids(folder, 2)
        assert all(map(is_running, pids))
        dispatcher.kill()
        dispatcher.wait()
        assert await_end(pids)
    assert not list(tmp_path.glob("world-*"))


def test_an_interrupt_kills_the_pool_and_is_raised(tmp_path):
    folder = tmp_path / "pids"
    folder.mkdir()
    script = f"""
        import psutil
        from pathlib import Path
        from verified_losses.properties.worlds.processes import shared_world
        from tests.test_worlds import describe, hang_busily
        folder = Path({str(folder)!r})
        try:
            shared_world(2).run(hang_busily, folder)
        except KeyboardInterrupt:
            assert not any(psutil.pid_exists(int(file.read_text())) for file in folder.iterdir())
            print(shared_world(2).run(describe))
    """
    with run_script(tmp_path, script) as dispatcher:
        pids = await_pids(folder, 2)
        for pid in pids:  # a terminal's Ctrl-C reaches them too
            os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert all(map(is_running, pids))
        dispatcher.send_signal(signal.SIGINT)
        out, err = dispatcher.communicate(timeout=300)
    assert (dispatcher.returncode, out, err) == (0, "[(0, 2, ()), (1, 2, ())]\n", "")


def test_the_server_starts_without_torch_and_is_not_interrupted(tmp_path):
    script = """
        import os, psutil, signal, sys
        from verified_losses.properties.worlds import server
        server.start()
        assert "torch" not in sys.modules
        for child in psutil.Process().children():
            os.kill(child.pid, signal.SIGINT)  # while it imports, as a terminal's Ctrl-C
        from verified_losses.properties.worlds.processes import shared_world
        from tests.test_worlds import describe
        print(shared_world(2).run(describe))
    """
    with run_script(tmp_path, script) as dispatcher:
        out, err = dispatcher.communicate(timeout=300)
    assert (dispatcher.returncode, out, err) == (0, "[(0, 2, ()), (1, 2, ())]\n", "")


def test_forks_have_pools_of_their_own_and_exit_leaves_nothing(tmp_path):
    script = """
        import os, sys
        from verified_losses.properties.worlds.processes import shared_world
        from tests.test_worlds import ignore_sigterm, process_id
        world, unused_by_the_fork = shared_world(2), shared_world(1)
        assert shared_world(2) is world
        pids = world.run(process_id)
        other_pids = unused_by_the_fork.run(process_id)
        fork = os.fork()
        if fork == 0:
            theirs = shared_world(2).run(process_id) + world.run(process_id)
            assert len({*pids, *theirs}) == 6, (pids, theirs)
            sys.exit()
        _, status = os.waitpid(fork, 0)
        assert status == 0
        assert world.run(process_id) == pids
        assert unused_by_the_fork.run(process_id) == other_pids
        world.run(ignore_sigterm)
        print(*pids, *other_pids)
    """
    with run_script(tmp_path, script) as dispatcher:
        out, err = dispatcher.communicate(timeout=300)
    assert (dispatcher.returncode, err) == (0, "")
    assert not any(map(psutil.pid_exists, map(int, out.split())))
    assert not list(tmp_path.glob("world-*"))


def test_a_multiprocessing_child_leaves_nothing(tmp_path):
    script = """
        import multiprocessing
        from verified_losses.properties.worlds.processes import shared_world
        from tests.test_worlds import process_id
        shared_world(2)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=lambda: theirs.send(shared_world(2).run(process_id)))
        child.start()
        print(*ours.recv())
        child.join()
    """
    with run_script(tmp_path, script) as dispatcher:
        out, err = dispatcher.communicate(timeout=300)
    assert (dispatcher.returncode, err) == (0, "")
    pids = list(map(int, out.split()))
    assert len(pids) == 2
    assert not any(map(psutil.pid_exists, pids))
    assert not list(tmp_path.glob("world-*"))


def test_shared_worlds_are_one_per_size():
    assert shared_world(2) is shared_world(2)
    assert shared_world(3) is not shared_world(2)


@pytest.mark.parametrize(
    "arguments", [{"size": 0}, {"size": -1}, {"size": 2, "timeout": 0}, {"size": 2, "grace": -1.0}]
)
def test_senseless_worlds_are_refused(arguments):
    with pytest.raises(ValueError, match=r"at least one rank|must be positive"):
        ProcessWorld(**arguments)


def test_the_single_world_runs_here():
    world = SingleWorld()
    assert world.run(process_id) == [os.getpid()]
    with pytest.raises(WorldError, match="ArithmeticError: rank 0 cannot") as caught:
        world.run(raise_on, [0])
    assert [state.state for state in caught.value.ranks] == ["raised"]
    assert isinstance(caught.value.__cause__, ArithmeticError)
    world.close()


@pytest.mark.parametrize("allowed", [True, False])
def test_ranks_multiply_matrices_as_the_caller_does(world: ProcessWorld, allowed: bool) -> None:
    products = torch.backends.cuda.matmul
    with preserved():
        products.allow_tf32 = allowed
        products.allow_bf16_reduced_precision_reduction = not allowed
        here = how_matrices_are_multiplied(0, 1)
        assert here == (["tf32", "reduced", "truncated"] if allowed else ["exact", "reduced", "reduced"])
        assert world.run(how_matrices_are_multiplied) == [here, here]
    assert world.run(how_matrices_are_multiplied) == [how_matrices_are_multiplied(0, 1)] * 2


@pytest.mark.parametrize(
    ("state", "detail", "said"),
    [
        ("raised", 'Traceback:\n  File "a.py", line 1, in f\nValueError: no\nAsk another', "ValueError: no"),
        ("raised", "ValueError: no", "ValueError: no"),
        ("hung", "at a.py\n  waiting", "at a.py"),
        ("raised", "", ""),
    ],
)  # fmt: skip
def test_a_state_is_said_in_a_line(state: Any, detail: str, said: str) -> None:
    assert RankState(1, state, detail).said == f"rank 1 {state}: {said}"
