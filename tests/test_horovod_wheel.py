"""What the build of Horovod changes in its source is just what it names, or it stops; and when CI runs it."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "horovod_wheel.py"))
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


def test_another_archive_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(*arguments: str) -> None:
        (tmp_path / "horovod-0.28.1.tar.gz").write_bytes(b"another")

    monkeypatch.setitem(TOOL["unpack"].__globals__, "pip", download)
    got = sha256(b"another").hexdigest()
    with pytest.raises(ValueError, match=f"expected SHA-256 {TOOL['SDIST_SHA256']}, got {got}"):
        TOOL["unpack"](tmp_path)


@pytest.mark.parametrize(
    ("name", "holds", "refusal"),
    [
        ("horovod-0.28.1+torch0.0-cp311-cp311-any.whl", "horovod/torch/mpi_lib_v2.so", "got"),
        (None, "horovod/common/mpi_lib.so", "it has no extension for torch"),
        (None, "horovod/torch/mpi_lib_v2.so", None),
    ],
    ids=["another wheel", "without torch", "right"],
)
def test_a_wheel_is_kept_only_if_it_is_right(
    name: str | None,
    holds: str,
    refusal: str | None,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOROVOD_WHEELS", str(tmp_path / "kept"))
    kept: Path = TOOL["cached"]()

    def pip(command: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        (folder,) = [text for text in arguments if text.startswith("--wheel-dir=")] or [None]
        if folder:
            built = Path(folder.removeprefix("--wheel-dir=")) / (name or kept.name)
            with zipfile.ZipFile(built, "w") as wheel:
                wheel.writestr(holds, "")

    monkeypatch.setitem(TOOL["build"].__globals__, "pip", pip)
    monkeypatch.setitem(TOOL["build"].__globals__, "unpack", lambda folder: source)
    if refusal is None:
        TOOL["build"](kept)
        assert list(kept.parent.iterdir()) == [kept]
    else:
        with pytest.raises(ValueError, match=refusal):
            TOOL["build"](kept)
        assert not kept.parent.exists()


def test_the_wheel_is_told_apart_by_torch_and_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOROVOD_WHEELS", str(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.99.0+cpu")
    wheel = TOOL["cached"]()
    assert wheel.parent == tmp_path
    assert wheel.name.startswith("horovod-0.28.1+torch2.99.0.cpu-cp3")


@pytest.mark.parametrize(
    ("wheel", "asked", "verified"),
    [(True, "", True), (False, "1", True), (False, "", False), (True, "1", True)],
)
def test_ci_verifies_horovod_or_says_aloud_that_it_did_not(
    wheel: bool, asked: str, verified: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (".ci/run", "tools/horovod_wheel.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    # what CI makes is only named
    for name, does in (
        ("bin/make", 'echo "make $* HOROVOD=$HOROVOD"'),
        (".venv/bin/python", f'exec {sys.executable} "$@"'),
    ):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    monkeypatch.setenv("HOROVOD_WHEELS", str(tmp_path))
    if wheel:
        TOOL["cached"]().touch()
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOROVOD": asked,
    }
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "make test HOROVOD=" in said
    assert (f"make horovod HOROVOD={asked}" in said) == verified
    assert ("NOT VERIFIED: Horovod" in done.stdout) != verified
