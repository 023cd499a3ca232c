"""Objects in and out of a URL: create-only, checked after upload, listed, with one policy for retries.

A store's guarantees rest on two operations that a plain file system call does not give: `create`, which lets exactly
one writer win, and `put`, which returns only when what was stored is what was sent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
_CONFLICTS = 6  # in a row, with 6 s of waiting in all


class StorageError(OSError):
    """An object store that refused or lost something; the message names the object and the cure."""


class DamagedError(StorageError):
    """An object that is there, and is not what was stored."""


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
    if protocol in ("s3", "s3a"):
        from pipeline.s3 import S3  # only where it is needed, since its import takes half a second

        return S3(**options(url)), S3._strip_protocol(url)
    try:
        fs, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{url!r}: no installed fsspec plugin opens {protocol!r} URLs ({error})") from error
    return fs, str(path)


def absolute(url: str) -> str:
    """A local path made absolute, since workers run in other folders; other URLs as they are."""
    fs, path = open_fs(url)
    return path if isinstance(fs, LocalFileSystem) else url


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
    for conflict in range(_CONFLICTS):
        try:
            fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error_code(error) == "PreconditionFailed":
                return False
            # S3 asks to try again where others were writing this object: it may be there then, or not.
            if error_code(error) != "ConditionalRequestConflict":
                raise
        time.sleep(0.1 * 2**conflict)
    raise StorageError(
        f"{path}: {_CONFLICTS} tries to create it met others that were writing it; try again later"
    )


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
    files = (str(info["name"]).rsplit("/", 1)[-1] for info in found if info["type"] == "file")
    return sorted(name for name in files if name)  # some servers list a folder's own, nameless object


def check_writable(url: str, what: str = "store") -> None:
    """Try every right that a job needs on its store, and that create-only writes are really exclusive.

    Raises:
        StorageError: names the missing right.
    """
    fs, root = open_fs(url)
    probe = f"{root}/probe-{uuid.uuid4().hex}"
    found = _try_rights(
        fs,
        probe,
        f"{what} {url}",
        "create, read, list and delete",
        create=lambda: (create(fs, probe, b"probe"), create(fs, probe, b"again")),
        read=lambda: fs.cat_file(probe),
        list=lambda: names(fs, root),
        delete=lambda: fs.rm_file(probe),
    )
    (_, again), held = found["create"], found["read"]
    if again or held != b"probe":
        raise StorageError(
            f"{what} {url}: a second create of one object was not refused, so this object store ignores"
            f" If-None-Match and cannot hold a {what} safely"
        )


def check_puts(url: str) -> None:
    """Try every right that a job needs on a folder where it replaces its few files whole.

    Raises:
        StorageError: names the missing right.
    """
    fs, root = open_fs(url)
    probe = f"{root}/probe-{uuid.uuid4().hex}"
    _try_rights(
        fs,
        probe,
        f"folder {url}",
        "write and delete",
        write=lambda: put(fs, probe, b"probe"),
        delete=lambda: fs.rm_file(probe),
    )


def _try_rights(
    fs: AbstractFileSystem, probe: str, subject: str, needed: str, **steps: Callable[[], Any]
) -> dict[str, Any]:
    """What each step gave, by its name; a step that is refused is named, and takes the object `probe` away."""
    found: dict[str, Any] = {}
    for step, attempt in steps.items():
        try:
            found[step] = attempt()
        except OSError as error:
            with suppress(OSError):
                fs.rm_file(probe)
            raise StorageError(
                f"{subject}: cannot {step} objects there ({error}); the job needs the rights to {needed}"
            ) from error
    return found


def _create_local(path: str, data: bytes) -> bool:
    """A hard link appears whole or not at all, and is refused where the name is taken."""
    with _staged(path, data) as staged:
        try:
            os.link(staged, path)
        except FileExistsError:
            return False
    _sync_folder(path)
    return True


def _replace_local(path: str, data: bytes) -> None:
    with _staged(path, data) as staged:
        os.replace(staged, path)
    _sync_folder(path)


@contextmanager
def _staged(path: str, data: bytes) -> Iterator[str]:
    """A file beside `path` that holds the data durably, until the context ends."""
    staged = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.part")
    try:
        _write(staged, data, path)
        yield staged
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(staged)


def _write(staged: str, data: bytes, path: str) -> None:
    try:
        os.makedirs(os.path.dirname(staged), exist_ok=True)
        with open(staged, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = "; free space there and start again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"{path}: {len(data)} bytes cannot be written ({error.strerror}){full}") from error


def _sync_folder(path: str) -> None:
    handle = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def error_code(error: BaseException | None) -> str:
    """The S3 error code behind an exception that s3fs translated, or an empty string."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
