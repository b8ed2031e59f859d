"""Training steps: planted ones are caught, right ones are not accused, and targets that are none are refused.

Here few of them run, in this process where they can; `make defects` runs all of them.
"""

import ast
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.errors import Unsatisfiable
from torch import nn

from peers.trainers.certify import RELEASED, Released
from verified_losses.properties.ask.api import NotCertified, certification, certify
from verified_losses.properties.ask.cli import main
from verified_losses.properties.ask.fuzz_cli import losses_of
from verified_losses.properties.ask.listing import everything
from verified_losses.properties.ask.plans import left, unasked
from verified_losses.properties.laws import Falsified, Place, Unanswered
from verified_losses.properties.names import STEP_LAWS
from verified_losses.properties.options import FuzzOptions
from verified_losses.properties.process_state import preserved
from verified_losses.properties.show.step import JUDGES, OF_LAWS, render, write
from verified_losses.properties.standalone.steps import (
    Constants,
    Plan,
    Seen,
    beside,
    buffers_of,
    built,
    micro_batches,
    named,
    resume,
    run_steps,
    take,
)
from verified_losses.properties.step.cases import StepCase, step_cases
from verified_losses.properties.step.inspection import inspected, look
from verified_losses.properties.step.laws import (
    COPIES,
    SKIPPED,
    Observed,
    _unit,
    buffers_equal,
    gradients_equal,
    laws,
    used_equals_fresh,
)
from verified_losses.properties.step.monte_carlo import UNITS, Moved
from verified_losses.properties.step.target import Trainer
from verified_losses.properties.step.truth import Truth, blunt, truth
from verified_losses.properties.step.verify import (
    GPU_ALONE,
    NO_SYNC,
    Bench,
    StepCertifier,
    StepFinding,
    checks,
    grouped,
    verify,
)
from verified_losses.properties.subjects import Subject
from verified_losses.properties.worlds import OutOfTime, RankState, server
from verified_losses.properties.worlds.single import SingleWorld
from verified_losses.properties.worlds.specs import SINGLE, parse

from .children import LIMIT_SECONDS
from .defects.steps.index import (
    AGREE,
    BUFFERS,
    DEFECTS,
    DRAWS,
    FRESH,
    GETS,
    GRADS,
    LOGGED,
    RIGHT,
    RNG,
    SCALE,
    UNEVEN,
    Planted,
)
from .defects.steps.report import amiss, findings
from .defects.steps.right import HandReduced

FEW = 2
HERE = {"LocalStatistics", "AveragesEveryMicroBatch", "StatesAverage", "AveragesInACallback", "SeedsAnew",
        "GradientSum", "GradientAlmostMean", "TimesAccumulation", "ForgetsZeroGrad", "ClipsBeforeUnscaling",
        "SeedsByRank", "NeverUsesHead"}  # fmt: skip
"""The planted steps that are caught without a process of their own."""
DDP = "NeverSynchronises", "DdpAccumulates"
"""One that is wrong and one that is right in two processes."""


