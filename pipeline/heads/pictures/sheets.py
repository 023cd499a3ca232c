"""Pictures beside what a head says of them: masks, and the likeliest classes. For people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.heads.pictures import layout
from pipeline.heads.pictures.layout import BAD, FAINT, GOOD, INK, SIDE, below, beside, text, widened
from pipeline.heads.pictures.palette import IGNORE_COLOUR, Mask, Picture, coloured, palette

WRONG: Final = (226, 48, 38)
"""Of pixels where truth and prediction differ."""
_TOP: Final = 3
_SMALL: Final = 160  # pixels of a picture's longer side beside its classes
_NEUTRAL: Final = "#0b62a4"  # of bars that are neither right nor wrong
_BAR: Final = (200, 8)  # pixels of a bar that stands for 1


def masks_sheet(
    pictures: Sequence[Picture],
    truths: Sequence[Mask] | None,
    predictions: Sequence[Mask],
    classes: Sequence[str],
    ignore: int = 255,
    labels: Sequence[str] | None = None,
) -> bytes:
    """Picture, truth, prediction and where the two differ, a row each; below them the classes that occur.

    Args:
        pictures: at least one, uint8 [H, W, 3]; each of any size.
        truths: class ids [H, W] of its picture's size; None where there is no truth.
        predictions: class ids [H, W] of its picture's size.
        classes: names by id.
        ignore: the id of pixels that are not judged.
        labels: what to say above each row, such as its key.

    Returns:
        A PNG file's bytes.

    Raises:
        ValueError: numbers or sizes that do not belong together, or an id that is not a class.
    """
    _check_masks(pictures, truths, predictions, labels)
    titles = (
        ["picture", "prediction"]
        if truths is None
        else ["picture", "truth", "prediction", "where they differ"]
    )
    rows = [beside([widened(text(title, FAINT), SIDE) for title in titles])]
    for place, (picture, prediction) in enumerate(zip(pictures, predictions, strict=True)):
        truth = None if truths is None else truths[place]
        words = [labels[place]] if labels is not None else []
        words += [_agreement(truth, prediction, ignore)] if truth is not None else []
        rows += [text(", ".join(words), letters=110)] if words else []
        cells = _mask_cells(picture, truth, prediction, len(classes), ignore)
        rows.append(beside([widened(cell, SIDE) for cell in cells]))
    entries = _legend_entries([*(truths or []), *predictions], classes, ignore)
    entries += [(WRONG, "truth and prediction differ")] if truths is not None else []
    legend = layout.legend(entries, max(row.width for row in rows))
    return layout.png(below([below(rows, 8), legend], 16))


def classes_sheet(
    pictures: Sequence[Picture],
    probabilities: NDArray[np.floating],
    classes: Sequence[str],
    truths: Sequence[int] | None = None,
) -> bytes:
    """Each picture beside its three likeliest classes, a bar as long as each is likely.

    Args:
        pictures: at least one, uint8 [H, W, 3]; each of any size.
        probabilities: [n, K] in [0, 1].
        classes: K names.
        truths: class ids; the true class is ticked, and named where it is not among the three.

    Returns:
        A PNG file's bytes.

    Raises:
        ValueError: numbers that do not belong together.
    """
    if probabilities.shape != (len(pictures), len(classes)):
        raise ValueError(
            f"probabilities are {list(probabilities.shape)} for {len(pictures)} pictures and {len(classes)} classes;"
            f" expected [{len(pictures)}, {len(classes)}]"
        )
    items = []
    for place, picture in enumerate(pictures):
        small = widened(layout.sized(picture, _SMALL), _SMALL)
        truth = None if truths is None else truths[place]
        items.append(beside([small, _likeliest(probabilities[place], classes, truth)], 10))
    widest = max(item.width for item in items)
    columns = max(1, min(3, len(items), 1300 // widest))
    rows = [items[first : first + columns] for first in range(0, len(items), columns)]
    return layout.png(below([beside([widened(item, widest) for item in row], 24) for row in rows], 14))


def _mask_cells(
    picture: Picture, truth: Mask | None, prediction: Mask, classes: int, ignore: int
) -> list[Image.Image]:
    shown = layout.sized(picture)
    predicted = layout.sized_mask(prediction)
    cell = Image.fromarray(coloured(predicted, classes, ignore))
    if truth is None:
        return [shown, cell]
    true = layout.sized_mask(truth)
    differing = Image.fromarray(_difference(shown, true, predicted, ignore))
    return [shown, Image.fromarray(coloured(true, classes, ignore)), cell, differing]


def _difference(picture: Image.Image, truth: Mask, prediction: Mask, ignore: int) -> Picture:
    """The picture in pale greys, pixels that differ in red, ignored ones in their own grey."""
    grey = np.asarray(picture.convert("L").convert("RGB"))
    shown = grey // 4 + np.uint8(191)
    shown[truth != prediction] = WRONG
    shown[truth == ignore] = IGNORE_COLOUR
    return shown


def _agreement(truth: Mask, prediction: Mask, ignore: int) -> str:
    judged = truth != ignore
    if not judged.any():
        return "no pixel to judge"
    return f"{(truth == prediction)[judged].mean():.1%} of pixels right"


def _legend_entries(
    masks: Sequence[Mask], classes: Sequence[str], ignore: int
) -> list[tuple[tuple[int, int, int], str]]:
    """The colour and name of every class that occurs, by id."""
    found = sorted(set[int]().union(*(np.unique(mask).tolist() for mask in masks)) - {ignore})
    colours = palette(len(classes)).tolist()
    entries = [(tuple(colours[one]), classes[one]) for one in found]
    is_ignored = any((mask == ignore).any() for mask in masks)
    return entries + ([(IGNORE_COLOUR, "not judged")] if is_ignored else [])


def _likeliest(probabilities: NDArray[np.floating], classes: Sequence[str], truth: int | None) -> Image.Image:
    top = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    lines = []
    for rank, one in enumerate(top):
        colour = GOOD if one == truth else BAD if truth is not None and rank == 0 else INK
        tick = "\N{CHECK MARK} " if one == truth else ""
        lines.append(text(f"{tick}{classes[one]} {probabilities[one]:.0%}", colour))
        lines.append(_bar(float(probabilities[one]), _NEUTRAL if colour == INK else colour))
    if truth is not None and truth not in top:
        lines.append(text(f"\N{CHECK MARK} {classes[truth]} {probabilities[truth]:.0%}", FAINT))
    return below(lines, 3)


def _bar(share: float, colour: str) -> Image.Image:
    """On a pale ground that is as long as 1."""
    width, height = _BAR
    image = Image.new("RGB", (width, height), "#e6e8eb")
    image.paste(colour, (0, 0, round(width * share), height))
    return image


def _check_masks(
    pictures: Sequence[Picture],
    truths: Sequence[Mask] | None,
    predictions: Sequence[Mask],
    labels: Sequence[str] | None,
) -> None:
    for name, others in (("truths", truths), ("predictions", predictions), ("labels", labels)):
        if others is not None and len(others) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures have {len(others)} {name}; give one for each picture")
    for name, masks in (("truth", truths), ("prediction", predictions)):
        for place, mask in enumerate(masks or ()):
            if mask.shape != pictures[place].shape[:2]:
                sides = pictures[place].shape[:2]
                raise ValueError(
                    f"picture {place} is {list(sides)}, its {name} {list(mask.shape)}; bring both to one size"
                )
