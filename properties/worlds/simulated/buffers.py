"""Memory that communication reads or fills: overlaps, copies, and a watch on buffers in flight."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import overrides
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils._pytree import tree_leaves

POISON = 255
"""The byte that fills a buffer between the start of a communication and its wait."""


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (reach + 1) * tensor.element_size()


def _addresses(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The address of every byte of `tensor`."""
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    width = tensor.element_size()
    return (tensor.data_ptr() + (offsets * width)[:, None] + np.arange(width)).reshape(-1)


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the two share a byte of memory. Columns of one matrix interleave but do not."""
    if one.device != other.device or not one.numel() or not other.numel():
        return False
    (one_start, one_end), (other_start, other_end) = _span(one), _span(other)
    if one_end <= other_start or other_end <= one_start:
        return False
    if one.is_contiguous() and other.is_contiguous():
        return True
    return bool(np.isin(_addresses(one), _addresses(other)).any())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are the same memory seen the same way."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def overlaps(
    inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> Iterator[tuple[int | None, int, int]]:
    """Pairs that share memory: (None, output, output) or (0, input, output), by index."""
    if not outputs:
        return
    spans = []
    for fills, tensors in ((True, outputs), (False, inputs)):
        for index, tensor in enumerate(tensors):
            start, end = _span(tensor)
            spans.append((start, end, index, fills))
    spans.sort()
    last = 0
    for start, end, _, _ in spans:
        if start < last:
            break
        last = end
    else:
        return
    # A span may reach over several that start after it, so keep every one that has not ended yet.
    unended: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for start, end, index, fills in spans:
        for kind in (True, False) if fills else (True,):
            unended[kind] = [(other_end, other) for other_end, other in unended[kind] if other_end > start]
            for _, other in unended[kind]:
                one, two = (inputs if not fills else outputs)[index], (outputs if kind else inputs)[other]
                if overlap(one, two):
                    if fills and kind:
                        yield None, min(index, other), max(index, other)
                    else:
                        yield (0, other, index) if fills else (0, index, other)
        unended[fills].append((end, index))


def snapshots(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Contiguous copies."""
    if len(tensors) > 2:
        first = tensors[0]
        if all(tensor.shape == first.shape and tensor.dtype == first.dtype for tensor in tensors):
            return list(torch.stack([tensor.detach() for tensor in tensors]).unbind())
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    # cloned: a single element that was expanded counts as contiguous and keeps its stride of 0
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bitwise equality; NaNs of the same bits are equal."""
    return torch.equal(_bytes(one), _bytes(other))


def _poison_value(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.bool:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    pattern = torch.full((tensor.element_size(),), POISON, dtype=torch.uint8, device=tensor.device)
    return pattern.view(tensor.dtype).reshape(())  # expands to any shape, also to that of a scalar


def poison(tensor: torch.Tensor) -> None:
    """Fill with a pattern that is NaN in every floating-point format, so that an early read shows."""
    tensor.detach().copy_(_poison_value(tensor).expand(tensor.shape))


def poisoned(tensor: torch.Tensor) -> bool:
    return equal(tensor, _poison_value(tensor).expand(tensor.shape))


def flip_bit(tensor: torch.Tensor, bit: int) -> torch.Tensor:
    """A copy of a contiguous tensor with one bit, counted modulo its size, inverted."""
    raw = _bytes(tensor).clone()
    index, shift = divmod(bit % (8 * raw.numel()), 8)
    raw[index] ^= 1 << shift
    return raw.view(tensor.dtype).view(tensor.shape)


def _is_metadata_only(function: Any) -> bool:
    """Views, and factories that take nothing but the shape, do not touch the data of their argument."""
    name = function._schema.name.partition("::")[2]
    if name.endswith("_like") or name.startswith("new_"):
        return True
    returns = function._schema.returns
    return bool(returns) and all(
        value.alias_info is not None and not value.alias_info.is_write for value in returns
    )


class _Lists(overrides.TorchFunctionMode):
    """Sees `tolist`, which reads memory without an operator."""

    def __init__(self, touched: Callable[[torch.Tensor, bool], None]) -> None:
        super().__init__()
        self.touched = touched

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.tolist:
            self.touched(args[0], False)
        return function(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Sees every operator that one rank runs while it has buffers in flight.

    `touched(tensor, writes)` is called for each tensor whose data an operator is about to read or write.
    """

    def __init__(self, touched: Callable[[torch.Tensor, bool], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.touched = touched
        self.lists = _Lists(touched)
        self.inside = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports the compiler, which takes seconds

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace not in ("_c10d_functional", "c10d") and not _is_metadata_only(function):
            for declared, value in _arguments(function, args, kwargs):
                writes = declared.alias_info is not None and declared.alias_info.is_write
                for leaf in tree_leaves(value):
                    if isinstance(leaf, torch.Tensor):
                        self.touched(leaf, writes)
        self.inside += 1
        try:
            return function(*args, **kwargs)
        finally:
            self.inside -= 1

    # Entering by `with` would keep flags that are global to the process; ranks enter and leave in any order.

    def start(self) -> None:
        # While a mode handles an operator it is off the stack, and comes back by itself.
        if not self.inside and self not in _get_current_dispatch_mode_stack():
            _push_mode(self)
            if self.lists not in overrides._get_current_function_mode_stack():
                overrides._push_mode(self.lists)

    def stop(self) -> None:
        """Leave the stack if on its top; a watch that stays sees nothing in flight and says nothing."""
        stack = _get_current_dispatch_mode_stack()
        if not self.inside and stack and stack[-1] is self:
            _pop_mode()
            if overrides._get_current_function_mode() is self.lists:
                overrides._pop_mode()


def _arguments(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterable[tuple[Any, Any]]:
    declared = function._schema.arguments
    yield from zip(declared, args, strict=False)
    for argument in declared[len(args) :]:
        if argument.name in kwargs:
            yield argument, kwargs[argument.name]
