"""State that all code of a process shares, which a loss must leave alone."""

import contextlib
import gc
import glob
import io
import operator
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _generator() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_generator(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _numpy_generator() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return name, np.asarray(keys).tobytes(), *rest


def _set_numpy_generator(state: tuple[Any, ...]) -> None:
    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))


def _gpu_generators() -> tuple[bytes, ...]:
    """Return their states; none before CUDA is initialised, which takes seconds and memory."""
    if not torch.cuda.is_initialized():
        return ()
    return tuple(one.get_state().numpy().tobytes() for one in torch.cuda.default_generators)


def _set_gpu_generators(states: tuple[bytes, ...]) -> None:
    for one, state in zip(torch.cuda.default_generators, states, strict=True):
        one.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _current_device() -> int | tuple[()]:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or (accelerator.type == "cuda" and not torch.cuda.is_initialized()):
        return ()
    return torch.accelerator.current_device_index()


def _read(path: str) -> Any:
    """Return a setting of torch; None where it has none, or says that it was set in two ways."""
    try:
        return operator.attrgetter(path)(torch.backends)
    except (AttributeError, RuntimeError):
        return None


def _write(paths: Iterable[str], values: Iterable[Any]) -> None:
    for path, value in zip(paths, values, strict=True):
        if value is not None and _read(path) != value:  # it may follow another
            owner, _, name = path.rpartition(".")
            setattr(operator.attrgetter(owner)(torch.backends) if owner else torch.backends, name, value)


_OF_PRODUCTS = ("fp32_precision", "cuda.matmul.fp32_precision", "mkldnn.matmul.fp32_precision")
_OF_CONVOLUTIONS = ("cudnn.allow_tf32", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision")
_REDUCTIONS = tuple(f"cuda.matmul.allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16"))


def _float32_products() -> tuple[str | None, ...]:
    """Return what the older function says, None once newer settings contradict it, and those."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = None
    return precision, *map(_read, _OF_PRODUCTS)


def _set_float32_products(state: tuple[str | None, ...]) -> None:
    precision, *newer = state
    if precision is not None:
        torch.set_float32_matmul_precision(precision)  # which sets the newer ones
    _write(_OF_PRODUCTS, newer)


def _convolutions() -> tuple[Any, ...]:
    return tuple(map(_read, _OF_CONVOLUTIONS))


def _set_convolutions(state: tuple[Any, ...]) -> None:
    _write(_OF_CONVOLUTIONS, state)


def _half_products() -> tuple[Any, ...]:
    """Return for each dtype whether parts of sums may be rounded, and whether there may be parts."""
    splits = [(_read(path), _read(f"{path}_split_k")) for path in _REDUCTIONS]
    return *splits, _read("cuda.matmul.allow_fp16_accumulation")


def _set_half_products(state: tuple[Any, ...]) -> None:
    *reductions, accumulation = state
    for path, (reduced, splits) in zip(_REDUCTIONS, reductions, strict=True):
        _write([path], [reduced])
        if splits is not None and _read(f"{path}_split_k") != splits:
            setattr(torch.backends.cuda.matmul, path.rpartition(".")[2], (reduced, splits))
    _write(["cuda.matmul.allow_fp16_accumulation"], [accumulation])


_SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's random generator": (_generator, _set_generator),
    "Python's random generator": (random.getstate, random.setstate),
    "NumPy's random generator": (_numpy_generator, _set_numpy_generator),
    "a GPU's random generator": (_gpu_generators, _set_gpu_generators),
    "the current device": (_current_device, torch.accelerator.set_device_index),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "the precision of float32 products": (_float32_products, _set_float32_products),
    "the precision of convolutions": (_convolutions, _set_convolutions),
    "the precision of products in half precision": (_half_products, _set_half_products),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda enabled: torch.set_autocast_enabled("cpu", enabled),
    ),
    "the environment": (lambda: dict(os.environ), _set_environment),
    "the working folder": (os.getcwd, os.chdir),
}
"""How to read each, and how to put it back."""


_PRODUCTS = ("the precision of float32 products", "the precision of products in half precision")


def products() -> tuple[Any, ...]:
    """Return the settings that decide how matrices are multiplied; `set_products` puts them into force."""
    return tuple(_SHARED[name][0]() for name in _PRODUCTS)


def set_products(settings: tuple[Any, ...]) -> None:
    """Let matrices be multiplied as where `products` returned these settings."""
    if settings != products():
        for name, state in zip(_PRODUCTS, settings, strict=True):
            _SHARED[name][1](state)


def snapshot() -> dict[str, Any]:
    """Return the state as it is, by name."""
    return {name: get() for name, (get, _) in _SHARED.items()}


def changed(before: dict[str, Any]) -> list[str]:
    """Return the names of the settings that differ from `before`."""
    return [
        name
        for name, state in snapshot().items()
        if state != before[name] and before[name] != ()  # which a device has that was not initialised
    ]


@contextmanager
def preserved() -> Iterator[None]:
    """Put everything back that changes inside."""
    before = snapshot()
    try:
        yield
    finally:
        for name in changed(before):
            _SHARED[name][1](before[name])


_TORCH = [
    (owner, name)
    for owner in (torch, torch.Tensor, torch.autograd, torch.nn.functional, dist)
    for name in dir(owner)
    if callable(getattr(owner, name, None))
]


def _replaced(before: list[Any]) -> list[str]:
    """Return the names of torch's functions that are others than before."""
    return [
        f"{owner.__name__}.{name}"
        for (owner, name), value in zip(_TORCH, before, strict=True)
        if getattr(owner, name, None) != value
    ]


