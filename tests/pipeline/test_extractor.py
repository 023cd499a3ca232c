"""Features of pictures at hand, which must be those that a job stores for the same samples."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from pipeline import FeatureStore, sources
from pipeline.bad import BadSample
from pipeline.extractor import FeatureExtractor
from pipeline.identity import IdentityError, identity
from pipeline.layouts import layouts
from schemas.receipts import Manifest
from schemas.selected import selected
from schemas.spec import ExtractSpec
from tests import selections, stores
from tests.controls import write_controlnet
from tests.engines import TAPS, copy_backbone, group, make_spec
from tests.tars import encode, jpeg, pixels, png

NAMES = [f"{name}/{tap}" for name in ("plain", "caption") for tap in stores.TAPS]


@pytest.fixture
def store(built: Path) -> FeatureStore:
    """Made by the real job; see `tests.stores` for what is in it."""
    return FeatureStore(str(built / "store"))


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    """Of one group, with a fixed prompt."""
    return FeatureExtractor(make_spec())


def stored(store: FeatureStore, shard: str, keys: Sequence[str]) -> dict[str, Any]:
    """The rows of some samples."""
    places = {(line["shard"], line["key"]): line["row"] for line in store.index.to_pylist()}
    return store.read([places[shard, key] for key in keys], NAMES)


@pytest.mark.parametrize("by", ["spec", "store"])
def test_equals_the_stored_rows(store: FeatureStore, by: str) -> None:
    """Byte for byte, for any company and order; the job computed 0 to 3 in one batch and 5 in another."""
    extract = (
        FeatureExtractor.from_store(store.url)
        if by == "store"
        else FeatureExtractor(stores.spec_of(Path(store.url), ["unused"]))
    )
    keys = ["3", "5", "0", "2", "1"]
    found = extract(
        [jpeg(40, 60, seed=int(key)) for key in keys],
        ids=[("a.tar", key) for key in keys],
        captions=[f"picture {key}" for key in keys],
    )
    expected = stored(store, "a.tar", keys)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.dtype == found[name].dtype and values.tobytes() == found[name].tobytes()
    (alone,) = extract([jpeg(60, 40, seed=11)], ids=[("sub/b.tar", "1")], captions=["another picture"])[
        NAMES[2]
    ]
    assert alone.tobytes() == stored(store, "sub/b.tar", ["1"])[NAMES[2]][0].tobytes()


def test_pooled_equals_the_stored_vectors(store: FeatureStore) -> None:
    """They are means before the cast, which maps no longer tell."""
    found = FeatureExtractor.from_store(store.url).pooled(
        [jpeg(40, 60, seed=5), jpeg(40, 60, seed=0)],
        ids=[("a.tar", "5"), ("a.tar", "0")],
        captions=["picture 5", "picture 0"],
    )
    keys = {line["row"]: (line["shard"], line["key"]) for line in store.index.to_pylist()}
    table = store.pooled(NAMES)
    places = [keys[row] for row in table["row"].to_pylist()]
    for name in NAMES:
        assert found[name].dtype == np.float32
        for vector, key in zip(found[name], ("5", "0"), strict=True):
            assert vector.tolist() == table[name][places.index(("a.tar", key))].as_py()


def test_some_taps_of_a_store(store: FeatureStore) -> None:
    """A head that reads one group must not pay for all, nor be asked for captions that it does not need."""
    extract = FeatureExtractor.from_store(store.url, taps=[NAMES[0]])
    found = extract([jpeg(40, 60, seed=1)], ids=[("a.tar", "1")])
    assert list(found) == [NAMES[0]] and extract._engine.calls["network"] == 1
    assert found[NAMES[0]].tobytes() == stored(store, "a.tar", ["1"])[NAMES[0]].tobytes()
    assert list(extract.pooled([jpeg(8, 8)])) == [NAMES[0]]
    with pytest.raises(KeyError, match="has no 'plain/up'; nearest of 4: "):
        FeatureExtractor.from_store(store.url, taps=["plain/up"])


def write_manifest(spec: ExtractSpec, folder: Path) -> str:
    """A folder with the manifest that a job would give its store; the folder."""
    located = sources.locate(spec.backbone)
    arrays = layouts(spec, located)
    manifest = Manifest(
        gatehouse="0",
        identity=identity(spec, located, arrays),
        arrays=arrays,
        rows_per_block=1,
        rows_per_extent=1,
        spec=spec.model_dump(mode="json"),
        libraries={},
    )
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return str(folder)


def test_a_group_of_several_times(tmp_path: Path) -> None:
    """Its parts have names of their own, and only those that are asked for are computed."""
    url = write_manifest(make_spec(group("a", t=[50, 100], taps=TAPS[:1]), group("b")), tmp_path / "store")
    extract = FeatureExtractor.from_store(url, taps=[f"a-t100/{TAPS[0]}"])
    whole = FeatureExtractor.from_store(url)
    assert extract._engine.network_calls == 1 and whole._engine.network_calls == 2
    name = f"a-t100/{TAPS[0]}"
    assert extract([jpeg(8, 8)])[name].tobytes() == whole([jpeg(8, 8)])[name].tobytes()


def test_weights_of_groups_that_are_left_out_are_not_needed(tmp_path: Path) -> None:
    control = write_controlnet(tmp_path / "control")
    technique = {"type": "controlnet", "source": control, "image": "field:depth.png"}
    spec = make_spec(group(taps=TAPS[-1:]), group("edges", taps=TAPS[-1:], techniques=[technique]))
    url = write_manifest(spec, tmp_path / "store")
    shutil.rmtree(control)
    with pytest.raises(ValueError, match="control"):
        FeatureExtractor.from_store(url)
    found = FeatureExtractor.from_store(url, taps=[f"plain/{TAPS[-1]}"])([jpeg(8, 8)])
    assert list(found) == [f"plain/{TAPS[-1]}"]


def test_tiles_lie_where_the_store_has_them(tmp_path: Path) -> None:
    """Their places follow from every map's resolution: without the coarsest ones they moved, and values with them."""
    fine, coarse = "down-level0-repeat0-res-out", "up-level0-upsampler-out"
    spec = make_spec(
        group(taps=[fine]),
        group("coarse", taps=[coarse]),
        image_size=[64, 160],
        tiles={"size": [64, 64], "overlap": 8},
    )
    url = write_manifest(spec, tmp_path / "store")
    some, whole = (FeatureExtractor.from_store(url, taps=taps) for taps in ([f"plain/{fine}"], None))
    found, expected = some([jpeg(64, 160)]), whole([jpeg(64, 160)])
    assert list(found) == [f"plain/{fine}"] and len(expected) == 2
    assert found[f"plain/{fine}"].tobytes() == expected[f"plain/{fine}"].tobytes()
    assert some._engine._tiling == whole._engine._tiling


