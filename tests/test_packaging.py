"""What is installed, from a wheel and from a tree, and that it leaves a project's own names alone.

Everything is built and installed without the network: the environments here see the packages of this one.
"""

import email
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

import verified_losses

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 240
NAMES = {"verified_losses", "verified_losses_pytest"}
LINKED = {"oracles", "properties"}
FOLDERS = {".github", "benchmarks", "docs", "examples", "peers", "tests", "tools", "verified_losses", *LINKED}
BUILD = (
    "import sys, setuptools.build_meta as backend; [getattr(backend, one)('dist') for one in sys.argv[1:]]"
)

PROJECT = {
    "properties": """
        def labels(rows):
            return list(range(rows))
    """,
    "mine": """
        import torch
        from oracles import SIDES
        from properties import labels
        from torch.nn import functional as F


        class Loss:
            def __call__(self, image_features, text_features, logit_scale):
                logits = logit_scale * image_features @ text_features.T
                own = torch.tensor(labels(len(logits)))
                return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / SIDES
    """,
    "test_own": """
        import sys

        from oracles import SIDES
        from properties import labels


        def test_own():
            assert SIDES == len(labels(2))
            ours = [name for name in sys.modules if name.startswith("verified_losses")]
            assert ours == ["verified_losses_pytest"]
    """,
}


@dataclass(frozen=True)
class Built:
    """A copy of the tree, and what was built from it."""

    tree: Path
    files: list[str]
    """Of the tree, before anything was built or run there."""
    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


