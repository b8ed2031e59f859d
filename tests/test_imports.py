"""Imports make no circle, and point down: see CONTRIBUTING.md."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "verified_losses"
FOLDERS = {
    ROOT / PACKAGE: PACKAGE,
    ROOT / "oracles": f"{PACKAGE}.oracles",
    ROOT / "properties": f"{PACKAGE}.properties",
}


def _files() -> dict[str, Path]:
    """Return every file of the package by its module's name; its links to the other folders are left out."""
    found = {}
    for folder, name in FOLDERS.items():
        for file in folder.rglob("*.py"):
            inner = file.relative_to(folder).with_suffix("").parts
            if folder.name != PACKAGE or inner[0] not in ("oracles", "properties"):
                found[".".join([name, *(part for part in inner if part != "__init__")])] = file
    return found


def _imported(module: str, file: Path, known: dict[str, Path]) -> set[str]:
    """Return what a module imports of the package as it is imported itself."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            names |= {f"{base}.{one.name}" if f"{base}.{one.name}" in known else base for one in node.names}
    return {name for name in names if name in known and name != module}


def test_imports_make_no_circle() -> None:
    files = _files()
    assert len(files) > 150
    graph = {module: _imported(module, file, files) for module, file in files.items()}
    assert f"{PACKAGE}.oracles.gather" in graph[f"{PACKAGE}.oracles.clip"]
    order = list(TopologicalSorter(graph).static_order())
    assert sorted(order) == sorted(files)


def test_properties_import_no_loss_and_oracles_nothing_above() -> None:
    files = _files()
    oracles, properties = f"{PACKAGE}.oracles", f"{PACKAGE}.properties"
    for module, file in files.items():
        imported = {one for one in _imported(module, file, files) if one != PACKAGE}
        if module.startswith(oracles):
            assert {one for one in imported if not one.startswith(oracles)} == set(), module
        elif module.startswith(properties):
            own = {one for one in imported if not one.startswith((oracles, properties))}
            assert own <= {f"{PACKAGE}.certified"}, module
        else:
            assert {one for one in imported if one.startswith((oracles, properties))} == set(), module
