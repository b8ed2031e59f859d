"""The contracts of InfoNCE, NT-Xent and cross-entropy: right losses hold, planted defects are caught."""

import pytest

from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import laws
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import Check, checks, verify
from verified_losses.properties.verify.plan import fitted, plan
from verified_losses.properties.worlds.specs import parse

LAWS = {law.name: law for law in laws()}
VALUES, GRADS = "terms equal the oracle", "gradients equal the oracle"
RIGHT = [
    ("InfoNCE", "infonce", "1,sim:2-4"),
    ("NTXent", "ntxent", "1,sim:2-4"),
    ("CrossEntropy", "cross_entropy", "1"),
]
LOCAL = (("local_loss", True), ("gather_with_grad", True))
WRONG = [
    ("NoTemperature", "infonce", "1", (VALUES, GRADS), ()),
    ("FirstOrderOnly", "infonce", "1", ("twice differentiable",), ()),
    ("OwnKeysOnly", "infonce", "sim:2", (VALUES, GRADS, "mean over ranks equals single process"), LOCAL),
    ("CountsItself", "ntxent", "1", (VALUES, GRADS), ()),
    ("OneViewOnly", "ntxent", "1", (VALUES, GRADS), ()),
    ("Underflows", "ntxent", "1", (VALUES,), ()),
    ("CountsIgnored", "cross_entropy", "1", (VALUES, GRADS), ()),
    ("OverwritesLogits", "cross_entropy", "1", ("inputs unchanged",), ()),
]


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{check.label}-{check.law.name}-{check.world.name}")
        for name, contract, worlds in RIGHT
        for check in checks({name: (contract, Subject(f"tests.defects.cosine:{name}"))}, parse(worlds))
    ],
)
def test_right_losses_hold(check: Check) -> None:
    finding = verify(check, 40, base_seed=1)
    assert finding.verdict == "holds", f"{finding.reason}\n{finding.counterexample}"
    assert finding.examples > 0, "nothing was checked"


@pytest.mark.parametrize(
    ("name", "pinned", "ignored"),
    [("EveryLabelCounts", (), set()), ("CrossEntropy", (("ignore_index", 3),), {3})],
    ids=["it takes none", "it is pinned"],
)
def test_labels_are_ignored_as_the_loss_is_constructed(
    name: str, pinned: tuple[tuple[str, object], ...], ignored: set[int]
) -> None:
    asked = ask(f"tests.defects.cosine:{name}", "cross_entropy", config=pinned)
    (check,) = plan(fitted({name: asked}), "1", only=[VALUES])
    finding = verify(check, 40)
    assert finding.verdict == "holds", f"{finding.reason}\n{finding.counterexample}"
    assert {case.pad_id for case in finding.cases if case.pads != "none" or case.pad_rows} == ignored


@pytest.mark.parametrize(
    ("name", "contract", "world", "law", "options"),
    [
        pytest.param(name, contract, world, law, options, id=f"{name}-{law}")
        for name, contract, world, caught_by, options in WRONG
        for law in caught_by
    ],
)
def test_caught(
    name: str, contract: str, world: str, law: str, options: tuple[tuple[str, object], ...]
) -> None:
    subject = Subject(f"tests.defects.cosine:{name}", options=options)
    (spec,) = parse(world)
    finding = verify(Check(name, contracts()[contract], subject, LAWS[law], spec), 100)
    assert finding.verdict == "falsified", finding
    assert finding.counterexample
