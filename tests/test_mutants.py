"""Mutants that compute the same, and the order of the tests that mutants are tried against."""

import re
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from . import killers, mutants

ROOT = mutants.ROOT
FUNCTIONS = [
    f"{target.package}.{path.stem}.{name}"
    for target in mutants.TARGETS
    for path in sorted((ROOT / target.files).glob("*.py"))
    for name in mutants.functions(path.read_text())
]


@pytest.mark.parametrize("pattern", sorted({one.function for one in mutants.equivalents()}))
def test_an_equivalent_mutant_is_of_a_function_there_is(pattern: str) -> None:
    assert any(fnmatch(name, pattern) for name in FUNCTIONS)


def test_a_kind_of_mutants_matches_a_change_of_any_indentation() -> None:
    diff = " def f():\n-        x = cast(Tensor, y)\n+        x = cast(None, y)\n     return x"
    mutant = mutants.Mutant("f__mutmut_1", "verified_losses.streamed.f", "survived", diff)
    (found,), _ = mutants.judged([mutant], mutants.equivalents())
    assert found.status == "equivalent"
    other = replace(mutant, diff=diff.replace("None, y", "None, z"))
    (found,), _ = mutants.judged([other], mutants.equivalents())
    assert found.status == "survived"


def test_what_has_killed_a_mutant_of_the_function_runs_first_then_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killers, "RECORD", tmp_path / "killers.txt")
    known = mutants.Equivalent("p.clip.k", re.compile("- a\n\\+ b"), "why")
    monkeypatch.setattr(killers, "KNOWN", [known])
    # mutmut, which is not installed for the tests alone, would tell both
    monkeypatch.setattr(killers, "diff_of", lambda mutant: "-a\n+b")
    monkeypatch.setattr(killers, "function_of", lambda mutant: mutant.replace("x_", "").split("__")[0])

    def order(mutant: str) -> str:
        monkeypatch.setenv("MUTANT_UNDER_TEST", mutant)
        items = [SimpleNamespace(nodeid=name) for name in "abcde"]
        killers.pytest_collection_modifyitems(items)  # type: ignore[arg-type]
        return "".join(item.nodeid for item in items)

    assert order("p.clip.x_f__mutmut_1") == "abcde"
    for function, killer in ("f", "c"), ("g", "e"), ("f", "d"):
        monkeypatch.setenv("MUTANT_UNDER_TEST", f"p.clip.x_{function}__mutmut_3")
        killers.pytest_runtest_logreport(SimpleNamespace(failed=True, nodeid=killer))  # type: ignore[arg-type]
    assert order("p.clip.x_f__mutmut_1") == "dceab"
    assert order("p.clip.x_g__mutmut_1") == "edcab"
    assert order("p.clip.x_h__mutmut_1") == "decab"
    assert order("p.siglip.x_f__mutmut_1") == "abcde"
    assert order("stats") == "abcde"
    assert order("p.clip.x_k__mutmut_1") == "a"
