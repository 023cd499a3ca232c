"""The commit protocol: nothing is seen before its marker, and no other attempt can touch it afterwards."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline import FeatureStore, storage
from pipeline.batches import Assignment, Record
from pipeline.geometry import cells, placement
from pipeline.records import index_table
from pipeline.shards import BadShard
from schemas.layout import index_schema
from tests.attempts import Draft, make_store, manifest, shard, store_shard, value
from tests.conftest import BucketUrl

KEYS = [f"k{number}" for number in range(10)]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store, on disk and on a real S3 server."""
    if request.param == "local":
        place = str(tmp_path / "store")
    else:
        bucket: BucketUrl = request.getfixturevalue("s3")
        place = f"{bucket()}/store"
    make_store(place, manifest())
    return place


def values(url: str) -> dict[str, float]:
    """By key, the one value that its features hold."""
    store = FeatureStore(url)
    seen = {}
    for line in store.index.to_pylist():
        maps = store.read([line["row"]], ["plain/tap", "fine/tap"])
        assert len({*maps["plain/tap"].ravel(), *maps["fine/tap"].ravel()}) == 1
        seen[line["key"]] = float(maps["plain/tap"].ravel()[0])
    return seen


def test_rows_appear_with_the_marker(url: str) -> None:
    draft = Draft(url, manifest(), Assignment(shard()))
    draft.write(KEYS)
    assert len(FeatureStore(url).index) == 0
    outcome = draft.commit()
    assert outcome.committed and outcome.marker.counts == {"ok": 10} and outcome.marker.extents == [0, 1]
    assert values(url) == {key: value(key) for key in KEYS}


def test_the_first_marker_wins(url: str) -> None:
    """Two attempts at one shard, in step: each writes rows of its own, one is seen, the other changes nothing."""
    first, second = (Draft(url, manifest(), Assignment(shard())) for _ in range(2))
    for half in (KEYS[:5], KEYS[5:]):
        first.write(half)
        second.write([f"x{key}" for key in half])
    winner, loser = first.commit(), second.commit()
    assert winner.committed and not loser.committed
    assert loser.marker == winner.marker
    assert not set(winner.marker.extents) & set(second.attempt._extents)
    assert values(url) == {key: value(key) for key in KEYS}


def test_a_late_writer_harms_nothing(url: str) -> None:
    """An owner that was paused before its last block writes on after the shard was committed by another."""
    paused = Draft(url, manifest(), Assignment(shard()))
    paused.write([f"x{key}" for key in KEYS[:5]])
    assert store_shard(url, manifest(), Assignment(shard()), KEYS).committed
    before = values(url)
    paused.write([f"x{key}" for key in KEYS[5:]])
    assert not paused.commit().committed
    assert values(url) == before == {key: value(key) for key in KEYS}


def test_a_commit_whose_answer_was_lost(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request succeeded, its retry was refused: the marker is our own, so the attempt has won."""
    create = storage.create

    def lossy(fs: object, path: str, data: bytes) -> bool:
        create(fs, path, data)
        return create(fs, path, data)

    monkeypatch.setattr(storage, "create", lossy)
    outcome = store_shard(url, manifest(), Assignment(shard()), KEYS)
    assert outcome.committed
    assert outcome.marker.extents == [0, 1], "and a claim is not claimed twice"


def test_rows_of_shards_never_meet(url: str) -> None:
    """Every attempt starts from the same hint, as two drivers would."""
    drafts = {name: Draft(url, manifest(), Assignment(shard(name))) for name in ("a.tar", "b.tar", "c.tar")}
    for half in (KEYS[:3], KEYS[3:]):
        for name, draft in drafts.items():
            draft.write([f"{name}{key}" for key in half])
    extents = [extent for draft in drafts.values() for extent in draft.commit().marker.extents]
    assert sorted(extents) == list(range(6))
    assert values(url) == {f"{name}{key}": value(f"{name}{key}") for name in drafts for key in KEYS}


def test_bad_rows_are_nan_and_have_a_reason(url: str) -> None:
    bad = {"k0": "undecodable-image", "k9": "no-image"}
    outcome = store_shard(url, manifest(), Assignment(shard()), KEYS, bad)
    assert outcome.marker.counts == {"ok": 8, "undecodable-image": 1, "no-image": 1}
    store = FeatureStore(url)
    lines = {line["key"]: line for line in store.index.to_pylist()}
    assert (lines["k0"]["status"], lines["k0"]["reason"]) == ("failed", "undecodable-image")
    assert lines["k0"]["groups"]["fine"] == {"status": "failed", "reason": "undecodable-image"}
    assert np.isnan(store.read([lines["k0"]["row"]], ["plain/tap"])["plain/tap"]).all()
    pooled = store.pooled(["fine/tap"]).to_pydict()
    assert pooled["row"] == [lines[key]["row"] for key in KEYS[1:9]]
    assert pooled["fine/tap"] == [[value(key)] * 2 for key in KEYS[1:9]]


def test_the_index_says_where_pictures_lie() -> None:
    """And gives readers the mask of what is no padding."""
    box = placement((24, 16), (48, 48), "pad").box
    records = [Record(0, "a", height=24, width=16, box=box), Record(1, "b", "no-image")]
    table = index_table(manifest(), records, Assignment(shard()), "attempt")
    assert table.schema == index_schema(["plain", "fine"])
    first, second = table.to_pylist()
    assert first["box"] == {"top": 0, "left": 8, "height": 48, "width": 32} and second["box"] is None
    mask = cells(tuple(first["box"].values()), (48, 48), (3, 6))
    assert mask.tolist() == [[False, True, True, True, True, False]] * 3


def test_scores_have_a_column_where_the_store_has_them() -> None:
    """By group: null where that failed; and stores from before there were scores have no such column."""
    records = [Record(0, "a", scores={"plain": 0.25, "fine": float("nan")}), Record(1, "b", "no-image")]
    before = index_table(manifest(), records, Assignment(shard()), "attempt")
    assert "scores" not in before.column_names
    output = manifest().identity["output"] | {"scores": {"anchor_t": 200}}
    scored = manifest().model_copy(update={"identity": manifest().identity | {"output": output}})
    table = index_table(scored, records, Assignment(shard()), "attempt")
    assert table.schema == index_schema(["plain", "fine"], scores=True)
    assert table.drop_columns("scores") == before
    first, second = table["scores"].to_pylist()
    assert first["plain"] == 0.25 and math.isnan(first["fine"])
    assert second == {"plain": None, "fine": None}


def test_a_truncated_shard(url: str) -> None:
    """Its good rows count, and a record without a key says what is missing."""
    draft = Draft(url, manifest(), Assignment(shard()))
    draft.write(KEYS[:3])
    outcome = draft.commit(bad=BadShard("truncated-tar", "cut after 3 samples"))
    assert outcome.marker.counts == {"ok": 3, "truncated-tar": 1}
    line = FeatureStore(url).index.to_pylist()[-1]
    assert (line["key"], line["row"], line["status"], line["reason"]) == (
        None,
        None,
        "failed",
        "truncated-tar",
    )
    assert line["position"] == 3 and "cut after 3" in line["detail"]


def test_an_upload_that_fails(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the pool's threads are not lost: no marker may follow."""

    def refuse(*_: object) -> None:
        raise storage.StorageError("disk full")

    draft = Draft(url, manifest(), Assignment(shard()))
    monkeypatch.setattr(storage, "put", refuse)
    with pytest.raises(storage.StorageError, match="disk full"):
        draft.write(KEYS)
    assert len(FeatureStore(url).index) == 0
