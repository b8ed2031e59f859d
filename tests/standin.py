"""A stand-in for a GPU, `standin:0` and `standin:1`: torch's PrivateUse1 device over the memory of the CPU.

It shows which tensors are where, that nothing mixes devices, and that storages, strides and addresses are
used as on a GPU. It cannot show streams, asynchronous kernels, what a GPU's kernels round, or NCCL.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import types
from pathlib import Path

import pytest
import torch

from verified_losses.properties import devices

SOURCE = Path(__file__).with_name("standin.cpp")
FOLDER = Path(__file__).parents[1] / "build" / "standin"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
COMPILE_SECONDS = 300
COUNT = 2
KIND = devices.Kind("standin", lambda: None, lambda: COUNT, lambda index: devices.Facts(f"stand-in {index}"))
"""Its row beside CUDA's, while a test asks for it."""


def load() -> None:
    """Register the device with torch, in this process.

    Raises:
        pytest.skip.Exception: there is no compiler.
    """
    if torch._C._get_privateuse1_backend_name() == "standin":
        return
    if COMPILER is None:
        pytest.skip("no stand-in for a GPU: neither g++ nor clang++ is on PATH", allow_module_level=True)
    torch.ops.load_library(_library(COMPILER))
    torch.utils.rename_privateuse1_backend("standin")
    module = types.ModuleType("standin")
    vars(module).update(
        is_available=lambda: True,
        device_count=lambda: COUNT,
        current_device=torch.accelerator.current_device_index,
        set_device=torch.accelerator.set_device_index,
        manual_seed_all=lambda seed: None,
        _is_in_bad_fork=lambda: False,
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],  # torch.compile asks every device
    )
    torch._register_device_module("standin", module)


@functools.cache
def _library(compiler: str) -> Path:
    """Return the compiled library, which takes ten seconds once for each version of torch."""
    text = f"{torch.__version__} {compiler} {SOURCE.read_text()}"
    library = FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        root = Path(torch.__file__).parent
        part = library.with_suffix(f".{os.getpid()}")
        command = [
            compiler, "-std=c++20", "-O0", "-fPIC", "-shared", "-w", f"-I{root / 'include'}", str(SOURCE),
            "-o", str(part), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10",
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=COMPILE_SECONDS)
        part.replace(library)  # whole: other workers compile it too
    return library
