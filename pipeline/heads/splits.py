"""Which rows a head is trained on, stopped by and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from schemas.head import RandomSplits, ShardSplit

Places = NDArray[np.int64]
"""Of rows, in the order in which they were given."""


@dataclass(frozen=True)
class Split:
    """One way to divide the rows."""

    number: int
    seed: int
    """Of all that is random in training on it."""
    train: Places
    validation: Places
    test: Places

    @property
    def sizes(self) -> dict[str, int]:
        """Rows by part."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def random_splits(wanted: RandomSplits, ids: Sequence[str]) -> list[Split]:
    """Splits that depend on the ids and the seed, not on the order in which the ids are given.

    Raises:
        ValueError: fewer rows than the split asks for.
    """
    asked = wanted.train + wanted.validation + (wanted.test or 1)
    if asked > len(ids):
        raise ValueError(
            f"splits: train {wanted.train}, validation {wanted.validation} and test {wanted.test or 'at least 1'} are"
            f" {asked} rows, and {len(ids)} have features and labels; ask for fewer"
        )
    by_name = np.array(sorted(range(len(ids)), key=lambda place: ids[place]), np.int64)
    return [_drawn(wanted, by_name, number) for number in range(wanted.count)]


def _drawn(wanted: RandomSplits, by_name: Places, number: int) -> Split:
    order = by_name[np.random.default_rng([wanted.seed, number]).permutation(len(by_name))]
    rest = order[wanted.train + wanted.validation :]
    return Split(
        number,
        wanted.seed * 1000 + number,
        order[: wanted.train],
        order[wanted.train : wanted.train + wanted.validation],
        rest if wanted.test is None else rest[: wanted.test],
    )


def shard_split(wanted: ShardSplit, shards: Sequence[str]) -> Split:
    """The split that the rows' shards say.

    Raises:
        ValueError: a pattern that no shard has, a row that is both trained and tested on, or a share for validation
            that leaves nothing to train on.
    """
    train = _matching("train", wanted.train, shards)
    test = _matching("test", wanted.test, shards)
    if isinstance(wanted.validation, str):
        validation = _matching("validation", wanted.validation, shards)
    else:
        train, validation = _held_back(train, wanted.validation, wanted.seed)
    used = np.concatenate([train, validation, test])
    if len(np.unique(used)) < len(used):
        values, counts = np.unique(used, return_counts=True)
        raise ValueError(
            f"splits: shard {shards[int(values[counts > 1][0])]!r} is in several of train, validation and test; give"
            " patterns that exclude each other"
        )
    return Split(0, wanted.seed, train, validation, test)


def _held_back(train: Places, share: float | None, seed: int) -> tuple[Places, Places]:
    """Training rows without a random share of them, and that share, which is at least one row."""
    count = 0 if share is None else max(1, round(share * len(train)))
    if count == len(train):
        raise ValueError(
            f"splits.validation: a share of {share} of {len(train)} training rows leaves none to train on; lower it, or"
            " add rows"
        )
    order = np.random.default_rng([seed, 0]).permutation(len(train))
    return np.sort(train[order[count:]]), np.sort(train[order[:count]])


def _matching(part: str, pattern: str, shards: Sequence[str]) -> Places:
    found = [place for place, shard in enumerate(shards) if fnmatchcase(shard, pattern)]
    if not found:
        some = ", ".join(sorted(set(shards))[:3]) or "none"
        raise ValueError(f"splits.{part}: no shard with rows matches {pattern!r}; there are {some}")
    return np.array(found, np.int64)
