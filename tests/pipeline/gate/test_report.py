"""The page is whole, needs nothing from elsewhere, says what is missing, and shows hostile text as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipeline.gate.report import Report, render
from pipeline.gate.style import STYLE
from schemas.gate import Estimate, Selection
from tests.pipeline.gate import made_up_report

HOSTILE = "</pre></style><script>alert('x')</script><img src=x onerror=\"y\">&amp;"
SECTIONS = 11


class Page(HTMLParser):
    """A page's elements; fails where one is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def full() -> Report:
    return made_up_report.report()


@pytest.fixture(scope="module")
def page(full: Report) -> Page:
    return Page(render(full))


def selection(report: Report, **changes: Any) -> Report:
    """With another selection, checked as one that is read from a file."""
    return replace(report, selection=Selection.model_validate(report.selection.model_dump() | changes))


def bare(report: Report) -> Report:
    """With nothing that may be missing."""
    found = selection(report, judged=[], groups=[], images=[], usable=0, repainted=0, spec={})
    return replace(found, curves={}, by_tap={}, sheet=[], pca=[], agreement=None, spec_yaml="", notes=[])


def test_every_element_is_closed(page: Page) -> None:
    assert page.open == []
    assert len(page.named("section")) == len(page.named("h2")) == SECTIONS


def test_links_lead_to_sections(page: Page) -> None:
    wanted = [f"#{section['id']}" for section in page.named("section")]
    assert [link["href"] for link in page.named("a")] == wanted


def test_nothing_comes_from_elsewhere(full: Report) -> None:
    text = render(full)
    page = Page(text)
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    targets = [
        value or "" for _, given in page.elements for key, value in given.items() if key in ("src", "href")
    ]
    assert targets and all(target.startswith(("data:image/", "#")) for target in targets)
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in page.elements}


def test_the_headline_says_what_where_and_on_what(page: Page) -> None:
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "4 of 6 candidates suppress content shift at t = 50: caption, controlnet, lora-moderate and" in text
    )
    assert "To be extracted: controlnet-and-lora-moderate and caption." in text
    assert "Measured at t = 50 on 30 of 32 images, with the backbone 9f3ac1d07be2." in text
    assert "the mean over 30 images" in text and "These intervals, over 8 images, hold together" in text


def test_every_candidate_has_its_verdict_in_the_table(full: Report, page: Page) -> None:
    for judged in full.selection.judged:
        row = next(cells for cells in page.cells if cells[0].removesuffix(" to be extracted") == judged.name)
        assert row[1].endswith(judged.verdict) and row[1] != judged.verdict  # a symbol before the word


def test_a_reading_that_would_decide_otherwise_is_marked(page: Page) -> None:
    row = next(cells for cells in page.cells if cells[0] == "controlnet")
    assert row[4] == "\N{MINUS SIGN}0.212\N{NOT EQUAL TO} harms"
    assert row[5] == "+0.094"
    assert row[6:] == ["yes", "58.8", "1.44"]


def test_hostile_text_stays_text(full: Report) -> None:
    judged = [one.model_dump() | {"name": HOSTILE} for one in full.selection.judged[:1]]
    group = {
        "name": HOSTILE,
        "prompt": HOSTILE,
        "t": HOSTILE,
        "techniques": [{"type": HOSTILE, HOSTILE: HOSTILE}],
    }
    changed = selection(
        full, judged=judged, groups=[group], images=[HOSTILE], spec={"t": 50, "backbone": {"source": HOSTILE}}
    )
    one = Estimate(mean=0.1, low=0, high=0.2)
    text = render(
        replace(
            changed,
            curves={HOSTILE: {50: one}},
            by_tap={HOSTILE: {HOSTILE: one}},
            sheet=[(HOSTILE, full.sheet[0][1][:1])],
            pca=[(HOSTILE, full.pca[1][1][:1])],
            spec_yaml=HOSTILE,
            notes=[HOSTILE],
        )
    )
    page = Page(text)
    assert page.open == [] and not page.named("script")
    assert text.count("onerror") == text.count("onerror=&quot;y&quot;&gt;&amp;amp;") > 15
    assert all("onerror" not in key for _, given in page.elements for key in given)
    assert page.text.count(HOSTILE) > 10


