"""Contracts of one's own: right losses hold, in one process and several ranks, wrong ones are found."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.formulas import contracts as formulas
from verified_losses.properties import (
    NotCertified,
    certify,
    choice,
    contract,
    ids,
    matrix,
    positive,
    rows,
    shared,
)
from verified_losses.properties.ask.cli import main
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import Contract, contract_of
from verified_losses.properties.examples import Example
from verified_losses.properties.inspection import inspect_target
from verified_losses.properties.laws import Bench, Falsified, laws
from verified_losses.properties.own.formula import NoFormula
from verified_losses.properties.own.kinds import WrongKind
from verified_losses.properties.reference import reference
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.arguments import Unusable, ask
from verified_losses.properties.verify.plan import probes
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.single import SingleWorld

HERE = Path(__file__).parent / "formulas"
CONTRACTS, LOSSES = f"{HERE / 'contracts.py'}", f"{HERE / 'losses.py'}"
ASKED = ("terms equal the oracle", "gradients equal the oracle", "mean over ranks equals single process")
RIGHT = [
    ("SupCon", "supcon"),
    ("SupConByHand", "supcon"),
    ("SupConLocal", "supcon"),
    ("triplet_loss", "triplet"),
    ("triplet_by_products", "triplet"),
    ("HardNegatives", "hard_negatives"),
    ("moco_loss", "moco"),
    ("SoftTargets", "soft_targets"),
    ("multi_positive_loss", "multi_positive"),
    ("focal_loss", "focal"),
    ("focal_by_softmax", "focal"),
]
WRONG = [
    ("OffByOneMask", "supcon", 1),
    ("OwnCounts", "supcon", 1),
    ("MeanOverPositives", "supcon", 1),
    ("LabelsNotGathered", "supcon", 2),
    ("GathersConstants", "supcon", 2),
    ("triplet_of_distances", "triplet", 1),
    ("triplet_local_mean", "triplet", 1),
    ("NegativesNotScaled", "hard_negatives", 1),
    ("focal_not_detached", "focal", 1),
    ("focal_all_detached", "focal", 1),
]


@cache
def found(loss: str, name: str) -> tuple[Contract, Subject]:
    """Return a contract, and a subject as an inspection finds it, which takes no other process."""
    held_to = contract_of(f"{CONTRACTS}:{name}")
    _, asked = ask(f"{LOSSES}:{loss}", held_to.name)
    looked_at = [held_to.probe(case) for case in probes(Case(output_dict=False), asked)]
    seen = inspect_target(0, 1, asked, held_to, looked_at)
    assert not seen.signature.unusable, seen
    return held_to, replace(asked, bias=False, output_dict=False, form=seen.form)


def drawn(held_to: Contract, subject: Subject, size: int, count: int) -> list[Case]:
    cases: list[Case] = []

    @seed(size)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(held_to.cases(subject, size))
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases


def worst(loss: str, name: str, size: int, count: int) -> float:
    """Return the worst error over bound of a loss, in so many ranks."""
    held_to, subject = found(loss, name)
    world = SimulatedWorld(size, None) if size > 1 else SingleWorld()
    bench = Bench(held_to, subject, world, SingleWorld())
    asked = [law for law in laws() if law.name in ASKED and law.fits(held_to, size)]
    cases = drawn(held_to, subject, size, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of `assume` where nothing is drawn
        return max(law.check(bench, reference(held_to, Example(case))) for case in cases for law in asked)


@pytest.mark.parametrize(("loss", "name"), RIGHT)
def test_right_losses_hold(loss: str, name: str) -> None:
    for size, count in ((1, 6), (2, 3), (3, 2)):
        assert 0 < worst(loss, name, size, count) < 0.5


@pytest.mark.parametrize(("loss", "name", "size"), WRONG)
def test_wrong_losses_are_found(loss: str, name: str, size: int) -> None:
    with pytest.raises(Falsified):
        worst(loss, name, size, 12)


@pytest.mark.parametrize(("loss", "name"), [("SupConByHand", "supcon"), ("triplet_by_products", "triplet")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_formulation_is_not_accused(loss: str, name: str, dtype: str) -> None:
    held_to, subject = found(loss, name)
    subject = replace(subject, dtypes=(dtype,))
    bench = Bench(held_to, subject, SingleWorld(), SingleWorld())
    asked = [law for law in laws() if law.name in ASKED and law.fits(held_to, 1)]
    for case in drawn(held_to, subject, 1, 10):
        assert case.dtype == dtype
        for law in asked:
            law.check(bench, reference(held_to, Example(case)))


def test_forms_are_found_by_name_and_in_order() -> None:
    forms = {loss: found(loss, name)[1].form for loss, name in RIGHT}
    assert forms["SupCon"].call == "target(features=features, targets=labels)"
    assert forms["moco_loss"].call == "target(q=query, k=key, queue=queue, temperature=temperature)"
    assert not forms["moco_loss"].constructed
    assert forms["SoftTargets"].arguments == (("eps", "smoothing"),)
    assert forms["HardNegatives"].parameters == (("temperature", "temperature"),)


UNFIT = """
from torch import nn

