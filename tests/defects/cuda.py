"""Planted defects and right variants on a device with streams, for which `tests.pretend_cuda` stands in."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from verified_losses import ClipLoss


class OwnStream(ClipLoss):
    """It launches on a stream of its own, for which nobody waits."""

    def forward(self, **named: Any) -> Any:
        with torch.cuda.stream(torch.cuda.Stream()):
            return super().forward(**named)


class OwnStreamWaits(ClipLoss):
    """It launches on a stream of its own, which waits, and is waited for."""

    def forward(self, **named: Any) -> Any:
        own = torch.cuda.Stream()
        own.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(own):
            out = super().forward(**named)
        torch.cuda.current_stream().wait_stream(own)
        return out


class OwnStreamIsNotWaitedFor(ClipLoss):
    """Its own stream waits for the inputs; nobody waits for its result."""

    def forward(self, **named: Any) -> Any:
        own = torch.cuda.Stream()
        own.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(own):
            return super().forward(**named)


class DefaultStream(ClipLoss):
    """It scales on the default stream, whichever is the current one."""

    def forward(self, image_features: Tensor, **named: Any) -> Any:
        with torch.cuda.stream(torch.cuda.default_stream()):
            image_features = image_features * 1.0
        return super().forward(image_features, **named)


class TwoStreams(ClipLoss):
    """It prepares images and texts on a stream each; both wait, and are waited for."""

    def forward(self, image_features: Tensor, text_features: Tensor, **named: Any) -> Any:
        here, ready = torch.cuda.current_stream(), []
        for features in (image_features, text_features):
            own = torch.cuda.Stream()
            own.wait_stream(here)
            with torch.cuda.stream(own):
                ready.append(features * 1.0)
            here.wait_stream(own)
        return super().forward(*ready, **named)


class CachesLabels(ClipLoss):
    """It makes its labels once, on the stream of the first call."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**{**named, "cache_labels": True})


class Scratch(ClipLoss):
    """Every call overwrites one buffer, on the stream of the call."""

    buffer: Tensor | None = None

    def forward(self, image_features: Tensor, **named: Any) -> Any:
        if self.buffer is None:
            with torch.inference_mode(False):
                self.buffer = torch.empty(image_features.shape, dtype=image_features.dtype)
        self.buffer.copy_(image_features.detach())
        return super().forward(image_features + (self.buffer - image_features.detach()), **named)


class FillsABufferElsewhere(Scratch):
    """Every call fills one buffer on a stream of its own, and reads it at once."""

    def forward(self, image_features: Tensor, **named: Any) -> Any:
        if self.buffer is None:
            with torch.inference_mode(False):
                self.buffer = torch.empty(image_features.shape, dtype=image_features.dtype)
        own = torch.cuda.Stream()
        own.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(own):
            self.buffer.copy_(image_features.detach())
        return ClipLoss.forward(self, image_features + (self.buffer - image_features.detach()), **named)


class History(ClipLoss):
    """It keeps all losses in one tensor, which grows."""

    history: Tensor | None = None

    def forward(self, **named: Any) -> Any:
        out = super().forward(**named)
        one = next(iter(out.values())) if isinstance(out, dict) else out
        one = one.detach().reshape(1)
        self.history = one.clone() if self.history is None else torch.cat([self.history, one])
        return out


class LetsGo(ClipLoss):
    """It holds a tensor for its first two calls, and none later."""

    calls = 0
    held: Tensor | None = None

    def forward(self, image_features: Tensor, **named: Any) -> Any:
        self.calls += 1
        self.held = image_features.detach().clone() if self.calls < 3 else None
        return super().forward(image_features, **named)


class CapturesANumber(ClipLoss):
    """It reads the scale once, as it is first called: what is captured has that number."""

    number: float | None = None

    def forward(self, logit_scale: Any, **named: Any) -> Any:
        if self.number is None:
            self.number = float(logit_scale.detach())
        return super().forward(logit_scale=logit_scale - logit_scale.detach() + self.number, **named)


class Reads(ClipLoss):
    """It reads the scale on every call, and states that it does not."""

    def forward(self, logit_scale: Any, **named: Any) -> Any:
        if logit_scale.item() > 1e6:
            raise ValueError("too large")
        return super().forward(logit_scale=logit_scale, **named)


class ReadsAndSaysSo(Reads):
    waits_for_device = True


class ReadsInBackward(ClipLoss):
    """Its backward waits."""

    def forward(self, image_features: Tensor, **named: Any) -> Any:
        image = image_features * 1.0
        if image.requires_grad:
            image.register_hook(lambda gradient: gradient if gradient.abs().sum().item() >= 0 else None)
        return super().forward(image, **named)


class KeepsResults(ClipLoss):
    """It keeps every result."""

    kept: ClassVar[list[Tensor]] = []

    def forward(self, **named: Any) -> Any:
        out = super().forward(**named)
        self.kept.append(next(iter(out.values())) if isinstance(out, dict) else out)
        return out


class KeepsCopies(ClipLoss):
    """Every object keeps a copy of what it was given, of each call."""

    def forward(self, image_features: Tensor, **named: Any) -> Any:
        vars(self).setdefault("copies", []).append(image_features.detach().clone())
        return super().forward(image_features, **named)


class CachesAtCapture(ClipLoss):
    """It keeps the logits' scale that it first makes after some calls, keyed by nothing."""

    calls = 0

    def forward(self, logit_scale: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            self.doubled = (2 * logit_scale).detach()
        if self.calls > 2:
            logit_scale = logit_scale - logit_scale.detach() + self.doubled / 2
        return super().forward(logit_scale=logit_scale, **named)