def test_what_is_missing_is_said(full: Report) -> None:
    page = Page(render(bare(full)))
    assert page.open == []
    assert len(page.named("section")) == SECTIONS
    for said in (
        "There was no candidate",
        "nothing to be extracted",
        "No feature group is to be extracted",
        "Score was not measured at other times",
        "Gains were not measured by tap",
        "No Img2Img pictures were made",
        "No pictures of features were made",
        "No candidate has both a cost and a gain",
        "Img2Img was left out",
        "Nothing was left out",
    ):
        assert said in page.text


def test_columns_of_pictures_may_be_empty_or_short(full: Report) -> None:
    pictures = full.sheet[0][1]
    page = Page(
        render(replace(full, sheet=[("input", pictures[:3]), ("short", pictures[:1]), ("none", [])], pca=[]))
    )
    assert [image["alt"] for image in page.named("img")] == [
        "input, image 1",
        "short, image 1",
        "input, image 2",
        "input, image 3",
    ]
    page = Page(render(replace(full, sheet=[("input", [])], pca=[])))
    assert "No Img2Img pictures were made" in page.text


def test_numbers_that_are_none_are_drawn_as_none(full: Report) -> None:
    """An image of one colour has a Score of minus infinity, which no axis can hold."""
    none = Estimate(mean=-np.inf, low=-np.inf, high=np.nan)
    gains = {name: none for name in full.selection.judged[0].gain}
    judged = [one.model_copy(update={"gain": gains, "cost": float("nan")}) for one in full.selection.judged]
    changed = replace(full, selection=full.selection.model_copy(update={"judged": judged, "plain_cost": 0.0}))
    text = render(
        replace(
            changed,
            curves={"plain": {50: none}, "caption": {25: none, 50: Estimate(mean=0.5, low=0.5, high=0.5)}},
            by_tap={"caption": {"tap": none}},
        )
    )
    page = Page(text)
    assert page.open == []
    assert not re.search(r"\bnan\b|\binf\b", text.replace(STYLE, ""))
    assert "\N{MINUS SIGN}\N{INFINITY}" in page.text


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["harms", "no effect"], "None of 2 candidates suppresses content shift at t = 50."),
        (["suppresses"], "1 of 1 candidate suppresses content shift at t = 50: caption."),
    ],
)
def test_the_headline_counts(full: Report, verdicts: list[str], said: str) -> None:
    pairs = zip(full.selection.judged, verdicts, strict=False)
    judged = [one.model_dump() | {"verdict": verdict} for one, verdict in pairs]
    assert said in Page(render(selection(full, judged=judged))).text.replace("\N{NO-BREAK SPACE}", " ")


def test_equal_findings_give_equal_pages(full: Report) -> None:
    assert render(full) == render(made_up_report.report())


def test_tables_and_pictures_are_named(page: Page) -> None:
    assert all(image["alt"] for image in page.named("img"))
    assert all(box["aria-label"] and box["tabindex"] == "0" for box in page.named("div") if box.get("role"))
    assert all(cell.get("scope") for cell in page.named("th"))
    assert all(given.get("aria-label") or given.get("aria-hidden") for given in page.named("svg"))


def variables(block: str) -> Mapping[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(scheme: int) -> None:
    """WCAG AA asks for 4.5; names in drawings are text too."""
    colours = variables(STYLE.split(":root {")[1 + scheme].split("}")[0])
    letters = [name for name in colours if re.fullmatch(r"ink|faint|good|bad|odd|link|s\d", name)]
    assert len(letters) == 14
    for name in letters:
        for ground in ("paper", "card"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))
