"""What a function reads of its **kwargs, by its source. Imports no torch."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

NEEDED = ""
"""In the place of a default: the function cannot do without."""


def keywords_read(function: Callable[..., Any]) -> dict[str, str] | None:
    """Return by name the defaults, as Python, of what a function reads of its **kwargs, and reads alone.

    None: it has none, ignores them, passes them on or keeps them, or there is no source.
    """
    try:
        function = inspect.unwrap(_written(function))
        parameters = inspect.signature(function).parameters.values()
        kwargs = [one.name for one in parameters if one.kind is one.VAR_KEYWORD]
        if not kwargs:
            return None
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    found: dict[str, str] = {}
    guarded: set[str] = set()
    uses = list(_uses(tree, kwargs[0]))
    for parent, name in uses:
        match parent:
            case ast.Call(
                func=ast.Attribute(attr="get" | "pop" | "setdefault" as how),
                args=[ast.Constant(value=str(key)), *defaults],
                keywords=[],
            ) if len(defaults) < 2:
                default = ast.unparse(defaults[0]) if defaults else NEEDED if how == "pop" else "None"
                found[key] = found.get(key) or default
            case ast.Subscript(value=one, slice=ast.Constant(value=str(key))) if one is name:
                found[key] = found.get(key, NEEDED)
            case ast.Compare(left=ast.Constant(value=str(key)), ops=[ast.In() | ast.NotIn()]):
                guarded.add(key)
            case ast.If() | ast.Raise() | ast.Assert() | ast.Delete():
                pass  # whether anything is left
            case _:
                return None
    if not uses:
        return None
    return {key: default or ("None" if key in guarded else NEEDED) for key, default in found.items()}


def _written(function: Any) -> Any:
    """Return the function that somebody wrote: a class's constructor, or what an object is called by."""
    if isinstance(function, functools.partial):
        return _written(function.func)
    if inspect.isclass(function):
        return function.__init__
    return function if inspect.isroutine(function) else type(function).__call__


def _uses(tree: ast.FunctionDef, kwargs: str) -> Iterator[tuple[ast.AST, ast.Name]]:
    """Yield where a name is read: what holds it, or the statement that asks or says what is left."""
    for node, above in _walk(tree, ()):
        if not isinstance(node, ast.Name) or node.id != kwargs:
            continue
        parent: ast.AST = above[-1]
        if isinstance(parent, ast.Attribute) and parent.attr in ("get", "pop", "setdefault"):
            yield above[-2], node
        elif isinstance(parent, ast.Subscript | ast.Compare):
            yield parent, node
        else:
            left = [one for one in above if isinstance(one, ast.Raise | ast.Assert | ast.Delete)]
            tests = [one for one in above if isinstance(one, ast.If) and _is_test(node, one)]
            yield [parent, *tests, *left][-1], node


def _walk(node: ast.AST, above: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    for child in ast.iter_child_nodes(node):
        yield child, (*above, node)
        yield from _walk(child, (*above, node))


def _is_test(name: ast.Name, one: ast.If) -> bool:
    return any(node is name for node in ast.walk(one.test))