class NoTemperature(nn.Module):
    def forward(self, features, labels): return features.sum()

def hidden(features, **kwargs): return features.sum()
"""


@pytest.mark.parametrize("loss", ["NoTemperature", "hidden"])
def test_a_loss_that_does_not_take_what_the_formula_names_is_refused(tmp_path: Path, loss: str) -> None:
    (tmp_path / "unfit.py").write_text(UNFIT)
    held_to = contract_of(f"{CONTRACTS}:supcon")
    _, asked = ask(f"{tmp_path / 'unfit.py'}:{loss}", held_to.name)
    looked_at = [held_to.probe(case) for case in probes(Case(output_dict=False), asked)]
    signature = inspect_target(0, 1, asked, held_to, looked_at).signature
    said = f"{loss} cannot be called with features, labels, temperature, by name or in order"
    assert said in signature.unusable
    assert "--call 'target(features, " in signature.unusable


def test_a_case_is_read_back_from_json() -> None:
    held_to, subject = found("moco_loss", "moco")
    for case in drawn(held_to, subject, 2, 3):
        again = Example.from_json(Example(case).to_json()).case
        assert again == case
        for one, other in zip(held_to.inputs(case), held_to.inputs(again), strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_contract_is_certified_and_its_counterexample_runs(tmp_path: Path) -> None:
    record = certify(
        f"{LOSSES}:SupCon", f"{CONTRACTS}:supcon", world="1,sim:2", max_examples=3, only=["terms*", "mean*"]
    )
    assert record.verdict == "holds"
    assert record.tolerance.startswith(("Monte Carlo arithmetic, 32 samples", "derived from steps"))
    assert len(record.contract_source) == 64
    with pytest.raises(NotCertified) as caught:
        certify(
            f"{LOSSES}:OwnCounts",
            formulas.supcon,
            world="1",
            max_examples=5,
            only="terms*",
            counterexamples=tmp_path,
        )
    (defect,) = caught.value.defects
    assert defect.file is not None
    text = defect.file.read_text()
    assert "Khosla et al. 2020" in text
    assert "def log_softmax" in text
    assert "@contract" not in text
    right = {**os.environ, "VERIFIED_LOSSES_TARGET": f"{LOSSES}:SupCon"}
    runs = [
        subprocess.run(
            [sys.executable, defect.file], env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        for env in (dict(os.environ), right)
    ]
    assert [run.returncode for run in runs] == [1, 0], [run.stdout + run.stderr for run in runs]


HELD = {"features": matrix(("calls", "width")), "labels": matrix(("batches", "width"), constant=True)}
FEATURES = {"features": rows(), "labels": ids()}


def of_two(features: Any, labels: Any) -> Any:
    return np.sum(features)


def with_rank(features: Any, labels: Any, rank: int) -> Any:
    return np.sum(features)


@pytest.mark.parametrize(
    ("kinds", "function", "message"),
    [
        ({}, of_two, "features has no kind"),
        ({"features": rows()}, of_two, "labels has no kind"),
        ({**FEATURES, "more": rows()}, of_two, "takes no more; its parameters are features, labels"),
        ({**FEATURES, "labels": int}, of_two, r"labels: expected one of rows\(\)"),
        ({**FEATURES, "rank": ids()}, with_rank, "takes rank, but it is the single process"),
        ({**FEATURES, "features": rows(like="labels")}, of_two, "like: expected other rows, got 'labels'"),
        ({"features": ids(), "labels": ids()}, of_two, "expected an input that gets a gradient"),
        ({"features": shared(3), "labels": positive(1, 2)}, of_two, r"expected rows\(\), ids\(\)"),
        ({**HELD, "holds": "features"}, of_two, r"holds: expected a constant matrix"),
        ({**HELD, "features": rows(), "holds": "labels"}, of_two, r"features: expected matrix\(\(.calls"),
    ],
)
def test_wrong_declarations_are_refused(kinds: dict[str, Any], function: Any, message: str) -> None:
    with pytest.raises(NoFormula, match=message):
        contract(**kinds)(function)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: positive(0, 1), "expected 0 < low <= high"),
        (lambda: positive(2, 1), "expected 0 < low <= high"),
        (lambda: ids(below=0), "below: expected a number from 1"),
        (lambda: matrix(("n", -1)), "columns: expected a number from 1"),
        (lambda: matrix(3, values="many"), "values: expected"),  # type: ignore[arg-type]
        (lambda: shared(), "shape: expected sizes"),
        (lambda: choice(), "choice: expected"),
        (lambda: contract(of_two), "expected the kind of each input"),  # type: ignore[arg-type]
    ],
)
def test_wrong_kinds_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises((WrongKind, NoFormula), match=message):
        wrong()


WRONG_FORMULAS = """
import numpy as np
from verified_losses.properties import contract, ids, rows

