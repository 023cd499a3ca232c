"""The store's layout: where every object lies, and the columns of its tables.

    STORE/
      zarr.json                              root group (Zarr v3)
      manifest.json                          what the features are; created once
      features/GROUP/TAP/zarr.json           one array [rows, C, h, w] a (group, tap)
      features/GROUP/TAP/c/BLOCK/0/0/0       one Zarr shard: the rows of one block
      claims/EXTENT.json                     create-only: this attempt owns these rows
      attempts/DIGEST/ATTEMPT/*.parquet      what an attempt says of its rows: index, pooled, objects
      markers/DIGEST-ROUND.json              create-only: this attempt is the shard's outcome
      compact/SEQUENCE.json, *.parquet       many markers and indexes in one, derived from them
      runs/TIME-ID.json                      how each run ended
      leases/drivers/DRIVER.json             a driver lives: stored by it again and again, removed at its end
      leases/job-NUMBER.json                 create-only: the driver that has the job to itself
      leases/shards/DIGEST-ROUND-NUMBER.json create-only: the driver that does a shard, where several share a job

DIGEST names an input shard (hash of its id), ROUND counts tries at a shard (0, then retries and continuations), an
EXTENT is a fixed number of consecutive rows, in whole blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 2
"""Of all that a store holds. A release reads stores of one version only and refuses others, rather than guess what an
older one lacks: 1 had no `box` in its index, and other timesteps in its manifest."""
MANIFEST = "manifest.json"
CLAIMS, ATTEMPTS, MARKERS, COMPACT, RUNS = "claims", "attempts", "markers", "compact", "runs"
LEASES, DRIVERS = "leases", "leases/drivers"
JOB: Final = "job"
"""The lease on the job as a whole; those on shards are named by `shard_lease`."""


def digest(shard_id: str) -> str:
    """Name of a shard in object keys: ids are free text, and hashed prefixes spread the load on object stores."""
    return hashlib.sha256(shard_id.encode()).hexdigest()[:32]


def array_path(group: str, tap: str) -> str:
    """Path of a (group, tap) array inside the store."""
    return f"features/{group}/{tap}"


def block_path(group: str, tap: str, block: int, ndim: int) -> str:
    """Path of the Zarr shard that holds rows `block * rows_per_block` onward of an array of `ndim` dimensions."""
    return "/".join([array_path(group, tap), "c", str(block), *["0"] * (ndim - 1)])


def claim_path(extent: int) -> str:
    """Path of the claim on an extent of rows."""
    return f"{CLAIMS}/{extent:010d}.json"


def attempt_path(shard_id: str, attempt: str) -> str:
    """Folder of an attempt's tables."""
    return f"{ATTEMPTS}/{digest(shard_id)}/{attempt}"


def marker_name(shard_id: str, round_: int) -> str:
    """File name of the marker that commits round `round_` of a shard."""
    return f"{digest(shard_id)}-{round_:04d}.json"


def parse_marker(name: str) -> tuple[str, int] | None:
    """(digest, round) of a marker's file name, or None for a stranger in the folder."""
    stem, _, ending = name.partition(".")
    shard, _, round_ = stem.partition("-")
    return (shard, int(round_)) if ending == "json" and len(shard) == 32 and round_.isdigit() else None


def lease_path(resource: str, number: int) -> str:
    """Path of a lease."""
    return f"{LEASES}/{resource}-{number:06d}.json"


def shard_lease(shard_id: str, round_: int) -> str:
    """The resource that a driver leases before it does a round of a shard."""
    return f"shards/{digest(shard_id)}-{round_:04d}"


def heartbeat_path(driver: str) -> str:
    """Path of a driver's heartbeat."""
    return f"{DRIVERS}/{driver}.json"


BOX: Final = pa.struct([(side, pa.int32()) for side in ("top", "left", "height", "width")])
"""A part of an image, pixels."""


def index_schema(groups: Sequence[str], *, scores: bool = False) -> pa.Schema:
    """Columns of the index: one record a sample and round, and one with a null key for a shard that failed as such.

    `status` is ok, partial (some groups failed) or failed; `groups` holds status and reason of each feature group.
    `box` is where the picture lies within `image_size`: all of it, but with `fit: pad`, where the rest is padding;
    `pipeline.geometry.cells` makes a mask of it. What `fit: crop` kept of the original follows from `height` and
    `width`: `pipeline.geometry.placement`. `scores`, where the store has them (`output.scores`), is by group how little
    the row has shifted: `pipeline.scores`.
    """
    text = pa.large_string()  # 32-bit offsets end at 2 GiB a column, which is some thirty million hashes
    outcome = pa.struct([("status", text), ("reason", text)])
    return pa.schema(
        [
            ("row", pa.int64()),  # in every array; null where nothing is stored
            ("shard", text),
            ("key", text),
            ("position", pa.int64()),  # of the sample in its shard
            ("round", pa.int32()),
            ("attempt", text),
            ("status", text),
            ("reason", text),
            ("detail", text),
            ("caption", text),  # the one that prompts take, from the shard or the caption job
            ("height", pa.int32()),  # of the original image, pixels, upright
            ("width", pa.int32()),
            ("box", BOX),  # null where the image could not be decoded
            ("sha256", text),  # of the image's bytes
            ("groups", pa.struct([(group, outcome) for group in groups])),
            # Null where the group failed, or stores no map that has one; NaN where the anchor has no shift.
            *([("scores", pa.struct([(group, pa.float32()) for group in groups]))] if scores else []),
        ]
    )


OBJECTS_SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64()), ("sha256", pa.string())])
"""What an attempt wrote, relative to the store."""


def pooled_schema(vectors: dict[tuple[str, str], int]) -> pa.Schema:
    """Columns of the pooled table for {(group, tap): channels}.

    A vector is little-endian float32 in plain bytes, its shape in the field's metadata: reading that back is about
    1.5 times as fast as a fixed-size list (`make bench` measures both).
    """
    fields = [pa.field("row", pa.int64()), pa.field("shard", pa.string()), pa.field("key", pa.string())]
    for (group, tap), channels in vectors.items():
        metadata = {"dtype": "<f4", "shape": str(channels)}
        fields.append(pa.field(f"{group}/{tap}", pa.binary(), metadata=metadata))
    return pa.schema(fields)
