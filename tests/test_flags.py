"""Every combination of flags on a few fixed cases: none is left to what is drawn."""

import dataclasses
import itertools

import pytest

from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import Bench, laws
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.worlds import World
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.single import SingleWorld

FLAGS = [
    (("convention", convention), ("local_loss", local_loss), ("gather_with_grad", gather_with_grad))
    for convention, local_loss, gather_with_grad in itertools.product(
        ("exact", "open_clip"), (False, True), (False, True)
    )
]
DIST_IMPLS = [(("dist_impl", name),) for name in ("bidir", "shift", "reduce", "gather")]
WEIGHTS = (("caption_loss_weight", 2.0), ("clip_loss_weight", 1.5))
CONFIGURATIONS = [
    *itertools.product(["clip", "distill", "gather"], FLAGS),
    *(("coca", (*flags, *WEIGHTS)) for flags in FLAGS),
    *itertools.product(["siglip"], DIST_IMPLS),
    ("exchange", ()),
    ("exchange_bidir", (("bidirectional", True),)),
]
ROWS = [(3,), (2, 2), (1, 3), (2, 1, 3), (1, 3, 2, 4), (1, 2, 1, 2, 2), (2, 1, 3, 1, 2, 4)]
CASE = Case(
    width=3, pattern="unit", scale=2.0, bias=-0.5, vocabulary=4, length=3, pad_id=1, pads="inside",
    teacher_width=2, cotangents="drawn",
)  # fmt: skip
LAWS = {law.name: law for law in laws()}


@pytest.mark.filterwarnings("ignore:Using .assume. outside a property-based test")
@pytest.mark.parametrize(
    ("label", "options", "rows"),
    [
        pytest.param(
            label, options, rows, id="-".join([label, *(str(value) for _, value in options), str(rows)])
        )
        for (label, options), rows in itertools.product(CONFIGURATIONS, ROWS)
        if len(rows) >= contracts()[SHIPPED[label][0]].smallest_world
    ],
)
def test_values_and_gradients_equal_the_oracle(
    label: str, options: tuple[tuple[str, object], ...], rows: tuple[int, ...]
) -> None:
    name, subject = SHIPPED[label]
    contract = contracts()[name]
    world: World = SingleWorld() if len(rows) == 1 else SimulatedWorld(len(rows))
    bias = None if name in ("gather", "exchange") else CASE.bias
    case = dataclasses.replace(CASE, rows=rows, options=options, bias=bias)
    bench = Bench(contract, subject, world, SingleWorld())
    for law in ("terms equal the oracle", "cotangents pass through"):
        LAWS[law].check(bench, bench.reference(case))
