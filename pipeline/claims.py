"""Who owns which rows: one create-only object an extent, so that no two attempts ever write the same place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fsspec import AbstractFileSystem

from pipeline import storage
from schemas.layout import CLAIMS, claim_path
from schemas.receipts import Claim

_PROBES = 16


def next_free(fs: AbstractFileSystem, root: str) -> int:
    """The first extent after all that are claimed."""
    claimed = [name.partition(".")[0] for name in storage.names(fs, f"{root}/{CLAIMS}")]
    return max((int(name) for name in claimed if name.isdigit()), default=-1) + 1


def claim(fs: AbstractFileSystem, root: str, hint: int, *, shard: str, round_: int, attempt: str) -> int:
    """Claim one extent for an attempt, at `hint` or soon after it.

    Nothing is lost when an attempt dies after its claim: rows that nobody wrote take no space.
    """
    candidates = itertools.chain(range(hint, hint + _PROBES), _listed(fs, root))
    for extent in candidates:
        mine = Claim(extent=extent, shard=shard, round=round_, attempt=attempt).to_bytes()
        path = f"{root}/{claim_path(extent)}"
        if storage.create(fs, path, mine) or fs.cat_file(path) == mine:
            return extent
    raise AssertionError("unreachable: the candidates do not end")


def _listed(fs: AbstractFileSystem, root: str) -> Iterator[int]:
    """Lists only once the first is asked for: at 10^5 shards a listing takes a hundred requests."""
    yield from itertools.count(next_free(fs, root))
