"""What the build of Horovod changes in its source is just what it names, or it stops."""

import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "horovod_wheel.py"))
PATCHED, OLD, NEW = TOOL["PATCHED"], TOOL["OLD"], TOOL["NEW"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in PATCHED:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"before\n{OLD}\nafter\n")
    return tmp_path


def test_each_line_is_replaced_once(source: Path) -> None:
    TOOL["patch"](source)
    assert [(source / name).read_text() for name in PATCHED] == [f"before\n{NEW}\nafter\n"] * 2


@pytest.mark.parametrize("name", PATCHED)
@pytest.mark.parametrize("text", ["", f"{OLD}\n{OLD}\n", NEW])
def test_another_source_is_refused(source: Path, name: str, text: str) -> None:
    (source / name).write_text(text)
    with pytest.raises(ValueError, match="expected set"):
        TOOL["patch"](source)


def test_one_more_place_is_refused(source: Path) -> None:
    (source / "another").mkdir()
    (source / "another" / "CMakeLists.txt").write_text(OLD)
    with pytest.raises(ValueError, match=r"another/CMakeLists\.txt"):
        TOOL["patch"](source)


def test_the_wheel_is_told_apart_by_torch_and_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOROVOD_WHEELS", str(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.99.0+cpu")
    wheel = TOOL["cached"]()
    assert wheel.parent == tmp_path
    assert wheel.name.startswith("horovod-0.28.1+torch2.99.0.cpu-cp3")
