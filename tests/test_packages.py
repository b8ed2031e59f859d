"""What is built, installed into empty environments with what the registry has: `make packages`, some minutes.

tests/test_packaging.py asks most without the network. Here the builds are isolated, and nothing is in an
environment that the package does not ask for.
"""

import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = os.environ.get("TORCH", "torch==2.13.0")
SECONDS = 900
STEP = """
import torch, verified_losses
from verified_losses import ClipLoss

assert verified_losses.certificate(device="cpu").answer in ("certified", "other environment")
torch.manual_seed(0)
image, text = torch.randn(8, 5), torch.randn(8, 7)
towers = torch.nn.ModuleList([torch.nn.Linear(5, 4), torch.nn.Linear(7, 4)])
scale = torch.nn.Parameter(torch.tensor(2.0))
optimizer = torch.optim.SGD([*towers.parameters(), scale], lr=0.1)
normalize = torch.nn.functional.normalize
values = []
for _ in range(2):
    loss = ClipLoss()(normalize(towers[0](image)), normalize(towers[1](text)), scale.exp())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    values.append(loss.item())
assert values[1] < values[0], values
"""
pytestmark = pytest.mark.skipif("PACKAGES" not in os.environ, reason="`make packages` runs it")


def _run(*command: str | Path, folder: Path, status: int = 0) -> str:
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=given | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == status, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source distribution, and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    return folder


def _environment(folder: Path, *installed: str) -> Path:
    """Return the folder of commands of a new environment that holds what is installed, and torch."""
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    _run(*pip, TORCH, folder=folder)  # an unpinned one may take gigabytes
    _run(*pip, *installed, folder=folder)
    return folder / "bin"


def test_what_is_built_fits_the_index(built: Path) -> None:
    assert sorted(file.suffix for file in built.iterdir()) == [".gz", ".whl"]
    said = _run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), folder=built)
    assert said.count("PASSED") == 2


def test_with_torch_alone_a_step_is_trained(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    commands = _environment(tmp_path / "alone", str(wheel))
    there = _run(commands / "python", "-m", "pip", "list", "--format=freeze", folder=tmp_path)
    assert not [name for name in ("hypothesis", "cyclopts", "pytest") if f"{name}==" in there]
    _run(commands / "python", "-c", STEP, folder=tmp_path)
    found = _run(commands / "python", "-m", "verified_losses", "--device", "cpu", folder=tmp_path)
    assert found.startswith("certified: verified_losses ")
    said = subprocess.run(
        [commands / "verified-losses"], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS
    )
    assert (said.returncode, "pip install 'verified-losses[verify]'" in said.stderr) == (2, True)


def test_the_extra_brings_the_command_and_the_plugin(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    commands = _environment(tmp_path / "verify", f"{wheel}[verify]", "pytest")
    asked = ["--loss", "clip", "--world", "1", "--max-examples", "2"]
    assert "checks hold over" in _run(commands / "verified-losses", "certify", *asked, folder=tmp_path)
    options = ["--certify", "verified_losses:ClipLoss", "--certify-as", "clip", "--certify-world", "1"]
    few = ["--certify-max-examples", "2", "-k", "deterministic"]
    assert "1 passed" in _run(commands / "python", "-m", "pytest", *options, *few, folder=tmp_path)


def test_the_source_distribution_runs_a_part_of_its_tests(built: Path, tmp_path: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    tree = tmp_path / archive.name.removesuffix(".tar.gz")
    commands = _environment(tmp_path / "tests", f"{tree}[test]")
    few = ["tests/test_certificate_file.py", "tests/test_oracles.py", "tests/test_transport.py"]
    assert " passed" in _run(commands / "python", "-m", "pytest", "-q", *few, folder=tree)


@pytest.mark.parametrize("page", ["tutorial.md", "zh/tutorial.md"])
def test_what_the_tutorial_shows_is_what_is_printed(page: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / page).read_text()
    (command,) = re.findall(r"^    verified-losses (certify losses.py.*)", text, re.MULTILINE)
    python, shown = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "text"))
    source = ""
    for step, (code, output) in enumerate(zip(python, shown, strict=True)):
        if code.startswith("import"):
            source = code
        else:
            source = source.replace("    labels = torch.arange(len(logits))\n", code)
        (tmp_path / "losses.py").write_text(source)
        asked = [sys.executable, "-m", "verified_losses.properties", *shlex.split(command)]
        given = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(asked, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == int(step < 2), done.stderr
        printed = " ".join(done.stdout.split())
        for part in output.split("\n\n"):  # the smallest case is shown in part
            line = " ".join(part.partition("smallest case: ")[0].split())
            assert line in printed, line
