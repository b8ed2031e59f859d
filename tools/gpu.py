"""Verify on a machine with a GPU: in under eight minutes, with the torch that is there.

    python tools/gpu.py                  # `make gpu`
    python tools/gpu.py --packages 3.12  # no more than install what it needs, for a machine without a network

Certifies all shipped losses on CUDA, runs the tests of devices there, and times the losses. Everything is
written to build/gpu/: certificate.json and certificate.html, those of NCCL worlds, the output of every step,
figures, and summary.json. No torch is installed; what else is missing goes into build/gpu/packages. A step
that fails, or takes longer than it may, does not stop the others. Exit status: 0 all went well, 1 something
did not, 2 there is no torch, no GPU, or something that it needs cannot be installed.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu"
PACKAGES = FOLDER / "packages"
PEERS = ["open_clip_torch==3.3.0", "memeff==0.3.1", "siglip-kernel==0.1.2"]
"""What figures are compared with; without their dependencies, which bring another torch."""
TESTS = [
    "tests/test_devices.py",
    "tests/test_cuda_laws.py::test_shipped_losses_hold_on_a_gpu",
    "tests/test_cuda_laws.py::test_tiles_hold_on_a_gpu",
]
INSTALL_SECONDS = 300
MEMORY_OF_A_WORKER = 8
"""GiB of a GPU that a worker of the tests may take: each has processes with contexts of their own."""


@dataclass(frozen=True)
class Step:
    """A command, and how long it may take."""

    name: str
    command: list[str]
    seconds: float
    needs: str = ""
    """A package without which it is skipped."""


@dataclass(frozen=True)
class Done:
    """What came of a step."""

    name: str
    status: int | None
    """None where it was cut off, or skipped."""
    seconds: float
    said: str


def steps(workers: int) -> list[Step]:
    """Return what is run, the most telling first; together their limits are 460 s."""
    certify = [sys.executable, "-m", "verified_losses.properties", "certify", "--device", "cuda"]

    def written(name: str) -> list[str]:
        files = ["--json", f"{FOLDER / name}.json", "--html", f"{FOLDER / name}.html"]
        return [*files, "--counterexamples", str(FOLDER / "counterexamples")]

    quick = ["--max-examples", "10", "--max-time", "150s"]
    over_nccl = ["--world", "nccl:2", "--max-examples", "5", "--max-time", "80s"]
    tests = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "-k", "cuda", *TESTS]
    figures = [sys.executable, "benchmarks/losses.py", "--device", "cuda"]
    of_sizes = ["--sizes", "8192,32768,65536", "--width", "768,512,1024"]  # each is written as it is measured
    by_size = [*figures, *of_sizes, "--dtype", "bfloat16", "--rounds", "3"]
    return [
        Step("certificate", [*certify, *quick, *written("certificate")], 170),
        Step("tests", tests, 120),
        Step("nccl", [*certify, *over_nccl, *written("nccl")], 100),
        Step("sizes", [*by_size, "--json", str(FOLDER / "sizes.json")], 45, needs="open_clip"),
        Step(
            "figures",
            [*figures, "--seconds", "1", "--json", str(FOLDER / "losses.json")],
            25,
            needs="open_clip",
        ),
    ]


def run(step: Step) -> Done:
    """Run a step in a session of its own, and end all of it when its time is over."""
    if step.needs and importlib.util.find_spec(step.needs) is None:
        return Done(step.name, None, 0.0, f"skipped: {step.needs} is not installed")
    begun = time.monotonic()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, PACKAGES])),
    }
    with (FOLDER / f"{step.name}.txt").open("w") as output:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status: int | None = None
        said = f"cut off after {step.seconds:g} s"
        try:
            status = process.wait(step.seconds)
            said = "passed" if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # what was done is then written
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
    return Done(step.name, status, round(time.monotonic() - begun, 1), said)


def requirements() -> list[str]:
    """Return what is needed besides torch, as pyproject.toml has it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [*extras["verify"], *(one for one in extras["test"] if one.startswith("pytest"))]


def missing() -> list[str]:
    """Return which of these cannot be imported."""
    modules = {one: re.split(r"[<>=;# ]", one)[0].removeprefix("pytest-") for one in requirements()}
    return [one for one, module in modules.items() if importlib.util.find_spec(module) is None]


def install(packages: list[str], python: str = "") -> bool:
    """Install packages where they are looked for, for this or another version of Python; say if it worked."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(PACKAGES)]
    if python:
        pip += ["--only-binary", ":all:", "--python-version", python]
    try:
        return subprocess.run([*pip, *packages], timeout=INSTALL_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def unready() -> str:
    """Return why nothing can be run here, if so; install what can be."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch: give one that has, make gpu PYTHON=..."
    sys.path[:0] = [str(ROOT), str(PACKAGES)]
    from verified_losses.properties import devices

    if absent := devices.absent("cuda:0"):
        return f"no GPU: {absent}"
    lacking = missing()
    if lacking and not install(lacking):
        return f"cannot install {', '.join(lacking)}: run `make gpu-packages` where there is a network"
    if importlib.util.find_spec("open_clip") is None:
        install(["--no-deps", *PEERS])  # without it the figures alone are skipped
    return ""


def main() -> int:
    """Run all steps; return the exit status."""
    parser = argparse.ArgumentParser(description="Verify on a GPU, and time the losses there.")
    parser.add_argument("--packages", metavar="VERSION", help="only install, for this version of Python")
    arguments = parser.parse_args()
    if arguments.packages:
        # not NumPy, which is larger than all the others, and comes with torch
        needed = [one for one in requirements() if not one.startswith("numpy")]
        every = [needed, ["--no-deps", *PEERS]]
        return 0 if all(install(packages, arguments.packages) for packages in every) else 2
    if why := unready():
        print(why, file=sys.stderr)
        return 2
    import torch

    from verified_losses.properties import devices

    FOLDER.mkdir(parents=True, exist_ok=True)
    free = torch.cuda.get_device_properties(0).total_memory / 2**30
    workers = max(1, min(8, os.cpu_count() or 1, int(free / MEMORY_OF_A_WORKER)))
    done = []
    for step in steps(workers):
        print(f"{step.name}: up to {step.seconds:g} s", flush=True)
        done.append(run(step))
        print(f"{step.name}: {done[-1].said}, {done[-1].seconds:g} s", flush=True)
        facts = asdict(devices.facts("cuda:0")) | {"torch": str(torch.__version__)}
        text = json.dumps({"device": facts, "steps": [asdict(one) for one in done]}, indent=1)
        (FOLDER / "summary.json").write_text(text + "\n")
    print(f"written to {FOLDER.relative_to(ROOT)}/")
    return int(any(one.status != 0 for one in done))


if __name__ == "__main__":
    sys.exit(main())
