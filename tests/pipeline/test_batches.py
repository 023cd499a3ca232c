"""Shards to batches: a sample's slot follows from its place, and every sample has a record, whatever it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import batches
from pipeline.bad import BadShard
from pipeline.batches import Assignment, LoadedBatch, Record, ShardEnd, read_batches
from pipeline.captions import CaptionRecord, CaptionsError, open_captions, write
from pipeline.decode import decode, decode_beside
from pipeline.shards import Sample, Shard
from schemas.captions import CaptionsManifest
from schemas.spec import ExtractSpec
from tests.engines import SIDE, group, make_spec
from tests.tars import Member, jpeg, make_tar, png, shard_of

SPEC = make_spec(input={"shards": "unused"})  # batches of 4
BROKEN = b"no picture"


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def members(count: int, bad: tuple[int, ...] = ()) -> list[Member]:
    return [
        member
        for place in range(count)
        for member in (
            (f"{place:02d}.png", BROKEN if place in bad else png(16, 24, place)),
            (f"{place:02d}.txt", f"caption {place}".encode()),
        )
    ]


def make_shard(data: bytes) -> Shard:
    return shard_of(data, "memory://batches/a.tar")


def read(
    shard: Shard, pool: ThreadPoolExecutor, spec: ExtractSpec = SPEC, **assignment: Any
) -> tuple[list[LoadedBatch], ShardEnd]:
    *loaded, end = read_batches(Assignment(shard, **assignment), spec, pool)
    assert isinstance(end, ShardEnd)
    return [batch for batch in loaded if isinstance(batch, LoadedBatch)], end


def slots(loaded: list[LoadedBatch]) -> list[list[str | None]]:
    """Keys of records, by batch and slot."""
    return [[None if record is None else record.key for record in batch.records] for batch in loaded]


def test_slots_follow_from_positions(pool: ThreadPoolExecutor) -> None:
    loaded, end = read(make_shard(make_tar(None, members(6))), pool)
    assert slots(loaded) == [["00", "01", "02", "03"], ["04", "05", None, None]]
    assert end == ShardEnd(stop=6, complete=True)
    last = loaded[1].batch
    assert last.ids == [("a.tar", "04"), ("a.tar", "05"), None, None]
    assert last.texts == {"caption": ["caption 4", "caption 5", None, None]}
    assert last.boxes.tolist() == [[0, 0, SIDE, SIDE]] * 2 + [[0] * 4] * 2 and last.fields == {}
    assert last.pixels.shape == (4, 3, SIDE, SIDE) and last.pixels[:2].any() and not last.pixels[2:].any()
    record = loaded[1].records[1]
    assert record == Record(
        position=5,
        key="05",
        caption="caption 5",
        height=16,
        width=24,
        box=(0, 0, SIDE, SIDE),
        sha256=hashlib.sha256(png(16, 24, 5)).hexdigest(),
    )


def test_a_bad_sample_leaves_padding_and_a_record(pool: ThreadPoolExecutor) -> None:
    """Moving the others up would change their features where batch kernels depend on the slot."""
    whole, _ = read(make_shard(make_tar(None, members(4))), pool)
    loaded, _ = read(make_shard(make_tar(None, members(4, bad=(1,)))), pool)
    assert slots(loaded) == slots(whole)
    assert loaded[0].batch.ids == [("a.tar", "00"), None, ("a.tar", "02"), ("a.tar", "03")]
    assert not loaded[0].batch.pixels[1].any() and loaded[0].batch.texts["caption"][1] is None
    for slot in (0, 2, 3):
        assert (loaded[0].batch.pixels[slot] == whole[0].batch.pixels[slot]).all()
    record = loaded[0].records[1]
    assert record is not None and record.status == "failed"
    assert (record.reason, record.caption, record.height) == ("undecodable-image", "caption 1", None)
    assert record.box is None
    assert record.detail and record.sha256 == hashlib.sha256(BROKEN).hexdigest()


def test_bad_before_decoding(pool: ThreadPoolExecutor) -> None:
    """No image, and a key that comes back: each has its own place and record."""
    image = jpeg(8, 8)
    tar = make_tar(None, [("a.txt", b"text"), ("b.jpg", image), ("c.txt", b"c"), ("b.jpg", image)])
    loaded, end = read(make_shard(tar), pool)
    records = [record for record in loaded[0].records if record]
    assert [(one.key, one.reason) for one in records] == [
        ("a", "no-image"),
        ("b", None),
        ("c", "no-image"),
        ("b", "duplicate-key"),
    ]
    assert end.stop == 4 and loaded[0].batch.ids == [None, ("a.tar", "b"), None, None]


def test_a_missing_caption_is_no_bad_sample(pool: ThreadPoolExecutor) -> None:
    shard = make_shard(make_tar(None, [("a.jpg", jpeg(8, 8)), ("b.jpg", jpeg(8, 8)), ("b.txt", b"\xff")]))
    spec = make_spec(group(prompt="{caption}"), input={"shards": "unused"})
    loaded, _ = read(shard, pool, spec)
    assert loaded[0].batch.texts["caption"] == [None] * 4
    assert loaded[0].batch.text_reasons["caption"] == ["no-caption", "undecodable-caption", None, None]
    first, second = loaded[0].records[:2]
    assert first and second and first.reason is None and second.reason is None
    assert first.detail == "no member a.txt" and "UTF-8" in second.detail
    loaded, _ = read(shard, pool)
    assert [record.detail for record in loaded[0].records if record] == ["", ""], "no group needs them here"


def captions(tmp_path: Path, **found: str) -> str:
    """A folder as the caption job writes it, for the shard of these tests."""
    identity = {"model": "m"}
    manifest = CaptionsManifest(gatehouse="0", identity=identity, spec={}, libraries={})
    folder = open_captions(str(tmp_path / "captions"), manifest)
    write(
        folder, make_shard(b""), [CaptionRecord(i, key, text) for i, (key, text) in enumerate(found.items())]
    )
    return folder.url


def test_captions_of_the_caption_job_fill_in(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Where the sample has none, or none that can be read; its own goes before."""
    made = captions(tmp_path, a="made a", b="made b", c="made c")
    images: list[Member] = [(f"{key}.jpg", jpeg(8, 8)) for key in "abcd"]
    tar = make_tar(None, [images[0], ("a.txt", b"own"), images[1], ("b.txt", b"\xff"), *images[2:]])
    spec = make_spec(group(prompt="{caption}"), input={"shards": "unused", "captions": made})
    loaded, _ = read(make_shard(tar), pool, spec)
    assert loaded[0].batch.texts["caption"] == ["own", "made b", "made c", None]
    assert loaded[0].batch.text_reasons["caption"] == [None, None, None, "no-caption"]
    records = [record for record in loaded[0].records if record]
    assert [record.caption for record in records] == ["own", "made b", "made c", None], (
        "the one that was used"
    )
    assert records[1].detail == "" and records[3].detail == f"no member d.txt; {made} has no caption of 'd'"


