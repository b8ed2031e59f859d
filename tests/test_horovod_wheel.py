"""What the build of Horovod changes in its source is just what it names, or it stops; and CI runs it."""

import os
import re
import runpy
import shutil
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "horovod_wheel.py"))
EDITS = TOOL["EDITS"]
FILES = sorted({name for _, _, names in EDITS for name in names})


def lines(name: str, new: bool) -> str:
    """What a file of the source has, before or after it is patched."""
    return "\n".join(["before", *(edit[new] for edit in EDITS if name in edit[2]), "after"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in FILES:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines(name, new=False))
    return tmp_path


def test_each_line_is_replaced_once(source: Path) -> None:
    TOOL["patch"](source)
    assert [(source / name).read_text() for name in FILES] == [lines(name, new=True) for name in FILES]


@pytest.mark.parametrize(
    ("name", "old", "new"), [(name, old, new) for old, new, names in EDITS for name in names]
)
@pytest.mark.parametrize("found", ["none", "twice", "new"])
def test_another_source_is_refused(source: Path, name: str, old: str, new: str, found: str) -> None:
    instead = {"none": "", "twice": f"{old}\n{old}", "new": new}[found]
    (source / name).write_text(lines(name, new=False).replace(old, instead))
    with pytest.raises(ValueError, match=f"expected {re.escape(old)} "):
        TOOL["patch"](source)


@pytest.mark.parametrize("old", [edit[0] for edit in EDITS])
def test_one_more_place_is_refused(source: Path, old: str) -> None:
    (source / "another").mkdir()
    (source / "another" / "CMakeLists.txt").write_text(old)
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
    monkeypatch.setitem(TOOL["build"].__globals__, "check_tools", lambda: None)
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


def put_program(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("programs", "compiler", "refusal"),
    [
        ({"c++": "exit 0"}, "", "^make: expected it on PATH"),
        ({"make": ""}, "", r"^CXX: expected a C\+\+20 compiler, got none, nor any of c\+\+, g\+\+, clang"),
        ({"make": "", "c++": "echo too old >&2; exit 1"}, "", r"^c\+\+: expected a C\+\+20 (?s:.*)too old$"),
        ({"make": "", "c++": "exit 0"}, "none -m64", "^none -m64: expected .* No such file or directory"),
        ({"make": "", "g++": "exit 0"}, "", None),
        ({"make": "", "mine": 'test "$1" = -m64'}, "mine -m64", None),
    ],
    ids=["no make", "no compiler", "old compiler", "no such compiler", "right", "chosen"],
)
def test_what_the_build_needs_is_asked_for_first(
    programs: dict[str, str],
    compiler: str,
    refusal: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, text in programs.items():
        put_program(tmp_path / "bin" / name, text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CXX", compiler)
    if refusal is None:
        TOOL["check_tools"]()
        return
    downloads: list[tuple[str, ...]] = []
    monkeypatch.setitem(TOOL["build"].__globals__, "pip", lambda *arguments: downloads.append(arguments))
    with pytest.raises(ValueError, match=refusal):
        TOOL["build"](tmp_path / "wheel")
    assert not downloads


def test_a_build_that_fails_prints_no_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOROVOD_WHEELS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert TOOL["main"]() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("no wheel of Horovod: make: expected it on PATH")


LINT, HOROVOD = (f"--jobs=2 --output-sync=target {made}" for made in ("lint horovod-wheel", "horovod"))


@pytest.mark.parametrize("broken", [LINT, "test", HOROVOD, None])
def test_ci_verifies_horovod_too(broken: str | None, tmp_path: Path) -> None:
    made = ["clean", LINT, "test", HOROVOD]
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    # what CI makes is only named
    put_program(tmp_path / "bin" / "make", f'echo "$*"; test "$*" != "{broken}"')
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (broken is not None), done.stderr
    assert done.stdout.splitlines() == made[: made.index(broken) + 1 if broken else None]
