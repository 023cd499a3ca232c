"""Plots: what is dark, marked and named, and that nothing is cut."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pipeline.heads.pictures.layout import FAINT, GOOD
from pipeline.heads.pictures.plots import (
    _ABSENT,
    _SERIES,
    _short,
    confusion_plot,
    history_plot,
    pck_plot,
    weights_plot,
)
from tests.pipeline.heads.shown import count, has_margin, pixels, uprights

LONG = "a class of things with a name of very many words $\\frac$"
ALPHAS = [0.05, 0.1, 0.15]


def scale(name: str, share: float) -> tuple[int, ...]:
    """A colour of a colour map."""
    return tuple(int(value) for value in matplotlib.colormaps[name](share, bytes=True)[:3])


@pytest.mark.parametrize(("classes", "cell"), [(1, 52), (2, 52), (150, 6)])
def test_a_perfect_confusion_is_dark_on_the_diagonal_only(classes: int, cell: int) -> None:
    plot = pixels(confusion_plot(np.diag(np.full(classes, 7)), [f"{i}" for i in range(classes)]))
    dark = count(plot, scale("Blues", 1.0))
    assert (
        0.85 * classes * cell**2 <= dark <= classes * cell**2 + 100
    )  # less a count's letters; with the colour bar's
    assert count(plot, scale("Blues", 0.0)) >= 0.85 * (classes**2 - classes) * cell**2


def test_rows_are_shares_of_the_truth() -> None:
    """A rare class is as visible as a frequent one, and columns do not matter."""
    counts, names = np.random.default_rng(0).integers(1, 9, (21, 21)), [f"{i}" for i in range(21)]
    plot = confusion_plot(counts, names)
    assert plot == confusion_plot(counts * np.arange(1, 22)[:, None] * 1000, names)
    assert plot != confusion_plot(counts * np.arange(1, 22) * 1000, names)


def test_a_class_without_truth_is_grey_not_perfect() -> None:
    counts = np.array([[4, 0, 1], [0, 0, 0], [0, 2, 9]])
    assert count(pixels(confusion_plot(counts, "abc")), _ABSENT) >= 0.9 * 3 * 52**2
    assert count(pixels(confusion_plot(counts + 1, "abc")), _ABSENT) == 0


@pytest.mark.parametrize("classes", [2, 21])
def test_names_are_whole_and_never_formulas(classes: int) -> None:
    """The last name is the longest; between dollars matplotlib reads a formula, here a wrong one."""
    names = [f"{i}" for i in range(classes)]
    short, long = (
        pixels(confusion_plot(np.eye(classes, dtype=int), [*names[:-1], end])) for end in ("x", LONG)
    )
    assert has_margin(long)
    assert long.shape[0] - short.shape[0] > 6 * len(LONG) and long.shape[1] - short.shape[1] > 6 * len(LONG)


def test_pck_marks_a_tenth_and_names_every_curve() -> None:
    """matplotlib before 3.10 leaves names that begin with an underscore out of legends."""
    curves = {"plain": (ALPHAS, [0.2, 0.5, 0.6]), "_" + LONG: ([0.2, 0.3], [0.9, 1.0])}
    plot = pixels(pck_plot(curves))
    assert has_margin(plot)
    assert len(uprights(plot, FAINT, 200))
    assert count(plot, _SERIES[0]) > 100 and count(plot, _SERIES[1]) > 100
    assert plot.shape[1] - pixels(pck_plot({"plain": curves["plain"]})).shape[1] > 6 * len(LONG)


def test_weights_above_and_below_the_even_share_differ_in_colour() -> None:
    """Even weights are white for any number of groups; one that takes all is darkest blue, the others darkest red."""
    even = pixels(weights_plot(np.full((2, 2, 4), 0.25), list("abcd"), ["x", "y"]))
    single = pixels(weights_plot(np.eye(4)[None, :1], list("abcd"), ["x"]))
    white, blue, red = (scale("RdBu", share) for share in (0.5, 1.0, 0.0))
    cell = 0.75 * 0.36 * 120**2
    assert count(even, white) >= 0.8 * 16 * cell and count(single, white) < 0.1 * cell
    assert 0.8 * cell <= count(single, blue) <= 1.2 * cell and 2.4 * cell <= count(single, red) <= 3.2 * cell


def test_one_group_and_long_names() -> None:
    assert has_margin(pixels(weights_plot(np.ones((3, 1, 1)), [LONG], [LONG, "y", "z"])))


def test_weights_must_fit_their_names() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2, 3\] for 1 levels and 2 groups; expected \[levels, assign"):
        weights_plot(np.ones((1, 2, 3)), ["a", "b"], ["x"])
    with pytest.raises(ValueError, match=r"shape \[2, 2\] for 3 classes; expected \[3, 3\]"):
        confusion_plot(np.eye(2, dtype=int), "abc")


def test_the_best_validation_is_marked() -> None:
    """With equal ones it is the first, which is the one kept; a loss with Eq. 5 may be below zero."""
    lines = [{"step": step, "loss": 1 - step / 50} for step in range(1, 101)]
    scores = [{"step": step, "value": value} for step, value in ((20, 0.1), (40, 0.8), (60, 0.8), (80, 0.3))]
    plot = pixels(history_plot(lines, scores, "m$\\frac$"))
    frame, best = uprights(plot, "black", 350), uprights(plot, GOOD, 150)
    start, end = frame[frame < best[0]][-1], frame[-1]  # sides of the axes, which end 5 % beyond the steps
    assert (best.mean() - start) / (end - start) == pytest.approx((40 - 1 + 4.95) / (99 * 1.1), abs=0.01)
    assert has_margin(plot)


def test_a_history_begins_with_one_step_and_no_validation() -> None:
    plot = pixels(history_plot([{"step": 1, "loss": 2.0}], [], "mIoU"))
    assert count(plot, _SERIES[0]) > 10 and count(plot, GOOD) == 0


def test_the_same_numbers_have_the_same_bytes() -> None:
    """No date, no version of a library: results are compared by hash."""
    plots = [pck_plot({"a": (ALPHAS, ALPHAS)}) for _ in range(2)]
    assert plots[0] == plots[1]
    assert set(Image.open(io.BytesIO(plots[0])).info) == {"dpi"}


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (999, "999"), (1000, "1k"), (999_499, "999k"), (999_500, "1M"), (12_345_678, "12.3M")],
)
def test_large_counts_are_short(count: int, words: str) -> None:
    """Also those that rounding takes to the next unit."""
    assert _short(count) == words
