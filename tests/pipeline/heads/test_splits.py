"""Splits depend on rows and seed, never on the order in which a store happens to give its rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.heads.splits import Split, random_splits, shard_split
from schemas.head import RandomSplits, ShardSplit

SHARDS = ["train-0.tar"] * 4 + ["train-1.tar"] * 2 + ["val-0.tar"] * 2 + ["test-0.tar"] * 3


def parts(split: Split, ids: Sequence[str]) -> list[list[str]]:
    return [[ids[place] for place in part] for part in (split.train, split.validation, split.test)]


@given(
    count=st.integers(3, 40),
    train=st.integers(1, 20),
    validation=st.integers(0, 10),
    test=st.none() | st.integers(1, 10),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_random_splits(
    count: int, train: int, validation: int, test: int | None, seed: int, data: st.DataObject
) -> None:
    """Disjoint, of the sizes that were asked for, the same in any order of rows, and different from each other."""
    wanted = RandomSplits(type="random", count=2, train=train, validation=validation, test=test, seed=seed)
    ids = [f"a.tar/{number}" for number in range(count)]
    if train + validation + (test or 1) > count:
        with pytest.raises(ValueError, match=rf"{count} have features and labels; ask for fewer"):
            random_splits(wanted, ids)
        return
    shuffled = data.draw(st.permutations(ids))
    found = random_splits(wanted, ids)
    assert [parts(split, ids) for split in found] == [
        parts(split, shuffled) for split in random_splits(wanted, shuffled)
    ]
    for split in found:
        every = [one for part in parts(split, ids) for one in part]
        assert len(set(every)) == len(every)
        left = count - train - validation
        assert split.sizes == {"train": train, "validation": validation, "test": test or left}
    assert found[0].seed != found[1].seed


def test_splits_differ_by_number_and_seed() -> None:
    ids = [str(number) for number in range(50)]

    def drawn(seed: int) -> list[list[list[str]]]:
        wanted = RandomSplits(type="random", count=3, train=20, seed=seed)
        return [parts(split, ids) for split in random_splits(wanted, ids)]

    every = [str(one) for seed in (0, 1) for one in drawn(seed)]
    assert len(set(every)) == 6


def test_more_splits_change_none_of_the_first() -> None:
    ids = [str(number) for number in range(20)]
    few, many = (random_splits(RandomSplits(type="random", count=n, train=5), ids) for n in (2, 5))
    for one, other in zip(few, many, strict=False):
        assert parts(one, ids) == parts(other, ids)


def test_shards_by_pattern() -> None:
    split = shard_split(ShardSplit(type="shards", validation="val*"), SHARDS)
    assert parts(split, SHARDS) == [SHARDS[:6], SHARDS[6:8], SHARDS[8:]]
    split = shard_split(ShardSplit(type="shards", train="train-1*", test="t*-0.tar", validation=None), SHARDS)
    assert split.train.tolist() == [4, 5] and split.validation.tolist() == []
    assert split.test.tolist() == [0, 1, 2, 3, 8, 9, 10]


@pytest.mark.parametrize(("share", "count"), [(0.5, 3), (0.01, 1), (0.8, 5)])
def test_a_share_of_the_training_rows(share: float, count: int) -> None:
    """At least one, so that who asks for early stopping gets it; another seed takes others."""
    wanted = ShardSplit(type="shards", validation=share)
    split = shard_split(wanted, SHARDS)
    assert sorted([*split.train, *split.validation]) == list(range(6))
    assert len(split.validation) == count
    others = [shard_split(wanted.model_copy(update={"seed": seed}), SHARDS) for seed in range(1, 9)]
    assert any(other.validation.tolist() != split.validation.tolist() for other in others)


def test_a_share_that_leaves_nothing() -> None:
    wanted = ShardSplit(type="shards", train="val*", validation=0.9)
    with pytest.raises(ValueError, match=r"a share of 0\.9 of 2 training rows leaves none to train on"):
        shard_split(wanted, SHARDS)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_pattern_that_no_shard_has(part: str) -> None:
    wanted = ShardSplit.model_validate({"type": "shards", part: "none*"})
    with pytest.raises(
        ValueError, match=rf"splits\.{part}: no shard with rows matches 'none\*'; there are test-0\.tar"
    ):
        shard_split(wanted, SHARDS)


@pytest.mark.parametrize("wanted", [{"train": "*", "test": "test*"}, {"validation": "train-1*"}])
def test_no_row_is_trained_and_tested_on(wanted: dict[str, str]) -> None:
    with pytest.raises(
        ValueError, match=r"shard '(train-1|test-0)\.tar' is in several of train, validation and test"
    ):
        shard_split(ShardSplit.model_validate({"type": "shards", **wanted}), SHARDS)