@pytest.fixture
def _alone(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("verified_losses.properties.step.verify.SHRINK_SECONDS", 0.1)
    monkeypatch.setattr(server, "start", lambda compiles: None)
    monkeypatch.setattr("verified_losses.properties.step.inspection.run_processes", _no_processes)
    with preserved():
        yield


def _no_processes(*_: object) -> None:
    raise OutOfTime


def _planted(name: str) -> Planted:
    return next(one for one in [*DEFECTS, *RIGHT] if one.name == name)


def _trainer(name: str, **changed: object) -> Trainer:
    planted = _planted(name)
    trainer = inspected(planted.trainer, parse("1"))
    return dataclasses.replace(trainer, **changed)  # type: ignore[arg-type]


def _finding(name: str, law: str, world: str, examples: int = FEW) -> StepFinding:
    (spec,) = parse(world)
    (check,) = checks(name, _trainer(name), [spec], [law])
    return verify(check, Bench(check.trainer, spec), examples)


def test_the_laws_have_their_names() -> None:
    assert tuple(law.name for law in laws()) == STEP_LAWS
    assert all(law.check.__doc__ for law in laws())
    listed = "\n".join(everything())
    assert all(f"  {name}" in listed for name in STEP_LAWS)


def test_every_law_catches_a_planted_step() -> None:
    caught = {law for one in DEFECTS for law in one.caught_by}
    assert caught == set(STEP_LAWS) - {UNEVEN}, "unequal rows are a limit, which right ones show"
    names = [one.name for one in [*DEFECTS, *RIGHT]]
    assert len(names) == len(set(names))


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("name", sorted(HERE))
def test_caught(name: str) -> None:
    planted = _planted(name)
    seen = list(findings(planted, 25))
    assert seen
    assert not [said for finding in seen if (said := amiss(planted, finding))]


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("name", ["HandReduced", "WeighsRows"])
def test_a_right_step_is_not_accused(name: str) -> None:
    planted = _planted(name)
    planted = dataclasses.replace(planted, world="1" if name == "HandReduced" else "sim:2-3")
    for finding in findings(planted, FEW):
        expected = "limit" if finding.law == UNEVEN and not planted.uneven else "holds"
        assert finding.verdict == expected, finding.reason
        assert finding.worst_error_over_bound < 0.1


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("name", ["Overflows", "OverflowsAndClears"])
def test_of_steps_that_are_skipped_nothing_is_said(name: str) -> None:
    seen = list(findings(dataclasses.replace(_planted(name), world="1"), FEW))
    assert {(one.verdict, one.reason) for one in seen} == {("skipped", SKIPPED)}
    assert {one.law for one in seen if not one.not_run} <= {UNEVEN, DRAWS}, "limits leave no run incomplete"


@pytest.mark.usefixtures("_alone")
def test_a_step_that_ranks_alone_skip_is_not_compared() -> None:
    for law, world in ((GRADS, "sim:2"), (SCALE, "1")):
        finding = _finding("OverflowsOnRanks", law, world, 10)
        assert finding.verdict == "holds", finding.reason
        assert finding.examples > 0


@pytest.mark.usefixtures("_alone")
def test_gradients_of_copies_are_not_seen() -> None:
    for law in (GRADS, SCALE):
        finding = _finding("UpdatesCopies", law, "1")
        assert (finding.verdict, finding.reason) == ("skipped", COPIES)
    assert _finding("UpdatesCopies", AGREE, "sim:2").verdict == "holds"


@pytest.mark.processes
def test_in_processes() -> None:
    wrong, right = map(_planted, DDP)
    (finding, *_) = findings(wrong, FEW)
    assert (finding.verdict, amiss(wrong, finding)) == ("falsified", "")
    assert "2 (Linear)" in finding.module
    for finding in findings(dataclasses.replace(right, world="proc:2", caught_by=(GRADS, AGREE)), 1):
        assert finding.verdict == "holds", finding.reason


@pytest.mark.processes
def test_what_torch_runs_on_a_gpu_alone_is_no_finding() -> None:
    planted = dataclasses.replace(_planted("SyncBatchNormOfTorch"), caught_by=(GRADS, AGREE))
    for finding in findings(planted, FEW):
        assert (finding.verdict, finding.reason, finding.not_run) == ("skipped", NO_SYNC, True)
    raised = RankState(
        1, "raised", "Traceback:\n  a\nValueError: SyncBatchNorm expected input tensor to be on GPU"
    )
    assert GPU_ALONE.search(raised.said)
    assert not GPU_ALONE.search("rank 1 raised: ValueError: a GPU is needed")


@pytest.mark.usefixtures("_alone")
def test_the_first_parameter_and_module_are_named() -> None:
    finding = _finding("SeedsByRank", "parameters equal one process", "sim:2")
    assert "value of 0.weight before the first step" in finding.reason
    assert finding.module == "the first module whose output departs: 0 (Linear)"
    finding = _finding("GradientSum", GRADS, "sim:2")
    assert "gradient of 0.weight after step 1" in finding.reason
    assert finding.module == "outputs agree; the first module, backward, whose gradients depart: 2 (Linear)"
    assert finding.smallest == StepCase()


def test_a_batch_that_one_process_refuses_is_not_drawn() -> None:
    trainer = look(0, 1, _planted("LocalBatchNorm").trainer).found
    assert trainer is not None
    assert trainer.counts == (2, 3, 4)
    assert "one row: not drawn, as one process raises: ValueError" in "".join(trainer.notes)
    drawn = _drawn(trainer)
    for case in drawn:
        assert min(min(each) for each in case.rows) >= 2
    assert drawn


@pytest.mark.usefixtures("_alone")
def test_cases_that_one_process_refuses_are_no_findings() -> None:
    trainer = _trainer("PairsRows")
    assert trainer.counts == (2, 4)
    assert trainer.notes[0].startswith(
        "1 or 3 rows: not drawn, as one process raises: AssertionError: rows are pairs"
    )
    certifier = StepCertifier(10)
    (finding,) = certifier.verify_all(checks("x", trainer, parse("1"), [GRADS]))
    assert finding.verdict == "holds"
    assert {sum(map(sum, case.rows)) for case in finding.cases} <= {4, 6, 12}
    (line,) = left(certifier.benches)
    assert line.startswith("x: one process raises AssertionError: batches do not fill the queue")


def test_rows_that_can_be_split_in_one_way_are_not_split_unequally() -> None:
    trainer = dataclasses.replace(_planted("PairsRows").trainer, counts=(3,))
    with pytest.raises(Unsatisfiable):
        _drawn(trainer)
    assert look(0, 1, Trainer(Subject("tests.test_step:Threes"))).found.counts == (3,)  # type: ignore[union-attr]


def test_a_parameter_that_no_optimizer_has_is_named() -> None:
    trainer = look(0, 1, _planted("LeavesABias").trainer).found
    assert trainer is not None
    (note,) = [one for one in trainer.notes if "no optimizer" in one]
    assert note.startswith("left as they are, though they get gradients: 0.bias:")


def _drawn(trainer: Trainer) -> list[StepCase]:
    found: list[StepCase] = []

    @settings(max_examples=20, database=None)
    @given(step_cases(trainer, [2, 3], uneven=True))
    def note(case: StepCase) -> None:
        assert len({count for each in case.rows for count in each}) > 1
        found.append(case)

    note()
    return found


@pytest.mark.usefixtures("_alone")
def test_a_seed_draws_the_same_cases() -> None:
    one, other = (_finding("HandReduced", GRADS, "sim:2", 1) for _ in range(2))
    assert (one.cases, one.ratios) == (other.cases, other.ratios)
    assert one.ratios


@pytest.mark.usefixtures("_alone")
def test_one_defect_is_one_group() -> None:
    trainer = _trainer("GradientSum")
    spec = parse("sim:2")
    found = list(StepCertifier(FEW).verify_all(checks("x", trainer, spec, STEP_LAWS)))
    groups = grouped([one for one in found if one.verdict == "falsified"], {})
    assert [one.law for one in groups[0]] == [GRADS, "parameters equal one process", LOGGED]
    assert len(groups) == 1
    assert {one.law: one.verdict for one in found}[UNEVEN] == "skipped"


def test_rows_are_split_as_said() -> None:
    plan = Plan(((2, 1), (3, 1)), steps=1)
    with preserved():
        make = _trainer_of("HandReduced")
        parts = [_batches(make, rank, plan) for rank in range(2)]
        whole = _batches(make, 0, plan.whole)
    assert [[len(one) for one in each] for each in parts] == [[2, 1], [3, 1]]
    assert torch.equal(torch.cat([one for each in parts for one in each]), whole[0])


def _trainer_of(name: str) -> object:
    return _planted(name).trainer.subject.resolve()


def _batches(make: object, rank: int, plan: Plan) -> list[torch.Tensor]:
    trainer = built(make, 0, 1, plan)  # type: ignore[arg-type]
    return [one["x"] for one in micro_batches(trainer, rank, plan, 0)]


@pytest.mark.usefixtures("_alone")
def test_the_page_s_trainer_is_falsified_and_holds_once_it_is_repaired(tmp_path: Path) -> None:
    snippets = Path(__file__).parents[1] / "docs" / "snippets"
    text = (snippets / "my_train.py").read_text()
    first, _, rest = text.partition("    def step(")
    repaired = first + (snippets / "my_train_repaired.py").read_text() + rest[rest.index("\n\ndef ") :]
    verdicts = []
    for name, source in (("wrong", text), ("repaired", repaired)):
        (tmp_path / f"{name}.py").write_text(source)
        trainer = Trainer(Subject(f"{tmp_path}/{name}.py:make_step"), (("lr", 0.05),))
        worlds = parse("1")
        planned = checks("make_step", inspected(trainer, worlds), worlds, [GRADS])
        verdicts += [finding.verdict for finding in StepCertifier(6).verify_all(planned)]
    assert verdicts == ["falsified", "holds"]


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_the_digits_accumulate_rightly(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(__file__).parents[1] / "examples" / "digits_step.py"
    monkeypatch.syspath_prepend(str(place.parent))
    trainer = Trainer(Subject(f"{place}:make_step"), (("form", "accumulated"), ("loss", loss)))
    worlds = parse("1")
    planned = checks("digits", inspected(trainer, worlds), worlds, [GRADS, LOGGED])
    assert [finding.verdict for finding in StepCertifier(1).verify_all(planned)] == ["holds", "holds"]


@pytest.mark.parametrize("released", RELEASED, ids=lambda one: one.target)
def test_released_trainers_can_be_asked(released: Released) -> None:
    file, _, name = released.target.partition(":")
    tree = ast.parse((Path(__file__).parents[1] / "peers" / "trainers" / f"{file}.py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert set(released.wrong) <= set(STEP_LAWS)
    assert bool(released.wrong) == bool(released.why)
    assert parse(released.worlds)


# Monte Carlo arithmetic


def test_a_seed_moves_alike_and_another_does_not() -> None:
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def moved(seed: int) -> torch.Tensor:
        with Moved(seed):
            return (x @ x.T).exp().sum()

    assert moved(1) == moved(1)
    assert moved(1) != moved(2)
    assert abs(moved(1) / (x @ x.T).exp().sum() - 1) < 1e-13


def test_what_selects_is_exact() -> None:
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with Moved(1):
        found = torch.where(x > 0, x, -x).clone()[torch.tensor([1, 0])].view(2, 1).max()
        scaled = torch.tensor(1.0) / torch.tensor(65536.0) * 2
    assert found == abs(x[:2]).max()
    assert scaled == 2.0**-15


def test_gradients_and_what_is_written_in_place_move() -> None:
    x = torch.full((100,), 0.3, dtype=torch.float64, requires_grad=True)
    total = torch.zeros(100, dtype=torch.float64)
    with Moved(1):
        (x * x).sum().backward()
        total.add_(x.detach())
    assert x.grad is not None
    unit = torch.finfo(torch.float64).eps
    for seen, right in ((x.grad, 0.6), (total, 0.3)):
        apart = abs(seen / right - 1)
        assert 0.2 * unit < float(apart.mean()) < 10 * UNITS[torch.float64] * unit


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_bound_is_sharp(dtype: str) -> None:
    trainer = _planted("HandReduced").trainer
    with preserved():
        right = truth(SingleWorld(), trainer, Plan(((8,),), dtype, 3))
    for step, gradients in enumerate(right.seen.gradients):
        for name, one in gradients.items():
            assert one is not None
            bound = right.bound(f"gradient {step} {name}", one).max() / float(one.abs().max())
            assert 1e-16 < bound < {"float64": 1e-11, "float32": 1e-2}[dtype]


@pytest.mark.processes
def test_the_bound_of_a_dtensor_is_sharp() -> None:
    trainer = _planted("FsdpAlone").trainer
    worlds = trainer.worlds()
    try:
        right = truth(worlds.open(SINGLE), trainer, Plan(((4,),)))
    finally:
        worlds.close()
    assert 1e-16 < blunt(right) < 1e-11


@pytest.mark.usefixtures("_alone")
def test_nothing_holds_within_a_bound_that_could_not_be_sampled() -> None:
    trainer = inspected(Trainer(Subject("tests.test_step:ComparesBits")), parse("1"))
    asked = checks("x", trainer, parse("1"), [FRESH, GETS])
    certifier = StepCertifier(FEW)
    found = {one.law: one for one in certifier.verify_all(asked)}
    assert (found[FRESH].verdict, found[FRESH].not_run) == ("skipped", True)
    assert found[FRESH].reason == "rounding could not be sampled: AssertionError: two forwards differ"
    assert found[GETS].verdict == "holds"
    assert not left(certifier.benches), "the check says it"
    trainer = inspected(Trainer(Subject("tests.test_step:ComparesBitsOfMany")), parse("1"))
    certifier = StepCertifier(20)
    (finding,) = certifier.verify_all(checks("x", trainer, parse("1"), [FRESH]))
    assert finding.verdict == "holds"
    (line,) = left(certifier.benches)
    assert line.startswith("x: rounding could not be sampled: AssertionError: two forwards differ: in ")


@pytest.mark.usefixtures("_alone")
def test_nothing_holds_within_a_bound_that_is_infinite() -> None:
    trainer = inspected(Trainer(Subject("tests.test_step:OnTheEdge")), parse("1"))
    (finding,) = StepCertifier(FEW).verify_all(checks("x", trainer, parse("1"), [FRESH]))
    assert (finding.verdict, finding.reason) == ("skipped", "rounding may make the gradient not finite")


def test_running_statistics_move_as_their_inputs_do() -> None:
    norm = nn.BatchNorm1d(3).double()
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm(x)
    right = norm.running_mean.clone()  # type: ignore[union-attr]
    norm.reset_running_stats()
    with Moved(1):
        norm(x)
    apart = abs(norm.running_mean / right - 1)  # type: ignore[operator]
    assert 0 < float(apart.max()) < 1e-13


# random numbers


def test_constants_take_the_place_of_random_numbers_that_are_drawn() -> None:
    own = torch.Generator().manual_seed(0)
    with Constants():
        assert torch.equal(torch.rand(3), torch.full((3,), 0.5))
        assert torch.equal(torch.empty(2).uniform_(1, 3), torch.full((2,), 2.0))
        assert torch.equal(torch.normal(2.0, 1.0, (2,)), torch.full((2,), 2.0))
        assert torch.equal(torch.normal(torch.arange(2.0)), torch.arange(2.0))
        assert torch.equal(torch.bernoulli(torch.tensor([0.4, 0.6])), torch.tensor([0.0, 1.0]))
        assert torch.equal(torch.randperm(3), torch.arange(3))
        assert torch.equal(torch.randint(2, 5, (2,)), torch.full((2,), 3))
        assert torch.equal(torch.randint(3, (1,)), torch.ones(1, dtype=torch.long))
        assert torch.equal(torch.empty(2).random_(2, 5), torch.full((2,), 3.0))
        assert torch.equal(torch.empty(2).random_(3), torch.ones(2))
        assert torch.equal(nn.functional.dropout(torch.ones(2), 0.2), torch.full((2,), 1.25))
        assert torch.equal(torch.native_dropout(torch.ones(2), 0.2, True)[0], torch.full((2,), 1.25))
        assert torch.equal(torch.empty(1).exponential_(2.0), torch.full((1,), 0.5))
        assert torch.rand(9, generator=own).tolist() == [0.5] * 9


@pytest.mark.usefixtures("_alone")
def test_draws_of_which_nothing_is_promised_are_a_limit() -> None:
    planted = dataclasses.replace(_planted("DropsOfRank"), world="1")
    names = GRADS, FRESH, DRAWS
    seen = {one.law: one for one in findings(dataclasses.replace(planted, caught_by=names), 1)}
    assert [seen[name].verdict for name in names] == ["holds", "holds", "limit"]
    assert seen[DRAWS].limit == "random draws"
    trainer = _trainer("DropsOfRank")
    assert "step draws random numbers that change the gradient of 0.weight" in "".join(trainer.described)
    strict = dataclasses.replace(trainer, strict=True)
    (check,) = checks("x", strict, parse("1"), [DRAWS])
    assert verify(check, Bench(strict, parse("1")[0]), 1).verdict == "falsified"


def test_parameters_that_constants_do_not_reach_are_named() -> None:
    trainer = Trainer(Subject("tests.test_step:MasksWords"))
    found = look(0, 1, trainer).found
    assert found is not None
    assert found.unreached == ("head.weight", "head.bias")
    (line,) = [one for one in unasked({"x": ("step", found)}, "1", None, None, ["cpu"]) if "gradients" in one]
    assert line.startswith("x: gradients of head.weight, head.bias: 0 with constants in the place of random")
    assert not _looked_at("DropsOfRank").unreached
    assert not _looked_at("DropoutOfRows").unreached


@pytest.mark.usefixtures("_alone")
def test_draws_that_are_those_of_one_process_hold_promised_or_not() -> None:
    for name in ("DrawsAllRows", "DrawsAllRowsUnpromised"):
        assert _finding(name, DRAWS, "1", 3).verdict == "holds"
    assert _finding("DrawsAllRows", RNG, "1", 1).verdict == "holds"
    trainer = _trainer("DrawsAllRowsUnpromised")
    assert not checks("x", trainer, parse("1,sim:2"), [RNG])
    assert [one.world.name for one in checks("x", trainer, parse("1,sim:2"), [DRAWS])] == ["single"]


@pytest.mark.usefixtures("_alone")
def test_draws_for_which_no_constant_is_known_are_kept_where_they_are_promised() -> None:
    trainer = inspected(Trainer(Subject("tests.test_step:ChoosesAsPromised")), parse("1,sim:2"))
    assert (trainer.draws, trainer.constant, trainer.simulated) == ("the loss", False, False)
    for law in (RNG, FRESH, GETS):
        (check,) = checks("x", trainer, parse("1"), [law])
        assert verify(check, Bench(trainer, parse("1")[0]), 1).verdict == "holds"


# buffers


def test_what_a_checkpoint_of_a_rank_holds() -> None:
    with preserved():
        counts = built(_trainer_of("CountsBatches"), 0, 1, Plan(((2,),)))  # type: ignore[arg-type]
        averages = built(_trainer_of("Averages"), 0, 1, Plan(((2,),)))  # type: ignore[arg-type]
    assert sorted(buffers_of(counts, 0)) == ["batches", "rows"]
    assert sorted(buffers_of(counts, 1)) == ["batches", "rows"]
    assert {"average.n_averaged", "average.module.0.weight"} < set(buffers_of(averages, 0))
    assert not buffers_of(averages, 1)
    assert _looked_at("CountsBatches").passing == ("cache",)
    with preserved():
        states = built(_trainer_of("StatesAPart"), 0, 1, Plan(((2,),)))  # type: ignore[arg-type]
    assert sorted(buffers_of(states, 0)) == ["state_dict().average", "state_dict().bias"]
    states.local_buffers = ["average"]
    assert sorted(buffers_of(states, 0)) == ["state_dict().bias"]


def _looked_at(name: str) -> Trainer:
    found = look(0, 1, _planted(name).trainer).found
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("own", "micro", "said"),
    [
        (torch.tensor(2), 1, ""),
        (torch.tensor(4), 2, ""),
        (torch.tensor(3), 2, "rank 1, buffer of b after step 1: expected 2, observed 3"),
        (torch.tensor(4), 1, "expected 2, observed 4"),
        (torch.tensor(2.0), 1, "expected int64 of shape [], observed float32 of shape []"),
        (torch.tensor([2]), 1, "expected int64 of shape [], observed int64 of shape [1]"),
    ],
)
def test_whole_numbers_are_compared_exactly(own: torch.Tensor, micro: int, said: str) -> None:
    def seen(after: torch.Tensor) -> Seen:
        return Seen([], [], [], [], buffers=[{"b": torch.tensor(0)}, {"b": after}])

    observed = Observed(Truth(seen(torch.tensor(2)), {}), [seen(torch.tensor(2)), seen(own)], seen, micro)  # type: ignore[arg-type]
    if not said:
        assert buffers_equal(observed) == 0
        return
    with pytest.raises(Falsified) as raised:
        buffers_equal(observed)
    assert said in str(raised.value)


def test_what_is_not_finite_in_one_process_does_not_hold() -> None:
    made, mask, later = (torch.tensor(one) for one in ([1.0, 2.0], [-torch.inf, 1.0], [torch.nan, 1.0]))

    def judged(before: torch.Tensor, after: torch.Tensor, own: torch.Tensor) -> float:
        seen = [Seen([], [], [], [], buffers=[{"b": before}, {"b": one}]) for one in (after, own)]
        squares = {f"buffer {step} b": torch.zeros(2) for step in range(2)}
        return buffers_equal(Observed(Truth(seen[0], squares), seen, lambda how: seen[0]))

    assert judged(mask, mask, mask) == 0
    assert judged(mask, made, made) == 0
    for before, after, own in ((made, later, later), (made, mask, mask), (mask, mask, made)):
        with pytest.raises(Unanswered, match="one process has no finite buffer of b"):
            judged(before, after, own)
    with pytest.raises(Falsified):
        judged(mask, made, mask)
    with pytest.raises(Falsified):
        judged(mask, mask, mask + torch.tensor([0.0, 1e-3]))


@pytest.mark.usefixtures("_alone")
def test_a_loss_that_is_no_number_in_a_case_does_not_hold() -> None:
    trainer = inspected(Trainer(Subject("tests.test_step:LosesItsLoss")), parse("1"))
    (finding,) = StepCertifier(FEW).verify_all(checks("x", trainer, parse("1"), [LOGGED]))
    assert (finding.verdict, finding.reason) == ("skipped", "one process has no finite logged loss")


# targets that are none


class _Base:
    def __init__(self, rank: int, world_size: int) -> None:
        self.model = nn.Linear(3, 2)

    def batch(self, rows: int, seed: int) -> object:
        return {"x": torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))}

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        self.model.zero_grad()
        loss = self.model(batch["x"]).square().mean()
        loss.backward()
        return loss


class WithoutStep:
    def __init__(self, rank: int, world_size: int) -> None:
        self.model, self.batch = nn.Linear(1, 1), None


class NoDict(_Base):
    def batch(self, rows: int, seed: int) -> object:
        return torch.zeros(rows, 3)


class NoTensors(_Base):
    def batch(self, rows: int, seed: int) -> object:
        return {"x": [0.0] * rows}


class OtherRows(_Base):
    def batch(self, rows: int, seed: int) -> object:
        return {"x": torch.zeros(rows + 1, 3)}


class CannotResume(_Base):
    def state_dict(self, name: str) -> object:
        return {}

    def load_state_dict(self, state: object) -> None:
        raise AssertionError


class Junk(_Base):
    made = 0

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        Junk.made += 1
        self.model.register_buffer("junk", torch.tensor(Junk.made))


class Unseeded(_Base):
    def batch(self, rows: int, seed: int) -> object:
        return {"x": torch.randn(rows, 3)}


class NoNumber(_Base):
    def step(self, batch: dict[str, torch.Tensor]) -> object:
        super().step(batch)
        return None


class NoModule(_Base):
    def __init__(self, rank: int, world_size: int) -> None:
        self.model = "model"  # type: ignore[assignment]


class Unsteady(_Base):
    made = 0

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        Unsteady.made += 1
        return super().step({"x": batch["x"] * (1 + 1e-9 * Unsteady.made)})


class Drops(_Base):
    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))  # type: ignore[assignment]