def _run(*command: str | Path, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.returncode == status, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    clutter = (".git", ".venv", ".hypothesis", ".*_cache", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(*clutter))
    files = [str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()]
    _run(sys.executable, "-c", BUILD, "build_sdist", "build_wheel", folder=tree)
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    _run(sys.executable, "-c", BUILD, "build_wheel", folder=unpacked)
    (wheel,), (wheel_of_sdist,) = (tree / "dist").glob("*.whl"), (unpacked / "dist").glob("*.whl")
    return Built(tree, files, sdist, wheel, wheel_of_sdist)


def _environment(folder: Path, *installed: str | Path) -> Path:
    """Return the folder of commands of a new environment, which sees the packages of this one."""
    venv.create(folder, symlinks=True)
    base = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", base))
    # a path alone: what is installed here as editable stays out
    (packages / "parent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    command = (
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--ignore-installed",
    )
    _run(folder / "bin" / "python", *command, *installed, folder=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _environment(tmp_path_factory.mktemp("wheel"), built.wheel_of_sdist)


@pytest.fixture(scope="module")
def editable(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _environment(tmp_path_factory.mktemp("editable"), "--editable", built.tree)


@pytest.fixture(params=["wheel", "editable"])
def commands(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def project(pytester: pytest.Pytester) -> Path:
    """A project with modules that are named as ours are."""
    pytester.makepyfile(**PROJECT)
    pytester.mkpydir("oracles").joinpath("__init__.py").write_text("SIDES = 2\n")
    return pytester.path


def _top(names: list[str]) -> set[str]:
    return {PurePosixPath(name).parts[0].removesuffix(".py") for name in names if ".dist-info/" not in name}


def test_wheels_hold_two_top_level_names(built: Built) -> None:
    of_tree, of_sdist = (zipfile.ZipFile(path).namelist() for path in (built.wheel, built.wheel_of_sdist))
    assert _top(of_tree) == NAMES
    assert sorted(of_tree) == sorted(of_sdist)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in of_tree)
    assert {"verified_losses/certificate.json", "verified_losses/py.typed"} <= {*of_tree}
    for name in built.files:
        folder = name.partition("/")[0]
        if folder in LINKED or folder in NAMES:
            assert (f"verified_losses/{name}" if folder in LINKED else name) in of_tree


def test_the_sdist_holds_what_its_tests_read(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert not [name for name, member in members.items() if member.islnk() or member.issym()]
    assert members.keys() >= {"LICENSE", "Makefile", "README.md", "README.zh-CN.md", ".ci/run"}
    at_the_top = {name for name in built.files if "/" not in name} - {".gitignore"}
    assert at_the_top <= members.keys()
    assert {name for name in built.files if name.partition("/")[0] in FOLDERS} <= members.keys()


def test_a_release_has_the_addresses_of_its_repository(built: Built, tmp_path: Path) -> None:
    tree, url = tmp_path / "tree", "https://github.com/somebody/verified-losses"
    shutil.copytree(built.tree, tree, symlinks=True, ignore=shutil.ignore_patterns("dist", "*.egg-info"))
    _run(sys.executable, "tools/addresses.py", url, "v0.1.0", folder=tree)
    _run(sys.executable, "-c", BUILD, "build_sdist", folder=tree)
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        (record,) = (one for one in archive if re.fullmatch(r"[^/]+/PKG-INFO", one.name))
        said = email.message_from_bytes(archive.extractfile(record).read())  # type: ignore[union-attr]
        assert any(one.name.endswith("/PYPI.md") for one in archive)
    assert f"Source, {url}" in said.get_all("Project-URL", [])
    links = re.findall(r"\]\(([^)]+)\)", str(said.get_payload()))
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    files = [link.removeprefix(f"{url}/blob/v0.1.0/").partition("#")[0] for link in links if "/blob/" in link]
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert f"{url}/raw/v0.1.0/docs/finding.svg" in links
    again = _run(sys.executable, "tools/addresses.py", url, "v0.1.0", folder=tree, status=1)
    assert "expected" in again.stderr
    assert (
        "expected the https:// address"
        in _run(
            sys.executable, "tools/addresses.py", "somebody/verified-losses", folder=tree, status=1
        ).stderr
    )


def test_no_name_is_installed_but_two(commands: Path, tmp_path: Path) -> None:
    code = """
from importlib import metadata, util
assert not [name for name in ("oracles", "properties") if util.find_spec(name)]
print(metadata.distribution("verified-losses").read_text("top_level.txt"))
"""
    assert set(_run(commands / "python", "-c", code, folder=tmp_path).stdout.split()) == NAMES


def test_what_is_installed_is_what_was_verified(commands: Path, tmp_path: Path) -> None:
    code = "import verified_losses; print(verified_losses.certificate(device='cpu').answer)"
    answer = _run(commands / "python", "-c", code, folder=tmp_path).stdout.strip()
    assert answer in ("certified", "other environment")


def test_a_project_with_names_of_ours_runs_its_tests(commands: Path, project: Path) -> None:
    done = _run(commands / "python", "-m", "pytest", folder=project)
    assert "1 passed" in done.stdout
    assert "--certify=[TARGET]" in _run(commands / "python", "-m", "pytest", "--help", folder=project).stdout


@pytest.mark.parametrize("target", ["mine.py:Loss", "mine:Loss"])
def test_a_target_that_imports_names_of_ours_is_certified(wheel: Path, project: Path, target: str) -> None:
    asked = ["--as", "clip", "--world", "1", "--max-examples", "2", "--dtype", "float64"]
    done = _run(wheel / "verified-losses", "certify", target, *asked, folder=project)
    assert "checks hold over" in done.stdout


def test_pytest_certifies_a_target_that_imports_names_of_ours(commands: Path, project: Path) -> None:
    asked = ["--certify", "mine.py:Loss", "--certify-as", "clip", "--certify-world", "1"]
    few = ["--certify-max-examples", "2", "--certify-dtype", "float64", "--deselect", "test_own.py"]
    done = _run(commands / "python", "-m", "pytest", *asked, *few, folder=project)
    assert re.search(r" passed, \d+ skipped, 1 deselected", done.stdout), done.stdout


def test_oracles_need_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys
sys.modules["torch"] = None
from verified_losses import oracles
for module in pkgutil.iter_modules(oracles.__path__):
    importlib.import_module(f"verified_losses.oracles.{module.name}")
print(*sys.modules)
"""
    loaded = _run(wheel / "python", "-c", code, folder=tmp_path).stdout.split()
    assert {"verified_losses.oracles.clip", "numpy"} <= set(loaded)


def test_neither_torch_nor_numpy_is_imported_before_a_loss_is_asked_for(wheel: Path, tmp_path: Path) -> None:
    code = """
import sys, verified_losses
def loaded():
    return {"torch", "numpy"} & sys.modules.keys()
assert not loaded(), loaded()
verified_losses.ClipLoss
assert "torch" in loaded()
"""
    _run(wheel / "python", "-c", code, folder=tmp_path)


def test_without_the_extra_the_command_names_it(wheel: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["cyclopts"] = None
from verified_losses.properties.__main__ import main
main()
"""
    done = _run(wheel / "python", "-c", code, "certify", folder=tmp_path, status=2)
    extra, missing = "verified-losses[verify]", "import of cyclopts halted; None in sys.modules"
    said = f"verified-losses: needs the packages of {extra}: pip install '{extra}' ({missing})\n"
    assert (done.stdout, done.stderr) == ("", said)


def test_the_version_is_that_of_the_package(wheel: Path, tmp_path: Path) -> None:
    code = (
        "import verified_losses; from importlib import metadata; print(metadata.version('verified-losses'))"
    )
    shown = _run(wheel / "python", "-c", code, folder=tmp_path).stdout.strip()
    assert shown == verified_losses.__version__


def test_every_public_name_is_listed_and_imported() -> None:
    names: dict[str, object] = {}
    exec("from verified_losses import *", names)
    assert names.keys() - {"__builtins__"} == set(verified_losses.__all__)
    assert {*verified_losses.__all__, "__version__"} <= set(dir(verified_losses))


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match=r"module 'verified_losses' has no attribute 'ClapLoss'"):
        verified_losses.ClapLoss  # noqa: B018
