"""`[tool.verified-losses]` in a project's pyproject.toml."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from verified_losses.properties.ask import cli, fuzz_cli  # noqa: F401  # which adds its command
from verified_losses.properties.ask.cli import main, options_of, requested
from verified_losses.properties.names import DTYPES
from verified_losses.properties.options import (
    NOT_OF_ALL,
    OF_A_TARGET,
    CertifyOptions,
    CommandOptions,
    FuzzOptions,
    Options,
    names,
)

ROOT = Path(__file__).parents[1]
TABLE = """
[tool.verified-losses]
world = "1"
max-examples = 7
seed = 3
strict = true

[tool.verified-losses.fuzz]
max-examples = 9
jobs = 2

[[tool.verified-losses.targets]]
target = "mine:First"
as = "clip"
config = {local_loss = true, implementation = "dense"}
strict = false

[[tool.verified-losses.targets]]
target = "mine:Second"
as = "siglip"
parameter = ["logit_scale=exp(t_prime)"]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a pyproject.toml, and go where it is."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        (tmp_path / "pyproject.toml").write_text(text)
        return tmp_path

    return write


def _asked(*tokens: str) -> list[tuple[str, Any]]:
    options = options_of(tokens)
    targets = [one for one in tokens[1:2] if not one.startswith("-")]
    return list(requested(targets, options, tokens))


def test_the_page_lists_what_may_be_stated() -> None:
    page = (ROOT / "docs" / "how-to" / "project.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `[")]
    stated = {
        where.strip(" `[]").rpartition(".")[2]: set(re.findall("`([^`]+)`", keys)) for where, keys in rows
    }
    of_all = set(names(Options)) - set(NOT_OF_ALL)
    assert stated == {
        "verified-losses": {*of_all, "targets"},
        "targets": {*OF_A_TARGET, "target"},
        "certify": {*set(names(CertifyOptions)) - set(names(Options)), "targets"},
        "fuzz": {*set(names(FuzzOptions)) - set(names(Options)) - set(NOT_OF_ALL), "targets"},
    }


def test_what_is_listed_is_certified(project: Callable[[str], Path]) -> None:
    project(TABLE)
    (first, of_first), (second, of_second) = _asked("certify")
    assert (first, of_first.as_, of_first.config) == (
        "mine:First", "clip", "local_loss=true,implementation=dense",
    )  # fmt: skip
    assert (second, of_second.as_, of_second.parameter) == (
        "mine:Second", "siglip", ["logit_scale=exp(t_prime)"],
    )  # fmt: skip
    assert (of_first.max_examples, of_first.seed, of_first.world) == (7, 3, "1")
    assert (of_first.strict, of_second.strict) == (False, True)
    (_, of_fuzz), _ = _asked("fuzz")
    assert (of_fuzz.max_examples, of_fuzz.jobs, of_fuzz.seed) == (9, "2", 3)


def test_the_command_line_wins(project: Callable[[str], Path]) -> None:
    project(TABLE)
    given = ["--config", "local_loss=false", "--max-examples", "2", "--no-strict"]
    for _, one in _asked("certify", *given):
        assert (one.config, one.max_examples, one.strict, one.seed) == ("local_loss=false", 2, False, 3)
    ((_, listed),) = _asked("certify", "mine:Second")
    assert listed.parameter == ["logit_scale=exp(t_prime)"]
    ((_, other),) = _asked("certify", "mine:Second", "--as", "clip")
    assert (other.as_, other.parameter, other.seed) == ("clip", None, 3)
    ((_, unlisted),) = _asked("certify", "mine:Third")
    assert (unlisted.as_, unlisted.max_examples) == (None, 7)
    assert _asked("certify", "--loss", "clip") == []


def test_without_a_table_the_shipped_losses_are_certified(project: Callable[[str], Path]) -> None:
    project("[tool.other]\n")
    assert _asked("certify") == []
    assert options_of(["certify"]) == CommandOptions()