def test_captions_of_the_caption_job_alone(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    made = captions(tmp_path, a="made a")
    tar = make_tar(None, [("a.jpg", jpeg(8, 8)), ("a.txt", b"own"), ("b.jpg", jpeg(8, 8))])
    where = {"shards": "unused", "captions": made, "caption_field": None}
    loaded, _ = read(make_shard(tar), pool, make_spec(group(prompt="{caption}"), input=where))
    assert loaded[0].batch.texts["caption"] == ["made a", None, None, None]
    assert loaded[0].batch.text_reasons["caption"] == [None, "no-caption", None, None]
    with pytest.raises(CaptionsError, match=r"shard 'other.tar' has none yet"):
        read(shard_of(tar, "memory://batches/other.tar"), pool, make_spec(input=where))


def test_json_fields_for_prompts(pool: ThreadPoolExecutor) -> None:
    image = jpeg(8, 8)
    tar = make_tar(None, [("a.jpg", image), ("a.json", b'{"x": "one"}'), ("b.jpg", image), ("b.json", b"[")])
    spec = make_spec(group(prompt="{json:x} {json:y}"), input={"shards": "unused"})
    loaded, _ = read(make_shard(tar), pool, spec)
    batch = loaded[0].batch
    assert batch.texts["json:x"] == ["one", None, None, None] and batch.texts["json:y"] == [None] * 4
    assert batch.text_reasons["json:x"] == [None, "undecodable-json", None, None]
    assert batch.text_reasons["json:y"] == ["no-json-field", "undecodable-json", None, None]
    first, second = loaded[0].records[:2]
    assert first and first.detail == "the sample's json has no field 'y'"
    assert second and second.detail.startswith("the sample's json is invalid"), "said once for both"


DEPTH = {"type": "controlnet", "source": "unused", "image": "field:depth.png"}


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_control_images_lie_under_their_pictures(pool: ThreadPoolExecutor, fit: str) -> None:
    tar = make_tar(None, [("a.jpg", jpeg(16, 24)), ("a.depth.png", png(32, 48, 5)), ("b.jpg", b"bad")])
    spec = make_spec(group(techniques=[DEPTH]), fit=fit, input={"shards": "unused"})
    loaded, _ = read(make_shard(tar), pool, spec)
    batch = loaded[0].batch
    size = (SIDE, SIDE)
    expected = decode_beside(png(32, 48, 5), (16, 24), size, 10**6, spec.fit)
    assert (batch.fields["depth.png"][0] == expected).all() and not batch.fields["depth.png"][1:].any()
    assert batch.field_reasons == {"depth.png": [None] * 4}
    picture = decode(jpeg(16, 24), size, 10**6, spec.fit)
    assert (batch.pixels[0] == picture.pixels).all()
    record = loaded[0].records[0]
    assert record and record.box == tuple(batch.boxes[0]) == picture.box
    assert picture.box[2] == (SIDE if fit != "pad" else 43)


def test_a_bad_control_image_is_no_bad_sample(pool: ThreadPoolExecutor) -> None:
    image = jpeg(16, 24)
    members = [
        member
        for key, control in (("a", None), ("b", BROKEN), ("c", png(24, 16)), ("d", b""))
        for member in ((f"{key}.jpg", image), *([] if control is None else [(f"{key}.depth.png", control)]))
    ]
    spec = make_spec(group(techniques=[DEPTH]), group("plain2"), input={"shards": "unused"})
    loaded, _ = read(make_shard(make_tar(None, members)), pool, spec)
    batch = loaded[0].batch
    assert None not in batch.ids and not batch.fields["depth.png"].any()
    reasons = ["no-field", "undecodable-field", "field-aspect", "undecodable-field"]
    assert batch.field_reasons["depth.png"] == reasons
    details = [record.detail for record in loaded[0].records if record]
    assert details[0] == "no member a.depth.png"
    assert details[1].startswith("depth.png: undecodable-image: starts with b'no picture'")
    assert details[2].startswith("depth.png has 24 x 16 pixels")
    assert details[3] == "depth.png: empty-image: the image has no bytes"
    assert all(record is not None and record.reason is None for record in loaded[0].records)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ({"start": 5}, [[None, "05", "06", "07"], ["08", "09", None, None]]),
        ({"start": 8}, [["08", "09", None, None]]),
        ({"start": None, "only": frozenset({1, 6})}, [[None, "01", None, None], [None, None, "06", None]]),
        ({"start": 9, "only": frozenset({0})}, [["00", None, None, None], [None, "09", None, None]]),
        ({"stop": 6}, [["00", "01", "02", "03"], ["04", "05", None, None]]),
        ({"start": 3, "stop": 5}, [[None, None, None, "03"], ["04", None, None, None]]),
        ({"start": 10}, []),
    ],
)
def test_parts_of_a_shard_keep_their_slots(
    pool: ThreadPoolExecutor, assignment: dict[str, Any], expected: list[list[str | None]]
) -> None:
    """A retry or continuation computes a sample where an undisturbed run would have."""
    shard = make_shard(make_tar(None, members(10)))
    whole, _ = read(shard, pool)
    loaded, end = read(shard, pool, **assignment)
    assert slots(loaded) == expected
    for batch in loaded:
        for slot, record in enumerate(batch.records):
            if record is not None:
                same = whole[record.position // 4]
                assert same.batch.ids[slot] == batch.batch.ids[slot]
                assert (same.batch.pixels[slot] == batch.batch.pixels[slot]).all()
                assert same.records[slot] == record
    stop = assignment.get("stop")
    assert end == ShardEnd(stop=stop or 10, complete=stop is None)


@pytest.mark.parametrize(
    ("stop", "end"),
    [
        (9, ShardEnd(9, complete=False)),
        (10, ShardEnd(10, complete=True)),  # the limit falls on the shard's end: nothing is left
        (11, ShardEnd(10, complete=True)),
        (0, ShardEnd(0, complete=False)),
    ],
)
def test_limit(pool: ThreadPoolExecutor, stop: int, end: ShardEnd) -> None:
    shard = make_shard(make_tar(None, members(10)))
    loaded, found = read(shard, pool, stop=stop)
    assert found == end
    assert sum(record is not None for batch in loaded for record in batch.records) == min(stop, 10)


def test_an_empty_shard(pool: ThreadPoolExecutor) -> None:
    assert read(make_shard(make_tar(None, [])), pool) == ([], ShardEnd(0, complete=True))


def test_a_truncated_shard_gives_what_is_whole(pool: ThreadPoolExecutor) -> None:
    data = make_tar(None, members(6))
    cut = make_shard(data[: len(data) * 2 // 3])
    loaded, end = read(cut, pool)
    keys = [key for batch in slots(loaded) for key in batch if key]
    assert keys == [f"{place:02d}" for place in range(len(keys))] and 0 < len(keys) < 6
    assert end.bad is not None and end.bad.reason == "truncated-tar"
    assert (end.stop, end.complete) == (len(keys), True)
    _, end = read(cut, pool, stop=2)
    assert end == ShardEnd(2, complete=False), "a limit before the fault does not see it"


def test_no_tar_at_all(pool: ThreadPoolExecutor) -> None:
    loaded, end = read(make_shard(b"text" * 1000), pool)
    assert loaded == [] and end.stop == 0 and end.bad is not None and end.bad.reason == "not-a-tar"


def test_io_errors_propagate(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A broken connection says nothing about the shard: no end, and no record of what came after it."""
    with pytest.raises(FileNotFoundError):
        list(read_batches(Assignment(Shard("a", f"{tmp_path}/a.tar", 1, "1")), SPEC, pool))

    def breaks_off(*_: Any) -> Iterator[Sample]:
        for index in range(6):
            yield Sample(index, str(index), png(8, 8))
        raise OSError("connection lost")

    monkeypatch.setattr(batches, "read_shard", breaks_off)
    items = read_batches(Assignment(Shard("a", "a", 1, "1")), SPEC, pool)
    assert isinstance(next(items), LoadedBatch)
    with pytest.raises(OSError, match="connection lost"):
        next(items)


@pytest.mark.parametrize(
    ("reason", "groups", "status"),
    [
        (None, {"a": None, "b": None}, "ok"),
        (None, {"a": "no-caption", "b": None}, "partial"),
        (None, {"a": "no-caption", "b": "float16-overflow"}, "failed"),
        ("no-image", {}, "failed"),
    ],
)
def test_status(reason: str | None, groups: dict[str, str | None], status: str) -> None:
    assert Record(0, "a", reason, groups=groups).status == status


def test_bad_shard_at_a_batch_boundary(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly one full batch before the fault: it is given once, and no empty one after it."""

    def faulty(*_: Any) -> Iterator[Sample]:
        for index in range(4):
            yield Sample(index, str(index), png(8, 8))
        raise BadShard("damaged-tar", "detail")

    monkeypatch.setattr(batches, "read_shard", faulty)
    loaded, end = read(Shard("a", "a", 1, "1"), pool)
    assert slots(loaded) == [["0", "1", "2", "3"]] and end.stop == 4 and end.bad is not None
