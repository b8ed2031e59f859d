"""The files of .github/workflows and of Slurm: their commands are read here, and run by `make cluster`."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from verified_losses.properties.ask.fuzz_cli import app
from verified_losses.properties.show.certificate import Certificate, Certificates, decode
from verified_losses.properties.verify.shards import read_shard

from . import services
from .children import LIMIT_SECONDS

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())
SLURM = "munged", "slurmctld", "slurmd", "sbatch"
FEW = {
    "EXAMPLES": "1",
    "WORLD": "1",
    "ROUNDS": "1",
    "FAULTS": "2",
    "INDUCTOR_EXAMPLES": "1",
    "INDUCTOR_WORLD": "1",
}
COMMANDS = {"shard": "run_fuzz", "faults": "certify", "inductor": "certify", "merge": "merge"}
cluster = pytest.mark.skipif("CLUSTER" not in os.environ, reason="`make cluster` runs it")


def _expressions(text: str, known: dict[str, str]) -> str:
    """Replace a workflow's expressions by values; a workflow uses no expressions but these."""
    return re.sub(r"\$\{\{ *(.+?) *\}\}", lambda found: known[found[1]], text)


def _contexts(job: dict[str, Any]) -> list[dict[str, str]]:
    """Return what each job of a matrix knows."""
    matrix = job.get("strategy", {}).get("matrix", {"": [None]})
    ((name, values),) = matrix.items()
    common = {"github.run_number": "7", "strategy.job-total": str(len(values))}
    return [{**common, f"matrix.{name}": str(value)} for value in values]


def _environment(job: dict[str, Any], known: dict[str, str]) -> dict[str, str]:
    given = {**WORKFLOW["env"], **job.get("env", {})}
    return {name: _expressions(value, known) for name, value in given.items()}


def _installed(folder: Path) -> None:
    """Stand in for `make .venv/installed`: the command, as it is here."""
    command = folder / ".venv" / "bin" / "verified-losses"
    command.parent.mkdir(parents=True)
    run = shlex.join([sys.executable, "-m", "verified_losses.properties"])
    path = shlex.quote(f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    command.write_text(f'#!/bin/sh\nPYTHONPATH={path} OMP_NUM_THREADS=1 exec {run} "$@"\n')
    command.chmod(0o755)


def _checks(file: Path) -> list[tuple[str, str, str]]:
    record = decode(file.read_bytes())
    assert record.verdict == "holds"
    certificates = record.certificates if isinstance(record, Certificates) else [record]
    return [(one.target, row.property, row.world) for one in certificates for row in one.properties]


def _all_checks(folder: Path) -> list[tuple[str, str, str]]:
    """Return the checks of a whole run, without running them: as its shards would list them."""
    record = decode((folder / "certificate.json").read_bytes())
    certificates: list[Certificate] = record.certificates if isinstance(record, Certificates) else [record]
    return [
        (one.target, row.property, row.world) for one in certificates if one.shard for row in one.shard.checks
    ]


def test_every_job_of_the_matrix_takes_its_shard() -> None:
    job = WORKFLOW["jobs"]["shard"]
    shards = [read_shard(None, _environment(job, known)) for known in _contexts(job)]
    assert [(shard.index, shard.count) for shard in shards] == [(index, 4) for index in range(4)]
    assert job["strategy"]["fail-fast"] is False, "one shard's finding must not end the others"
    assert WORKFLOW["jobs"]["merge"]["needs"] == "shard"
    assert "cancelled()" in WORKFLOW["jobs"]["merge"]["if"], "it runs where a shard has failed"


@pytest.mark.parametrize("name", WORKFLOW["jobs"])
def test_the_command_line_takes_what_the_workflow_gives(name: str) -> None:
    job = WORKFLOW["jobs"][name]
    known = _contexts(job)[0]
    (run,) = [step["run"] for step in job["steps"] if "verified-losses" in step.get("run", "")]
    environment = _environment(job, known)
    run = re.sub(r"\$\{ROUNDS:\+.*?\}", "", run)  # which the workflow itself does not give
    text = re.sub(r"\$(\w+)", lambda found: environment[found[1]], _expressions(run, known))
    program, *arguments = shlex.split(text.replace("\\\n", ""))
    assert program == ".venv/bin/verified-losses"
    command, _, _ = app.parse_args(arguments, exit_on_error=False, print_error=True)
    assert command.__name__ == COMMANDS[name]


@cluster
def test_the_workflow_runs(tmp_path: Path) -> None:
    """Run its jobs one after another, each in a folder of its own; artifacts are folders too."""
    artifacts = tmp_path / "artifacts"
    for name, job in WORKFLOW["jobs"].items():
        for number, known in enumerate(_contexts(job)):
            folder = tmp_path / f"{name}-{number}"
            folder.mkdir()
            for step in job["steps"]:
                given = {key: _expressions(value, known) for key, value in step.get("with", {}).items()
                         if isinstance(value, str)}  # fmt: skip
                action = step.get("uses", "").partition("@")[0]
                if action == "actions/upload-artifact":
                    shutil.copytree(folder / given["path"], artifacts / given["name"])
                elif action == "actions/download-artifact":
                    for artifact in artifacts.glob(given["pattern"]):
                        shutil.copytree(artifact, folder / given["path"], dirs_exist_ok=True)
                elif step.get("name") == "install":
                    assert step["run"] == "make .venv/installed"
                    _installed(folder)
                elif "run" in step:
                    command = ["bash", "-e", "-c", _expressions(step["run"], known)]
                    environment = {**os.environ, **_environment(job, known), **FEW}
                    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=LIMIT_SECONDS)
                else:
                    assert action in ("actions/checkout", "actions/setup-python")
    whole = _all_checks(artifacts / "shard-1" / "1")
    assert _checks(artifacts / "nightly" / "certificate.json") == whole
    assert {file.name for file in (artifacts / "nightly").iterdir()} == {
        "certificate.json", "junit.xml", "report.html",
    }  # fmt: skip


