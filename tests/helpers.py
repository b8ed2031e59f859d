"""What tests of several modules share: bounds of rounding, and counts of products and of tiles."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNIT_ROUNDOFF = np.finfo(float).eps / 2
VOCABULARY = 3
TEACHER_WIDTH = 3
"""The widest features."""
LOGIT = 4.0
"""No logit is larger: features are unit rows, which give at most 3.25, and caption logits have their seed."""


def close(
    observed: ArrayLike, expected: ArrayLike, magnitude: ArrayLike, operations: int, floor: ArrayLike = 0.0
) -> None:
    """Assert that a sum of terms is as exact as any order of so many operations makes it.

    `magnitude` is the sum of the terms' absolute values, `floor` what underflow may add.
    """
    gamma = operations * UNIT_ROUNDOFF / (1 - operations * UNIT_ROUNDOFF)
    error, bound = np.abs(np.subtract(observed, expected)), gamma * np.abs(magnitude) + floor
    assert np.shape(observed) == np.shape(expected)
    assert np.all(error <= bound), f"{observed} is not {expected}: error {error}, bound {bound}"


# A row's terms are its largest logit twice and the logarithm of a sum; exponentials turn absolute errors of
# logits into relative ones. A rank weighs its rows to at most 2 W; times W where a row carries gradient W
# times.


def value_magnitude(rows: Sequence[int]) -> float:
    """Return the sum of the absolute values of a loss's terms, for ranks with so many rows each."""
    return float(2 * len(rows) * (2 * LOGIT + 1 + np.log(sum(rows) + VOCABULARY)) * sum(rows))


def gradient_magnitude(rows: Sequence[int]) -> float:
    """Return the same of an element of a gradient."""
    return 2 * len(rows) ** 2 * LOGIT * (1 + 2 * LOGIT) * sum(rows)


def operations(rows: Sequence[int]) -> int:
    """Return how many operations lie between an input and a loss or a gradient."""
    return 2 * (TEACHER_WIDTH + sum(rows) + VOCABULARY + 10)


def tool(name: str) -> ModuleType:
    """Run a program of `tools/`, and return it as a module."""
    path = Path(__file__).parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_tool", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Products(TorchDispatchMode):
    """Counts the operations of matrix products, and the tensors of so many elements that are made."""

    operations = made = 0

    def __init__(self, elements: int = 0) -> None:
        super().__init__()
        self.elements = elements

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__.strip("_") in ("mm", "addmm"):
            left, right = args[-2:]
            self.operations += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        given = {_place(tensor) for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(returned):
            if torch.is_tensor(tensor) and tensor.numel() == self.elements:
                self.made += _place(tensor) not in given
        return returned


def tensors_made(loss: Any, inputs: dict[str, Any], elements: int) -> tuple[int, int]:
    """Return how many tensors of so many elements a call makes, and its backward."""
    with Products(elements) as forward:
        value: Any = sum(tree_leaves(loss(**inputs)))
    with Products(elements) as backward:
        value.backward()
    return forward.made, backward.made


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