def test_from_a_store_whose_backbone_moved(store: FeatureStore, tmp_path: Path) -> None:
    folder = copy_backbone(tmp_path / "moved")
    extract = FeatureExtractor.from_store(store.url, moved={"embedded": str(folder)}, device="cpu")
    found = extract([jpeg(40, 60, seed=1)], ids=[("a.tar", "1")], captions=["picture 1"])
    assert found[NAMES[0]].tobytes() == stored(store, "a.tar", ["1"])[NAMES[0]].tobytes()


def test_another_backbone_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    """A head trained on a store would be given features of another model."""
    folder = copy_backbone(tmp_path / "other", beta_end=0.013)
    with pytest.raises(
        IdentityError, match="other': the files found on this machine are not those that the store's"
    ):
        FeatureExtractor.from_store(store.url, moved={"embedded": str(folder)})


def test_a_selection_for_another_backbone_is_refused() -> None:
    made = selections.selection(group())
    path = f"memory://{made.backbone}/selection.json"
    with fsspec.open(path, "wb") as file:
        file.write(made.to_bytes())
    groups, found = selected(path)
    spec = make_spec(*groups).model_copy(update={"selection": found})
    with pytest.raises(ValueError, match=r"selection\.json was selected for the backbone 'embedded'"):
        FeatureExtractor(spec)


def test_scores_are_left_to_jobs(extractor: FeatureExtractor) -> None:
    """Their passes would be computed for nothing."""
    scored = FeatureExtractor(make_spec(output={"scores": {}}))
    assert scored.spec.output.scores is not None
    found, same = scored([jpeg(8, 8)]), extractor([jpeg(8, 8)])
    assert scored._engine.calls["network"] == 1
    assert all(values.tobytes() == same[name].tobytes() for name, values in found.items())


def test_bytes_pil_images_and_arrays_agree(extractor: FeatureExtractor) -> None:
    image = pixels(40, 60, seed=1)
    given: list[Any] = [png(40, 60, seed=1), Image.fromarray(image), image]
    found = extractor(given, ids=[("a", "b")] * 3)
    for values in found.values():
        assert values[0].tobytes() == values[1].tobytes() == values[2].tobytes()
    grey = Image.fromarray(image[..., 0])
    same = extractor([grey, encode(grey, "PNG")], ids=[("a", "b")] * 2)
    assert all(values[0].tobytes() == values[1].tobytes() for values in same.values())


