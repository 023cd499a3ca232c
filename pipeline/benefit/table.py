"""The study's tables: means over splits, how much above the plain feature, and whether Score predicts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.benefit.heads import METRICS, Kind
from pipeline.benefit.rows import PLAIN, Row

Values = Mapping[Kind, Mapping[str, Sequence[float]]]
"""By kind of head and name of row, the metric on every split, 0 to 1."""


def lines(rows: Sequence[Row], values: Values) -> list[dict[str, Any]]:
    """A line for each row and kind: percent, the mean difference from the plain feature, and in how many splits it is
    above.

    No interval: splits are of the same few scenes, and so not independent of each other.
    """
    return [
        _line(kind, row, [100 * one for one in found[row.name]], [100 * one for one in found[PLAIN]])
        for kind, found in values.items()
        for row in rows
        if row.name in found
    ]


def _line(kind: Kind, row: Row, ours: list[float], plain: list[float]) -> dict[str, Any]:
    gains = [one - other for one, other in zip(ours, plain, strict=True)]
    return {
        "head": kind,
        "metric": METRICS[kind],
        "row": row.name,
        "groups": len(row.groups),
        "mean": float(np.mean(ours)),
        "sd": float(np.std(ours, ddof=1)) if len(ours) > 1 else 0.0,
        "gain": None if row.name == PLAIN else float(np.mean(gains)),
        "gained": sum(gain > 0 for gain in gains),
        "splits": len(gains),
        "paper": row.paper(kind),
    }


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The lines as tables, one a kind of head."""
    text = []
    for kind in dict.fromkeys(line["head"] for line in found):
        mine = [line for line in found if line["head"] == kind]
        text += [
            f"### {kind}: {mine[0]['metric']}, percent",
            "| feature | groups | mean ± sd | above plain | in splits | the paper's |",
            "|---|---|---|---|---|---|",
        ]
        for line in mine:
            text.append(
                f"| {line['row']} | {line['groups']} | {line['mean']:.2f} ± {line['sd']:.2f} | {_gain(line)} |"
                f" {line['paper']} |"
            )
        text.append("")
    return "\n".join(text)


def _gain(line: Mapping[str, Any]) -> str:
    if line["gain"] is None:
        return " |"
    return f"{line['gain']:+.2f} | {line['gained']} of {line['splits']}"
