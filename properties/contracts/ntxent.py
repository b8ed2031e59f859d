"""The contract of SimCLR's loss."""

import numpy as np

from verified_losses.oracles import rounding
from verified_losses.oracles.clip import row_weight
from verified_losses.oracles.gather import occurrences
from verified_losses.oracles.ntxent import ntxent_loss, places
from verified_losses.oracles.rounding import Bounded, Magnitude, Weight

from ..cases import Case
from . import Bounds, Cotangents, Inputs, Sum
from .clip import ClipContract
from .infonce import VIEWS, InfoNceContract, add_rows, spread
from .parts import column, flags, is_local, one_hot


class NTXentContract(InfoNceContract):
    """The mean cross-entropy of each view's partner among all other views.

    The subject is constructed with a `temperature` and called with the first and the second views.
    """

    name = "ntxent"

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """Both views are anchors."""
        return ClipContract.gradient_expected(self, case)

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, complex]]:
        first, second = (column(inputs, name) for name in VIEWS)
        return [
            {
                "contrastive_loss": ntxent_loss(
                    first, second, 1 / case.scale, rank, *flags(case), *self._dot(case)
                )
            }
            for rank in range(case.world_size)
        ]

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        p = case.precision
        sums = Sum(inputs)
        local = is_local(case)
        rows = list(case.rows)
        both = self.ready(case, inputs)
        views = np.concatenate(both)
        further = self.further(case, inputs, case.width)
        for_each = []
        for rank in range(case.world_size):
            own, partner = places(rows, rank, local)
            z = rounding.logits(case.scale, views[own], views, 0.0, p, further)
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
            operands = full, gradient, case.scale, views[own], views, p, further
            parts = rounding.through_logits(*operands)
            x = spread(parts["x"], own, len(views))
            times = occurrences(rank, case.world_size, *flags(case))
            own_times = [float(r == rank) for r in range(case.world_size)] if local else times
            for place, (name, features) in enumerate(zip(VIEWS, both, strict=True)):
                half = slice(place * len(features), (place + 1) * len(features))
                for part, count in (x, own_times), (parts["y"], times):
                    add_rows(sums, name, Magnitude(part.error[half], part.size[half]), rows, count)
        return Bounds(for_each, sums.bounds(p, self.through(case)))
