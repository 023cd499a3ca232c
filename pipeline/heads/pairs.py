"""Pairs of stored rows with points that both show, as a torch data set.

Pairs are lines of files beside the shards (`schemas.dataset.Pair`); a pair names its images by their keys.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import embedded, storage
from pipeline.dataset import FeatureDataset
from pipeline.frames import Frame
from pipeline.heads.choice import Choice
from pipeline.heads.examples import ExampleSet, digest
from pipeline.reader import FeatureStore
from schemas.dataset import Pair
from schemas.head import Correspondence, HeadSpec

POINTS, TRUTH, EXTENTS, SHIFT, SCALE = "points", "truth", "extents", "shift", "scale"


@dataclass(frozen=True)
class _Located:
    """A pair and where its rows are."""

    pair: Pair
    file: str
    line: int
    source: int
    """Place of the row in the data set."""
    target: int


class PairDataset(Dataset[dict[str, Any]]):
    """An item is {"pair": its name, "category", "rows": numbers of source and target in the store, and

    per `group/tap` the maps of source and target, [2, C, h, w]
    "points"   of both, as shares (x, y) of the image that the network saw, float32 [2, N, 2]; NaN fills up to N
    "truth"    the target's, in pixels of the original, float64 [N, 2]; NaN likewise
    "extents"  the longer side of the target's image, and of the object's box in it, in pixels, float64 [2]
    "shift", "scale"   [2] each: what takes shares of the target to pixels of its original, shift + scale * share
    }

    Args:
        rows: the store's.
        frames: of these.
        pairs: located in them; all of their points are in the images that the network saw.
    """

    def __init__(self, rows: FeatureDataset, frames: Sequence[Frame], pairs: Sequence[_Located]) -> None:
        self._rows, self._frames, self._pairs = rows, frames, list(pairs)
        self._most = max((len(one.pair.source_points) for one in pairs), default=0)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """A whole batch at once; a row that several pairs share is read once."""
        pairs = [self._pairs[place] for place in places]
        wanted = sorted({row for one in pairs for row in (one.source, one.target)})
        found = dict(zip(wanted, self._rows.__getitems__(wanted), strict=True))
        return [self._item(one, found[one.source], found[one.target]) for one in pairs]

    def subset(self, places: Sequence[int]) -> PairDataset:
        """Some of the pairs, in this order; what is cached of rows is shared."""
        subset = copy.copy(self)
        subset._pairs = [self._pairs[place] for place in places]
        return subset

    @property
    def fingerprint(self) -> str:
        """Hash of what is served in which order."""
        of = [self._rows.fingerprint, *(f"{one.file}:{one.line}" for one in self._pairs)]
        return digest(of)

    def _item(self, one: _Located, source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
        here, there = self._frames[one.source], self._frames[one.target]
        truth = torch.tensor(one.pair.target_points, dtype=torch.float64)
        points = [
            _shares(here, torch.tensor(one.pair.source_points, dtype=torch.float64)),
            _shares(there, truth),
        ]
        size = torch.tensor(there.image[::-1], dtype=torch.float64)
        shift = there.to_picture(torch.zeros(2))
        return {
            "pair": f"{one.file}:{one.line}",
            "category": one.pair.category,
            "rows": (source["row"], target["row"]),
            **{name: torch.stack([source[name], target[name]]) for name in self._rows.taps},
            POINTS: torch.stack([self._filled(part) for part in points]).float(),
            TRUTH: self._filled(truth),
            EXTENTS: torch.tensor([max(there.picture), max(one.pair.target_box[2:])], dtype=torch.float64),
            SHIFT: shift,
            SCALE: there.to_picture(size) - shift,
        }

    def _filled(self, points: Tensor) -> Tensor:
        """[N, 2], so that items batch."""
        full = points.new_full((self._most, 2), torch.nan)
        full[: len(points)] = points
        return full


def _shares(frame: Frame, points: Tensor) -> Tensor:
    return frame.to_image(points) / torch.tensor(frame.image[::-1], dtype=torch.float64)


def pairs_of(store: FeatureStore, choice: Choice, spec: HeadSpec) -> ExampleSet:
    """All pairs of a spec's files whose images are stored, with those of their points that a crop did not cut off.

    Raises:
        ValueError: no file, no pair, a line that is none, a key that two shards have, images that were padded; or,
            unless the spec says `skip`, a pair whose images are not stored.
    """
    assert isinstance(spec.task, Correspondence)
    if store.manifest.identity["image"]["fit"] == "pad":
        raise ValueError(
            f"store {store.url}: images were padded, and the nearest neighbour of a point may lie in the padding;"
            " extract with fit: stretch or crop"
        )
    rows = FeatureDataset(spec.store, choice.names, cache_bytes=spec.loading.cache_bytes)
    places, frames = _places(rows), rows.frames()
    located: list[_Located] = []
    skipped: Counter[str] = Counter()
    root, pattern = _where(spec.labels.root, spec.task.pairs)
    for file, line, pair in _read(root, pattern):
        missing = [key for key in (pair.source, pair.target) if key not in places]
        if missing and spec.labels.bad == "fail":
            raise ValueError(
                f"{file}:{line}: image {missing[0]!r} has no features in store {store.url}; extract its shard, or give"
                " labels.bad: skip to leave such pairs out"
            )
        if missing:
            skipped["image-not-stored"] += 1
            continue
        source, target = places[pair.source], places[pair.target]
        kept = seen(pair, frames[source], frames[target])
        skipped["point-cut-off"] += len(pair.source_points) - len(kept.source_points)
        if kept.source_points:
            located.append(_Located(kept, file, line, source, target))
        else:
            skipped["pair-without-points"] += 1
    if not located:
        raise ValueError(
            f"{root}/{pattern}: no pair has both images in store {store.url}, and points in both"
        )
    ids = [f"{one.file}:{one.line:08d}" for one in located]
    return ExampleSet(
        PairDataset(rows, frames, located),
        ids=ids,
        shards=[one.file for one in located],
        skipped=+skipped,  # without zeros
        digest=digest(f"{id} {one.pair.model_dump_json()}" for id, one in zip(ids, located, strict=True)),
    )


def seen(pair: Pair, source: Frame, target: Frame) -> Pair:
    """With those points that both images show."""
    sides = ((pair.source_points, source), (pair.target_points, target))
    shares = [
        _shares(frame, torch.tensor(points, dtype=torch.float64).view(-1, 2)) for points, frame in sides
    ]
    inside = torch.stack([(one >= 0).all(1) & (one <= 1).all(1) for one in shares]).all(0).tolist()
    kept = {
        name: [point for point, is_in in zip(getattr(pair, name), inside, strict=True) if is_in]
        for name in ("source_points", "target_points")
    }
    return pair.model_copy(update=kept)


def _places(rows: FeatureDataset) -> dict[str, int]:
    keys = rows.index["key"].to_pylist()
    places = {key: place for place, key in enumerate(keys)}
    if len(places) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise ValueError(
            f"key {twice!r} is in several shards of the store, and pairs name images by key; give each image a key of"
            " its own"
        )
    return places


def _where(root: str, pairs: str) -> tuple[str, str]:
    """Folder of the files of pairs, and the pattern of their names."""
    if "/" in pairs:
        folder, _, name = pairs.rpartition("/")
        return folder, name
    return (embedded.SHARDS if root == "embedded" else root), pairs


def _read(root: str, pattern: str) -> list[tuple[str, int, Pair]]:
    """(file, line number, pair) of every line."""
    fs, folder = storage.open_fs(root)
    files = [name for name in storage.names(fs, folder) if fnmatchcase(name, pattern)]
    if not files:
        raise ValueError(
            f"task.pairs: {root} has no file {pattern!r}; `gatehouse shard --dataset spair71k` writes such files"
        )
    found: list[tuple[str, int, Pair]] = []
    for file in files:
        for number, line in enumerate(fs.cat_file(f"{folder}/{file}").splitlines(), 1):
            try:
                found.append((file, number, Pair.model_validate_json(line)))
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(
                    f"{root}/{file}:{number}: no pair of images with points, as `schemas.dataset.Pair` has them"
                    f" ({'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']})"
                ) from error
    return found


def valid(points: Tensor) -> Tensor:
    """Which of filled-up points [..., 2] are there, bool [...]."""
    return ~points.isnan().any(-1)
