"""The samples in a shard (an input tar), by WebDataset's conventions.

Consecutive members of one key are one sample; the key is the path up to the first dot of the file name, and
what follows is the field, in lower case. Members named `__name__` (WebDataset's metadata), folders and hidden
files are no samples. Whatever else a tar holds becomes a `Sample`, good or with a reason:

    unsafe-name        absolute path, a `..`, a control character, or no name
    duplicate-key      the key came before in this shard; the first one is kept
    duplicate-member   two members of the sample are the same field
    no-image           none of the fields in `image_field`
    link-member        the image is a symbolic or hard link
    special-member     the image is a device, a pipe or a sparse file
    member-too-large   the image has more than `max_member_bytes`
    empty-image        the image has no bytes

Names are never used as paths. At most one sample is in memory at a time.
"""

from __future__ import annotations

import json
import re
import tarfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from fsspec.implementations.local import LocalFileSystem

# Of WebDataset only the split of names is used: its iterators drop links, hostile names and a truncated tail
# without a word.
from webdataset.tariterators import base_plus_ext

from pipeline.bad import BadSample, BadShard
from pipeline.listing import Shard, list_shards
from pipeline.storage import open_fs
from pipeline.tarstream import TarStream
from schemas.spec import Input

__all__ = ["BadSample", "BadShard", "Sample", "Shard", "count_samples", "list_shards", "read_shard"]

_META = re.compile(r"__[^/]*__($|/)")


@dataclass
class Sample:
    """What a shard holds under one key."""

    index: int
    """Place in the shard, from 0; bad samples count."""
    key: str
    """Valid UTF-8; bytes that are not, and control characters, are escaped with backslashes."""
    image: bytes | None
    """Encoded; None when `reason` is set."""
    caption: str | None
    reason: str | None
    """Why the sample as a whole is bad; None when it is good as far as is known before decoding."""
    detail: str
    """On `reason`, or else on `caption_reason`."""
    caption_reason: str | None
    """no-caption or undecodable-caption; None when the caption is good or none is asked for."""


def read_shard(shard: Shard, spec: Input) -> Iterator[Sample]:
    """Stream the samples of a shard.

    Raises:
        BadShard: after the last intact sample, when the tar is bad (reasons: `pipeline.tarstream`). The
            sample before the fault is not given, since members of it may be missing.
        OSError: storage failed, which says nothing about the shard.
    """
    seen: set[str] = set()
    with _open(shard) as tar:
        for index, (name, members) in enumerate(groupby(named(tar), key=itemgetter(0))):
            draft = _Draft(name, spec, seen)
            for _, field, member in members:
                draft.add(field, member, tar)
            yield draft.sample(index)
        tar.check_rest()


def count_samples(shard: Shard, spec: Input, stop_after: int | None = None) -> int:
    """How many samples `read_shard` gives, bad ones included, or `stop_after` if that is less.

    Members' data are not read from uncompressed tars on the local file system; elsewhere the shard is
    streamed. Raises OSError when storage fails; samples before a fault of the tar count.
    """
    count = 0
    with _open(shard, seek=True) as tar:
        try:
            for _, members in groupby(named(tar), key=itemgetter(0)):
                if count == stop_after:
                    break
                for _ in members:
                    pass
                count += 1
        except BadShard:
            pass  # found again, and reported, when the shard is read
    return count


