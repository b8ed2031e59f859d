"""Targets are loaded as they lie, and what they import and is not installed is stubbed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from verified_losses.properties.standalone import loading
from verified_losses.properties.subjects import Subject, Unresolved, stubbed

LOSS = """
class Loss(torch.nn.Module):
    def forward(self, image_features, text_features, logit_scale):
        return image_features.sum()
"""


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget what a test has loaded."""
    before = dict(sys.modules)
    monkeypatch.setattr(loading.STUBS, "names", [])
    monkeypatch.setattr(loading.STUBS, "folders", [])
    monkeypatch.setattr(loading.BESIDE, "folders", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/').replace('//', '__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def _target(folder: Path, text: str, name: str = "Loss") -> Any:
    (folder / "loss_file.py").write_text(text)
    return Subject(f"{folder / 'loss_file.py'}:{name}").resolve()


def test_what_is_missing_is_stubbed_and_named(tmp_path: Path) -> None:
    text = (
        "import torch, no_such_wandb\nfrom no_such_mmcv.runner import hooks\nimport no_such_ds.ops as ops\n"
    )
    loss = _target(tmp_path, text + LOSS)()
    assert loss(torch.ones(2), None, None) == 2
    assert stubbed() == ("no_such_wandb", "no_such_mmcv", "no_such_ds")


def test_a_file_that_is_named_like_its_package_imports_from_it(tmp_path: Path) -> None:
    file = tmp_path / "no_such_lib" / "no_such_lib.py"
    file.parent.mkdir()
    (file.parent / "__init__.py").touch()
    (file.parent / "rows.py").touch()
    file.write_text("import torch\nfrom no_such_lib import rows\n" + LOSS)
    assert Subject(f"{file}:Loss").resolve()()(torch.ones(2), None, None) == 2


def test_an_import_that_the_file_does_without_is_left_to_it(tmp_path: Path) -> None:
    text = "import torch\ntry:\n    import no_such_hvd\nexcept ImportError:\n    no_such_hvd = None\n"
    _target(tmp_path, text + "assert no_such_hvd is None\n" + LOSS)
    assert stubbed() == ()


@pytest.mark.parametrize(
    "use",
    [
        "no_such.log({})",
        "if no_such.run: pass",
        "no_such.cfg['x']",
        "list(no_such.x)",
        "with no_such.x: pass",
    ],
)
def test_a_stub_that_is_used_in_a_call_names_its_package(tmp_path: Path, use: str) -> None:
    body = LOSS.replace("return", f"{use}\n        return")
    loss = _target(tmp_path, f"import torch, no_such\n{body}")()
    with pytest.raises(ImportError, match="needs no_such, which is not installed"):
        loss(torch.ones(2), None, None)


def test_a_stub_is_a_decorator_a_base_a_type_and_a_value_while_a_file_is_loaded(tmp_path: Path) -> None:
    text = """import torch
from no_such import LOSSES, Base, log, force, Type
from typing import Optional
logger = log.get("x", level=3)
@LOSSES.register_module()
class Loss(Base, metaclass=type):
    @force(apply_to=("x",))
    @log
    def forward(self, x: Optional[Type], y: Type | None, z: "int | Type") -> Type[int]:
        return x.sum() if not isinstance(x, Type) else None
class Asks(Base):
    def forward(self, x, y, z):
        return self.scale_of(x)
class Gives(Base):
    def __init__(self):
        super().__init__(3)
"""
    loss = _target(tmp_path, text)
    assert loss()(torch.ones(2), None, None) == 2
    with pytest.raises(loading.NotInstalled, match="needs no_such"):
        _target(tmp_path, text, "Asks")()(torch.ones(2), None, None)
    with pytest.raises(loading.NotInstalled, match="needs no_such"):
        _target(tmp_path, text, "Gives")()


def test_what_is_installed_and_fails_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "site", broken="import no_such_dependency\n", odd="raise RuntimeError('odd')\n")
    monkeypatch.setattr(loading.sysconfig, "get_paths", lambda: dict.fromkeys(
        ("purelib", "platlib", "stdlib"), str(tmp_path / "site")))  # fmt: skip
    sys.path.append(str(tmp_path / "site"))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        _target(tmp_path, "import torch, broken\n" + LOSS)
    with pytest.raises(RuntimeError, match="odd"):
        _target(tmp_path, "import torch, odd\n" + LOSS)
    assert stubbed() == ()


