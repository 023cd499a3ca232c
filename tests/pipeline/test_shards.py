"""Samples out of good, odd and hostile tars."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.bad import BadSample
from pipeline.shards import BadShard, Sample, count_samples, read_shard
from pipeline.tarstream import TarStream
from schemas.spec import Input
from tests.tars import Member, header, jpeg, make_tar, png, shard_of

SPEC = Input(shards="unused")


def read(
    members: list[Member],
    spec: Input = SPEC,
    controls: Sequence[str] = (),
    json_fields: Sequence[str] = (),
    format: int = tarfile.PAX_FORMAT,
) -> list[Sample]:
    """Samples of a tar with these members, streamed from a file system that is not local."""
    shard = shard_of(make_tar(None, members, format), "memory://shards/a.tar")
    samples = list(read_shard(shard, spec, controls, json_fields))
    assert count_samples(shard, spec) == len(samples)
    assert [sample.index for sample in samples] == list(range(len(samples)))
    for sample in samples:
        parts = [*sample.texts.values(), *sample.fields.values()]
        details = [part.detail for part in parts if isinstance(part, BadSample)]
        (sample.key + sample.detail + (sample.caption or "") + "".join(details)).encode()  # as Arrow wants it
        assert (sample.image is None) == (sample.reason is not None)
    return samples


def only(
    members: list[Member],
    spec: Input = SPEC,
    controls: Sequence[str] = (),
    json_fields: Sequence[str] = (),
) -> Sample:
    (sample,) = read(members, spec, controls, json_fields)
    return sample


def problem(part: str | bytes | BadSample) -> str | None:
    return part.reason if isinstance(part, BadSample) else None


def lacks_caption(sample: Sample) -> str | None:
    """Why, if it lacks one."""
    return problem(sample.texts["caption"])


def test_samples_in_order_with_captions() -> None:
    image = jpeg(4, 4)
    samples = read(
        [("a.jpg", image), ("a.txt", "ein Wäldchen\n".encode()), ("a.seg.png", png(4, 4)), ("d/b.PNG", image)]
    )
    assert [(s.key, s.image, s.caption, lacks_caption(s)) for s in samples] == [
        ("a", image, "ein Wäldchen", None),
        ("d/b", image, None, "no-caption"),
    ]
    assert str(samples[1].texts["caption"]) == "no-caption: no member d/b.txt"


def test_only_members_that_belong_to_samples_count() -> None:
    """WebDataset's metadata, folders and the `._a.jpg` that macOS adds made rows, or split samples."""
    members: list[Member] = [
        ("__meta__", b"1"),
        ("__meta__/info.json", b"{}"),
        header("d.v1", tarfile.DIRTYPE),
        ("d.v1/._a.jpg", b"junk"),
        ("d.v1/a.jpg", b"image"),
        ("d.v1/.DS_Store", b"junk"),
        ("d.v1/a.txt", b"text"),
    ]
    sample = only(members)
    assert (sample.key, sample.image, sample.caption) == ("d.v1/a", b"image", "text")


def test_no_tar_members_is_no_sample() -> None:
    assert read([]) == []


@pytest.mark.parametrize("order", [("a.jpg", "a.png"), ("a.png", "a.jpg")])
@pytest.mark.parametrize(
    ("fields", "expected"), [(["jpg", "png"], "a.jpg"), (["png", "jpg"], "a.png"), ("png", "a.png")]
)
def test_image_by_preference(order: tuple[str, str], fields: str | list[str], expected: str) -> None:
    """The image depended on the order of members."""
    sample = only([(name, name.encode()) for name in order], Input(shards="x", image_field=fields))
    assert sample.image == expected.encode()


def test_image_field_with_dots() -> None:
    spec = Input(shards="x", image_field="seg.png", caption_field=None)
    sample = only([("a.jpg", b"photo"), ("a.seg.png", b"mask")], spec)
    assert (sample.image, sample.texts, sample.fields, sample.detail) == (b"mask", {}, {}, "")


