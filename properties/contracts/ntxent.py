"""The contract of SimCLR's loss."""

import numpy as np

from verified_losses.oracles import rounding
from verified_losses.oracles.clip import row_weight
from verified_losses.oracles.gather import occurrences
from verified_losses.oracles.ntxent import ntxent_loss, places
from verified_losses.oracles.rounding import Bounded, Magnitude, Weight

from ..cases import Case
from ..forms import Form
from . import Bounds, Contract, Cotangents, Inputs, Sum
from .clip import ClipContract
from .infonce import VIEWS, InfoNceContract, LearnedInfoNceContract, add_rows, spread
from .parts import flags, is_local, one_hot


class NTXentContract(InfoNceContract):
    """The mean cross-entropy of each view's partner among all other views.

    The subject is constructed with a `temperature` and called with the first and the second views.
    """

    name = "ntxent"
    formula = staticmethod(ntxent_loss)

    def in_form(self, form: Form) -> Contract:
        return LearnedNTXentContract() if form.parameters else self

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """Both views are anchors."""
        return ClipContract.gradient_expected(self, case)

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p = case.precision
        sums = Sum(inputs)
        local = is_local(case)
        rows = list(case.rows)
        both = self.ready(case, inputs)
        views = np.concatenate(both)
        prepared = self.prepared(case, inputs)
        further, scales = self.further(case, prepared, case.width), self.scales(case, prepared)
        for_each = []
        for rank in range(case.world_size):
            own, partner = places(rows, rank, local)
            z = rounding.logits(scales[rank], views[own], views, 0.0, p, further)
            others = np.arange(len(views)) != own[:, None]
            kept = Bounded(*(array[others].reshape(len(own), -1) for array in z))
            weight = Weight.of(row_weight(rows, local) / 2, *rows, sum(rows), len(rows))
            hot = one_hot(partner - (partner > own), kept)
            value, slope = rounding.cross_entropy(kept, hot, p.of_given_logits)
            for_each.append({"contrastive_loss": np.asarray(rounding.total(value, weight, p))})
            full = Bounded(np.zeros(z.value.shape), np.zeros(z.value.shape))
            for array, given in zip(full, slope, strict=True):
                array[others] = given.ravel()
            gradient = weight.times(cotangents[rank]["contrastive_loss"])
            operands = full, gradient, scales[rank], views[own], views, p, further
            parts = rounding.through_logits(*operands)
            sums.add(rank, "logit_scale", parts["scale"])
            x = spread(parts["x"], own, len(views))
            times = occurrences(rank, case.world_size, *flags(case))
            own_times = [float(r == rank) for r in range(case.world_size)] if local else times
            for place, (name, features) in enumerate(zip(VIEWS, both, strict=True)):
                half = slice(place * len(features), (place + 1) * len(features))
                for part, count in (x, own_times), (parts["y"], times):
                    add_rows(sums, name, Magnitude(part.error[half], part.size[half]), rows, count)
        return Bounds(for_each, sums.bounds(p, self.through(case)))


class LearnedNTXentContract(LearnedInfoNceContract, NTXentContract):
    """SimCLR's loss whose temperature is learned."""
