"""What two ranks show of a target, as processes and as simulated ranks."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from verified_losses.properties.show.counterexample import write
from verified_losses.properties.show.forms import described
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.arguments import Unusable, ask
from verified_losses.properties.verify.certifier import Check, checks, verify
from verified_losses.properties.verify.plan import inspection, not_verified
from verified_losses.properties.worlds.specs import parse
from verified_losses.properties.worlds.table import KINDS

LAWS = ("terms equal the oracle", "gradients equal the oracle", "mean over ranks equals single process")
CASES = 6
OTHERS = {"simulated": KINDS["processes"], "processes": KINDS["simulated"]}


def _looked_at(name: str) -> Subject:
    asked = replace(ask(f"tests.wild:{name}", "clip")[1], even=True)
    return inspection(asked, "clip")[0]


def _checks(subject: Subject, worlds: str = "sim:2-4,proc:2") -> list[Check]:
    return [one for one in checks({"it": ("clip", subject)}, parse(worlds)) if one.law.name in LAWS]


@pytest.mark.parametrize(
    ("name", "world", "why"),
    [
        ("AsksOnce", "simulated", "they share what a process keeps"),
        ("AsksEnvironment", "simulated", "they share what a process keeps"),
        ("AsksOnceForGroup", "simulated", "they share what a process keeps"),
        ("WaitsForFuture", "simulated", "they have no Work.get_future"),
        ("StacksParts", "processes", "gloo refuses what it asks for (ProcessGroupGloo::allgather: invalid"),
    ],
)
def test_a_right_loss_is_verified_in_the_worlds_that_can_run_it(name: str, world: str, why: str) -> None:
    subject = _looked_at(name)
    assert why in dict(subject.excluded)[world]
    assert subject.gathers
    assert dict(subject.options) == {"local_loss": True, "gather_with_grad": True}
    asked = _checks(subject)
    assert len(asked) == len(LAWS)
    assert all(check.world.kind != world for check in asked)
    assert [verify(check, CASES).verdict for check in asked] == ["holds"] * len(LAWS)
    assert _said(asked, subject, world).endswith(f": verified in {OTHERS[world].words} alone")
    # not requested where it runs
    alone = _checks(subject, "1," + ("sim:2-4" if world == "simulated" else "proc:2"))
    assert _said(alone, subject, world).endswith(f": add {OTHERS[world].prefix}:2 to the worlds")


def _said(asked: list[Check], subject: Subject, world: str) -> str:
    (line,) = (line for line in not_verified(asked) if dict(subject.excluded)[world] in line)
    return line


@pytest.mark.parametrize("name", ["AsksOnceForLabels", "AsksLocalRank"])
def test_a_wrong_loss_that_asks_once_is_run_over_processes(name: str, tmp_path: Path) -> None:
    asked = _checks(_looked_at(name))
    assert {check.world.name for check in asked} == {"processes:2"}
    found = [verify(check, CASES) for check in asked]
    assert [one.verdict for one in found] == ["falsified"] * len(LAWS)
    file = write(found[0], tmp_path)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr


def test_a_loss_that_both_kinds_of_ranks_run_alike_is_verified_in_both() -> None:
    subject = _looked_at("LocalRows")
    assert subject.excluded == ()
    assert {check.world.kind for check in _checks(subject)} == {"simulated", "processes"}


@pytest.mark.parametrize("name", ["GathersLater", "GathersLargeBatches"])
def test_a_loss_whose_first_call_does_not_gather_is_verified_among_ranks(name: str) -> None:
    asked = _checks(_looked_at(name))
    assert {check.world.kind for check in asked} == {"simulated", "processes"}
    assert {verify(check, 2 * CASES).verdict for check in asked} == {"falsified"}


def test_ranks_that_are_right_show_which_flags_are_meant() -> None:
    """Labels begin at 0 on every rank: on the first they are right, and its loss is that of its own rows."""
    subject = _looked_at("LabelsFromZero")
    assert dict(subject.options) == {"local_loss": True, "gather_with_grad": True}
    terms = next(check for check in _checks(subject) if check.law.name == LAWS[0])
    assert verify(terms, CASES).reason.startswith("Falsified: rank 1, contrastive_loss: ")


def test_a_batch_of_one_row_may_be_refused() -> None:
    subject = _looked_at("refuses_one_pair")
    assert subject.least == 2
    (said,) = [line for line in described("clip", subject) if "one row" in line]
    assert "expected two pairs at least, got 1" in said
    for check in _checks(subject, "1"):
        found = verify(check, CASES)
        assert found.verdict == "holds"
        assert min(case.rows[0] for case in found.cases) > 1


def test_what_raises_for_one_row_without_refusing_it_is_a_defect() -> None:
    subject = _looked_at("drops_one_pair")
    assert subject.least == 1
    assert "falsified" in {verify(check, CASES).verdict for check in _checks(subject, "1")}


def test_a_loss_that_refuses_rows_of_other_lengths_gets_normalised_ones() -> None:
    subject = _looked_at("refuses_other_lengths")
    assert subject.features == "unit"
    assert [verify(check, CASES).verdict for check in _checks(subject, "1")] == ["holds"] * 2


def test_where_every_call_raises_widths_are_asked_about() -> None:
    with pytest.raises(Unusable, match="raised, as every other call did") as raised:
        _looked_at("takes_eights")
    assert "expected a multiple of 8, got 4" in raised.value.problem.partition(" No form")[0]


def test_a_module_is_no_target() -> None:
    with pytest.raises(Unusable, match="expected a class or a function, got a module: give AsksOnce"):
        _looked_at("constructed")


def test_the_shipped_captioner_of_hidden_states_is_inspected() -> None:
    subject, _ = inspection(ask("verified_losses:CoCaLoss", "coca_hidden")[1], "coca_hidden")
    assert subject.bias
    assert subject.output_dict
    assert subject.gathers