def test_a_folder_below_a_project_is_told_where_it_is(
    project: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(TABLE) / "below"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match="2"):
        main(["certify"])
    assert f"{folder.parent}/pyproject.toml lists what to certify: run it in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('wrold = "1"', "[tool.verified-losses]: expected some of the keys convention, equal-rows, "),
        ('wrold = "1"', ", targets, certify, fuzz, got wrold"),
        ('seed = "x"', '[tool.verified-losses] seed: expected a whole number, got "x"'),
        ("seed = 1.5", "[tool.verified-losses] seed: expected a whole number, got 1.5"),
        ("seed = true", "[tool.verified-losses] seed: expected a whole number, got true"),
        ('strict = "yes"', '[tool.verified-losses] strict: expected true or false, got "yes"'),
        ("only = [1]", "[tool.verified-losses] only: expected text, or a list of texts, got [1]"),
        ("world = 1.5", "[tool.verified-losses] world: expected text, got 1.5"),
        ('world = "two"', "pyproject.toml: [tool.verified-losses] world: expected parts like"),
        ("seed = -1", "pyproject.toml: [tool.verified-losses] seed: expected 0 or more, got -1"),
        ('convention = "ours"', "pyproject.toml: convention: expected one of exact, open_clip, got 'ours'"),
        ("targets = 3", "[tool.verified-losses] targets: expected a list of tables, "),
        ('targets = ["a:b"]', "targets[0]: expected a table with target and as, got 'a:b'"),
        ('targets = [{target = "a:b"}]', "targets[0]: expected the keys target and as, got no as"),
        (
            'targets = [{target = "a:b", as = "clip", seed = 3}]',
            "targets[0]: expected some of the keys target, as, convention, config, call, parameter, "
            "features, widths, equal-rows, empty-ranks, interpret, strict, large, inductor, dtype, got seed",
        ),
        ('targets = [{target = "a:b", as = "clip", call = [3]}]', "targets[0] call: expected text, got [3]"),
        ('targets = [{target = "a:b", as = "clap"}]', "targets[0] as: expected one of clip"),
        ("certify = {jobs = 3}", "[tool.verified-losses.certify]: expected some of the keys "),
        ("certify = 3", "[tool.verified-losses] certify: expected a table, got 3"),
        ("= 3", "pyproject.toml: expected TOML: "),
    ],
)
def test_a_wrong_key_is_named(
    text: str, said: str, project: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project(f"[tool.verified-losses]\n{text}\n")
    with pytest.raises(SystemExit, match="2"):
        main(["certify"])
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("error pyproject.toml: ")


def test_options_are_stated_once_and_by_one_name() -> None:
    assert CertifyOptions().dtype == ",".join(DTYPES)
    assert set(OF_A_TARGET) <= names(Options).keys()
    assert set(NOT_OF_ALL) <= names(FuzzOptions).keys()
    assert all(one.metadata["help"] for of in (CertifyOptions, FuzzOptions) for one in fields(of))


def test_pytest_has_every_option_of_the_command() -> None:
    command = [sys.executable, "-m", "pytest", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    of_pytest = set(re.findall(r"^  --certify-([a-z-]+)", shown, re.MULTILINE))
    assert of_pytest == {*names(CertifyOptions)}


def test_other_commands_do_not_read_the_file(
    project: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project("= 3\n")
    with pytest.raises(SystemExit, match="2"):
        main(["merge", "nothing", "--output", "pyproject.toml/x"])
    assert capsys.readouterr().err.startswith("error --output: cannot write into pyproject.toml/x")


def test_what_is_stated_is_not_for_the_commands_about_finds(
    project: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(TABLE) / "build" / "fuzz"
    for command in ("replay", "prune"):
        with pytest.raises(SystemExit):
            main(["fuzz", command])
        said = capsys.readouterr()
        assert said.err == f"error --folder: there is no folder {folder.relative_to(Path.cwd())}\n"
