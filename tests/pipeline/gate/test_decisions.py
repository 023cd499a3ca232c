"""Estimates hold what their confidence says, and verdicts say no more than they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.gate.decisions import agreement, estimates, usable, verdict
from schemas.gate import Estimate, Verdict

Values = dict[str, NDArray[np.float64]]
VALUE = st.floats(-1e6, 1e6)


@st.composite
def arrays(draw: st.DrawFn) -> Values:
    """One to four, of the same 2 to 12 images."""
    images = draw(st.integers(2, 12))
    names = draw(st.lists(st.text("abc", min_size=1), min_size=1, max_size=4, unique=True))
    return {name: np.array(draw(st.lists(VALUE, min_size=images, max_size=images))) for name in names}


def estimated(
    values: Mapping[str, NDArray[np.floating[Any]]], confidence: float = 0.9
) -> dict[str, Estimate]:
    return estimates(values, confidence=confidence)


@settings(deadline=None)
@given(arrays())
def test_intervals_hold_the_mean(values: Values) -> None:
    found = estimated(values)
    assert list(found) == list(values)
    for name, array in values.items():
        one = found[name]
        assert one.mean == array.mean() and one.low <= one.mean <= one.high
        assert np.isfinite([one.low, one.high]).all()


@settings(deadline=None)
@given(arrays())
def test_no_array_depends_on_the_others(values: Values) -> None:
    """But for the width, which is that of one array by itself at Bonferroni's level."""
    together = estimated(values)
    assert together == estimated(dict(reversed(values.items())))
    for name, array in values.items():
        (alone,) = estimated({name: array}, 1 - (1 - 0.9) / len(values)).values()
        for one, other in zip(together[name].model_dump().values(), alone.model_dump().values(), strict=True):
            assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(arrays())
def test_the_sign_exchanges_the_bounds(values: Values) -> None:
    """What suppresses, the other way round, harms."""
    opposite = {"suppresses": "harms", "harms": "suppresses", "no effect": "no effect"}
    found, mirrored = estimated(values), estimated({name: -array for name, array in values.items()})
    for name, one in found.items():
        size = max(1.0, float(abs(values[name]).max()))
        assert mirrored[name].low == pytest.approx(-one.high, abs=1e-9 * size)
        if min(abs(one.low), abs(one.high)) > 1e-9 * size:
            assert verdict(mirrored[name]) == opposite[verdict(one)]


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("images", [8, 32])
def test_intervals_cover_the_truth_together(images: int, skewed: bool) -> None:
    """Guards against percentiles of a bootstrap: of 10 candidates without effect, they gave one a verdict in 10 % of
    jobs with 32 images, and in 38 % with 8."""
    rng = np.random.default_rng(images)
    mean = -4.0 if skewed else 0.0
    missed = 0
    for _ in range(500):
        values = -rng.gamma(4, 1, (10, images)) if skewed else rng.normal(0, 1, (10, images))
        found = estimates(dict(enumerate(values)), confidence=0.95)
        missed += not all(one.low < mean < one.high for one in found.values())
    assert 0.01 < missed / 500 < (0.09 if skewed else 0.06)


def test_an_interval_by_hand() -> None:
    """Student's, as values without skewness have it: mean 2, standard error sqrt(1 / 3), 4.303 at 2 degrees."""
    (found,) = estimates({"a": np.array([1.0, 2.0, 3.0])}, confidence=0.95).values()
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)


def test_the_longer_side_is_that_of_the_tail() -> None:
    """Skewness widens the end towards rare values, and narrows none."""
    skewed = -np.random.default_rng(0).gamma(1, 1, 30)
    (found,) = estimates({"a": skewed}, confidence=0.95).values()
    half = 2.04523 * skewed.std(ddof=1) / 30**0.5
    assert found.high - found.mean == pytest.approx(half, rel=1e-4)
    assert found.mean - found.low > 1.1 * half


def test_a_lead_moves_the_interval() -> None:
    base = np.random.default_rng(0).normal(0, 10, 30)
    found = estimates({"base": base, "lead": base + 5}, confidence=0.95)
    assert found["lead"].low - found["base"].low == pytest.approx(5)
    assert found["lead"].high - found["base"].high == pytest.approx(5)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_no_size_of_values_is_too_much(size: float) -> None:
    (found,) = estimates({"a": size * np.array([1.0, 2.0, 4.0])}, confidence=0.95).values()
    (wanted,) = estimates({"a": np.array([1.0, 2.0, 4.0])}, confidence=0.95).values()
    assert (found.low / size, found.high / size) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("images", [20, 100])
def test_equal_values(images: int) -> None:
    """Their mean is in the interval, which has hardly any width."""
    (found,) = estimated({"a": np.full(images, 0.1)}).values()
    assert found.low <= found.mean <= found.high
    assert found.high - found.low == pytest.approx(0, abs=1e-15)


def test_nothing_to_estimate() -> None:
    assert estimates({}, confidence=0.95) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]}, r"'b' is \[3\], but 'a' is \[2\]; give both for the same"),
        ({"a": [1.0, 2.0], "b": [[1.0, 2.0]]}, r"'b' is \[1, 2\], but 'a' is \[2\]"),
        ({"a": [1.0]}, r"'a' is \[1\]; an interval needs \[images\], and at least 2 images"),
        ({"a": []}, r"'a' is \[0\]; an interval needs"),
        ({"a": [[1.0, 2.0], [3.0, 4.0]]}, r"'a' is \[2, 2\]; an interval needs"),
        (
            {"a": [1.0, 2.0, 3.0], "b": [1.0, float("nan"), -float("inf")]},
            r"'b' has 2 values of 3 that are not",
        ),
    ],
)
def test_what_has_no_interval(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimated({name: np.array(array) for name, array in values.items()})


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.3, "suppresses"),
        (-0.3, -0.1, "harms"),
        (-0.1, 0.1, "no effect"),
        (0.0, 0.1, "no effect"),
        (-0.1, 0.0, "no effect"),
    ],
)
def test_verdicts(low: float, high: float, expected: Verdict) -> None:
    """An interval that only touches 0 is no effect."""
    assert verdict(Estimate(mean=(low + high) / 2, low=low, high=high)) == expected


def test_usable_images() -> None:
    """Only those that every reading and every tap has a Score of."""
    by_tap = np.array([[0.5, np.nan, 0.5, 0.5, 0.5], [0.5, 0.5, -np.inf, 0.5, -9.0]])
    alone = np.array([0.5, 0.5, 0.5, np.inf, 0.5])
    assert usable([by_tap, alone]).tolist() == [True, False, False, False, True]
    assert usable([alone]).tolist() == [True, True, True, False, True]
    assert usable([np.zeros((2, 3, 0))]).tolist() == []


@pytest.mark.parametrize("sizes", [[], [3, 1]])
def test_scores_of_other_images(sizes: list[int]) -> None:
    """NumPy would lay a single image beside all others."""
    with pytest.raises(ValueError, match="give at least one, all of the same images"):
        usable([np.zeros(size) for size in sizes])


def test_agreement() -> None:
    """What is not clear in pictures counts neither way; no effect is not closer, and so agrees with that."""
    closer = [True, True, True, False, False, False, None, None]
    verdicts: list[Verdict] = [
        *("suppresses", "harms", "no effect"),
        *("suppresses", "harms", "no effect"),
        *("suppresses", "harms"),
    ]
    assert agreement(closer, verdicts) == (3, 6)
    assert agreement([None], ["harms"]) == (0, 0)
    with pytest.raises(ValueError):
        agreement([True], [])
