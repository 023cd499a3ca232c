"""What all public data sets become: images by split, each with its labels, checked and ready to be written."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pipeline.public.folder import Folder
from schemas.dataset import PublicName, PublicTask

_SHOWN = 5  # problems in a message


@dataclass(frozen=True)
class Labelled:
    """An image and its label, by their paths in the folder."""

    key: str
    """Unique over the data set: SPLIT/NAME."""
    image: str
    label: str


@dataclass(frozen=True)
class PublicDataset:
    """A data set that was found whole. Pictures and masks stay where they are until they are written."""

    name: PublicName
    task: PublicTask
    classes: list[str]
    folder: Folder
    splits: dict[str, list[Labelled]]
    """By published name, in the order of keys."""
    labels: Callable[[Labelled], dict[str, bytes]]
    """Members of an image's label, by tar extension."""
    pairs: dict[str, list[bytes]] = field(default_factory=dict)
    """`schemas.dataset.Pair`s by split, each a line."""
    notes: list[str] = field(default_factory=list)
    """What the user should know."""

    def sample(self, one: Labelled) -> dict[str, Any]:
        """A WebDataset sample: the image byte for byte, and its label."""
        extension = posixpath.splitext(one.image)[1][1:].lower()
        return {"__key__": one.key, extension: self.folder.read(one.image), **self.labels(one)}


def refuse(folder: Folder, problems: Sequence[str], of: str) -> NoReturn:
    """End with the problems of a data set.

    Args:
        folder: its folder.
        problems: one for each thing that cannot be used, at least one.
        of: how many things there are, and what.

    Raises:
        ValueError: always.
    """
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ValueError(
        f"{folder.url}: {len(problems)} problems with {of}: {shown}{more}. The published data set is complete: unpack"
        " it again, or take away what was added"
    )
