"""Score beside what heads gain."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.benefit.correlation import clustered, correlations, markdown
from pipeline.benefit.rows import PLAIN

TECHNIQUES, TAPS = ("caption", "controlnet", "lora"), ("a", "b")


def test_score_that_orders_as_heads_gain_correlates_fully() -> None:
    scores = {
        (name, tap): place + 0.1 * (tap == "b") for place, name in enumerate(TECHNIQUES) for tap in TAPS
    }
    heads = {pair: 0.3 + score / 100 for pair, score in scores.items()} | {(PLAIN, tap): 0.3 for tap in TAPS}
    every, honest = correlations({"segmentation": heads}, {"own": scores})
    assert every["spearman"] == pytest.approx(1) and len(every["points"]) == 6
    assert honest["without"] == ["caption"] and len(honest["points"]) == 4
    assert every["points"][2] == {
        "technique": "controlnet",
        "tap": "a",
        "score": 1,
        "head": pytest.approx(1),
    }
    assert "| segmentation | own | all | 6 | +1.00" in markdown([every])


def test_taps_of_one_technique_do_not_count_as_evidence_of_their_own() -> None:
    """Two techniques of many taps are two observations: the interval must not shrink with the number of taps."""
    rng = np.random.default_rng(0)
    of_technique = np.repeat([0.0, 1.0, 0.2], 40)
    scores, gains = of_technique + 0.01 * rng.normal(size=120), of_technique + 0.01 * rng.normal(size=120)
    _, low, high = clustered(scores, gains, ["x"] * 40 + ["y"] * 40 + ["z"] * 40)
    assert high - low > 0.3  # one over 120 points would be a tenth of that
