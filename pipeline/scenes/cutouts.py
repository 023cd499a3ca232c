"""What scenes are made of: single things with a transparent ground, each with a class and a caption.

Most are photographs; the drawings among them are a domain of their own, which no backbone is trained on.

They come from tuxpaint-stamps (Copyright Bill Kendrick and contributors, GPL-2), whose folders serve as classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

STAMPS: Final = Path("/usr/share/tuxpaint/stamps")
"""Where Debian's package `tuxpaint-stamps-default` puts them."""

CLASSES: Final = (
    "background",
    "mammal",
    "bird",
    "reptile",
    "fish",
    "insect",
    "fruit",
    "flower",
    "tree",
    "vehicle",
    "building",
    "household",
    "planet",
)
"""A pixel's class is the place of its name here."""

_FOLDERS: Final = {
    "animals/mammals/aquatic": "fish",  # by its looks: whales and seals
    "animals/mammals": "mammal",
    "animals/marsupials": "mammal",
    "animals/birds": "bird",
    "animals/lizards": "reptile",
    "animals/amphibians": "reptile",
    "animals/dinosaur": "reptile",
    "animals/fish": "fish",
    "animals/shellfish": "fish",
    "animals/insects": "insect",
    "food": "fruit",
    "plants/flowers": "flower",
    "plants/mushrooms": "flower",
    "plants/trees": "tree",
    "plants": "flower",
    "vehicles": "vehicle",
    "military/vehicles": "vehicle",
    "town/houses": "building",
    "town/monuments": "building",
    "household": "household",
    "hobbies": "household",
    "clothes": "household",
    "space": "planet",
}
"""The first folder that a cut-out's path begins with gives its class."""

_CAPTIONS: Final = {
    "animals/fish/bluegroper.png": "blue groper",
    "animals/fish/lionfish.png": "lionfish",
    "animals/mammals/bovines/gnu-baby-stand.png": "baby gnu",
    "animals/mammals/bovines/gnu-baby.png": "baby gnu",
    "food/pizza.png": "pizza slice",
    "food/vegetables/broccoli.png": "broccoli",
    "food/vegetables/lettuce.png": "lettuce",
    "food/vegetables/pumpkin_small.png": "pumpkin",
    "food/vegetables/redlettuce.png": "red lettuce",
    "food/vegetables/tomato.png": "tomato",
    "household/dishes/pitcher_small.png": "pitcher",
    "household/toilet.png": "toilet",
    "household/tools/mallet_metal.png": "metal mallet",
    "household/tools/wrench_plumbers.png": "pipe wrench",
    "military/vehicles/bradley.png": "armoured vehicle",
    "military/vehicles/f22_raptor.png": "jet fighter",
    "military/vehicles/infantry-stryker.png": "armoured carrier",
    "military/vehicles/ww2_german_gun.png": "assault gun",
    "plants/eggplant.png": "eggplant",
    "plants/flowers/flower9.png": "dewy flower",
    "plants/flowers/plastic/chuvanna_plastic_poo.png": "plastic flower",
    "plants/mushrooms/cep-2.png": "cep mushroom",
    "plants/trees/holly_leaves.png": "holly",
    "space/apollo_lander.png": "lunar lander",
    "space/moon/moon_3qt.png": "moon",
    "space/moon/moon_crescent.png": "crescent moon",
    "space/spacewalk.png": "astronaut",
    "space/voyager2.png": "space probe",
    "vehicles/emergency/sedan_police.png": "police car",
}
"""Where the first sentence beside a stamp does not say what it is."""

COLOURS: Final = {
    "white": (235, 235, 235),
    "grey": (130, 130, 130),
    "black": (35, 35, 35),
    "red": (190, 50, 45),
    "orange": (220, 130, 50),
    "yellow": (225, 205, 80),
    "green": (85, 130, 60),
    "blue": (60, 95, 170),
    "purple": (130, 75, 150),
    "pink": (225, 150, 175),
    "brown": (120, 85, 55),
    "beige": (200, 175, 140),
}
_DRAWN = "cartoon"
"""A folder of this name has drawings."""
_LONGEST_SIDE = 192
"""Pixels; scenes are smaller."""
_SMALLEST_SIDE = 40
_LEAST_COVER = 0.12
"""Of its box; less is a drawing of lines."""
_WORDS = 5


