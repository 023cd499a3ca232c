"""Where a head job writes: a folder or URL that is one head's for ever, and in it a folder for each split.

A split's result is written last, so where it is, everything of the split is.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from pipeline import storage
from pipeline.differences import told
from pipeline.heads.problem import Problem
from pipeline.libraries import libraries
from schemas import __version__
from schemas.head import MANIFEST, RESULT, RESULTS, HeadManifest, Results, SplitResult


def make_manifest(problem: Problem) -> HeadManifest:
    """What the heads of a problem are."""
    return HeadManifest(
        gatehouse=__version__,
        identity=problem.identity,
        shapes={name: list(shape) for name, shape in problem.choice.shapes.items()},
        groups=list(problem.choice.groups),
        taps=list(problem.choice.taps),
        classes=list(problem.classes),
        splits=len(problem.splits),
        spec=problem.spec.model_dump(mode="json"),
        libraries=libraries(),
    )


class HeadFolder:
    """A head's folder or URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def claim(self, manifest: HeadManifest) -> None:
        """Make the folder this head's.

        Raises:
            ValueError: it is another one's; lists every difference.
        """
        self.check_same(manifest)
        fs, root = storage.open_fs(self.url)
        if not storage.create(fs, f"{root}/{MANIFEST}", manifest.to_bytes()):
            self.check_same(manifest)

    def check_same(self, wanted: HeadManifest) -> None:
        """Refuse a folder that holds another head.

        Raises:
            ValueError: lists every difference.
        """
        stored = self.manifest(missing_ok=True)
        if stored is not None and (shown := told(stored.identity, wanted.identity, "folder")):
            raise ValueError(
                f"head {self.url} holds another head than this spec describes:\n{shown}\n"
                "Give the spec another folder, or put these values back."
            )

    def manifest(self, *, missing_ok: bool = False) -> HeadManifest | None:
        """What the head is; None where there is none, and none need be.

        Raises:
            ValueError: there is none, or one of another release.
        """
        data = self.read(MANIFEST)
        if data is None:
            if missing_ok:
                return None
            raise ValueError(
                f"no head at {self.url}: there is no {MANIFEST}; `gatehouse train-head` makes one"
            )
        try:
            return HeadManifest.model_validate_json(data)
        except ValidationError as error:
            raise ValueError(
                f"head {self.url}: {MANIFEST} cannot be read ({error.errors()[0]['msg']}); use the release that"
                " wrote it"
            ) from error

    def results(self) -> Results | None:
        """Of all splits; None as long as they are not done."""
        data = self.read(RESULTS)
        return None if data is None else Results.model_validate_json(data)

    def split(self, number: int) -> SplitResult | None:
        """Of one split; None as long as it is not done."""
        data = self.read(f"{split_name(number)}/{RESULT}")
        return None if data is None else SplitResult.model_validate_json(data)

    def read(self, name: str) -> bytes | None:
        """A file; None where there is none."""
        fs, root = storage.open_fs(self.url)
        try:
            return bytes(fs.cat_file(f"{root}/{name}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, the last one last."""
        fs, root = storage.open_fs(self.url)
        for name, data in files.items():
            storage.put(fs, f"{root}/{name}", data)


def split_name(number: int) -> str:
    """Folder of a split."""
    return f"split-{number}"
