"""Images to shards: same bytes each time, no image lost or merged with another."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import webdataset
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shard_writer import write_shards
from pipeline.shards import Sample, list_shards, read_shard
from schemas.spec import Input


def make(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def read(urls: list[str]) -> dict[str, Sample]:
    spec = Input(shards=urls)
    return {sample.key: sample for shard in list_shards(spec) for sample in read_shard(shard, spec)}


def test_keys_images_and_captions(tmp_path: Path) -> None:
    images = {
        "b/my.photo.v2.JPG": b"dots",
        "a.jpg": b"jpg",
        "a.png": b"png",
        "a_png.webp": b"has the name that a.png was given",
        "a.txt": b"a caption",
        "v1.0/c.jpeg": b"dots in a folder",
        "__set__/d.jpg": b"a folder that WebDataset skips",
        "new\nline.jpg": b"control character",
    }
    others = {".hidden.jpg": b"1", ".cache/e.jpg": b"2", "notes.md": b"3", "only.txt": b"4"}
    urls = write_shards([make(tmp_path / "in", images | others)], str(tmp_path / "out"), 3)
    assert urls == [str(tmp_path / "out" / f"shard-00000{i}.tar") for i in range(3)]
    samples = read(urls)
    assert {key: (sample.image, sample.caption, sample.reason) for key, sample in samples.items()} == {
        "a": (b"jpg", "a caption", None),
        "a_png": (b"png", "a caption", None),
        "a_png_webp": (images["a_png.webp"], None, None),
        "b/my_photo_v2": (b"dots", None, None),
        "v1.0/c": (images["v1.0/c.jpeg"], None, None),
        "_set__/d": (images["__set__/d.jpg"], None, None),
        "new_line": (b"control character", None, None),
    }
    theirs = webdataset.WebDataset(urls, shardshuffle=False)
    assert [sample["__key__"] for sample in theirs] == list(samples)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("ab._/", min_size=1, max_size=6), st.sampled_from(["jpg", "JPG", "png", "jpeg"])),
        min_size=1,
        max_size=8,
    )
)
def test_every_image_gets_a_key_of_its_own(names: list[tuple[str, str]]) -> None:
    fs = fsspec.filesystem("memory")
    fs.rm("/w", recursive=True) if fs.exists("/w") else None
    files = {f"/w/in/x{stem.replace('..', '').strip('/')}.{extension}" for stem, extension in names}
    files = {file for file in files if "//" not in file and "/." not in file}
    for file in files:
        fs.pipe_file(file, file.encode())
    if not files:
        return
    samples = read(write_shards(["memory://w/in"], "memory://w/out", 3))
    assert sorted((sample.image or b"").decode() for sample in samples.values()) == sorted(files)


def test_same_bytes_each_time(tmp_path: Path) -> None:
    """Names, times and owners in a tar made the ETag, and so the shard's version, change."""
    source = make(tmp_path / "in", {f"{i}.jpg": bytes([i]) * 100 for i in range(5)})
    first = write_shards([source], str(tmp_path / "one"), 5)
    for file in (tmp_path / "in").iterdir():
        file.touch()
    second = write_shards(
        [*map(str, sorted((tmp_path / "in").iterdir(), reverse=True))], str(tmp_path / "two"), 5
    )
    assert Path(first[0]).read_bytes() == Path(second[0]).read_bytes()


def test_files_and_folders_each_once(tmp_path: Path) -> None:
    source = make(tmp_path, {"in/a.jpg": b"a", "in/b.jpg": b"b", "c.jpg": b"c", "c.txt": b"text"})
    urls = write_shards(
        [f"{source}/in", f"{source}/in/a.jpg", f"{source}/c.jpg"], "memory://written/once", 10
    )
    samples = read(urls)
    assert {key: sample.image for key, sample in samples.items()} == {"a": b"a", "b": b"b", "c": b"c"}
    assert samples["c"].caption == "text"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file or folder"),
        ("empty", "no images"),
        ("a.gif", "not an image; allowed .* jpg, jpeg"),
    ],
)
def test_wrong_inputs(name: str, message: str, tmp_path: Path) -> None:
    make(tmp_path, {"empty/notes.md": b"1", "a.gif": b"2"})
    with pytest.raises(ValueError, match=f"{name}.*{message}|{message}.*{name}"):
        write_shards([str(tmp_path / name)], str(tmp_path / "out"), 10)
    assert not (tmp_path / "out").exists()


def test_wrong_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples per shard is 0; a shard needs at least 1"):
        write_shards([make(tmp_path, {"a.jpg": b"a"})], str(tmp_path / "out"), 0)


def test_shards_are_never_mixed(tmp_path: Path) -> None:
    """Fewer images than the last time left old shards behind the new ones."""
    source = make(tmp_path / "in", {"a.jpg": b"a"})
    write_shards([source], str(tmp_path / "out"), 10)
    with pytest.raises(ValueError, match=r"already holds shards .* give an empty folder"):
        write_shards([source], str(tmp_path / "out"), 10)


def test_half_written_shards_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a tar after an error gives it an end mark, so it would pass for a whole one."""
    source = make(tmp_path / "in", {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c"})
    real = LocalFileSystem.cat_file

    def failing(self: LocalFileSystem, path: str, *args: object) -> bytes:
        if path.endswith("c.jpg"):
            raise OSError("disk on fire")
        data: bytes = real(self, path, *args)
        return data

    monkeypatch.setattr(LocalFileSystem, "cat_file", failing)
    with pytest.raises(OSError, match="disk on fire"):
        write_shards([source], str(tmp_path / "out"), 2)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["shard-000000.tar"]
