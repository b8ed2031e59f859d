"""The options of `pytest --certify`: those of `verified-losses certify`.

pytest loads this module in every run where the package is installed: it imports neither torch nor a package
that is not Python's own or pytest.
"""

from dataclasses import fields
from typing import Any

import pytest

from verified_losses.properties.options import CertifyOptions

PREFIX = "--certify-"
"""How the options begin."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    add = parser.getgroup("certify", "Certify losses").addoption
    add(
        "--certify",
        metavar="TARGET",
        action="append",
        nargs="?",
        help="Verify this loss, package.module:Name or path/to/file.py:Name. Several may be given. Without a "
        "target: those that [tool.verified-losses] in pyproject.toml lists. The following options are those "
        "of `verified-losses certify`; --certify-as is given once for each --certify. Limits are skipped, "
        "findings that --certify-known accepts are xfailed; the seed is else that of --hypothesis-seed.",
    )
    for one in fields(CertifyOptions):
        name = one.name.strip("_").replace("_", "-")
        how: dict[str, Any] = {"metavar": "N" if one.type is int else name.upper()}
        if one.type is int:
            how["type"] = int
        elif one.type is bool:
            how = {"action": "store_true"}
        elif one.type == list[str] | None or name == "as":
            how["action"] = "append"
        add(f"{PREFIX}{name}", dest=_place(name), default=None, help=one.metadata["help"], **how)


def _place(name: str) -> str:
    return f"certify_{name.replace('-', '_')}"


def pytest_configure(config: pytest.Config) -> None:
    """Load the plugin if there is a target."""
    if config.option.certify:
        from verified_losses.properties.ask import pytest_plugin

        config.pluginmanager.register(pytest_plugin)
        return
    given = [
        name
        for name, value in vars(config.option).items()
        if name.startswith("certify_") and value is not None
    ]
    if given:
        raise pytest.UsageError(f"--{given[0].replace('_', '-')}: expected a --certify TARGET beside it")
