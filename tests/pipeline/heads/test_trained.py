"""A head is read back as it was trained, and one that cannot be used says why before a backbone is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from pipeline.heads.trained import Trained, extraction, extractor, load_head
from schemas.head import HeadManifest
from tests import labelled as shapes
from tests.trained_heads import head

WEIGHTS = "split-0/head.safetensors"


@pytest.fixture
def copied(labelled: Path, tmp_path: Path) -> Path:
    """A head to be damaged."""
    return Path(shutil.copytree(head(labelled, "classification"), tmp_path / "head"))


def edit(folder: Path, **changes: Any) -> None:
    """Replace keys of a head's description."""
    path = folder / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fingerprint(folder: Path) -> str:
    """Of a head."""
    return HeadManifest.model_validate_json((folder / "head.json").read_bytes()).fingerprint


def test_is_what_was_trained(labelled: Path) -> None:
    url = head(labelled, "label-scarce")
    trained = load_head(url)
    written = load_file(f"{url}/{WEIGHTS}")
    assert trained.network.state_dict().keys() == written.keys()
    assert all(torch.equal(value, written[name]) for name, value in trained.network.state_dict().items())
    assert not trained.network.training
    assert trained.taps == shapes.NAMES and trained.manifest.classes == shapes.MASKS


def test_no_head(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no head at .*: there is no head\.json; `gatehouse train-head` makes"
    ):
        load_head(str(tmp_path))


def test_splits_that_are_not_there(copied: Path) -> None:
    for split in (1, -1):
        with pytest.raises(
            ValueError, match=f"has no split {split}; it has 1, counted from 0: give one of them"
        ):
            load_head(str(copied), split)
    edit(copied, splits=2)
    with pytest.raises(
        ValueError, match=r"no split-1/head\.safetensors, so this split is not trained yet; run"
    ):
        load_head(str(copied), 1)


def test_weights_of_another_head(copied: Path) -> None:
    """A folder that two heads were copied into predicts nonsense, if the shapes happen to fit."""
    path = copied / WEIGHTS
    save_file(load(path.read_bytes()), path, {"gatehouse": "0123456789abcdef"})
    wanted = fingerprint(copied)
    with pytest.raises(
        ValueError,
        match=rf"belongs to the head 0123456789ab, and head\.json describes {wanted[:12]}; put the",
    ):
        load_head(str(copied))


@pytest.mark.parametrize("damage", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_weights(copied: Path, damage: bytes) -> None:
    (copied / WEIGHTS).write_bytes(damage)
    with pytest.raises(ValueError, match=r"split-0/head\.safetensors is damaged \(.*\); copy it again"):
        load_head(str(copied))


def test_cut_weights(copied: Path) -> None:
    path = copied / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"split-0/head\.safetensors is damaged"):
        load_head(str(copied))


def test_weights_of_another_release(copied: Path) -> None:
    """The description is the head's, but this release builds another network of it."""
    path = copied / WEIGHTS
    weights = {f"old.{name}": value for name, value in load_file(path).items()}
    save_file(weights, path, {"gatehouse": fingerprint(copied)})
    edit(copied, gatehouse="0.0.1")
    with pytest.raises(
        ValueError, match=r"made by gatehouse 0\.0\.1, and its weights do not fit the network of"
    ):
        load_head(str(copied))


def moved(copied: Path, store: str) -> Trained:
    """The head, as if it had been trained on a store at another place."""
    spec = json.loads((copied / "head.json").read_text())["spec"]
    edit(copied, spec=spec | {"store": store})
    return load_head(str(copied))


def test_the_store_has_moved(labelled: Path, copied: Path, tmp_path: Path) -> None:
    """Its manifest is all that is needed of it."""
    trained = moved(copied, str(tmp_path / "gone"))
    with pytest.raises(
        ValueError,
        match=r"the store that it was trained on cannot be read: no feature store at .*gone.*\(--store\)",
    ):
        extraction(trained)
    with pytest.raises(ValueError, match=r"^no feature store at /nowhere"):
        extraction(trained, "/nowhere")
    (tmp_path / "kept").mkdir()
    shutil.copy(labelled / "store" / "manifest.json", tmp_path / "kept")
    found = extraction(trained, str(tmp_path / "kept"))
    assert [group.name for group in found.groups] == shapes.GROUPS


def test_another_store(built: Path, labelled: Path, copied: Path, tmp_path: Path) -> None:
    trained = load_head(str(copied))
    with pytest.raises(
        ValueError, match=r"trained on features with fingerprint .* and the store .* holds .*: there is"
    ):
        extraction(trained, str(built / "store"))
    (tmp_path / "other").mkdir()
    manifest = json.loads((labelled / "store" / "manifest.json").read_text())
    manifest["identity"]["seed"] = 1
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"weights, prompts, techniques or other settings differ\. Give the store"
    ):
        extractor(trained, str(tmp_path / "other"))
