"""The losses over real Horovod ranks, and the world that they run in.

The functions that ranks run are imported there by name, as `tests.test_horovod`.
"""

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import verified_losses
from verified_losses import (
    ClipLoss,
    CoCaLoss,
    DistillClipLoss,
    SigLipLoss,
    gather_features,
)
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import Bench, Falsified, laws
from verified_losses.properties.names import DTYPES
from verified_losses.properties.show import counterexample
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.certifier import checks, verify
from verified_losses.properties.worlds import WorldError
from verified_losses.properties.worlds.horovod import HorovodWorld, horovod_missing
from verified_losses.properties.worlds.processes import ProcessWorld, shared_world
from verified_losses.properties.worlds.single import SingleWorld
from verified_losses.properties.worlds.specs import parse

from .defects.index import HOROVOD, Planted
from .test_counterexample import run as run_counterexample
from .test_examples import WRONG_GRADIENT, largest_difference, rounding_bound, run, train_alone_and_together

if missing := horovod_missing():
    if os.environ.get("HOROVOD") == "1":
        raise ImportError(f"HOROVOD=1, but {missing}")
    pytest.skip(f"not verified over Horovod: {missing}", allow_module_level=True)

LAWS = {law.name: law for law in laws()}
TERMS, GRADIENTS, COTANGENTS, MEAN = (
    "terms equal the oracle",
    "gradients equal the oracle",
    "cotangents pass through",
    "mean over ranks equals single process",
)
NAMES = {"clip": "ClipLoss", "coca": "CoCaLoss", "distill": "DistillClipLoss", "gather": "gather_features"}
laws_on_one_case = pytest.mark.filterwarnings("ignore:Using .assume. outside a property-based test")
FLAGS = list(itertools.product(("exact", "open_clip"), (False, True), (False, True)))


def world_of(size: int) -> ProcessWorld:
    return shared_world(size, HorovodWorld)


@pytest.fixture(scope="module", autouse=True)
def pools_end() -> Iterator[None]:
    """After these tests no rank takes processor time from others."""
    yield
    for size in (2, 3):
        world_of(size).close()


@pytest.fixture
def world() -> Iterator[ProcessWorld]:
    """A pool of its own, which a test may break."""
    with contextlib.closing(HorovodWorld(2)) as world:
        yield world


# A whole training run, before there are pools, which take processor time even at rest


def test_digits_train_over_horovod_to_the_parameters_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def horovodrun(*command: str) -> str:
        launcher = "horovod.runner.launch"
        launch = f"from {launcher} import run_commandline; run_commandline()"
        return run("-c", launch, "--gloo", "-np", "2", sys.executable, *command)

    every = [["--loss", "clip"], ["--loss", "siglip", "--dist-impl", "gather"], WRONG_GRADIENT]
    clip, siglip, wrong = train_alone_and_together(every, horovodrun, tmp_path, monkeypatch, "--horovod")
    assert clip[0] <= clip[1]
    assert siglip[0] <= siglip[1]
    assert wrong[0] > wrong[1]


# The losses against their oracles


def case_of(name: str, rows: tuple[int, ...], options: dict[str, Any]) -> Case:
    """Return a case whose ranks hold different numbers of caption tokens."""
    if name == "coca":
        options = options | {"clip_loss_weight": 1.0, "caption_loss_weight": 2.0}
    return Case(
        rows=rows, width=3, teacher_width=2, pattern="unit", scale=2.0, bias=0.5, seed=1,
        vocabulary=4, length=3, pads="tail", pad_rows=1,
        options=tuple((options | {"use_horovod": True}).items()),
    )  # fmt: skip