def test_pil_images_are_turned_upright(extractor: FeatureExtractor) -> None:
    """As a job does with their bytes: a phone's photograph lay on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(pixels(40, 60)), "JPEG", exif=exif)
    found = extractor([data, Image.open(BytesIO(data))], ids=[("a", "b")] * 2)
    assert all(values[0].tobytes() == values[1].tobytes() for values in found.values())


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "CMYK"])
def test_pil_images_that_a_job_would_convert_otherwise(extractor: FeatureExtractor, mode: str) -> None:
    """PIL drops transparency and clips 16 bits, where a job lays the picture over white and scales."""
    with pytest.raises(
        ValueError, match=f"a PIL image of mode {mode}; give the file's bytes, or convert it to RGB"
    ):
        extractor([Image.new(mode, (8, 8))])


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32 \[8, 8, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]"),
    ],
)
def test_arrays_that_are_no_pictures(extractor: FeatureExtractor, array: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"an array {found}; images are uint8 \[H, W, 3\]"):
        extractor([array])


def test_noise_follows_the_picture_without_ids(extractor: FeatureExtractor) -> None:
    """The same picture has the same features each time, in any company."""
    first = extractor([jpeg(8, 8, 1), jpeg(8, 8, 2)])
    again = extractor([jpeg(8, 8, 3), jpeg(8, 8, 2), jpeg(8, 8, 1)])
    for name in first:
        assert first[name][0].tobytes() == again[name][2].tobytes()
        assert first[name][1].tobytes() == again[name][1].tobytes()


def test_more_than_a_batch_and_none_at_all(extractor: FeatureExtractor) -> None:
    images = [jpeg(8, 8, seed) for seed in range(5)]
    found, empty = extractor(images), extractor([])
    assert list(found) == list(empty) == [f"plain/{tap}" for tap in TAPS]
    for name, values in found.items():
        assert len(values) == 5 and empty[name].shape == (0, *values.shape[1:])
        assert empty[name].dtype == values.dtype == np.float16
        assert values[4].tobytes() == extractor(images[4:])[name][0].tobytes()


def test_captions_missing() -> None:
    extract = FeatureExtractor(make_spec(group("words", prompt="{caption}", taps=TAPS[:1])))
    with pytest.raises(
        ValueError,
        match=r"the prompt of group 'words' has \{caption\}; give `captions`, a text for each image",
    ):
        extract([jpeg(8, 8)])
    assert extract([jpeg(8, 8)], captions=[""])[f"words/{TAPS[0]}"].shape[0] == 1


@pytest.mark.parametrize("given", [{"ids": [("a", "b")]}, {"captions": ["one", "two", "three"]}])
def test_one_of_each_for_an_image(extractor: FeatureExtractor, given: dict[str, Any]) -> None:
    """Fewer ids than images left the last ones without noise, and nobody noticed."""
    with pytest.raises(
        ValueError, match=f"2 images, but {len(next(iter(given.values())))} {next(iter(given))}; give one"
    ):
        extractor([jpeg(8, 8), jpeg(8, 8)], **given)


def test_a_picture_that_cannot_be_decoded(extractor: FeatureExtractor) -> None:
    with pytest.raises(BadSample, match="undecodable-image"):
        extractor([b"no picture"])


def test_a_value_that_does_not_fit(extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinity is no feature; of five images, the one is named by its place among all, not in its batch."""
    engine = extractor._engine
    real, batches = engine.backbone.predict, []

    def predict(inputs: dict[str, Any]) -> Any:
        batches.append(inputs)
        return real(inputs | {"sample": inputs["sample"] * (1e6 if len(batches) == 2 else 1)})

    monkeypatch.setattr(engine.backbone, "predict", predict)
    with pytest.raises(ValueError, match="image 4: group 'plain' failed: float16-overflow"):
        extractor([jpeg(8, 8, seed) for seed in range(5)])


def test_control_images_and_json_texts(tmp_path: Path) -> None:
    """What samples hold beside the picture is given by name, and what lacks is named with the cure."""
    source = write_controlnet(tmp_path / "control")
    technique = {"type": "controlnet", "source": source, "image": "field:depth.png"}
    extract = FeatureExtractor(
        make_spec(group("a", prompt="a {json:place}", taps=TAPS[-1:], techniques=[technique]), fit="pad")
    )
    given: dict[str, Any] = {"json": {"place": ["shore"]}, "fields": {"depth.png": [png(40, 60, 2)]}}
    found = extract([jpeg(40, 60)], **given)[f"a/{TAPS[-1]}"]
    for name, other in (("json", {"place": ["hill"]}), ("fields", {"depth.png": [png(40, 60, 3)]})):
        assert extract([jpeg(40, 60)], **given | {name: other})[f"a/{TAPS[-1]}"].tobytes() != found.tobytes()
    with pytest.raises(
        ValueError, match=r"the prompt of group 'a' has \{json:place\}; give `json\['place'\]`"
    ):
        extract([jpeg(40, 60)], fields=given["fields"])
    with pytest.raises(
        ValueError, match=r"a ControlNet takes 'depth.png'; give `fields\['depth.png'\]`, an image"
    ):
        extract([jpeg(40, 60)], json=given["json"])
    with pytest.raises(ValueError, match=r"2 images, but 1 json\['place'\]; give one for each image"):
        extract([jpeg(40, 60)] * 2, **given)
