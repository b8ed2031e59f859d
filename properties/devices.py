"""Devices, as people name them: "cpu", "cuda", "cuda:1", "all".

Imports torch only to look which of them are there.
"""

import ctypes
import importlib.util
import platform
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU = "cpu"
EXACT = "exact"
ALL = "all"


@dataclass(frozen=True)
class Facts:
    """What a device is, and what drives it."""

    name: str
    driver: str = ""
    """Its version."""
    cuda: str = ""
    """The version of CUDA that torch is built with."""
    nccl: str = ""
    """The version of NCCL that torch is built with."""


@dataclass(frozen=True)
class Kind:
    """One kind of device other than the CPU."""

    name: str
    """As torch names it."""
    missing: Callable[[], str | None]
    """Returns why there is none here, if so; imports torch."""
    count: Callable[[], int]
    facts: Callable[[int], Facts]
    """Returns those of the device of an index; initialises it."""
    limit: Callable[[int, int], None] = lambda index, most: None
    """Lets this process hold so many bytes of the device of an index, and no more."""
    ruled_out: Callable[[], str | None] = lambda: None
    """Returns the same as `missing`, as far as that shows without torch."""


def cuda_ruled_out() -> str | None:
    """Return why there is no CUDA device here, if that shows without importing torch."""
    spec = importlib.util.find_spec("torch")
    if "torch" in sys.modules or spec is None or spec.origin is None:
        return None
    with suppress(OSError, KeyError):  # another torch may not say it there
        built = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
        if built["cuda"] is None and built["hip"] is None:
            return _built_without(built["__version__"])
        if built["cuda"] and sys.platform == "linux":
            try:
                ctypes.CDLL("libcuda.so.1")
            except OSError as error:
                return f"no device was found: there is no NVIDIA driver: {error}"
    return None


def _built_without(version: str) -> str:
    return f"torch {version} is built without CUDA"


def cuda_missing() -> str | None:
    """Return why there is no CUDA device here, if so: the build of torch, or what the driver says."""
    import torch

    if not torch.backends.cuda.is_built():
        return _built_without(torch.__version__)
    if _cuda_count():
        return None
    try:
        torch.cuda.init()
    except Exception as error:
        return f"no device was found: {str(error).strip() or type(error).__name__}"
    return "no device was found"


def _cuda_count() -> int:
    import torch

    return torch.cuda.device_count()


def _cuda_facts(index: int) -> Facts:
    import torch
    import torch.distributed as dist

    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else ""
    cuda = torch.version.cuda or f"HIP {torch.version.hip}"
    return Facts(torch.cuda.get_device_properties(index).name, _nvidia_driver(), cuda, nccl)


def _nvidia_driver() -> str:
    """Return the version of the driver, as its own library says it."""
    with suppress(OSError, AttributeError):
        library, text = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(96)
        if library.nvmlInit_v2() == 0 and library.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode(errors="replace")
    return "unknown"


def _limit_cuda(index: int, most: int) -> None:
    import torch

    share = most / torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)


def _cpu_facts() -> Facts:
    with suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return Facts(found[1].strip())
    return Facts(platform.processor() or platform.machine())


KINDS = {"cuda": Kind("cuda", cuda_missing, _cuda_count, _cuda_facts, _limit_cuda, cuda_ruled_out)}


