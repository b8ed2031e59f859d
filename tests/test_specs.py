"""Worlds and contracts as people name them."""

import sys

import pytest

from verified_losses.properties.contracts import contracts
from verified_losses.properties.names import CONTRACTS
from verified_losses.properties.worlds import table
from verified_losses.properties.worlds.specs import parse


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1", ["single"]),
        ("1, single,1", ["single"]),
        ("2,proc:2", ["processes:2"]),
        ("proc:2-4", ["processes:2", "processes:3", "processes:4"]),
        ("hvd:2,hvd:2-3", ["horovod:2", "horovod:3"]),
        ("sim:2-8,sim:4", ["simulated:2-8", "simulated:4"]),
    ],
)
def test_parse(text: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "horovod_missing", lambda: None)
    assert [spec.name for spec in parse(text)] == names


@pytest.mark.parametrize(
    "text", ["", "x", "2-3", "mpi:2", "hvd", "hvd:", "hvd:1", "hvd:3-2", "hvd:17", "sim:257"]
)
def test_what_is_no_world_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "horovod_missing", lambda: None)
    with pytest.raises(ValueError, match=rf"expected .* got {text!r}"):
        parse(text)


def test_a_horovod_world_needs_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(ValueError, match=r"hvd:2: Horovod is not installed; `make horovod` of the"):
        parse("1,hvd:2")


def test_the_contracts_that_can_be_asked_for_are_those_there_are() -> None:
    assert list(contracts()) == list(CONTRACTS)
