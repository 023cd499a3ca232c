"""Cost against suppression, a point for each candidate with its name beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.gate.charts import LETTER, Axis, bar, drawing, extent, line, looks, upright, words
from pipeline.gate.markup import Html, cut, number, tag
from schemas.gate import PLAIN, Estimate

_WIDE, _NARROW = (920.0, 400.0), (330.0, 320.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 20.0, 24.0, 44.0
_NAME: Final = (26, 16)
"""Letters of a name, wide and narrow."""
_HIGH: Final = 15.0
"""Height of a name, pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Point:
    """One candidate."""

    name: str
    cost: float
    """In plain passes, above 0."""
    gain: Estimate


def chart(points: Sequence[Point], names: Sequence[str]) -> Html:
    """The drawing in both sizes; `names` settles who looks how."""
    return tag(
        "figure",
        tag("div", _drawn(points, names, _WIDE, _NAME[0]), class_="wide"),
        tag("div", _drawn(points, names, _NARROW, _NAME[1]), class_="narrow"),
        class_="chart",
    )


def _drawn(points: Sequence[Point], names: Sequence[str], size: tuple[float, float], letters: int) -> Html:
    width, height = size
    costs = [1.0, *(point.cost for point in points)]
    across = Axis(min(costs) / 1.15, max(costs) * 1.25, _LEFT, width - _RIGHT, log=True)
    up = Axis(*extent([point.gain for point in points], 0), height - _BOTTOM, _TOP)
    at = [(across(point.cost), up(point.gain.mean)) for point in points]
    bars = [(x, up(point.gain.high), x, up(point.gain.low)) for (x, _), point in zip(at, points, strict=True)]
    texts = [cut(point.name, letters) for point in points]
    boxes = place(at, bars, [len(text) * LETTER for text in texts], (_LEFT, _TOP, width, height - _BOTTOM))
    by_name = looks([PLAIN, *names, *(point.name for point in points)])
    parts = _axes(across, up)
    for point, centre, (x, high, _, low), text, box in zip(points, at, bars, texts, boxes, strict=True):
        look = by_name[point.name]
        inner = _leader(centre, box), bar(x, low, high), look.mark(*centre), _name(point.name, text, x, box)
        parts.append(tag("g", *inner, class_=look.colour))
    label = f"Gain against cost of {', '.join(point.name for point in points)}; the numbers are in the first table"
    return drawing(parts, width, height, label)


def _axes(across: Axis, up: Axis) -> list[Html]:
    parts = [*upright(up, across.start, across.stop), words("gain in Score", 4, 12, "faint")]
    for tick in across.ticks():
        x = across(tick)
        parts.append(line(x, up.stop, x, up.start, "grid"))
        parts.append(words(number(tick, across.decimals()), x, up.start + 18, "faint", "middle"))
    middle = (across.start + across.stop) / 2
    return [*parts, words("cost, in plain passes (log scale)", middle, up.start + 38, "faint", "middle")]


def _name(name: str, text: str, x: float, box: Box) -> Html:
    """Flush with the side of its box that is nearer to the point, as letters may be narrower than was reckoned."""
    left_of_it = box[2] < x
    return tag(
        "text",
        tag("title", name),
        text,
        x=box[2] if left_of_it else box[0],
        y=box[3] - 3,
        text_anchor="end" if left_of_it else None,
        class_="name",
    )


def _leader(centre: tuple[float, float], box: Box) -> Html:
    """From a point to a name that stands away from it."""
    end = _nearest(box, *centre)
    return line(*centre, *end, "leader") if math.dist(centre, end) > 14 else Html("")


def place(
    at: Sequence[tuple[float, float]], bars: Sequence[Box], widths: Sequence[float], inside: Box
) -> list[Box]:
    """A box for each name near its point, which covers no other name and no marker, and no interval if it can.

    Greedy, from the top: each takes the cheapest of some places around its point.
    """
    marks = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    found: dict[int, Box] = {}
    for point in sorted(range(len(at)), key=lambda index: (at[index][1], at[index][0])):
        x, y = at[point]
        best = math.inf
        for cost, dx, dy in _around(widths[point]):
            box = (x + dx, y + dy, x + dx + widths[point], y + dy + _HIGH)
            cost += 100 * sum(_overlap(box, other) > 0 for other in [*found.values(), *marks])
            cost += 8 * sum(_overlap(box, (one[0] - 3, one[1], one[2] + 3, one[3])) > 0 for one in bars)
            cost += 1000 * (
                box[0] < inside[0] or box[1] < inside[1] or box[2] > inside[2] or box[3] > inside[3]
            )
            if cost < best:
                best, found[point] = cost, box
    return [found[one] for one in range(len(at))]


def _around(width: float) -> list[tuple[float, float, float]]:
    """(cost, dx, dy) of a box's corner from the point: right, left, then further up and down."""
    offsets = sorted((offset for offset in range(-12, 13)), key=abs)
    return [
        (abs(offset) + extra, dx, -_HIGH / 2 + offset * 6)
        for offset in offsets
        for extra, dx in ((0, 11), (2, -11 - width), (3, -width / 2), (6, 30), (8, -30 - width))
    ]


def _overlap(one: Box, other: Box) -> float:
    """Area."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def _nearest(box: Box, x: float, y: float) -> tuple[float, float]:
    """The point of a box nearest to a point."""
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
