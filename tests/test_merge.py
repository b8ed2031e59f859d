"""Shards merged: the certificate of one run, or what is missing, or why they are not of one run."""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from verified_losses.properties.ask import run
from verified_losses.properties.ask.cli import main
from verified_losses.properties.show import certificate as records
from verified_losses.properties.show.certificate import Asked, Certificate, Certificates, Property
from verified_losses.properties.show.merge import combine
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify import certifier
from verified_losses.properties.verify.arguments import Subjects, ask
from verified_losses.properties.verify.certifier import Finding
from verified_losses.properties.verify.known import Known
from verified_losses.properties.verify.plan import plan
from verified_losses.properties.verify.shards import Shard

from .children import refused_early

WRONG = "tests.defects.clip:OnlyImageToText"
ONLY = ["terms*", "gradients*", "inputs*"]


def _verified(subjects: Subjects, folder: Path, shard: Shard) -> dict[str, Any]:
    """Leave what one shard leaves, and return its certificate."""
    asked = Asked(5, 4, "1", f"verified-losses certify --shard {shard} --seed 5")
    one = run.Run(subjects, plan(subjects, "1", only=ONLY), asked, Known(), shard=shard)
    run.verify(one, run.printer(), folder / "kept")
    run.save(one.record, folder / "certificate.json", None, None)
    return dict(json.loads((folder / "certificate.json").read_text()))


def _merge(*arguments: object) -> int:
    before = list(sys.path)
    with pytest.raises(SystemExit) as ended:
        main(["merge", *map(str, arguments)])
    sys.path[:] = before
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without seconds, and with counterexamples by name alone."""
    for one in record["properties"]:
        one["seconds"] = 0.0
        one["counterexample"] = one["counterexample"] and Path(one["counterexample"]).name
    return {**record, "command": record["command"].replace("--shard 1/1 ", "")}


def test_two_shards_merged_are_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certifier, "SHRINK_SECONDS", 600.0)  # a busy machine finds the same smallest case
    wrong = {"OnlyImageToText": ask(WRONG, "clip")}
    whole = _verified(wrong, tmp_path / "whole", Shard())
    parts = [_verified(wrong, tmp_path / "parts" / f"{index}", Shard(index, 2)) for index in range(2)]
    assert [len(part["properties"]) for part in parts] == [2, 1]
    assert all(part["verdict"] == "falsified" for part in parts)
    capsys.readouterr()

    assert _merge(tmp_path / "parts", "--output", tmp_path / "merged") == 1
    printed = capsys.readouterr().out
    merged = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    files = [Path(one["counterexample"]) for one in merged["properties"] if one["counterexample"]]
    kept = {file.name: file.read_text() for file in (tmp_path / "whole" / "kept").iterdir()}
    ours, theirs = _comparable(merged), _comparable(whole)
    assert ours["properties"] == theirs["properties"]
    assert ours == theirs

    # the defect that both met has one fingerprint and one program, as in the whole run
    assert len({one["fingerprint"] for part in parts for one in part["properties"]} - {""}) == 2
    assert len(set(files)) == printed.count("does not hold in world") == 1
    assert "the same defect: gradients equal the oracle (single) run:" in " ".join(printed.split())
    assert {file.name: file.read_text() for file in files[0].parent.iterdir()} == kept

    assert "Counterexamples" in (tmp_path / "merged" / "report.html").read_text()
    root = ElementTree.parse(tmp_path / "merged" / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "2", "0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders, of the shards of a run of two losses in which nothing was drawn."""
    subjects = {label: SHIPPED[label] for label in ("clip", "siglip")}
    planned = plan(subjects, "1,sim:2", only=ONLY)
    folder = tmp_path_factory.mktemp("shards")
    for index in range(3):
        asked = Asked(5, 4, "1,sim:2", f"verified-losses certify --shard {index + 1}/3")
        one = run.Run(subjects, planned, asked, Known(), shard=Shard(index, 3))
        one.findings = [Finding(check, 5, "holds", (0.5,)) for check in one.own]
        run.save(one.record, folder / f"{index + 1}" / "certificate.json", None, None)
    return folder