def kind_of(device: str) -> str:
    """Return the kind of a device, or of several: "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def index_of(device: str) -> int:
    """Return the index of a device among those of its kind."""
    return int(device.partition(":")[2] or 0)


def of_rank(devices: str, rank: int) -> str:
    """Return which device a rank has, of several that ranks have in turn: "cuda:0/cuda:1"."""
    listed = devices.split("/")
    return listed[rank % len(listed)]


def read(text: str) -> tuple[str, ...]:
    """Return the names that `text` lists, each once, in one form: "cpu", "cuda:0"; "all" stays as it is.

    Raises:
        ValueError: a part is no such name.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([a-z]+)(?::(\d+))?", part.strip())
        if part.strip() == ALL or (match and match[1] == CPU and int(match[2] or 0) == 0):
            found.append(match[1] if match else ALL)
        elif match and match[1] in KINDS:
            found.append(f"{match[1]}:{int(match[2] or 0)}")
        else:
            raise ValueError(f"expected cpu, cuda, cuda:1 or all, separated by commas, got {part.strip()!r}")
    return tuple(dict.fromkeys(found))


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with those of the CPU and of every other device that is there in place of "all"."""
    found: list[str] = []
    for name in names:
        if name == ALL:
            kinds = [kind for kind in KINDS.values() if kind.missing() is None]
            found += [CPU, *(f"{kind.name}:{index}" for kind in kinds for index in range(kind.count()))]
        else:
            found.append(name)
    return tuple(dict.fromkeys(found))


def ruled_out(device: str) -> str | None:
    """Return why a device is not there, if that shows without importing torch."""
    why = KINDS[kind_of(device)].ruled_out() if kind_of(device) in KINDS else None
    return why and f"{device}: {why}"


def absent(device: str) -> str | None:
    """Return why a device is not there, if so."""
    if device == CPU:
        return None
    kind = KINDS[kind_of(device)]
    if missing := kind.missing():
        return f"{device}: {missing}"
    if index_of(device) >= (count := kind.count()):
        there = ", ".join(f"{kind.name}:{index}" for index in range(count))
        return f"{device}: there {'is one' if count == 1 else f'are {count}'}, {there}"
    return None


def facts(device: str) -> Facts:
    """Return what a device is; initialises one that is not the CPU."""
    return _cpu_facts() if device == CPU else KINDS[kind_of(device)].facts(index_of(device))


NO_CUDA = re.compile(
    r"Torch not compiled with CUDA|Found no NVIDIA driver|No CUDA GPUs are available|CUDA driver|\bcuda:\d"
)
"""What torch says where CUDA is asked for and there is none, or where it meets tensors of the CPU."""


def asks_for_cuda(device: str, said: str) -> bool:
    """Whether a target that was run on a device failed as it asks for CUDA, by what was said."""
    return device == CPU and bool(NO_CUDA.search(said))


def use(device: str) -> None:
    """Make a device the current one of this thread, as training jobs do; the CPU always is."""
    import torch

    accelerator = torch.accelerator.current_accelerator()
    if device != CPU and accelerator is not None and accelerator.type == kind_of(device):
        torch.accelerator.set_device_index(index_of(device))


_REDUCED = {
    "float16": "allow_fp16_reduced_precision_reduction",
    "bfloat16": "allow_bf16_reduced_precision_reduction",
}
"""Whether parts of a sum may be stored in a dtype."""


def matmul_of(dtype: str, device: str) -> str:
    """Return how a device multiplies matrices of a dtype, by torch's settings now.

    Returns:
        One of `oracles.dtypes.MATMULS`; "exact" of any device but CUDA's.
    """
    if kind_of(device) != "cuda":
        return EXACT
    import torch

    products: Any = torch.backends.cuda.matmul
    if dtype == "float32":
        # set by the older functions too
        new = getattr(products, "fp32_precision", None)
        return "tf32" if (products.allow_tf32 if new is None else new == "tf32") else EXACT
    if dtype == "float16" and getattr(products, "allow_fp16_accumulation", False):
        return "half"
    if dtype not in _REDUCED:
        return EXACT
    return "reduced" if getattr(products, _REDUCED[dtype]) else "truncated"


def products_of(dtype: str, matmul: str) -> dict[str, bool]:
    """Return the settings of `torch.backends.cuda.matmul` under which `matmul_of` tells this of a dtype."""
    if dtype == "float32":
        return {"allow_tf32": matmul == "tf32"}
    if matmul == "half":
        return {"allow_fp16_accumulation": True}
    if matmul in ("reduced", "truncated"):
        return {_REDUCED[dtype]: matmul == "reduced"}
    return {}


def limit(device: str, most: int) -> None:
    """Let this process hold so many bytes of a device."""
    if kind := KINDS.get(kind_of(device)):
        kind.limit(index_of(device), most)


def works(device: str) -> bool:
    """Whether this process can still use a device: after some errors, no later call succeeds."""
    import torch

    if device == CPU:
        return True
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except Exception:
        return False
