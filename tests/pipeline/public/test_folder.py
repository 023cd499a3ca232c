"""A data set's folder is found as people have it, and looked at no more than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline.public.folder import Folder
from tests.tars import encode, jpeg, png


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set with a picture and a list."""
    (tmp_path / "set" / "images" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "images" / "deep" / "a.jpg").write_bytes(jpeg(30, 40))
    (tmp_path / "set" / "list.txt").write_bytes(b"a")
    return tmp_path / "set"


@pytest.mark.parametrize("given", ["set", "set/", ""])
def test_the_folder_or_the_one_that_holds_it(root: Path, given: str) -> None:
    folder = Folder(f"{root.parent}/{given}", "set", ["images", "list.txt"])
    assert folder.files("images", ".jpg") == ["images/deep/a.jpg"]
    assert folder.read("list.txt") == b"a"
    assert "list.txt" in folder and "images/b.jpg" not in folder
    assert folder.place("list.txt") == str(root / "list.txt")


def test_links_are_followed_and_hidden_files_are_not_seen(root: Path, tmp_path: Path) -> None:
    """People link the large part of a data set to where it lies; archives from macOS bring `._a.jpg`."""
    (root / "images" / "deep" / "._a.jpg").write_bytes(b"no picture")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "images").symlink_to(root / "images")
    assert Folder(str(linked), "set", ["images"]).files("images", ".jpg") == ["images/deep/a.jpg"]


@pytest.mark.parametrize(
    ("given", "found"), [("set/images", "deep/"), ("set", "images/, list.txt"), ("nowhere", "no such folder")]
)
def test_another_layout(root: Path, given: str, found: str) -> None:
    with pytest.raises(
        ValueError, match=f"looked for images, masks in it and in its set; found {found}. Unpack"
    ):
        Folder(f"{root.parent}/{given}", "set", ["images", "masks"])


def test_a_long_list_of_names_is_cut(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").touch()
    with pytest.raises(ValueError, match=r"found 00.txt, .*, 07.txt, 22 more\."):
        Folder(str(tmp_path), "set", ["images"])


@pytest.mark.parametrize(("make", "cut"), [(jpeg, 700), (png, 60)])
def test_a_size_takes_the_header_alone(root: Path, make: object, cut: int) -> None:
    """Decoding every picture to compare sizes would take longer than all else."""
    assert callable(make)
    (root / "images" / "deep" / "a.jpg").write_bytes(make(300, 400)[:cut])
    assert Folder(str(root), "set", ["images"]).picture_size("images/deep/a.jpg") == (300, 400)


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (30, 40)), (3, (30, 40)), (6, (40, 30)), (8, (40, 30))]
)
def test_a_size_is_that_of_the_upright_picture(root: Path, orientation: int, size: tuple[int, int]) -> None:
    """Which is what features are extracted from."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.new("RGB", (40, 30)), "JPEG", exif=exif)
    (root / "images" / "deep" / "a.jpg").write_bytes(data)
    assert Folder(str(root), "set", ["images"]).picture_size("images/deep/a.jpg") == size


def test_no_picture(root: Path) -> None:
    with pytest.raises(ValueError, match="is no JPEG or PNG"):
        Folder(str(root), "set", ["list.txt"]).picture_size("list.txt")
