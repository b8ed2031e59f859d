"""Losses that inductor compiles: here by a backend that takes seconds, by `make inductor` by itself."""

import dataclasses
import os

import pytest

from verified_losses.properties.cases import Case
from verified_losses.properties.examples import Example, Step
from verified_losses.properties.laws import Falsified, compiled
from verified_losses.properties.standalone import inductor
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import Check, checks, falsify, verify
from verified_losses.properties.worlds.specs import parse

from .defects.index import BY_INDUCTOR, COMPILED, INDUCTOR, Planted

RIGHT = "tests.defects.plain:Clip"
ITSELF = "INDUCTOR" in os.environ
FLAGS = (("convention", "exact"), ("local_loss", False), ("gather_with_grad", False))
CASE = Case(rows=(3,), width=4, pattern="unit", options=FLAGS)
OTHER_ROWS = (Step(dataclasses.replace(CASE, rows=(5,))),)


def check_of(target: str, law: str = INDUCTOR) -> Check:
    subject = Subject(target, scales="any", inductor=True)
    (check,) = [one for one in checks({"it": ("clip", subject)}, parse("1")) if one.law.name == law]
    return check


@pytest.fixture
def quick(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ITSELF:
        monkeypatch.setattr(inductor, "BACKEND", "aot_eager")
        monkeypatch.setattr(compiled, "missing_compiler", lambda: "")


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("planted", BY_INDUCTOR, ids=lambda planted: planted.id)
@pytest.mark.usefixtures("quick")
def test_a_second_call_of_other_rows_shows_what_one_does_not(planted: Planted) -> None:
    wrong = planted.subject.target
    assert falsify(check_of(wrong, COMPILED), Example(CASE)) < 1
    assert falsify(check_of(wrong), Example(CASE)) < 1
    with pytest.raises(Falsified, match="rank 0, contrastive_loss: expected"):
        falsify(check_of(wrong), Example(CASE, OTHER_ROWS))
    assert falsify(check_of(RIGHT), Example(CASE, OTHER_ROWS)) < 1


@pytest.mark.skipif(not ITSELF, reason="minutes: make inductor")
@pytest.mark.parametrize("planted", BY_INDUCTOR, ids=lambda planted: planted.id)
def test_caught_by_what_is_drawn(planted: Planted) -> None:
    finding = verify(check_of(planted.subject.target), 100)
    assert planted.explains(finding.reason), finding.reason


def test_half_of_the_cases_are_called_after_other_rows() -> None:
    seen: list[Example] = []
    law = dataclasses.replace(
        check_of(RIGHT).law, check=lambda bench, given: seen.append(given.example) or 0.0
    )
    verify(dataclasses.replace(check_of(RIGHT), law=law), 100)
    first = [one.steps[0].case for one in seen if one.steps]
    assert 0.25 < len(first) / len(seen) < 0.75
    assert all(len(one.steps) <= 1 for one in seen)


def test_without_a_compiler_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = verify(check_of(RIGHT), 25)
    why = "there is no C++ compiler no-such-compiler, which inductor needs"
    assert (finding.verdict, finding.reason) == ("skipped", why)


def test_it_is_asked_of_those_that_are_to_be_compiled_so() -> None:
    for asked in (True, False):
        contract, subject = ask("any:Loss", "clip", inductor=asked)
        planned = checks({"it": (contract, subject)}, parse("1"))
        assert (INDUCTOR in {check.law.name for check in planned}) == asked
