"""Functions as source: of the functions that are asked for, and of all that these need."""

import ast
import importlib
import importlib.util
import inspect
import io
import re
import symtable
import sys
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from ..own.formula import Formula
from ..standalone import file

OURS = "verified_losses."
OUTSIDE = {"torch", "numpy", *sys.stdlib_module_names}
"""What a quoted function may import."""
GIVEN = r"(?<![\w.])file\."


RESERVED = {"act", "act_alone", "call_form", "filled", "inputs", "np", "torch", "whole", *vars(file)} - {
    "Any"
}
"""Names that a file gives to things of its own."""


class Unquotable(ValueError):
    """A function that somebody wrote cannot be quoted: it takes a name, or imports what a file may not."""


class Quotes:
    """What one file quotes: each function, class and constant once."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        """What the quoted code imports, a statement each."""
        self.given: set[str] = set()
        """Which of the names in `standalone.file` it reads."""
        self._quoted: dict[str, str] = {}

    def source(self, *functions: Callable[..., Any]) -> str:
        """Return functions, after what they need, as far as the file does not have it yet."""
        found: list[str] = []
        for function in functions:
            self._add(function.__module__, function.__name__, found)
        return "\n\n\n".join(found)

    def _add(self, module: str, name: str, found: list[str]) -> None:
        statement = _bound(module).get(name)
        if statement is None or self._quoted.get(name) == module:
            return  # of Python itself, or here already
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self._import(module, name, statement, found)
            return
        if name in self._quoted or (name in RESERVED and not module.startswith(OURS)):
            raise Unquotable(f"{name} of {module} and of {self._quoted.get(name, 'the file itself')}")
        self._quoted[name] = module
        source, given = _source(module, statement)
        self.given |= given
        for other in sorted(names_read(source) - given):  # which the file has itself
            self._add(module, other, found)
        found.append(source)

    def _import(
        self, module: str, name: str, statement: ast.Import | ast.ImportFrom, found: list[str]
    ) -> None:
        (alias,) = [one for one in statement.names if _binds(one) == name]
        shown = alias.name + (f" as {alias.asname}" if alias.asname else "")
        if isinstance(statement, ast.Import):
            origin, text = alias.name, f"import {shown}"
        else:
            package = importlib.import_module(module).__package__
            origin = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
            text = f"from {origin} import {shown}"
        if origin.startswith(OURS):
            self._add(origin, alias.name, found)
        else:
            if origin.partition(".")[0] not in OUTSIDE:
                raise Unquotable(f"{module} needs {origin}")
            self.imports.add(text)


@cache
def _text(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


@cache
def _bound(module: str) -> dict[str, ast.stmt]:
    """Return the statements at the top of a module by the names that they bind."""
    bound: dict[str, ast.stmt] = {}
    for statement in ast.parse(_text(module)).body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound[name] = statement
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                bound |= {_binds(alias): statement for alias in names}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                bound[name] = statement
    return bound


def _binds(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _source(module: str, statement: ast.stmt) -> tuple[str, set[str]]:
    """Return a statement's lines, and which names it takes from `standalone.file`.

    Of a docstring it is the first paragraph; words to other tools are left out, and so is the mark of a step.
    """
    made = vars(importlib.import_module(module)).get(getattr(statement, "name", ""))
    marks = [] if isinstance(made, Formula) else getattr(statement, "decorator_list", [])
    decorators = [one for one in marks if not _marks_step(one)]
    first = min([statement.lineno, *(one.lineno for one in decorators)])
    text = "\n".join(_text(module).splitlines()[first - 1 : statement.end_lineno])
    text = re.sub(r"  # (type: ignore|fmt:|noqa).*", "", text)
    text = re.sub(r'(?s)("""[^"\n]+)\n\n.*?"""', r'\1"""', text)
    return without_file(text)


def without_file(text: str) -> tuple[str, set[str]]:
    """Return code without `file.` before names, and these names; comments and strings stay as they are."""
    lines, given = text.splitlines(keepends=True), set()
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for token in reversed(tokens):
        (row, start), end = token.start, token.end
        # before Python 3.12 an f-string is one token
        is_formatted = token.type == tokenize.STRING and "f" in re.split("[\"']", token.string, maxsplit=1)[0]
        if (token.type != tokenize.NAME or token.string != "file") and not is_formatted:
            continue
        last = end[0] if is_formatted else row
        part = "".join(lines[row - 1 : last])
        after = part[start:] if not is_formatted else token.string
        matched = re.match(r"file\.(\w+)", after)
        if is_formatted:
            given |= set(re.findall(GIVEN + r"(\w+)", after))
            changed = part.replace(after, re.sub(GIVEN, "", after), 1)
        elif matched and not part[:start].endswith("."):
            given.add(matched[1])
            changed = part[:start] + after.removeprefix("file.")
        else:
            continue
        lines[row - 1 : last] = changed.splitlines(keepends=True)
    return "".join(lines), given


def _marks_step(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "step"


def names_read(source: str) -> set[str]:
    """Return the names that code reads of its module."""

    def walk(table: symtable.SymbolTable) -> Iterator[str]:
        is_module = table.get_type() == "module"
        for symbol in table.get_symbols():
            # from Python 3.12 on, what runs through a comprehension of a module is assigned in the module
            reads = symbol.is_referenced() and not symbol.is_assigned()
            if reads if is_module else symbol.is_global():
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child)

    return set(walk(symtable.symtable(source, "", "exec")))
