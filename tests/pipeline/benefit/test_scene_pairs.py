"""Pairs of scenes with exact correspondences, on the embedded shards."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pipeline.benefit.scene_pairs import LabelledScene, lines, read_scenes, scene_pairs, split_pairs
from pipeline.listing import list_shards
from pipeline.scenes.correspondences import visible
from pipeline.shards import read_shard
from schemas.dataset import Pair
from schemas.spec import Input


@cache
def scenes() -> list[LabelledScene]:
    spec = Input(shards="embedded")
    shard = list_shards(spec)[0]
    return read_scenes("embedded", [(shard.id, sample.key) for sample in read_shard(shard, spec)])


def test_both_images_of_a_pair_show_each_point() -> None:
    by_key = {scene.key: scene for scene in scenes()}
    pairs = [pair for some in scene_pairs(scenes(), 0).values() for pair in some]
    assert len(pairs) > 10
    for pair in pairs:
        assert 4 <= len(pair.source_points) <= 12
        for key, points in ((pair.source, pair.source_points), (pair.target, pair.target_points)):
            scene = by_key[key]
            places = range(len(scene.things))
            seen = [visible(np.array(points), scene.instances, place).all() for place in places]
            assert any(seen), f"no thing of {key} is seen at all of its points"


def test_pairs_are_the_same_whatever_the_order_of_scenes() -> None:
    assert scene_pairs(scenes()[::-1], 0) == scene_pairs(scenes(), 0)


def test_other_seeds_draw_other_points() -> None:
    assert scene_pairs(scenes(), 1) != scene_pairs(scenes(), 0)


@pytest.mark.parametrize("split", range(3))
def test_no_cut_out_is_both_trained_and_tested_on(split: int) -> None:
    pairs = scene_pairs(scenes(), 0)
    train, test = split_pairs(pairs, split, 0.5)
    cutout_of = {pair.model_dump_json(): cutout for cutout, some in pairs.items() for pair in some}
    ours, theirs = ({cutout_of[one.model_dump_json()] for one in part} for part in (train, test))
    assert ours and theirs and not ours & theirs
    assert len(train) + len(test) == sum(map(len, pairs.values()))


def test_a_file_of_pairs_is_read_back() -> None:
    train, _ = split_pairs(scene_pairs(scenes(), 0), 0, 0.5)
    assert [Pair.model_validate_json(line) for line in lines(train).splitlines()] == train
