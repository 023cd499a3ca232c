"""GATE's report: one page of HTML that needs neither network nor script, the same text for the same findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.gate import curves, report_tables, scatter, sheets
from pipeline.gate.charts import finite
from pipeline.gate.explained import how_to_read
from pipeline.gate.headline import headline
from pipeline.gate.markup import Html, counted, joined, number, tag
from pipeline.gate.scatter import Point
from pipeline.gate.sheets import Picture
from pipeline.gate.style import STYLE
from schemas.gate import PLAIN, Estimate, Selection

_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser loads nothing for the page and runs nothing in it, whatever it holds."""
_ON_CURVES: Final = (
    "A higher Score is less content shift. Upright bars are intervals, which hold together within a time, not over all"
    " times; they show the Score itself, so that two may overlap where the gain between them is clear."
)


@dataclass(frozen=True)
class Report:
    """What a report shows."""

    selection: Selection
    curves: Mapping[str, Mapping[int, Estimate]]
    """By candidate, and `plain`: Score by t, deciding reading."""
    by_tap: Mapping[str, Mapping[str, Estimate]]
    """By candidate and tap: gain, deciding reading."""
    sheet: Sequence[tuple[str, Sequence[Picture]]]
    """Img2Img: column titles, and RGB [H, W, 3] of each image; the input first, then the reference. May be empty."""
    pca: Sequence[tuple[str, Sequence[Picture]]]
    """Features as colours: input, clean, plain, and what is to be extracted. May be empty."""
    agreement: tuple[int, int] | None
    """Candidates on which both guidelines agree, and those compared."""
    spec_yaml: str
    """That gives this report again."""
    notes: Sequence[str]
    """What was left out, or is unusual."""


def render(report: Report) -> str:
    """The page."""
    parts = [
        tag("section", tag("h2", title), content(report), id=name)
        for name, (title, content) in _SECTIONS.items()
    ]
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, (title, _) in _SECTIONS.items()]
    contents = tag("nav", tag("ul", *links), aria_label="Sections")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", "GATE: what suppresses content shift"),
        tag("style", Html(STYLE)),
    )
    body = tag("body", tag("main", tag("header", headline(report.selection), contents), *parts))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _decision(report: Report) -> Html:
    if not report.selection.judged:
        return _empty("There was no candidate to judge.")
    return joined(
        [
            _said(
                "A gain is how much a candidate's Score is above the plain feature's; the upright lines are at 0."
                " \N{NOT EQUAL TO} marks a reading by which the verdict would be another. Intervals of one reading hold"
                " together, those of combinations apart."
            ),
            report_tables.decision(report.selection),
        ]
    )


def _groups(report: Report) -> Html:
    selection = report.selection
    if not selection.groups:
        return _empty("No feature group is to be extracted.")
    costs = [report_tables.group_cost(group, selection) for group in selection.groups]
    if not (selection.plain_cost > 0 and all(map(math.isfinite, costs))):
        return report_tables.groups(selection)
    budget = selection.spec.get("budget")
    limit = "" if budget is None else f", of a budget of {number(float(budget), 2)}"
    together = f"Together they cost {number(sum(costs) / selection.plain_cost, 2)} plain passes{limit}."
    return joined([_said(together), report_tables.groups(selection)])


def _curves(report: Report) -> Html:
    found = {name: by_t for name, by_t in report.curves.items() if by_t}
    if not any(finite(by_t.values()) for by_t in found.values()):
        return _empty("Score was not measured at other times.")
    chart = curves.chart(found, _names(report), int(report.selection.spec.get("t", 0)))
    numbers = tag("details", tag("summary", "The numbers"), report_tables.curves(found))
    return joined([_said(_ON_CURVES), chart, numbers])


def _by_tap(report: Report) -> Html:
    if not any(report.by_tap.values()):
        return _empty("Gains were not measured by tap.")
    said = _said(
        "Green is less content shift than the plain feature, red is more; bold where the interval leaves 0 out."
        " Intervals hold together within a tap, not over all taps."
    )
    return joined([said, report_tables.by_tap(report.by_tap)])


