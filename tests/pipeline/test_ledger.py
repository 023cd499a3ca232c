"""What is committed, whether it is read from markers, from a compaction, or from both."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import ledger, storage
from pipeline.batches import Assignment
from pipeline.index import read_index
from pipeline.shards import BadShard
from tests.attempts import Draft, again, make_store, manifest, shard, store_shard

KEYS = ["k0", "k1", "k2"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    place = str(tmp_path / "store")
    make_store(place, manifest())
    return place


def lines(url: str) -> list[dict[str, object]]:
    index = read_index(url, manifest(), ledger.read_ledger(url))
    return index.select(["shard", "key", "round", "status", "reason"]).to_pylist()


def test_a_compaction_says_the_same(url: str) -> None:
    for name in ("b.tar", "a.tar"):
        store_shard(url, manifest(), Assignment(shard(name)), KEYS, {"k1": "no-image"})
    before = lines(url)
    assert [(line["shard"], line["key"]) for line in before] == [
        (s, k) for s in ("a.tar", "b.tar") for k in KEYS
    ]
    ledger.compact(url, ledger.read_ledger(url).fresh)
    after = ledger.read_ledger(url)
    assert after.fresh == [] and after.sequence == 0 and set(after.shards) == {"a.tar", "b.tar"}
    assert lines(url) == before


def test_after_a_compaction_only_what_is_new_is_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a store of 100,000 shards must not read 100,000 files."""
    for number in range(5):
        store_shard(url, manifest(), Assignment(shard(f"{number}.tar")), KEYS)
    ledger.compact(url, ledger.read_ledger(url).fresh)
    store_shard(url, manifest(), Assignment(shard("new.tar")), KEYS)
    fs, _ = storage.open_fs(url)
    opened: list[str] = []
    cat_file = type(fs).cat_file

    def counted(self: object, path: str, *rest: object, **more: object) -> bytes:
        opened.append(path.rsplit("/store/", 1)[1])
        return cat_file(self, path, *rest, **more)

    monkeypatch.setattr(type(fs), "cat_file", counted)
    assert len(lines(url)) == 18
    assert sorted(name.split("/")[0] for name in opened) == [
        "attempts",
        "compact",
        "compact",
        "compact",
        "markers",
    ]


def test_a_broken_compaction_is_passed_over(url: str) -> None:
    """Markers are the truth: a compaction that is cut, or whose tables are gone, only costs time."""
    store_shard(url, manifest(), Assignment(shard("a.tar")), KEYS)
    ledger.compact(url, ledger.read_ledger(url).fresh)
    store_shard(url, manifest(), Assignment(shard("b.tar")), KEYS)
    ledger.compact(url, ledger.read_ledger(url).fresh)
    good = lines(url)
    folder = Path(url) / "compact"
    (folder / "00000001.json").write_bytes((folder / "00000001.json").read_bytes()[:40])
    assert lines(url) == good
    next(folder.glob("00000000-*-ledger.parquet")).unlink()
    assert lines(url) == good
    ledger.compact(url, ledger.read_ledger(url).fresh)
    assert ledger.read_ledger(url).sequence == 2 and lines(url) == good


def test_a_compaction_adds_what_the_last_one_lacks(url: str) -> None:
    """A driver passes its own markers, of which another may have compacted some: no record may come twice."""
    outcomes = [store_shard(url, manifest(), Assignment(shard(f"{name}.tar")), KEYS) for name in "abc"]
    markers = [outcome.marker for outcome in outcomes]
    assert ledger.compact(url, markers[:2])
    assert ledger.compact(url, markers[1:])
    assert ledger.compact(url, markers)
    after = ledger.read_ledger(url)
    assert after.fresh == [] and after.sequence == 1 and len(lines(url)) == 9


def test_a_compaction_that_lost_the_race(url: str) -> None:
    """Two drivers compact the same markers: one number, one winner, and the loser's files are in nobody's way."""
    store_shard(url, manifest(), Assignment(shard("a.tar")), KEYS)
    seen = ledger.read_ledger(url)
    store_shard(url, manifest(), Assignment(shard("b.tar")), KEYS)
    ledger.compact(url, ledger.read_ledger(url).fresh)
    ledger.compact(url, seen.fresh)
    assert len(lines(url)) == 6 and ledger.read_ledger(url).sequence == 0


def test_the_newest_outcome_counts(url: str) -> None:
    """A retry's row replaces the failed one; samples it did not do keep theirs."""
    assignment = Assignment(shard())
    store_shard(url, manifest(), assignment, KEYS, {"k1": "io-error", "k2": "no-image"})
    retry = Draft(url, manifest(), again(assignment, 1, start=None, only=frozenset({1})))
    retry.write(["k1"])
    retry.assembler.records[0].position = 1
    retry.commit()
    assert [(line["key"], line["round"], line["status"]) for line in lines(url)] == [
        ("k0", 0, "ok"),
        ("k1", 1, "ok"),
        ("k2", 0, "failed"),
    ]
    assert ledger.read_ledger(url).shards["a.tar"].next_round == 2


@pytest.mark.parametrize("samples", [0, 2])
def test_a_shard_that_was_set_aside_and_then_done(url: str, samples: int) -> None:
    """Its own record goes, also when it turns out to hold nothing."""
    assignment = Assignment(shard())
    Draft(url, manifest(), assignment).commit(bad=BadShard("worker-died", "why"))
    assert [(line["key"], line["reason"]) for line in lines(url)] == [(None, "worker-died")]
    store_shard(url, manifest(), again(assignment, 1), KEYS[:samples])
    assert [line["key"] for line in lines(url)] == KEYS[:samples]


def test_a_compaction_whose_index_is_gone_is_passed_over(url: str) -> None:
    store_shard(url, manifest(), Assignment(shard("a.tar")), KEYS)
    good = lines(url)
    ledger.compact(url, ledger.read_ledger(url).fresh)
    next((Path(url) / "compact").glob("*-index.parquet")).unlink()
    assert lines(url) == good


def test_a_damaged_marker_is_named(url: str) -> None:
    """Never passed over: its shard would be done again, and its rows doubled."""
    store_shard(url, manifest(), Assignment(shard("a.tar")), KEYS)
    (marker,) = (Path(url) / "markers").iterdir()
    marker.write_bytes(marker.read_bytes()[:100])
    with pytest.raises(storage.StorageError, match=rf"markers/{marker.name}: 100 bytes that are no marker"):
        lines(url)


def test_a_marker_that_was_tampered_with_is_refused(url: str) -> None:
    store_shard(url, manifest(), Assignment(shard()), KEYS)
    index = next((Path(url) / "attempts").rglob("index.parquet"))
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(
        storage.StorageError, match=r"index\.parquet: \d+ bytes that differ from the \d+ committed"
    ):
        lines(url)


def test_a_shard_record_never_hides_a_sample(url: str) -> None:
    """A retry met a cut file and stopped early, at a position where an earlier round has a good sample."""
    assignment = Assignment(shard())
    store_shard(url, manifest(), assignment, KEYS, {"k0": "io-error"})
    retry = Draft(url, manifest(), again(assignment, 1, start=None, only=frozenset({0})))
    retry.write(["k0"])
    retry.commit(bad=BadShard("truncated-tar", "cut"))
    assert [(line["key"], line["status"]) for line in lines(url)] == [
        ("k0", "ok"),
        ("k1", "ok"),
        (None, "failed"),
        ("k2", "ok"),
    ]
