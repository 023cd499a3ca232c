"""Goals are about the right end of an interval."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.statistics import Interval, counted

VALUE = Interval(2.0, 1.0, 3.0, 5)


@pytest.mark.parametrize(
    ("side", "bound", "reached"),
    [
        ("at least", 2.0, True),
        ("at least", 2.1, False),
        ("at most", 2.0, True),
        ("at most", 1.9, False),
        ("above", 0.9, True),
        ("above", 1.0, False),
        ("below", 3.1, True),
        ("below", 3.0, False),
    ],
)
def test_goals(side: Any, bound: float, reached: bool) -> None:
    """`above` asks the lower end, `below` the upper one, the others the mean."""
    assert Goal(side, bound).reached(VALUE) is reached


def test_without_an_interval_the_mean_stands_for_it() -> None:
    assert Goal("above", 1.5).reached(counted(2, 5)) and not Goal("above", 2).reached(counted(2, 5))
    assert Goal("below", 2.5).reached(counted(2, 5)) and not Goal("below", 2).reached(counted(2, 5))


def test_json() -> None:
    found = Figure("loss", VALUE, "MSE", Goal("above", 0)).to_json()
    assert found == {
        "what": "loss",
        "mean": 2.0,
        "low": 1.0,
        "high": 3.0,
        "n": 5,
        "unit": "MSE",
        "goal": "interval above 0",
        "reached": True,
    }
    assert Figure("loss", VALUE, "MSE").to_json()["reached"] is None
