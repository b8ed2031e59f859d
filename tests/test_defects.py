"""Every law catches the defects planted for it, and every law has one."""

import pytest

from properties.certifier import Check, verify
from properties.contracts import contracts
from properties.laws import laws
from properties.subjects import Subject
from properties.worlds.specs import parse

from .defects.index import DEFECTS, Defect

LAWS = {law.name: law for law in laws()}
BUDGET = 100
"""Examples: four times what the command draws by default, whose seeds differ from run to run."""


@pytest.mark.parametrize(
    ("defect", "law"),
    [
        pytest.param(defect, law, id=f"{defect.target}-{law}")
        for defect in DEFECTS
        for law in defect.caught_by
    ],
)
def test_caught(defect: Defect, law: str) -> None:
    subject = Subject(
        f"tests.defects.losses:{defect.target}",
        even=defect.target == "gather_own_slice",
        options=defect.options,
    )
    (world,) = parse(str(defect.world_size))
    finding = verify(Check(defect.target, contracts()[defect.contract], subject, LAWS[law], world), BUDGET)
    assert finding.verdict == "falsified", finding
    assert finding.counterexample
    print(finding.reason, finding.counterexample, sep="\n")


def test_every_law_catches_a_defect() -> None:
    assert {law for defect in DEFECTS for law in defect.caught_by} == set(LAWS)
