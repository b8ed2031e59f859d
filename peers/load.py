"""Import a peer from build/peers, where `make peers` installs them, without their other dependencies."""

import sys
import types
from pathlib import Path

SITE = Path(__file__).parent.parent / "build" / "peers"


def installed(package: str) -> Path:
    """Return the folder of a package or subpackage, once what lies beside it can be imported.

    Raises:
        ImportError: it is not installed.
    """
    folder = SITE.joinpath(*package.split("."))
    if not folder.is_dir():
        raise ImportError(f"{package} is not installed in build/{SITE.name}: make peers installs it")
    if str(SITE) not in sys.path:
        # last, as what the environment has is preferred; but the folder of an adapter named like a peer
        adapters = str(Path(__file__).parent / "adapters")
        sys.path.insert(sys.path.index(adapters) if adapters in sys.path else len(sys.path), str(SITE))
    return folder


def bare(*packages: str) -> None:
    """Let modules of these packages be imported without running the packages' own `__init__`.

    Those import vision models, data sets and trainers that a loss does not need.

    Raises:
        ImportError: a package is not installed.
    """
    for name in packages:
        folder = installed(name)
        if name not in sys.modules:
            sys.modules[name] = package = types.ModuleType(name)
            package.__path__ = [str(folder)]
