"""Pairs of stored rows, their points as shares of what the network saw, and the way back to pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import FeatureDataset, FeatureStore
from pipeline.frames import Frame
from pipeline.heads import pairs
from pipeline.heads.choice import choose
from pipeline.heads.examples import ExampleSet
from pipeline.heads.pairs import EXTENTS, POINTS, SCALE, SHIFT, TRUTH, PairDataset, pairs_of, valid
from pipeline.read_ahead import collate
from schemas.dataset import Pair, pairs_name
from tests.labelled import IDS, NAMES, key_of, pair_of, points_of, size_of, spec_of

FILE = pairs_name("test")


def examples(labelled: Path, root: Path | None = None, /, **changes: Any) -> ExampleSet:
    if root is not None:
        changes["labels"] = {"root": str(root), **changes.pop("labels", {})}
    spec = spec_of(labelled, Path("unused"), "correspondence", **changes)
    store = FeatureStore(spec.store)
    return pairs_of(store, choose(store, spec.features), spec)


def write(folder: Path, *some: Pair) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text("".join(f"{pair.model_dump_json()}\n" for pair in some))
    return folder


def test_all_pairs_of_all_files(labelled: Path) -> None:
    found = examples(labelled)
    assert len(found) == 5 * 4 * 2 + 3 * 2 * 2 + 4 * 3 * 2
    assert found.ids[0] == f"{FILE}:00000001" and found.ids[-1] == f"{pairs_name('validation')}:00000012"
    assert (
        set(found.shards) == {FILE, pairs_name("train"), pairs_name("validation")}
        and found.shards.count(FILE) == 24
    )
    assert len(set(found.ids)) == len(found.ids) and not found.skipped


def test_an_item(labelled: Path, tmp_path: Path) -> None:
    """Maps of both rows as stored; points where the picture's lie in the stretched image."""
    pair = pair_of(17, 18).model_copy(update={"target_box": (31.0, 30.0, 12.0, 20.0)})
    item = examples(labelled, write(tmp_path, pair)).served[0]
    rows = FeatureDataset(str(labelled / "store"), NAMES)
    keys = rows.index["key"].to_pylist()
    source, target = (rows[keys.index(key_of(number))] for number in (17, 18))
    assert item["rows"] == (source["row"], target["row"])
    for name in NAMES:
        assert torch.equal(item[name], torch.stack([source[name], target[name]]))
    for place, number in enumerate((17, 18)):
        height, width = size_of(number)
        expected = torch.tensor(list(points_of(number).values())) / torch.tensor([width, height])
        assert torch.allclose(item[POINTS][place], expected)
    assert torch.equal(item[TRUTH], torch.tensor(list(points_of(18).values()), dtype=torch.float64))
    assert item[EXTENTS].tolist() == [64, 20]
    assert (item["category"], item["pair"]) == (IDS[0], f"{FILE}:1")


def test_shares_lead_back_to_pixels_of_the_target(labelled: Path) -> None:
    """As predictions are scored in them."""
    items = examples(labelled).served
    assert isinstance(items, PairDataset)
    for item in items.__getitems__([0, 30, 60]):
        assert torch.allclose(item[SHIFT] + item[SCALE] * item[POINTS][1].double(), item[TRUTH], atol=1e-4)


def test_pairs_with_fewer_points_batch(labelled: Path, tmp_path: Path) -> None:
    whole = pair_of(16, 18)
    few = whole.model_copy(
        update={"source_points": whole.source_points[:2], "target_points": whole.target_points[:2]}
    )
    batch = collate(examples(labelled, write(tmp_path, whole, few)).served.__getitems__([0, 1]))
    assert batch[POINTS].shape == (2, 2, 5, 2) and batch[TRUTH].shape == (2, 5, 2)
    assert valid(batch[POINTS]).sum(-1).tolist() == [[5, 5], [2, 2]]
    assert torch.equal(batch[TRUTH][1, :2], batch[TRUTH][0, :2])
    assert batch[TRUTH][1, 2:].isnan().all()


