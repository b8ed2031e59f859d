"""What the benchmarks derive from what they measure."""

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def losses() -> ModuleType:
    spec = importlib.util.spec_from_file_location("losses_benchmark", ROOT / "benchmarks" / "losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = [
    {"loss": "ClipLoss", "pairs": n, "ms": {"streamed": n**2 / 1e3}, "extra_mb": {"streamed": n / 1e2}}
    for n in (256, 1024, 4096)
]


def test_powers_are_fitted_from_1024_pairs_on(losses: ModuleType) -> None:
    small = ROWS[0] | {"ms": {"streamed": 1e6}}
    assert losses.growth([small, *ROWS[1:]]) == [
        "ClipLoss, streamed: time grows with the power 2.00 of the pairs",
        "ClipLoss, streamed: memory grows with the power 1.00 of the pairs",
    ]
    assert losses.growth(ROWS[:2]) == []


def test_the_picture_has_a_line_for_each_form_of_a_loss(losses: ModuleType) -> None:
    picture = ElementTree.fromstring(losses.draw(ROWS))
    lines = [each.get("points") for each in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    # both are straight, as both axes are logarithmic
    assert lines == ["0.0,300.0 150.0,150.0 300.0,0.0"] * 2


def test_what_holds_all_logits_is_left_out_where_memory_is_short(
    losses: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_kilobytes", lambda path, name: 1024)
    assert losses.fits("ClipLoss", 16, losses.Machine())
    assert not losses.fits("ClipLoss", 1024, losses.Machine())
    assert losses._cell(None, ".1f") == "-"