@dataclass(frozen=True)
class Cutout:
    """One thing."""

    name: str
    """Path among the stamps."""
    class_id: int
    caption: str
    """What it is, in at most five words of small letters, without an article."""
    colour: str
    """The word for its mean colour."""
    rgba: NDArray[np.uint8]
    """[h, w, 4], cut to its box."""
    held_out: bool
    """Whether no backbone may be trained on it."""


def find_cutouts(folder: Path = STAMPS, *, drawn: bool = False) -> list[Cutout]:
    """All photographs, or all drawings, among the stamps that are of a class, in the order of their names.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = [
        path for path in sorted(folder.rglob("*.png")) if (_DRAWN in path.relative_to(folder).parts) == drawn
    ]
    found = [cutout for path in paths if (cutout := _read(path, folder)) is not None]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no stamps with transparency; expected the folders of tuxpaint-stamps: install Debian's"
            " package tuxpaint-stamps-default, or name their folder"
        )
    return found


@cache
def held_out_names() -> frozenset[str]:
    """The 15 % that tests and figures are taken on, drawn once."""
    return frozenset(Path(__file__).with_name("held_out.txt").read_text().split())


def _read(path: Path, folder: Path) -> Cutout | None:
    name = path.relative_to(folder).as_posix()
    if re.search(r"(mirror|flip)\.png$", name):
        return None
    class_name = next((kind for prefix, kind in _FOLDERS.items() if name.startswith(prefix)), None)
    rgba = None if class_name is None else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if class_name is None or rgba is None or rgba.ndim != 3 or rgba.shape[2] != 4:
        return None
    rgba = _cropped(np.asarray(cv2.cvtColor(rgba, cv2.COLOR_BGRA2RGBA), np.uint8))
    if rgba is None:
        return None
    return Cutout(
        name, CLASSES.index(class_name), _caption(path, name), _colour(rgba), rgba, name in held_out_names()
    )


def _cropped(rgba: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The thing's box, made smaller if need be; None where little is to be seen."""
    rows, columns = np.nonzero(rgba[..., 3] > 20)
    if not len(rows):
        return None
    box = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = box.shape[:2]
    if min(height, width) < _SMALLEST_SIDE or (box[..., 3] > 128).mean() < _LEAST_COVER:
        return None
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    smaller = resized(box.astype(np.float32), max(1, round(width * scale)), max(1, round(height * scale)))
    return np.clip(np.rint(smaller), 0, 255).astype(np.uint8)


def resized(rgba: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Colours weighted by opacity, so that what lies under transparency leaves no fringe; [height, width, 4]."""
    weighted = np.concatenate([rgba[..., :3] * (rgba[..., 3:] / 255), rgba[..., 3:]], axis=2)
    way = cv2.INTER_AREA if width < rgba.shape[1] else cv2.INTER_LINEAR
    found = np.asarray(cv2.resize(weighted, (width, height), interpolation=way), np.float32)
    found[..., :3] /= np.maximum(found[..., 3:] / 255, 1e-3)
    return found


def _caption(path: Path, name: str) -> str:
    if name in _CAPTIONS:
        return _CAPTIONS[name]
    beside = path.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8", errors="replace") if beside.exists() else ""
    text = text.partition("\n")[0]
    first = re.split(r"[.!(,—]|resembles", text.lower())[0]
    words = re.sub(r"[^a-z0-9 ]", " ", first).split() or re.findall("[a-z]+", path.stem.lower())
    while words and words[0] in ("a", "an", "the", "some"):
        words = words[1:]
    return " ".join(words[:_WORDS])


def _colour(rgba: NDArray[np.uint8]) -> str:
    opaque = rgba[rgba[..., 3] > 128][:, :3].astype(np.float64)
    mean = opaque.mean(0)
    distance = {word: float(np.square(mean - rgb).sum()) for word, rgb in COLOURS.items()}
    return min(distance, key=distance.__getitem__)
