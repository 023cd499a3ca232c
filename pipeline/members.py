"""The original samples behind stored rows: random access to the members of tar shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import IO

from fsspec import AbstractFileSystem

from pipeline import embedded
from pipeline.shards import BadShard, named, printable
from pipeline.storage import StorageError, open_fs
from pipeline.tarstream import TarStream

Places = dict[str, tuple[int, int]]
"""Offset and size in bytes of a sample's members, by field."""

_SHARDS_KEPT = 256
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


class MemberIndex:
    """Reads members of samples by shard id and key, as `pipeline.shards` names them.

    A shard's headers are walked at its first use; the places of the last 256 shards are kept. Nothing is opened
    before the first read, so that an index may be handed to other processes.

    Args:
        root: URL under which the shards lie, by their ids; `embedded` for the shards in the package.
        fields: extensions to read (`seg.png`); None for all.
        max_member_bytes: a larger member is refused, not read.
    """

    def __init__(
        self, root: str, fields: Sequence[str] | None = None, *, max_member_bytes: int = 256 * 2**20
    ) -> None:
        self._root = embedded.SHARDS if root == "embedded" else root
        self._fields = None if fields is None else {field.lower() for field in fields}
        self._limit = max_member_bytes
        self._shards: OrderedDict[str, dict[str, Places]] = OrderedDict()

    def read(self, shard: str, key: str) -> dict[str, bytes]:
        """{field: bytes} of a sample's plain files; links and devices are left out.

        Raises:
            FileNotFoundError: no such shard under the root.
            KeyError: no such sample in it.
            ValueError: the shard is compressed, its id leaves the root, or a member is too large.
            OSError: storage failed, or gave less than the tar's headers say.
        """
        return self.read_many([(shard, key)])[0]

    def read_many(self, samples: Sequence[tuple[str, str]]) -> list[dict[str, bytes]]:
        """As `read`, of several (shard, key), with all requests at once: an object store takes its time for each."""
        wanted = [
            (self._locate(shard)[1], shard, key, field, start, size)
            for shard, key in samples
            for field, (start, size) in self._of(shard, key).items()
        ]
        # What is empty has no range that a server would give.
        found: dict[tuple[str, str], dict[str, bytes]] = {sample: {} for sample in samples}
        for _, shard, key, field, *_ in wanted:
            found[shard, key][field] = b""
        wanted = [line for line in wanted if line[5]]
        fs, _ = open_fs(self._root)
        paths, starts = [line[0] for line in wanted], [line[4] for line in wanted]
        ends = [line[4] + line[5] for line in wanted]
        data = fs.cat_ranges(paths, starts, ends, on_error="raise") if wanted else []
        for (_, shard, key, field, _, size), member in zip(wanted, data, strict=True):
            if len(member) != size:
                raise StorageError(
                    f"{shard}: {key}.{field} has {size} bytes by its header, {len(member)} were read;"
                    " was the shard changed while in use?"
                )
            found[shard, key][field] = member
        return [found[sample] for sample in samples]

    def _of(self, shard: str, key: str) -> Places:
        places = self._places(shard).get(key)
        if places is None:
            raise KeyError(f"{self._root}: shard {shard!r} has no sample {key!r}; is it the one extracted?")
        for field, (_, size) in places.items():
            if size > self._limit:
                raise ValueError(
                    f"{shard}: {key}.{field} has {size} bytes; max_member_bytes allows {self._limit}"
                )
        return places

    def _places(self, shard: str) -> dict[str, Places]:
        places = self._shards.pop(shard, None)
        places = self._walk(shard) if places is None else places
        self._shards[shard] = places  # behind all others; whole at any moment, since threads share an index
        while len(self._shards) > _SHARDS_KEPT:
            self._shards.popitem(last=False)
        return places

    def _walk(self, shard: str) -> dict[str, Places]:
        """The first sample of each key counts, as when features were extracted."""
        fs, path = self._locate(shard)
        samples: dict[str, Places] = {}
        with self._open(fs, path, shard) as file:
            if file.read(8).startswith(_COMPRESSED):
                raise ValueError(f"shard {shard!r} is compressed, which rules out random access; unpack it")
            file.seek(0)
            try:
                for name, members in groupby(named(TarStream(file, path, 0, seek=True)), key=itemgetter(0)):
                    places = {
                        field: (member.offset_data, member.size)
                        for _, field, member in members
                        if member.isreg() and not member.issparse() and self._wants(field)
                    }
                    samples.setdefault(printable(name), places)
            except BadShard:
                pass  # said when features were extracted; the samples before the fault are good
        return samples

    def _wants(self, field: str) -> bool:
        return self._fields is None or field in self._fields

    def _locate(self, shard: str) -> tuple[AbstractFileSystem, str]:
        """The id is joined to the root as a path, never parsed as a URL, since it comes from a store."""
        if shard.startswith("/") or ".." in shard.split("/"):
            raise ValueError(f"shard id {shard!r} leads out of its root; ids are paths below {self._root}")
        fs, root = open_fs(self._root)
        return fs, f"{root.rstrip('/')}/{shard}"

    def _open(self, fs: AbstractFileSystem, path: str, shard: str) -> IO[bytes]:
        try:
            return fs.open(path, "rb")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self._root} has no shard {shard!r}; give the folder or URL that shard ids start from"
            ) from error
