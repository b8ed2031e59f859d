"""Branches of a target, seen by `sys.monitoring`, or, where Python has none, by a stand-in of it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest

from verified_losses.properties.fuzz import branches

TARGET = """
import other

def loss(rows):
    if rows > 2:
        return other.twice(rows)
    for row in range(rows):
        rows += row
    return rows
"""
OTHER = "def twice(rows):\n    return 2 * rows if rows > 5 else rows\n"
SCRIPT = """
import importlib.util, sys
sys.path.insert(0, sys.argv[2])
spec = importlib.util.spec_from_file_location("branches", sys.argv[1])
branches = importlib.util.module_from_spec(spec)
spec.loader.exec_module(branches)
import target
def taken(*rows):
    branches.watch(0, 1, sys.argv[3])
    for one in rows:
        target.loss(one)
    return branches.taken(0, 1)
few = taken(1)
assert few and few == taken(1) == taken(1, 1), (few, taken(1))
more = taken(1, 3)
assert set(few) < set(more), (few, more)
assert (set(taken(1, 3, 7)) > set(more)) == (sys.argv[4] == "with others"), taken(1, 3, 7)
target.loss(7)
assert branches.taken(0, 1) == taken(1, 3, 7), "a branch was noted though nothing was to be"
"""


@pytest.mark.skipif(not branches.available(), reason=branches.MISSING)
@pytest.mark.parametrize(("place", "others"), [("target", "with others"), ("target.py", "without")])
def test_the_branches_of_a_target_are_noted(tmp_path: Path, place: str, others: str) -> None:
    (tmp_path / "target.py").write_text(TARGET)
    (tmp_path / "other.py").write_text(OTHER)
    where = str(tmp_path / place) if place.endswith(".py") else place
    command = [sys.executable, "-c", SCRIPT, branches.__file__, str(tmp_path), where, others]
    subprocess.run(command, timeout=60, check=True)


class _Monitoring:
    """Stands in for `sys.monitoring`: a test says which branches are taken."""

    DISABLE = object()
    events = SimpleNamespace(BRANCH=4)

    def __init__(self, holder: str | None = None) -> None:
        self.holder, self.callback, self.on = holder, None, 0
        self.disabled: set[tuple[CodeType, int]] = set()

    def get_tool(self, tool: int) -> str | None:
        return self.holder

    def use_tool_id(self, tool: int, name: str) -> None:
        self.holder = name

    def register_callback(self, tool: int, event: int, callback: Callable[..., Any]) -> None:
        self.callback = callback

    def set_events(self, tool: int, events: int) -> None:
        self.on = events

    def restart_events(self) -> None:
        self.disabled.clear()

    def branch(self, code: CodeType, instruction: int, destination: int) -> None:
        if self.on and self.callback and (code, instruction) not in self.disabled:
            answer = self.callback(code, instruction, destination)
            if answer is self.DISABLE:
                self.disabled.add((code, instruction))


@pytest.fixture
def monitoring(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Monitoring]:
    stand_in = _Monitoring()
    monkeypatch.setattr(sys, "monitoring", stand_in, raising=False)
    yield stand_in
    branches._taken.clear()
    branches._directions.clear()


MINE = compile("def loss(): pass", "/somewhere/mine.py", "exec")
THEIRS = compile("def other(): pass", "/somewhere/else.py", "exec")


def test_both_directions_of_a_branch_are_noted_once_and_no_others(monitoring: _Monitoring) -> None:
    branches.watch(0, 1, "/somewhere/mine.py")
    for destination in (8, 8, 20, 8):
        monitoring.branch(MINE, 4, destination)
        monitoring.branch(THEIRS, 4, destination)
    assert branches.taken(0, 1) == ["<module>:4>8", "<module>:4>20"]
    assert monitoring.disabled == {(MINE, 4), (THEIRS, 4)}
    monitoring.branch(MINE, 6, 8)
    assert len(branches.taken(0, 1)) == 2
    branches.watch(0, 1, "/somewhere/mine.py")
    assert branches.taken(0, 1) == []
    branches.watch(0, 1, "/somewhere/mine.py")
    monitoring.branch(MINE, 4, 8)
    assert branches.taken(0, 1) == ["<module>:4>8"]


def test_another_tool_keeps_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    other = _Monitoring("a profiler")
    monkeypatch.setattr(sys, "monitoring", other, raising=False)
    branches.watch(0, 1, "/somewhere/mine.py")
    other.branch(MINE, 4, 8)
    assert branches.taken(0, 1) == []
    assert other.on == 0


def test_nothing_is_noted_where_python_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "monitoring", raising=False)
    assert not branches.available()
    branches.watch(0, 1, "/somewhere/mine.py")
    assert branches.taken(0, 1) == []


def test_a_target_is_watched_with_the_files_beside_it_and_without_this_suite() -> None:
    import verified_losses

    folder = Path(verified_losses.__file__).parent
    files = branches._files("verified_losses")
    assert str(folder / "clip.py") in files
    assert not any(str(folder / "properties" / "cases.py").startswith(file) for file in files)
    assert branches._files("a_module_that_nobody_has_imported") == ()
