"""What was found of every candidate and combination, as the selection says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.gate.analysis import Analysis
from pipeline.gate.decisions import estimates, verdict
from pipeline.gate.readings import READINGS
from schemas.gate import PLAIN, Estimate, Judged

Similarity = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""By candidate and measure: how much closer a repainted image is to its input than without, [images]."""
Families = tuple[list[str], list[str]]
"""Names of the single candidates, and of the combinations."""


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

    The intervals of a reading hold together over the single candidates, and again over the combinations: so what is
    found of a candidate does not depend on what it was combined with. Combinations are chosen and judged on the same
    images, so their gains are somewhat too high, and more verdicts on them are wrong than confidence says.

    Args:
        analysis: of them.
        parts: by name, the candidates in it.
        similarity: of those that were repainted.
    """
    spec, names, families = analysis.spec, list(parts), _families(parts)
    gains = {
        reading: _estimates(analysis, families, {name: one.mean(0) for name, one in found.items()})
        for reading in READINGS
        for found in [analysis.gains(reading, names)]
    }
    scores = {
        reading: _estimates(analysis, families, {name: one.mean(0) for name, one in found.items()})
        for reading in READINGS
        for found in [analysis.scores(reading, names)]
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
    return Judgement(judged, _by_tap(analysis, families), _curves(analysis, families))


def _families(parts: Mapping[str, list[str]]) -> Families:
    single = [name for name, names in parts.items() if len(names) < 2]
    return single, [name for name in parts if name not in single]


def _estimates(
    analysis: Analysis, families: Families, values: Mapping[str, NDArray[np.float64]]
) -> dict[str, Estimate]:
    """Those of a family hold together; names without values have none."""
    found: dict[str, Estimate] = {}
    for family in families:
        known = {name: values[name] for name in family if name in values}
        found |= estimates(known, confidence=analysis.spec.confidence)
    return found


def _closer(analysis: Analysis, similarity: Similarity) -> dict[str, dict[str, Estimate]]:
    """Intervals of every candidate and measure, which all hold together: one verdict is drawn from several."""
    pairs = {(name, measure): values for name, one in similarity.items() for measure, values in one.items()}
    found: dict[str, dict[str, Estimate]] = {name: {} for name in similarity}
    for (name, measure), estimate in estimates(pairs, confidence=analysis.spec.confidence).items():
        found[name][measure] = estimate
    return found


def _together(found: Mapping[str, Estimate]) -> bool | None:
    """Closer where some measures say so and none the contrary; None where none is clear, or they contradict."""
    closer = any(one.low > 0 for one in found.values())
    farther = any(one.high < 0 for one in found.values())
    return None if closer == farther else closer


def _by_tap(analysis: Analysis, families: Families) -> dict[str, dict[str, Estimate]]:
    """Intervals of a tap hold together, by family."""
    names = [name for family in families for name in family]
    gains = analysis.gains(analysis.spec.reading, names)
    found: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for place, tap in enumerate(analysis.taps):
        values = {name: gains[name][place] for name in names}
        for name, estimate in _estimates(analysis, families, values).items():
            found[name][tap] = estimate
    return found


def _curves(analysis: Analysis, families: Families) -> dict[str, dict[int, Estimate]]:
    """Intervals of a time hold together, by family; the plain feature is one of the single candidates here."""
    single, together = families
    found: dict[str, dict[int, Estimate]] = {name: {} for name in (PLAIN, *single, *together)}
    for t in analysis.spec.all_times:
        scores = analysis.scores(analysis.spec.reading, list(found), t)
        known = {name: one.mean(0) for name, one in scores.items()}
        finite = np.logical_and.reduce([np.isfinite(one) for one in known.values()])
        values = {name: one[finite] for name, one in known.items()}
        for name, estimate in _estimates(analysis, ([PLAIN, *single], together), values).items():
            found[name][t] = estimate
    return found
