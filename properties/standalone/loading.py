"""Loads the module of a target: by name or by file, with what is not installed stubbed.

Imports no torch, and nothing of the suite: a counterexample quotes it.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from .trainers import trainers

MOST_STUBS = 100
"""How many missing packages a target may have."""
ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
"""A folder with one of these is the top of a repository."""


class NotInstalled(ImportError):
    """The target uses a package that is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"needs {package}, which is not installed", name=package)


class Placeholder:
    """Stands for a name of a package that is not installed.

    While a module is loaded it can be subclassed, called, indexed, and used as a decorator, which returns the
    function or class as it is; asked whether it is true, it is not. Later it raises NotInstalled where it is
    called or asked for its value.
    """

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(self._package, f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._use()
        decorates = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates and not isinstance(args[0], Placeholder) else self

    def __getitem__(self, key: Any) -> Any:
        self._use()
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (absent_base(self._package),)

    def __instancecheck__(self, instance: Any) -> bool:
        return False  # nobody can have made one

    def __subclasscheck__(self, subclass: Any) -> bool:
        return False

    def __bool__(self) -> bool:
        self._use()
        return False  # what a module asks as it is loaded is whether something is there

    def __iter__(self) -> Iterator[Any]:
        return self._raise()

    def __len__(self) -> int:
        return self._raise()

    def __enter__(self) -> Any:
        return self._raise()

    def __exit__(self, *error: object) -> None:
        self._raise()

    def __repr__(self) -> str:
        return f"<{self._name}, a stub: {self._package} is not installed>"

    def _use(self) -> None:
        if not STUBS.loading:
            self._raise()

    def _raise(self) -> NoReturn:
        raise NotInstalled(self._package)


def absent_base(package: str) -> type:
    """Return the class that takes the place of a base class of a package: a module without parts."""
    from torch import nn

    class Absent(nn.Module):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if args or kwargs:  # what the real one makes of them is not known
                raise NotInstalled(package)
            super().__init__()

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("__"):
                    raise
                raise NotInstalled(package) from None

    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    vars(Absent)["__init__"].__signature__ = inspect.Signature([me])  # it takes no arguments
    return Absent


class Stub(ModuleType):
    """A module of a package that is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.partition(".")[0] if self.__name__ not in STUBS.names else self.__name__
        known = trainers(package).get(name)
        return Placeholder(package, f"{self.__name__}.{name}") if known is None else known


class Stubs:
    """Finds the modules that are not installed, once they are known to be missing, and those beside a file.

    Attributes:
        names: what is missing.
        folders: those above loaded files, in which the file's repository may have what it imports.
        loading: whether a module is loaded now.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.folders: list[str] = []
        self.loading = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module is made, after every other finder has found nothing."""
        if path is None and self.loading:
            for folder in self.folders:
                if Path(folder, f"{name}.py").is_file() or any(Path(folder, name).glob("*.py")):
                    return PathFinder.find_spec(name, [folder])
        if any(f"{name}.".startswith(f"{missing}.") for missing in self.names):
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a stub."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stub holds nothing."""


STUBS = Stubs()


class Beside:
    """Finds what a target imports where Python finds it for a script: in its folder before what is installed.

    Modules of Python itself are not taken from there: what else runs in the process needs them.

    Attributes:
        folders: those in which the code of targets lies.
    """

    def __init__(self) -> None:
        self.folders: list[str] = []

    def add(self, folder: str) -> None:
        """Note a folder, which is asked at every import from then on."""
        if folder not in self.folders:
            self.folders.append(folder)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module is made that code in one of the folders imports, if it lies there."""
        if path is not None or name in sys.stdlib_module_names:
            return None
        importer = importing()
        for folder in self.folders:
            own = Path(importer).is_relative_to(folder) and not installed_in(importer)
            if own or importer == __file__:
                spec = PathFinder.find_spec(name, [folder])
                if spec is not None and spec.has_location:  # a folder without code is no module
                    return spec
        return None


BESIDE = Beside()


def importing() -> str:
    """Return the file of the code that is importing now."""
    frame = sys._getframe(2)
    while frame.f_back:
        code = frame.f_code.co_filename
        if not code.startswith("<frozen importlib") and Path(code).parent != Path(importlib.__file__).parent:
            break
        frame = frame.f_back
    return frame.f_code.co_filename


def load(place: str) -> ModuleType:
    """Import a target's module, named or a file; missing packages are stubbed, as they are met.

    Raises:
        ModuleNotFoundError: the module itself is missing, or an installed package lacks what it needs.
    """
    if STUBS not in sys.meta_path:
        sys.meta_path.append(STUBS)
        sys.meta_path.insert(0, BESIDE)
    if not place.endswith(".py") and "" in sys.path:
        BESIDE.add(os.getcwd())
    STUBS.loading, arguments = True, sys.argv
    sys.argv = [place]  # a script that reads its arguments gets none of another's
    try:
        for _ in range(MOST_STUBS):
            try:
                return load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
            except ModuleNotFoundError as error:
                name = error.name or ""
                itself = not place.endswith(".py") and f"{place}.".startswith(f"{name}.")
                if not name or itself or name in STUBS.names or not of_target(error, place):
                    raise
                STUBS.names.append(name)
        raise ImportError(f"{place}: more than {MOST_STUBS} packages are not installed")
    finally:
        STUBS.loading, sys.argv = False, arguments


def of_target(error: BaseException, place: str) -> bool:
    """Whether an import that failed stands in the target's own code, and not in an installed package."""
    importer, trace = "", error.__traceback__
    while trace:
        code = trace.tb_frame.f_code.co_filename
        if not code.startswith("<frozen") and (installed_in(code) or not in_python(code)):
            importer = code
        trace = trace.tb_next
    own = installed_in(str(Path(place).resolve())) if place.endswith(".py") else place.partition(".")[0]
    return installed_in(importer) in ("", own)


def installed_in(file: str) -> str:
    """Return the top-level name of the installed package that a file is of, or nothing."""
    for folder in {sysconfig.get_paths()[one] for one in ("purelib", "platlib")}:
        if Path(file).is_relative_to(folder):
            return Path(file).relative_to(folder).parts[0].removesuffix(".py")
    return ""


def in_python(file: str) -> bool:
    """Whether a file is of Python's own library."""
    return Path(file).is_relative_to(sysconfig.get_paths()["stdlib"])


def member(module: Any, name: str) -> Any:
    """Return what a dotted name is in a module; of a method of objects, the class, called by that method.

    Raises:
        AttributeError: there is nothing of this name.
    """
    owner, found = module, module
    for part in name.split("."):
        owner, found = found, getattr(found, part)
        if inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, part)):
            is_module = any(base.__module__.startswith("torch.nn.") for base in owner.__mro__)
            called = {"forward": found} if is_module else {"forward": found, "__call__": found}
            found = type(owner.__name__, (owner,), {"__module__": owner.__module__, **called})
    return found