@laws_on_one_case
@pytest.mark.parametrize("rows", [(2, 2), (1, 3, 2)], ids=str)
@pytest.mark.parametrize(("convention", "local_loss", "gather_with_grad"), FLAGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_of_flags_holds(
    name: str, convention: str, local_loss: bool, gather_with_grad: bool, rows: tuple[int, ...]
) -> None:
    flags = {"convention": convention, "local_loss": local_loss, "gather_with_grad": gather_with_grad}
    case, contract = case_of(name, rows, flags), contracts()[name]
    subject = Subject(f"verified_losses:{NAMES[name]}", (convention,))
    chosen = [TERMS, GRADIENTS, COTANGENTS, *([MEAN] if contract.obeys_mean(case) else [])]
    bench = Bench(contract, subject, world_of(len(rows)), SingleWorld())
    for law in chosen:
        LAWS[law].check(bench, bench.reference(case))


@laws_on_one_case
@pytest.mark.parametrize("rows", [(2, 2), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_siglip_holds_in_every_dtype(dtype: str, rows: tuple[int, ...]) -> None:
    options = (("dist_impl", "gather"), ("use_horovod", True))
    case = Case(rows=rows, width=3, pattern="unit", scale=2.0, bias=-1.0, dtype=dtype, options=options)
    subject = Subject("verified_losses:SigLipLoss")
    bench = Bench(contracts()["siglip"], subject, world_of(len(rows)), SingleWorld())
    for law in (TERMS, GRADIENTS, COTANGENTS, MEAN):
        LAWS[law].check(bench, bench.reference(case))


@laws_on_one_case
@pytest.mark.parametrize(
    ("planted", "law"),
    [pytest.param(one, law, id=f"{one.name}-{law}") for one in HOROVOD for law in one.caught_by],
)
def test_horovods_own_gather_is_caught(planted: Planted, law: str) -> None:
    case = case_of(planted.contract, (3, 1), dict(planted.options))
    bench = Bench(contracts()[planted.contract], planted.subject, world_of(2), SingleWorld())
    with pytest.raises(Falsified):
        LAWS[law].check(bench, bench.reference(case))


@laws_on_one_case
@pytest.mark.parametrize("planted", HOROVOD, ids=lambda planted: planted.name)
def test_horovods_own_gather_is_caught_for_what_is_planted(planted: Planted) -> None:
    # where neither a gradient nor the split of unequal rows is asked for, its terms are right
    rows = {"AveragesInBackward": (3, 1), "ChunksByWorldSize": (2, 2)}[planted.name]
    case = case_of(planted.contract, rows, dict(planted.options))
    bench = Bench(contracts()[planted.contract], planted.subject, world_of(2), SingleWorld())
    LAWS[TERMS].check(bench, bench.reference(case))


def test_what_is_found_over_horovod_leaves_a_program(tmp_path: Path) -> None:
    planted = HOROVOD[0]
    # Horovod gathers no bfloat16
    subject = dataclasses.replace(planted.subject, dtypes=("float64", "float32"))
    planned = checks({planted.id: (planted.contract, subject)}, parse(planted.world))
    (check,) = [one for one in planned if one.law.name == MEAN]
    finding = verify(check, max_examples=50)
    assert finding.verdict == "falsified", finding
    # by its numbers, not because it could not run
    assert finding.reason.startswith("Falsified: "), finding.reason
    file = counterexample.write(finding, tmp_path)
    wrong = run_counterexample(file, tmp_path)
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert "observed" in wrong.stdout
    right = run_counterexample(file, tmp_path, "verified_losses:ClipLoss")
    assert right.returncode == 0, right.stdout + right.stderr


# Horovod's own optimizer

PAIRS, WIDTH, LENGTH, VOCABULARY = 5, 6, 3, 4


def step(rank: int, size: int, name: str, options: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return shared parameters after a step of Horovod's optimizer on this rank's rows: 3 and 2 of 5."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    images, texts, teacher_images, teacher_texts = draw(4, PAIRS, WIDTH)
    labels = torch.randint(1, VOCABULARY, (PAIRS, LENGTH), generator=generator)
    labels[0] = 0
    labels[4, 1:] = 0
    model = nn.ParameterDict(
        {
            "image": draw(WIDTH, 4),
            "text": draw(WIDTH, 4),
            "logit_scale": torch.tensor(3.0, dtype=dtype),
            "caption": draw(WIDTH, LENGTH * VOCABULARY),
        }
    )
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=1.0)
    place: dict[str, Any] = {"rank": rank, "world_size": size, "use_horovod": size > 1}
    if size > 1:
        import horovod.torch as hvd

        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    mine = torch.arange(PAIRS).tensor_split(size)[rank]
    image, text = normalize(images[mine] @ model["image"]), normalize(texts[mine] @ model["text"])
    logit_scale = model["logit_scale"]
    if name == "clip":
        loss = ClipLoss(**options, **place)(image, text, logit_scale)
    elif name == "siglip":
        loss = SigLipLoss(**place)(image, text, logit_scale, -1.0)
    elif name == "distill":
        teachers = teacher_images[mine], teacher_texts[mine]
        loss = sum(DistillClipLoss(**options, **place)(image, text, logit_scale, *teachers, 2.0))
    else:
        logits = (images[mine] @ model["caption"]).view(-1, LENGTH, VOCABULARY)
        loss = sum(CoCaLoss(2.0, 1.0, **options, **place)(image, text, logits, labels[mine], logit_scale))
    loss.backward()
    optimizer.step()
    return {name: parameter.detach() for name, parameter in model.items()}


MEAN_OBEYING = [(False, False), (False, True), (True, True)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("name", "options", "equal"),
    [
        *(
            (name, {"local_loss": local_loss, "gather_with_grad": with_grad}, True)
            for name in ("clip", "coca", "distill")
            for local_loss, with_grad in MEAN_OBEYING
        ),
        ("siglip", {}, True),
        # feature gradients 1/W too small, a mean of rank means: the check must see them
        ("clip", {"convention": "open_clip"}, False),
        ("coca", {"convention": "open_clip", "gather_with_grad": True}, False),
    ],
)
def test_a_step_of_horovods_optimizer_is_that_of_one_process(
    name: str, options: dict[str, Any], equal: bool, size: int
) -> None:
    alone = step(0, 1, name, options, torch.float64)
    bound = rounding_bound(alone, step(0, 1, name, options, torch.float32), longest_sum=PAIRS**2)
    for together in world_of(size).run(step, name, options, torch.float64):
        error = largest_difference(alone, together)
        print(f"error {error:.3e}, bound {bound:.3e}, error/bound {error / bound:.3g}")
        assert (error <= bound) == equal


# What goes wrong

X = torch.eye(2)
LOGITS, IDS = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)


def call(name: str, **options: Any) -> Any:
    """Construct a loss and call it on two pairs."""
    if name in EXCHANGES:
        mine = (X, X) if "bidir" in name else (X,)
        return getattr(verified_losses, name)(0, 1, *mine, **options)
    if name == "gather":
        return gather_features(X, X, use_horovod=True, **options)
    if name == "siglip":
        return SigLipLoss(use_horovod=True, **options)(X, X, 1.0)
    if name == "coca":
        return CoCaLoss(2.0, 1.0, use_horovod=True, **options)(X, X, LOGITS, IDS, 1.0)
    if name == "distill":
        return DistillClipLoss(use_horovod=True, **options)(X, X, 1.0, X, X, 1.0)
    return ClipLoss(use_horovod=True, **options)(X, X, 1.0)


LOSSES = ["clip", "coca", "distill", "siglip", "gather"]
EXCHANGES = [name for name in verified_losses.__all__ if name.startswith("neighbour_exchange")]


def raised(rank: int, size: int, name: str, options: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Return what this rank raises, so that the world stays."""
    try:
        call(name, **options[rank])
    except Exception as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.parametrize("name", LOSSES)
def test_before_init(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"use_horovod=True needs a running Horovod: call hvd\.init\(\)"):
        call(name)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        ({"rank": 0, "world_size": 2}, "expected those of Horovod, rank 1 of 2, got rank 0 of 2"),
        ({"rank": 1, "world_size": 3}, "expected those of Horovod, rank 1 of 2, got rank 1 of 3"),
        ({}, "expected those of Horovod, rank 1 of 2, got rank 0 of 1"),
    ],
)
def test_a_place_that_contradicts_horovods_raises_on_every_rank(
    name: str, wrong: dict[str, int], got: str
) -> None:
    for seen in world_of(2).run(raised, name, [{"rank": 0, "world_size": 2}, wrong]):
        assert seen is not None
        assert seen[0] == "ValueError"
        assert got in seen[1]


@pytest.mark.parametrize("name", LOSSES)
def test_every_rank_alone_contradicts_horovod(name: str) -> None:
    for rank, seen in enumerate(world_of(2).run(raised, name, [{}, {}])):
        assert seen is not None
        assert f"expected those of Horovod, rank {rank} of 2, got rank 0 of 1" in seen[1]


def test_ranks_that_disagree_raise() -> None:
    options = [{"rank": rank, "world_size": 2, "gather_with_grad": rank == 1} for rank in (0, 1)]
    for seen in world_of(2).run(raised, "clip", options):
        assert seen is not None
        assert "ranks disagree" in seen[1]
        assert "gather_with_grad=True" in seen[1]


def test_one_rank_of_horovod_is_one_process() -> None:
    with contextlib.closing(HorovodWorld(1)) as world:
        assert world.run(raised, "clip", [{}]) == [None]


def call_on_one_rank(rank: int, size: int) -> None:
    os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = "2"
    if rank == 0:
        call("clip", rank=rank, world_size=size)


def test_a_loss_does_not_wait_for_ever() -> None:
    # on a busy machine, the rank that only returns may need longer than a world's usual grace
    with contextlib.closing(HorovodWorld(2, grace=30.0)) as world, pytest.raises(WorldError) as caught:
        world.run(call_on_one_rank)
    assert [state.state for state in caught.value.ranks] == ["raised", "returned"], str(caught.value)
    expected = "TimeoutError: verified_losses.numbers: not every rank of Horovod took part within 2 s"
    assert expected in caught.value.ranks[0].detail


@pytest.mark.parametrize("name", EXCHANGES)
def test_exchanges_say_that_horovod_has_none(name: str) -> None:
    for seen in world_of(2).run(raised, name, [{}, {}]):
        assert seen is not None
        assert seen[0] == "RuntimeError"
        assert "needs torch.distributed, as Horovod sends no messages from one rank to another" in seen[1]


@pytest.mark.parametrize("dist_impl", ["bidir", "shift", "reduce"])
def test_siglips_other_forms_say_that_horovod_has_none(dist_impl: str) -> None:
    options = [{"rank": rank, "world_size": 2, "dist_impl": dist_impl} for rank in (0, 1)]
    for seen in world_of(2).run(raised, "siglip", options):
        assert seen is not None
        assert seen[0] == "ValueError"
        assert "expected 'gather' over Horovod, which sends no messages from one rank to another" in seen[1]


# The world


def place(rank: int, size: int) -> tuple[int, int, int]:
    import horovod.torch as hvd

    return hvd.rank(), hvd.size(), os.getpid()


def die(rank: int, size: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    all_gather("after a death")


def raise_before_a_collective(rank: int, size: int) -> None:
    if rank == 0:
        raise ArithmeticError("no part in it")
    all_gather("of one rank")


def skip_a_collective(rank: int, size: int) -> None:
    if rank == 0:
        all_gather("of one rank")


def hang(rank: int, size: int) -> None:
    while rank == 1:
        time.sleep(0.1)


def all_gather(name: str) -> None:
    import horovod.torch as hvd

    hvd.allgather(torch.ones(1), name=name)


def alive(world: ProcessWorld) -> list[int]:
    """Return the process ids of a world that works."""
    places = world.run(place)
    assert [seen[:2] for seen in places] == [(rank, world.size) for rank in range(world.size)]
    return [seen[2] for seen in places]


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_are_horovods_and_persist(size: int) -> None:
    world = world_of(size)
    assert world.name == f"horovod:{size}"
    pids = alive(world)
    assert len({os.getpid(), *pids}) == size + 1
    assert alive(world) == pids


def test_a_dead_rank_ends_the_run(world: ProcessWorld) -> None:
    before = alive(world)
    began = time.monotonic()
    with pytest.raises(WorldError) as caught:
        world.run(die)
    assert time.monotonic() - began < world.timeout
    assert caught.value.ranks[1].state == "killed"
    assert caught.value.ranks[1].detail.startswith("SIGKILL")
    assert caught.value.ranks[0].state != "returned"
    assert set(before).isdisjoint(alive(world))


def test_a_rank_that_raises_ends_the_run(world: ProcessWorld) -> None:
    with pytest.raises(WorldError, match="ArithmeticError: no part in it") as caught:
        world.run(raise_before_a_collective)
    assert caught.value.ranks[1].state != "returned"
    alive(world)


def test_a_collective_that_a_rank_skips_ends_the_run(world: ProcessWorld) -> None:
    alive(world)
    world.timeout = 5.0
    with pytest.raises(WorldError) as caught:
        world.run(skip_a_collective)
    assert [state.state for state in caught.value.ranks] == ["hung", "returned"]
    assert "in skip_a_collective" in caught.value.ranks[0].detail


def test_a_hung_rank_ends_the_run(world: ProcessWorld) -> None:
    alive(world)
    world.timeout = 5.0
    with pytest.raises(WorldError) as caught:
        world.run(hang)
    assert [state.state for state in caught.value.ranks] == ["returned", "hung"]
    assert "in hang" in caught.value.ranks[1].detail
    world.timeout = 60.0
    alive(world)
