"""Plots of what was trained and measured: confusion, PCK, weights of feature groups, and the course of training.

A plot is the bytes of a PNG file, the same for the same numbers. Its parts have fixed sizes and the file grows around
them, so that names of any length are whole.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.heads.pictures.layout import FAINT, GOOD, INK, printable

_DPI: Final = 120
_SERIES: Final = ("#0b62a4", "#b3470f", "#0f7a5a", "#8e3f97", "#8a6100", "#c2255c", "#33707f", "#5d6100")
_ABSENT: Final = "#d5d8dc"
"""Of classes that do not occur in the truth."""
_FEW: Final = 20
"""Up to so many classes cells have numbers."""
_MANY: Final = 60
"""From more classes on, names have small letters."""
_WINDOW: Final = 50
"""Steps that a point of the smooth loss is the mean of."""


def confusion_plot(counts: NDArray[np.integer], classes: Sequence[str]) -> bytes:
    """What each class is taken for: rows are the truth, and a row's colours are shares of it.

    Small shares are set apart by colour more than large ones. Up to 20 classes, cells have counts besides; with many
    classes, every second or third is named.

    Args:
        counts: [K, K], pixels or samples of class `row` that were taken for class `column`.
        classes: K names.

    Raises:
        ValueError: not as many names as classes.
    """
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"confusion has shape {list(counts.shape)} for {len(classes)} classes; expected {[len(classes)] * 2}"
        )
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    pixels = 52 if len(classes) <= _FEW else max(2, 1000 // len(classes))  # of a cell's side
    figure, axes = _figure(len(classes) * pixels / _DPI, len(classes) * pixels / _DPI)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad=_ABSENT)
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    every = -(-13 // pixels)  # a name takes 13 pixels
    _name(axes, classes, classes, every)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    if len(classes) <= _FEW:
        _write(axes, shares, [[_short(int(count)) for count in row] for row in counts], dark=0.35)
    notes = [f"every {_ordinal(every)} class is named"] if every > 1 else []
    notes += ["grey: not in the truth"] if not totals.all() else []
    axes.set_title("; ".join(notes), fontsize=9, color=FAINT, loc="left")
    _bar(figure, axes, image, "share of the class", [0.01, 0.1, 0.25, 0.5, 0.75, 1])
    return _png(figure)


def pck_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """PCK against alpha: the share of points found within alpha times the extent; the usual 0.1 is marked.

    Args:
        curves: by name: alphas, ascending, and the PCK at each, in [0, 1].
    """
    figure, axes = _figure(4.5, 3.4)
    axes.axvline(0.1, color=FAINT, linewidth=1.2, linestyle="--")
    axes.annotate(
        "0.1", (0.1, 1), (3, -11), xycoords=("data", "axes fraction"), textcoords="offset points", color=FAINT
    )
    lines, labels = [], []
    for place, (name, (alphas, values)) in enumerate(curves.items()):
        colour, marker = _SERIES[place % len(_SERIES)], "os^Dv"[place % 5]
        lines += axes.plot(alphas, values, color=colour, marker=marker, markersize=4, linewidth=1.5)
        inside = min(alphas) <= 0.1 <= max(alphas)
        value = f"{np.interp(0.1, alphas, values):.3f}" if inside else "-"
        labels.append(f"{value}  {printable(name)}")
    axes.set(xlabel="alpha", ylabel="PCK", ylim=(0, 1), xlim=(0, None))
    axes.grid(alpha=0.3)
    _legend(axes, lines, labels, "PCK@0.1")
    return _png(figure)


def weights_plot(weights: NDArray[np.floating], groups: Sequence[str], levels: Sequence[str]) -> bytes:
    """What weight each assigner gives to each feature group (Eq. 3), level by level; white is the even share 1 / b.

    Args:
        weights: [L, n, b], means over rows; those of an assigner sum to 1.
        groups: b names.
        levels: L names.

    Raises:
        ValueError: names and weights differ in number.
    """
    if weights.ndim != 3 or (len(levels), len(groups)) != (weights.shape[0], weights.shape[2]):
        raise ValueError(
            f"weights have shape {list(weights.shape)} for {len(levels)} levels and {len(groups)} groups;"
            " expected [levels, assigners, groups]"
        )
    assigners, even = weights.shape[1], 1 / len(groups)
    table = weights.reshape(-1, len(groups))
    figure, axes = _figure(0.75 * len(groups), 0.36 * len(table))
    most = max(2 * even, float(table.max()))
    norm = TwoSlopeNorm(even, 0, most)
    image = axes.imshow(table, cmap="RdBu", norm=norm, aspect="auto", interpolation="nearest")
    rows = [
        f"{level}, assigner {j + 1}" if assigners > 1 else level for level in levels for j in range(assigners)
    ]
    _name(axes, rows, groups)
    _write(
        axes, np.abs(norm(table) - 0.5) * 2, [[f"{value:.2f}" for value in row] for row in table], dark=0.7
    )
    for place in range(1, len(levels)):
        axes.axhline(place * assigners - 0.5, color=INK, linewidth=1.5)
    _bar(figure, axes, image, "weight", [0, even, most])
    axes.set_title(f"white: the even share, {even:.2f}", fontsize=9, color=FAINT, loc="left")
    return _png(figure)


def history_plot(
    lines: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]], metric: str
) -> bytes:
    """Loss against the step, with its moving mean; beside it the validation metric, its best step marked.

    Args:
        lines: at least one, with `step` and `loss`.
        validations: with `step` and `value`, more being better; may be empty.
        metric: what `value` is, such as mIoU.
    """
    figure, axes = _figure(4.5, 3)
    steps, losses = [line["step"] for line in lines], np.array([line["loss"] for line in lines], float)
    window = max(1, min(_WINDOW, len(lines) // 4))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps, losses, color=_SERIES[0], linewidth=0.7, alpha=0.3)
    middle = (window - 1) // 2
    axes.plot(
        steps[middle : middle + len(smooth)],
        smooth,
        color=_SERIES[0],
        marker="o" if len(lines) == 1 else "",
        linewidth=1.5,
    )
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if (losses > 0).all():
        axes.set_yscale("log")
    if validations:
        beside = figure.add_axes((1.25, 0, 1, 1), sharex=axes)
        _validation(beside, validations, metric)
    return _png(figure)


def _validation(axes: Axes, validations: Sequence[Mapping[str, Any]], metric: str) -> None:
    best = max(validations, key=lambda one: one["value"])
    steps, values = [one["step"] for one in validations], [one["value"] for one in validations]
    axes.plot(steps, values, color=_SERIES[1], marker="o", markersize=3, linewidth=1.5)
    axes.axvline(best["step"], color=GOOD, linewidth=1.2, linestyle="--")
    axes.plot([best["step"]], [best["value"]], color=GOOD, marker="*", markersize=13)
    axes.set_title(f"best: {best['value']:.4f} at step {best['step']}", fontsize=10, color=GOOD)
    axes.set_xlabel("step")
    axes.set_ylabel(printable(metric), parse_math=False)
    axes.grid(alpha=0.3)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """One with axes of so many inches; what stands around them makes the file larger."""
    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0, 0, 1, 1))


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return data.getvalue()


def _name(axes: Axes, rows: Sequence[str], columns: Sequence[str], every: int = 1) -> None:
    """Name every so manyth row and column; names are words, also where they look like formulas."""
    size = 9 if max(len(rows), len(columns)) <= _MANY else 7
    axes.set_yticks(range(0, len(rows), every), [printable(name) for name in rows[::every]], fontsize=size)
    axes.set_xticks(
        range(0, len(columns), every),
        [printable(name) for name in columns[::every]],
        fontsize=size,
        rotation=90,
    )
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)


def _write(axes: Axes, strength: NDArray[np.floating], words: Sequence[Sequence[str]], dark: float) -> None:
    """Words into cells, white where the ground is stronger than `dark`."""
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            colour = "white" if strength[row, column] > dark else INK
            axes.text(column, row, word, ha="center", va="center", fontsize=8, color=colour)


def _bar(figure: Figure, axes: Axes, image: ScalarMappable, label: str, ticks: Sequence[float]) -> None:
    """A colour bar of fixed width and height beside the axes."""
    width, height = figure.get_size_inches()
    long = 1.8
    bar = figure.add_axes((1 + 0.2 / width, 1 - long / height, 0.15 / width, long / height))
    figure.colorbar(image, cax=bar, label=label, ticks=ticks, format="%.2f")


def _legend(axes: Axes, lines: Sequence[Any], labels: Sequence[str], title: str) -> None:
    """To the right of the axes."""
    legend = axes.legend(
        lines, labels, title=title, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False
    )
    legend.set_alignment("left")
    for label in legend.get_texts():
        label.set_parse_math(False)


def _short(count: int) -> str:
    """Three digits and a unit."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * unit:  # as what is just below is rounded up to it
            return f"{count / unit:.3g}{name}"
    return str(count)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
