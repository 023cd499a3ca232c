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

Other members never make a sample bad, since a group that does not need them can do without: a caption, a field of
the json member or a control image is there, or has a reason of its own.

    no-caption, undecodable-caption       the caption as `caption_field` names it
    no-json-field, undecodable-json       a field that a prompt takes
    no-field, undecodable-field           a control image (`pipeline.decode` finds more to object to)

Names are never used as paths. No member is read that is not asked for, and at most one sample is in memory at a time.
"""

from __future__ import annotations

import json
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter

from fsspec.implementations.local import LocalFileSystem

# Of WebDataset only the split of names is used: its iterators drop links, hostile names and a truncated tail
# without a word.
from webdataset.tariterators import base_plus_ext

from pipeline.bad import BadSample, BadShard
from pipeline.listing import Shard, list_shards
from pipeline.meter import Meter
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
    reason: str | None = None
    """Why the sample as a whole is bad; None when it is good as far as is known before decoding."""
    detail: str = ""
    """On `reason`."""
    texts: dict[str, str | BadSample] = field(default_factory=dict)
    """`caption` and `json:FIELD`, as far as they were asked for."""
    fields: dict[str, bytes | BadSample] = field(default_factory=dict)
    """Control images by their tar extension, encoded."""

    @property
    def caption(self) -> str | None:
        """The caption that lies in the shard, if it is good and was asked for."""
        found = self.texts.get("caption")
        return found if isinstance(found, str) else None


def read_shard(
    shard: Shard,
    spec: Input,
    controls: Sequence[str] = (),
    json_fields: Sequence[str] = (),
    meter: Meter | None = None,
) -> Iterator[Sample]:
    """Stream the samples of a shard.

    Args:
        shard: as listed.
        spec: where image and caption are in a sample.
        controls: tar extensions of the control images to read besides, in lower case.
        json_fields: fields of the json member to read besides.
        meter: counts the bytes read.

    Raises:
        BadShard: after the last intact sample, when the tar is bad (reasons: `pipeline.tarstream`). The
            sample before the fault is not given, since members of it may be missing.
        OSError: storage failed, which says nothing about the shard.
    """
    seen: set[str] = set()
    with _open(shard, meter=meter) as tar:
        for index, (name, members) in enumerate(groupby(named(tar), key=itemgetter(0))):
            draft = _Draft(name, spec, seen, controls, json_fields)
            for _, extension, member in members:
                draft.add(extension, member, tar)
            yield draft.sample(index)
        tar.check_rest()


def in_slots(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Samples that share a batch: a sample's slot is its position modulo the size, so that a retry or a continuation
    computes it where an undisturbed run would have.

    Raises:
        BadShard: from `samples`, after what came before it.
    """
    held: list[Sample] = []
    bad = None
    try:
        for sample in samples:
            if held and sample.index // size != held[0].index // size:
                yield held
                held = []
            held.append(sample)
    except BadShard as error:
        bad = error
    if held:
        yield held
    if bad is not None:
        raise bad


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

    def __init__(
        self, name: str, spec: Input, seen: set[str], controls: Sequence[str], json_fields: Sequence[str]
    ) -> None:
        self.key = printable(name)
        self.problem: BadSample | None = None
        if self.key in seen:
            self.problem = BadSample("duplicate-key", f"key {self.key!r} came before in this shard")
        seen.add(self.key)
        self._limit = spec.max_member_bytes
        self._controls = controls
        self._sources = {f"json:{name}": f"json:{name}" for name in json_fields}
        if spec.caption_field is not None:
            self._sources["caption"] = spec.caption_field
        self._needed = {*controls, *(one.partition(":")[0] for one in self._sources.values())}
        self._found: set[str] = set()
        self._members: dict[str, bytes | BadSample] = {}
        self._image: bytes | BadSample | None = None
        # Image fields that are more welcome than what was found so far.
        self._wanted = [one.lower() for one in spec.image_fields]

    def add(self, extension: str, member: tarfile.TarInfo, tar: TarStream) -> None:
        """Take a member in; its data are read only if they are needed."""
        if self.problem:
            return
        if not _is_safe(member.name):
            self.problem = BadSample("unsafe-name", f"member {printable(member.name)!r}")
        elif extension in self._found:
            self.problem = BadSample("duplicate-member", f"two members of {self.key!r} are {extension!r}")
        elif extension in self._wanted:
            self._wanted = self._wanted[: self._wanted.index(extension)]
            self._image = None  # let go of a less preferred image before this one is read
            data = _data(member, tar, self._limit)
            self._image = data or BadSample("empty-image", f"member {member.name!r} has no bytes")
        elif extension in self._needed:
            self._members[extension] = _data(member, tar, self._limit)
        self._found.add(extension)

    def sample(self, index: int) -> Sample:
        """The finished sample."""
        problem = self.problem
        if problem is None and isinstance(self._image, BadSample):
            problem = self._image
        if problem is None and self._image is None:
            found = ", ".join(sorted(one or "a member without extension" for one in self._found))
            problem = BadSample("no-image", f"sample {self.key!r} has {printable(found)}")
        return Sample(
            index=index,
            key=self.key,
            image=self._image if problem is None and isinstance(self._image, bytes) else None,
            reason=problem.reason if problem else None,
            detail=problem.detail if problem else "",
            texts={name: self._text(name, source) for name, source in self._sources.items()},
            fields={extension: self._control(extension) for extension in self._controls},
        )

    def _text(self, name: str, source: str) -> str | BadSample:
        """The text at `txt` or `json:FIELD`."""
        absent, damaged = (
            ("no-caption", "undecodable-caption")
            if name == "caption"
            else ("no-json-field", "undecodable-json")
        )
        extension, _, path = source.partition(":")
        data = self._members.get(extension)
        if data is None:
            return BadSample(absent, f"no member {self.key}.{extension}")
        if isinstance(data, BadSample):
            return BadSample(damaged, data.detail)
        try:
            return _field_of_json(data, path) if path else _utf8(data)
        except LookupError as error:
            return BadSample(absent, str(error.args[0]))
        except ValueError as error:
            return BadSample(damaged, str(error))

    def _control(self, extension: str) -> bytes | BadSample:
        data = self._members.get(extension)
        if data is None:
            return BadSample("no-field", f"no member {self.key}.{extension}")
        return BadSample("undecodable-field", data.detail) if isinstance(data, BadSample) else data


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