def _sheet(report: Report) -> Html:
    judged = [one for one in report.selection.judged if one.similarity]
    parts = []
    if any(len(pictures) for _, pictures in report.sheet):
        parts += [
            _said(
                "Repainted without and with each candidate, from the same noise. Closer to the input is better."
            ),
            sheets.grid(report.sheet, "Img2Img, input and repainted images"),
        ]
    else:
        parts.append(_empty("No Img2Img pictures were made."))
    if judged:
        parts += [
            tag("h3", "How much closer to the input than the reference"),
            report_tables.similarity(judged),
        ]
    return joined(parts)


def _pca(report: Report) -> Html:
    if not any(len(pictures) for _, pictures in report.pca):
        return _empty("No pictures of features were made.")
    return joined(
        [
            _said(
                "The first three principal components as red, green and blue, one basis for all. The nearer to the"
                " clean feature, the less content shift."
            ),
            sheets.grid(report.pca, "Features as colours"),
        ]
    )


def _scatter(report: Report) -> Html:
    selection = report.selection
    points = [
        Point(one.name, one.cost / selection.plain_cost, one.gain[selection.reading])
        for one in selection.judged
        if selection.plain_cost > 0 and one.cost > 0 and finite([one.gain[selection.reading]])
    ]
    if not points:
        return _empty("No candidate has both a cost and a gain.")
    plain = Point(PLAIN, 1.0, Estimate(mean=0, low=0, high=0))
    return joined(
        [
            _said("Further up suppresses more, further left costs less."),
            scatter.chart([plain, *points], _names(report)),
        ]
    )


def _agreement(report: Report) -> Html:
    if report.agreement is None:
        return _empty("The guidelines were not compared, as Img2Img was left out.")
    agreeing, compared = report.agreement
    if not compared:
        return _empty("The guidelines could not be compared: Img2Img says nothing clear of any candidate.")
    said = _said(
        "Score, the quantitative guideline, and Img2Img, the qualitative one, agree on"
        f" {number(agreeing, 0)} of {counted(compared, 'candidate')}: both find that it suppresses content shift, or"
        " neither does. What is unclear is not compared."
    )
    return joined([said, report_tables.agreement(report.selection.judged)])


def _how(report: Report) -> Html:
    return how_to_read(report.selection)


def _spec(report: Report) -> Html:
    listing = tag("pre", tag("code", report.spec_yaml), tabindex="0", aria_label="Spec as YAML")
    opened = tag("details", tag("summary", "The spec, as YAML"), _said("A click selects all of it."), listing)
    images = tag("ol", *(tag("li", tag("code", one)) for one in report.selection.images))
    drawn = counted(len(report.selection.images), "drawn image")
    return joined([opened, tag("details", tag("summary", f"The {drawn}"), images)])


def _notes(report: Report) -> Html:
    if not report.notes:
        return _empty("Nothing was left out, and nothing is unusual.")
    return tag("ul", *(tag("li", note) for note in report.notes))


_SECTIONS: Final[Mapping[str, tuple[str, Callable[[Report], Html]]]] = {
    "decision": ("Decision", _decision),
    "groups": ("Feature groups to extract", _groups),
    "curves": ("Score against t", _curves),
    "taps": ("Gain by tap", _by_tap),
    "img2img": ("Img2Img", _sheet),
    "features": ("Features as colours", _pca),
    "cost": ("Cost against suppression", _scatter),
    "agreement": ("Agreement of the two guidelines", _agreement),
    "reading": ("How to read it", _how),
    "spec": ("To reproduce it", _spec),
    "notes": ("Notes", _notes),
}


def _names(report: Report) -> list[str]:
    return [one.name for one in report.selection.judged]


def _said(text: str) -> Html:
    return tag("p", text)


def _empty(text: str) -> Html:
    """In the place of what there is nothing of."""
    return tag("p", text, class_="empty")