@pytest.mark.parametrize(
    ("data", "caption", "reason"),
    [
        (b'{"text": " a \\u00e9 "}', "a é", None),
        (b'{"other": "a"}', None, "no-caption"),
        (b'{"text": null}', None, "no-caption"),
        (b'{"text": 5}', None, "undecodable-caption"),
        (b'["text"]', None, "undecodable-caption"),
        (b'{"text": ', None, "undecodable-caption"),
        (b"\xff\xfe\xfd", None, "undecodable-caption"),
        (b'{"text": "\\ud800"}', None, "undecodable-caption"),
        (b"[" * 100_000, None, "undecodable-caption"),
    ],
)
def test_caption_in_json(data: bytes, caption: str | None, reason: str | None) -> None:
    """A lone surrogate is valid json and stopped the Parquet writer; deep nesting is a RecursionError."""
    sample = only([("a.jpg", b"image"), ("a.json", data)], Input(shards="x", caption_field="json:text"))
    assert (sample.image, sample.caption, lacks_caption(sample)) == (b"image", caption, reason)


@pytest.mark.parametrize("member", [("a.txt", b"\xff\xff"), header("a.txt", tarfile.SYMTYPE, "/etc/passwd")])
def test_bad_caption_keeps_the_image(member: Member) -> None:
    sample = only([("a.jpg", b"image"), member])
    assert (sample.image, sample.caption, lacks_caption(sample)) == (b"image", None, "undecodable-caption")


def test_json_fields_beside_a_caption() -> None:
    """One member serves them all, and each has its own reason."""
    data = b'{"text": "a", "class": " owl ", "count": 3, "none": null}'
    fields = ["class", "count", "none", "other"]
    sample = only(
        [("a.jpg", b"image"), ("a.json", data)], Input(shards="x", caption_field="json:text"), [], fields
    )
    assert sample.texts["json:class"] == "owl" and sample.caption == "a"
    found = {name: problem(text) for name, text in sample.texts.items()}
    assert found == {
        "json:class": None,
        "json:count": "undecodable-json",
        "json:none": "no-json-field",
        "json:other": "no-json-field",
        "caption": None,
    }
    assert str(sample.texts["json:count"]).endswith("field 'count' is a int, not a string")
    assert str(sample.texts["json:other"]).endswith("the sample's json has no field 'other'")


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("a.txt", b"text"), "no-json-field"),
        (("a.json", b"{"), "undecodable-json"),
        (("a.json", b""), "undecodable-json"),
        (header("a.json", tarfile.SYMTYPE, "/etc/passwd"), "undecodable-json"),
    ],
)
def test_a_bad_json_keeps_image_and_caption(member: Member, reason: str) -> None:
    image, spec = ("a.jpg", b"image"), Input(shards="x", caption_field=None)
    sample = only([image, member], spec, [], ["class"])
    assert (sample.image, problem(sample.texts["json:class"])) == (b"image", reason)


@pytest.mark.parametrize("order", [0, 1])
def test_control_images(order: int) -> None:
    """In any order, in any case, and beside an image of the same extension's ending."""
    members: list[Member] = [("a.jpg", b"image"), ("a.Depth.PNG", b"depth"), ("a.canny.png", b"edges")]
    sample = only(members[:: 1 - 2 * order], SPEC, ["depth.png"])
    assert (sample.image, sample.fields) == (b"image", {"depth.png": b"depth"})


