"""Objects in and out of a URL: create-only, checked after upload, listed, with one policy for retries.

A store's guarantees rest on two operations that a plain file system call does not give: `create`, which lets exactly
one writer win, and `put`, which returns only when what was stored is what was sent.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

# Adaptive mode backs off with jitter and lowers the rate of a client that the server throttles. Listings are not
# cached, since other drivers write to the same store.
_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"retries": {"mode": "adaptive", "max_attempts": 8}, "max_pool_connections": 64},
    "use_listings_cache": False,
}
_SINGLE_PUT_BYTES = 5 * 2**30  # up to here one PUT, whose ETag is the content's MD5, is allowed


class StorageError(OSError):
    """An object store that refused or lost something; the message names the object and the cure."""


def options(url: str) -> dict[str, Any]:
    """What every file system object for this URL is made with."""
    return _S3_OPTIONS if get_protocol(url) in ("s3", "s3a") else {}


def open_fs(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path inside it. Credentials come from the environment or the instance's role.

    Raises:
        ValueError: a protocol that no installed fsspec plugin serves, or one that would run a shell.
    """
    protocol = get_protocol(url)
    if url.startswith("pipe:"):
        raise ValueError(f"{url!r}: 'pipe:' runs a shell and is not supported; give a path or an fsspec URL")
    try:
        fs, path = url_to_fs(url, **options(url))
    except (ValueError, ImportError) as error:
        raise ValueError(f"{url!r}: no installed fsspec plugin opens {protocol!r} URLs ({error})") from error
    return fs, str(path)


def create(fs: AbstractFileSystem, path: str, data: bytes) -> bool:
    """Create an object that must not exist yet. False, and nothing changed, when it exists.

    The object is whole or absent at every moment. A request whose answer was lost may have succeeded, so a caller
    that gets False reads the object to see whether it is its own.
    """
    if isinstance(fs, LocalFileSystem):
        return _create_local(path, data)
    if "s3" not in fs.protocol and "s3a" not in fs.protocol:
        raise ValueError(
            f"stores live on a local file system or S3, not {fs.protocol!r}: no create-only write known"
        )
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if _error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
            return False
        raise
    return True


def put(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Store an object and check what was stored: by the server's MD5 where it gives one, else by reading back.

    Raises:
        StorageError: what the store holds differs from what was sent.
    """
    if isinstance(fs, LocalFileSystem):
        _replace_local(path, data)
    else:
        answer = fs.pipe_file(path, data, chunksize=_SINGLE_PUT_BYTES)
        etag = answer.get("ETag", "").strip('"') if isinstance(answer, dict) else ""
        if etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return
    if fs.cat_file(path) != data:
        raise StorageError(
            f"{path}: the {len(data)} bytes read back differ from those sent; check disk or network"
        )


def names(fs: AbstractFileSystem, folder: str) -> list[str]:
    """Names of the objects directly in a folder, sorted; empty when there is none."""
    try:
        found = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return []
    return sorted(str(info["name"]).rsplit("/", 1)[-1] for info in found if info["type"] == "file")


def check_writable(url: str) -> None:
    """Try every right that a job needs on its store, and that create-only writes are really exclusive.

    Raises:
        StorageError: names the missing right.
    """
    fs, root = open_fs(url)
    probe = f"{root}/probe-{uuid.uuid4().hex}"
    step = "create"
    try:
        first, second = create(fs, probe, b"probe"), create(fs, probe, b"again")
        step = "read"
        fs.cat_file(probe)
        step = "list"
        names(fs, root)
        step = "delete"
        fs.rm_file(probe)
    except OSError as error:
        raise StorageError(
            f"store {url}: no right to {step} objects ({error}); the job needs to create, read, list and delete there"
        ) from error
    if not first or second:
        raise StorageError(
            f"store {url}: a second create of one object was not refused, so this object store ignores"
            " If-None-Match and cannot hold a feature store safely"
        )


def _create_local(path: str, data: bytes) -> bool:
    """A hard link appears whole or not at all, and is refused where the name is taken."""
    staged = _stage_local(path, data)
    try:
        os.link(staged, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(staged)
    _sync_folder(path)
    return True


def _replace_local(path: str, data: bytes) -> None:
    os.replace(_stage_local(path, data), path)
    _sync_folder(path)


def _stage_local(path: str, data: bytes) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    staged = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.part")
    with open(staged, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return staged


def _sync_folder(path: str) -> None:
    handle = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _error_code(error: BaseException | None) -> str:
    """The S3 error code behind an exception that s3fs translated, or an empty string."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
