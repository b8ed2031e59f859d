"""Hypothesis profiles: "gate" draws the same cases in every run, "nightly" many and new ones."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import settings

from verified_losses.properties import devices
from verified_losses.properties.standalone.interpreter import import_interpreted
from verified_losses.properties.worlds import specs

from . import standin

for name in [*os.environ]:  # a test is of the whole, wherever the suite runs
    if name.startswith("SLURM_ARRAY_") or name == "VERIFIED_LOSSES_SHARD":
        del os.environ[name]

pytest_plugins = ["pytester"]

settings.register_profile("gate", derandomize=True, database=None, deadline=None)
settings.register_profile("nightly", max_examples=100_000, database=None, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Run one worker more than there are cores with `-n auto`: in many tests a worker waits for ranks."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores + 1


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load the stand-in before a test derives anything: autograd counts devices once."""
    if any("standin" in item.name for item in session.items):
        with contextlib.suppress(pytest.skip.Exception):  # which the test itself says
            standin.load()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets run in this process, and nothing is started for them."""
    monkeypatch.setattr(specs.Worlds, "isolated", lambda self, inner, spec, patience=1.0: inner)
    monkeypatch.setattr(specs.Worlds, "start", lambda self, spec, patience=1.0: None)
    among = importlib.import_module("verified_losses.properties.verify.among")
    monkeypatch.setattr(among, "run_processes", lambda *_: among.Ran())


@pytest.fixture(params=["cpu", "standin:0", "cuda:0"], ids=["cpu", "standin", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device, in each of them that is here: the CPU, a stand-in for a GPU, the first GPU."""
    name: str = request.param
    if name.startswith("standin"):
        standin.load()
        monkeypatch.setitem(devices.KINDS, "standin", standin.KIND)
    if absent := devices.absent(name):
        pytest.skip(absent)
    return name


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """Return the losses' kernels, which Triton's interpreter runs."""
    pytest.importorskip("triton", reason="triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        known = sys.modules.get("verified_losses.kernels")
        if known is None or not known.INTERPRETED:
            import_interpreted()
        from verified_losses import kernels

        if not kernels.INTERPRETED:
            importlib.reload(kernels)
        yield kernels
