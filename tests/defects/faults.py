"""Losses that take the fault of another rank badly, and some that take it well."""

import contextlib
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .plain import Clip, Scalar, SumRows, all_gather


class SwallowsForward(Clip):
    """Goes on alone where the gather fails."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        try:
            return super().clip(image, text, scale, bias)
        except RuntimeError:
            return Clip().clip(image, text, scale, bias)


class ReturnsTheLast(Clip):
    """Returns the last loss where the gather fails."""

    last: Tensor

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        with contextlib.suppress(RuntimeError):
            self.last = super().clip(image, text, scale, bias)
        return self.last


class _OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        return all_gather(tensor, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        try:
            return SumRows.apply(grad, ctx.rows), None
        except RuntimeError:
            return grad.split(ctx.rows)[dist.get_rank()], None


class SwallowsBackward(Clip):
    """Keeps its own gradient where the sum over ranks fails."""

    def gather_grad(self, features: Tensor, rows: list[int]) -> Tensor:
        return _OwnGradient.apply(features, rows)


class WaitsForEver(Clip):
    """Waits for a rank that never comes back."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        while True:
            try:
                return super().clip(image, text, scale, bias)
            except RuntimeError:
                time.sleep(0.1)


class Aborts(Clip):
    """Ends its process as C++ does."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        try:
            return super().clip(image, text, scale, bias)
        except RuntimeError:
            os.abort()


class PadsWidth(Clip):
    """Takes features of another width, and fills them up."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        wide = [torch.nn.functional.pad(one, (0, 64 - one.shape[1]), value=1.0) for one in (image, text)]
        return super().clip(*wide, scale, bias)


# Right


class Names(Clip):
    """Says which rank is gone."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        try:
            return super().clip(image, text, scale, bias)
        except RuntimeError as error:
            raise ConnectionError(f"rank {1 - self.rank} has left") from error


class GathersWide(Clip):
    """Takes any dtype on any rank: all travel as float64."""

    def gather(self, features: Tensor, rows: list[int]) -> Tensor:
        return super().gather(features.double(), rows).to(features.dtype)


class Draws(Clip):
    """Is random, so that no value can be compared with another."""

    def clip(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().clip(image, text, scale, bias) * torch.rand(())
