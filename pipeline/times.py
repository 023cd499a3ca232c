"""When a store's objects were written, and what time it is, by the store's own clock: machines may differ at will."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from fsspec import AbstractFileSystem

from schemas.layout import MANIFEST


def written(fs: AbstractFileSystem, folder: str) -> dict[str, float]:
    """When each object of a folder was last written, in seconds since 1970 by the store's clock."""
    try:
        found: Iterable[dict[str, Any]] = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    files = {str(info["name"]).rsplit("/", 1)[-1]: info for info in found if info["type"] == "file"}
    return {name: modified(info) for name, info in files.items() if name}


def modified(info: dict[str, Any]) -> float:
    """Seconds, by the store's clock; object stores tell it in whole seconds."""
    return float(info["mtime"]) if "mtime" in info else float(info["LastModified"].timestamp())


def now(fs: AbstractFileSystem, root: str) -> float:
    """The time by the store's clock: S3 tells it with every answer; a file system's is taken to be this machine's."""
    if "s3" not in fs.protocol:
        return datetime.now(UTC).timestamp()
    bucket, key, _ = fs.split_path(f"{root}/{MANIFEST}")
    answer = fs.call_s3("head_object", Bucket=bucket, Key=key)
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