@pytest.mark.parametrize(
    ("member", "reason", "detail"),
    [
        (("a.txt", b"text"), "no-field", "no member a.depth.png"),
        (header("a.depth.png", tarfile.SYMTYPE, "/etc/passwd"), "undecodable-field", "is a link"),
        (header("a.depth.png", tarfile.FIFOTYPE), "undecodable-field", "no plain file"),
        (("a.depth.png", bytes(2000)), "undecodable-field", "max_member_bytes allows 1000"),
    ],
)
def test_a_bad_control_image_keeps_the_image(member: Member, reason: str, detail: str) -> None:
    sample = only([("a.jpg", b"image"), member], Input(shards="x", max_member_bytes=1000), ["depth.png"])
    part = sample.fields["depth.png"]
    assert sample.image == b"image" and problem(part) == reason and detail in str(part)


def test_two_control_images_of_one_field_are_a_bad_sample() -> None:
    sample = only([("a.jpg", b"i"), ("a.d.png", b"1"), ("a.D.png", b"2")], SPEC, ["d.png"])
    assert (sample.reason, sample.image) == ("duplicate-member", None)


@pytest.mark.parametrize(
    ("members", "reason", "detail"),
    [
        ([("a.txt", b"text"), ("a.cls", b"1")], "no-image", "cls, txt"),
        ([("README", b"text")], "no-image", "README"),
        ([("/etc/a.jpg", b"image")], "unsafe-name", "/etc/a.jpg"),
        ([("x/../../a.jpg", b"image")], "unsafe-name", "x/../../a.jpg"),
        ([("..", b"image")], "unsafe-name", "'..'"),
        ([("a\nb.jpg", b"image")], "unsafe-name", r"a\\x0ab.jpg"),
        ([("a\x1b[2J.jpg", b"image")], "unsafe-name", r"a\\x1b"),
        ([("a.jpg", b"image"), ("a.t\rxt", b"text")], "unsafe-name", r"a.t\\x0dxt"),
        ([("a.jpg", b"1"), ("a.JPG", b"2")], "duplicate-member", "'jpg'"),
        ([("a.jpg", b"1"), ("a.txt", b"2"), ("a.txt", b"3")], "duplicate-member", "'txt'"),
        ([header("a.jpg", tarfile.SYMTYPE, "/etc/passwd")], "link-member", "a.jpg"),
        ([header("a.jpg", tarfile.LNKTYPE, "b.jpg")], "link-member", "a.jpg"),
        ([header("a.jpg", tarfile.FIFOTYPE)], "special-member", "a.jpg"),
        ([header("a.jpg", tarfile.CHRTYPE)], "special-member", "a.jpg"),
        ([("a.jpg", b"")], "empty-image", "a.jpg"),
    ],
)
def test_bad_samples_have_a_reason(members: list[Member], reason: str, detail: str) -> None:
    """And those around them are untouched."""
    before, bad, after = read([("0.jpg", b"before"), *members, ("z.jpg", b"after")])
    assert (bad.reason, bad.image) == (reason, None)
    assert detail in bad.detail
    assert (before.image, after.image) == (b"before", b"after")


def test_nul_in_a_name() -> None:
    """Only pax records can hold one; ustar names end there."""
    info = header("plain.jpg", tarfile.REGTYPE)
    info.pax_headers = {"path": "a\0b.jpg"}
    sample = only([info])
    assert (sample.key, sample.reason) == (r"a\x00b", "unsafe-name")


def test_names_that_are_not_utf8() -> None:
    """The escaped key met another sample's key, and both were merged."""
    latin, escaped = "caf\udce9", r"caf\xe9"
    first, second = read([(f"{latin}.jpg", b"1"), (f"{escaped}.jpg", b"2")], format=tarfile.GNU_FORMAT)
    assert (first.key, first.image) == (escaped, b"1")
    assert (second.key, second.reason) == (escaped, "duplicate-key")


def test_key_that_comes_back() -> None:
    """WebDataset makes two samples of one key, or of interleaved members."""
    samples = read(
        [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"text"), ("b.txt", b"text"), ("a.jpg", b"3")]
    )
    assert [(s.key, s.image, s.reason) for s in samples] == [
        ("a", b"1", None),
        ("b", b"2", None),
        ("a", None, "duplicate-key"),
        ("b", None, "duplicate-key"),
        ("a", None, "duplicate-key"),
    ]


