"""The original samples behind stored rows: random access to the members of tar shards."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

from webdataset.tariterators import base_plus_ext

from pipeline.storage import open_fs

_Place = tuple[int, int]


class MemberIndex:
    """Reads members of samples by shard id and key; a shard's headers are walked once, at its first use.

    Args:
        root: URL under which the shards lie, by their ids.
        fields: extensions to read (`seg.png`); None for all.
    """

    def __init__(self, root: str, fields: Sequence[str] | None = None) -> None:
        self._root, self._fields = root.rstrip("/"), None if fields is None else set(fields)
        self._shards: dict[str, dict[str, dict[str, _Place]]] = {}

    def read(self, shard: str, key: str) -> dict[str, bytes]:
        """{field: bytes} of a sample.

        Raises:
            FileNotFoundError: no such shard under the root.
            KeyError: no such sample in it.
        """
        if shard not in self._shards:
            self._shards[shard] = self._walk(shard)
        places = self._shards[shard].get(key)
        if places is None:
            raise KeyError(f"{self._root}/{shard} has no sample {key!r}; is it the shard that was extracted?")
        fs, path = open_fs(f"{self._root}/{shard}")
        ends = [(start, start + size) for start, size in places.values()]
        data = fs.cat_ranges([path] * len(ends), [start for start, _ in ends], [end for _, end in ends])
        return dict(zip(places, data, strict=True))

    def _walk(self, shard: str) -> dict[str, dict[str, _Place]]:
        fs, path = open_fs(f"{self._root}/{shard}")
        samples: dict[str, dict[str, _Place]] = {}
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, field = base_plus_ext(member.name)
                if key is None or not member.isreg() or (self._fields is not None and field not in self._fields):
                    continue
                samples.setdefault(key, {}).setdefault(field.lower(), (member.offset_data, member.size))
        return samples
