"""The shards that an input names: patterns on any fsspec URL, expanded, with sizes and versions."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from braceexpand import braceexpand
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline import embedded
from pipeline.storage import open_fs
from schemas.spec import Input

_WILDCARD = re.compile(r"[*?\[]")
_LISTED_TOGETHER = 64  # more names of one folder than this are looked up by listing it, fewer one by one


@dataclass(frozen=True)
class Shard:
    """An input tar as it was when listed."""

    id: str
    """Path under the input's root: posix, no leading slash."""
    url: str
    size: int
    """Bytes; 0 where storage does not tell."""
    version: str
    """ETag on object stores, modification time in ns on file systems."""


def list_shards(spec: Input) -> list[Shard]:
    """Expand the input's patterns into shards with unique ids, sorted by id.

    Raises:
        ValueError: a pattern that matches nothing, a name that does not exist, a shard named twice or not
            under the root, several file systems, or a URL that fsspec cannot open.
        OSError: storage failed.
    """
    if spec.shards == "embedded":
        spec = spec.model_copy(update={"shards": f"{embedded.SHARDS}/*.tar", "root": embedded.SHARDS})
    patterns = [spec.shards] if isinstance(spec.shards, str) else spec.shards
    places = [_place(pattern) for pattern in patterns]
    fs = places[0][0]
    root_fs, root = _place(spec.root) if spec.root else (fs, _common_folder([path for _, path in places]))
    if any(type(other) is not type(fs) for other in [root_fs, *(other for other, _ in places)]):
        raise ValueError(
            f"input.shards and input.root name several file systems ({', '.join(patterns)});"
            " a store's shards share one root, so give each file system a store of its own"
        )
    fs.invalidate_cache()  # shards that were added since an earlier listing must be seen
    shards: dict[str, Shard] = {}
    for pattern, (_, path) in zip(patterns, places, strict=True):
        for file, (size, version) in _expand(fs, path, pattern).items():
            shard = Shard(_id(file, root), url_of(fs, file), size, version)
            if shard.id in shards:
                raise ValueError(f"input.shards: {pattern!r} names {shard.url} again; name each shard once")
            shards[shard.id] = shard
    return [shards[id] for id in sorted(shards)]


def url_of(fs: AbstractFileSystem, path: str) -> str:
    """A URL that opens a path again; for local files the path itself."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _place(url: str) -> tuple[AbstractFileSystem, str]:
    """File system and path of a URL or pattern."""
    if "::" in url:
        raise ValueError(
            f"{url!r}: chained URLs are not supported, since shards are streamed; give a plain URL"
        )
    fs, path = open_fs(url)
    return fs, os.path.normpath(path) if isinstance(fs, LocalFileSystem) else path.rstrip("/")


def _common_folder(paths: list[str]) -> str:
    """The longest folder that all patterns share before any wildcard or brace."""
    folders = [re.split(r"[*?\[{]", path)[0].split("/")[:-1] for path in paths]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "/".join(parts[0] for parts in shared)


def _id(path: str, root: str) -> str:
    prefix = root.rstrip("/") + "/" if root else ""
    if not path.startswith(prefix):
        raise ValueError(
            f"shard {path!r} is not under input.root {root!r}; its id is its path under the root"
        )
    id = path[len(prefix) :].lstrip("/")
    try:
        id.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"shard {path!r}: the name is not valid UTF-8; rename the file") from error
    return id


def _expand(fs: AbstractFileSystem, path: str, pattern: str) -> dict[str, tuple[int, str]]:
    """Size and version of each file that a pattern names, by path."""
    try:
        names = list(braceexpand(path)) if "{" in path else [path]
    except ValueError as error:
        raise ValueError(f"input.shards: {pattern!r}: {error}; close each brace") from error
    plain = _look_up(fs, [name for name in names if not _WILDCARD.search(name)])
    found: dict[str, tuple[int, str]] = {}
    missing = []
    for name in names:
        matches = fs.glob(name, detail=True) if _WILDCARD.search(name) else plain.get(name, {})
        files = {
            file: facts for file, info in matches.items() if (facts := _size_and_version(fs, file, info))
        }
        found |= files
        if not files:
            missing.append(name)
    if missing:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(
            f"input.shards: {pattern!r}: no such file: {some}; add /*.tar to a folder to mean the tars in it"
        )
    return found


def _look_up(fs: AbstractFileSystem, names: list[str]) -> dict[str, dict[str, Any]]:
    """What storage knows of those names that exist: {name: {name: facts}}, in the form that `fs.glob` has."""
    folders = defaultdict(list)
    for name in names:
        folders[posixpath.dirname(name)].append(name)
    known: dict[str, dict[str, Any]] = {}
    for folder, members in folders.items():
        listed: dict[str, Any] = {}
        if len(members) > _LISTED_TOGETHER and fs.exists(folder):
            listed = {info["name"]: info for info in fs.ls(folder, detail=True) if info["size"] is not None}
        for name in members:
            try:
                known[name] = {name: listed.get(name) or fs.info(name)}
            except FileNotFoundError:
                continue
    return known


def _size_and_version(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> tuple[int, str] | None:
    """None for what is no file."""
    if isinstance(
        fs, LocalFileSystem
    ):  # of which fsspec gives seconds, and says of a link that it is no file
        facts = os.stat(path)
        return (facts.st_size, str(facts.st_mtime_ns)) if stat.S_ISREG(facts.st_mode) else None
    if info["type"] == "directory":
        return None
    for name in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        if (value := info.get(name)) is not None:
            value = value.timestamp() if isinstance(value, datetime) else value
            version = str(round(value * 1e9)) if isinstance(value, int | float) else str(value).strip('"')
            return int(info["size"] or 0), version
    return int(info["size"] or 0), "unknown"