def _data(member: tarfile.TarInfo, tar: TarStream, limit: int) -> bytes | BadSample:
    if member.issym() or member.islnk():
        return BadSample("link-member", f"member {member.name!r} is a link; links are not followed")
    if not member.isreg() or member.issparse():
        return BadSample(
            "special-member", f"member {member.name!r} is no plain file (tar type {member.type!r})"
        )
    if member.size > limit:
        return BadSample(
            "member-too-large",
            f"member {member.name!r} has {member.size} bytes; input.max_member_bytes allows {limit}",
        )
    return tar.data(member)


def _utf8(data: bytes) -> str:
    """Text without the white space around it. Raises ValueError for anything but UTF-8."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"the text is not UTF-8 ({error})") from error


def _field_of_json(data: bytes, name: str) -> str:
    """Text of a field of the sample's json.

    Raises:
        LookupError: there is no such field, or it is null.
        ValueError: the json is damaged, or the field no text.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the sample's json is invalid ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"the sample's json is a {type(fields).__name__}, not an object")
    if (value := fields.get(name)) is None:
        raise LookupError(f"the sample's json has no field {name!r}")
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is a {type(value).__name__}, not a string")
    try:
        return _utf8(value.encode())  # json may escape half of a surrogate pair, which is no text
    except UnicodeEncodeError as error:
        raise ValueError(f"field {name!r} is not valid text ({error})") from error


def _is_safe(name: str) -> bool:
    controls = any(unicodedata.category(character) == "Cc" for character in name)
    return bool(name) and not controls and not name.startswith("/") and ".." not in name.split("/")


def printable(name: str) -> str:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" else c for c in text)


@contextmanager
def _open(shard: Shard, *, seek: bool = False, meter: Meter | None = None) -> Iterator[TarStream]:
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
        count = partial((meter or Meter()).add, "bytes_read")
        yield TarStream(file, shard.url, shard.size, seek=seek, count=count)
