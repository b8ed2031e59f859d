"""The collectives of trainers, as losses use them, in simulated ranks; and Triton kernels, interpreted."""

import copy
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from torch import distributed as dist
from torch.utils._pytree import tree_leaves

from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import SMALL_ROWS, SMALL_WIDTH, contracts
from verified_losses.properties.standalone import launch
from verified_losses.properties.standalone.trainers import trainers
from verified_losses.properties.subjects import Subject
from verified_losses.properties.worlds.simulated import SimulatedWorld

SIZE = 3
Seen = tuple[torch.Tensor, Any]


def _row(rank: int) -> torch.Tensor:
    return torch.full((2, 2), float(rank), requires_grad=True)


def _lightning(rank: int, size: int, name: str, sync_grads: bool) -> Seen:
    own = _row(rank)
    gathered = trainers("lightning")[name]().all_gather({"x": own}, sync_grads=sync_grads)["x"]
    if gathered.requires_grad:
        (gathered * (1 + rank)).sum().backward()
    return gathered.detach(), own.grad


@pytest.mark.parametrize("name", ["LightningModule", "Fabric"])
@pytest.mark.parametrize("sync_grads", [True, False])
def test_lightning_stacks_and_carries_gradients_where_it_is_asked_to(name: str, sync_grads: bool) -> None:
    for gathered, gradient in SimulatedWorld(SIZE).run(_lightning, name, sync_grads):
        assert gathered.shape == (SIZE, 2, 2)
        assert gathered[:, 0, 0].tolist() == [0, 1, 2]
        assert (gradient is not None) == sync_grads
        assert not sync_grads or gradient.unique().tolist() == [1 + 2 + 3]


def test_alone_lightning_adds_no_dimension_and_accelerate_changes_nothing() -> None:
    own = _row(0)
    assert trainers("pytorch_lightning")["LightningModule"]().all_gather(own, sync_grads=True).shape == (2, 2)
    assert trainers("accelerate")["gather"]([own])[0].shape == (2, 2)


def _accelerate(rank: int, size: int) -> Any:
    accelerator = trainers("accelerate")["Accelerator"]()
    assert (accelerator.process_index, accelerator.num_processes) == (rank, size)
    assert accelerator.is_main_process == (rank == 0)
    gathered, scalars = accelerator.gather((_row(rank), torch.tensor(float(rank))))
    return gathered, scalars


def test_accelerate_concatenates_without_gradient() -> None:
    for gathered, scalars in SimulatedWorld(SIZE).run(_accelerate):
        assert gathered.shape == (2 * SIZE, 2)
        assert not gathered.requires_grad
        assert scalars.tolist() == [0, 1, 2]


def _padded(rank: int, size: int) -> Any:
    accelerator, rows = trainers("accelerate")["Accelerator"](), torch.full((rank + 1, 2), float(rank))
    ends = [
        accelerator.pad_across_processes({"x": rows}, pad_index=7, pad_first=first)["x"]
        for first in (False, True)
    ]
    return ends, [accelerator.reduce(rows[0], reduction=how, scale=2.0) for how in ("sum", "mean")]


def test_accelerate_pads_as_far_as_the_longest_and_adds_up() -> None:
    for rank, ((behind, before), (total, mean)) in enumerate(SimulatedWorld(SIZE).run(_padded)):
        own, pad = [float(rank)] * (rank + 1), [7.0] * (SIZE - 1 - rank)
        assert behind[:, 0].tolist() == own + pad
        assert before[:, 1].tolist() == pad + own
        assert (total.tolist(), mean.tolist()) == ([6, 6], [2, 2])


