"""What the report's drawings have in common: axes, looks that differ without colour too, and inline intervals.

Drawings are inline SVG whose colours are classes of `pipeline.gate.style`, so that they follow light and dark. Each is
made at its own size, not scaled down, so that its letters stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.gate.markup import Html, joined, number, tag
from schemas.gate import PLAIN, Estimate

LETTER: Final = 8.6
"""Width of a label's letter, in pixels, at most on average."""
_COLOURS: Final = 8
_DASHES: Final = ("", "7 4", "2 3", "9 3 2 3", "5 2 1 2 1 2")
_MARKS: Final = (
    "M4 0A4 4 0 1 1 -4 0A4 4 0 1 1 4 0Z",  # circle
    "M-3.7 -3.7H3.7V3.7H-3.7Z",  # square
    "M0 -5L5 0L0 5L-5 0Z",  # diamond
    "M0 -5L4.6 3.7H-4.6Z",  # triangle
    "M0 5L4.6 -3.7H-4.6Z",  # triangle on its point
    "M-1.6 -5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",  # plus
    "M0 -5L4.8 -1.6L3 4.1H-3L-4.8 -1.6Z",  # pentagon
)


@dataclass(frozen=True)
class Look:
    """How one candidate is drawn, in every drawing."""

    colour: str
    """Class."""
    dash: str
    shape: str
    """Path around (0, 0)."""
    open: bool = False

    def mark(self, x: float, y: float) -> Html:
        """Its marker at a point."""
        class_ = "mark open" if self.open else "mark"
        return tag("path", class_=class_, d=self.shape, transform=f"translate({x:.1f} {y:.1f})")

    def key(self) -> Html:
        """A sample of line and marker, for a legend."""
        line = tag("path", class_="line", d="M1 8H33", stroke_dasharray=self.dash or None)
        inner = tag("g", line, self.mark(17, 8), class_=self.colour)
        return tag("svg", inner, width=34, height=16, viewBox="0 0 34 16", aria_hidden="true")


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Colour, dash and marker by name; the plain feature's is solid with an open circle."""
    found = {PLAIN: Look("plain", "", _MARKS[0], open=True)}
    others = (name for name in names if name != PLAIN)
    for place, name in enumerate(dict.fromkeys(others)):
        shape = _MARKS[(place + 1) % len(_MARKS)]
        found[name] = Look(f"s{place % _COLOURS}", _DASHES[(place + 1) % len(_DASHES)], shape)
    return found


@dataclass(frozen=True)
class Axis:
    """Values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    stop: float
    """Pixel of `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values, at most about so many."""
        if self.log:
            steps = [base * 10.0**power for power in range(-3, 5) for base in (1, 1.5, 2, 3, 5, 7)]
            found = [step for step in steps if self.low <= step <= self.high]
            return found[:: math.ceil(len(found) / most)] if found else [self.low]
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def decimals(self, most: int = 6) -> int:
        """That tell its ticks apart."""
        values = self.ticks(most)
        return next(
            (n for n in range(6) if all(abs(round(v, n) - v) < 1e-9 * max(1, abs(v)) for v in values)), 6
        )


def finite(values: Iterable[Estimate]) -> list[Estimate]:
    """Those that can be drawn."""
    return [one for one in values if all(map(math.isfinite, (one.mean, one.low, one.high)))]


def extent(values: Sequence[Estimate], *also: float) -> tuple[float, float]:
    """Lowest and highest end of all intervals, with some room."""
    low = min([*(one.low for one in values), *also])
    high = max([*(one.high for one in values), *also])
    room = 0.06 * (high - low) or 0.1
    return low - room, high + room


def words(text: str, x: float, y: float, class_: str | None = None, anchor: str | None = None) -> Html:
    """Text of a drawing."""
    return tag("text", text, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def bar(x: float, low: float, high: float) -> Html:
    """An upright interval; its ends are wider, so that they show beside those of others."""
    return tag("path", class_="bar", d=f"M{x - 3:.1f} {low:.1f}h6M{x:.1f} {low:.1f}V{high:.1f}m-3 0h6")


def drawing(parts: Iterable[str], width: float, height: float, label: str) -> Html:
    """An SVG with a text in its place for those who do not see it."""
    return tag(
        "svg",
        joined(parts),
        width=width,
        height=height,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=label,
    )


def upright(axis: Axis, left: float, right: float) -> list[Html]:
    """Grid and numbers of a vertical axis; the line of 0 stands out."""
    parts, decimals = [], axis.decimals()
    for tick in axis.ticks():
        y = axis(tick)
        parts.append(line(left, y, right, y, "axis" if abs(tick) < 1e-9 else "grid"))
        parts.append(words(number(tick, decimals), left - 8, y + 4, "faint", "end"))
    return parts


def inline_interval(value: Estimate, low: float, high: float) -> Html:
    """An interval on the scale from `low` to `high`, with the line of 0, as high as a line of text."""
    if not finite([value]):
        return Html("")
    axis = Axis(low, high, 4, 126)
    left, middle, right = axis(value.low), axis(value.mean), axis(value.high)
    parts = [
        line(axis(0), 2, axis(0), 22, "axis"),
        line(left, 12, right, 12, "bar"),
        line(left, 8, left, 16, "bar"),
        line(right, 8, right, 16, "bar"),
        tag("path", class_="mark", d=_MARKS[0], transform=f"translate({middle:.1f} 12)"),
    ]
    # The numbers stand beside it, so it is nothing to be read out.
    return tag("svg", *parts, class_="inline", viewBox="0 0 130 24", aria_hidden="true")


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)
