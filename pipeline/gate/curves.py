"""Score against t, a line for each technique: at full size with names beside the lines, for phones with a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.gate.charts import LETTER, Axis, Look, bar, drawing, extent, finite, line, looks, upright, words
from pipeline.gate.markup import Html, cut, number, tag
from schemas.gate import Estimate

Curves = Mapping[str, Mapping[int, Estimate]]
_WIDE, _NARROW = (920.0, 440.0), (330.0, 320.0)
_LEFT, _TOP, _BOTTOM = 56.0, 24.0, 44.0
_NAME: Final = 24
"""Letters of a name beside its line."""
_LINE: Final = 17.0
"""Least distance of two names, pixels."""


def chart(curves: Curves, names: Sequence[str], t: int) -> Html:
    """The drawing in both sizes.

    Args:
        curves: Score by name and t; some of it finite.
        names: all candidates, whose order settles who looks how.
        t: where candidates are judged, which is marked.
    """
    by_name = looks([*names, *curves])
    shown = {
        name: {at: one for at, one in sorted(by_t.items()) if finite([one])} for name, by_t in curves.items()
    }
    shown = {name: by_t for name, by_t in shown.items() if by_t}
    keys = [tag("li", by_name[name].key(), tag("span", name)) for name in shown]
    return tag(
        "figure",
        tag("div", _drawn(shown, by_name, t, _WIDE, names_beside=True), class_="wide"),
        tag("div", _drawn(shown, by_name, t, _NARROW, names_beside=False), class_="narrow"),
        tag("ul", *keys, class_="legend narrow"),
        class_="chart",
    )


def _drawn(
    curves: Curves, by_name: Mapping[str, Look], t: int, size: tuple[float, float], names_beside: bool
) -> Html:
    width, height = size[0], max(size[1], _TOP + _BOTTOM + _LINE * len(curves))
    longest = max(len(cut(name, _NAME)) for name in curves)
    right = width - (longest * LETTER + 30 if names_beside else 16)
    times = sorted({at for by_t in curves.values() for at in by_t})
    across = Axis(times[0] / 1.15, max(times[-1], times[0] + 1) * 1.15, _LEFT, right, log=True)
    up = Axis(*extent([one for by_t in curves.values() for one in by_t.values()]), height - _BOTTOM, _TOP)
    parts = [*upright(up, _LEFT, right), *_times(times, across, height, t)]
    # A little beside each other, so that intervals at the same t do not hide each other.
    step = min(5.0 if names_beside else 3.0, 40 / len(curves))
    aside = {name: step * (place - (len(curves) - 1) / 2) for place, name in enumerate(curves)}
    for name, by_t in curves.items():
        parts.append(_line(by_t, by_name[name], across, up, aside[name]))
    if names_beside:
        ends = {
            name: (across(max(by_t)) + aside[name], up(by_t[max(by_t)].mean)) for name, by_t in curves.items()
        }
        parts += _names(ends, by_name, up, right)
    parts.append(words("Score", 4, 12, "faint"))
    label = f"Score against t of {', '.join(curves)}; the numbers are in the table below"
    return drawing(parts, width, height, label)


def _times(times: Sequence[int], across: Axis, height: float, t: int) -> list[Html]:
    """The measured times; those that would run into each other have a tick alone."""
    parts, last = [], -math.inf
    for at in times:
        x = across(at)
        parts.append(line(x, _TOP, x, height - _BOTTOM, "axis" if at == t else "grid"))
        if x - last > LETTER * len(str(at)) + 6:
            parts.append(words(number(at, 0), x, height - _BOTTOM + 18, "faint", "middle"))
            last = x
    if t in times:
        parts.append(words("judged here", across(t), _TOP - 8, "faint", "middle"))
    middle = (across.start + across.stop) / 2
    return [*parts, words("t, noise in thousandths (log scale)", middle, height - 6, "faint", "middle")]


def _line(by_t: Mapping[int, Estimate], look: Look, across: Axis, up: Axis, aside: float) -> Html:
    points = [(across(at) + aside, up(one.mean), up(one.low), up(one.high)) for at, one in by_t.items()]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in points)
    bars = [bar(x, low, high) for x, _, low, high in points]
    way = tag("path", class_="line", d=path, stroke_dasharray=look.dash or None)
    return tag("g", way, *bars, *(look.mark(x, y) for x, y, *_ in points), class_=look.colour)


def _names(
    ends: Mapping[str, tuple[float, float]], by_name: Mapping[str, Look], up: Axis, right: float
) -> list[Html]:
    """Each at the height of its line's end, or as near as the others let it."""
    order = sorted(ends, key=lambda name: ends[name][1])
    heights = apart([ends[name][1] for name in order], _LINE, up.stop, up.start)
    return [
        tag(
            "g",
            line(ends[name][0] + 7, ends[name][1], right + 12, at, "leader"),
            tag("text", tag("title", name), cut(name, _NAME), x=right + 16, y=at + 4, class_="name"),
            class_=by_name[name].colour,
        )
        for name, at in zip(order, heights, strict=True)
    ]


def apart(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Rising positions moved as little as keeps them `least` apart, between `low` and `high` where they fit."""
    found: list[float] = []
    for one in wanted:
        found.append(max(one, low, found[-1] + least if found else low))
    ceiling = high
    for place in reversed(range(len(found))):
        found[place] = min(found[place], ceiling)
        ceiling = found[place] - least
    return found
