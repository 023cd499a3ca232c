from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.gate.analysis import Analysis, analyse
from pipeline.gate.decisions import estimates
from pipeline.gate.judging import judge
from pipeline.gate.measuring import Findings
from pipeline.gate.readings import READINGS, TapNorms
from schemas.gate import PLAIN, GateSpec

TAP = "up-level0-upsampler-out"
SPEC = GateSpec.model_validate(
    {
        "version": 1,
        "out": "o",
        "input": {"shards": "s"},
        "image_size": [64, 64],
        "t": 50,
        "anchor_t": 200,
        "times": [50],
        "candidates": [{"name": "good"}, {"name": "bad"}, {"name": "same"}],
    }
)
RANDOM = np.random.default_rng(0)
CLEAN = RANDOM.uniform(1, 2, (12, 4, 4)).astype(np.float32)
NOISE = RANDOM.normal(0, 1, CLEAN.shape).astype(np.float32)


def found(strength: float, *, scale: float = 1, clean: NDArray[np.float32] = CLEAN) -> Findings:
    """Features whose shift at t = 50 is `strength` of that at t = 200."""
    noisy = {
        t: np.float32(scale) * (clean + np.float32(share) * NOISE)
        for t, share in ((50, 0.2 * strength), (200, 0.2))
    }
    maps = {TAP: np.zeros((2, 1, 2, 2), np.float16)}
    return Findings({TAP: TapNorms(scale * clean, noisy)}, maps, maps, cost=1.0, plain_cost=1.0)


def analysis() -> Analysis:
    all_of_them = {PLAIN: found(0.5), "good": found(0.3), "bad": found(0.7), "same": found(0.5)}
    return analyse(SPEC, all_of_them)


PARTS = {name: [name] for name in ("good", "bad", "same")}


def test_verdicts_are_those_of_paired_gains() -> None:
    judged = {one.name: one for one in judge(analysis(), PARTS, {}).judged}
    assert [judged[name].verdict for name in PARTS] == ["suppresses", "harms", "no effect"]
    for reading in READINGS:
        assert judged["good"].gain[reading].mean == pytest.approx(0.2, abs=0.05)
        assert judged["same"].gain[reading].mean == 0
    assert judged["good"].similarity is None and judged["good"].closer is None


def test_a_technique_that_scales_is_misjudged_by_the_literal_reading_only() -> None:
    scaled = {PLAIN: found(0.5), "good": found(0.3, scale=3)}
    one = judge(analyse(SPEC, scaled), {"good": ["good"]}, {}).judged[0]
    assert one.gain["literal"].high < 0 < one.gain["own"].low
    assert one.gain["shape"].low > 0


def test_img2img_says_closer_where_no_measure_contradicts() -> None:
    up, down, unclear = np.full(6, 0.1), np.full(6, -0.1), np.array([-1.0, 1] * 3)
    similarity = {
        "good": {"ssim": up, "colour": unclear},
        "bad": {"ssim": down, "colour": unclear},
        "same": {"ssim": up, "colour": down},
    }
    judged = {one.name: one for one in judge(analysis(), PARTS, similarity).judged}
    assert [judged[name].closer for name in PARTS] == [True, False, None]


def test_one_family_of_all_measures() -> None:
    """Guards against an answer by any of several measures, each with an interval as if it were the only one."""
    values = 0.1 + 0.12 * np.linspace(-1, 1, 8)
    few = judge(analysis(), PARTS, {"good": {"ssim": values}}).judged[0]
    many = {name: {measure: values for measure in ("ssim", "edges", "colour")} for name in PARTS}
    more = judge(analysis(), PARTS, many).judged[0]
    assert few.similarity is not None and more.similarity is not None
    (alone,) = estimates({"": values}, confidence=1 - 0.05 / 9).values()
    assert more.similarity["ssim"].low == pytest.approx(alone.low)
    assert more.similarity["ssim"].low < few.similarity["ssim"].low
    assert (few.closer, more.closer) == (True, None)


def test_combining_changes_nothing_of_the_candidates() -> None:
    """Guards against verdicts of single candidates that depend on how many combinations were tried."""
    all_of_them = {**analysis().findings, "good-and-same": found(0.2), "good-and-bad": found(0.2)}
    parts = PARTS | {name: name.split("-and-") for name in ("good-and-same", "good-and-bad")}
    alone, combined = judge(analysis(), PARTS, {}), judge(analyse(SPEC, all_of_them), parts, {})
    assert combined.judged[:3] == alone.judged and [one.verdict for one in combined.judged[3:]] == 2 * [
        "suppresses"
    ]
    assert {name: combined.by_tap[name] for name in PARTS} == alone.by_tap
    assert {name: combined.curves[name] for name in (PLAIN, *PARTS)} == alone.curves


def test_candidates_are_judged_as_forward_selection_does() -> None:
    made = analysis()
    gains = {name: one.mean(0) for name, one in made.gains(SPEC.reading, list(PARTS)).items()}
    same = estimates(gains, confidence=SPEC.confidence)
    assert [one.gain[SPEC.reading] for one in judge(made, PARTS, {}).judged] == list(same.values())


def test_curves_and_taps() -> None:
    judgement = judge(analysis(), PARTS, {})
    assert list(judgement.curves) == [PLAIN, *PARTS]
    assert list(judgement.curves["good"]) == [50, 200]
    assert judgement.curves[PLAIN][200].mean == pytest.approx(0, abs=1e-6)
    assert judgement.by_tap["good"][TAP].low > 0


def test_images_without_edges_are_left_out() -> None:
    flat = CLEAN.copy()
    flat[3] = 0
    noise = {50: flat * 1.1, 200: flat * 1.2 + np.where(flat > 0, NOISE, 0).astype(np.float32)}
    maps = {TAP: np.zeros((2, 1, 2, 2), np.float16)}
    findings = {PLAIN: Findings({TAP: TapNorms(flat, noise)}, maps, maps, 1.0, 1.0)}
    made = analyse(SPEC, findings)
    assert made.usable.tolist() == [place != 3 for place in range(12)]
    assert made.scores("own", [PLAIN])[PLAIN].shape == (1, 11)


def test_images_without_any_edges_are_refused() -> None:
    flat = np.zeros((3, 4, 4), np.float32)
    maps = {TAP: np.zeros((2, 1, 2, 2), np.float16)}
    findings = {PLAIN: Findings({TAP: TapNorms(flat, {50: flat, 200: flat})}, maps, maps, 1.0, 1.0)}
    with pytest.raises(
        ValueError, match=r"0 of 3 images have edges at every tap; .* give images that show something"
    ):
        analyse(SPEC, findings)


def test_a_single_cell_has_no_score() -> None:
    one = found(0.5)
    cell = TapNorms(CLEAN[:, :1, :1], {t: norms[:, :1, :1] for t, norms in one.norms[TAP].noisy.items()})
    mid = Findings({TAP: one.norms[TAP], "mid-out": cell}, one.maps, one.clean, 1.0, 1.0)
    assert analyse(SPEC, {PLAIN: mid}).taps == [TAP]
    with pytest.raises(ValueError, match=r"taps: none of mid-out has a Score"):
        analyse(SPEC, {PLAIN: Findings({"mid-out": cell}, one.maps, one.clean, 1.0, 1.0)})
