"""The small JSON objects of a store: manifest, claims, markers, compactions, run records.

All are immutable, validated when read, and small whatever the size of the shard they speak of.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.layout import SCHEMA_VERSION


class Receipt(BaseModel):
    """Immutable; unknown keys are refused, so that an object of another version is never half understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """As stored."""
        return self.model_dump_json(indent=1).encode()


class ArrayLayout(Receipt):
    """One (group, tap) array."""

    group: str
    tap: str
    shape: list[int]
    """Of a row: [C, h, w] for maps."""
    dtype: Literal["float16", "float32"]

    @property
    def row_bytes(self) -> int:
        """Uncompressed bytes a row."""
        size = 2 if self.dtype == "float16" else 4
        for side in self.shape:
            size *= side
        return size


class Manifest(Receipt):
    """What the features in a store are. Created once; a job with another identity is refused."""

    schema_version: Literal[2] = SCHEMA_VERSION
    gatehouse: str
    """Version that created the store."""
    identity: dict[str, Any]
    """All that a stored value depends on; see `pipeline.identity`."""
    arrays: list[ArrayLayout]
    rows_per_block: int = Field(ge=1)
    rows_per_extent: int = Field(ge=1)
    spec: dict[str, Any]
    """The full spec of the job that created the store."""
    libraries: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the identity; every marker carries it."""
        return fingerprint(self.identity)

    @property
    def groups(self) -> list[str]:
        """Group names in the spec's order."""
        return [group["name"] for group in self.identity["groups"]]

    @property
    def timesteps(self) -> dict[str, int]:
        """Per group, the timestep that the network really sees."""
        return {group["name"]: group["timestep"] for group in self.identity["groups"]}

    @property
    def scored(self) -> bool:
        """Whether the index has a Score of each group."""
        return self.identity["output"].get("scores") is not None


def fingerprint(identity: dict[str, Any]) -> str:
    """Hash of a canonical JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Claim(Receipt):
    """An attempt owns one extent of rows in every array, for ever."""

    extent: int
    shard: str
    round: int
    attempt: str


class FileRef(Receipt):
    """An object of the store, by path relative to it."""

    path: str
    size: int
    sha256: str


class Marker(Receipt):
    """An attempt is the outcome of a shard's round. Created last, after everything it names was stored and checked."""

    schema_version: Literal[2] = SCHEMA_VERSION
    identity: str
    """Fingerprint of the manifest's identity."""
    shard: str
    size: int
    """Bytes of the input shard."""
    version: str
    """ETag or modification time of the input shard."""
    round: int
    attempt: str
    stop: int
    """Samples at positions before this have an outcome, in this or an earlier round."""
    complete: bool
    """False when a limit cut the shard at `stop`; a later round goes on from there."""
    extents: list[int]
    rows: int
    counts: dict[str, int]
    """Index records by reason, `ok` for none."""
    index: FileRef
    objects: FileRef
    pooled: FileRef | None
    device: str
    """Model of the device that computed."""


class Compaction(Receipt):
    """Markers and indexes up to some moment, in few files. Derived data: the markers remain the truth."""

    schema_version: Literal[2] = SCHEMA_VERSION
    ledgers: list[FileRef]
    """Parquet: one record a marker, with its name and its JSON."""
    indexes: list[FileRef]
    """Parquet: the index records of those markers."""


class RunRecord(Receipt):
    """How a run ended; `ray job submit` flattens exit codes, this does not."""

    schema_version: Literal[2] = SCHEMA_VERSION
    exit_code: int
    outcome: str
    started: str
    seconds: float
    images: int
    counts: dict[str, int]
    set_aside: list[str]
    device: str
    actors: int
    left: int = 0
    """Shards of its input without an outcome, or cut, when it ended: it had a limit, or was stopped."""
