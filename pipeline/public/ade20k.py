"""ADE20K, as the scene parsing challenge of 2016 published it: 150 classes, pictures of many sizes.

The folder that ADEChallengeData2016.zip holds:

    ADEChallengeData2016/
      images/{training,validation}/NAME.jpg
      annotations/{training,validation}/NAME.png    8 bits: 1 to 150, 0 for all else
      objectInfo150.txt                             a table with the names, by id

Published: 20210 training and 2000 validation images. The challenge does not count pixels of id 0, which become 255.
"""

from __future__ import annotations

import csv

from pipeline.public.dataset import PublicDataset
from pipeline.public.folder import Folder
from pipeline.public.masks import SplitFolders, segmentation
from schemas.dataset import IGNORE

CLASSES = 150
_NAMES = "objectInfo150.txt"
_SPLITS = [
    SplitFolders(split, f"images/{split}", ".jpg", f"annotations/{split}", ".png")
    for split in ("training", "validation")
]


def find(url: str) -> PublicDataset:
    """ADE20K in a folder, or in the folder that holds it. Raises as `segmentation`, and where the names are amiss."""
    parts = [folder for split in _SPLITS for folder in (split.images, split.masks)]
    folder = Folder(url, "ADEChallengeData2016", [*parts, _NAMES])
    meaning = {0: IGNORE} | {id: id - 1 for id in range(1, CLASSES + 1)}
    return segmentation("ade20k", folder, _SPLITS, _names(folder), meaning)


def _names(folder: Folder) -> list[str]:
    """By class id; with their synonyms, as published."""
    lines = folder.read(_NAMES).decode().splitlines()
    found = {
        row.get("Idx", "").strip(): row.get("Name", "").strip()
        for row in csv.DictReader(lines, delimiter="\t")
    }
    names = [found.get(str(id), "") for id in range(1, CLASSES + 1)]
    if not all(names):
        raise ValueError(
            f"{folder.place(_NAMES)}: {sum(map(bool, names))} names found; expected columns Idx and Name, and {CLASSES}"
            " lines"
        )
    return names
