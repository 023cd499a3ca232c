"""From what was measured to numbers: Scores by reading, tap, t and image, and which images can be scored at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.gate.decisions import usable
from pipeline.gate.measuring import Findings
from pipeline.gate.readings import READINGS, TapNorms, score
from pipeline.scores import has_score
from schemas.gate import PLAIN, GateSpec, Reading

Scores = dict[str, NDArray[np.float64]]
"""By candidate, [taps, images]."""


@dataclass(frozen=True)
class Analysis:
    """Scores of all candidates on the images that can be scored."""

    spec: GateSpec
    findings: Mapping[str, Findings]
    """By candidate, the plain feature's too."""
    usable: NDArray[np.bool_]
    """Of the drawn images: those whose plain feature shifts at every tap, so that there is something to suppress."""

    @property
    def taps(self) -> list[str]:
        """Those that have a Score."""
        return scored_taps(self.findings[PLAIN])

    def cost(self, name: str) -> float:
        """Of a candidate's group, in plain groups."""
        found = self.findings[name]
        return found.cost / found.plain_cost

    def scores(self, reading: Reading, names: Sequence[str], t: int | None = None) -> Scores:
        """Score (Eq. 2) of those that were measured at t (default: the spec's), [taps, usable images]."""
        t = self.spec.t if t is None else t
        return {
            name: np.stack([self._score(found, tap, t, reading) for tap in self.taps])[:, self.usable]
            for name, found in ((name, self.findings[name]) for name in names)
            if t in found.norms[self.taps[0]].noisy
        }

    def gains(self, reading: Reading, names: Sequence[str]) -> Scores:
        """Score minus the plain feature's at the same t and noise, [taps, usable images]."""
        scores = self.scores(reading, [PLAIN, *names])
        return {name: scores[name] - scores[PLAIN] for name in names}

    def _score(self, found: Findings, tap: str, t: int, reading: Reading) -> NDArray[np.float64]:
        norms, plain = found.norms[tap], self.findings[PLAIN].norms[tap]
        return score(norms.noisy[t], norms.clean, plain, self.spec.anchor_t, reading)


def scored_taps(plain: Findings) -> list[str]:
    """Taps whose features are maps of places by channels, of several cells: one cell has no edges, and tokens are no
    channels."""
    return [tap for tap, norms in plain.norms.items() if has_score(tap, norms.clean.shape)]


def analyse(spec: GateSpec, findings: Mapping[str, Findings]) -> Analysis:
    """Everything of the candidates that is measured on images whose Scores are numbers.

    Raises:
        ValueError: fewer than two images have any shift to suppress, or no tap has a Score.
    """
    taps = scored_taps(findings[PLAIN])
    if not taps:
        raise ValueError(
            f"taps: none of {', '.join(findings[PLAIN].norms)} has a Score; name some whose features are maps of"
            " channels with several cells"
        )
    norms = {tap: findings[PLAIN].norms[tap] for tap in taps}
    able = usable([_plain_score(spec, tap, reading) for tap in norms.values() for reading in READINGS])
    if able.sum() < 2:
        raise ValueError(
            f"{int(able.sum())} of {len(able)} images have edges at every tap; Score compares shifts of edges, so give"
            " images that show something"
        )
    return Analysis(spec, findings, able)


def _plain_score(spec: GateSpec, tap: TapNorms, reading: Reading) -> NDArray[np.float64]:
    return score(tap.noisy[spec.t], tap.clean, tap, spec.anchor_t, reading)
