"""What a project's pyproject.toml states: `[tool.verified-losses]`.

    [tool.verified-losses]
    world = "1,sim:2-4"
    max-time = "5m"

    [[tool.verified-losses.targets]]
    target = "mypackage.losses:ClipLoss"
    as = "clip"

Imports no torch: the file is read before torch is imported.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from ..options import KEY, NOT_OF_ALL, OF_A_TARGET, CertifyOptions, FuzzOptions, Options, names
from ..verify.arguments import Unusable

FILE = Path("pyproject.toml")
"""It is read in the current folder alone, as paths and modules are."""
TOOL = "verified-losses"
COMMANDS: dict[str, type[Options]] = {"certify": CertifyOptions, "fuzz": FuzzOptions}
Table = dict[str, Any]


@dataclass
class Project:
    """What the file states.

    Attributes:
        tables: by name of a command, or under the empty name for all of them: options by name.
        targets: `target`, and options by name, of each.
    """

    tables: dict[str, Table] = field(default_factory=dict)
    targets: list[Table] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path = FILE) -> "Project":
        """Read a file; where there is none, nothing is stated.

        Raises:
            Unusable: it is not TOML, or a key or a value is none of ours.
        """
        tool = _tool(file)
        if tool is None:
            return cls()
        where = f"{file}: {KEY}"
        common = names(Options)
        known = {name: kind for name, kind in common.items() if name not in NOT_OF_ALL}
        _check(tool, {**known, "targets": list, **dict.fromkeys(COMMANDS, dict)}, where)
        tables = {"": {name: value for name, value in tool.items() if name in known}}
        for command, options in COMMANDS.items():
            own = {name: kind for name, kind in names(options).items() if name not in NOT_OF_ALL}
            tables[command] = tool.get(command, {})
            _check(tables[command], own, f"{file}: [tool.{TOOL}.{command}]")
        kinds = {"target": str, **{name: common[name] for name in OF_A_TARGET}}
        targets = []
        for number, entry in enumerate(tool.get("targets", [])):
            place = f"{where} targets[{number}]"
            if not isinstance(entry, dict):
                raise Unusable("", f"{place}: expected a table with target and as, got {entry!r}")
            _check(entry, kinds, place)
            for name in ("target", "as"):
                if name not in entry:
                    raise Unusable("", f"{place}: expected the keys target and as, got no {name}")
            targets.append(entry)
        return cls(tables, targets)

    def states(self, command: str, option: str) -> str:
        """Return which table states an option for a command; nothing, if none does."""
        for name in (command, ""):
            if option in self.tables.get(name, {}):
                return f"{FILE}: [tool.{'.'.join(filter(None, (TOOL, name)))}] {option}"
        return ""

    def of(self, target: str | None, contract: str | None) -> list[Table]:
        """Return the entries of a target, or of all where none is named, as what they are to be."""
        return [
            entry
            for entry in self.targets
            if target in (None, entry["target"]) and contract in (None, entry["as"])
        ]


def filled(entry: Table | None = None) -> Callable[[App, tuple[str, ...], ArgumentCollection], None]:
    """Return what fills in the options that the command line leaves open, as cyclopts asks.

    Args:
        entry: those of one target, before those of all.
    """

    def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        if commands[1:]:  # as `fuzz replay`, which is about a folder
            return
        project = Project.read()
        of_target = {name: value for name, value in (entry or {}).items() if name != "target"}
        for table in (of_target, *(project.tables.get(name, {}) for name in (commands[0], ""))):
            written = {name: _written(value) for name, value in table.items()}
            Dict(written, source=str(FILE), use_commands_as_keys=False)(app, commands, arguments)

    return fill


def check_place() -> None:
    """Check that no folder above states what is to be certified, which the current one does not.

    Raises:
        Unusable: one does.
    """
    here = Path.cwd()
    for folder in () if FILE.is_file() else here.parents:
        if (tool := _tool(folder / FILE)) is not None and "targets" in tool:
            said = f"{folder / FILE} lists what to certify: run it in {folder}, or name a target or --loss"
            raise Unusable("", said)


def _tool(file: Path) -> Table | None:
    try:
        tool = tomllib.loads(file.read_text()).get("tool", {}).get(TOOL)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unusable("", f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise Unusable("", f"{file}: expected TOML: {error}") from error
    if tool is not None and not isinstance(tool, dict):
        raise Unusable("", f"{file}: tool.{TOOL}: expected a table, got {tool!r}")
    return tool


def _check(table: Table, kinds: dict[str, Any], where: str) -> None:
    """Check that all keys are known, and of each the kind of its value."""
    for name, value in table.items():
        if name not in kinds:
            raise Unusable("", f"{where}: expected some of the keys {', '.join(kinds)}, got {name}")
        if expected := _mismatch(name, value, kinds[name]):
            raise Unusable("", f"{where} {name}: expected {expected}, got {json.dumps(value, default=str)}")


def _mismatch(name: str, value: Any, kind: Any) -> str:
    """Return in words what a value is to be, where it is something else."""
    if kind in (bool, int):
        return "" if type(value) is kind else {bool: "true or false", int: "a whole number"}[kind]
    if kind is int | None:
        return "" if type(value) is int else "a whole number"
    if kind is dict:
        return "" if isinstance(value, dict) else "a table"
    if kind is list:
        return "" if isinstance(value, list) else "a list of tables, [[tool.verified-losses.targets]]"
    if kind == list[str] | None:
        texts = value if isinstance(value, list) else [value]
        return "" if all(isinstance(one, str) for one in texts) else "text, or a list of texts"
    if name == "config" and isinstance(value, dict):
        return ""
    # a whole number is a text on the command line too: jobs = 4, max-time = 300
    return "" if type(value) in (str, int) else "text"


def _written(value: Any) -> Any:
    """Return a value as the command line has it: a table of options as name=value,..."""
    if isinstance(value, dict):
        return ",".join(
            f"{name}={one if isinstance(one, str) else json.dumps(one)}" for name, one in value.items()
        )
    return value
