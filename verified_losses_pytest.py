"""The options of `pytest --certify`.

pytest loads this module in every run where the package is installed: it imports nothing of the package unless
`--certify` is given.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options: those of `verified-losses certify`."""
    add = parser.getgroup("certify", "Certify losses").addoption
    add(
        "--certify",
        metavar="TARGET",
        action="append",
        help="Verify this loss, package.module:Name or path/to/file.py:Name. Several may be given.",
    )
    add(
        "--certify-as",
        metavar="CONTRACT",
        action="append",
        help="What it must do, as `verified-losses certify --as`. One for each --certify.",
    )
    add("--certify-convention", metavar="NAME", help="Which gradients: exact (default) or open_clip.")
    add("--certify-config", metavar="NAME=VALUE,...", help="Options of the loss to pin.")
    add("--certify-call", metavar="EXPRESSION", help="How it is called, as 'target(scale * text @ image.T)'.")
    add(
        "--certify-parameter",
        metavar="NAME=VALUE",
        action="append",
        help="What the module holds itself, as logit_scale=exp(t_prime).",
    )
    add("--certify-features", metavar="KIND", help="What it does with rows: raw, normalized or unit.")
    add("--certify-widths", metavar="WIDTHS", help="Of features that it takes, as 16,32. Default: any.")
    add("--certify-equal-rows", action="store_true", default=None, help="Give every rank equally many rows.")
    add(
        "--certify-interpret",
        action="store_true",
        default=None,
        help="Run Triton kernels on the CPU, interpreted.",
    )
    add(
        "--certify-strict",
        action="store_true",
        default=None,
        help="Judge as defects what is else a limit: unequal rows, a second derivative that raises.",
    )
    add(
        "--certify-large",
        action="store_true",
        default=None,
        help="Draw a batch just beyond 4,096 pairs instead of 1,024: minutes each.",
    )
    add("--certify-world", metavar="WORLDS", help="Where ranks run. Default: 1,sim:2-8,proc:2.")
    add(
        "--certify-device", metavar="DEVICES", help="Where the tensors are: cpu (default), cuda, cuda:1, all."
    )
    add("--certify-dtype", metavar="DTYPES", help="Of the inputs, separated by commas. Default: all.")
    add(
        "--certify-only", metavar="PROPERTY", action="append", help="Which properties; * and ? as in a shell."
    )
    add("--certify-skip", metavar="PROPERTY", action="append", help="Which properties not.")
    add("--certify-max-examples", metavar="N", type=int, help="Cases for each property. Default: 25.")
    add("--certify-max-time", metavar="TIME", help="For everything, as 60s or 5m.")
    add("--certify-known", metavar="FILE", help="Findings to accept, in TOML: they are reported as xfailed.")
    add("--certify-counterexamples", metavar="DIR", help="Programs to run. Default: build/counterexamples.")
    add("--certify-shard", metavar="I/N", help="Collect one part of the items, with i from 1 to n, as 1/4.")
    add("--certify-seed", metavar="N", type=int, help="Default: that of --hypothesis-seed, else 0.")


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
