"""Axes with round numbers, names that keep apart, and looks that differ without colour."""

from __future__ import annotations

import itertools

import pytest

from pipeline.gate.charts import Axis, looks
from pipeline.gate.curves import apart
from pipeline.gate.markup import cut, number
from pipeline.gate.scatter import place


@pytest.mark.parametrize(
    ("low", "high", "ticks", "decimals"),
    [
        (-0.1, 0.93, [0.0, 0.2, 0.4, 0.6, 0.8], 1),
        (0.0, 0.011, [0.0, 0.002, 0.004, 0.006, 0.008, 0.01], 3),
        (-30.0, 5.0, [-30.0, -20.0, -10.0, 0.0], 0),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float], decimals: int) -> None:
    axis = Axis(low, high, 0, 100)
    assert axis.ticks() == pytest.approx(ticks)
    assert axis.decimals() == decimals


def test_a_log_axis_has_few_ticks_inside() -> None:
    axis = Axis(0.9, 60, 0, 100, log=True)
    assert 2 <= len(axis.ticks()) <= 6 and all(0 <= axis(tick) <= 100 for tick in axis.ticks())
    assert axis(60) == pytest.approx(100)


@pytest.mark.parametrize(
    ("value", "decimals", "signed", "shown"),
    [
        (1234.5678, 1, False, "1,234.6"),
        (-0.25, 3, False, "\N{MINUS SIGN}0.250"),
        (0.25, 3, True, "+0.250"),
        (-0.0001, 3, True, "0.000"),
        (float("nan"), 3, True, "\N{EN DASH}"),
        (float("-inf"), 3, False, "\N{MINUS SIGN}\N{INFINITY}"),
    ],
)
def test_numbers(value: float, decimals: int, signed: bool, shown: str) -> None:
    assert number(value, decimals, signed=signed) == shown


def test_long_names_keep_both_ends() -> None:
    assert cut("controlnet-and-lora", 11) == "contr…-lora"
    assert len(cut("x" * 64, 16)) == 16
    assert cut("short", 5) == "short"


def test_names_keep_apart_and_inside() -> None:
    found = apart([5, 6, 50, 98, 99, 99.5], 10, 0, 100)
    assert all(after - before >= 10 - 1e-9 for before, after in itertools.pairwise(found))
    assert found[0] >= 0 and found[-1] <= 100
    assert found[2] == 50


def test_names_cover_neither_each_other_nor_markers() -> None:
    """Candidates that cost the same stand in one column."""
    at = [(100.0 + shift, 150 + 9.0 * shift) for shift in range(6)] + [(280.0, 40.0)]
    boxes = place(at, [(x, y - 5, x, y + 5) for x, y in at], [90.0] * len(at), (50, 20, 330, 280))
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for left, top, right, bottom in boxes:
        assert left >= 50 and top >= 20 and right <= 330 and bottom <= 280
        assert not any(left < x < right and top < y < bottom for x, y in at)


def test_looks_differ_without_colour() -> None:
    found = looks(["plain", *(f"candidate-{number}" for number in range(20))])
    assert len({(look.dash, look.shape, look.open) for look in found.values()}) == 21
