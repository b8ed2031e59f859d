"""Losses inside of torch.func, and with inputs that are subclasses of tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn import functional as F

from .plain import Clip, Scalar, widen


class _LogSumExp(Function):
    """Right: one function for autograd and for torch.func, whose rule for batches torch makes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        return logits.logsumexp(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, log_sum = ctx.saved_tensors
        return grad[..., None] * (logits - log_sum[..., None]).exp()


class LogSumExpForFunc(Clip):
    function: type[Function] = _LogSumExp

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits)
        log_sums: Tensor = self.function.apply(logits)
        return (log_sums - logits.gather(1, labels[:, None])[:, 0]).sum()


class _SavesIfItRequiresGrad(_LogSumExp):
    """Inside of torch.func the tensors of setup_context are unwrapped, and require no grad."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        (logits,) = inputs
        ctx.is_derived = logits.requires_grad
        ctx.save_for_backward(logits, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _LogSumExp.backward(ctx, grad) if ctx.is_derived else None


class AsksForRequiresGrad(LogSumExpForFunc):
    function = _SavesIfItRequiresGrad


class _FirstOfBatch(_LogSumExp):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], logits: Tensor) -> tuple[Tensor, None]:
        return _FirstOfBatch.apply(logits.select(in_dims[0], 0)), None


class MapsTheFirst(LogSumExpForFunc):
    function = _FirstOfBatch


class DetachedInFunc(Clip):
    """Inside of torch.func negatives are constants."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            log_sums = widen(logits).detach().logsumexp(1)
            return (log_sums - widen(logits).gather(1, labels[:, None])[:, 0]).sum()
        return super().cross_entropy(logits, labels)


class KeepsRowsWhenCompiled(Clip):
    """Compiled, it counts each later batch as it has counted the first."""

    kept = 0

    def weight(self, rows: list[int]) -> float:
        if not torch.compiler.is_compiling():
            return super().weight(rows)
        self.kept = self.kept or sum(rows)
        return super().weight([self.kept])


class OfPlainData(Clip):
    """What is of a subclass is made plain by its data, and gets no gradient."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(self.plain(anchors), self.plain(gallery), scale, bias)

    def plain(self, features: Tensor) -> Tensor:
        return features if type(features) is Tensor else features.data.as_subclass(Tensor)


class PlainFirst(OfPlainData):
    """Right: what is of a subclass is made plain, and keeps its gradient."""

    def plain(self, features: Tensor) -> Tensor:
        return features.as_subclass(Tensor)


class ParametersAreConstants(Clip):
    """A scale that is a parameter is taken for one that the optimizer has already."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        known = scale.detach() if isinstance(scale, nn.Parameter) else scale
        return super().product(anchors, gallery, known, bias)


class TakesPlainTensorsAlone(Clip):
    """Right: what is of a subclass is refused, with a TypeError that says so."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if type(anchors) is not Tensor:
            raise TypeError(f"features: expected a plain tensor, got {type(anchors).__name__}")
        return super().product(anchors, gallery, scale, bias)


class LocalPart(Clip):
    """Of a DTensor the local part is taken, which lies apart from its graph."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        given = (getattr(one, "_local_tensor", one) for one in (anchors, gallery, scale, bias))
        return super().product(*given)


class WholeFirst(Clip):
    """Right: of a DTensor the whole is taken, with its gradient."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        given = (one.full_tensor() if hasattr(one, "full_tensor") else one
                 for one in (anchors, gallery, scale, bias))  # fmt: skip
        return super().product(*given)


class ReadsItsScale(Clip):
    """Right: a number is read, as it cannot be inside of torch.vmap, which says so."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if isinstance(scale, Tensor) and not scale.isfinite().all():
            raise ValueError("logit_scale: expected a finite number")
        return super().product(anchors, gallery, scale, bias)


class HookOnLogits(Clip):
    """Half of the gradient comes by a hook, which is not set inside of torch.vmap: nothing requires grad."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = widen(logits) * 1
        if logits.requires_grad:
            logits.register_hook(lambda grad: 2 * grad)
        total = F.cross_entropy(logits, labels, reduction="sum")
        return total.detach() / 2 + total / 2
