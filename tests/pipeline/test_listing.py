"""Patterns to shards: every shard once, under an id that does not depend on how it was named."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import listing
from pipeline.shards import list_shards
from schemas.spec import Input
from tests.tars import make_tar


@pytest.fixture(params=["local", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a folder with train-0..2/{a,b}.tar and notes.txt, locally and not."""
    url = str(tmp_path / "data") if request.param == "local" else f"memory:/{tmp_path}"
    fs, path = fsspec.url_to_fs(url)
    for i in range(3):
        for name in "ab":
            fs.makedirs(f"{path}/train-{i}", exist_ok=True)
            fs.pipe_file(f"{path}/train-{i}/{name}.tar", make_tar(None, []) + bytes(i))
    fs.pipe_file(f"{path}/notes.txt", b"notes")
    return url


@pytest.mark.parametrize(
    ("patterns", "root", "ids"),
    [
        (["train-0/a.tar"], None, ["a.tar"]),
        (["train-0/*.tar"], None, ["a.tar", "b.tar"]),
        (["train-*/a.tar"], None, ["train-0/a.tar", "train-1/a.tar", "train-2/a.tar"]),
        (["**/a.tar"], None, ["train-0/a.tar", "train-1/a.tar", "train-2/a.tar"]),
        (
            ["train-{0..1}/{b,a}.tar"],
            None,
            ["train-0/a.tar", "train-0/b.tar", "train-1/a.tar", "train-1/b.tar"],
        ),
        (["train-{0,2}/[b].tar"], None, ["train-0/b.tar", "train-2/b.tar"]),
        (["train-1/b.tar", "train-0/*.tar"], None, ["train-0/a.tar", "train-0/b.tar", "train-1/b.tar"]),
        (["train-1/a.tar", "train-1/b.tar"], None, ["a.tar", "b.tar"]),
        (["train-1/a.tar"], "", ["train-1/a.tar"]),
        (["train-1/a.tar"], "/train-1/", ["a.tar"]),
    ],
)
def test_patterns(base: str, patterns: list[str], root: str | None, ids: list[str]) -> None:
    shards = [f"{base}/{pattern}" for pattern in patterns]
    spec = Input(shards=shards if len(shards) > 1 else shards[0], root=None if root is None else base + root)
    found = list_shards(spec)
    assert [shard.id for shard in found] == ids
    for shard in found:
        fs, path = fsspec.url_to_fs(shard.url)
        assert shard.size == fs.info(path)["size"] == 10240 + int(path[-7])


def test_version_tells_a_rewritten_shard(base: str) -> None:
    spec = Input(shards=f"{base}/train-0/a.tar")
    (before,) = list_shards(spec)
    assert list_shards(spec) == [before]
    fs, path = fsspec.url_to_fs(before.url)
    fs.pipe_file(path, fs.cat_file(path))
    if base.startswith("/"):
        os.utime(path, ns=(0, int(before.version) + 1))
    (after,) = list_shards(spec)
    assert before.version.isdigit() and before.version != after.version
    assert (before.id, before.url, before.size) == (after.id, after.url, after.size)


@pytest.mark.parametrize(
    ("facts", "version"),
    [
        ({"ETag": '"5d41-2"', "LastModified": datetime(2024, 1, 1, tzinfo=UTC)}, "5d41-2"),
        ({"LastModified": datetime(2024, 1, 1, tzinfo=UTC)}, "1704067200000000000"),
        ({"mtime": 1.5}, "1500000000"),
    ],
)
def test_version_of_an_object(facts: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"name": "/etag/a.tar", "size": 3, "type": "file"} | facts
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: listed)
    (shard,) = list_shards(Input(shards="memory://etag/a.tar"))
    assert (shard.version, shard.size) == (version, 3)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nothing-*.tar", "nothing-.*no such file"),
        ("train-{0..5}/a.tar", r"no such file: \S+/train-3/a.tar, \S+/train-4/a.tar, \S+/train-5/a.tar;"),
        ("train-0/{a..z}.tar", r"no such file: (\S+,? ){5}and 19 more"),
        ("train-{0,9}/*.tar", r"no such file: \S+/train-9/\*.tar;"),
        ("train-0", r"no such file.*add /\*\.tar to a folder"),
        ("train-{0/a.tar", "close each brace"),
    ],
)
def test_what_is_not_there(base: str, pattern: str, message: str) -> None:
    """A typing error in a brace pattern left out shards in silence."""
    with pytest.raises(ValueError, match=message):
        list_shards(Input(shards=f"{base}/{pattern}"))


@pytest.mark.parametrize("together", [0, 1000])
def test_many_names_are_looked_up_by_listing(
    base: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_LISTED_TOGETHER", together)
    assert len(list_shards(Input(shards=f"{base}/train-{{0..2}}/{{a,b}}.tar"))) == 6
    with pytest.raises(ValueError, match=r"no such file: .*train-0/c.tar"):
        list_shards(Input(shards=f"{base}/train-0/{{a,b,c}}.tar"))
    with pytest.raises(ValueError, match=r"no such file: .*none/a.tar"):
        list_shards(Input(shards=f"{base}/none/{{a,b}}.tar"))


def test_a_shard_named_twice(base: str) -> None:
    """It would be extracted twice, into rows of the same identity."""
    with pytest.raises(ValueError, match=r"names \S+train-0/a.tar again; name each shard once"):
        list_shards(Input(shards=[f"{base}/train-0/*.tar", f"{base}/*/a.tar"]))


def test_not_under_root(base: str) -> None:
    for root in ("train-1", "train"):
        with pytest.raises(ValueError, match=r"is not under input\.root"):
            list_shards(Input(shards=f"{base}/train-0/a.tar", root=f"{base}/{root}"))


def test_several_file_systems(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name several file systems .*; a store's shards share one root"):
        list_shards(Input(shards=[f"{tmp_path}/a.tar", "memory://x/a.tar"]))
    with pytest.raises(ValueError, match="name several file systems"):
        list_shards(Input(shards="memory://x/a.tar", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat a.tar", "'pipe:' runs a shell"),
        ("pipe:curl http://x/{0..3}.tar", "'pipe:' runs a shell"),
        ("nonsense://x/a.tar", "no installed fsspec plugin opens 'nonsense'"),
        ("simplecache::memory://x/a.tar", "chained URLs are not supported"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_shards(Input(shards=url))


def test_local_paths_are_made_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shard had another id when named from another folder; links were left out of a glob."""
    make_tar(tmp_path / "a.tar", [])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.tar").symlink_to(tmp_path / "a.tar")
    monkeypatch.chdir(tmp_path / "sub")
    for pattern in ("../a.tar", f"{tmp_path}/sub/../*.tar", f"file://{tmp_path}/a.tar"):
        (shard,) = list_shards(Input(shards=pattern))
        assert (shard.id, shard.url) == ("a.tar", str(tmp_path / "a.tar"))
    (link,) = list_shards(Input(shards="*.tar"))
    assert (link.id, link.size, link.version) == ("link.tar", shard.size, shard.version)