class Chooses(_Base):
    """Draws in a way for which no constant is known."""

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        weights = torch.arange(1.0, 50.0)
        return super().step(batch) + torch.multinomial(weights, 3).sum()  # type: ignore[operator]


class ChoosesAsPromised(Chooses):
    promises = ("rng",)


class DrawsOfNumpy(_Base):
    def step(self, batch: dict[str, torch.Tensor]) -> object:
        return super().step({"x": batch["x"] * torch.from_numpy(np.random.rand(*batch["x"].shape))})


class DrawsOfPython(_Base):
    def step(self, batch: dict[str, torch.Tensor]) -> object:
        return super().step({"x": batch["x"] * random.random()})


class PromisesMore(_Base):
    promises = ("rng", "buffers")


class PromisesText(_Base):
    promises = "rng"


class StatesAlone(_Base):
    def rng_state(self, steps: int) -> int:
        return steps


class Raises(_Base):
    def step(self, batch: dict[str, torch.Tensor]) -> object:
        raise OSError("no data")


class LosesItsLoss(_Base):
    """The second loss that it logs is no number."""

    taken = 0

    def step(self, *batches: dict[str, torch.Tensor]) -> object:
        self.taken += 1
        loss = sum(super(LosesItsLoss, self).step(one) for one in batches)  # type: ignore[misc]
        return loss / len(batches) if self.taken == 1 else torch.nan


