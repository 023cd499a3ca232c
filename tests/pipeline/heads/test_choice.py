"""Which arrays a head reads, and what is said where the store has not what the spec names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import FeatureStore
from pipeline.heads.choice import choose
from schemas.head import Features
from tests.labelled import ATTENTION, GROUPS, NAMES, TAPS

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def store(labelled: Path) -> FeatureStore:
    return FeatureStore(str(labelled / "store"))


@pytest.fixture
def edited(labelled: Path, tmp_path: Path) -> Callable[[Edit], FeatureStore]:
    """A store whose manifest was changed; nothing else of it is looked at here."""

    def edit(change: Edit) -> FeatureStore:
        manifest = json.loads((labelled / "store" / "manifest.json").read_text())
        change(manifest)
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return FeatureStore(str(tmp_path))

    return edit


def without(group: str, tap: str) -> Edit:
    """Take an array out of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        arrays = manifest["arrays"]
        arrays[:] = [one for one in arrays if (one["group"], one["tap"]) != (group, tap)]

    return change


def test_all_maps_of_all_groups_but_attention(store: FeatureStore) -> None:
    found = choose(store, Features())
    assert (found.groups, found.taps, found.attention) == (tuple(GROUPS), tuple(TAPS), ())
    assert found.names == NAMES
    assert list(found.shapes.values()) == [[96, 4, 4], [96, 8, 8]] * 2


def test_what_the_spec_names(store: FeatureStore) -> None:
    """In its order; attention features last."""
    found = choose(store, Features(groups=["noisy"], taps=TAPS[::-1], attention=[ATTENTION]))
    assert found.names == [f"noisy/{TAPS[1]}", f"noisy/{TAPS[0]}", ATTENTION]
    assert found.attention == (ATTENTION,)
    assert found.shapes[ATTENTION] == list(store.taps[ATTENTION].shape)


def test_pooled_vectors_are_maps_of_one_cell(store: FeatureStore) -> None:
    assert set(map(tuple, choose(store, Features(), pooled=True).shapes.values())) == {(96, 1, 1)}


def test_taps_that_all_groups_have(edited: Callable[[Edit], FeatureStore]) -> None:
    """By default; and where taps are named, the groups that have them."""
    store = edited(without("noisy", TAPS[1]))
    assert choose(store, Features()).names == [f"plain/{TAPS[0]}", f"noisy/{TAPS[0]}"]
    assert choose(store, Features(taps=[TAPS[1]])).names == [f"plain/{TAPS[1]}"]
    with pytest.raises(ValueError, match=rf"no tap of group 'noisy' '{TAPS[1]}'; nearest of 1: {TAPS[0]}"):
        choose(store, Features(groups=GROUPS, taps=[TAPS[1]]))


def test_groups_without_a_tap_in_common(edited: Callable[[Edit], FeatureStore]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        without("noisy", TAPS[1])(manifest)
        without("plain", TAPS[0])(manifest)

    store = edited(change)
    with pytest.raises(
        ValueError, match=r"groups plain, noisy have no tap in common; name some of the groups"
    ):
        choose(store, Features())
    assert choose(store, Features(groups=["plain"])).names == [f"plain/{TAPS[1]}"]


def test_a_store_of_attention_alone(edited: Callable[[Edit], FeatureStore]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for name in NAMES:
            without(*name.split("/"))(manifest)

    with pytest.raises(ValueError, match=r"groups \(none with maps\) have no tap in common"):
        choose(edited(change), Features())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            Features(groups=["plane"]),
            r"features\.groups: store .* has no feature group 'plane'; nearest of 2: plain",
        ),
        (Features(taps=["up-level1-upsampler"]), rf"features\.taps: .* nearest of 2: {TAPS[0]}"),
        (Features(taps=["attn"]), r"features\.taps: .* no tap of group 'plain' 'attn'"),
        (Features(attention=["plain/atn"]), rf"features\.attention: .* nearest of 6: {ATTENTION}"),
        (Features(attention=["attn"]), r"features\.attention: .* no map \[C, h, w\] 'attn'"),
    ],
)
def test_what_is_not_stored_is_said_with_the_nearest(
    store: FeatureStore, wanted: Features, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose(store, wanted)


def test_a_store_without_what_the_task_reads(edited: Callable[[Edit], FeatureStore]) -> None:
    store = edited(lambda manifest: manifest["identity"]["output"].update(pooled=False))
    with pytest.raises(
        ValueError, match=r"holds maps only, and this task reads pooled vectors.*output\.pooled: true"
    ):
        choose(store, Features(), pooled=True)
    assert choose(store, Features())
    store = edited(lambda manifest: manifest["identity"]["output"].update(maps=False))
    with pytest.raises(
        ValueError, match=r"holds pooled vectors only, and this task reads maps.*output\.maps: true"
    ):
        choose(store, Features())
    assert choose(store, Features(), pooled=True)
