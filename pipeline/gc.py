"""What lost and dead attempts left behind, and old compactions: found first, then removed.

An attempt whose round another attempt has committed can never commit, since markers are create-only; so its blocks and
tables are garbage for certain. An attempt whose round has no marker may still be at work somewhere, however old it
is: it is left alone unless the caller vouches that no job runs. Claims stay for ever, since a row range that could be
claimed anew might be written by two. A lease on a shard is garbage once its round is decided, and one on the job once
there is a newer one; heartbeats are left alone unless the caller vouches, as attempts are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline import inventory, ledger, storage
from pipeline.ledger import Ledger
from pipeline.store import read_manifest
from schemas.layout import (
    ATTEMPTS,
    CLAIMS,
    COMPACT,
    DRIVERS,
    JOB,
    LEASES,
    claim_path,
    heartbeat_path,
    shard_lease,
)
from schemas.receipts import Claim, Manifest

_REQUESTS = 32
_STAGED = re.compile(r"[^/]*\.[0-9a-f]{32}\.part(ial)?$")  # ours, and zarr's


@dataclass(frozen=True)
class Garbage:
    """An object that nothing committed needs."""

    kind: str
    """blocks, tables, compactions, leases, or unfinished (staging files and probes of jobs that died)."""
    path: str
    """Relative to the store."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Findings:
    """What may be removed."""

    garbage: list[Garbage]
    dead: set[str]
    """Attempts that lost, whether or not anything of theirs is left; with `abandoned` also those without an outcome."""
    undecided: set[str]
    """Attempts that may still be at work, and are left alone."""


def find(url: str, *, abandoned: bool, driver: str | None = None) -> Findings:
    """Look for garbage; nothing is changed.

    Args:
        url: of the store.
        abandoned: take attempts without an outcome for dead. No job may be running.
        driver: id of the caller's own, which is alive.

    Raises:
        StoreError: no store there, or one of another schema version.
    """
    manifest = read_manifest(url)
    fs, root = storage.open_fs(url)
    committed = ledger.read_ledger(url)
    winners = {marker.attempt for marker in committed.markers}
    lost, open_, extents = _losers(fs, root, committed)
    tables = {
        path: size for path, size in inventory.files(fs, root, ATTEMPTS).items() if path.count("/") == 3
    }
    open_ |= {_attempt(path) for path in tables} - winners - lost
    dead = lost | open_ if abandoned else lost
    garbage = [Garbage("tables", path, size) for path, size in tables.items() if _attempt(path) in dead]
    garbage += _blocks(fs, root, manifest, {extent for extent, attempt in extents.items() if attempt in dead})
    garbage += _compactions(fs, root, committed)
    garbage += _leases(fs, root, committed, abandoned=abandoned, driver=driver)
    if abandoned:
        known = {one.path for one in garbage}
        garbage += [one for one in _unfinished(fs, root) if one.path not in known]
    return Findings(garbage, dead, open_ - dead)


def remove(url: str, findings: Findings) -> None:
    """Remove what was found, after a last look at what is committed.

    Raises:
        ValueError: an attempt has committed meanwhile, so a job is running; nothing was removed.
    """
    manifest = read_manifest(url)
    fs, root = storage.open_fs(url)
    committed = ledger.read_ledger(url)
    if late := findings.dead & {marker.attempt for marker in committed.markers}:
        raise ValueError(
            f"store {url}: attempt {min(late)} has just committed, so a job is running; nothing was removed."
            " Run again without --abandoned, or when the job has ended"
        )
    needed = _Needed(manifest, committed)
    assert not any(needed.has(one.path) for one in findings.garbage), "garbage that is committed"
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for _ in pool.map(lambda one: _remove(fs, root, one.path), findings.garbage):
            pass  # consuming the results raises whatever went wrong


class _Needed:
    """Knows every object that a marker or the newest compaction stands on."""

    def __init__(self, manifest: Manifest, committed: Ledger) -> None:
        self._blocks_per_extent = manifest.rows_per_extent // manifest.rows_per_block
        self._extents = {extent for marker in committed.markers for extent in marker.extents}
        refs = [
            ref
            for marker in committed.markers
            for ref in (marker.index, marker.objects, marker.pooled)
            if ref
        ]
        if committed.compaction is not None:
            refs += [*committed.compaction.ledgers, *committed.compaction.indexes]
        self._paths = {ref.path for ref in refs}

    def has(self, path: str) -> bool:
        folder, _, inside = path.partition("/c/")
        if folder.startswith("features/") and not _STAGED.search(path):
            return int(inside.partition("/")[0]) // self._blocks_per_extent in self._extents
        return path in self._paths


