"""The contract of the sigmoid loss."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles import rounding
from verified_losses.oracles.rounding import Magnitude, Weight
from verified_losses.oracles.siglip import siglip_loss

from ..cases import Case, Options
from ..names import DIST_IMPLS
from ..subjects import Subject
from . import Bounds, Cotangents, Inputs, Sum, accepted, call_by_name, entry
from .clip import ClipContract
from .parts import FEATURES, STUDENT, call_of, column, student

CHUNK_SIZES = st.sampled_from([0, 0, 1, 3, 64])


def call_with_bias(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss, which may have no default for the bias, as upstream's has none."""
    return call_by_name(loss, accepted(entry(loss), {"logit_bias": None}) | given, output_dict)


class SigLipContract(ClipContract):
    """A binary cross-entropy for every image and text of all ranks."""

    name = "siglip"
    options_in = {"horovod": (("dist_impl", "gather"), ("use_horovod", True))}
    assumed = {"chunk_size": 0}
    optional = ("output_dict",)
    call_with = staticmethod(call_with_bias)

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        ways = st.sampled_from([*DIST_IMPLS, None])
        return st.builds(lambda way, size: (("dist_impl", way), ("chunk_size", size)), ways, CHUNK_SIZES)

    def oracle_source(self, case: Case) -> dict[str, str]:
        return {"contrastive_loss": call_of("siglip_loss", ", ".join(STUDENT), case)}

    def obeys_mean(self, case: Case) -> bool:
        return True

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        columns = student(inputs)
        return [{"contrastive_loss": siglip_loss(*columns, rank)} for rank in range(case.world_size)]

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p = case.precision
        sums = Sum(inputs)
        ready = self.prepared(case, inputs)
        further = self.further(case, ready, case.width)
        texts = np.concatenate(column(ready, "text_features"))
        scales, biases = column(ready, "logit_scale"), column(ready, "logit_bias")
        starts = np.cumsum([0, *case.rows])
        total, world_size = sum(case.rows), case.world_size
        weight = Weight.of(world_size / total, *case.rows, total, world_size)
        terms = []
        for rank, given in enumerate(ready):
            image = given[FEATURES[0]]
            z = rounding.logits(float(scales[rank]), image, texts, float(biases[rank]), p, further)
            labels = -np.ones(z.value.shape)
            labels[np.arange(len(image)), starts[rank] + np.arange(len(image))] = 1
            value, slope = rounding.sigmoid_cross_entropy(z, labels, p.of_given_logits)
            chunks = math.ceil(len(image) / (case.option("chunk_size", 0) or len(image)))
            error = rounding.total(value, weight, p, parts=chunks * world_size)
            terms.append({"contrastive_loss": np.asarray(error)})
            gradient = weight.times(cotangents[rank]["contrastive_loss"])
            parts = rounding.through_logits(slope, gradient, float(scales[rank]), image, texts, p, further)
            # each rank's texts, and each chunk of images, may give a part of its own
            sums.add(rank, "image_features", parts["x"], parts=world_size)
            sums.add(rank, "logit_scale", parts["scale"], parts=chunks * world_size)
            sums.add(rank, "logit_bias", parts["bias"], parts=chunks * world_size)
            for other in range(world_size):
                rows = slice(starts[other], starts[other + 1])
                part = Magnitude(parts["y"].error[rows], parts["y"].size[rows])
                sums.add(other, "text_features", part, parts=chunks)
        return Bounds(terms, sums.bounds(p, self.through(case)))
