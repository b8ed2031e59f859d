"""Whatever a target does, the verdict says so, and neither the certifier nor the next target feels it."""

import time
from pathlib import Path

import psutil
import pytest

from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.certifier import Check, checks, verify
from verified_losses.properties.worlds import specs
from verified_losses.properties.worlds.specs import parse

TERMS = "terms equal the oracle"
SAID = {
    "Exits": "rank 0 exited:\nstatus 3",
    "ExitsAtOnce": "rank 0 exited:\nstatus 4",
    "Crashes": "rank 0 killed:\nSIGSEGV",
    "Interrupts": "KeyboardInterrupt",
    "ForksAndReturnsTwice": "contrastive_loss: expected",
    "AllocatesAtOnce": "can't allocate memory",
    "PrintsAGigabyte": "File too large",
    "SpoilsTorch": "contrastive_loss: expected",
    "ReturnsNothing": "contrastive_loss: expected a torch.Tensor, got NoneType",
    "ReturnsANumber": "contrastive_loss: expected a torch.Tensor, got int",
    "ReturnsNaN": "observed nan",
    "ReturnsThree": "contrastive_loss: expected",
    "ReturnsAConstant": "contrastive_loss: expected",
}


def _check(target: str, law: str = TERMS, world: str = "1") -> Check:
    subject = Subject(target, bias=False, output_dict=False)
    return next(one for one in checks({"it": ("clip", subject)}, parse(world)) if one.law.name == law)


def _right_one_holds() -> None:
    finding = verify(_check("verified_losses:ClipLoss"), 3)
    assert finding.verdict == "holds", finding.reason


@pytest.mark.parametrize("name", SAID)
def test_what_a_target_does_is_said(name: str) -> None:
    finding = verify(_check(f"tests.hostile:{name}"), 3)
    assert finding.verdict == "falsified"
    assert SAID[name] in finding.reason
    assert finding.smallest is not None
    _right_one_holds()


def test_what_a_target_leaves_running_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEFT_BEHIND", str(tmp_path / "pids"))
    check = _check("tests.hostile:LeavesAProcess")
    assert verify(check, 3).verdict == "falsified"
    left = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert left
    assert any(map(psutil.pid_exists, left))
    check.subject.worlds().close()
    deadline = time.monotonic() + 10
    while any(map(_lives, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, left))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("name", "world"), [("Sleeps", "1"), ("Spins", "sim:2"), ("Sleeps", "proc:2"), ("Spins", "proc:2")]
)
def test_a_hang_is_cut_at_the_stated_time(name: str, world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4.0
    monkeypatch.setattr(specs, "RUN_SECONDS", limit)
    check = _check(f"tests.hostile:{name}", world=world)
    check.subject.worlds().start(check.world)
    begun = time.monotonic()
    finding = verify(check, 3)
    assert finding.verdict == "falsified"
    assert finding.hung
    assert "hung" in finding.reason
    assert time.monotonic() - begun < 10 * limit
    _right_one_holds()