def test_a_pair_whose_image_is_not_stored(labelled: Path, tmp_path: Path) -> None:
    gone = pair_of(16, 18).model_copy(update={"target": "nowhere"})
    root = write(tmp_path, pair_of(16, 18), gone)
    with pytest.raises(ValueError, match=rf"{FILE}:2: image 'nowhere' has no features in store .*bad: skip"):
        examples(labelled, root)
    found = examples(labelled, root, labels={"bad": "skip"})
    assert (len(found), found.skipped) == (1, {"image-not-stored": 1})
    write(tmp_path, gone)
    with pytest.raises(ValueError, match="no pair has both images in store"):
        examples(labelled, root, labels={"bad": "skip"})


def test_a_pair_without_points_is_counted(labelled: Path, tmp_path: Path) -> None:
    """Images of one category may show no keypoint in common: nothing is wrong with that."""
    none = pair_of(16, 18).model_copy(update={"source_points": [], "target_points": []})
    found = examples(labelled, write(tmp_path, none, pair_of(18, 20)))
    assert (found.ids, found.skipped) == ([f"{FILE}:00000002"], {"pair-without-points": 1})


def test_lines_that_are_no_pairs(labelled: Path, tmp_path: Path) -> None:
    root = write(tmp_path, pair_of(16, 18))
    good = (root / FILE).read_text()
    for line, message in (("{", "all of it: Invalid JSON"), ('{"source": "a"}', "target: Field required")):
        (root / FILE).write_text(f"{good}{line}\n")
        with pytest.raises(ValueError, match=rf"{FILE}:2: no pair of images with points.*\({message}"):
            examples(labelled, root)


def test_files_of_pairs_elsewhere(labelled: Path, tmp_path: Path) -> None:
    """Beside other shards, by a path; and none at all."""
    write(tmp_path / "pairs", pair_of(16, 18))
    assert len(examples(labelled, task={"pairs": f"{tmp_path}/pairs/pairs-*.jsonl"})) == 1
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"task\.pairs: .* has no file 'pairs-\*\.jsonl'; .*spair71k"):
            examples(labelled, root)


def test_a_key_that_two_shards_have(built: Path, labelled: Path) -> None:
    """Pairs name images by key, and would take either."""
    with pytest.raises(ValueError, match=r"key '0' is in several shards of the store.*a key of its own"):
        examples(labelled, store=str(built / "store"))


def test_subsets(labelled: Path) -> None:
    found = examples(labelled)
    part = found.served.subset([5, 2])
    assert [item["pair"] for item in part.__getitems__([0, 1])] == [f"{FILE}:6", f"{FILE}:3"]
    prints = {one.fingerprint for one in (found.served, part, found.served.subset([2, 5]))}
    assert len(prints) == 3 and found.served.subset([5, 2]).fingerprint == part.fingerprint


def test_the_digest_is_of_pairs_not_of_places(labelled: Path, tmp_path: Path) -> None:
    one, same = (examples(labelled, write(tmp_path / name, pair_of(16, 18))) for name in ("one", "same"))
    assert one.digest == same.digest
    moved = pair_of(16, 18).model_copy(update={"target_points": pair_of(16, 20).target_points})
    assert examples(labelled, write(tmp_path / "other", moved)).digest != one.digest


def test_points_that_a_crop_cut_off_are_left_out() -> None:
    """They would be taken for the nearest place at the image's edge, in training and in the test."""
    crop, whole = Frame((100, 200), (64, 64), "crop"), Frame((100, 200), (64, 64))
    pair = pair_of(16, 18).model_copy(
        update={
            "source_points": [(10.0, 50.0), (100.0, 50.0)],
            "target_points": [(1.0, 2.0), (3.0, 4.0)],
        }
    )
    assert pairs.seen(pair, whole, whole) == pair
    kept = pairs.seen(pair, crop, whole)
    assert (kept.source_points, kept.target_points) == ([(100.0, 50.0)], [(3.0, 4.0)])


def test_padded_images_are_refused(labelled: Path) -> None:
    """The nearest neighbour of a point may lie in the padding."""
    spec = spec_of(labelled, Path("unused"), "correspondence")
    store = FeatureStore(spec.store)
    store.manifest.identity["image"]["fit"] = "pad"
    with pytest.raises(ValueError, match=r"images were padded.*extract with fit: stretch or crop"):
        pairs_of(store, choose(store, spec.features), spec)
