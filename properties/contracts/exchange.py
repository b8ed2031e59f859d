"""The contract of the neighbour exchanges."""

import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.exchange import neighbour_exchange, neighbour_exchange_bidir
from verified_losses.oracles.rounding import Magnitude, Precision

from ..cases import Case, Options
from ..names import STRIDES
from ..subjects import Subject
from . import Bounds, Cotangents, Inputs, Sum, call_in_order
from .gather import GatherContract
from .parts import FEATURES, column


def bind_neighbours(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Bind the ranks of both neighbours."""
    return functools.partial(target, (rank - 1) % world_size, (rank + 1) % world_size)


class ExchangeContract(GatherContract):
    """A rank receives its neighbour's tensor, bit by bit; gradients travel back.

    The subject is one of the two exchanges with gradient, told apart by its arguments: in one direction
    image features go to the right, in both directions image features go left and text features right.
    """

    name = "exchange"
    terms: tuple[str, ...] = ("received", "received_from_left")
    smallest_world = 2
    options_in = {"horovod": None}
    assumed = {}
    drawn = GatherContract.drawn | {"freezable": (), "strides": (*STRIDES, "expanded")}
    build_with = staticmethod(bind_neighbours)
    call_with = staticmethod(call_in_order)

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        """Draw which direction; a subject that goes both ways has `bidirectional` pinned."""
        return st.just((("bidirectional", dict(subject.options).get("bidirectional", False)),))

    def inputs(self, case: Case) -> Inputs:
        inputs = super().inputs(case)
        if case.strides == "expanded":
            inputs = [{k: np.broadcast_to(v[:, :1], v.shape) for k, v in given.items()} for given in inputs]
        return inputs if self._both(case) else [{FEATURES[0]: given[FEATURES[0]]} for given in inputs]

    def term_shapes(self, case: Case) -> list[dict[str, tuple[int, ...]]]:
        world_size = case.world_size
        shapes: list[dict[str, tuple[int, ...]]] = []
        for rank in range(world_size):
            left = (case.rows[(rank - 1) % world_size], case.width)
            right = (case.rows[(rank + 1) % world_size], case.width)
            shapes.append(
                {"received": right, "received_from_left": left} if self._both(case) else {"received": left}
            )
        return shapes

    def oracle(self, case: Case, inputs: Inputs) -> list[dict[str, Array]]:
        images = column(inputs, FEATURES[0])
        if not self._both(case):
            left = [(rank - 1) % case.world_size for rank in range(case.world_size)]
            return [{"received": value} for value in neighbour_exchange(images, left)]
        pairs = neighbour_exchange_bidir(images, column(inputs, FEATURES[1]))
        return [{"received": right, "received_from_left": left} for right, left in pairs]

    def bounds(self, case: Case, inputs: Inputs, cotangents: Cotangents) -> Bounds:
        """Nothing may happen to values or gradients, each used once."""
        zeros = [{name: np.zeros(shape) for name, shape in rank.items()} for rank in self.term_shapes(case)]
        sums = Sum(inputs)
        for rank, given in enumerate(inputs):
            for name, array in given.items():
                sums.add(rank, name, Magnitude(np.zeros(array.shape), np.zeros(array.shape)))
        return Bounds(zeros, sums.bounds(Precision(0.0, case.precision.accumulated, 0.0)))

    def oracle_source(self, case: Case) -> dict[str, str]:
        if self._both(case):
            received = f"neighbour_exchange_bidir({', '.join(FEATURES)})[rank]"
            return {name: f"{received}[{place}]" for place, name in enumerate(self.terms)}
        left = [(rank - 1) % case.world_size for rank in range(case.world_size)]
        return {"received": f"neighbour_exchange({FEATURES[0]}, {left})[rank]"}

    def structure(self, case: Case) -> str:
        return "tuple of 2" if self._both(case) else "Tensor"

    def _both(self, case: Case) -> bool:
        return bool(case.option("bidirectional"))