@pytest.fixture
def mine(shards: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def _spoil(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "certificate.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def _read(file: Path) -> Certificate | Certificates:
    return records.decode(file.read_bytes())


def test_shards_of_several_losses_are_merged_in_any_order(shards: Path, tmp_path: Path) -> None:
    texts = set()
    for number, order in enumerate(itertools.permutations((1, 2, 3))):
        output = tmp_path / str(number)
        assert _merge(*(shards / str(index) for index in order), "--output", output) == 0
        texts.add((output / "certificate.json").read_text())
    (text,) = texts
    record = records.decode(text.encode())
    assert isinstance(record, Certificates)
    assert record.verdict == "holds"
    for one in record.certificates:
        named = [(row.property, row.world) for row in one.properties]
        subjects = {"any": (one.contract, SHIPPED["clip"][1])}
        assert named == [(c.law.name, c.world.name) for c in plan(subjects, "1,sim:2", only=ONLY)]
        assert one.shard is None
        assert one.command == "verified-losses certify"
        assert not any("shard" in line for line in one.not_verified)


def test_what_is_done_so_far_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects, file = {"clip": SHIPPED["clip"]}, tmp_path / "certificate.json"
    one = run.Run(subjects, plan(subjects, "1", only=ONLY), Asked(5, 4, "1"), Known(), shard=Shard(0, 2))
    save = run.saver(one, file)
    save()
    assert not file.exists(), "not at once: it costs time"
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)
    one.findings = [Finding(one.own[0], 5, "holds", (0.5,))]
    save()
    record = _read(file)
    assert isinstance(record, Certificate)
    assert (record.verdict, len(record.properties)) == ("incomplete", 1)
    run.saver(one, tmp_path / "certificate.json" / "no folder")()  # raises nothing


def test_a_missing_shard_is_named(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    paths = [shards / "1", shards / "3" / "certificate.json", tmp_path / "empty", tmp_path / "gone"]
    assert _merge(*paths, "--output", tmp_path / "merged") == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "not verified: shard 2/3: missing, with 4 checks" in said
    assert f"nothing to merge {tmp_path / 'empty'}: it holds no certificate.json" in said
    assert f"nothing to merge {tmp_path / 'gone'}: there is no such file or folder" in said
    record = _read(tmp_path / "merged" / "certificate.json")
    assert record.verdict == "incomplete"
    root = ElementTree.parse(tmp_path / "merged" / "junit.xml").getroot()
    assert int(root.get("errors") or 0) > 0


def test_a_shard_that_was_cut_short_is_named(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(record: dict[str, Any]) -> None:
        record["verdict"] = "incomplete"
        for one in record["certificates"]:
            one["verdict"] = "incomplete"
            one["not_verified"] += ["interrupted after 3 of 4 checks", "no branches"]
            one["shard"]["not_verified"] += ["interrupted after 3 of 4 checks", "no branches"]
        del record["certificates"][1]["properties"][0]

    def add(record: dict[str, Any]) -> None:
        for one in record["certificates"]:
            one["not_verified"].append("no branches")
            one["shard"]["not_verified"].append("no branches")

    _spoil(mine / "1", add)
    _spoil(mine / "2", cut)
    _spoil(mine / "3", add)
    assert _merge(mine, "--output", tmp_path / "merged") == 3
    said = capsys.readouterr().out
    assert "not verified: shard 2/3: cut short: 1 check did not run" in said
    assert "not verified: shard 2/3: interrupted after 3 of 4 checks" in said
    assert said.count("no branches") == said.count("not verified: every shard: no branches") == 1


def test_a_certificate_that_was_cut_off_is_a_missing_shard(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, end in enumerate((0, 1, 1000, -10)):
        text = (mine / "1" / "certificate.json").read_bytes()
        (mine / "2" / "certificate.json").write_bytes(text[:end])
        assert _merge(mine, "--output", tmp_path / f"{number}") == 3
        said = capsys.readouterr().out
        assert "2/certificate.json: no whole certificate" in " ".join(said.split())
        assert "shard 2/3: missing" in said
    for index in (1, 3):
        (mine / f"{index}" / "certificate.json").write_text("{}")
    assert _merge(mine, "--output", tmp_path / "none") == 2
    assert "error PATHS: expected at least one certificate" in capsys.readouterr().err


def test_paths_without_a_certificate_are_refused_at_once(tmp_path: Path) -> None:
    gone = [["--output", str(tmp_path)], [str(tmp_path), str(tmp_path / "gone")]]
    assert refused_early("merge", gone) == ["2", "2", ""]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ([], "error PATHS: expected certificates of shards, or folders that hold them, got nothing\n"),
        (
            ["{0}/gone"],
            "error PATHS: expected at least one certificate of a shard: {0}/gone: there is no such",
        ),
        (
            ["{0}"],
            "error PATHS: expected at least one certificate of a shard: {0}: it holds no certificate.json",
        ),
    ],
)
def test_paths_without_a_certificate_are_named(
    paths: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _merge(*(path.format(tmp_path) for path in paths), "--output", tmp_path / "merged") == 2
    assert said.format(tmp_path) in capsys.readouterr().err


def _set(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for one in record["certificates"]:
            one[name] = value

    return change


def _set_in(part: str, name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for one in record["certificates"]:
            one[part][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("seed", 6), "seed: 5 in {0}, 6 in {1}"),
        (_set("source", "0" * 64), "source: "),
        (_set("worlds", "1"), "worlds: 1,sim:2 in {0}, 1 in {1}"),
        (_set("max_examples", 9), "max_examples: 4 in"),
        (_set_in("issuer", "properties", "other"), "issuer: properties: "),
        (_set_in("versions", "torch", "2.0"), "versions: torch: "),
        (_set_in("shard", "count", 4), "count: 3 in {0}, 4 in {1}"),
        (_set_in("shard", "subject", {"target": "x:y"}), "subject: "),
        (_set("shard", None), "shard: 1/3 in {0}, None in {1}"),
        (lambda record: record["certificates"].pop(), "targets: "),
        (_set_in("shard", "index", 1), "shard 1/3 was given twice: {0} and {1}"),
    ],
)
def test_shards_of_different_runs_are_refused(
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    named: str,
) -> None:
    _spoil(mine / "2", change)
    assert _merge(mine / "1", mine / "2", "--output", tmp_path / "merged") == 2
    said = capsys.readouterr().err
    assert named.format(*(mine / f"{index}" / "certificate.json" for index in (1, 2))) in said
    assert not (tmp_path / "merged").exists()


def test_findings_are_merged_where_the_target_is_not(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def falsify(record: dict[str, Any]) -> None:
        record["verdict"] = "falsified"
        one = record["certificates"][0]
        mark, row = "ab" if one["shard"]["index"] == 1 else "cd", one["properties"][0]
        row |= {"verdict": "falsified", "fingerprint": mark, "counterexample": f"elsewhere/{mark}.py"}
        found = {"property": row["property"], "world": row["world"], "fingerprint": mark, "example": "{}"}
        one |= {"verdict": "falsified", "source": "0" * 64}
        one["shard"]["found"] = [found]
        one["shard"]["subject"]["target"] = one["target"] = "gone/mine.py:Loss"

    def moved(record: dict[str, Any]) -> None:
        one = record["certificates"][0]
        one["source"] = "0" * 64
        one["shard"]["subject"]["target"] = one["target"] = "gone/mine.py:Loss"

    for index in (1, 2):
        _spoil(mine / f"{index}", falsify)
    _spoil(mine / "3", moved)
    (mine / "2" / "kept").mkdir()
    (mine / "2" / "kept" / "cd.py").write_text('# verified-losses counterexample\nHOME = "x"  # from\n')
    assert _merge(mine, "--output", tmp_path / "merged") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "note gone/mine.py:Loss: findings of different shards were not compared" in said
    record = _read(tmp_path / "merged" / "certificate.json")
    assert isinstance(record, Certificates)
    rows = record.certificates[0].properties
    named = {row.fingerprint: row.counterexample for row in rows if row.verdict == "falsified"}
    copy = tmp_path / "merged" / "counterexamples" / "cd.py"
    assert named == {"ab": "elsewhere/ab.py", "cd": str(copy)}
    home = os.path.relpath(Path.cwd(), copy.parent)
    assert copy.read_text() == f'# verified-losses counterexample\nHOME = "{home}"  # from\n'


def test_no_find_of_a_shard_is_lost(mine: Path, tmp_path: Path) -> None:
    """A certificate names one file of each defect; fuzzing leaves one of each fingerprint."""
    left = {"1/finds/a-1.py": "longer", "1/finds/b-2.py": 'HOME = "x"\n', "2/finds/a-1.py": "short"}
    for name, text in left.items():
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_text(text)
    output = tmp_path / "merged"
    assert _merge(mine, "--output", output) == 0
    found = {file.name: file.read_text() for file in (output / "finds").iterdir()}
    home = os.path.relpath(Path.cwd(), output / "finds")
    assert found == {"a-1.py": "short", "b-2.py": f'HOME = "{home}"\n'}


def test_one_file_that_is_given_twice_counts_once(shards: Path, tmp_path: Path) -> None:
    assert _merge(shards, shards / "1", shards / "1" / "certificate.json", "--output", tmp_path / "m") == 0


def test_they_are_merged_again_into_a_folder_beside_them(mine: Path) -> None:
    for _ in range(2):
        assert _merge(mine, "--output", mine / "merged") == 0


def test_a_shard_is_not_overwritten(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (shards / "1" / "certificate.json").read_bytes()
    assert _merge(shards, "--output", shards / "1") == 2
    assert "--output: expected a folder of its own" in capsys.readouterr().err
    assert (shards / "1" / "certificate.json").read_bytes() == before


def _row(verdict: str, case: str = "", mark: str = "", **given: object) -> Property:
    fields = {
        "property": "p", "world": "w", "device": "cpu", "examples": 2, "verdict": verdict,
        "worst_error_over_bound": 0.0,
        "reason": case, "fingerprint": mark, "counterexample": f"{case}.py", "case": case, "known": "",
        "seconds": 1.0, "errors_over_bound": [0.5, 0.25],
    }  # fmt: skip
    return msgspec.convert(fields | given, Property)


def test_what_several_shards_find_for_one_check_is_one_row_a_defect() -> None:
    skipped = _row("skipped", errors_over_bound=[], examples=0)
    found = [_row("falsified", "longer", "a"), _row("falsified", "short", "a")]
    rows = [_row("holds"), *found, skipped, _row("falsified", "other", "b", known="so trained")]
    first, second = combine(rows)
    assert (first.verdict, first.case, first.counterexample) == ("falsified", "short", "short.py")
    assert (first.examples, first.seconds, len(first.errors_over_bound)) == (6, 4.0, 6)
    assert (second.case, second.examples, second.known) == ("other", 2, "so trained")
    (held,) = combine([skipped, rows[0], rows[0]])
    assert (held.verdict, held.examples) == ("holds", 4)
    assert combine([skipped]) == [skipped]
