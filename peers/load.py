"""Import a peer from build/peers, where `make peers` installs them, without what it trains with."""

import sys
import types
from pathlib import Path

SITE = Path(__file__).parent.parent / "build" / "peers"


def bare(*packages: str) -> None:
    """Let modules of these packages be imported without running the packages' own `__init__`.

    Those import vision models, data sets and trainers that a loss does not need.

    Raises:
        ImportError: a package is not installed.
    """
    for name in packages:
        folder = SITE.joinpath(*name.split("."))
        if not folder.is_dir():
            raise ImportError(f"{name} is not installed in {SITE.name}: make peers installs it", name=name)
        if name not in sys.modules:
            sys.modules[name] = package = types.ModuleType(name)
            package.__path__ = [str(folder)]


if str(SITE) not in sys.path:
    sys.path.append(str(SITE))
