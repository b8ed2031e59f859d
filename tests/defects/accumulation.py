"""Steps over micro-batches that go wrong; `tests/test_accumulation.py` catches each.

`step` is right, and plain: each defect replaces one piece of it.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]
SHARED = ("logit_scale",)


class Step:
    """Right: two passes, one reduction, the same random numbers in both."""

    def __call__(self, model: Any, loss: Callable[..., Tensor], parts: Sequence[Batch]) -> Tensor:
        states, outputs = [], []
        for part in parts:
            states.append(torch.get_rng_state())
            with torch.no_grad():
                outputs.append(model(*part))
        whole = {
            name: torch.cat([output[name] for output in outputs]) if name not in SHARED else outputs[0][name]
            for name in outputs[0]
        }
        leaves = {name: value.detach().requires_grad_() for name, value in whole.items()}
        value = loss(**leaves)
        value.backward()
        rows = 0
        for number in self.second(len(parts)):
            is_last = number == len(parts) - 1
            with self.quiet(model, is_last):
                self.restore(states[number])
                output = model(*parts[number])
                count = len(parts[number][0])
                grads = {
                    name: self.shared(leaf.grad, is_last)
                    if name in SHARED
                    else leaf.grad[rows : rows + count]
                    for name, leaf in leaves.items()
                }
                torch.autograd.backward(list(output.values()), [grads[name] for name in output])
                rows += count
        return value.detach()

    def second(self, count: int) -> Sequence[int]:
        return range(count)

    def quiet(self, model: Any, is_last: bool) -> Any:
        return contextlib.nullcontext() if is_last or not hasattr(model, "no_sync") else model.no_sync()

    def restore(self, state: Tensor) -> None:
        torch.set_rng_state(state)

    def shared(self, gradient: Tensor, is_last: bool) -> Tensor:
        return gradient if is_last else torch.zeros_like(gradient)


class ScaleEveryTime(Step):
    """The scale gets its gradient for every micro-batch."""

    def shared(self, gradient: Tensor, is_last: bool) -> Tensor:
        return gradient


class OtherRandomNumbers(Step):
    """Dropout leaves out other elements in the second pass."""

    def restore(self, state: Tensor) -> None:
        pass


class ReducesEveryTime(Step):
    """Gradients are reduced for every micro-batch."""

    def quiet(self, model: Any, is_last: bool) -> Any:
        return contextlib.nullcontext()


class LastDropped(Step):
    """The last micro-batch gives no gradient, but for the scale."""

    def second(self, count: int) -> Sequence[int]:
        return range(max(count - 1, 1))

    def shared(self, gradient: Tensor, is_last: bool) -> Tensor:
        return gradient


class EachAlone(Step):
    """Each micro-batch has its own loss, without the others' negatives."""

    def __call__(self, model: Any, loss: Callable[..., Tensor], parts: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for number, part in enumerate(parts):
            with self.quiet(model, number == len(parts) - 1):
                value = loss(**model(*part)) / len(parts)
                value.backward()
                total = total + value.detach()
        return total


DEFECTS: dict[type[Step], str] = {
    ScaleEveryTime: "the scale's gradient is as many times too large as there are micro-batches",
    OtherRandomNumbers: "cached gradients are of other random numbers",
    ReducesEveryTime: "gradients are reduced for every micro-batch",
    LastDropped: "the last micro-batch is dropped",
    EachAlone: "negatives come from the own micro-batch alone",
}
