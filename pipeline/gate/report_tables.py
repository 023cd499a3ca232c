"""The report's tables of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from pipeline.gate.charts import extent, finite, inline_interval
from pipeline.gate.decisions import verdict
from pipeline.gate.markup import Html, at, joined, number, spread, table, tag
from schemas.gate import PLAIN, Estimate, Judged, Reading, Selection, Verdict

_LOOKS: Final[Mapping[Verdict, tuple[str, str]]] = {
    "suppresses": ("good", "\N{BLACK UP-POINTING TRIANGLE}"),
    "no effect": ("none", "\N{WHITE CIRCLE}"),
    "harms": ("bad", "\N{BLACK DOWN-POINTING TRIANGLE}"),
}
"""Class and symbol."""
_ANSWERS: Final = ("yes", "no", "unclear")
_NONE: Final = "\N{EN DASH}"


def shown(value: Verdict) -> Html:
    """As a word, a colour and a symbol."""
    class_, symbol = _LOOKS[value]
    return tag("span", tag("span", f"{symbol} ", aria_hidden="true"), value, class_=f"verdict {class_}")


def decision(selection: Selection) -> Html:
    """A row for each candidate, then for each combination."""
    others = [one for one in get_args(Reading) if one != selection.reading]
    others = [one for one in others if any(one in judged.gain for judged in selection.judged)]
    heads = [
        "candidate",
        "verdict",
        tag("th", "gain in Score, ", tag("code", selection.reading), scope="col", colspan="2"),
        *(_numeric("gain, ", tag("code", one)) for one in others),
        "Img2Img closer",
        _numeric("ms an image"),
        _numeric("plain passes"),
    ]
    drawn = finite(one.gain[selection.reading] for one in selection.judged)
    scale = extent(drawn, 0) if drawn else (-1.0, 1.0)
    alone = [one for one in selection.judged if len(one.candidates) < 2]
    together = [one for one in selection.judged if len(one.candidates) > 1]
    rows = [_judged(one, selection, others, scale) for one in alone]
    if together:
        title = tag("th", tag("span", "combinations"), scope="rowgroup", colspan=str(7 + len(others)))
        rows += [tag("tr", title), *(_judged(one, selection, others, scale) for one in together)]
    return table(heads, rows, "Decision on each candidate")


def groups(selection: Selection) -> Html:
    """The feature groups to extract."""
    heads = ["group", "prompt", "techniques", *map(_numeric, ("t", "ms an image", "plain passes"))]
    rows = []
    for group in selection.groups:
        techniques = [tag("div", described(one)) for one in group.get("techniques") or ()]
        rows.append(
            tag(
                "tr",
                tag("th", str(group.get("name", "")), scope="row"),
                tag("td", str(group.get("prompt", "")) or _NONE, class_="text"),
                tag("td", joined(techniques) if techniques else "none", class_="text"),
                tag("td", str(group.get("t", _NONE)), class_="num"),
                *_cost(group_cost(group, selection), selection.plain_cost),
            )
        )
    return table(heads, rows, "Feature groups to extract")


def group_cost(group: Mapping[str, Any], selection: Selection) -> float:
    """In seconds an image; NaN for one that was not measured under its name."""
    costs = {PLAIN: selection.plain_cost, **{one.name: one.cost for one in selection.judged}}
    return costs.get(str(group.get("name")), math.nan)


def described(technique: Mapping[str, Any]) -> str:
    """A technique of a spec in a line."""
    settings = (
        f"{key} {value}" for key, value in technique.items() if key != "type" and value not in (None, "")
    )
    return ", ".join([str(technique.get("type", "")), *settings])


def by_tap(gains: Mapping[str, Mapping[str, Estimate]]) -> Html:
    """Gains as a heat table; bold where the interval leaves 0 out."""
    taps = list(dict.fromkeys(tap for by_tap in gains.values() for tap in by_tap))
    largest = max(
        (abs(one.mean) for by_tap in gains.values() for one in finite(by_tap.values())), default=1.0
    )
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(_heat(found[tap], largest or 1.0) if tap in found else tag("td", _NONE) for tap in taps),
        )
        for name, found in gains.items()
    ]
    return table(["candidate", *map(_numeric, taps)], rows, "Gain by tap", "heat")


def curves(curves: Mapping[str, Mapping[int, Estimate]]) -> Html:
    """Score by name and t."""
    times = sorted({t for by_t in curves.values() for t in by_t})
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(_estimate(by_t[t]) if t in by_t else tag("td", _NONE, class_="num") for t in times),
        )
        for name, by_t in curves.items()
    ]
    return table(["candidate", *(_numeric(at(t)) for t in times)], rows, "Score against t")


def similarity(judged: Sequence[Judged]) -> Html:
    """How much closer Img2Img comes to the input, by measure."""
    made = [one for one in judged if one.similarity is not None]
    measures = list(dict.fromkeys(measure for one in made for measure in one.similarity or ()))
    rows = []
    for one in made:
        found = one.similarity or {}
        cells = (
            _estimate(found[measure], signed=True) if measure in found else tag("td", _NONE, class_="num")
            for measure in measures
        )
        rows.append(tag("tr", tag("th", one.name, scope="row"), *cells, tag("td", closer(one))))
    heads = ["candidate", *map(_numeric, measures), "together"]
    return table(heads, rows, "How much closer Img2Img comes to the input")


def agreement(judged: Sequence[Judged]) -> Html:
    """Who fell where: verdicts by what Img2Img says."""
    compared = [one for one in judged if one.similarity is not None]
    rows = []
    for value in get_args(Verdict):
        cells = (
            ", ".join(one.name for one in compared if (one.verdict, closer(one)) == (value, word)) or _NONE
            for word in _ANSWERS
        )
        head = tag("th", shown(value), scope="row")
        rows.append(tag("tr", head, *(tag("td", cell, class_="text") for cell in cells)))
    heads = ["by Score", *(f"Img2Img closer: {word}" for word in _ANSWERS)]
    return table(heads, rows, "Candidates by verdict and by Img2Img")


def closer(judged: Judged) -> str:
    """What Img2Img says, in a word."""
    if judged.similarity is None:
        return "not made"
    return {True: "yes", False: "no", None: "unclear"}[judged.closer]


def _judged(one: Judged, selection: Selection, others: Sequence[str], scale: tuple[float, float]) -> Html:
    gain, (class_, _) = one.gain[selection.reading], _LOOKS[one.verdict]
    taken = any(group.get("name") == one.name for group in selection.groups)
    mark = joined([" ", tag("span", "to be extracted", class_="taken")]) if taken else ""
    return tag(
        "tr",
        tag("th", one.name, mark, scope="row"),
        tag("td", shown(one.verdict)),
        _estimate(gain, signed=True),
        tag("td", inline_interval(gain, *scale), class_=class_),
        *(_other(one, reading) for reading in others),
        tag("td", closer(one)),
        *_cost(one.cost, selection.plain_cost),
    )


def _other(one: Judged, reading: str) -> Html:
    """A gain by a reading that does not decide, with its verdict where that is another."""
    if reading not in one.gain:
        return tag("td", _NONE, class_="num")
    gain = one.gain[reading]
    other = verdict(gain)
    mark = tag("span", f"\N{NOT EQUAL TO} {other}", class_="more odd") if other != one.verdict else ""
    return tag("td", number(gain.mean, signed=True), mark, class_="num")


def _cost(seconds: float, plain: float) -> list[Html]:
    """Milliseconds, and plain passes."""
    passes = seconds / plain if plain > 0 else math.nan
    milliseconds = 1000 * seconds
    texts = number(milliseconds, 0 if milliseconds >= 100 else 1), number(passes, 2)
    return [tag("td", text, class_="num") for text in texts]


def _estimate(value: Estimate, *, signed: bool = False) -> Html:
    interval = tag("span", spread(value, signed=signed), class_="more")
    return tag("td", number(value.mean, signed=signed), interval, class_="num")


def _heat(value: Estimate, largest: float) -> Html:
    text = number(value.mean, signed=True)
    sure = verdict(value) != "no effect"
    strength = 0.4 * min(abs(value.mean) / largest, 1.0) if math.isfinite(value.mean) else 0.0
    tint = "good" if value.mean > 0 else "bad"
    return tag(
        "td",
        tag("strong", text) if sure else text,
        tag("span", spread(value, signed=True), class_="more"),
        style=f"background: rgba(var(--{tint}-tint), {strength:.2f})",
    )


def _numeric(*title: str) -> Html:
    return tag("th", *title, scope="col", class_="num")
