"""A record as GitHub shows it beside the lines of a change: a workflow command for each defect and limit."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ..subjects import Target
from .certificate import Certificate, Certificates, Property
from .text import shortened


def render(record: Certificate | Certificates, folder: Path) -> list[str]:
    """Return workflow commands: an error for each defect, a notice for what is known and for each limit.

    Args:
        record: what to show.
        folder: where the target's source is looked for: the top of the repository.
    """
    certificates = record.certificates if isinstance(record, Certificates) else [record]
    return [line for one in certificates for line in _commands(one, folder)]


def _commands(one: Certificate, folder: Path) -> Iterator[str]:
    source = source_of(Target.of(one.target), folder)
    shown: set[str] = set()
    for row in one.properties:
        name = row.fingerprint or row.limit or f"{row.property} {row.world}"
        if row.verdict not in ("falsified", "limit") or name in shown:
            continue
        shown.add(name)
        kind = "error" if row.verdict == "falsified" and not row.known else "notice"
        place = ""
        if source is not None:
            line = _line(row, source, Target.of(one.target).name)
            place = f"file={_value(source.relative_to(folder.absolute()).as_posix())},line={line},"
        yield f"::{kind} {place}title={_value(_title(one, row))}::{_text(_message(row))}"
    if one.verdict == "incomplete":
        lines = "\n".join(one.not_verified)
        yield f"::warning title={_value(f'{one.target}: something did not run')}::{_text(lines)}"


def source_of(target: Target, folder: Path) -> Path | None:
    """Return the file of a target below a folder, without importing anything; None if none is found."""
    if target.file:
        places = [folder / target.file]
    else:
        path = target.place.replace(".", "/")
        tops = (folder, folder / "src")
        places = [top / f"{path}{end}" for top in tops for end in (".py", "/__init__.py")]
    for place in places:
        if place.is_file() and place.absolute().is_relative_to(folder.absolute()):
            return place.absolute()
    return None


def _line(row: Property, source: Path, name: str) -> int:
    """Return the last line of the source in a traceback, or that where the target is defined."""
    frames = re.findall(r'^ +File "(.+?)", line (\d+)', row.reason, re.MULTILINE)
    lines = [int(number) for file, number in frames if Path(file).absolute() == source]
    return lines[-1] if lines else defined(source, name)


def defined(source: Path, name: str) -> int:
    """Return the line in which a class or a function is defined; 1 if there is none of this name."""
    try:
        nodes = ast.parse(source.read_bytes()).body
    except (SyntaxError, ValueError):
        return 1
    kinds = ast.ClassDef | ast.FunctionDef
    found = [node.lineno for node in nodes if isinstance(node, kinds) and node.name == name.partition(".")[0]]
    return found[-1] if found else 1


def _title(one: Certificate, row: Property) -> str:
    name = Target.of(one.target).name
    if row.known:
        return f"{name}: known: {row.property} ({row.known})"
    if row.verdict == "limit":
        return f"{name}: limit: {row.limit}"
    return f"{name}: {row.property} does not hold in world {row.world}"


def _message(row: Property) -> str:
    reason = shortened(row.reason)
    lines = [reason.partition("\n")[0] if row.verdict == "limit" else reason]
    lines += [f"smallest case: {row.case}"] * bool(row.case)
    lines += [f"run: python {row.counterexample}"] * bool(row.counterexample)
    return "\n".join(lines)


def _text(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _value(text: str) -> str:
    return _text(text).replace(":", "%3A").replace(",", "%2C")
