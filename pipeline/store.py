"""A store as a job sees it: created once, recognised afterwards."""

from __future__ import annotations

import socket

from pydantic import ValidationError

from pipeline import arrays, storage
from schemas.layout import MANIFEST, SCHEMA_VERSION
from schemas.receipts import Manifest


class StoreError(ValueError):
    """A store that is not there (`missing`), or that this release cannot read."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def read_manifest(url: str) -> Manifest:
    """The manifest of a store.

    Raises:
        StoreError: no store there, or one of another schema version.
    """
    fs, root = storage.open_fs(url)
    try:
        data = fs.cat_file(f"{root}/{MANIFEST}")
    except FileNotFoundError:
        raise StoreError(
            f"no feature store at {url}: there is no {MANIFEST}; `gatehouse extract` makes one", missing=True
        ) from None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(
            f"store {url}: its {MANIFEST} is not of schema version {SCHEMA_VERSION}, the one that this release reads;"
            f" use the release that wrote it ({error.error_count()} differences, first: {error.errors()[0]['msg']})"
        ) from error


def check_shared(url: str, manifest: Manifest) -> None:
    """That a worker's URL leads to its driver's store, and not to a folder of the worker's own machine.

    Raises:
        StoreError: there is no store, or another one.
    """
    try:
        there = read_manifest(url)
    except StoreError:
        there = None
    if there != manifest:
        raise StoreError(
            f"store {url}: host {socket.gethostname()} does not see there what the driver wrote; give an s3:// URL, or"
            " a folder that all nodes of the cluster share",
            missing=there is None,
        )


def open_store(url: str, wanted: Manifest) -> Manifest:
    """Create the store, or go on with the one that is there, whose manifest is returned.

    Raises:
        IdentityError: the store holds other features.
    """
    from pipeline.identity import check_same  # only where it is needed: readers must not wait for diffusers

    fs, root = storage.open_fs(url)
    storage.create(fs, f"{root}/{MANIFEST}", wanted.to_bytes())
    manifest = read_manifest(url)
    check_same(url, manifest, wanted.identity)
    if manifest.identity["output"]["maps"]:
        arrays.create_arrays(url, manifest)
    return manifest
