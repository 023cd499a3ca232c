"""Horse-21 and Bedroom-28: few images of 256 x 256 pixels with fine parts labelled, from DDPM-segmentation.

Two folders of its datasets.tar.gz:

    horse_21/real/{train,test}/NAME.png, NAME.npy      30 and 30 images, ids 0 to 20
    bedroom_28/real/{train,test}/NAME.png, NAME.npy    40 and 20 images, ids 0 to 28

The reference trains and tests Horse-21 on all 21 ids, background among them. In Bedroom-28 its `ignore_label` is the
background, 0: it neither trains on such pixels nor counts them, so they become 255 here and the other ids move down.
"""

from __future__ import annotations

from pipeline.public.dataset import PublicDataset
from pipeline.public.folder import Folder
from pipeline.public.masks import SplitFolders, segmentation
from schemas.dataset import IGNORE

HORSE = (
    "background",
    "person",
    "back",
    "barrel",
    "bridle",
    "chest",
    "ear",
    "eye",
    "forelock",
    "head",
    "hoof",
    "leg",
    "mane",
    "muzzle",
    "neck",
    "nostril",
    "tail",
    "thigh",
    "saddle",
    "shoulder",
    "leg protection",
)
"""By published id."""
BEDROOM = (
    "bed",
    "bed footboard",
    "bed headboard",
    "bed side rail",
    "carpet",
    "ceiling",
    "chandelier or ceiling fan blade",
    "curtain",
    "cushion",
    "floor",
    "table, nightstand or dresser",
    "table, nightstand or dresser top",
    "picture or mirror",
    "pillow",
    "lamp column",
    "lamp shade",
    "wall",
    "window",
    "curtain rod",
    "window frame",
    "chair",
    "picture or mirror frame",
    "plinth",
    "door or door frame",
    "pouf",
    "wardrobe",
    "plant",
    "table staff",
)
"""By published id, from 1; 0 is the background."""
_SPLITS = [
    SplitFolders(split, f"real/{split}", ".png", f"real/{split}", ".npy") for split in ("train", "test")
]


def find_horse21(url: str) -> PublicDataset:
    """Horse-21 in a folder, or in the folder `horse_21` of it. Raises as `segmentation`."""
    meaning = {id: id for id in range(len(HORSE))} | {IGNORE: IGNORE}
    return segmentation("horse21", _folder(url, "horse_21"), _SPLITS, HORSE, meaning)


def find_bedroom28(url: str) -> PublicDataset:
    """Bedroom-28 in a folder, or in the folder `bedroom_28` of it. Raises as `segmentation`."""
    meaning = {0: IGNORE} | {id + 1: id for id in range(len(BEDROOM))}
    return segmentation("bedroom28", _folder(url, "bedroom_28"), _SPLITS, BEDROOM, meaning)


def _folder(url: str, name: str) -> Folder:
    return Folder(url, name, [split.images for split in _SPLITS])
