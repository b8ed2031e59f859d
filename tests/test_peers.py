"""The peers' tables agree with one another, and the generator with them; nothing here needs a peer."""

import ast
import dataclasses
from pathlib import Path

import pytest

import peers.load
from peers.certify import Seen, amiss, markdown, observed, pins, planned, silent
from peers.defects import DEFECTS
from peers.records import RECORDS, Record
from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import laws
from verified_losses.properties.names import FORMULAS
from verified_losses.properties.show.counterexample import MARK

ADAPTERS = Path(peers.load.__file__).parent / "adapters"
RECORD = Record(
    "loss", "lightly", "lightly:NTXentLoss", "ntxent", "two views", "1", wrong={"deterministic": "d"}
)
HOLDS = Seen("inputs unchanged", "single", 5, "holds", "", "")
FALSIFIED = Seen("deterministic", "single", 5, "falsified", "Falsified: 1 is not 2", "Case(1)", "loss.py")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.key)
def test_every_record_can_be_asked(record: Record) -> None:
    file, name = record.target.split(":")
    if record.adapted:
        tree = ast.parse((ADAPTERS / f"{file}.py").read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        assert name in defined | imported
    assert record.package in pins()
    assert record.contract in {**contracts(), **FORMULAS}
    asked = {check.law.name for check in planned(record)}
    assert asked
    assert set(record.only) <= asked
    assert set(record.wrong) <= asked


def test_keys_are_used_once_and_sentences_at_all() -> None:
    keys = [record.key for record in RECORDS]
    assert len(set(keys)) == len(keys)
    assert {key for record in RECORDS for key in record.wrong.values()} == set(DEFECTS)
    assert {law for record in RECORDS for law in record.wrong} <= {law.name for law in laws()}


def test_the_findings_kept_are_those_of_the_tables() -> None:
    text = (ADAPTERS.parent / "FINDINGS.md").read_text()
    for record in RECORDS:
        package, name = f"{record.package} {pins()[record.package]}", record.target.split(":")[1]
        assert f"| {package} | `{name}` | {record.about} " in text
        for key in record.wrong.values():
            assert f"\n{DEFECTS[key]}\n" in text, key
    assert text.count("\n## ") == len(DEFECTS) + 1


def test_a_finding_without_a_sentence_is_amiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFECTS, "d", "It differs.")
    assert amiss({"loss": [HOLDS, FALSIFIED]}, [RECORD]) == []
    (line,) = amiss({"loss": [FALSIFIED]}, [dataclasses.replace(RECORD, wrong={})])
    assert "no sentence says why 'deterministic' is falsified in single: 1 is not 2 Case(1)" in line
    (line,) = amiss({"loss": [HOLDS]}, [RECORD])
    assert line == "loss: 'deterministic' is no longer falsified: It differs."


def test_a_counterexample_that_shows_nothing_is_amiss(tmp_path: Path) -> None:
    files = []
    for name, code in (("shows", "raise SystemExit(1)"), ("fixed", ""), ("broken", "raise SystemExit(2)")):
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text(f"{MARK} 0\n{code}\n")
    assert [line.split(": ")[:2] for line in silent(files, 2)] == [
        ["fixed.py", "fixed"],
        ["broken.py", "cannot run"],
    ]


def test_every_counterexample_kept_is_a_program() -> None:
    for file in (ADAPTERS.parent / "counterexamples").glob("*.py"):
        ast.parse(file.read_text())


def test_findings_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFECTS, "d", "It differs.")
    text = markdown({"loss": [HOLDS, FALSIFIED]}, 7, [RECORD])
    for part in (
        "| [1](#1) | lightly 1.6.0 | `NTXentLoss` | deterministic | It differs. |",
        "1. lightly 1.6.0: `NTXentLoss`\n\nIt differs.\n",
        "- falsified: deterministic (single)",
        "- asked: two views, as `ntxent`, convention exact",
        "- seen: 1 is not 2",
        "- run: [loss.py](counterexamples/loss.py)",
        "      Case(1)\n",
        "; seed 7.",
        "| 10 | 1 of 2 |",
    ):
        assert part in text


def test_what_ranks_said_is_told_without_what_differs_between_runs() -> None:
    reason = (
        "WorldError: world processes:2: not every rank returned\n"
        'rank 0 raised:\nTraceback (most recent call last):\n  File "a.py", line 1\n    f()\n'
        "RuntimeError: [/build/pair.cc:534] Connection closed by peer [127.0.0.1]:5549\n"
        "rank 1 killed:\nSIGABRT"
    )
    told = observed(dataclasses.replace(FALSIFIED, reason=reason))
    assert told == "rank 0 raised: RuntimeError:  Connection closed by peer ; rank 1 killed: SIGABRT"


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers.load, "SITE", tmp_path)
    with pytest.raises(ImportError, match=r"no_such_peer is not installed.*make peers"):
        peers.load.bare("no_such_peer")