class MasksWords(_Base):
    """Predicts the rows that random numbers mask, which are few."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.model = nn.ModuleDict({"body": nn.Linear(3, 2), "head": nn.Linear(2, 3)})  # type: ignore[assignment]

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        self.model.zero_grad()
        hidden = self.model["body"](batch["x"])  # type: ignore[index]
        masked = torch.rand(len(hidden), 1) < 0.1
        loss = hidden.square().mean() + ((self.model["head"](hidden) - batch["x"]) * masked).square().mean()  # type: ignore[index]
        loss.backward()
        return loss


class Threes(_Base):
    """Its rows are triples."""

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        return super().step({"x": batch["x"].unflatten(0, (-1, 3)).sum(1)})


class ComparesBits(_Base):
    """Raises where two forwards differ, as they do in Monte Carlo arithmetic."""

    most = 0

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        x = batch["x"]
        assert len(x) <= self.most or torch.equal(self.model(x), self.model(x)), "two forwards differ"
        return super().step(batch)


class ComparesBitsOfMany(ComparesBits):
    most = 2


class OnTheEdge(_Base):
    """Has no number for a gradient where rounding makes one sum smaller than another."""

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        self.model.zero_grad()
        one, other = (self.model(batch["x"]).square().sum() for _ in range(2))
        (one * (one - other).detach().sqrt().exp()).backward()
        torch.optim.SGD(self.model.parameters()).step()
        return 1.0


class Needs(_Base):
    def __init__(self, rank: int, world_size: int, lr: float) -> None:
        super().__init__(rank, world_size)


class Lazy(_Base):
    def __init__(self, rank: int, world_size: int) -> None:
        self.model = nn.LazyLinear(2)  # type: ignore[assignment]


class AllFrozen(_Base):
    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self.model.requires_grad_(False)


class NormalisesPadding(_Base):
    """Divides padding by its length, and masks it afterwards: one gradient is no number."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self.model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1))  # type: ignore[assignment]
        self.optimizer = torch.optim.SGD(self.model.parameters())

    def step(self, batch: dict[str, torch.Tensor]) -> object:
        self.optimizer.zero_grad()
        padded = nn.functional.pad(batch["x"], (0, 0, 0, 1))
        layer, head = self.model  # type: ignore[misc]
        found = layer(padded)
        found = found / found.square().sum(1, keepdim=True).sqrt()
        loss = head(torch.where(padded.any(1, keepdim=True), found, 0.0)).square().mean()
        loss.backward()
        self.update()
        return loss

    def update(self) -> None:
        self.optimizer.step()


