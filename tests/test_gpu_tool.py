"""What verifies on a GPU: its steps, as far as they can be run without one."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from verified_losses.properties import devices

from . import helpers

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = helpers.tool("gpu")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_without_a_gpu_it_ends_with_a_line() -> None:
    if devices.absent("cuda:0") is None:
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu.py")], capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("no GPU: cuda:0: ")
    assert len(done.stderr.splitlines()) == 1


def test_its_steps_end_within_eight_minutes(tool: ModuleType) -> None:
    assert (
        sum(step.seconds + 20 for step in tool.steps(4)) <= 8 * 60 + 80
    )  # the time after which each is cut off
    assert sum(step.seconds for step in tool.steps(4)) <= 8 * 60


def test_a_step_that_fails_does_not_stop_the_others(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = [sys.executable, "-c"]
    steps = [
        tool.Step("fails", [*python, "raise SystemExit(3)"], 60),
        tool.Step("hangs", [*python, "import time; time.sleep(1000)"], 1),
        tool.Step("lacks", [*python, ""], 60, needs="no_such_package"),
        tool.Step("passes", [*python, "print('figures')"], 60),
    ]
    monkeypatch.setattr(tool, "steps", lambda workers: steps)
    monkeypatch.setattr(tool, "unready", lambda: "")
    monkeypatch.setattr(devices, "facts", lambda device: devices.Facts("GPU"))
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: type("", (), {"total_memory": 2**33})
    )
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    begun = time.monotonic()
    assert tool.main() == 1
    assert time.monotonic() - begun < 60
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [one["said"] for one in summary["steps"]] == [
        "exit status 3", "cut off after 1 s", "skipped: no_such_package is not installed", "passed"
    ]  # fmt: skip
    assert (tmp_path / "passes.txt").read_text() == "figures\n"
    assert summary["device"]["name"] == "GPU"