@contextlib.contextmanager
def _cluster(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Start a Slurm; yield a folder with the examples and the command, and the environment."""
    folder, slurm = tmp_path / "run", tmp_path / "slurm"
    folder.mkdir()
    slurm.mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples")
    _installed(folder)
    with services.slurm(slurm) as environment:
        yield folder, environment


@cluster
@pytest.mark.skipif(bool(services.missing(*SLURM)), reason=services.missing(*SLURM))
def test_a_job_array_of_slurm_runs(tmp_path: Path) -> None:
    with _cluster(tmp_path) as (folder, environment):
        submit = ["examples/nightly_slurm.sh", "--array", "3-5:2"]  # numbered otherwise than from 1
        done = subprocess.run(
            submit,
            cwd=folder,
            env=environment | FEW,
            text=True,
            timeout=60,
            check=True,
            stdout=subprocess.PIPE,
        )
        array = int(done.stdout) - 1
        merged = folder / "build" / "nightly" / f"{array}-merged"
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (merged / "junit.xml").exists():
            assert time.monotonic() < deadline, _said(folder)
            time.sleep(0.5)
    parts = folder / "build" / "nightly" / f"{array}"
    assert sorted(one.name for one in parts.iterdir()) == ["3", "5"]
    assert _checks(merged / "certificate.json") == _all_checks(parts / "3")
    assert decode((merged / "certificate.json").read_bytes()).verdict == "holds"


@cluster
@pytest.mark.skipif(bool(services.missing(*SLURM)), reason=services.missing(*SLURM))
def test_a_shard_that_slurm_cancels_leaves_what_it_has(tmp_path: Path) -> None:
    with _cluster(tmp_path) as (folder, environment):
        (folder / "build").mkdir()
        command = ["sbatch", "--parsable", "--array", "1-2", "examples/nightly.sbatch"]
        given = environment | {"EXAMPLES": "100000", "WORLD": "1"}
        done = subprocess.run(
            command, cwd=folder, env=given, text=True, timeout=60, check=True, stdout=subprocess.PIPE
        )
        array = int(done.stdout)
        files = [folder / "build" / "nightly" / f"{array}" / f"{n}" / "certificate.json" for n in (1, 2)]
        deadline = time.monotonic() + LIMIT_SECONDS
        while not all(file.exists() for file in files):
            assert time.monotonic() < deadline, _said(folder)
            time.sleep(0.5)
        cancel = ["scancel", "--batch", "--signal", "TERM", f"{array}"]
        subprocess.run(cancel, env=environment, timeout=60, check=True)
        while b"SIGTERM in round" not in files[0].read_bytes() + files[1].read_bytes():
            assert time.monotonic() < deadline, _said(folder)
            time.sleep(0.5)


def _said(folder: Path) -> str:
    return "\n".join(file.read_text() for file in folder.glob("build/*.out"))
