"""The top of the report: what was found, in plain words, and what it rests on."""

from __future__ import annotations

from typing import Final

from pipeline.gate.markup import Html, at, counted, joined, listed, number, tag
from schemas.gate import Selection

_SHORT: Final = 12
"""Characters of a fingerprint."""
_SPACE: Final = "\N{NO-BREAK SPACE}"


def headline(selection: Selection) -> Html:
    """Heading, lead and facts."""
    names = [str(group.get("name", "")) for group in selection.groups]
    extracted = f"To be extracted: {listed(names)}." if names else "There is nothing to be extracted."
    fingerprint = tag("code", selection.backbone[:_SHORT], title=selection.backbone)
    measured = f"{extracted} Measured at {at(selection.spec.get('t', '?'))} on {_images(selection)}, with the backbone "
    facts = {
        "decided by the reading": tag("code", selection.reading),
        "confidence": f"{number(100 * selection.confidence, 0)}{_SPACE}%",
        "backbone": str((selection.spec.get("backbone") or {}).get("source", "")),
        "a plain pass": f"{number(1000 * selection.plain_cost, 1)} ms an image",
        "Gatehouse": selection.gatehouse,
    }
    terms = (tag("div", tag("dt", key), tag("dd", value)) for key, value in facts.items() if value)
    return joined(
        [
            tag("p", "GATE report", class_="kind"),
            tag("h1", _found(selection)),
            tag("p", measured, fingerprint, ".", class_="lead"),
            tag("dl", *terms, class_="facts"),
        ]
    )


def _images(selection: Selection) -> str:
    """Those that have a Score, of those drawn."""
    drawn = counted(len(selection.images), "image")
    return drawn if selection.usable == len(selection.images) else f"{number(selection.usable, 0)} of {drawn}"


def _found(selection: Selection) -> str:
    """Of the candidates by themselves."""
    alone = [one for one in selection.judged if len(one.candidates) < 2]
    helping = [one.name for one in alone if one.verdict == "suppresses"]
    if not alone:
        return "There was no candidate to suppress content shift."
    of, time = counted(len(alone), "candidate"), at(selection.spec.get("t", "?"))
    if not helping:
        return f"None of {of} suppresses content shift at {time}."
    verb = "suppresses" if len(helping) == 1 else "suppress"
    return f"{number(len(helping), 0)} of {of} {verb} content shift at {time}: {listed(helping)}."
