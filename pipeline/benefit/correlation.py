"""Does GATE's Score predict what a head gains? A rank correlation over techniques and taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.benefit.heads import Kind
from pipeline.benefit.rows import PLAIN
from pipeline.embedded_figures.statistics import spearman

_RESAMPLES: Final = 2000
_TELLS: Final = "caption"
"""The technique whose prompt names the classes that a segmentation head is to find."""
Gains = Mapping[tuple[str, str], float]
"""By (technique, tap)."""


def correlations(heads: Mapping[Kind, Gains], scores: Mapping[str, Gains]) -> list[dict[str, Any]]:
    """By kind of head and reading of Score, with all techniques and without the one that tells the answer.

    Args:
        heads: the metric, 0 to 1, of a head on each technique and tap alone, the plain feature's too.
        scores: by reading, Score above the plain feature's.
    """
    return [
        _line(kind, values, reading, gains, without)
        for kind, values in heads.items()
        for reading, gains in scores.items()
        for without in ((), (_TELLS,))
    ]


def clustered(
    scores: NDArray[np.float64], gains: NDArray[np.float64], clusters: Sequence[str]
) -> tuple[float, float, float]:
    """Spearman's correlation of two arrays [n], and its 95 % interval by a bootstrap over clusters.

    Taps of one technique share its passes and images, so that techniques are drawn, each with all of its taps.
    """
    names = list(dict.fromkeys(clusters))
    places = [np.flatnonzero(np.array(clusters) == name) for name in names]
    rng = np.random.default_rng(0)
    draws = rng.integers(len(names), size=(_RESAMPLES, len(names)))
    resampled = []
    for draw in draws:
        chosen = np.concatenate([places[place] for place in draw])
        resampled.append(spearman(scores[chosen], gains[chosen]))
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return spearman(scores, gains), float(low), float(high)


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """A table of them."""
    text = [
        "### Does Score predict the head's gain? Rank correlation over techniques and taps",
        "",
        "| head | reading of Score | techniques | points | Spearman (95 %, over techniques) |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        which = f"without {', '.join(one['without'])}" if one["without"] else "all"
        interval = f"{one['spearman']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"
        text.append(f"| {one['head']} | {one['reading']} | {which} | {len(one['points'])} | {interval} |")
    return "\n".join(text)


def _line(kind: Kind, values: Gains, reading: str, scores: Gains, without: Sequence[str]) -> dict[str, Any]:
    pairs = [pair for pair in scores if pair[0] not in without]
    ours = np.array([scores[pair] for pair in pairs])
    theirs = np.array([100 * (values[pair] - values[PLAIN, pair[1]]) for pair in pairs])
    points = [
        {"technique": name, "tap": tap, "score": score, "head": head}
        for (name, tap), score, head in zip(pairs, ours.tolist(), theirs.tolist(), strict=True)
    ]
    rho, low, high = clustered(ours, theirs, [name for name, _ in pairs])
    told = {"head": kind, "reading": reading, "without": list(without)}
    return told | {"spearman": rho, "low": low, "high": high, "points": points}
