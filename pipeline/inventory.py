"""Which objects a store's arrays really have, committed or not: one listing an array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fsspec import AbstractFileSystem

from schemas.layout import array_path
from schemas.receipts import ArrayLayout


@dataclass(frozen=True)
class StoredBlock:
    """An object below an array's `c/`."""

    block: int
    path: str
    """Relative to the store."""
    size: int
    """Bytes."""


def files(fs: AbstractFileSystem, root: str, folder: str) -> dict[str, int]:
    """Sizes in bytes of all objects below a folder of the store, by path relative to the store."""
    found = fs.find(f"{root}/{folder}", detail=True)
    return {path[len(root) + 1 :]: int(info["size"] or 0) for path, info in found.items()}


def blocks(fs: AbstractFileSystem, root: str, layout: ArrayLayout) -> Iterator[StoredBlock]:
    """Every object that holds rows of an array, or was to."""
    folder = f"{array_path(layout.group, layout.tap)}/c"
    for path, size in files(fs, root, folder).items():
        block = path[len(folder) + 1 :].partition("/")[0]
        if block.isdigit():
            yield StoredBlock(int(block), path, size)
