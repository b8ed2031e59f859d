"""Triton kernels on the CPU, in Triton's interpreter. Imports no torch: a counterexample quotes it."""

import contextlib
import os
import sys
from types import SimpleNamespace
from typing import Any

CAPABILITY = (8, 0)
"""The GPU that a target is told of: an A100's."""


def interpret() -> None:
    """Let kernels run in Triton's interpreter, and answer what a target asks of the device."""
    if getattr(sys.modules.get("triton"), "interpreted", False):
        return
    import_interpreted()
    import torch

    answers = {
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: device_properties(),
        "get_device_name": lambda device=None: "Triton's interpreter",
        "current_device": lambda: 0,
        "synchronize": lambda device=None: None,
        "device": lambda device: contextlib.nullcontext(),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.Tensor.is_cuda = property(is_cuda)  # type: ignore[assignment]
    with contextlib.suppress(ModuleNotFoundError):
        import triton

        triton.interpreted = True
        triton.runtime.driver.set_active(Driver())
        widen_products()


def import_interpreted() -> None:
    """Let what imports Triton from now on get its interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    for name in [*sys.modules]:  # it decides as it is imported, and torch may have imported it
        if name.partition(".")[0] == "triton" and not name.startswith("triton._C"):
            del sys.modules[name]


def widen_products() -> None:
    """Let the interpreter multiply matrices of bfloat16: it takes their bits for integers (triton 3.9)."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    inner = interpreter.InterpreterBuilder.create_dot

    def widened(matrix: Any) -> Any:
        if matrix.dtype != tl.bfloat16 or matrix.data.dtype != np.uint16:
            return matrix
        bits = np.ascontiguousarray(matrix.data).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any, **named: Any) -> Any:
        return inner(self, widened(a), widened(b), *rest, **named)

    interpreter.InterpreterBuilder.create_dot = create_dot


def device_properties() -> SimpleNamespace:
    """Return the properties that kernels are tuned by: few processors, so that grids are small."""
    return SimpleNamespace(
        name="Triton's interpreter", major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=4,
        shared_memory_per_multiprocessor=166912, shared_memory_per_block_optin=166912, warp_size=32,
        total_memory=2**33, max_threads_per_multi_processor=2048,
    )  # fmt: skip


def is_cuda(tensor: Any) -> bool:
    """Whether a target is to take a tensor for one of a GPU; torch and Triton are told the truth."""
    asked_by = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
    return tensor.device.type == "cuda" or asked_by not in ("torch", "triton")


class Driver:
    """The device that Triton asks about; it is never launched on."""

    def get_current_device(self) -> int:
        """Return its number."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """Return the number of its stream."""
        return 0

    def get_active_torch_device(self) -> Any:
        """Return the CPU."""
        import torch

        return torch.device("cpu")

    def get_current_target(self) -> Any:
        """Return what code would be for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_benchmarker(self) -> Any:
        """Return what takes no time of anything: the first of several configurations is taken."""
        return lambda kernel, quantiles=None, **settings: [1.0] * len(quantiles or [0.5])

    @property
    def utils(self) -> Any:
        """Return what tells its properties."""
        told = {"max_shared_mem": 166912, "multiprocessor_count": 4, "warpSize": 32, "max_num_regs": 65536}
        return SimpleNamespace(get_device_properties=lambda device=0: told)
