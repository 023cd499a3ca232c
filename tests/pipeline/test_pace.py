"""How fast rows are committed, and what is left; with stores in tests/pipeline/test_status.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger import Ledger, ShardState
from pipeline.listing import Shard
from pipeline.pace import Commit, left_rows, recent_rate


@given(gaps=st.lists(st.integers(0, 5000), min_size=1, max_size=20), rows=st.integers(1, 50))
def test_a_rate_is_rows_over_their_own_time(gaps: list[int], rows: int) -> None:
    """The rows of the first commit took time before it that nobody knows: they must not count."""
    times = [1e9 + sum(gaps[:end]) for end in range(len(gaps) + 1)]
    found = recent_rate([Commit(at, rows) for at in times])
    if times[0] == times[-1]:
        assert found is None
    else:
        assert found is not None
        rate, seconds = found
        assert 0 < seconds <= times[-1] - times[0]
        assert rate * seconds <= rows * len(gaps) + 1e-6


def test_a_rate_is_of_the_last_hour() -> None:
    """A job that slowed down, or paused over night, is as fast as it is now."""
    old = [Commit(100.0 * number, 1000) for number in range(10)]
    new = [Commit(50_000.0 + 100 * number, 10) for number in range(5)]
    found = recent_rate(old + new)
    assert found is not None
    assert found[0] == pytest.approx(0.1) and found[1] == 400
    assert recent_rate([]) is None


def test_rows_left_are_not_told_before_a_shard_is_done() -> None:
    assert left_rows([Shard("a", "a", 100, "")], Ledger({}, None, -1, [])) is None
    assert left_rows([], Ledger({"b": ShardState()}, None, -1, [])) == 0
