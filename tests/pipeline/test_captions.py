"""A folder of captions: written once, read by shard and key, and never of two models."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.captions import CaptionRecord, Captions, CaptionsError, open_captions, write
from pipeline.listing import Shard
from schemas.captions import TABLE, CaptionsManifest, file_name
from tests.conftest import BucketUrl

RECORDS = [
    CaptionRecord(0, "a", "a duck", sha256="00"),
    CaptionRecord(1, "b", reason="truncated-image", detail="cut"),
    CaptionRecord(2, "a", reason="duplicate-key", detail="again"),
    CaptionRecord(3, "ü [b]", "a tree", sha256="01"),
    CaptionRecord(4, None, reason="truncated-tar", detail="ends early"),
]


def manifest_of(prompt: str | None = None, model: str = "00") -> CaptionsManifest:
    identity = {"model": {"files": {"model.safetensors": model}}, "prompt": prompt}
    return CaptionsManifest(gatehouse="0", identity=identity, spec={}, libraries={})


def shard(number: int, size: int = 10) -> Shard:
    return Shard(f"train/{number}.tar", f"/in/train/{number}.tar", size, "1")


def test_written_and_read(tmp_path: Path) -> None:
    """Captions by key; bad samples are in the file, with their reasons, and not in what is read."""
    captions = open_captions(str(tmp_path), manifest_of())
    assert write(captions, shard(0), RECORDS)
    assert Captions(str(tmp_path)).of("train/0.tar") == {"a": "a duck", "ü [b]": "a tree"}
    table = pq.read_table(tmp_path / file_name("train/0.tar"))
    assert table.schema.equals(TABLE)
    lines = table.to_pylist()
    assert [line["status"] for line in lines] == ["ok", "failed", "failed", "ok", "failed"]
    assert lines[1] == {
        "key": "b",
        "position": 1,
        "status": "failed",
        "reason": "truncated-image",
        "detail": "cut",
        "caption": None,
        "sha256": None,
    }


def test_the_first_to_write_a_shard_wins(tmp_path: Path) -> None:
    captions = open_captions(str(tmp_path), manifest_of())
    assert write(captions, shard(0), RECORDS[:1])
    assert not write(captions, shard(0), [CaptionRecord(0, "a", "a dog")])
    assert captions.of("train/0.tar") == {"a": "a duck"}


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(open_captions(f"{tmp_path}/{folder}", manifest_of()), shard(0), RECORDS)
    name = file_name("train/0.tar")
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_second_model_is_refused_with_the_difference(tmp_path: Path) -> None:
    open_captions(str(tmp_path), manifest_of(prompt="a photo of"))
    with pytest.raises(
        CaptionsError,
        match=r"(?s)model\.files\.model\.safetensors: the folder has '00', the spec '01'.*"
        r"prompt: the folder has 'a photo of', the spec None.*another folder",
    ):
        open_captions(str(tmp_path), manifest_of(model="01"))
    open_captions(str(tmp_path), manifest_of(prompt="a photo of"))


def test_a_fingerprint_follows_the_identity(tmp_path: Path) -> None:
    """Not the place: a copied folder is the same captions."""
    found = {
        open_captions(f"{tmp_path}/{name}", manifest).fingerprint()
        for name, manifest in {"a": manifest_of(), "b": manifest_of(), "c": manifest_of("p")}.items()
    }
    assert len(found) == 2


def test_no_captions_there(tmp_path: Path) -> None:
    """A wrong folder, a shard that is not done yet, an id under another root: each says what to do."""
    with pytest.raises(
        CaptionsError, match=r"no captions at .*nowhere: there is no captions\.json"
    ) as caught:
        Captions(f"{tmp_path}/nowhere").fingerprint()
    assert caught.value.missing
    captions = open_captions(str(tmp_path), manifest_of())
    with pytest.raises(CaptionsError, match=r"shard '0\.tar' has none yet; .*with the same input\.root"):
        captions.of("0.tar")
    write(captions, shard(1), RECORDS)
    captions.check([shard(1)])
    with pytest.raises(
        CaptionsError, match=r"7 of 8 shards have none yet: train/0\.tar, .*5\.tar and 2 more;"
    ):
        captions.check([shard(number) for number in range(8)])
    with pytest.raises(CaptionsError, match=r"there is no captions\.json"):
        Captions(f"{tmp_path}/nowhere").check([])


def test_another_release_is_refused(tmp_path: Path) -> None:
    open_captions(str(tmp_path), manifest_of())
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(CaptionsError, match="use the release that wrote it") as caught:
        Captions(str(tmp_path)).fingerprint()
    assert not caught.value.missing


def test_files_of_other_settings_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    """As when someone copies files from one folder to another."""
    for folder, prompt in (("one", None), ("two", "p")):
        write(open_captions(f"{tmp_path}/{folder}", manifest_of(prompt)), shard(0), RECORDS)
    name = file_name("train/0.tar")
    (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(CaptionsError, match=r"was made under other settings than captions\.json says"):
        Captions(f"{tmp_path}/one").of("train/0.tar")
    (tmp_path / "two" / name).write_bytes((tmp_path / "two" / name).read_bytes()[:-9])
    with pytest.raises(CaptionsError, match=r"parquet is damaged .*; remove it"):
        Captions(f"{tmp_path}/two").of("train/0.tar")


def test_shards_that_changed_are_named(tmp_path: Path) -> None:
    captions = open_captions(str(tmp_path), manifest_of())
    for number in range(3):
        write(captions, shard(number), RECORDS)
    captions.check_unchanged([shard(number) for number in range(3)])
    with pytest.raises(
        CaptionsError, match=r"train/1\.tar: 10 bytes, version 1 when captioned; now 11, 1 \(shards/"
    ):
        captions.check_unchanged([shard(0), shard(1, size=11)])


def test_a_shard_is_read_once_while_it_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And few are held at a time."""
    captions = open_captions(str(tmp_path), manifest_of())
    for number in range(20):
        write(captions, shard(number), RECORDS)
    opened: list[str] = []
    open_fs = storage.open_fs

    def spy(url: str) -> object:
        opened.append(url)
        return open_fs(url)

    monkeypatch.setattr(storage, "open_fs", spy)
    captions.of("train/0.tar")
    before = len(opened)
    for _ in range(5):
        captions.of("train/0.tar")
    assert len(opened) == before
    for number in range(20):
        captions.of(f"train/{number}.tar")
    assert captions._held.cache_info().currsize == 8


@pytest.mark.s3
def test_on_s3(s3: BucketUrl) -> None:
    captions = open_captions(f"{s3()}/captions", manifest_of())
    assert captions.has([shard(0)]) == [False]
    assert write(captions, shard(0), RECORDS) and not write(captions, shard(0), RECORDS)
    assert captions.has([shard(0), shard(1)]) == [True, False]
    assert Captions(captions.url).of("train/0.tar") == {"a": "a duck", "ü [b]": "a tree"}
    with pytest.raises(CaptionsError, match="has none yet"):
        captions.of("train/1.tar")
