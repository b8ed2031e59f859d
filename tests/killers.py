"""A pytest plugin, `-p tests.killers`: a test that has killed a mutant is the first to see the next ones.

Those of the same function come first, then those of the same module. mutmut starts with the fastest tests, of
which there are hundreds before the one that looks at what has changed. A mutant that is known to be
equivalent is shown to one test alone.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mutants import diff_of, equivalents, function_of, known_as

KNOWN = equivalents()
RECORD = Path("killers.txt").absolute()
"""Lines of a function and a test, apart by a tab, latest last; in the folder that mutmut works in."""


def _of_function(mutant: str) -> str:
    return mutant.rpartition("__mutmut_")[0]


def _killers(mutant: str) -> Iterator[str]:
    """Yield the tests that have killed mutants of the function, then of its module, latest first."""
    function = _of_function(mutant)
    module = function.rpartition(".")[0]
    text = RECORD.read_text() if RECORD.exists() else ""
    killed = [line.split("\t", 1) for line in reversed(text.splitlines())]
    yield from (test for name, test in killed if name == function)
    yield from (test for name, test in killed if name.rpartition(".")[0] == module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the killers first."""
    mutant = os.environ.get("MUTANT_UNDER_TEST", "")
    if not _of_function(mutant):
        return
    with contextlib.chdir(RECORD.parents[1]):
        is_equivalent = known_as(function_of(mutant), diff_of(mutant), KNOWN) is not None
    if is_equivalent:
        del items[1:]
    else:
        places = {test: place for place, test in reversed(list(enumerate(_killers(mutant))))}
        items.sort(key=lambda item: places.get(item.nodeid, math.inf))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the test that fails."""
    function = _of_function(os.environ.get("MUTANT_UNDER_TEST", ""))
    if function and report.failed:
        with RECORD.open("a") as record:
            record.write(f"{function}\t{report.nodeid}\n")
