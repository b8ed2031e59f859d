"""Mutants that compute the same, and the order of the tests that mutants are tried against."""

import json
import re
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from . import killers, mutants

FUNCTIONS = mutants.every()


@pytest.mark.parametrize("pattern", sorted({one.function for one in mutants.equivalents()}))
def test_an_equivalent_mutant_is_of_a_function_there_is(pattern: str) -> None:
    assert any(fnmatch(name, pattern) for name in FUNCTIONS)


def test_a_kind_of_mutants_matches_a_change_of_any_indentation() -> None:
    diff = " def f():\n-        x = cast(Tensor, y)\n+        x = cast(None, y)\n     return x"
    mutant = mutants.Mutant("f__mutmut_1", "verified_losses.streamed.f", "survived", diff)
    (found,) = mutants.judged([mutant], mutants.equivalents())
    assert found.status == "equivalent"
    other = replace(mutant, diff=diff.replace("None, y", "None, z"))
    (found,) = mutants.judged([other], mutants.equivalents())
    assert found.status == "survived"


CLIP = "verified_losses.oracles.clip"


def _mutant(function: str, status: str, number: int = 1) -> mutants.Mutant:
    """Return a mutant of a function of the oracle of CLIP."""
    name = f"{CLIP}.x_{function}__mutmut_{number}"
    return mutants.Mutant(name, f"{CLIP}.{function}", status, "- a\n+ b")


def test_what_became_of_a_function_s_mutants_is_known_until_the_function_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        *(_mutant("add_up", status) for status in ("killed", "survived", "equivalent", "killed")),
        *(_mutant("row_weight", status) for status in ("killed", mutants.UNTRIED)),
    ]
    tried = mutants.tried(found, "verified_losses.oracles")
    one = tried[f"{CLIP}.add_up"]
    assert (one["killed"], one["equivalent"], one["survived"]) == (2, 1, ["- a\n+ b"])
    # of a function without mutants nothing is left to try; one that was not tried to the end is tried again
    assert tried[f"{CLIP}.clip_loss"]["killed"] == 0
    assert f"{CLIP}.row_weight" not in tried
    # a run that ended as mutants were made says nothing of functions that have none yet
    for nothing in ([], [_mutant("add_up", mutants.UNTRIED)]):
        assert mutants.tried(nothing, "verified_losses.oracles") == {}
    record = tmp_path / "mutants.json"
    assert mutants.known(record) == {}
    record.write_text(json.dumps({**tried, "verified_losses.gone": one}))
    assert mutants.known(record) == tried
    changed = replace(FUNCTIONS[f"{CLIP}.add_up"], text="another")
    monkeypatch.setattr(mutants, "every", lambda: FUNCTIONS | {f"{CLIP}.add_up": changed})
    assert tried.keys() - mutants.known(record).keys() == {f"{CLIP}.add_up"}


def test_the_functions_of_a_package_are_named_as_mutmut_names_their_mutants() -> None:
    patterns = {
        "verified_losses.clip.ClipLoss.forward": "verified_losses.clip.xǁClipLossǁforward__mutmut_*",
        "verified_losses.__getattr__": "verified_losses.x___getattr____mutmut_*",
        f"{CLIP}.add_up": f"{CLIP}.x_add_up__mutmut_*",
    }
    for name, pattern in patterns.items():
        assert FUNCTIONS[name].pattern == pattern
    assert FUNCTIONS["verified_losses.oracles.bounds.sums.total"].package == "verified_losses.oracles.bounds"
    assert not [name for name in FUNCTIONS if name.startswith("verified_losses.certified.")]


def test_nothing_is_tried_where_all_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.mutants(only=["verified_losses.nothing.*"]) == 0
    assert "\n0 mutants: none tried, in 0 minutes\n" in capsys.readouterr().out
    assert mutants.mutants(max_time="soon") == 2
    assert mutants.mutants(since="no such commit") == 2


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
