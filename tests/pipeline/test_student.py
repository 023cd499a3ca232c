"""Points as tables have them."""

from __future__ import annotations

import pytest

from pipeline.student import student


@pytest.mark.parametrize(
    ("tail", "freedom", "point"),
    [
        (0.025, 1, 12.7062),
        (0.025, 2, 4.3027),
        (0.025, 3, 3.1824),
        (0.025, 10, 2.2281),
        (0.005, 30, 2.7500),
        (0.0005, 10, 4.5869),
        (0.0005, 5, 6.8688),
        (0.025, 5000, 1.9604),
        (0.5, 7, 0.0),
    ],
)
def test_points(tail: float, freedom: int, point: float) -> None:
    assert student(tail, freedom) == pytest.approx(point, abs=6e-5)
