"""Losses that misbehave as no loss should; see `test_hostile`."""

import ctypes
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor


class Loss(torch.nn.Module):
    """A loss that is differentiable, and wrong."""

    def misbehave(self) -> None:
        raise NotImplementedError

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Any:
        self.misbehave()
        return (image_features.sum() + text_features.sum()) * logit_scale.sum()


class Exits(Loss):
    def misbehave(self) -> None:
        sys.exit(3)


class ExitsAtOnce(Loss):
    def misbehave(self) -> None:
        os._exit(4)


class Crashes(Loss):
    def misbehave(self) -> None:
        ctypes.string_at(0)


class Interrupts(Loss):
    def misbehave(self) -> None:
        raise KeyboardInterrupt


class ForksAndReturnsTwice(Loss):
    def misbehave(self) -> None:
        os.fork()


class LeavesAProcess(Loss):
    def misbehave(self) -> None:
        if os.fork() == 0:
            with open(os.environ["LEFT_BEHIND"], "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(1000)


class Sleeps(Loss):
    def misbehave(self) -> None:
        time.sleep(1000)


class Spins(Loss):
    def misbehave(self) -> None:
        while True:
            pass


class AllocatesAtOnce(Loss):
    def misbehave(self) -> None:
        torch.ones(100 * 2**30 // 4)


class PrintsAGigabyte(Loss):
    def misbehave(self) -> None:
        for _ in range(2**10):
            print("x" * 2**20)


class SpoilsTorch(Loss):
    def misbehave(self) -> None:
        torch.set_default_dtype(torch.float64)
        torch.nn.functional.cross_entropy = None


class ReturnsNothing(Loss):
    def forward(self, *_: Any, **__: Any) -> None:
        return None


class ReturnsANumber(Loss):
    def forward(self, *_: Any, **__: Any) -> int:
        return 3


class ReturnsNaN(Loss):
    def misbehave(self) -> None:
        """Nothing."""

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Any:
        return super().forward(image_features, text_features, logit_scale) * float("nan")


class ReturnsThree(Loss):
    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Any:
        return image_features.sum(), text_features.sum(), logit_scale.sum()


class ReturnsAConstant(Loss):
    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Any:
        return torch.zeros(())
