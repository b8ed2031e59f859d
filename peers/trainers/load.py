"""Finds released trainers in build/trainers, where `make trainers` installs them."""

import sys
from pathlib import Path

SITE = Path(__file__).parents[2] / "build" / "trainers"


def installed(package: str) -> None:
    """Let a package be imported.

    Raises:
        ImportError: it is not installed.
    """
    if not SITE.joinpath(package).is_dir():
        raise ImportError(f"{package} is not installed in build/{SITE.name}: make trainers installs it")
    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))  # last: what the environment has is preferred
