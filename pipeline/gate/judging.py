"""What was found of every candidate and combination, as the selection says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.gate.analysis import Analysis
from pipeline.gate.decisions import estimates, verdict
from pipeline.gate.readings import READINGS
from schemas.gate import PLAIN, Estimate, Judged

Pictures = NDArray[np.uint8]
"""RGB [images, H, W, 3]."""
Similarity = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""By candidate and measure: how much closer a repainted image is to its input than without, [images]."""


@dataclass(frozen=True)
class Judgement:
    """All of it, and what a report shows besides."""

    judged: list[Judged]
    by_tap: dict[str, dict[str, Estimate]]
    """By candidate and tap: gain, by the reading that decides."""
    curves: dict[str, dict[int, Estimate]]
    """By candidate, and the plain feature: Score by t, by the reading that decides."""


def judge(analysis: Analysis, parts: Mapping[str, list[str]], similarity: Similarity) -> Judgement:
    """Judge all candidates and combinations that were measured.

    Args:
        analysis: of them.
        parts: by name, the candidates in it.
        similarity: of those that were repainted.
    """
    spec, names = analysis.spec, list(parts)
    gains = {
        reading: _estimates(analysis, {name: one.mean(0) for name, one in found.items()})
        for reading in READINGS
        for found in [analysis.gains(reading, names)]
    }
    scores = {
        reading: _estimates(analysis, {name: found[name].mean(0) for name in names})
        for reading in READINGS
        for found in [analysis.scores(reading)]
    }
    closer = _closer(analysis, similarity)
    judged = [
        Judged(
            name=name,
            candidates=parts[name],
            verdict=verdict(gains[spec.reading][name]),
            gain={reading: gains[reading][name] for reading in READINGS},
            score={reading: scores[reading][name] for reading in READINGS},
            cost=analysis.cost(name) * analysis.findings[PLAIN].cost,
            similarity=closer.get(name),
            closer=_together(closer[name]) if name in closer else None,
        )
        for name in names
    ]
    return Judgement(judged, _by_tap(analysis, names), _curves(analysis, names))


def _estimates(analysis: Analysis, values: Mapping[str, NDArray[np.float64]]) -> dict[str, Estimate]:
    return estimates(values, confidence=analysis.spec.confidence, seed=analysis.spec.seed)


def _closer(analysis: Analysis, similarity: Similarity) -> dict[str, dict[str, Estimate]]:
    """Intervals of every measure; those of one measure hold together."""
    found: dict[str, dict[str, Estimate]] = {name: {} for name in similarity}
    measures = list(dict.fromkeys(measure for one in similarity.values() for measure in one))
    for measure in measures:
        values = {name: one[measure] for name, one in similarity.items()}
        for name, estimate in _estimates(analysis, values).items():
            found[name][measure] = estimate
    return found


def _together(found: Mapping[str, Estimate]) -> bool | None:
    """Closer where some measures say so and none the contrary; None where none is clear, or they contradict."""
    closer = any(one.low > 0 for one in found.values())
    farther = any(one.high < 0 for one in found.values())
    return None if closer == farther else closer


def _by_tap(analysis: Analysis, names: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    gains = analysis.gains(analysis.spec.reading, names)
    found: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for place, tap in enumerate(analysis.taps):
        for name, estimate in _estimates(analysis, {name: gains[name][place] for name in names}).items():
            found[name][tap] = estimate
    return found


def _curves(analysis: Analysis, names: Sequence[str]) -> dict[str, dict[int, Estimate]]:
    found: dict[str, dict[int, Estimate]] = {name: {} for name in (PLAIN, *names)}
    for t in analysis.spec.all_times:
        scores = analysis.scores(analysis.spec.reading, t)
        known = {name: scores[name].mean(0) for name in found if name in scores}
        finite = np.logical_and.reduce([np.isfinite(one) for one in known.values()])
        for name, estimate in _estimates(
            analysis, {name: one[finite] for name, one in known.items()}
        ).items():
            found[name][t] = estimate
    return found