class NormalisesPaddingAndSkips(NormalisesPadding):
    """Takes no step where a gradient is no number, as one always is."""

    def update(self) -> None:
        if all(bool(one.grad.isfinite().all()) for one in self.model.parameters()):  # type: ignore[union-attr]
            super().update()


number = 3
REFUSED = {
    "NormalisesPadding": "one process has gradients that are not finite, of 0.weight",
    "NormalisesPaddingAndSkips": "one process has gradients that are not finite, of 0.weight",
    "number": "expected a function make_step(rank, world_size, **options), got int 3",
    "absent": "there is no absent in",
    "WithoutStep": "got WithoutStep without step",
    "NoDict": "batch: expected a dict of tensors, got Tensor",
    "NoTensors": "batch: expected a dict of tensors, got list for 'x'",
    "OtherRows": "expected 4 rows in the first dimension of 'x', got shape [5, 3]",
    "Unseeded": "batch: expected the same for the same seed; 'x' differs",
    "NoNumber": "step: expected the loss as a number, got NoneType",
    "NoModule": "model: expected an nn.Module, got str",
    "Junk": "the buffer junk differs between two runs, which local_buffers may name",
    "Unsteady": "the gradient of weight differs between two runs",
    "Chooses": "step draws random numbers that change the loss: several ranks draw others than one process",
    "DrawsOfNumpy": "step draws random numbers that change the gradient of weight",
    "DrawsOfPython": "step draws random numbers that change the gradient of weight",
    "PromisesMore": "promises: expected some of rng, got buffers",
    "PromisesText": "promises: expected a list of names, got 'rng'",
    "StatesAlone": 'rng_state: expected promises = {"rng"} beside it, got none',
    "Raises": "step raised OSError in one process",
    "Needs": "missing a required argument: 'lr'",
    "Lazy": "model: run one batch first: its parameters are uninitialised",
    "AllFrozen": "model: expected a parameter that requires grad, got none",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    looked = look(0, 1, Trainer(Subject(f"tests.test_step:{name}")))
    assert REFUSED[name] in looked.problem
    assert (name == "Raises") == ("no data" in looked.detail)


@pytest.mark.usefixtures("_alone")
def test_what_cannot_be_resumed_is_not_asked_to() -> None:
    trainer = inspected(Trainer(Subject("tests.test_step:CannotResume")), parse("1"))
    assert trainer.unresumed.startswith("a checkpoint cannot be loaded: TypeError")
    assert not checks("x", trainer, parse("1"), [FRESH])


def test_a_dtype_that_one_process_does_not_take_is_not_drawn() -> None:
    class Single(_Base):
        pass

    globals()["Single"] = Single
    Single.batch = lambda self, rows, seed: {"x": torch.ones(rows, 3, dtype=torch.float32)}  # type: ignore[assignment]
    found = look(0, 1, Trainer(Subject("tests.test_step:Single"))).found
    assert found is not None
    assert found.dtypes == ("float32",)
    assert found.notes[0].startswith("float64: not drawn, as one process raises: RuntimeError")
    assert not found.accumulates


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--call", "target(x)"], "--call: says nothing of a training step"),
        (["--world", "hvd:2"], "--world: "),
        (["--device", "cuda"], "--device: "),
        (["--config", "rank=1"], "--config: rank cannot be pinned"),
        (["--only", "terms*"], "--only: expected some of gradients equal one process"),
        (["--dtype", "int8"], "--dtype: "),
    ],
)
def test_arguments_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["certify", "tests.test_step:_Base", "--as", "step", "--json", f"{tmp_path}/c.json", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_inspect_says_that_a_step_is_not_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "tests.test_step:_Base", "--as", "step"])
    assert ended.value.code == 2
    assert "a step is verified by certify alone" in capsys.readouterr().err


