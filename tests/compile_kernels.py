"""Compiles the kernels for a GPU that need not be there: `python -m tests.compile_kernels`."""

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from verified_losses import kernels

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
NUMBERS = ("rows", "columns", "offset")
TILES = ("tile", "dist_tile")


def compile_for_gpu(kernel: Any, dtype: torch.dtype, **constants: Any) -> None:
    """Compile a kernel for tiles of a dtype; arguments that are None are not given."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    constants |= {"ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS}
    if "LOWEST" in kernel.arg_names:
        constants["LOWEST"] = torch.finfo(work).min
    if "dtype" in kernel.arg_names:
        constants["dtype"] = tl.float64 if work == torch.float64 else tl.float32
    signature = {}
    for name in kernel.arg_names:
        pointer = f"*{TYPES[dtype if name in TILES else work]}"
        signature[name] = "constexpr" if name in constants else "i32" if name in NUMBERS else pointer
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=TARGET, options={"num_warps": kernels.WARPS, **kernels.OPTIONS})
    assert compiled.asm["cubin"]


def main() -> None:
    """Compile every kernel for every dtype, and in all its forms for two."""
    for dtype, taught, of_ranks in itertools.product(TYPES, (False, True), (False, True)):
        if (taught or of_ranks) and dtype not in (torch.float32, torch.bfloat16):
            continue
        given: dict[str, Any] = {} if taught else {"dist_tile": None}
        given |= {} if of_ranks else {"factor": None}
        compile_for_gpu(kernels._sums, dtype, TAUGHT=taught, WEIGHTED=of_ranks, **given)
        weighted = taught or of_ranks
        given |= {} if weighted else {"row_weights": None, "column_weights": None}
        flags = {"FACTOR": of_ranks, "TAUGHT": taught, "WEIGHTED": weighted}
        ways = [(True, True), (True, False), (False, True)] if dtype == torch.float32 else [(True, True)]
        for rows, columns in ways:
            compile_for_gpu(kernels._slope, dtype, BY_ROWS=rows, BY_COLUMNS=columns, **flags, **given)
    for dtype, partners in itertools.product(TYPES, (False, True)):
        terms = kernels.TERMS.get(dtype, kernels.TERMS[torch.float32])
        compile_for_gpu(kernels._sigmoid, dtype, PARTNERS=partners, TERMS=terms)
    print("compiled")


if __name__ == "__main__":
    main()
