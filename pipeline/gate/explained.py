"""How to read the report: the paper's equations, their readings, and what the intervals mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.gate.markup import Html, at, counted, joined, number, tag
from schemas.gate import Reading, Selection

_READINGS: Final[Mapping[Reading, str]] = {
    "literal": "The reference is the plain feature of the clean image at t = 0, for every technique; one that merely"
    " scales features is taken for one that shifts them.",
    "own": "Each technique's own feature of the clean image at t = 0 is its reference, and both sides are a share of"
    " their reference's total.",
    "shape": "As literal, after each map of Laplacian norms is divided by its mean: where a feature changes, not how"
    " strongly.",
}


def how_to_read(selection: Selection) -> Html:
    """The section's content."""
    spec = selection.spec
    return joined(
        [
            tag(
                "p",
                "A diffusion network restores what noise has erased, and in doing so imagines: its features drift from"
                " the image. That drift is content shift. It is measured on how strongly a feature changes from place"
                " to place, the norm over channels of its Laplacian over the two spatial axes.",
            ),
            _equation(
                "Eq. 1, the shift",
                tag("i", "diff"),
                " = \N{N-ARY SUMMATION}",
                tag("sub", "i,j"),
                " | \N{DOUBLE VERTICAL LINE}Laplacian(FEAT",
                tag("sub", "ref"),
                ", i, j)\N{DOUBLE VERTICAL LINE}",
                tag("sub", "2"),
                " \N{MINUS SIGN} \N{DOUBLE VERTICAL LINE}Laplacian(FEAT, i, j)\N{DOUBLE VERTICAL LINE}",
                tag("sub", "2"),
                " |",
            ),
            _equation(
                "Eq. 2, its Score",
                tag("i", "Score"),
                " = (",
                tag("i", "diff"),
                tag("sub", "anchor"),
                " \N{MINUS SIGN} ",
                tag("i", "diff"),
                ") / ",
                tag("i", "diff"),
                tag("sub", "anchor"),
            ),
            tag(
                "p",
                "A Score of 1 is a feature without shift, 0 is as much shift as the anchor has, less than 0 is more."
                f" The anchor is the plain feature at {at(spec.get('anchor_t', '?'))}. A gain is a"
                " candidate's Score minus the plain feature's, for the same image, t and noise, averaged over all taps."
                " t counts noise in thousandths.",
            ),
            tag("h3", "Readings"),
            tag(
                "p",
                "The paper leaves open what a feature is compared with, so all three readings are reported;"
                " the verdict is by ",
                tag("code", selection.reading),
                ".",
            ),
            tag(
                "dl",
                *(
                    joined([tag("dt", tag("code", name)), tag("dd", text)])
                    for name, text in _READINGS.items()
                ),
                class_="terms",
            ),
            tag("h3", "Statistics"),
            tag(
                "p",
                f"Intervals are of the mean over {counted(selection.usable, 'image')}: Student's, or at either end"
                " Hall's, which takes skewness into account, where that is wider. In the table of decisions they are"
                " widened (Bonferroni), so that those of all candidates by one reading hold together with a confidence"
                f" of {number(100 * selection.confidence, 0)}\N{NO-BREAK SPACE}%. A candidate suppresses content"
                " shift if its whole interval lies above 0, and harms if it lies below; an interval with 0 inside shows"
                " no effect, which more images may still bring to light.",
            ),
            tag(
                "p",
                "Combinations hold together by themselves, apart from the candidates. They are chosen and judged on"
                " the same images, so their gains are somewhat too high. Gains by tap hold together within a tap, and"
                " Scores against t within a time, not over all taps or times.",
            ),
            tag("h3", "Img2Img"),
            tag(
                "p",
                "The qualitative guideline repaints images at a high strength, without and with each candidate and from"
                " the same noise. A candidate that suppresses content shift should come closer to the input than the"
                " reference without any. It is closer if some measure's interval lies above 0 and none below. These"
                f" intervals{_over(selection)} hold together over all candidates and measures.",
            ),
        ]
    )


def _over(selection: Selection) -> str:
    return f", over {counted(selection.repainted, 'image')}," if selection.repainted else ""


def _equation(title: str, *parts: str) -> Html:
    return tag("p", tag("span", title, class_="more"), *parts, class_="equation")
