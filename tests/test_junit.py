"""JUnit XML of a certificate: what fails, what is skipped, what did not run, and that it is XML at all."""

from pathlib import Path
from xml.etree import ElementTree

import msgspec

from verified_losses.properties.show.certificate import Certificate, Issuer, Property, together
from verified_losses.properties.show.junit import COMPLETE, render, write

HOSTILE = "]]></failure> & \x1b[31m \x00 \ud800 \ufffe \r"


def _found(verdict: str = "holds", **given: object) -> Property:
    fields = {
        "property": "terms equal the oracle", "world": "single", "device": "cpu", "examples": 3,
        "verdict": verdict,
        "worst_error_over_bound": 0.1, "reason": "", "fingerprint": "", "counterexample": None, "case": "",
        "known": "", "seconds": 1.5, "errors_over_bound": [],
    }  # fmt: skip
    return msgspec.convert(fields | given, Property)


def _record(*found: Property, verdict: str = "holds", target: str = "m:Loss", **given: object) -> Certificate:
    fields = {
        "version": 1, "target": target, "contract": "clip", "convention": "exact", "verdict": verdict,
        "properties": list(found), "versions": {"torch": "2"}, "seed": 7, "max_examples": 25, "worlds": "1",
        "devices": [],
        "source": "", "issuer": Issuer("1", "", ""), "not_verified": ["CUDA: no"], "drawn": {}, "command": "",
    }  # fmt: skip
    return msgspec.convert(fields | given, Certificate)


def test_a_suite_a_loss_and_a_case_a_law_and_world(tmp_path: Path) -> None:
    wrong = _found(
        "falsified", reason="Falsified: rank 0, loss\nmore", case="Case(rows=(2,))", fingerprint="abc",
        counterexample="kept/x.py",
    )  # fmt: skip
    known = _found("falsified", reason="Falsified: again", known="as we train")
    skipped = _found("skipped", reason="no case was drawn")
    first = _record(_found(), wrong, known, skipped, verdict="falsified")
    record = together([first, _record(_found(world="sim:2"), target="m:Other")])
    write(record, tmp_path / "new" / "junit.xml")
    root = ElementTree.parse(tmp_path / "new" / "junit.xml").getroot()
    counts = "tests", "failures", "errors", "skipped", "time"
    assert [root.get(name) for name in counts] == ["5", "1", "0", "2", "7.500"]
    suites = root.findall("testsuite")
    assert [(suite.get("name"), suite.get("tests")) for suite in suites] == [
        ("m:Loss", "4"),
        ("m:Other", "1"),
    ]
    assert {one.get("name"): one.get("value") for one in suites[0].iter("property")}["seed"] == "7"
    holds, failed, *others = suites[0].findall("testcase")
    assert (holds.get("classname"), holds.get("name")) == ("m:Loss", "terms equal the oracle [single]")
    assert (holds.get("time"), len(holds)) == ("1.500", 0)
    (failure,) = failed
    assert failure.tag == "failure"
    assert failure.get("message") == "Falsified: rank 0, loss (kept/x.py)"
    said = "smallest case: Case(rows=(2,))\nfingerprint: abc\nrun: python kept/x.py"
    assert failure.text == f"Falsified: rank 0, loss\nmore\n{said}"
    assert [(one[0].tag, one[0].get("message")) for one in others] == [
        ("skipped", "known: as we train"), ("skipped", "no case was drawn"),
    ]  # fmt: skip


def test_what_did_not_run_is_an_error() -> None:
    root = ElementTree.fromstring(render(_record(verdict="incomplete", not_verified=["shard 2/2: missing"])))
    assert (root.get("tests"), root.get("errors")) == ("1", "1")
    (case,) = root.iter("testcase")
    assert case.get("name") == COMPLETE
    assert case[0].tag == "error"
    assert case[0].text == "shard 2/2: missing"


def test_nothing_that_a_target_says_breaks_the_file() -> None:
    wrong = _found("falsified", reason=HOSTILE, case=HOSTILE, counterexample=HOSTILE)
    root = ElementTree.fromstring(render(_record(wrong, target=HOSTILE, verdict="falsified")))
    (failure,) = root.iter("failure")
    assert "]]></failure>" in (failure.text or "")
    assert root.find("testsuite") is not None


def test_one_target_under_two_contracts_has_two_names() -> None:
    record = together([_record(_found()), _record(_found(), contract="coca")])
    names = [one.get("name") for one in ElementTree.fromstring(render(record)).iter("testsuite")]
    assert names == ["m:Loss as clip", "m:Loss as coca"]
