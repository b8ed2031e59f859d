"""Losses that are right without autocast, and wrong under it."""

import torch
from torch import Tensor

from .plain import Clip, Scalar, SigLip, widen


def narrowed(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype of autocast, where that is on."""
    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


class AddsUpInHalf(Clip):
    """Each row's exponentials are added up one by one in the dtype of autocast."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().cross_entropy(logits, labels)
        total = narrowed(logits.new_zeros(len(logits)))
        own = logits.gather(1, labels[:, None])
        for column in (logits - own).T:
            total = total + narrowed(column).exp()
        return widen(total.log()).sum()


class RoundsLosses(SigLip):
    """The sum over all pairs is taken in the dtype of autocast."""

    def log_sigmoid(self, logits: Tensor, labels: Tensor) -> Tensor:
        total = narrowed(labels.new_zeros(()))
        for row in torch.nn.functional.logsigmoid(widen(labels) * widen(logits)):
            for one in row:
                total = total - narrowed(one)
        return total


class CastsConstants(Clip):
    """The rows that autocast is to round are rounded from what has no gradient."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            gallery = narrowed(gallery.detach())
        return super().product(anchors, gallery, scale, bias)


class RaisesUnderAutocast(Clip):
    """Right without autocast, which it does not take: a limit."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = super().product(anchors, gallery, scale, bias)
        if logits.dtype != anchors.dtype:
            raise RuntimeError("expected one dtype")
        return logits
