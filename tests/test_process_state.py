"""What a call leaves behind is said, and what leaves nothing is not accused."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from verified_losses.properties.process_state import preserved, snapshot, traces

KEPT: list[Any] = []
CACHE: dict[int, torch.Tensor] = {}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    KEPT.clear()
    with preserved():
        yield
    for one in KEPT:
        if isinstance(one, subprocess.Popen):
            one.kill()
            one.wait()


def _left(misbehave: Callable[[], object]) -> list[str]:
    def call() -> dict[str, torch.Tensor]:
        given = torch.ones(3, requires_grad=True)
        misbehave()
        doubled = (given * 2).sum()
        if doubled.requires_grad:
            doubled.backward()
        return {"given": given}

    return traces(call)


def _patch() -> None:
    right = torch.nn.functional.softmax
    KEPT.append(right)
    torch.nn.functional.softmax = lambda *given, **named: right(*given, **named)  # type: ignore[assignment]


def _start_thread() -> None:
    threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start()


def _start_process() -> None:
    KEPT.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))


@pytest.mark.parametrize(
    ("misbehave", "said"),
    [
        (lambda: KEPT.append(torch.zeros(3)), "keeps 1 more tensors each time"),
        (_start_thread, "leaves a thread running"),
        (_start_process, "leaves a process running"),
        (lambda: np.random.seed(0), "changed NumPy's random generator"),
        (lambda: os.chdir("/"), "changed the working folder"),
        (lambda: print("x"), "printed 'x\\nx\\nx\\n'"),
        (lambda: torch.set_grad_enabled(True), "turned gradients on under no_grad"),
    ],
)
def test_what_is_left_behind_is_said(misbehave: Callable[[], object], said: str) -> None:
    assert _left(misbehave) == [said]


PRODUCTS: Any = torch.backends.cuda.matmul
FLOAT32 = "the precision of float32 products"
HALF = "the precision of products in half precision"
SETTINGS = [
    (PRODUCTS, "allow_tf32", True, FLOAT32),
    (PRODUCTS, "fp32_precision", "tf32", FLOAT32),
    (torch.backends, "fp32_precision", "tf32", FLOAT32),
    (torch.backends.mkldnn.matmul, "fp32_precision", "bf16", FLOAT32),
    (torch.backends.cudnn, "allow_tf32", False, "the precision of convolutions"),
    (torch.backends.cudnn.conv, "fp32_precision", "ieee", "the precision of convolutions"),
    (PRODUCTS, "allow_bf16_reduced_precision_reduction", False, HALF),
    (PRODUCTS, "allow_bf16_reduced_precision_reduction", (False, False), HALF),
    (PRODUCTS, "allow_fp16_reduced_precision_reduction", False, HALF),
    (PRODUCTS, "allow_fp16_accumulation", True, HALF),
]


@pytest.mark.parametrize(
    ("owner", "name", "value", "said"), SETTINGS, ids=[f"{name}={value}" for _, name, value, _ in SETTINGS]
)
def test_a_precision_that_is_set_is_said_and_put_back(owner: Any, name: str, value: Any, said: str) -> None:
    try:
        getattr(owner, name)
        if isinstance(value, tuple):
            getattr(owner, f"{name}_split_k")
    except AttributeError:
        pytest.skip(f"torch {torch.__version__} has no {name}")
    before = snapshot()
    with preserved():
        found = _left(lambda: setattr(owner, name, value))
        assert f"changed {said}" in found
        # one setting of all of torch is of convolutions too
        assert {one.partition(" of ")[0] for one in found} == {"changed the precision"}
        assert len(found) == 1 or owner is torch.backends
    assert snapshot() == before


def test_a_patch_of_torch_is_said() -> None:
    right = torch.nn.functional.softmax
    try:
        assert _left(_patch) == ["replaced torch.nn.functional.softmax"]
    finally:
        torch.nn.functional.softmax = right


def test_an_input_that_is_kept_is_said() -> None:
    def call() -> dict[str, torch.Tensor]:
        given = {"given": torch.ones(3)}
        KEPT[:] = given.values()
        return given

    assert traces(call) == ["keeps given alive"]


def test_what_a_thread_lets_go_of_a_little_later_is_not_accused() -> None:
    def call() -> dict[str, torch.Tensor]:
        given = {"given": torch.ones(3)}
        held = [given["given"], torch.zeros(2)]
        threading.Timer(0.1, held.clear).start()
        return given

    # which a process group's is not: it was there before
    assert [one for one in traces(call) if one != "leaves a thread running"] == []


def test_a_cache_that_does_not_grow_is_no_trace() -> None:
    assert _left(lambda: CACHE.setdefault(3, torch.arange(3))) == []


def test_shared_state_is_put_back() -> None:
    before = np.random.get_state()[1].tolist(), os.getcwd()  # type: ignore[union-attr]
    with preserved():
        np.random.seed(1)
        os.chdir("/")
    assert (np.random.get_state()[1].tolist(), os.getcwd()) == before  # type: ignore[union-attr]
