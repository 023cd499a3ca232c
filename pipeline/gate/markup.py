"""HTML as values: text becomes markup by way of `tag` alone, which escapes whatever is not markup already."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Final

from schemas.gate import Estimate

_VOID: Final = ("img", "meta")
_MINUS, _NONE = "\N{MINUS SIGN}", "\N{EN DASH}"


class Html(str):
    """Markup, safe to put into a page as it is."""

    __slots__ = ()


def tag(element: str, /, *children: str, **attributes: str | float | None) -> Html:
    """An element.

    Args:
        element: its name.
        children: `Html`, or text.
        attributes: `class_` becomes class, `stroke_width` stroke-width; None leaves one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    start = f"<{element}{given}>"
    return Html(start if element in _VOID else f"{start}{joined(children)}</{element}>")


def joined(parts: Iterable[str]) -> Html:
    """Parts one behind the other, text escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def number(value: float, decimals: int = 3, *, signed: bool = False) -> str:
    """Every number of the page: fixed decimals, thousands set apart, a true minus; a dash for what is undefined."""
    if math.isnan(value):
        return _NONE
    if math.isinf(value):
        return f"{_MINUS if value < 0 else '+' if signed else ''}\N{INFINITY}"
    shown = f"{abs(value):,.{decimals}f}"
    if not any(digit in shown for digit in "123456789"):
        return shown  # no sign where all that is shown is 0
    return f"{_MINUS if value < 0 else '+' if signed else ''}{shown}"


def spread(value: Estimate, *, signed: bool = False) -> Html:
    """The interval in words; it breaks before its second number, if at all."""
    low, high = number(value.low, signed=signed), number(value.high, signed=signed)
    return joined([low, " ", tag("span", f"to\N{NO-BREAK SPACE}{high}", class_="whole")])


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 image`, `8 images`."""
    return f"{number(count, 0)} {one if count == 1 else many or one + 's'}"


def at(t: object) -> str:
    """A time, in one piece."""
    return f"t\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{t}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def cut(text: str, most: int) -> str:
    """At most so many characters: of a longer one its start and its end, which combinations differ in."""
    start, end = most // 2, most - most // 2 - 1
    return text if len(text) <= most else f"{text[:start]}\N{HORIZONTAL ELLIPSIS}{text[-end:]}"


def table(heads: Sequence[str], rows: Iterable[str], label: str, class_: str = "") -> Html:
    """A table of finished rows in a box of its own, which scrolls sideways where the page is narrower.

    Args:
        heads: `th` elements, or texts of them.
        rows: `tr` elements.
        label: what a screen reader calls it.
        class_: of the table.
    """
    cells = [
        one if isinstance(one, Html) and one.startswith("<th") else tag("th", one, scope="col")
        for one in heads
    ]
    inner = tag("table", tag("thead", tag("tr", *cells)), tag("tbody", joined(rows)), class_=class_ or None)
    return scrolling(inner, label)


def scrolling(inner: Html, label: str) -> Html:
    """A box that scrolls by itself, by keyboard too."""
    return tag("div", inner, class_="scroll", role="region", aria_label=label, tabindex="0")


def _attribute(value: str | float) -> str:
    """A coordinate with at most one decimal, so that the same drawing is the same text."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