# what people get


@pytest.mark.usefixtures("_alone")
@pytest.mark.filterwarnings("ignore")
def test_a_run_leaves_a_certificate_and_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"c.{name}" for name in ("json", "html", "junit")}
    given = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    found = tmp_path / "found"
    asked = ["--world", "1", "--max-examples", "1", "--counterexamples", str(found), "--only", FRESH, GETS]
    with pytest.raises(SystemExit) as ended:
        main(["certify", "tests.defects.steps.wrong:ForgetsZeroGrad", "--as", "step", *asked, *given])
    printed = capsys.readouterr().out
    assert ended.value.code == 1, printed
    assert "ForgetsZeroGrad: used equals fresh does not hold in world single" in printed
    record = json.loads(files["json"].read_text())
    assert (record["contract"], record["verdict"]) == ("step", "falsified")
    assert [one["verdict"] for one in record["properties"]] == ["holds", "falsified"]
    assert "used equals fresh" in files["html"].read_text()
    (program,) = found.glob("*.py")
    ran = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert (ran.returncode, "one process has" in ran.stdout) == (1, True), ran.stdout + ran.stderr


@pytest.mark.usefixtures("_alone")
def test_every_kind_of_finding_is_written(tmp_path: Path) -> None:
    trainer = _trainer("HandReduced")
    kinds = {
        "gradient": GRADS,
        "presence of the gradient": GETS,
        "logged loss": LOGGED,
        "value of rank 0": AGREE,
        "buffer": BUFFERS,
    }
    cases = [
        (law, Place(kind, "0.weight", 0, "after step 1", (0, 0), expected="one"))
        for kind, law in kinds.items()
    ]
    cases += [(law, Place("gradient", "0.weight", 0, "after step 1", (0, 0))) for law in OF_LAWS]
    assert set(kinds) <= set(JUDGES)
    for law, place in cases:
        (check,) = checks(
            "x",
            dataclasses.replace(trainer, scales=True, buffers=("b",)),
            parse("1" if law in OF_LAWS else "proc:2"),
            [law],
        )
        finding = StepFinding(
            check, 0, "falsified", smallest=StepCase(), error=Falsified(f"{place}", place), reason="Falsified"
        )
        compile(render(finding, tmp_path / "one.py"), "one.py", "exec")
    assert write(finding, tmp_path).name.startswith("x-loss-scale-never-matters-")


