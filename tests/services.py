"""Services that a test starts for itself, on this machine alone: Slurm and Redis, from Debian's packages."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from .children import kill_with_descendants, started

LOCALHOST = "127.0.0.1"
START_SECONDS = 60.0
PACKAGES = {
    "redis-server": "redis-server",
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "ip": "iproute2",
}
"""By program: the package of Debian that has it."""


def missing(*programs: str) -> str:
    """Return which programs are not installed, and how they are; empty if none is missing."""
    packages = [PACKAGES[one] for one in programs if shutil.which(one) is None]
    return f"needs {', '.join(packages)}: apt-get install {' '.join(packages)}" if packages else ""


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind((LOCALHOST, 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def redis(folder: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    """Run a Redis that keeps nothing; yield it once it answers."""
    command = ["redis-server", "--port", str(port), "--bind", LOCALHOST, "--save", "", "--dir", str(folder)]
    with started(command, stdout=subprocess.DEVNULL) as process:

        def answers() -> bool:
            with socket.create_connection((LOCALHOST, port), 1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(5) == b"+PONG"

        _await(answers, process)
        yield process


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run a Slurm of one node, this machine; yield the environment in which its commands find it."""
    configuration = _configured(folder)
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = [
        *("munged", "--foreground", "--force", f"--key-file={folder}/munge.key"),
        *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
        *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
    ]
    with contextlib.ExitStack() as running:

        def run(command: Sequence[str], ready: Callable[[], bool]) -> None:
            log = running.enter_context((folder / f"{command[0]}.out").open("w"))
            process = started(command, env=environment, stdout=log, stderr=log)
            _await(ready, running.enter_context(process))

        def idle() -> bool:
            asked = ["sinfo", "--noheader", "--format", "%T"]
            answer = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=20)
            return answer.stdout.strip() == "idle"

        def reached() -> bool:
            return (
                subprocess.run(
                    ["scontrol", "ping"], env=environment, capture_output=True, timeout=20
                ).returncode
                == 0
            )

        run(munge, (folder / "munge.socket").is_socket)
        run(["slurmctld", "-D"], reached)
        run(["slurmd", "-D"], idle)
        try:
            yield environment
        finally:
            _end_steps(configuration)


def _end_steps(configuration: Path) -> None:
    """Kill the daemons of jobs, which are nobody's children, with what they started."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("slurmstepd") and _is_of(process, configuration):
                kill_with_descendants(process)


def _is_of(process: psutil.Process, configuration: Path) -> bool:
    # its environment as it lies there: the title that it has given itself has moved the first of it
    with contextlib.suppress(OSError):
        return f"SLURM_CONF={configuration}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    return False


def _configured(folder: Path) -> Path:
    """Write a configuration under which all lies in one folder, and one user runs all."""
    host, user = socket.gethostname().partition(".")[0], "root" if os.getuid() == 0 else str(os.getuid())
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munged refuses a folder that others can write
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    lines = {
        "ClusterName": "test", "SlurmctldHost": f"{host}({LOCALHOST})", "SlurmctldPort": free_port(),
        "SlurmdPort": free_port(), "SlurmUser": user, "SlurmdUser": user, "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket", "CredType": "cred/munge",
        "StateSaveLocation": folder / "state", "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid", "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none", "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU", "MpiDefault": "none",
        "ReturnToService": 2, "KillWait": 5,
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,bf_interval=1",
    }  # fmt: skip
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    node = f"NodeName={host} NodeAddr={LOCALHOST} CPUs={os.cpu_count()} State=UNKNOWN\n"
    partition = "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # it asks for one; no plugin here uses it
    (folder / "slurm.conf").write_text(text + node + partition)
    return folder / "slurm.conf"


def _await(ready: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until a service answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if ready():
                return
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} does not answer within {START_SECONDS:g} s"
        time.sleep(0.1)
