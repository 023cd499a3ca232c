"""A public data set's folder: found, listed once, and read by the paths inside it."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from fsspec import AbstractFileSystem
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.geometry import Size
from pipeline.listing import url_of
from pipeline.storage import names, open_fs

_ORIENTATION = 0x0112  # EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)


class Folder:
    """The files of a data set in a folder or URL.

    Args:
        url: the data set's folder, or the one it lies in.
        name: that the published archive gives the folder.
        parts: folders and files in it that the data set cannot do without; nothing else is looked at.

    Raises:
        ValueError: the parts are neither in the folder nor in its `name`.
    """

    def __init__(self, url: str, name: str, parts: Sequence[str]) -> None:
        self.url = url
        self._fs, given = open_fs(url)
        given = given.rstrip("/")
        folders = [given, f"{given}/{name}"]
        here = [path for path in folders if all(self._fs.exists(f"{path}/{part}") for part in parts)]
        if not here:
            raise ValueError(
                f"{url}: not the folder of the data set {name}, nor one that holds it: looked for"
                f" {', '.join(parts)} in it and in its {name}; found {_contents(self._fs, given)}. Unpack the"
                " published archive and give the folder that comes out"
            )
        self._root = here[0]
        self._files = {file for part in parts for file in self._find(part)}

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def files(self, under: str, suffix: str) -> list[str]:
        """Paths of the files below a folder whose names end in `suffix`, sorted."""
        return sorted(file for file in self._files if file.startswith(f"{under}/") and file.endswith(suffix))

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        data: bytes = self._fs.cat_file(f"{self._root}/{path}")
        return data

    def picture_size(self, path: str) -> Size:
        """(height, width) of a picture after EXIF rotation, from its header alone.

        Raises:
            ValueError: it is no JPEG or PNG.
        """
        with self._fs.open(f"{self._root}/{path}", "rb") as file:
            try:
                picture = Image.open(file, formats=("JPEG", "PNG"))
                # Only of a JPEG: of a PNG this would decode everything.
                orientation = (
                    picture.getexif().get(_ORIENTATION) if isinstance(picture, JpegImageFile) else None
                )
            except (OSError, SyntaxError) as error:  # the second of damaged PNGs
                raise ValueError("is no JPEG or PNG") from error
        width, height = picture.size
        return (width, height) if orientation in _ON_ITS_SIDE else (height, width)

    def place(self, path: str) -> str:
        """The file's URL, for messages."""
        return url_of(self._fs, f"{self._root}/{path}")

    def _find(self, part: str) -> list[str]:
        """Part by part, since a part may be a link to a folder, and others may be large."""
        found = self._fs.find(f"{self._root}/{part}")
        paths = (str(path)[len(self._root) :].lstrip("/") for path in found)
        return [path for path in paths if not any(step.startswith(".") for step in path.split("/"))]


def _contents(fs: AbstractFileSystem, folder: str, most: int = 8) -> str:
    """Names in a folder, for a message."""
    if not fs.isdir(folder):
        return "no such folder"
    folders = (str(info["name"]) for info in fs.ls(folder, detail=True) if info["type"] != "file")
    found = sorted(posixpath.basename(path.rstrip("/")) + "/" for path in folders) + names(fs, folder)
    more = [f"{len(found) - most} more"] if len(found) > most else []
    return ", ".join(found[:most] + more) or "nothing"