@contract(x=rows(), y=ids())
def vector(x, y): return np.sum(x, axis=1)

@contract(x=rows())
def lengths(x): return np.sum(np.linalg.norm(x, axis=1))

@contract(x=rows())
def absolute(x): return np.sum(abs(x))

@contract(x=rows())
def assigns(x):
    out = np.zeros(len(x))
    out[:] = np.sum(x, axis=1)
    return np.sum(out)

@contract(x=rows())
def raises(x): return x.nothing

@contract(x=rows(), any_order=True)
def ordered(x): return np.sum(x * np.arange(len(x))[:, None])

@contract(x=rows())
def unknown(x): return np.real(np.linalg.det(x.T @ x)) + np.sum(x)

@contract(x=rows())
def undefined(x): return np.sum(np.log(-x * x))

not_one = 3
"""


FEW_ROWS = """
import numpy as np
from verified_losses.properties import contract, positive, rows

@contract(x=rows(), like=rows(like="x"), scale=positive(0.5, 2.0), share=positive(0.1, 0.9))
def of_six(x, like, scale, share):
    if len(x) < 6:
        raise ValueError("six rows at least")
    return share * scale * np.sum(x * like) + np.sum(x)
"""
OF_SIX = """
class OfSix:
    def __init__(self, s=1.0):
        self.s = s

    def __call__(self, x, like, share):
        return share * self.s * (x * like).sum() + x.sum()
"""


def test_a_formula_may_refuse_few_rows_and_its_numbers_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "few_rows.py").write_text(FEW_ROWS)
    (tmp_path / "of_six.py").write_text(OF_SIX)
    held_to = contract_of(f"{tmp_path / 'few_rows.py'}:of_six")
    _, asked = ask(f"{tmp_path / 'of_six.py'}:OfSix", held_to.name)
    looked_at = [held_to.probe(case) for case in probes(Case(output_dict=False), asked)]
    assert [case.rows for case in looked_at] == [(6,), (6,)]
    held_to.check(looked_at)
    seen = inspect_target(0, 1, asked, held_to, looked_at)
    assert seen.matches, seen
    assert ("s", "scale") in seen.form.arguments


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vector", r"expected a number, the loss, got an array of shape \[5\]"),
        ("lengths", "is not analytic"),
        ("absolute", "is not analytic"),
        ("assigns", "lose their imaginary part"),
        ("raises", "raised AttributeError"),
        ("ordered", "its rows in another order give"),
        ("unknown", "is not analytic|np.det"),
        ("undefined", "gives nan"),
    ],
)
def test_wrong_formulas_are_refused_before_anything_runs(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "wrong.py").write_text(WRONG_FORMULAS)
    held_to = contract_of(f"{tmp_path / 'wrong.py'}:{name}")
    subject = Subject("x:y")
    with pytest.raises(NoFormula, match=message):
        held_to.check([held_to.probe(case) for case in probes(Case(output_dict=False), subject)])


def test_what_is_no_contract_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong2.py").write_text(WRONG_FORMULAS)
    (tmp_path / "broken.py").write_text("import numpy\n1 / 0\n")
    for name, message in (
        (f"{tmp_path}/wrong2.py:not_one", "got a int; there: vector, lengths"),
        (f"{tmp_path}/wrong2.py:missing", "got no such name"),
        (f"{tmp_path}/none.py:one", "there is no file"),
        (f"{tmp_path}/broken.py:one", "raised ZeroDivisionError"),
        ("nothing", "expected one of clip"),
    ):
        with pytest.raises(Unusable, match=message):
            ask("x:y", name)


def test_contracts_of_a_file_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["list"], ["clip ", "terms equal the oracle", "simulated"]),
        (
            ["list", CONTRACTS],
            ["contracts.py:supcon", "Khosla et al. 2020", "Of features, labels, temperature."],
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert all(one in printed for one in expected), printed
