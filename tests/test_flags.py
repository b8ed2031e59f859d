"""Every combination of flags on a few fixed cases: none is left to what is drawn."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import Bench, laws
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.worlds import World
from verified_losses.properties.worlds.simulated import SimulatedWorld
from verified_losses.properties.worlds.single import SingleWorld

FIXED = {"cache_labels", "use_horovod", "bidirectional"}
"""Options that alter nothing here, or that belong to another target."""


def _configurations() -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Yield every combination of flags of every loss; weights differ."""
    for label, (name, subject) in SHIPPED.items():
        values = contracts()[name].values
        flags = {
            option: all_ for option, all_ in values.items() if isinstance(all_, tuple) and option not in FIXED
        }
        weights = [option for option, kind in values.items() if kind is float]
        weighed = tuple(zip(weights, itertools.count(0.5, 0.25), strict=False))
        for combination in itertools.product(*flags.values()):
            yield label, (*zip(flags, combination, strict=True), *weighed, *subject.options)


CONFIGURATIONS = list(_configurations())
ROWS = [(3,), (2, 2), (1, 3), (2, 1, 3), (1, 3, 2, 4), (1, 2, 1, 2, 2)]
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
        and label != "coca_hidden"  # flags do there what they do in `coca`
        and (("implementation", "triton") not in options or len(rows) in (1, 3))  # which takes longer
    ],
)
def test_values_and_gradients_equal_the_oracle(
    label: str, options: tuple[tuple[str, object], ...], rows: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    if ("implementation", "triton") in options:
        request.getfixturevalue("kernels")
    name, subject = SHIPPED[label]
    contract = contracts()[name]
    world: World = SingleWorld() if len(rows) == 1 else SimulatedWorld(len(rows))
    bias = CASE.bias if "logit_bias" in contract.differentiable else None
    case = dataclasses.replace(CASE, rows=rows, options=options, bias=bias)
    bench = Bench(contract, subject, world, SingleWorld())
    for law in ("terms equal the oracle", "cotangents pass through"):
        LAWS[law].check(bench, bench.reference(case))