def _module(rank: int, size: int) -> Any:
    class Lit(trainers("lightning")["LightningModule"]):  # type: ignore[misc]
        def __init__(self, tau: float, lr: float = 0.1, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters(ignore="lr")

    one, other = Lit(0.5, scale=3), Lit(0.7)
    one.save_hyperparameters({"eps": 0})
    trainer = one.trainer
    return (
        dict(one.hparams), other.hparams.tau, copy.deepcopy(one).hparams.eps,
        (trainer.world_size, trainer.global_rank, trainer.is_global_zero, trainer.num_devices),
    )  # fmt: skip


def test_a_module_of_lightning_has_a_trainer_and_what_it_saved() -> None:
    for rank, (saved, tau, eps, place) in enumerate(SimulatedWorld(2).run(_module)):
        assert saved == {"tau": 0.5, "scale": 3, "eps": 0}
        assert (tau, eps) == (0.7, 0)
        assert place == (2, rank, rank == 0, 2)


def test_an_output_of_transformers_is_a_dict_without_what_is_none() -> None:
    @dataclass
    class Output(trainers("transformers")["ModelOutput"]):  # type: ignore[misc]
        loss: Any = None
        logits: Any = None

    output = Output(logits=3)
    assert (output.loss, output["logits"], output[0], output.to_tuple()) == (None, 3, 3, (3,))
    assert list(Output(1, 2)) == ["loss", "logits"]


def _of_torch(rank: int, size: int) -> Any:
    import torch.distributed._functional_collectives as functional
    import torch.distributed.nn as nn

    world = dist.get_world_size() if dist.is_initialized() else 1
    found = [nn.all_gather, nn.functional.all_gather]
    parts = [torch.cat(list(gather(_row(rank)))) for gather in found]
    parts.append(functional.all_gather_tensor(_row(rank).detach(), 0, dist.group.WORLD))
    own = _row(rank)
    carried = functional.all_gather_tensor_autograd(own, 0, dist.group.WORLD)
    (carried * (1 + rank)).sum().backward()
    return world, [part.detach()[::2, 0].tolist() for part in [*parts, carried]], own.grad


@pytest.mark.filterwarnings("ignore")  # torch deprecates some of them
def test_torchs_other_gathers_work_between_simulated_ranks() -> None:
    for world, parts, gradient in SimulatedWorld(SIZE).run(_of_torch):
        assert world == SIZE
        assert parts == [[0.0, 1.0, 2.0]] * 4
        assert gradient.unique().tolist() == [1 + 2 + 3]


@pytest.mark.filterwarnings("ignore")  # torch deprecates what Lightning calls
def test_the_stand_in_gathers_as_lightning_does() -> None:
    module = pytest.importorskip("lightning.fabric.utilities.distributed", exc_type=ImportError)
    real = module._all_gather_ddp_if_available

    def both(rank: int, size: int) -> Any:
        stand_in = trainers("lightning")["LightningModule"]()
        own, other = _row(rank), _row(rank)
        one, two = stand_in.all_gather(own, sync_grads=True), real(other, sync_grads=True)
        assert not real(other).requires_grad
        (one * (1 + rank)).sum().backward()
        (two * (1 + rank)).sum().backward()
        return torch.equal(one, two), torch.equal(own.grad, other.grad)  # type: ignore[arg-type]

    assert SimulatedWorld(SIZE).run(both) == [(True, True)] * SIZE


KERNEL = """
import torch, triton, triton.language as tl

@triton.jit
def kernel(x, y, out, d: tl.constexpr, block: tl.constexpr):
    k = tl.arange(0, block)
    row = tl.program_id(0) * d + k
    a, b = tl.load(x + row, mask=k < d, other=0.0), tl.load(y + row, mask=k < d, other=0.0)
    tl.store(out + tl.program_id(0), tl.sum(a * b))

def dots(x, y):
    assert x.is_cuda and torch.cuda.get_device_capability()[0] >= 8
    with torch.cuda.device(x.device):
        out = x.new_empty(len(x))
        kernel[(len(x),)](x, y, out, x.shape[1], triton.next_power_of_2(x.shape[1]))
    return out
"""
PROGRAM = """
import sys, torch, torch._dynamo
from verified_losses.properties.subjects import Subject
dots = Subject(sys.argv[1], interpret=True).resolve()
x = torch.arange(15.0).reshape(3, 5)
assert torch.equal(dots(x, x), (x * x).sum(1)), dots(x, x)
print("interpreted")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_kernel_runs_in_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)
    command = [sys.executable, "-c", PROGRAM, f"{tmp_path}/kernel.py:dots"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout == "interpreted\n", ran.stderr


PRODUCTS = """
import torch, triton, triton.language as tl

@triton.jit
def kernel(x, out, n: tl.constexpr):
    rows = tl.arange(0, n)
    a = tl.load(x + rows[:, None] * n + rows[None, :])
    tl.store(out + rows[:, None] * n + rows[None, :],
             tl.dot(a.to(tl.bfloat16), tl.trans(a).to(tl.bfloat16), out_dtype=tl.float32))

def dots(x, _):
    out = torch.empty_like(x)
    kernel[(1,)](x, out, len(x))
    return out.diagonal()
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_interpreter_multiplies_matrices_of_bfloat16(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(PRODUCTS)
    program = PROGRAM.replace("torch.arange(15.0).reshape(3, 5)", "torch.arange(256.0).reshape(16, 16) / 256")
    command = [sys.executable, "-c", program, f"{tmp_path}/kernel.py:dots"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout == "interpreted\n", ran.stderr


@pytest.mark.filterwarnings("ignore")
def test_the_stand_in_gathers_as_accelerate_does() -> None:
    operations = pytest.importorskip("accelerate.utils.operations", exc_type=ImportError)

    def both(rank: int, size: int) -> Any:
        for value in (_row(rank), {"x": [torch.full((1, 3), 2.0 * rank)]}, torch.tensor(float(rank))):
            one, two = trainers("accelerate")["gather"](value), operations._gpu_gather(value)
            pairs = zip(tree_leaves(one), tree_leaves(two), strict=True)
            if not all(torch.equal(left, right) and not left.requires_grad for left, right in pairs):
                return False
        return True

    state = SimpleNamespace(num_processes=SIZE, backend="gloo", device=torch.device("cpu"), debug=False)
    with mock.patch.object(operations, "PartialState", return_value=state):
        assert SimulatedWorld(SIZE).run(both) == [True] * SIZE


def test_a_program_that_names_it_load_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "interpret", lambda: None)
    monkeypatch.setattr(launch, "load", launch.load_interpreted)
    assert launch.load("json") is json


@given(contracts()["clip"].cases(Subject("a:B", interpret=True), 2))
@settings(max_examples=30, database=None, deadline=None)
def test_interpreted_cases_are_small(case: Case) -> None:
    assert max(case.rows) <= SMALL_ROWS
    assert case.width <= SMALL_WIDTH
