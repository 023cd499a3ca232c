"""Every way in which a tar can end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable
from typing import IO

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards import BadShard, Sample, read_shard
from pipeline.tarstream import TarStream
from schemas.spec import Input
from tests.tars import Member, make_tar, shard_of

SPEC = Input(shards="unused", caption_field="txt")
URL = "memory://stream/a.tar"
BLOCK = tarfile.BLOCKSIZE

samples_strategy = st.lists(
    st.tuples(
        st.text(st.characters(categories=["L", "N"], include_characters="_- /"), min_size=1, max_size=120)
        .map(lambda name: name.strip("/") or "x"),
        st.binary(min_size=1, max_size=1500),
        st.one_of(st.none(), st.text(st.characters(categories=["L", "N"]), max_size=20)),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda sample: sample[0],
)  # fmt: skip


def read(data: bytes) -> tuple[list[Sample], BadShard | None]:
    samples = []
    try:
        for sample in read_shard(shard_of(data, URL), SPEC):
            samples.append(sample)
    except BadShard as fault:
        return samples, fault
    return samples, None


@settings(max_examples=60, deadline=None)
@given(
    written=samples_strategy,
    where=st.floats(0, 1),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_what_is_written_comes_back_up_to_the_cut(
    written: list[tuple[str, bytes, str | None]], where: float, format: int
) -> None:
    """WebDataset loses a truncated tail in silence, and may give a sample without its last members."""
    members: list[Member] = []
    starts = []
    for key, image, caption in written:
        starts.append(make_tar(None, members, format))
        members.append((f"{key}.jpg", image))
        if caption is not None:
            members.append((f"{key}.txt", caption.encode()))
    data = make_tar(None, members, format)
    expected = [(key, image, caption) for key, image, caption in written]

    samples, fault = read(data)
    assert [(s.key, s.image, s.caption) for s in samples] == expected and fault is None

    end = len(data.rstrip(b"\0"))
    end += -end % BLOCK  # of the last member's data, or a little before, if its last bytes are zeros
    cut = int(where * end)
    samples, fault = read(data[:cut])
    assert fault is not None and fault.reason == ("not-a-tar" if 0 < cut < BLOCK else "truncated-tar")
    assert [(s.key, s.image, s.caption) for s in samples] == expected[: len(samples)]
    # Nothing that could be known to be whole is held back: the next sample's first header shows that one is.
    assert len(samples) >= sum(len(_content(start)) + 4 * BLOCK <= cut for start in starts[1:])


def _content(tar: bytes) -> bytes:
    """A tar without its end mark and padding."""
    content = tar.rstrip(b"\0")
    return content + bytes(-len(content) % BLOCK)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_cut_streams_are_never_whole(compress: Callable[[bytes], bytes]) -> None:
    """tarfile raises nothing when compressed data end early."""
    noise = random.Random(0)
    data = compress(make_tar(None, [(f"{i}.jpg", noise.randbytes(3000)) for i in range(4)]))
    whole = len(data) if compress is not bytes else 4 * (512 + 3072)
    for cut in range(0, whole - 40, 97):
        samples, fault = read(data[:cut])
        assert fault is not None and fault.reason in ("truncated-tar", "not-a-tar")
        assert [s.key for s in samples] == [str(i) for i in range(len(samples))] and len(samples) < 4


def test_missing_end_mark() -> None:
    content = _content(make_tar(None, [("a.jpg", b"1"), ("b.jpg", b"2")]))
    samples, fault = read(content)
    assert [s.key for s in samples] == ["a"]  # more members of b may be missing
    assert (
        fault is not None
        and fault.reason == "truncated-tar"
        and "without an end-of-archive mark" in fault.detail
    )
    samples, fault = read(content + bytes(BLOCK))  # some writers are content with one block of zeros
    assert [s.key for s in samples] == ["a", "b"] and fault is None


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "truncated-tar", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not-a-tar", "version https://"),
        (b"<html>" * 1000, "not-a-tar", "<html>"),
        (gzip.compress(b"text" * 1000), "not-a-tar", "no tar header"),
        (b"\x1f\x8b\x08", "not-a-tar", "no tar header"),
    ],
)
def test_what_is_no_tar(data: bytes, reason: str, detail: str) -> None:
    samples, fault = read(data)
    assert samples == [] and fault is not None
    assert fault.reason == reason and detail in fault.detail


def test_damaged_header_in_the_middle() -> None:
    """tarfile takes it for the end."""
    data = bytearray(make_tar(None, [(f"{i}.jpg", b"image") for i in range(4)]))
    data[2 * 2 * BLOCK] ^= 1  # the first byte of the third name
    samples, fault = read(bytes(data))
    assert [s.key for s in samples] == ["0"]
    assert fault is not None and fault.reason == "damaged-tar" and "bad checksum" in fault.detail


def test_joined_tars() -> None:
    """`cat a.tar b.tar` loses b in silence."""
    samples, fault = read(make_tar(None, [("a.jpg", b"1")]) + make_tar(None, [("b.jpg", b"2")]))
    assert [s.key for s in samples] == ["a"]
    assert fault is not None and fault.reason == "data-after-end" and "separate shards" in fault.detail


@pytest.mark.parametrize("size", [2**40, 2**80, -1])
@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
def test_hostile_sizes(size: int, type: bytes) -> None:
    """A long name of a terabyte was read into memory, a member skipped for minutes beyond the end, a
    negative size moved tarfile backwards for ever."""
    hostile = tarfile.TarInfo("b.jpg")
    hostile.size, hostile.type = size, type
    content = _content(make_tar(None, [("a.jpg", b"image")]))
    samples, fault = read(content + hostile.tobuf(tarfile.GNU_FORMAT) + bytes(4 * BLOCK))
    assert fault is not None
    assert [s.key for s in samples] == (["a"] if size == 2**40 and type == tarfile.REGTYPE else [])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_but_bad_shard_comes_out_of_damaged_bytes(data: st.DataObject) -> None:
    """tarfile lets ValueError, TypeError and others out for hostile headers."""
    tar = bytearray(make_tar(None, [("é" * 80 + f"{i}.jpg", b"image" * 100) for i in range(3)]))
    for _ in range(data.draw(st.integers(1, 6))):
        tar[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    read(bytes(tar))


class Faulty(io.BytesIO):
    """Gives some bytes, then raises."""

    def __init__(self, data: bytes, after: int, error: Exception) -> None:
        super().__init__(data)
        self.after, self.error = after, error

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() + (size or 0) > self.after:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("after", [0, 100_000])
@pytest.mark.parametrize("error", [TimeoutError("read timed out"), RuntimeError("the client's own type")])
def test_storage_errors_are_no_truncation(
    monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes], after: int, error: Exception
) -> None:
    noise = random.Random(0)
    data = compress(make_tar(None, [(f"{i}.jpg", noise.randbytes(30_000)) for i in range(10)]))
    shard = shard_of(data, URL)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: Faulty(data, after, error))
    samples = []
    with pytest.raises(OSError, match=str(error)):
        for sample in read_shard(shard, SPEC):
            samples.append(sample)
    assert len(samples) < 10
    assert samples or after == 0 or compress is not bytes  # bzip2 gives nothing before its first large block


def test_less_than_listed_is_a_storage_error() -> None:
    """A connection that ends early without an error looked like a truncated tar."""
    data = make_tar(None, [("a.jpg", bytes(5000))])
    file: IO[bytes] = io.BytesIO(data[:3000])
    with pytest.raises(OSError, match=f"storage gave 3000 bytes of the {len(data)}"):
        list(TarStream(file, "s3://bucket/a.tar", len(data)))