@pytest.mark.usefixtures("_alone")
def test_code_certifies_a_step(tmp_path: Path) -> None:
    given = {"world": "1", "max_examples": 1, "counterexamples": tmp_path}
    assert certify(HandReduced, "step", only=GETS, **given).verdict == "holds"  # type: ignore[arg-type]
    with pytest.raises(NotCertified) as raised:
        certify("tests.defects.steps.wrong:ForgetsZeroGrad", "step", only=FRESH, **given)  # type: ignore[arg-type]
    assert "ForgetsZeroGrad: used equals fresh does not hold in world single" in str(raised.value)
    assert raised.value.certificate is not None
    assert raised.value.certificate.contract == "step"
    with pytest.raises(ValueError, match="call: says nothing of a training step"):
        certify(HandReduced, "step", call="target(x)")
    with pytest.raises(ValueError, match="dtypes: expected some of float64"):
        certify(HandReduced, "step", dtypes=["int8"])


@pytest.mark.usefixtures("_alone")
def test_a_decorated_test_gets_a_check_for_each_property_of_a_step(tmp_path: Path) -> None:
    mark = certification(
        "tests.defects.steps.right:HandReduced", "step", world="1", max_examples=1, only=[GETS, SCALE],
        counterexamples=tmp_path,
    )  # fmt: skip
    _, (gets, scale) = mark.args
    assert mark.kwargs["ids"] == [f"{name}-single" for name in (GETS, SCALE)]
    gets()
    with pytest.raises(pytest.skip.Exception, match="it says nothing of this training step"):
        scale()


def _asked(tmp_path: Path, target: str, *arguments: str) -> dict[str, Any]:
    """Return the certificate of a run of the command."""
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "c.json"
    given = ["--max-examples", "1", "--json", str(file), "--counterexamples", str(file.parent)]
    with pytest.raises(SystemExit):
        main(["certify", f"tests.defects.steps.wrong:{target}", "--as", "step", *given, *arguments])
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.usefixtures("_alone")
def test_shards_of_a_step_merged_are_one_run(tmp_path: Path) -> None:
    asked = ["--world", "sim:2", "--only", GRADS, "parameters*"]
    whole = _asked(tmp_path, "GradientSum", *asked)
    parts = [_asked(tmp_path, "GradientSum", *asked, "--shard", f"{number}/2") for number in (1, 2)]
    assert [one["properties"][0]["property"] for one in parts] == [GRADS, "parameters equal one process"]
    with pytest.raises(SystemExit) as ended:
        main(["merge", *(str(tmp_path / name / "c.json") for name in "12"), "--output", str(tmp_path / "m")])
    assert ended.value.code == 1
    merged = json.loads((tmp_path / "m" / "certificate.json").read_text())

    def told(record: dict[str, Any]) -> list[tuple[str, ...]]:
        return [(one["property"], one["verdict"], one["fingerprint"]) for one in record["properties"]]

    assert told(merged) == told(whole)
    assert len({one["fingerprint"] for one in merged["properties"]}) == 1, "one defect"
    assert merged["shard"] is None


@pytest.mark.usefixtures("_alone")
def test_failing_cases_of_a_step_are_tried_first(tmp_path: Path) -> None:
    kept = ["--database", str(tmp_path / "db"), "--world", "1", "--only", FRESH]
    first = _asked(tmp_path, "ForgetsZeroGrad", *kept)
    again = _asked(tmp_path, "ForgetsZeroGrad", *kept, "--seed", "5")
    assert [one["properties"][0]["case"] for one in (first, again)] == [first["properties"][0]["case"]] * 2
    assert list((tmp_path / "db").iterdir())


@pytest.mark.usefixtures("_alone")
def test_a_project_certifies_losses_and_steps_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    entries = {"verified_losses:ClipLoss": "clip", "tests.defects.steps.right:HandReduced": "step"}
    targets = "".join(
        f'[[tool.verified-losses.targets]]\ntarget = "{target}"\nas = "{contract}"\n'
        for target, contract in entries.items()
    )
    stated = f'[tool.verified-losses]\nworld = "1"\nonly = ["inputs*", "{GETS}"]\nmax-examples = 1\n'
    (tmp_path / "pyproject.toml").write_text(stated + targets)
    with pytest.raises(SystemExit) as ended:
        main(["certify"])
    assert ended.value.code == 0, capsys.readouterr()
    record = json.loads((tmp_path / "build" / "certificate.json").read_text())
    seen = [
        (one["contract"], [row["property"] for row in one["properties"]]) for one in record["certificates"]
    ]
    assert seen == [("clip", ["inputs unchanged"]), ("step", [GETS])]


def test_fuzz_says_that_it_takes_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", "tests.test_step:_Base", "--as", "step"])
    assert ended.value.code == 2
    assert "--as: a training step is not fuzzed: tests.test_step:_Base" in capsys.readouterr().err
    loss, step = ("a:b", FuzzOptions(as_="clip")), ("c:d", FuzzOptions(as_="step"))
    assert losses_of([loss, step], given=False) == [loss]
    assert "not fuzzed, as they are training steps: c:d" in capsys.readouterr().out


def test_a_gradient_of_none_is_as_good_as_zeros() -> None:
    def seen(gradient: torch.Tensor | None) -> Seen:
        return Seen([0.0], [{"w": gradient}], [{"w": torch.ones(2)}] * 2, ["w"])

    def observed(rank: torch.Tensor | None) -> Observed:
        squares = {place: torch.zeros(2) for place in ("gradient 0 w", "value 0 w", "value 1 w")}
        return Observed(Truth(seen(torch.zeros(2)), squares), [seen(rank)], lambda how: seen(None))

    assert gradients_equal(observed(None)) == 0
    with pytest.raises(Falsified):
        gradients_equal(observed(torch.ones(2)))


def test_a_used_trainer_is_observed_and_a_new_one_expected() -> None:
    def seen(gradient: float) -> Seen:
        return Seen([0.0], [{"w": torch.tensor(gradient)}], [], [])

    squares = {"gradient 0 w": torch.zeros(())}
    observed = Observed(Truth(seen(3.0), squares), [seen(3.0)], lambda how: seen(1.0))
    with pytest.raises(Falsified, match=r"of a used trainer: .* expected 1, observed 3.*; something besides"):
        used_equals_fresh(observed)


