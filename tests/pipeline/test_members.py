"""Members are found under the keys that the extraction gave them, and a store's names are never trusted."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline import FeatureDataset, embedded
from pipeline.listing import Shard
from pipeline.members import MemberIndex
from pipeline.shards import read_shard
from schemas.spec import Input
from tests.tars import Member, header, make_tar


def test_reads_the_members_of_a_sample(tmp_path: Path) -> None:
    """By shard and key, since keys repeat across shards; fields in lower case, as `Input` has them."""
    (tmp_path / "sub").mkdir()
    make_tar(tmp_path / "a.tar", [("x/1.JPG", b"one"), ("x/1.seg.png", b"mask"), ("x/2.jpg", b"two")])
    make_tar(tmp_path / "sub" / "b.tar", [("x/1.jpg", b"other")])
    index = MemberIndex(str(tmp_path))
    assert index.read("a.tar", "x/1") == {"jpg": b"one", "seg.png": b"mask"}
    assert index.read("a.tar", "x/2") == {"jpg": b"two"}
    assert index.read("sub/b.tar", "x/1") == {"jpg": b"other"}


def test_only_the_fields_asked_for(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("1.JPG", b"one"), ("1.seg.png", b"mask"), ("1.json", b"{}")])
    assert MemberIndex(str(tmp_path), ["SEG.png", "jpg"]).read("a.tar", "1") == {
        "jpg": b"one",
        "seg.png": b"mask",
    }


def test_embedded_shards() -> None:
    shard = Path(embedded.SHARDS, "scenes-000.tar")
    with tarfile.open(shard) as tar:
        key = tar.getnames()[0].partition(".")[0]
    members = MemberIndex("embedded", ["txt"]).read(shard.name, key)
    assert members.keys() == {"txt"}
    assert shard.read_bytes().find(members["txt"]) > 0


@pytest.mark.parametrize(
    "members",
    [
        [("1.jpg", b"one"), ("2.jpg", b"two"), ("1.jpg", b"again"), ("1.png", b"later")],
        [(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), b"one")],
        [("new\nline.jpg", b"one"), ("ok.jpg", b"two")],
        [
            ("__MACOSX/1.jpg", b"meta"),
            ("._1.jpg", b"hidden"),
            ("1.jpg", b"one"),
            header("dir", tarfile.DIRTYPE),
        ],
        [
            ("1.jpg", b"one"),
            header("1.png", tarfile.SYMTYPE, "/etc/passwd"),
            header("2.jpg", tarfile.LNKTYPE, "1.jpg"),
        ],
    ],
)
def test_agrees_with_what_was_extracted(tmp_path: Path, members: list[Member]) -> None:
    """A join by other rules would put another sample's mask beside a row's features."""
    make_tar(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    path = tmp_path / "a.tar"
    index = MemberIndex(str(tmp_path))
    samples = list(read_shard(Shard("a.tar", str(path), path.stat().st_size, ""), Input(shards=str(path))))
    good = [sample for sample in samples if sample.image is not None]
    assert good
    for sample in good:
        found = index.read("a.tar", sample.key)
        assert found["jpg"] == sample.image
        assert b"/etc/passwd" not in found.values()


def test_links_are_left_out(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one"), header("1.png", tarfile.SYMTYPE, "/etc/passwd")])
    assert MemberIndex(str(tmp_path)).read("a.tar", "1") == {"jpg": b"one"}


@pytest.mark.parametrize("shard", ["../secret.tar", "/etc/secret.tar", "sub/../../secret.tar"])
def test_ids_do_not_leave_the_root(tmp_path: Path, shard: str) -> None:
    """Shard ids come from a store, which may come from a stranger."""
    (tmp_path / "root").mkdir()
    make_tar(tmp_path / "secret.tar", [("1.jpg", b"secret")])
    with pytest.raises(ValueError, match="leads out of its root"):
        MemberIndex(str(tmp_path / "root")).read(shard, "1")


def test_ids_are_no_urls(tmp_path: Path) -> None:
    """fsspec would open what follows `::` in a URL, wherever it is."""
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one")])
    with pytest.raises(FileNotFoundError, match="has no shard"):
        MemberIndex(str(tmp_path)).read(f"x::file://{tmp_path}/a.tar", "1")


def test_what_is_not_there(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one")])
    index = MemberIndex(str(tmp_path))
    with pytest.raises(KeyError, match=r"shard 'a.tar' has no sample '2'; is it the one extracted"):
        index.read("a.tar", "2")
    with pytest.raises(
        FileNotFoundError, match=r"has no shard 'b.tar'; give the folder or URL that shard ids start"
    ):
        index.read("b.tar", "1")


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    """Offsets into them mean nothing, so bytes read there would be garbage."""
    (tmp_path / "a.tar").write_bytes(gzip.compress(make_tar(None, [("1.jpg", b"one")])))
    with pytest.raises(ValueError, match="compressed, which rules out random access; unpack it"):
        MemberIndex(str(tmp_path)).read("a.tar", "1")


def test_a_truncated_shard_keeps_its_whole_samples(tmp_path: Path) -> None:
    """Rows exist for the samples before the cut, and none for the one that it went through."""
    data = make_tar(None, [("1.jpg", b"one"), ("2.jpg", b"two" * 1000)])
    (tmp_path / "a.tar").write_bytes(data[: 512 * 4])
    index = MemberIndex(str(tmp_path))
    assert index.read("a.tar", "1") == {"jpg": b"one"}
    with pytest.raises(KeyError, match="has no sample '2'"):
        index.read("a.tar", "2")


def test_large_members_are_refused(tmp_path: Path) -> None:
    """A header may promise more than memory holds."""
    make_tar(tmp_path / "a.tar", [("1.jpg", b"x" * 101)])
    with pytest.raises(ValueError, match=r"a.tar: 1.jpg has 101 bytes; max_member_bytes allows 100"):
        MemberIndex(str(tmp_path), max_member_bytes=100).read("a.tar", "1")


def test_a_shard_that_shrank(tmp_path: Path) -> None:
    """Storage may give less than was asked for without an error."""
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one"), ("2.jpg", b"two")])
    index = MemberIndex(str(tmp_path))
    index.read("a.tar", "1")
    (tmp_path / "a.tar").write_bytes(b"short")
    with pytest.raises(OSError, match="has 3 bytes by its header, 0 were read; was the shard changed"):
        index.read("a.tar", "2")


def test_errors_of_storage_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec returns them among the results unless told otherwise, and they would pass for a member's bytes."""
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one")])
    index = MemberIndex(str(tmp_path))
    index.read("a.tar", "1")

    def fails(*args: object, **options: object) -> bytes:
        raise OSError("the disk is gone")

    monkeypatch.setattr(LocalFileSystem, "cat_file", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        index.read("a.tar", "1")


def test_headers_are_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one"), ("2.jpg", b"two")])
    index = MemberIndex(str(tmp_path))
    walked: list[str] = []
    walk = index._walk
    monkeypatch.setattr(index, "_walk", lambda shard: walked.append(shard) or walk(shard))  # type: ignore[func-returns-value]
    for key in ("1", "2", "1"):
        index.read("a.tar", key)
    assert walked == ["a.tar"]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 shards' members do not fit each DataLoader worker."""
    monkeypatch.setattr("pipeline.members._SHARDS_KEPT", 2)
    for name in "abc":
        make_tar(tmp_path / name, [("1.jpg", name.encode())])
    index = MemberIndex(str(tmp_path))
    for name in "abacab":
        assert index.read(name, "1") == {"jpg": name.encode()}
        assert len(index._shards) <= 2
    assert list(index._shards) == ["a", "b"]


def test_pickles(tmp_path: Path) -> None:
    """DataLoader hands it to its workers."""
    make_tar(tmp_path / "a.tar", [("1.jpg", b"one")])
    index = MemberIndex(str(tmp_path))
    index.read("a.tar", "1")
    assert pickle.loads(pickle.dumps(index)).read("a.tar", "1") == {"jpg": b"one"}


def test_joined_with_a_store(built: Path) -> None:
    """Each row's own members: 0 to 5 of a.tar and 0 to 2 of sub/b.tar have the same keys in part."""
    dataset = FeatureDataset(
        str(built / "store"), ["plain/up-level0-upsampler-out"], join=str(built / "shards")
    )
    for item in (dataset[place] for place in range(len(dataset))):
        mask = item["members"].get("seg.png")
        assert mask == (f"mask {item['key']}".encode() if item["shard"] == "a.tar" else None)


def test_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order asked for, with one round of requests: one by one, an object store is slow."""
    make_tar(
        tmp_path / "a.tar", [("1.jpg", b"one"), ("1.txt", b"text"), ("2.jpg", b"two"), ("3.png", b"three")]
    )
    make_tar(tmp_path / "b.tar", [("1.jpg", b"other")])
    index = MemberIndex(str(tmp_path), ["jpg", "txt"])
    rounds = []
    read = LocalFileSystem.cat_ranges

    def counted(*args: Any, **more: Any) -> Any:
        rounds.append(1)
        return read(*args, **more)

    monkeypatch.setattr(LocalFileSystem, "cat_ranges", counted)
    samples = [("b.tar", "1"), ("a.tar", "3"), ("a.tar", "2"), ("b.tar", "1"), ("a.tar", "1")]
    assert index.read_many(samples) == [
        {"jpg": b"other"},
        {},
        {"jpg": b"two"},
        {"jpg": b"other"},
        {"jpg": b"one", "txt": b"text"},
    ]
    assert len(rounds) == 1
    assert index.read_many([]) == []
