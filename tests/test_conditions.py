"""Conditions that a run has: inputs that nobody should send, groups, copies, threads, groups made again."""

import copy
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from verified_losses import ClipLoss, SigLipLoss, fused_linear_cross_entropy
from verified_losses.checks import MOST_ROWS
from verified_losses.properties.cases import Case
from verified_losses.properties.examples import Example
from verified_losses.properties.groups import Groups, group_argument
from verified_losses.properties.show.counterexample import render
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify import limits
from verified_losses.properties.verify.certifier import Finding, checks, judged, verify
from verified_losses.properties.worlds.processes import shared_world
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.specs import parse

from .defects.index import FREEZING, GROUP, LABELS, NEGATIVE, NUMBERS, OVERFLOW, TO_BFLOAT16
from .test_losses import batch, make, same, step

X = torch.eye(2)
CLASSES = (ClipLoss, SigLipLoss)


def found(
    target: str, contract: str, law: str, world: str = "1", examples: int = 40, **settings: Any
) -> Finding:
    subject = Subject(f"tests.defects.{target}", **settings)
    (check,) = [one for one in checks({target: (contract, subject)}, parse(world)) if one.law.name == law]
    return verify(check, examples)


# What is asked of whom


@pytest.mark.parametrize("label", list(SHIPPED))
def test_the_shipped_losses_are_asked_what_they_state(label: str) -> None:
    asked = {check.law.name for check in checks({label: SHIPPED[label]}, parse("1,sim:4"))}
    assert {NUMBERS, GROUP, FREEZING} <= asked
    assert (NEGATIVE in asked) == (label in ("clip", "coca", "coca_hidden", "distill", "siglip"))
    assert (LABELS in asked) == (label in ("coca", "coca_hidden", "linear_cross_entropy"))
    assert (OVERFLOW in asked) == (not label.startswith("exchange"))


def test_of_others_it_is_asked_alone_that_nan_is_not_hidden() -> None:
    subject = Subject("tests.defects.plain:CoCa")
    asked = {check.law.name for check in checks({"it": ("coca", subject)}, parse("1,proc:4"))}
    assert NUMBERS in asked
    assert not asked & {NEGATIVE, LABELS, OVERFLOW, FREEZING}


def test_a_loss_that_multiplies_by_zero_is_not_accused_unless_it_states_otherwise() -> None:
    assert found("hostile:TokensTimesMask", "coca", NUMBERS, examples=20).verdict == "holds"


def test_a_finding_of_nan_is_a_program(tmp_path: Path) -> None:
    finding = found("hostile:LogitsToNumbers", "clip", NUMBERS)
    assert "expected nan, as the formula gives, observed" in finding.reason
    text = render(finding, tmp_path / "found.py")
    assert "from math import inf, nan" in text
    assert "nan" in text.partition("def inputs()")[2].partition("def unspoiled()")[0]
    (tmp_path / "found.py").write_text(text)
    compile(text, "found.py", "exec")


def test_an_example_with_a_number_that_is_none_is_json() -> None:
    case = Case(rows=(1, 1), spoiled=((0, "image_features", 1, "nan"),), frozen_on=(1,), widened=("a",))
    assert Example.from_json(Example(case).to_json()) == Example(case)
    assert "spoiled" not in Example(Case()).to_json()
    assert "frozen_on" not in Example(Case()).to_json()
    assert "widened" not in Example(Case()).to_json()


def test_what_raises_under_autocast_is_a_limit() -> None:
    finding = found("autocast:RaisesUnderAutocast", "clip", TO_BFLOAT16, examples=10)
    assert finding.verdict == "falsified"
    assert (one := judged(finding, 10)).verdict == "limit"
    assert one.limit == limits.RAISING_AUTOCAST


# Process groups


@pytest.mark.parametrize("seed", range(12))
def test_each_rank_is_in_one_of_two_groups(seed: int) -> None:
    for size in (4, 5, 8):
        groups = Groups.of(Case(rows=(1,) * size, seed=seed))
        assert sorted(rank for ranks in groups.members for rank in ranks) == list(range(size))
        assert len(groups.members) >= 2
        assert all(1 < len(ranks) < size for ranks in groups.members)


