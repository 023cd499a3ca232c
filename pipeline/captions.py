"""A folder of captions, written by the caption job and read by extraction: one Parquet file a shard.

captions = Captions("s3://bucket/captions")
captions.of("train-0000.tar")  # {key: caption}
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline import storage
from pipeline.differences import told
from pipeline.listing import Shard
from pipeline.tables import to_parquet
from schemas.captions import MANIFEST, SHARDS, TABLE, CaptionsManifest, file_name

_SHARDS_HELD = 8
_REQUESTS = 32


class CaptionsError(ValueError):
    """A folder that holds no captions, not those asked for, or captions of another kind."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        """There is nothing in the folder."""


@dataclass(frozen=True)
class CaptionRecord:
    """A sample's outcome. `key` None speaks of the shard as such."""

    position: int
    key: str | None
    caption: str | None = None
    reason: str | None = None
    detail: str = ""
    sha256: str | None = None


class Captions:
    """A folder of captions, read lazily; for one thread or many.

    Every method raises CaptionsError for a folder without captions, or with such as this release cannot read.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._held = lru_cache(_SHARDS_HELD)(self._read)

    @cached_property
    def manifest(self) -> CaptionsManifest:
        """What the captions are."""
        fs, root = storage.open_fs(self.url)
        try:
            data = fs.cat_file(f"{root}/{MANIFEST}")
        except (FileNotFoundError, NotADirectoryError):
            raise CaptionsError(
                f"no captions at {self.url}: there is no {MANIFEST}; `gatehouse caption` makes one",
                missing=True,
            ) from None
        try:
            return CaptionsManifest.model_validate_json(data)
        except ValidationError as error:
            raise CaptionsError(
                f"captions {self.url}: {MANIFEST} cannot be read ({error.errors()[0]['msg']}); use the release that"
                " wrote it"
            ) from error

    def fingerprint(self) -> str:
        """Hash of all that the captions depend on beside the images: model, prompt, settings."""
        return self.manifest.fingerprint

    def of(self, shard_id: str) -> dict[str, str]:
        """The captions of a shard, by key; samples that could not be captioned are left out.

        Raises:
            CaptionsError: the shard has none yet.
            OSError: storage failed.
        """
        return self._held(shard_id)

    def has(self, shards: Sequence[Shard]) -> list[bool]:
        """Which shards have captions. Raises OSError when storage fails."""
        fs, root = storage.open_fs(self.url)
        there = set(storage.names(fs, f"{root}/{SHARDS}"))
        return [file_name(shard.id).rpartition("/")[2] in there for shard in shards]

    def check(self, shards: Sequence[Shard]) -> None:
        """Refuse captions that lack some of these shards; one listing, whatever their number.

        Raises:
            CaptionsError: names them.
        """
        self.fingerprint()  # so that a folder without captions is said to be one
        found = self.has(shards)
        if lacking := [shard.id for shard, there in zip(shards, found, strict=True) if not there]:
            more = f" and {len(lacking) - 5:,} more" if len(lacking) > 5 else ""
            raise CaptionsError(
                f"captions {self.url}: {len(lacking):,} of {len(shards):,} shards have none yet:"
                f" {', '.join(lacking[:5])}{more}; caption them first (`gatehouse caption`, with the same input.root)"
            )

    def check_unchanged(self, shards: Sequence[Shard]) -> None:
        """Refuse shards with captions whose size or version has changed since.

        Raises:
            CaptionsError: names them.
        """
        with ThreadPoolExecutor(_REQUESTS) as pool:
            changed = [line for line in pool.map(self._change, shards) if line]
        if changed:
            raise CaptionsError(
                "\n  ".join(
                    [f"captions {self.url}: shards changed after they were captioned:", *changed[:20]]
                )
                + "\nPut the old files back, or caption the new ones into another folder."
            )

    def _change(self, shard: Shard) -> str | None:
        metadata = self._table(shard.id).schema.metadata
        size, version = int(metadata[b"size"]), metadata[b"version"].decode()
        if (size, version) == (shard.size, shard.version):
            return None
        return (
            f"{shard.id}: {size} bytes, version {version} when captioned; now {shard.size}, {shard.version}"
            f" ({file_name(shard.id)})"
        )

    def _read(self, shard_id: str) -> dict[str, str]:
        lines = self._table(shard_id).select(["key", "caption"]).to_pylist()
        return {line["key"]: line["caption"] for line in lines if line["caption"] is not None}

    def _table(self, shard_id: str) -> pa.Table:
        fs, root = storage.open_fs(self.url)
        fingerprint = self.fingerprint()
        path = file_name(shard_id)
        try:
            data = fs.cat_file(f"{root}/{path}")
        except FileNotFoundError:
            raise CaptionsError(
                f"captions {self.url}: shard {shard_id!r} has none yet; caption it first (`gatehouse caption`, with the"
                " same input.root)"
            ) from None
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowInvalid, OSError) as error:
            raise CaptionsError(
                f"captions {self.url}: {path} is damaged ({error}); remove it and caption its shard again"
            ) from error
        if (table.schema.metadata or {}).get(b"identity") != fingerprint.encode():
            raise CaptionsError(
                f"captions {self.url}: {path} was made under other settings than {MANIFEST} says; remove it and"
                " caption its shard again"
            )
        return table


def open_captions(url: str, wanted: CaptionsManifest) -> Captions:
    """Begin a folder, or go on with the one that is there.

    Raises:
        CaptionsError: the folder holds captions of another model, prompt or setting; lists every difference.
    """
    fs, root = storage.open_fs(url)
    storage.create(fs, f"{root}/{MANIFEST}", wanted.to_bytes())
    captions = Captions(url)
    check_same(captions, wanted.identity)
    return captions


def check_same(captions: Captions, wanted: dict[str, Any]) -> None:
    """Refuse to mix captions of two models, prompts or settings.

    Raises:
        CaptionsError: lists every difference.
    """
    if shown := told(captions.manifest.identity, wanted, "folder"):
        raise CaptionsError(
            f"captions {captions.url} were made otherwise than this spec says:\n{shown}\n"
            "Give the spec another folder, or put these values back."
        )


def write(captions: Captions, shard: Shard, records: Sequence[CaptionRecord]) -> bool:
    """Store a shard's captions, whole and once; False where another run was first, whose captions stay."""
    columns = {
        "key": [record.key for record in records],
        "position": [record.position for record in records],
        "status": ["ok" if record.reason is None else "failed" for record in records],
        "reason": [record.reason for record in records],
        "detail": [record.detail for record in records],
        "caption": [record.caption for record in records],
        "sha256": [record.sha256 for record in records],
    }
    facts = {
        "shard": shard.id,
        "size": str(shard.size),
        "version": shard.version,
        "identity": captions.fingerprint(),
    }
    table = pa.table(columns, schema=TABLE.with_metadata(facts))
    fs, root = storage.open_fs(captions.url)
    return storage.create(fs, f"{root}/{file_name(shard.id)}", to_parquet(table))
