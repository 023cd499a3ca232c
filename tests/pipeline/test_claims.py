"""Extents belong to one attempt each, whoever asks at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import claims, storage
from schemas.layout import claim_path
from schemas.receipts import Claim


def test_racing_attempts_get_different_extents(tmp_path: Path) -> None:
    fs, root = storage.open_fs(str(tmp_path))
    assert claims.next_free(fs, root) == 0
    with ThreadPoolExecutor(16) as pool:
        got = list(
            pool.map(
                lambda number: claims.claim(fs, root, 0, shard="a.tar", round_=0, attempt=f"{number}"),
                range(40),
            )
        )
    assert sorted(got) == list(range(40))
    for number, extent in enumerate(got):
        claim = Claim.model_validate_json((tmp_path / claim_path(extent)).read_bytes())
        assert (claim.extent, claim.attempt) == (extent, f"{number}")
    assert claims.next_free(fs, root) == 40


def test_a_good_hint_costs_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of 100,000 shards would be listed 100,000 times."""
    fs, root = storage.open_fs(str(tmp_path))

    def refused(*_: object) -> int:
        raise AssertionError("listed")

    monkeypatch.setattr(claims, "next_free", refused)
    assert [claims.claim(fs, root, hint, shard="a.tar", round_=0, attempt=f"{hint}") for hint in (7, 8)] == [
        7,
        8,
    ]
    assert claims.claim(fs, root, 7, shard="b.tar", round_=0, attempt="beside") == 9


def test_a_hint_far_behind_costs_one_listing(tmp_path: Path) -> None:
    """After some probes it looks for the end instead of trying every extent."""
    fs, root = storage.open_fs(str(tmp_path))
    for number in range(100):
        claims.claim(fs, root, number, shard="a.tar", round_=0, attempt=f"{number}")
    assert claims.claim(fs, root, 3, shard="b.tar", round_=0, attempt="late") == 100


def test_strangers_in_the_folder_are_ignored(tmp_path: Path) -> None:
    fs, root = storage.open_fs(str(tmp_path))
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "README.txt").write_text("?")
    assert claims.next_free(fs, root) == 0
