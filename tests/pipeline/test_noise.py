"""Random numbers belong to a sample: the same anywhere, others for any other sample, seed or purpose."""

from __future__ import annotations

import hashlib
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import noise

KEY: dict[str, Any] = {"seed": 1, "group_seed": 2, "purpose": "noise", "shard": "a/b.tar", "key": "c"}
keys = st.fixed_dictionaries(
    {
        "seed": st.integers(),
        "group_seed": st.integers(),
        "purpose": st.sampled_from(get_args(noise.Purpose)),
        "shard": st.text(max_size=8),
        "key": st.text(max_size=8),
    }
)


def test_pinned() -> None:
    """Another release of numpy, or a change here, must not change the rows of a store that goes on growing."""
    drawn = noise.normal((4, 8, 8), **KEY)
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == "8c974e325eb516f4"


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"group_seed": 1}, {"purpose": "posterior"}, {"shard": "a/b"}, {"key": "d"}]
)
def test_keyed_by_each_input(change: dict[str, Any]) -> None:
    drawn, other = noise.normal((4, 8, 8), **KEY), noise.normal((4, 8, 8), **{**KEY, **change})
    assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.3


@given(keys, keys)
def test_unequal_keys_never_share_numbers(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Hashing a plain concatenation would make ("ab", "c") and ("a", "bc") the same sample."""
    assume(one != other)
    assert not np.array_equal(noise.normal((4,), **one), noise.normal((4,), **other))


@given(keys)
def test_repeatable_whatever_was_drawn_before(key: dict[str, Any]) -> None:
    drawn = noise.normal((3, 2), **key)
    noise.normal((5,), **KEY)
    np.random.default_rng().normal()
    assert drawn.dtype == np.float32 and np.array_equal(drawn, noise.normal((3, 2), **key))


def test_standard_normal() -> None:
    """Over many samples and within one: mean 0, variance 1, and the tails of a normal distribution."""
    drawn = np.stack([noise.normal((64,), **{**KEY, "key": str(sample)}) for sample in range(1000)])
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02
    for bound in (0.5, 1.0, 2.0, 3.0):
        expected = math.erf(bound / math.sqrt(2))
        assert abs((abs(drawn) < bound).mean() - expected) < 0.01
    between = np.asarray(np.corrcoef(drawn.T)) - np.eye(64)
    assert abs(between).max() < 0.2
