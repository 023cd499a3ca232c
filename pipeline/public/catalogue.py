"""Which public data sets are known, and how each is written: shards by split, pairs, and what they are."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from pipeline.listing import url_of
from pipeline.public import ade20k, cityscapes, label_scarce, spair71k
from pipeline.public.dataset import PublicDataset
from pipeline.shard_writer import open_empty, write_tars
from pipeline.storage import put
from schemas.dataset import DATASET, IGNORE, Dataset, PublicName, Split, pairs_name

_FINDERS: Final[Mapping[PublicName, Callable[[str], PublicDataset]]] = {
    "ade20k": ade20k.find,
    "bedroom28": label_scarce.find_bedroom28,
    "cityscapes": cityscapes.find,
    "horse21": label_scarce.find_horse21,
    "spair71k": spair71k.find,
}


def find(name: str, url: str) -> PublicDataset:
    """A public data set in a folder, read and checked as far as its labels go.

    Args:
        name: one of `schemas.dataset.PublicName`.
        url: folder or URL that the published archive was unpacked to, or the one that holds it.

    Raises:
        ValueError: an unknown name, another layout than the published one, or labels that cannot be used; the message
            names the files.
        OSError: storage failed.
    """
    for known, finder in _FINDERS.items():
        if known == name:
            return finder(url)
    raise ValueError(f"dataset {name!r} is not known; known are {', '.join(_FINDERS)}")


def write(found: PublicDataset, out: str, samples_per_shard: int) -> Iterator[str]:
    """Write a data set as `schemas.dataset` says; each shard's URL when it is there.

    Args:
        found: the data set.
        out: URL of a folder without shards; made if need be.
        samples_per_shard: images a shard, at least 1.

    Raises:
        ValueError: `out` already holds shards.
        OSError: storage failed; a shard that was being written is removed, and there is no dataset.json.
    """
    fs, folder = open_empty(out)
    splits = {}
    for split, images in found.splits.items():
        shards = []
        for path in write_tars(fs, folder, split, images, samples_per_shard, found.sample):
            shards.append(posixpath.basename(path))
            yield url_of(fs, path)
        pairs = found.pairs.get(split)
        if pairs is not None:
            put(fs, f"{folder}/{pairs_name(split)}", b"".join(line + b"\n" for line in pairs))
        splits[split] = Split(samples=len(images), shards=shards, pairs=None if pairs is None else len(pairs))
    written = Dataset(
        name=found.name,
        task=found.task,
        classes=found.classes,
        ignore=IGNORE if found.task == "segmentation" else None,
        splits=splits,
    )
    put(fs, f"{folder}/{DATASET}", written.to_bytes())
