"""Cityscapes: street scenes with 34 ids, of which the benchmark evaluates 19 classes.

The folder in which leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip were unpacked:

    cityscapes/
      leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png
      gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png    8 bits: 0 to 33

Published: 2975 train and 500 val images; the masks of `test` are not public. All ids that the benchmark does not
evaluate become 255.
"""

from __future__ import annotations

from pipeline.public.dataset import PublicDataset
from pipeline.public.folder import Folder
from pipeline.public.masks import SplitFolders, segmentation
from schemas.dataset import IGNORE

EVALUATED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Published id to name; the class ids are their order, which is that of Cityscapes' train ids."""
_IDS = 34
_SPLITS = [
    SplitFolders(split, f"leftImg8bit/{split}", "_leftImg8bit.png", f"gtFine/{split}", "_gtFine_labelIds.png")
    for split in ("train", "val")
]


def find(url: str) -> PublicDataset:
    """Cityscapes in a folder, or in the folder `cityscapes` of it. Raises as `segmentation`."""
    folder = Folder(url, "cityscapes", [part for split in _SPLITS for part in (split.images, split.masks)])
    meaning = dict.fromkeys(range(_IDS), IGNORE) | {id: place for place, id in enumerate(EVALUATED)}
    return segmentation("cityscapes", folder, _SPLITS, list(EVALUATED.values()), meaning)
