"""What all code of a process shares, and a loss must leave alone."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _generator() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_generator(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


_SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's random generator": (_generator, _set_generator),
    "Python's random generator": (random.getstate, random.setstate),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "the precision of float32 products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda enabled: torch.set_autocast_enabled("cpu", enabled),
    ),
    "the environment": (lambda: dict(os.environ), _set_environment),
}
"""How to read each, and how to put it back."""


def snapshot() -> dict[str, Any]:
    """Return the state as it is, by name."""
    return {name: get() for name, (get, _) in _SHARED.items()}


def changed(before: dict[str, Any]) -> list[str]:
    """Return the names of what differs from `before`."""
    return [name for name, state in snapshot().items() if state != before[name]]


@contextmanager
def preserved() -> Iterator[None]:
    """Put everything back that changes inside."""
    before = snapshot()
    try:
        yield
    finally:
        for name in changed(before):
            _SHARED[name][1](before[name])
