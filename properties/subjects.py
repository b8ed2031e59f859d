"""The implementation under test: its target, and the options it is verified with. Imports no torch."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .names import CONTRACTS, CONVENTIONS, DTYPES, LOSSES, STRIDES
from .worlds.specs import Worlds, worlds_of


class Target(NamedTuple):
    """Where an implementation is imported from."""

    place: str
    """A module, package.module, or a file, path/to/file.py."""
    name: str

    @classmethod
    def of(cls, text: str) -> "Target":
        """Read "package.module:Name" or "path/to/file.py:Name"; a missing part is empty."""
        place, _, name = text.rpartition(":")
        return cls(place, name)

    def __str__(self) -> str:
        return f"{self.place}:{self.name}"

    @property
    def file(self) -> Path | None:
        """The file, where it is one."""
        return Path(self.place) if self.place.endswith(".py") else None


@dataclass(frozen=True)
class Subject:
    """An implementation bound to a contract.

    Args:
        target: "package.module:Name" or "path/to/file.py:Name".
        conventions: which conventions it is held to.
        even: it asks for equally many rows on every rank.
        dtypes: the dtypes of its inputs.
        strides: memory layouts of its inputs.
        options: constructor arguments to pin.
        bias: it takes a logit bias.
        output_dict: it can be asked for a dict.
        large: it is to meet batches of more than 2,048 pairs, which take seconds each.
    """

    target: str
    conventions: tuple[str, ...] = ("exact",)
    even: bool = False
    dtypes: tuple[str, ...] = DTYPES
    strides: tuple[str, ...] = STRIDES
    options: tuple[tuple[str, Any], ...] = ()
    bias: bool = True
    output_dict: bool = True
    large: bool = False

    def worlds(self) -> Worlds:
        """Return the worlds of the target, apart from those of any other."""
        return worlds_of(self.target, self.resolve)

    def resolve(self) -> Any:
        """Import the target.

        Raises:
            Unresolved: there is nothing of this name.
            Exception: the target's module raised it as it was imported.
        """
        target = Target.of(self.target)
        if not target.place or not target.name:
            raise Unresolved(f"expected MODULE:NAME or FILE.py:NAME, got {self.target!r}")
        module = _load_file(target.file) if target.file else _load_module(target.place)
        if not hasattr(module, target.name):
            raise Unresolved(f"there is no {target.name} in {target.place}")
        return getattr(module, target.name)


SHIPPED: dict[str, tuple[str, Subject]] = {
    label: (
        loss.contract,
        Subject(
            f"verified_losses:{loss.name}",
            CONVENTIONS if "convention" in CONTRACTS[loss.contract] else ("exact",),
            options=loss.options,
        ),
    )
    for label, loss in LOSSES.items()
}
"""The certified losses by name: their contract, and where to import them."""


class Unresolved(Exception):
    """There is no such target; the message names the missing module or attribute."""


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise Unresolved(f"there is no module {error.name}") from error
        raise  # the module is there; an import of its own is missing


def _load_file(path: Path) -> ModuleType:
    key = f"_subject_{path.stem}_{abs(hash(str(path.resolve())))}"
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # as python does: it may import the files beside it
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise Unresolved(f"there is no file {path}")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[key])
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]