@pytest.mark.parametrize("with_init", [True, False])
def test_a_file_in_a_package_imports_relatively(tmp_path: Path, with_init: bool) -> None:
    folder = _write(
        tmp_path,
        a_pkg__helpers="two = 2\n",
        a_pkg__losses__near="three = 3\n",
        a_pkg__losses__clip="import torch\nfrom ..helpers import two\nfrom .near import three\n" + LOSS,
    )
    if with_init:
        for one in (folder / "a_pkg", folder / "a_pkg/losses"):
            (one / "__init__.py").write_text("")
    target = Subject(f"{folder}/a_pkg/losses/clip.py:Loss").resolve()
    assert target.__module__ == "a_pkg.losses.clip"
    assert sys.modules["a_pkg.losses.clip"].two == 2
    assert Subject(f"{folder}/a_pkg/losses/clip.py:Loss").resolve() is target


def test_a_package_whose_name_is_taken_has_another(tmp_path: Path) -> None:
    folder = _write(
        tmp_path, json__helpers="two = 2\n", json__clip="import torch\nfrom .helpers import two\n" + LOSS
    )
    import json

    target = Subject(f"{folder}/json/clip.py:Loss").resolve()
    assert sys.modules[target.__module__].two == 2
    assert sys.modules["json"] is json


def test_a_file_finds_the_modules_of_its_repository(tmp_path: Path) -> None:
    text = "import torch\nfrom repo_utils.misc import two\nfrom repo_own import three\n" + LOSS
    folder = _write(
        tmp_path / "repo", repo_utils__misc="two = 2\n", repo_own="three = 3\n", losses__clip=text
    )
    (folder / "setup.py").touch()
    (tmp_path / "beyond.py").touch()
    target = Subject(f"{folder}/losses/clip.py:Loss").resolve()
    assert sys.modules[target.__module__].three == 3
    assert stubbed() == ()
    assert str(tmp_path) not in loading.STUBS.folders


def test_a_file_imports_what_lies_beside_it_before_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "import torch\nfrom no_such_twice import two\nfrom own import three, later\n" + LOSS
    near = "import no_such_site\nthree = 3\ndef later():\n  import no_such_late\n  return no_such_late.four\n"
    folder = _write(
        tmp_path / "repo", loss_file=own, own=near, no_such_twice="two = 2\n", no_such_late="four = 4\n"
    )
    (folder / "no_such_data").mkdir()
    site = _write(
        tmp_path / "site",
        no_such_twice="",
        no_such_late="",
        no_such_data__x="",
        no_such_site="import no_such_data, no_such_third\n",
        no_such_third="",
    )
    (site / "no_such_data" / "__init__.py").touch()
    _write(folder, no_such_third="raise RuntimeError('an installed package imports what is installed')\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    target = Subject(f"{folder}/loss_file.py:Loss").resolve()
    module = sys.modules[target.__module__]
    assert (module.two, module.three, module.later()) == (2, 3, 4)
    assert sys.modules["no_such_data"].__file__ == f"{site}/no_such_data/__init__.py"


def test_a_file_that_is_named_like_a_module_of_python_takes_no_ones_place(tmp_path: Path) -> None:
    _write(tmp_path, wave="import torch, wave\nassert wave.Wave_read\n" + LOSS)
    assert Subject(f"{tmp_path}/wave.py:Loss").resolve()()(torch.ones(2), None, None) == 2
    import wave

    assert wave.Wave_read


def test_a_named_module_is_found_beside_the_caller_before_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "site", no_such_pkg="")
    _write(tmp_path / "here", no_such_pkg="import torch\n" + LOSS)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site"), ""])
    assert Subject("no_such_pkg:Loss").resolve()()(torch.ones(2), None, None) == 2


def test_a_folder_is_asked_once_however_often_a_target_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loaded_often.py").write_text("class Loss: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    for _ in range(3):
        loading.load("loaded_often")
    assert loading.BESIDE.folders == [str(tmp_path)]


def test_a_target_that_reads_the_command_line_as_it_is_loaded_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import argparse, torch\nargs = argparse.ArgumentParser().parse_args()\n" + LOSS
    monkeypatch.setattr(sys, "argv", ["verified-losses", "certify", "x.py:Loss"])
    _target(tmp_path, text)
    assert sys.argv == ["verified-losses", "certify", "x.py:Loss"]


def test_what_is_not_there_is_unresolved(tmp_path: Path) -> None:
    for name, said in (("no_such:Loss", "no module no_such"), (f"{tmp_path}/x.py:Loss", "no file")):
        with pytest.raises(Unresolved, match=said):
            Subject(name).resolve()


def test_files_that_need_no_more_are_loaded_in_few_lines(tmp_path: Path) -> None:
    folder = _write(
        tmp_path, plain="import os\nimport torch.nn\n", stubs="import no_such\n", rel="from . import plain\n"
    )
    assert [loading.is_plain(folder / f"{one}.py") for one in ("plain", "stubs", "rel")] == [
        True,
        False,
        False,
    ]