def _losers(
    fs: AbstractFileSystem, root: str, committed: Ledger
) -> tuple[set[str], set[str], dict[int, str]]:
    """Attempts that lost, attempts without an outcome, and the attempt of each extent that is not committed."""
    rounds = {(marker.shard, marker.round): marker.attempt for marker in committed.markers}
    used = {extent for marker in committed.markers for extent in marker.extents}
    names = [name.partition(".")[0] for name in storage.names(fs, f"{root}/{CLAIMS}")]
    claimed = [int(name) for name in names if name.isdigit() and int(name) not in used]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        data = pool.map(lambda extent: fs.cat_file(f"{root}/{claim_path(extent)}"), claimed)
        claims = [Claim.model_validate_json(text) for text in data]
    lost, open_ = set[str](), set[str]()
    for claim in claims:
        winner = rounds.get((claim.shard, claim.round))
        if winner != claim.attempt:
            (open_ if winner is None else lost).add(claim.attempt)
    return lost, open_, {claim.extent: claim.attempt for claim in claims}


def _blocks(fs: AbstractFileSystem, root: str, manifest: Manifest, extents: set[int]) -> Iterator[Garbage]:
    if not extents or not manifest.identity["output"]["maps"]:
        return
    for layout in manifest.arrays:
        for one in inventory.blocks(fs, root, layout):
            if one.block * manifest.rows_per_block // manifest.rows_per_extent in extents:
                yield Garbage("blocks", one.path, one.size)


def _compactions(fs: AbstractFileSystem, root: str, committed: Ledger) -> Iterator[Garbage]:
    """Compactions older than the newest that is whole, and files up to its number that it does not name.

    A compaction in the making has a higher number: its files are there before the object that names them.
    """
    if committed.compaction is None:
        return
    needed = {ref.path for ref in (*committed.compaction.ledgers, *committed.compaction.indexes)}
    newest = max(map(_sequence, needed))
    for path, size in inventory.files(fs, root, COMPACT).items():
        if path in needed or _sequence(path) < 0:
            continue
        if _sequence(path) < newest or (_sequence(path) == newest and path.endswith(".parquet")):
            yield Garbage("compactions", path, size)


def _leases(
    fs: AbstractFileSystem, root: str, committed: Ledger, *, abandoned: bool, driver: str | None
) -> Iterator[Garbage]:
    """The newest lease on the job always stays, so that its number is never given again."""
    decided = {f"{LEASES}/{shard_lease(marker.shard, marker.round)}" for marker in committed.markers}
    found = {path: size for path, size in inventory.files(fs, root, LEASES).items() if path.endswith(".json")}
    on_job = sorted(path for path in found if path.startswith(f"{LEASES}/{JOB}-"))
    for path, size in found.items():
        if path.startswith(f"{DRIVERS}/"):
            dead = abandoned and (driver is None or path != heartbeat_path(driver))
        elif path in on_job:
            dead = path != on_job[-1]
        else:
            dead = abandoned or path.rpartition("-")[0] in decided
        if dead:
            yield Garbage("leases", path, size)


def _unfinished(fs: AbstractFileSystem, root: str) -> Iterator[Garbage]:
    """Objects on their way into the store when a job died, and those by which a job tries its rights."""
    for name in storage.names(fs, root):
        if name.startswith("probe-"):
            yield Garbage("unfinished", name, int(fs.info(f"{root}/{name}")["size"]))
    if isinstance(fs, LocalFileSystem):
        for path, size in inventory.files(fs, root, "").items():
            if _STAGED.search(path):
                yield Garbage("unfinished", path, size)


def _remove(fs: AbstractFileSystem, root: str, path: str) -> None:
    with suppress(FileNotFoundError):  # another gc was faster
        fs.rm_file(f"{root}/{path}")
    if isinstance(fs, LocalFileSystem):
        _remove_folders(root, path)


def _remove_folders(root: str, path: str) -> None:
    """On a file system, the folders that only this object's attempt used: those below `c/` or a shard's digest."""
    parts = path.split("/")
    owned = 4 if path.startswith("features/") else 2 if path.startswith(f"{ATTEMPTS}/") else len(parts)
    with suppress(OSError):  # not empty yet
        for depth in range(len(parts) - 1, owned, -1):
            os.rmdir(os.path.join(root, *parts[:depth]))


def _attempt(path: str) -> str:
    """Of attempts/DIGEST/ATTEMPT/FILE."""
    return path.split("/")[2]


def _sequence(path: str) -> int:
    """Of compact/SEQUENCE.json and compact/SEQUENCE-NAME.parquet; -1 for strangers."""
    number = re.match(rf"{COMPACT}/(\d+)[-.]", path)
    return int(number[1]) if number else -1
