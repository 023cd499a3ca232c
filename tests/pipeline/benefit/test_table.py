"""The study's table."""

from __future__ import annotations

import pytest

from pipeline.benefit.rows import Row
from pipeline.benefit.table import lines, markdown

ROWS = [Row("plain", ("plain",)), Row("caption", ("caption",))]
VALUES = {"segmentation": {"plain": [0.20, 0.30, 0.25], "caption": [0.23, 0.33, 0.28]}}


def test_gains_are_paired_by_split() -> None:
    """Splits differ by more than features do."""
    plain, caption = lines(ROWS, VALUES)  # type: ignore[arg-type]
    assert plain["gain"] is None and plain["mean"] == pytest.approx(25) and plain["sd"] == pytest.approx(5)
    assert caption["gain"] == pytest.approx(3) and (caption["gained"], caption["splits"]) == (3, 3)


def test_the_table_has_a_line_a_row() -> None:
    text = markdown(lines(ROWS, VALUES)).splitlines()  # type: ignore[arg-type]
    assert text[0] == "### segmentation: mIoU, percent"
    assert text[3] == "| plain | 1 | 25.00 ± 5.00 |  | | 58.13 |"
    assert text[4] == "| caption | 1 | 28.00 ± 5.00 | +3.00 | 3 of 3 |  |"