class _Draft:
    """A sample whose members are coming in. The first problem found is the sample's reason."""

    def __init__(self, name: str, spec: Input, seen: set[str]) -> None:
        self.key = printable(name)
        self.problem: BadSample | None = None
        if self.key in seen:
            self.problem = BadSample("duplicate-key", f"key {self.key!r} came before in this shard")
        seen.add(self.key)
        self._limit = spec.max_member_bytes
        self._fields: set[str] = set()
        self._image: bytes | BadSample | None = None
        # Image fields that are more welcome than what was found so far.
        self._wanted = [field.lower() for field in spec.image_fields]
        self._caption_field, _, self._caption_path = (spec.caption_field or "").partition(":")
        self._caption: str | None = None
        self._caption_problem = BadSample("no-caption", f"no member {self.key}.{self._caption_field}")

    def add(self, field: str, member: tarfile.TarInfo, tar: TarStream) -> None:
        """Take a member in; its data are read only if they are needed."""
        if self.problem:
            return
        if not _is_safe(member.name):
            self.problem = BadSample("unsafe-name", f"member {printable(member.name)!r}")
        elif field in self._fields:
            self.problem = BadSample("duplicate-member", f"two members of {self.key!r} are {field!r}")
        elif field in self._wanted:
            self._wanted = self._wanted[: self._wanted.index(field)]
            self._image = None  # let go of a less preferred image before this one is read
            self._image = self._read_image(member, tar)
        elif field == self._caption_field:
            self._read_caption(member, tar)
        self._fields.add(field)

    def sample(self, index: int) -> Sample:
        """The finished sample."""
        problem = self.problem
        if problem is None and isinstance(self._image, BadSample):
            problem = self._image
        if problem is None and self._image is None:
            found = ", ".join(sorted(field or "a member without extension" for field in self._fields))
            problem = BadSample("no-image", f"sample {self.key!r} has {printable(found)}")
        lacks_caption = bool(self._caption_field) and self._caption is None
        return Sample(
            index=index,
            key=self.key,
            image=self._image if problem is None and isinstance(self._image, bytes) else None,
            caption=self._caption,
            reason=problem.reason if problem else None,
            detail=problem.detail if problem else self._caption_problem.detail if lacks_caption else "",
            caption_reason=self._caption_problem.reason if lacks_caption else None,
        )

    def _read_image(self, member: tarfile.TarInfo, tar: TarStream) -> bytes | BadSample:
        try:
            if member.isreg() and member.size == 0:
                raise BadSample("empty-image", f"member {member.name!r} has no bytes")
            return _data(member, tar, self._limit)
        except BadSample as problem:
            return problem

    def _read_caption(self, member: tarfile.TarInfo, tar: TarStream) -> None:
        try:
            data = _data(member, tar, self._limit)
            self._caption = _field_of_json(data, self._caption_path) if self._caption_path else _text(data)
        except BadSample as problem:
            reason = "no-caption" if problem.reason == "no-caption" else "undecodable-caption"
            self._caption_problem = BadSample(reason, problem.detail)


def named(tar: TarStream) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key as in the tar, field, member) of all members that belong to samples."""
    for member in tar:
        name = member.name
        if member.isdir() or _META.match(name):
            continue
        if _is_safe(name) and name.rsplit("/", 1)[-1].startswith("."):
            continue  # hidden files; macOS puts a `._name` beside each file
        key, field = base_plus_ext(name)
        yield (name, "", member) if key is None else (key, field.lower(), member)


def _data(member: tarfile.TarInfo, tar: TarStream, limit: int) -> bytes:
    if member.issym() or member.islnk():
        raise BadSample("link-member", f"member {member.name!r} is a link; links are not followed")
    if not member.isreg() or member.issparse():
        raise BadSample(
            "special-member", f"member {member.name!r} is no plain file (tar type {member.type!r})"
        )
    if member.size > limit:
        raise BadSample(
            "member-too-large",
            f"member {member.name!r} has {member.size} bytes; input.max_member_bytes allows {limit}",
        )
    return tar.data(member)


def _text(data: bytes) -> str:
    """UTF-8 text without the white space around it."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample("undecodable-caption", f"the caption is not UTF-8 ({error})") from error


def _field_of_json(data: bytes, field: str) -> str:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("undecodable-caption", f"the sample's json is invalid ({error})") from error
    if not isinstance(fields, dict):
        raise BadSample(
            "undecodable-caption", f"the sample's json is a {type(fields).__name__}, not an object"
        )
    if (value := fields.get(field)) is None:
        raise BadSample("no-caption", f"the sample's json has no field {field!r}")
    if not isinstance(value, str):
        raise BadSample("undecodable-caption", f"field {field!r} is a {type(value).__name__}, not a string")
    try:
        return _text(value.encode())  # json may escape half of a surrogate pair, which is no text
    except UnicodeEncodeError as error:
        raise BadSample("undecodable-caption", f"field {field!r} is not valid text ({error})") from error


def _is_safe(name: str) -> bool:
    controls = any(unicodedata.category(character) == "Cc" for character in name)
    return bool(name) and not controls and not name.startswith("/") and ".." not in name.split("/")


def printable(name: str) -> str:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" else c for c in text)


@contextmanager
def _open(shard: Shard, *, seek: bool = False) -> Iterator[TarStream]:
    fs, path = open_fs(shard.url)
    try:
        file = fs.open(path, "rb")
    except OSError:
        raise
    except Exception as error:  # plugins raise their client library's own types
        raise OSError(f"{shard.url}: opening failed ({type(error).__name__}: {error})") from error
    with file:
        if seek and (seek := isinstance(fs, LocalFileSystem)):
            seek = file.read(tarfile.BLOCKSIZE)[257:262] == b"ustar"  # else compressed, or no tar
            file.seek(0)
        yield TarStream(file, shard.url, shard.size, seek=seek)
