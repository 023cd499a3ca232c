"""The members of a tar, read in one pass, with every way in which it can end told apart.

`tarfile` takes a bad header, a missing end mark and a clean end for the same thing: no more members. Here
only the end-of-archive mark (a block of zeros) is a clean end; all else raises `BadShard`:

    truncated-tar    the file ends inside a member, or before the end mark
    not-a-tar        the first header is none
    damaged-tar      a later header, or the compressed data, make no sense
    data-after-end   something follows the end mark, e.g. a second tar appended with `cat`

What storage raises comes out as OSError, so that a broken connection is never taken for a broken tar. gzip,
bzip2 and xz are recognised by content. Checksums of compressed streams are not verified (`tarfile` does not).
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar, cast

from pipeline.bad import BadShard

T = TypeVar("T")

_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_EXTENDED_BYTES = 2**20  # of long names and pax records, which tarfile reads into memory whole
_MAX_MEMBER_BYTES = 2**42  # more than any shard has
_READS_PAST_END = 16  # more than tarfile needs to see that there is no more
_BUFFER_BYTES = 64 * 2**10


def _ignore(_: int) -> None:
    pass


class TarStream:
    """Iterate once over a tar's members; `data` reads the current one.

    Args:
        file: binary, from its start; it is read forwards only, unless `seek`.
        url: of the file, for messages.
        size: bytes that the file should have. A file that ends earlier than both this and its end mark is an
            OSError, since storage gave less than it had listed.
        seek: jump over members' data instead of reading it; for uncompressed tars in seekable files.
        count: told of every number of bytes read.
    """

    def __init__(
        self,
        file: IO[bytes],
        url: str,
        size: int,
        *,
        seek: bool = False,
        count: Callable[[int], None] = _ignore,
    ) -> None:
        self._source = _Source(file, url, count)
        self._size = size
        self._mode = "r:" if seek else "r|*"
        self._tar: _Tar | None = None

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Members in order. Raises BadShard when the tar is bad, OSError when storage fails."""
        self._tar = tar = self._call(self._open)
        while (member := self._call(tar.next)) is not None:
            tar.members.clear()  # tarfile remembers them all
            yield member
        if not isinstance(tar.end, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # typeshed lacks it
            raise self._fault(str(tar.end))

    def data(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of the current member, a regular file. Raises as iteration does."""
        assert self._tar is not None and member.isreg()
        file = self._tar.extractfile(member)
        assert file is not None
        return self._call(file.read)

    def check_rest(self) -> None:
        """After iteration: read on to the file's end. Raises BadShard if more than zeros follow the mark."""
        assert self._tar is not None and self._tar.fileobj is not None
        stream = self._tar.fileobj
        while block := self._call(lambda: stream.read(_BUFFER_BYTES)):
            if block.count(0) != len(block):
                raise BadShard(
                    "data-after-end",
                    "data follow the end-of-archive mark and were not read; if tars were joined with `cat`,"
                    " give them as separate shards",
                )

    def _open(self) -> _Tar:
        return _Tar.open(
            fileobj=cast(Any, self._source),
            mode=cast(Any, self._mode),
            bufsize=_BUFFER_BYTES,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def _call(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # besides its own errors, tarfile lets many others out for hostile headers
            raise self._fault(f"{type(error).__name__}: {error}") from error

    def _fault(self, problem: str) -> BadShard:
        """What a failure to find the next header, or to read data, means."""
        source, read = self._source, self._source.read_bytes
        if source.ended and self._mode != "r:" and read < self._size:
            raise OSError(f"{source.url}: storage gave {read} bytes of the {self._size} that it had listed")
        if source.ended and read == 0:
            return BadShard(
                "truncated-tar", "the file is empty (0 bytes); even a tar without members has an end mark"
            )
        if self._tar is None and (read < tarfile.BLOCKSIZE or not source.ended):
            return BadShard(
                "not-a-tar", f"the file starts with {source.head!r}, which is no tar header ({problem})"
            )
        if source.ended:
            return BadShard(
                "truncated-tar",
                f"the file ends after {read} bytes without an end-of-archive mark; make it again, since its"
                " last samples are missing",
            )
        return BadShard("damaged-tar", f"what follows the last sample is no tar header ({problem})")


class _Source:
    """The file under a tar. Any error of storage becomes an OSError; all others are then the tar's fault."""

    def __init__(self, file: IO[bytes], url: str, count: Callable[[int], None]) -> None:
        self._file, self._count = file, count
        self.url = url
        self.read_bytes = 0
        self.ends = 0
        self.head = b""

    @property
    def ended(self) -> bool:
        """Whether more was asked for than the file has."""
        return self.ends > 0

    def read(self, size: int) -> bytes:
        data = self._storage(lambda: self._file.read(size))
        self.head = self.head or data[:16]
        self.read_bytes += len(data)
        self._count(len(data))
        self.ends += not data
        if self.ends > _READS_PAST_END:  # tarfile skips data that a hostile header declares block by block
            raise EOFError("the file has ended")
        return data

    def seek(self, position: int) -> int:
        return self._storage(lambda: self._file.seek(position))

    def tell(self) -> int:
        return self._storage(self._file.tell)

    def _storage(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except OSError:
            raise
        except Exception as error:  # plugins raise their client library's own types, which are not OSErrors
            raise OSError(f"{self.url}: reading failed ({type(error).__name__}: {error})") from error


class _Header(tarfile.TarInfo):
    """Notes why the search for headers ended, and refuses sizes that would fill memory or move backwards."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        header.check_size(_MAX_EXTENDED_BYTES if header.type in _EXTENDED else _MAX_MEMBER_BYTES)
        return header

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        assert isinstance(tar, _Tar)
        try:
            header = super().fromtarfile(tar)
            header.check_size(_MAX_MEMBER_BYTES)  # again, since pax records may set it anew
            return header
        except tarfile.HeaderError as error:
            tar.end = error
            raise

    def check_size(self, most: int) -> None:
        """Raises HeaderError unless the size is from 0 to `most` bytes."""
        if not 0 <= self.size <= most:
            message = f"{self.size} bytes in a member of type {self.type!r}; allowed are 0 to {most}"
            raise tarfile.InvalidHeaderError(message)  # type: ignore[attr-defined]  # typeshed lacks it


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]
    tarinfo = _Header
    end: tarfile.HeaderError | None = None
