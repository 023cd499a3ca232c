"""Published masks: each as class ids of its image's size, or a problem that names its file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.public.dataset import PublicDataset
from pipeline.public.folder import Folder
from pipeline.public.masks import SplitFolders, as_png, segmentation
from tests.tars import encode, jpeg

MEANING = {0: 255, 1: 0, 7: 1}
CLASSES = ("one", "seven")


def find(root: Path, suffix: str = ".png", splits: Sequence[str] = ("train",)) -> PublicDataset:
    layout = [SplitFolders(split, f"images/{split}", ".jpg", f"masks/{split}", suffix) for split in splits]
    folder = Folder(str(root), "set", ["images", "masks"])
    return segmentation("horse21", folder, layout, CLASSES, MEANING)


def write(
    root: Path, name: str, mask: bytes | None, suffix: str = ".png", image: bytes | None = None
) -> None:
    """An image of 4 x 6 pixels (height x width) and a mask."""
    for folder, extension, data in (("images", ".jpg", image or jpeg(4, 6)), ("masks", suffix, mask)):
        path = root / folder / "train" / f"{name}{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)


def grey(ids: object) -> bytes:
    return as_png(np.asarray(ids, np.uint8))


def npy(ids: object, *, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(ids), allow_pickle=pickled)
    return buffer.getvalue()


def written(found: PublicDataset, place: int = 0) -> NDArray[np.uint8]:
    """What a sample's seg.png holds."""
    mask = Image.open(io.BytesIO(found.sample(found.splits["train"][place])["seg.png"]))
    assert mask.mode == "L"
    return np.asarray(mask)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(sorted(MEANING)), min_size=24, max_size=24))
def test_ids_get_their_meaning(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    root = tmp_path_factory.mktemp("set")
    mask = np.array(ids, np.uint8).reshape(4, 6)
    write(root, "a", grey(mask))
    assert np.array_equal(written(find(root)), [[MEANING[int(id)] for id in row] for row in mask])


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_arrays_of_any_type_of_number(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, "a", npy(np.full((4, 6), 7, dtype)), ".npy")
    assert (written(find(tmp_path, ".npy")) == 1).all()


def test_a_palette_mask_is_its_indices(tmp_path: Path) -> None:
    """Its colours are for people."""
    mask = Image.fromarray(np.full((4, 6), 7, np.uint8), "P")
    mask.putpalette([200, 10, 10] * 256)
    write(tmp_path, "a", encode(mask, "PNG"))
    assert (written(find(tmp_path)) == 1).all()


def test_a_sample_is_the_image_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "deep/a", grey(np.ones((4, 6))), image=jpeg(4, 6, 5))
    found = find(tmp_path)
    sample = found.sample(found.splits["train"][0])
    assert sample["__key__"] == "train/deep/a"
    assert sample["jpg"] == jpeg(4, 6, 5)


BAD_MASKS = [
    (".png", None, r"images/train/bad\.jpg: no mask"),
    (".png", grey(np.ones((6, 4))), r"masks/train/bad\.png: 6 x 4 pixels .* its image has 4 x 6"),
    (".png", grey(np.full((4, 6), 9)), r"masks/train/bad\.png: has id 9; expected 0 to 7"),
    (".png", jpeg(4, 6), r"masks/train/bad\.png: is no PNG, or damaged"),
    (".png", grey(np.ones((4, 6)))[:45], r"masks/train/bad\.png: is no PNG, or damaged"),
    (
        ".png",
        encode(Image.new("RGB", (6, 4)), "PNG"),
        r"bad\.png: has pixels of mode RGB; expected 8-bit grey",
    ),
    (".npy", npy(np.full((4, 6), 0.5)), r"bad\.npy: has values from 0\.5 to 0\.5; expected whole ids"),
    (".npy", npy(np.full((4, 6), -1)), r"bad\.npy: has values from -1 to -1"),
    (".npy", npy(np.full((4, 6), np.nan)), r"bad\.npy: has values from nan"),
    (".npy", npy(np.ones((4, 6, 3))), r"bad\.npy: is no array of numbers \[H, W\]"),
    (".npy", npy([[{}]], pickled=True), r"bad\.npy: is no array of numbers, or damaged"),
    (".npy", b"", r"bad\.npy: is no array of numbers, or damaged"),
]


@pytest.mark.parametrize(("suffix", "mask", "message"), BAD_MASKS)
def test_a_bad_mask_is_named(tmp_path: Path, suffix: str, mask: bytes | None, message: str) -> None:
    good = npy(np.ones((4, 6))) if suffix == ".npy" else grey(np.ones((4, 6)))
    write(tmp_path, "a", good, suffix)
    write(tmp_path, "bad", mask, suffix)
    with pytest.raises(ValueError, match=f"1 problems with . images with masks: .*{message}"):
        find(tmp_path, suffix)


def test_a_mask_without_its_image(tmp_path: Path) -> None:
    """The rest of an archive that was not unpacked to its end."""
    write(tmp_path, "a", grey(np.ones((4, 6))))
    (tmp_path / "masks" / "train" / "b.png").write_bytes(grey(np.ones((4, 6))))
    with pytest.raises(ValueError, match=r"masks/train/b\.png: no image"):
        find(tmp_path)


def test_an_image_that_is_none(tmp_path: Path) -> None:
    write(tmp_path, "a", grey(np.ones((4, 6))), image=b"not found")
    with pytest.raises(ValueError, match=r"images/train/a\.jpg: is no JPEG or PNG"):
        find(tmp_path)


def test_a_name_that_would_be_another_key(tmp_path: Path) -> None:
    """`a.1` and `a.2` are the same sample in a shard."""
    write(tmp_path, "a.1", grey(np.ones((4, 6))))
    with pytest.raises(ValueError, match=r"a\.1\.jpg: a dot in the name"):
        find(tmp_path)


def test_a_split_without_images(tmp_path: Path) -> None:
    write(tmp_path, "a", grey(np.ones((4, 6))))
    with pytest.raises(ValueError, match=r"images/test: no images \*\.jpg"):
        find(tmp_path, splits=("train", "test"))


def test_many_problems_are_counted(tmp_path: Path) -> None:
    for number in range(9):
        write(tmp_path, f"a{number}", None if number % 2 else grey(np.full((4, 6), 9)))
    with pytest.raises(
        ValueError, match=r"9 problems with 5 images .*; and 4 more\. .* unpack it again"
    ) as caught:
        find(tmp_path)
    assert str(caught.value).count("no mask") == 4  # those come first, and one of the others
