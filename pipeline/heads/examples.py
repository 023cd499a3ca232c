"""What heads learn from: stored rows with their labels, checked before anything is trained."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, Self

from pipeline.dataset import FeatureDataset, PooledDataset
from pipeline.heads.choice import Choice
from pipeline.labels import ClassIds, Labels, Masks
from pipeline.reader import FeatureStore
from schemas.head import HeadSpec, ShardSplit, Splits

Rows = FeatureDataset | PooledDataset


class Served(Protocol):
    """A data set of items, some of which can be taken out."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> dict[str, Any]: ...

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]: ...

    def subset(self, places: Sequence[int]) -> Self: ...


@dataclass(frozen=True)
class ExampleSet:
    """Rows with features and labels, or pairs of rows."""

    served: Served
    ids: list[str]
    """A name for each, which does not depend on its place."""
    shards: list[str]
    """The shard of each, which patterns of `splits` are about; of pairs, their file."""
    skipped: Counter[str]
    """Left out, by reason."""
    digest: str
    """Hash of ids and labels."""

    def __len__(self) -> int:
        return len(self.ids)


def labelled_rows(store: FeatureStore, choice: Choice, spec: HeadSpec, classes: int) -> ExampleSet:
    """All rows that have features in every group that is read, and a label.

    Every label is read once.

    Raises:
        ValueError: none are left, or a sample that is not under `labels.root`; or, unless the spec says `skip`, a label
            that cannot be used.
        OSError: a shard that is not under `labels.root`, or cannot be read.
    """
    rows = _used(_rows(spec, choice, _labels(spec, classes)), spec.splits)
    try:
        checked = rows.check_labels()
    except KeyError as error:
        raise ValueError(f"labels.root: {error.args[0]}") from error
    bad = sum(checked.reasons.values())
    if bad and spec.labels.bad == "fail":
        counts = ", ".join(f"{count} {reason}" for reason, count in checked.reasons.most_common())
        raise ValueError(
            f"{bad} of {len(rows)} labels under {spec.labels.root} cannot be used ({counts}); the first:"
            f" {checked.first}. Mend them, or give labels.bad: skip to leave such rows out"
        )
    if not checked.good:
        raise ValueError(
            f"store {store.url} has no row with a label: {checked.first or 'it has no good rows'}"
        )
    kept = rows.subset(checked.good)
    shards, keys = kept.index["shard"].to_pylist(), kept.index["key"].to_pylist()
    ids = [f"{shard}/{key}" for shard, key in zip(shards, keys, strict=True)]
    return ExampleSet(kept, ids, shards, checked.reasons, digest([*sorted(ids), checked.digest]))


def _used(rows: Rows, splits: Splits) -> Rows:
    """Without shards that no part of a split names: others need not have labels."""
    if not isinstance(splits, ShardSplit):
        return rows
    parts = [splits.train, splits.test, *([splits.validation] if isinstance(splits.validation, str) else [])]
    shards = rows.index["shard"].to_pylist()
    used = [any(fnmatchcase(shard, part) for part in parts) for shard in shards]
    return rows.subset([place for place, one in enumerate(used) if one]) if any(used) else rows


def digest(lines: Iterable[str]) -> str:
    """Hash of some lines."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode() + b"\n")
    return found.hexdigest()


def _labels(spec: HeadSpec, classes: int) -> Labels:
    if spec.task.type == "classification":
        return ClassIds(spec.labels.field or "cls", classes=classes)
    return Masks(spec.labels.field or "seg.png", classes=classes, ignore=spec.labels.ignore)


def _rows(spec: HeadSpec, choice: Choice, labels: Labels) -> Rows:
    cache = spec.loading.cache_bytes
    if spec.task.type == "classification":
        return PooledDataset(
            spec.store, choice.names, join=spec.labels.root, labels=labels, cache_bytes=cache
        )
    return FeatureDataset(spec.store, choice.names, join=spec.labels.root, labels=labels, cache_bytes=cache)
