"""The options of `pytest --certify`: those of `verified-losses certify`.

pytest loads this module in every run where the package is installed: nothing else of the package is imported,
nor is torch, unless an option of it is given, or all are listed.
"""

import copy
from dataclasses import fields
from typing import Any

import pytest

PREFIX = "--certify-"
"""How the options begin."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    """Add the options where one of them, or their list, is asked for."""
    if any(arg.startswith("--certify") or arg in ("-h", "--help") for arg in args):
        _add_options(parser)
        # files among the arguments are told from the options' values
        option = copy.copy(early_config.option)
        early_config.known_args_namespace = parser.parse_known_args(args, namespace=option)


def _add_options(parser: pytest.Parser) -> None:
    from verified_losses.properties.options import CertifyOptions

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
    if getattr(config.option, "certify", None):
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
