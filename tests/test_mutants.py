"""What is known of mutants that compute the same."""

from dataclasses import replace
from fnmatch import fnmatch

import pytest

from . import mutants

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