def _tensors() -> int:
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def _children() -> set[str]:
    """Return the processes that this one started and that still run, where Linux lists them."""
    found = set()
    for file in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError), open(file) as listed:
            found.update(listed.read().split())
    return {child for child in found if _lives(child)}


def _lives(process: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


LINGERING_SECONDS = 0.5
"""How long tensors may live on after a call, as threads of process groups let go of them a little later."""


def _lingers(alive: Callable[[], object]) -> bool:
    """Whether something is still alive after a while."""
    deadline = time.monotonic() + LINGERING_SECONDS
    gc.collect()
    while alive():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.01)
        gc.collect()
    return False


def _kept(given: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that live on when `given`, whose only holder the caller is, is gone."""
    storages = {name: StorageWeakRef(leaf.untyped_storage()) for name, leaf in given.items()}
    given.clear()
    if _lingers(lambda: not all(storage.expired() for storage in storages.values())):
        return [name for name, storage in storages.items() if not storage.expired()]
    return []


def traces(call: Callable[[], dict[str, torch.Tensor]], seed: int = 0) -> list[str]:
    """Return the traces that a call leaves, in words.

    Args:
        call: makes the call, and returns its inputs; it is called twice, and once under no_grad.
        seed: of the random generators.
    """
    # an unusual seed: a target that seeds with 0 or 42 changes the state too
    torch.manual_seed(seed + 12345)
    random.seed(seed + 12345)
    np.random.seed(seed + 12345)
    before, functions = snapshot(), [getattr(owner, name) for owner, name in _TORCH]
    threads, children = set(threading.enumerate()), _children()
    printed = io.StringIO()
    kept: dict[str, None] = {}
    more = 0
    turned_on = False
    gc.freeze()  # objects made before the call are neither collected nor counted
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            kept |= dict.fromkeys(_kept(call()))
            once = _tensors()
            kept |= dict.fromkeys(_kept(call()))
            if _lingers(lambda: _tensors() > once):
                more = _tensors() - once
            with torch.no_grad():
                call()
                turned_on = torch.is_grad_enabled()
    finally:
        gc.unfreeze()
    found = [f"changed {name}" for name in changed(before)]
    if turned_on:
        found.append("turned gradients on under no_grad")
    found += [f"replaced {name}" for name in _replaced(functions)]
    if printed.getvalue():
        found.append(f"printed {printed.getvalue()!r}")
    found += [f"keeps {name} alive" for name in kept]
    if more and not kept:
        found.append(f"keeps {more} more tensors each time")
    if set(threading.enumerate()) - threads:
        found.append("leaves a thread running")
    if _children() - children:
        found.append("leaves a process running")
    return found