def test_an_element_may_be_as_far_as_one_that_jumps_but_not_a_gradient() -> None:
    seen = Seen([], [], [], [])
    squares = torch.tensor([0.0, 8.0])
    truth = Truth(seen, {"value 0 w": squares, "gradient 0 w": squares})
    value, gradient = (truth.bound(f"{kind} 0 w", torch.zeros(2)) for kind in ("value", "gradient"))
    assert value[0] == value[1] == gradient[1] > gradient[0] == 0


def test_names_are_those_without_wrappers_wherever_these_are() -> None:
    inner = nn.ModuleDict({"text": nn.Linear(1, 1), "module": nn.Linear(1, 1)})
    plain = list(named(inner))
    inner["text"] = nn.DataParallel(inner["text"])
    assert list(named(nn.DataParallel(torch.compile(inner, backend="eager")))) == plain  # type: ignore[arg-type]


def test_runs_are_alike_bit_for_bit() -> None:
    make = _trainer_of("HandReduced")
    with preserved():
        one, other = (run_steps(make, 0, 1, Plan(((3, 2),), steps=2)) for _ in range(2))  # type: ignore[arg-type]
    assert one.losses == other.losses
    for first, second in zip(one.values, other.values, strict=True):
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_scale_of_the_loss_is_changed_for_this_law_alone() -> None:
    make = _trainer_of("ClipsUnscaled")
    with preserved():
        plain, scaled = (
            run_steps(make, 0, 1, Plan(((2,),), loss_scale=factor))  # type: ignore[arg-type]
            for factor in (1.0, 0.5)
        )
    assert (plain.scaled, scaled.scaled) == (False, True)
    assert torch.amp.GradScaler("cpu")._init_scale == 65536.0
    assert SCALE in STEP_LAWS


class _ClosureOfTwo(torch.optim.Optimizer):
    """Calls its closure with arguments."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any) -> Any:  # type: ignore[override, unused-ignore]
        return closure(2.0, plus=1.0)


class _StepWithAClosure:
    def __init__(self) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizer = _ClosureOfTwo(self.model.parameters())

    def step(self, batch: torch.Tensor) -> torch.Tensor:
        def closure(times: float, plus: float) -> torch.Tensor:
            loss = times * self.model(batch).sum() + plus * self.model.weight.sum()
            loss.backward()
            return loss

        return self.optimizer.step(closure)  # type: ignore[no-any-return]


def test_a_closure_gets_its_arguments_and_its_gradients_are_noted() -> None:
    taken = take(_StepWithAClosure(), [torch.ones(3, 1)])  # type: ignore[list-item]
    assert taken.held == {"weight"}
    assert taken.gradients["weight"] is not None
    assert float(taken.gradients["weight"]) == 2.0 * 3 + 1.0


def test_of_a_checkpoint_are_modules_wherever_they_are_and_what_states_itself() -> None:
    trainer = _trainer("AveragesInAList").subject.resolve()(0, 1)
    assert list(beside(trainer)) == ["averages.0", "averages.1"]
    make_step = _trainer("TaughtByAverage").subject.resolve()
    used, fresh = make_step(0, 1), make_step(0, 1)
    used.teacher.updates = 3
    with torch.no_grad():
        next(used.teacher.module.parameters()).add_(1.0)
    resume(fresh, used)
    assert fresh.teacher.updates == 3
    assert torch.equal(*[next(one.teacher.module.parameters()) for one in (fresh, used)])
    make_step = _trainer("ReadsScheduler").subject.resolve()
    used, fresh = make_step(0, 1), make_step(0, 1)
    used.optimizer.step()
    used.scheduler.step()
    resume(fresh, used)
    assert fresh.scheduler.last_epoch == 1
    make_step = _trainer("CountsInItsProgress").subject.resolve()
    used, fresh = make_step(0, 1), make_step(0, 1)
    used.progress.steps, used.progress.averages["loss"] = 3, 0.5
    used.history, fresh.history = [{"loss": 0.5}], []
    used.planned, fresh.planned = (configured := Configured(300)), Configured(300)
    resume(fresh, used)
    assert fresh.progress == used.progress
    assert (fresh.history, fresh.planned) == ([], configured)


@dataclasses.dataclass(frozen=True)
class Configured:
    rows: int


def test_a_step_that_constants_leave_nothing_of_is_refused() -> None:
    looked = look(0, 1, Trainer(Subject("tests.test_step:masks_few")))
    assert "with constants in their place no gradient is left" in looked.problem


class _MasksFew:
    """Learns from rows that it draws; constants draw none."""

    def __init__(self) -> None:
        self.model = nn.Linear(3, 2)

    def batch(self, rows: int, seed: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))}

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        drawn = torch.bernoulli(torch.full((len(batch["x"]), 1), 0.15))
        loss = (self.model(batch["x"]).square() * drawn).mean()
        self.model.zero_grad()
        loss.backward()
        return loss


def masks_few(rank: int, world_size: int) -> _MasksFew:
    return _MasksFew()


@pytest.mark.parametrize(
    ("losses", "units"),
    [
        ([1.25, 0.5], [0.01, 0.01]),
        ([1.0625, 3.5], [1e-4, 1e-4]),
        ([15.6, 2.3], [0.1, 0.1]),
        ([12.0, 3.0], [1.0, 1.0]),
        ([0.0123, 12.3], [1e-4, 0.1]),
        ([1.23e-7, 45.6], [1e-9, 0.1]),
        ([float(np.float32(15.6)), 0.0], [0.1, 0.1]),
        ([1 / 3, 0.5], [0.0, 0.0]),
    ],
)
def test_the_unit_of_losses_is_found(losses: list[float], units: list[float]) -> None:
    unit = _unit(losses)
    assert [unit(one) for one in losses] == pytest.approx(units)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("name", ["LogsOneDecimal", "LogsThreeDigits"])
def test_a_loss_that_is_rounded_is_not_accused(name: str) -> None:
    assert _finding(name, LOGGED, "sim:2-4", 10).verdict == "holds"


def test_small_whole_numbers_do_not_move() -> None:
    with Moved(1):
        counts = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).sum(1)
        others = torch.tensor([[1.5, 1.25, 0.0]]).sum(1)
    assert counts.tolist() == [2.0, 1.0]
    assert others.item() != 2.75
