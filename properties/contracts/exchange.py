"""The contract of the neighbour exchanges."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from verified_losses.oracles.bounds import Precision
from verified_losses.oracles.exchange import neighbour_exchange, neighbour_exchange_bidir

from ..cases import Case, Options
from ..names import STRIDES
from ..subjects import Subject
from . import call_in_order
from .calls import Call, Inputs
from .gather import GatherContract
from .parts import FEATURES


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
    names_ranks = True
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

    def calls(self, case: Case) -> dict[str, Call]:
        if self._both(case):
            received = Call(neighbour_exchange_bidir, FEATURES, asked="all")
            return {name: replace(received, place=place) for place, name in enumerate(self.terms)}
        left = tuple((rank - 1) % case.world_size for rank in range(case.world_size))
        return {"received": Call(neighbour_exchange, FEATURES[:1], (left,), asked="all")}

    def precision(self, case: Case) -> Precision:
        """Nothing may happen to values or gradients, each used once."""
        return Precision(0.0, case.precision.accumulated, 0.0)

    def structure(self, case: Case) -> str:
        return "tuple of 2" if self._both(case) else "Tensor"

    def _both(self, case: Case) -> bool:
        return bool(case.option("bidirectional"))
