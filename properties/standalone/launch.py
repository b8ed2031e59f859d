"""How a counterexample runs: finds its target, starts its ranks, and exits with a verdict."""

import contextlib
import faulthandler
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from . import file
from .interpreter import interpret
from .loading import load, member


def find_target() -> Any:
    """Return TARGET, seen from the current folder or from the one that this file was written from."""
    place, _, name = file.TARGET.rpartition(":")
    folders = [Path.cwd(), Path(__file__).resolve().parent / file.HOME]
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    if place.endswith(".py"):
        place = str(next((one / place for one in folders if (one / place).exists()), place))
    return member(file.load(place), name)


def load_alone(place: str) -> Any:
    """Import a module, named or a file."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    sys.path.insert(0, str(Path(place).resolve().parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location("target", place)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["target"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_interpreted(place: str, inner: Callable[[str], Any] = load) -> Any:
    """Import a module whose Triton kernels are to run in Triton's interpreter."""
    interpret()
    return inner(place)  # a program gives this function the name of the other


def by_judge(target: Any, ranks: list[Any]) -> int:
    """Return 0 if the ranks' results agree with the expected ones, else 1."""
    return 0 if file.judge(target, ranks) else 1


def by_law(target: Any, ranks: list[Any]) -> int:
    """Return 0 where the law itself holds, 1 where it does not, 2 where that cannot be seen."""
    if not file.judge(target, ranks):
        return 1
    holds = judge_with_properties()
    if holds is None:
        print("no verdict without `properties`")
        return 2
    print("the law holds" if holds else "the law does not hold")
    return 0 if holds else 1


def judge_with_properties() -> bool | None:
    """Let the law itself judge in the world where it was seen not to hold, which may be no real one."""
    try:
        from verified_losses.properties.forms import Form
        from verified_losses.properties.laws import check_again
        from verified_losses.properties.subjects import Subject
    except ImportError:
        return None
    try:
        subject = Subject(file.TARGET, file.CONVENTIONS, form=Form(**file.FORM))
        check_again(file.LAW, file.CONTRACT, subject, file.WORLD, file.EXAMPLE, file.SECONDS / 2)
    except Exception:
        traceback.print_exc()
        return False
    return True


def alone(target: Any, rank: int) -> list[Any]:
    """Return what the only rank saw."""
    return [file.act(target, rank)]


def over_gloo(target: Any, rank: int) -> list[Any]:
    """Return what every rank saw, over gloo."""
    import torch.distributed as dist  # not above: the command knows launchers before torch is imported

    dist.init_process_group("gloo", timeout=timedelta(seconds=0.8 * file.SECONDS))
    everyone: list[Any] = [None] * file.WORLD_SIZE
    dist.all_gather_object(everyone, file.act(target, rank))
    dist.destroy_process_group()
    return everyone


def over_nccl(target: Any, rank: int) -> list[Any]:
    """Return what every rank saw, over NCCL."""
    import torch.distributed as dist

    os.environ["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"  # where ranks share a GPU
    dist.init_process_group("nccl", timeout=timedelta(seconds=0.8 * file.SECONDS))
    everyone: list[Any] = [None] * file.WORLD_SIZE
    dist.all_gather_object(everyone, file.act(target, rank))
    dist.destroy_process_group()
    return everyone


def over_horovod(target: Any, rank: int) -> list[Any]:
    """Return what every rank saw, over Horovod."""
    import horovod.torch as hvd

    hvd.init()
    everyone: list[Any] = hvd.allgather_object(file.act(target, rank))
    hvd.shutdown()
    return everyone


def on_cpu(rank: int) -> bool:
    """The CPU is always there."""
    return True


def on_device(rank: int) -> bool:
    """Make a rank's device the current one, multiplying as it did; say so if it is not there."""
    import torch

    for name, value in file.PRODUCTS.items():
        setattr(torch.backends.cuda.matmul, name, value)
    device = file.DEVICES[rank % len(file.DEVICES)]
    try:
        torch.ones(1, device=device)
        torch.accelerator.set_device_index(device)
    except Exception as error:
        print(f"{device} is not there: {str(error).splitlines()[0]}")
        return False
    return True


def verdict(rank: int) -> int:
    """Run one rank; return 0 where the law holds, 1 where it does not, 2 where that cannot be seen."""
    faulthandler.dump_traceback_later(file.SECONDS, exit=True)  # a rank that hangs prints its stack
    try:
        target = find_target()
    except BaseException:
        traceback.print_exc()
        return 2
    if not file.ready(rank):
        return 2
    everyone = file.gathered(target, rank)
    return 0 if rank > 0 else file.decide(target, everyone)


def python(folder: str) -> tuple[list[str], dict[str, str]]:
    """Return the command of one process, which leaves nothing in the folder, and its environment."""
    return [sys.executable], {**os.environ, "RANK": "0"}


def torchrun(folder: str) -> tuple[list[str], dict[str, str]]:
    """Return torchrun's command, and its environment."""
    options = ["--standalone", f"--nproc-per-node={file.WORLD_SIZE}", f"--log-dir={folder}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    # a queue.py beside the caller would stand in the way of torch
    environment = {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", **os.environ}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return command, environment


def horovodrun(folder: str) -> tuple[list[str], dict[str, str]]:
    """Return horovodrun's command, and its environment."""
    program = "from horovod.runner.launch import run_commandline; run_commandline()"
    command = [sys.executable, "-c", program, "--gloo", "-np", str(file.WORLD_SIZE), sys.executable]
    return command, {"OMP_NUM_THREADS": "1", **os.environ}


def launch() -> int:
    """Run this file once a rank; return the verdict that rank 0 writes down."""
    with tempfile.TemporaryDirectory() as folder:
        command, environment = file.start(folder)
        note = Path(folder, "verdict")
        environment["VERDICT"] = str(note)
        ranks = subprocess.Popen([*command, __file__], env=environment, start_new_session=True)
        try:
            ranks.wait(file.SECONDS + 30)
        except subprocess.TimeoutExpired:
            print(f"no verdict in {file.SECONDS + 30} s")
        finally:
            if file.WORLD_SIZE > 1:
                ranks.terminate()  # the launcher then kills every rank and what it started
                ranks.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ranks.pid, signal.SIGKILL)
            ranks.wait(60)
        return int(note.read_text()) if note.exists() else 2


def launched() -> int:
    """Return the exit status: of a rank where this is one, else of all, in processes of their own."""
    place = os.environ.get("HOROVOD_RANK") or os.environ.get("RANK")
    if place is None:
        return launch()
    rank, note = int(place), Path(os.environ.get("VERDICT", os.devnull))
    if rank > 0:
        return verdict(rank)
    note.write_text("1")  # should this process not come back
    code = verdict(rank)
    note.write_text(str(code))
    return 0 if "VERDICT" in os.environ else code  # else a launcher reports a crash besides


ALONE = (python, alone)
GLOO = (torchrun, over_gloo)
NCCL = (torchrun, over_nccl)
HOROVOD = (horovodrun, over_horovod)