@pytest.mark.parametrize("name", ["a.jpg", "a.txt"])
def test_large_members_are_never_in_memory(name: str) -> None:
    shard = shard_of(
        make_tar(None, [(name, bytes(32 * 2**20)), ("b.jpg", b"image")]), "memory://shards/large.tar"
    )
    tracemalloc.start()
    big, small = read_shard(shard, Input(shards="x", max_member_bytes=2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
    assert small.image == b"image"
    if name == "a.jpg":
        assert big.reason == "member-too-large" and "max_member_bytes allows 1048576" in big.detail
    else:
        assert (big.reason, lacks_caption(big)) == ("no-image", "undecodable-caption")


def test_members_that_nothing_needs_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read_names: list[str] = []
    data = TarStream.data

    def noting(self: TarStream, member: tarfile.TarInfo) -> bytes:
        read_names.append(member.name)
        return data(self, member)

    monkeypatch.setattr(TarStream, "data", noting)
    names = ["a.jpg", "a.png", "a.json", "a.txt", "a.depth.png", "a.seg.png", "a.mp4"]
    members: list[Member] = [(name, b"{}") for name in names]
    only(members)
    assert read_names == ["a.jpg", "a.txt"]
    read_names.clear()
    only(members, Input(shards="x", caption_field=None), ["seg.png"], ["class"])
    assert read_names == ["a.jpg", "a.json", "a.seg.png"]


def test_one_sample_in_memory() -> None:
    """A sample was kept while the next was read."""
    members: list[Member] = [(f"{i}.jpg", bytes(4 * 2**20)) for i in range(5)]
    shard = shard_of(make_tar(None, members), "memory://shards/many.tar")
    samples = read_shard(shard, SPEC)
    tracemalloc.start()
    for _ in range(5):
        assert next(samples).image is not None  # and let go of it
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20  # while a member is read, tarfile joins its parts: twice its size


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_by_content(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    shard = shard_of(compress(make_tar(None, [("a.jpg", b"1"), ("b.jpg", b"2")])), str(tmp_path / "a.tar"))
    assert [sample.image for sample in read_shard(shard, SPEC)] == [b"1", b"2"]
    assert count_samples(shard, SPEC) == 2


def test_counting_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(
        make_tar(None, [(f"{i}.jpg", bytes(2**20)) for i in range(8)] + [("7.txt", b"")]),
        str(tmp_path / "a.tar"),
    )
    taken = 0

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal taken
            count = super().readinto(buffer) or 0
            taken += count
            return count

    def counting_open(self: LocalFileSystem, path: str, mode: str) -> io.BufferedReader:
        return io.BufferedReader(Counted(path, mode), 4096)

    monkeypatch.setattr(LocalFileSystem, "open", counting_open)
    assert count_samples(shard, SPEC) == 8
    assert 0 < taken < 2**18
    taken = 0
    assert count_samples(shard, SPEC, stop_after=1) == 1
    assert 0 < taken < 2**15
    assert count_samples(shard, SPEC, stop_after=0) == 0


def test_truncated_shard_counts_what_can_be_read(tmp_path: Path) -> None:
    data = make_tar(None, [(f"{i}.jpg", bytes(1000)) for i in range(4)])[:4000]
    for url in (str(tmp_path / "a.tar"), "memory://shards/cut.tar"):
        shard = shard_of(data, url)
        samples = []
        with pytest.raises(BadShard, match="truncated-tar"):
            for sample in read_shard(shard, SPEC):
                samples.append(sample)
        assert len(samples) == count_samples(shard, SPEC) == 2


def test_missing_shard_is_an_io_error(tmp_path: Path) -> None:
    shard = shard_of(b"", str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FileNotFoundError):
        next(read_shard(shard, SPEC))
