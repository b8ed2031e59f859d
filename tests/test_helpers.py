"""The helpers of other tests: what they accept and what they refuse."""

import math

import numpy as np
import pytest

from tests.helpers import UNIT_ROUNDOFF, close, gradient_magnitude, operations, value_magnitude


def test_close_accepts_what_so_many_operations_may_be_off() -> None:
    off = 6 * UNIT_ROUNDOFF
    close(1 + off, 1.0, 1.0, 6)
    close([1.0, 2.0 - 2 * off], [1.0, 2.0], [1.0, 2.0], 6)
    close(1e-300, 0.0, 0.0, 6, floor=1e-300)


def test_close_refuses_more() -> None:
    off = 8 * UNIT_ROUNDOFF
    with pytest.raises(AssertionError, match="is not"):
        close(1 + off, 1.0, 1.0, 6)
    with pytest.raises(AssertionError, match="is not"):
        close([1.0, 2.0 + 2 * off], [1.0, 2.0], [1.0, 2.0], 6)
    with pytest.raises(AssertionError, match="is not"):
        close(1e-300, 0.0, 0.0, 6)


@pytest.mark.parametrize("observed", [math.nan, math.inf])
def test_close_refuses_what_is_not_finite(observed: float) -> None:
    with pytest.raises(AssertionError, match="is not"):
        close(observed, 1.0, 1.0, 6)


def test_close_refuses_another_shape() -> None:
    with pytest.raises(AssertionError):
        close(np.ones((2, 1)), np.ones(2), 1.0, 6)


def test_magnitudes_by_hand() -> None:
    # two ranks, three rows: 2 * 2 * (2 * 4 + 1 + log(3 + 3)) * 3 and 2 * 4 * 4 * (1 + 2 * 4) * 3
    assert value_magnitude((2, 1)) == pytest.approx(12 * (9 + math.log(6)), rel=UNIT_ROUNDOFF)
    assert gradient_magnitude((2, 1)) == 864
    # 2 * (3 + 3 + 3 + 10)
    assert operations((2, 1)) == 38
