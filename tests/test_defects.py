"""Every law catches the defects planted for it, and every law has one; right variants are never accused.

Here each defect meets the laws expected to catch it alone; `make defects` certifies it as a whole.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from verified_losses.properties.certifier import Check, checks, compared, verify
from verified_losses.properties.laws import laws
from verified_losses.properties.worlds.specs import parse

from .children import LIMIT_SECONDS, started, wait_until
from .defects.index import DEFECTS, EXCEPTED, RIGHT, Planted
from .defects.report import EXAMPLES, reason_if_falsified

BUDGET = 4 * EXAMPLES
"""What the command draws differs with its seed: a defect that it catches now and then must be caught here."""
FEW = 3
SEEDS = 6
"""Of a defect that the budget catches with some seeds alone, in one law and world."""


def _checks(planted: Planted, worlds: str) -> list[Check]:
    return list(checks({planted.id: (planted.contract, planted.subject)}, parse(worlds)))


@pytest.mark.parametrize("planted", DEFECTS, ids=lambda planted: planted.id)
def test_caught(planted: Planted) -> None:
    planned = {check.law.name: check for check in _checks(planted, planted.world)}
    for law in planted.caught_by:
        seeds = range(1 if planted.seeds == 1 else SEEDS)
        reasons = (reason_if_falsified(planned[law], BUDGET, seed) for seed in seeds)
        reason = next(filter(None, reasons), "")
        assert reason, f"{law} holds"
        assert planted.explains(reason), reason


@pytest.mark.parametrize("planted", [d for d in DEFECTS if d.smallest], ids=lambda planted: planted.id)
def test_counterexample_is_the_smallest(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    # however busy the machine is
    monkeypatch.setattr("verified_losses.properties.certifier.SHRINK_SECONDS", 60.0)
    (check,) = [one for one in _checks(planted, planted.world) if one.law.name == planted.caught_by[0]]
    finding = verify(check, BUDGET)
    assert planted.is_smallest(compared(finding.smallest)), finding.counterexample


@pytest.mark.filterwarnings("ignore")  # what torch deprecates they may use
@pytest.mark.parametrize("planted", RIGHT, ids=lambda planted: planted.id)
def test_right_variants_are_never_accused(planted: Planted) -> None:
    for check in _checks(planted, "1,sim:2-8"):
        finding = verify(check, FEW)
        assert finding.verdict == "holds", f"{finding.reason}\n{finding.counterexample}"


def test_every_law_catches_a_defect() -> None:
    assert {law for planted in DEFECTS for law in planted.caught_by} == {law.name for law in laws()}


def test_ids_are_unique() -> None:
    ids = [planted.id for planted in [*DEFECTS, *RIGHT]]
    assert len(ids) == len(set(ids))
    assert len(DEFECTS) >= 120
    assert len(RIGHT) >= 30


def test_what_is_left_out_says_why() -> None:
    assert all(reason for reason in EXCEPTED.values())


def test_a_report_that_is_terminated_leaves_no_process(tmp_path: Path) -> None:
    endless = ["--only", "right:LogSumExp", "--max-examples", "1000000", "--world", "1"]
    out = str(tmp_path / "defects.json")
    command = [sys.executable, "-m", "tests.defects.report", *endless, "--out", out]
    with started(command) as running:
        family: list[psutil.Process] = []

        def certifies() -> bool:
            family[:] = psutil.Process(running.pid).children(recursive=True)
            # the rank that the loss runs in has a session of its own, and descends from a worker
            with contextlib.suppress(ProcessLookupError):
                return any(os.getsid(one.pid) == one.pid for one in family)
            return False

        wait_until(certifies, running)
        running.terminate()
        assert running.wait(LIMIT_SECONDS) == -signal.SIGTERM
        _, alive = psutil.wait_procs(family, LIMIT_SECONDS)
        try:
            assert not alive
        finally:
            for one in alive:
                one.kill()
