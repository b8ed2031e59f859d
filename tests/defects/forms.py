"""Losses that normalise rows, or hold a scale in another form: right ones, and defective ones.

What a variant is right for, rows as they are or rows of length 1, and what its scale's tensor holds, is in
`index`, and so is what is wrong with a defect.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cosine import InfoNCE, NTXent
from .plain import Clip, CoCa, Distill, Scalar, SigLip, flat, widen

# Rows


class NormalizesFirst(Clip):
    """Each rank normalises its rows, and gathers them then."""

    def forward(self, image_features: Tensor, text_features: Tensor, *rest: Any, **named: Any) -> Any:
        return super().forward(self.unit(image_features), self.unit(text_features), *rest, **named)

    def unit(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)


class DividesByLength(NormalizesFirst):
    def unit(self, rows: Tensor) -> Tensor:
        return rows / rows.norm(dim=-1, keepdim=True)


class DividesByRoot(NormalizesFirst):
    def unit(self, rows: Tensor) -> Tensor:
        return rows / rows.square().sum(-1, keepdim=True).sqrt()


class TimesReciprocalRoot(NormalizesFirst):
    def unit(self, rows: Tensor) -> Tensor:
        return rows * rows.square().sum(-1, keepdim=True).rsqrt()


class NormalizesInSingle(NormalizesFirst):
    """At least in float32; the rows are cast back."""

    def unit(self, rows: Tensor) -> Tensor:
        return F.normalize(widen(rows), dim=-1).to(rows.dtype)


class NormalizesTwice(NormalizesFirst):
    """The second time it is given rows of length 1, as far as its dtype has them."""

    def unit(self, rows: Tensor) -> Tensor:
        once = F.normalize(rows, dim=-1)
        return once / once.norm(dim=-1, keepdim=True)


class NormalizesGathered(Clip):
    """Rows are normalised where they are multiplied."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(F.normalize(anchors), F.normalize(gallery), scale, bias)


class CosineSimilarity(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        logits = flat(scale) * F.cosine_similarity(anchors[:, None], gallery[None], dim=-1)
        return logits if bias is None else logits + flat(bias)


class DividesByLengths(Clip):
    """The products are divided, not the rows."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        x, y = widen(anchors), widen(gallery)
        cosines = x @ y.T / (x.norm(dim=1, keepdim=True) * y.norm(dim=1))
        logits = flat(scale) * cosines
        return logits if bias is None else logits + flat(bias)


class SigLipNormalizes(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return super().product(F.normalize(image), F.normalize(text), scale, bias)


class CoCaNormalizes(NormalizesFirst, CoCa):
    pass


class DistillNormalizes(NormalizesGathered, Distill):
    pass


class InfoNCEOfDots(InfoNCE):
    """Rows as they are."""

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        everyone, all_keys = self.gathered(queries, keys)
        rows, weight = self.start(len(all_keys), len(queries))
        local = rows.stop - rows.start < len(all_keys)
        return self.loss(queries if local else everyone, all_keys, rows, weight)


class NTXentOfDots(NTXent):
    """Rows as they are."""

    def __call__(self, out0: Tensor, out1: Tensor) -> Tensor:
        everyone = self.gathered(out0, out1)
        total = len(everyone[0])
        rows, weight = self.start(total, len(out0))
        local = rows.stop - rows.start < total
        views = torch.cat(everyone)
        anchors = torch.cat((out0, out1)) if local else views
        here = torch.arange(rows.start, rows.stop)
        return self.pairs(anchors @ views.T / self.temperature, here, total, weight)


class CosineSimilarityOfUnit(NormalizesFirst, CosineSimilarity):
    pass


class InfoNCETakesUnit(InfoNCEOfDots):
    """The caller normalises, and nobody else."""

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        return super().__call__(F.normalize(queries), F.normalize(keys))


class InfoNCENormalizesAgain(InfoNCE):
    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        return super().__call__(F.normalize(queries), F.normalize(keys))


class NTXentNormalizesAgain(NTXent):
    def __call__(self, out0: Tensor, out1: Tensor) -> Tensor:
        return super().__call__(F.normalize(out0), F.normalize(out1))


class TakesRowsAsTheyAre(Clip):
    pass


class InfoNCENormalizes(InfoNCE):
    pass


class LengthDetached(NormalizesFirst):
    def unit(self, rows: Tensor) -> Tensor:
        return rows / rows.detach().norm(dim=-1, keepdim=True)


class LengthPlusEpsilon(NormalizesFirst):
    def unit(self, rows: Tensor) -> Tensor:
        return rows / (rows.norm(dim=-1, keepdim=True) + 1e-4)


class NormalizesInBFloat16(NormalizesFirst):
    def unit(self, rows: Tensor) -> Tensor:
        return F.normalize(rows.bfloat16(), dim=-1).to(rows.dtype)


# What is held for the scale


class HoldsLogarithm(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale.exp(), bias)


class HoldsLogarithmNormalizes(NormalizesFirst, HoldsLogarithm):
    """As CLIP's own model: the logarithm, no more than that of 100."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        logits = flat(scale).exp().clamp(max=100) * (anchors @ gallery.T)
        return logits if bias is None else logits + flat(bias)


class DividesByTemperature(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        logits = anchors @ gallery.T / flat(scale)
        return logits if bias is None else logits + flat(bias)


class TemperatureFirst(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors / flat(scale), gallery, 1.0, bias)


class DividesByExponential(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        logits = anchors @ gallery.T / flat(scale).exp()
        return logits if bias is None else logits + flat(bias)


class HoldsNegativeLogarithm(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, (-scale).exp(), bias)


class SigLipHoldsLogarithm(SigLipNormalizes):
    """As SigLIP's paper: t' and unit rows."""

    def product(self, image: Tensor, text: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(image, text, scale.exp(), bias)


class SigLipBiasByLogarithm(SigLip):
    def product(self, image: Tensor, text: Tensor, scale: Scalar, bias: Any) -> Tensor:
        return super().product(image, text, scale, None if bias is None else bias.exp())


class DistillHoldsLogarithms(Distill):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale.exp(), bias)


class NeedsPositiveScale(Clip):
    """It divides by the scale."""

    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, 1 / (1 / scale), bias)


class ForgetsExponential(Clip):
    pass


class SlopeOfScale(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        factor = scale.detach().exp() + scale - scale.detach()
        return super().product(anchors, gallery, factor, bias)


class ScaleInBFloat16(Clip):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Tensor, bias: Scalar | None) -> Tensor:
        return super().product(anchors, gallery, scale.exp().bfloat16().to(scale.dtype), bias)