def takes(group: dist.ProcessGroup | None = None) -> None: ...
def takes_any(process_group: Any = None) -> None: ...
def takes_a_size(group: int = 8) -> None: ...
def takes_text(group: str | None = None) -> None: ...
def takes_none(rank: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("target", "name"),
    [(takes, "group"), (takes_any, "process_group"), (takes_a_size, ""), (takes_text, ""), (takes_none, "")],
)
def test_the_argument_of_a_group_is_told_by_name_default_and_annotation(target: Any, name: str) -> None:
    assert group_argument(target) == name


def derive_again(rank: int, size: int) -> list[bool]:
    """Return whether a loss gives the same before and after its world is made again."""
    loss, other = make("clip", rank, size, gather_with_grad=True), make("siglip", rank, size)
    before = step(loss, batch("clip", rank)), step(other, batch("siglip", rank))
    for _ in range(2):  # a group of the same ranks, made, used and destroyed
        group = dist.new_group(list(range(size)))
        inside = make("clip", rank, size, gather_with_grad=True, group=group)
        assert same(step(inside, batch("clip", rank)), before[0])
        copied = copy.deepcopy(inside)
        assert same(step(copied, batch("clip", rank)), before[0])
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(inside)
        dist.barrier()
        dist.destroy_process_group(group)
    after = step(loss, batch("clip", rank)), step(other, batch("siglip", rank))
    return [same(one, two) for one, two in zip(before, after, strict=True)]


def test_groups_come_and_go() -> None:
    assert SimulatedWorld(2).run(derive_again) == [[True, True]] * 2


def restart(rank: int, size: int, store: str) -> bool:
    """Return whether a loss gives the same after the default group has been made again."""
    loss = make("clip", rank, size, local_loss=True, gather_with_grad=True)
    before = step(loss, batch("clip", rank))
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    return same(step(loss, batch("clip", rank)), before)


@pytest.mark.processes
def test_a_loss_outlives_the_default_group(tmp_path: Path) -> None:
    assert shared_world(2).run(restart, str(tmp_path / "store")) == [True, True]


# Threads


@pytest.mark.parametrize("kind", ["clip", "coca", "distill", "siglip"])
def test_threads_share_a_loss(kind: str) -> None:
    loss = make(kind)
    alone = [step(loss, batch(kind, rank, rows=2 + rank)) for rank in range(4)]
    seen: list[bool] = [False] * 4

    def train(rank: int) -> None:
        seen[rank] = all(same(step(loss, batch(kind, rank, rows=2 + rank)), alone[rank]) for _ in range(5))

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(seen)


# Sizes and numbers


@pytest.mark.parametrize("size", [2**31, 2**63, 2**70])
def test_a_size_beyond_the_batch_is_the_batch(size: int) -> None:
    right = SigLipLoss()(X, X, 1.0)
    assert SigLipLoss(chunk_size=size)(X, X, 1.0) == right
    assert torch.isclose(SigLipLoss(chunk_size=size, implementation="streamed")(X, X, 1.0), right)
    assert torch.isclose(
        ClipLoss(tile_size=size, implementation="streamed")(X, X, 1.0), ClipLoss()(X, X, 1.0)
    )
    labels = torch.zeros(2, dtype=torch.int64)
    assert fused_linear_cross_entropy(X, X, labels, chunk_size=size) == fused_linear_cross_entropy(
        X, X, labels
    )


def test_the_most_rows_are_named() -> None:
    many = torch.ones(1, 2).expand(MOST_ROWS + 1, 2)
    for kind in CLASSES:
        with pytest.raises(ValueError, match=f"^image_features: expected at most {MOST_ROWS} rows, got"):
            kind()(many, many, 1.0)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number_gives_none(scale: float, implementation: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in CLASSES:
            assert kind(implementation=implementation)(X, X, scale).isnan()


def test_two_dtypes_without_autocast_are_named() -> None:
    for kind in CLASSES:
        with pytest.raises(TypeError, match=r"^text_features: expected the dtype of image_features"):
            kind()(X.bfloat16(), X, 1.0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_slopes_of_float16_do_not_overflow_under_autocast(reduction: str) -> None:
    hidden = torch.full((4, 2), 20.0, requires_grad=True)
    weight = torch.tensor([[300.0, 300.0], [-300.0, 100.0]], requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss = fused_linear_cross_entropy(
            hidden, weight, torch.zeros(4, dtype=torch.int64), z_loss=0.01, reduction=reduction
        )
    (loss / 64).backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
