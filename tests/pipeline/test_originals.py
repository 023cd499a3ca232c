"""The pictures behind stored rows, and those that are not there any more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline import FeatureStore
from pipeline.bad import BadSample
from pipeline.decode import decode
from pipeline.originals import Originals
from tests.labelled import SHARDS, key_of, members, write_shards


@pytest.fixture
def store(labelled: Path) -> FeatureStore:
    return FeatureStore(str(labelled / "store"))


def line(store: FeatureStore, number: int) -> dict[str, Any]:
    return store.index.filter(pc.field("key") == key_of(number)).to_pylist()[0]


def test_as_the_network_saw_them(store: FeatureStore) -> None:
    """Where extraction found them."""
    originals = Originals(store)
    for number in (0, 11, 23):
        seen = originals.read(line(store, number))
        expected = decode(members(number)["png"], (64, 64), 10**6, "stretch").pixels
        assert np.array_equal(seen, np.moveaxis(expected, 0, -1)) and seen.shape == (64, 64, 3)


def test_elsewhere(store: FeatureStore, tmp_path: Path) -> None:
    write_shards(tmp_path / "moved")
    there = Originals(store, str(tmp_path / "moved")).read(line(store, 3))
    assert np.array_equal(there, Originals(store).read(line(store, 3)))


def test_another_picture_of_that_name(store: FeatureStore, tmp_path: Path) -> None:
    """It must not stand beside features that were made of the first one."""
    root = write_shards(tmp_path, lambda number, labels: labels | {"png": members(23 - number)["png"]})
    with pytest.raises(BadSample, match="changed: the image is not the one that the features were made from"):
        Originals(store, str(root)).read(line(store, 3))
    write_shards(tmp_path, lambda number, labels: {"cls": labels["cls"]})
    with pytest.raises(BadSample, match="changed"):
        Originals(store, str(root)).read(line(store, 3))


def test_what_is_not_there(store: FeatureStore, tmp_path: Path) -> None:
    write_shards(tmp_path, lambda number, labels: {} if number == 3 else labels)
    originals = Originals(store, str(tmp_path))
    with pytest.raises(KeyError, match=f"has no sample '{key_of(3)}'"):
        originals.read(line(store, 3))
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no shard 'test-0\.tar'"):
        originals.read(line(store, SHARDS["test-0.tar"][0]))