def load_file(path: Path) -> ModuleType:
    """Import a file: as a module of its package where it imports relatively, else alone.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    path = path.resolve()
    levels = relative_levels(path)
    name, root = package_of(path, levels)
    if not installed_in(str(path)):
        BESIDE.add(str(root))
    folders = [path.parent]  # of a package, too: last
    if Path(path.parent, f"{path.parent.name}.py").is_file():
        folders.insert(0, path.parents[1])  # where a file is named like its package, the package comes first
    sys.path += [one for one in map(str, folders) if one not in sys.path]
    STUBS.folders += [one for one in above(path) if one not in STUBS.folders]
    if levels:
        top, dot, rest = name.partition(".")
        return importlib.import_module(import_top(top, root) + dot + rest)
    return import_from(f"_subject_{path.stem}_{abs(hash(str(path)))}", path)


def relative_levels(path: Path) -> int:
    """Return how many folders up a file imports from: 0 where it has no relative imports."""
    return levels_in(path.read_bytes())


@functools.cache  # every rank asks at every case, and parsing a long file takes longer than the case
def levels_in(source: bytes) -> int:
    """Return how many folders up a source imports from."""
    imports = [one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.ImportFrom)]
    return max((one.level for one in imports), default=0)


def package_of(path: Path, levels: int) -> tuple[str, Path]:
    """Return the name of a file as a module, and the folder that its topmost package lies in."""
    root, names = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while levels > 0 or (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root, levels = root.parent, levels - 1
    return ".".join(names), root


def above(path: Path) -> list[str]:
    """Return the folders above a file's, as far as the top of its repository."""
    found = []
    for folder in path.parents[:8]:
        found.append(str(folder))
        if any((folder / name).exists() for name in ROOTS):
            return found
    return found[:3]


def import_top(name: str, root: Path) -> str:
    """Import a package of a folder; return its name, which is another where the name is taken."""
    taken, folder = sys.modules.get(name), str(root / name)
    if taken is not None:
        if folder in [str(Path(one).resolve()) for one in getattr(taken, "__path__", [])]:
            return name
        name = f"_subject_{name}_{abs(hash(folder))}"
    import_from(name, Path(folder, "__init__.py"), [folder])
    return name


def import_from(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    """Import a file under a name; it is an empty package where there is no file."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if folders and not path.is_file():
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def is_plain(path: Path) -> bool:
    """Whether a file can be loaded alone: without a package, a repository or stubs."""
    if relative_levels(path):
        return False
    tree = [
        one for one in ast.walk(ast.parse(path.read_bytes())) if isinstance(one, ast.Import | ast.ImportFrom)
    ]
    names = [one.module or "" if isinstance(one, ast.ImportFrom) else one.names[0].name for one in tree]
    tops = {name.partition(".")[0] for name in names}
    return all(top in sys.modules or importlib.util.find_spec(top) is not None for top in tops)
