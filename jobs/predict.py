"""A trained head on new pictures: `gatehouse predict HEAD IMAGES...`

What can be wrong with head, store or pictures is said before the backbone is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from jobs.beginnings import log_to_console
from jobs.endings import DONE
from pipeline import device as devices
from pipeline import storage
from pipeline.extractor import FeatureExtractor
from pipeline.frames import Frame
from pipeline.heads.given import Given, find
from pipeline.heads.pictures.palette import Picture
from pipeline.heads.pictures.prediction_pictures import mask_picture, match_picture
from pipeline.heads.pictures.sheets import classes_sheet
from pipeline.heads.predicting import Predicted, grid, locate, mask, mask_file, predict, unseen
from pipeline.heads.trained import Trained, extraction, extractor, load_head
from schemas.spec import ExtractSpec

_TOP = 3
"""Classes of a picture that are printed."""
_ON_SHEET = 60
"""Pictures on the sheet of classes, at most; all are in the table."""
_GRID = 4
"""Points along each side, where none are given."""

_Predictions = Iterator[tuple[Given, Predicted]]


def run(
    head: str,
    images: Sequence[str],
    *,
    out: str = "predictions",
    split: int = 0,
    caption: str | None = None,
    points: Sequence[str] = (),
    store: str | None = None,
    moved: Sequence[str] = (),
    allow_calls: bool = False,
    device: str = "auto",
) -> int:
    """Predict, write pictures and masks, and return the exit code.

    Args:
        head: its folder or URL.
        images: image files and folders of images; for correspondence, the source first.
        out: folder or URL to write to.
        split: whose weights.
        caption: of pictures without a `.txt` beside them, where a prompt takes one.
        points: for correspondence: X,Y in pixels of the source, one or several a text. Default: a grid.
        store: where the head's store is now.
        moved: OLD=NEW, where weights are now.
        allow_calls: run functions that the store names for control images.
        device: cpu, cuda or auto.

    Raises:
        ValueError: whatever of these makes it impossible.
        OSError: storage failed.
    """
    log_to_console()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console()
    places = _places(moved)
    trained = load_head(head, split, devices.choose(device, "--device"))
    spec = extraction(trained, store)
    _check_options(trained, spec, caption, points)
    given = find(images, spec, caption, out)
    wanted = _wanted(trained, spec, given, points)
    storage.check_puts(out)
    extract = extractor(trained, store, moved=places, allow_calls=allow_calls)
    predictions = _predictions(trained, extract, given)
    written = _Out(console, out)
    match trained.spec.task.type:
        case "correspondence":
            _match(predictions, wanted, written)
        case "classification":
            _classify(predictions, trained.manifest.classes, written)
        case _:
            _segment(predictions, trained, written)
    return DONE


class _Out:
    """Where predictions are written to, and said to be."""

    def __init__(self, console: Console, url: str) -> None:
        self.console = console
        self._fs, folder = storage.open_fs(url)
        self._folder, self._url = folder.rstrip("/"), url.rstrip("/")

    def write(self, name: str, data: bytes) -> None:
        storage.put(self._fs, f"{self._folder}/{name}", data)

    def say(self, name: str) -> None:
        """Where a file is that was written."""
        self.console.print(f"{self._url}/{name}", markup=False, highlight=False, soft_wrap=True)


def _segment(predictions: _Predictions, trained: Trained, out: _Out) -> None:
    """The mask of each picture as a file of class ids, and for people over the picture."""
    classes, outside = trained.manifest.classes, trained.spec.labels.ignore
    for given, one in predictions:
        ids = mask(one, outside)
        out.write(f"{given.key}.seg.png", mask_file(ids, max(outside, len(classes) - 1)))
        out.write(f"{given.key}.png", mask_picture(one.picture, ids, classes, outside))
        out.say(f"{given.key}.png")


def _classify(predictions: _Predictions, classes: Sequence[str], out: _Out) -> None:
    """The likeliest classes of each picture, and a sheet of the first pictures."""
    table = Table("picture", *(f"{place + 1}." for place in range(min(_TOP, len(classes)))))
    pictures: list[Picture] = []
    shares: list[NDArray[np.float32]] = []
    for given, one in predictions:
        likely = one.said.numpy()
        top = np.argsort(-likely, kind="stable")[:_TOP]
        table.add_row(escape(given.url), *(escape(f"{classes[id]} {likely[id]:.1%}") for id in top))
        if len(pictures) < _ON_SHEET:
            pictures.append(one.picture)
            shares.append(likely)
    out.console.print(table)
    out.write("classes.png", classes_sheet(pictures, np.stack(shares), classes))
    out.say("classes.png")


def _match(predictions: _Predictions, points: Tensor, out: _Out) -> None:
    """Where each other picture shows what the first one shows at some points."""
    first, source = next(predictions)
    for given, target in predictions:
        found = locate(source, target, points)
        out.console.print(f"{first.url} -> {given.url}", markup=False, highlight=False, soft_wrap=True)
        table = Table("point", "source x, y", "target x, y")
        for place, (here, there) in enumerate(zip(points.tolist(), found.tolist(), strict=True), 1):
            table.add_row(str(place), *("{:.1f}, {:.1f}".format(*xy) for xy in (here, there)))
        out.console.print(table)
        names = (first.url, given.url)
        data = match_picture(source.picture, target.picture, points.numpy(), found.numpy(), names)
        out.write(f"{given.key}.png", data)
        out.say(f"{given.key}.png")


def _predictions(trained: Trained, extract: FeatureExtractor, given: Sequence[Given]) -> _Predictions:
    """A batch of the backbone at a time."""
    left = iter(given)
    while some := list(islice(left, extract.spec.backbone.batch_size)):
        texts = {name: [one.texts[name] for one in some] for name in some[0].texts}
        try:
            found = predict(
                trained,
                extract,
                [one.read() for one in some],
                captions=texts.pop("caption", None),
                json={name.removeprefix("json:"): values for name, values in texts.items()},
                fields={name: [one.control(name) for one in some] for name in some[0].controls},
            )
        except ValueError as error:
            raise ValueError(f"of the pictures {', '.join(one.url for one in some)}: {error}") from error
        yield from zip(some, found, strict=True)


def _wanted(trained: Trained, spec: ExtractSpec, given: Sequence[Given], points: Sequence[str]) -> Tensor:
    """Points of the source to find, float64 [n, 2]; none for other tasks.

    Raises:
        ValueError: not two pictures, points that are none, or that the network does not see.
    """
    if trained.spec.task.type != "correspondence":
        return torch.empty(0, 2, dtype=torch.float64)
    if len(given) < 2:
        raise ValueError(
            f"head {trained.url} finds points of one picture in others, and there is {len(given)} picture; give the"
            " source, then one or more targets"
        )
    frame = Frame(given[0].size, (spec.image_size[0], spec.image_size[1]), spec.fit)
    if not points:
        return grid(frame, _GRID)
    texts = " ".join(points).split()
    found = torch.tensor([_point(text) for text in texts], dtype=torch.float64)
    if (cut := unseen(frame, found)).any():
        height, width = given[0].size
        raise ValueError(
            f"--points {texts[int(cut.argmax())]} is not in the part of {given[0].url} that the network sees; the"
            f" picture is {width} x {height} pixels (width x height), and the store's fit is {spec.fit}"
        )
    return found


def _point(text: str) -> list[float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(
            f"--points has {text!r}; a point is X,Y in pixels of the source, such as 120,80.5"
        ) from None
    return [x, y]


def _check_options(trained: Trained, spec: ExtractSpec, caption: str | None, points: Sequence[str]) -> None:
    task = trained.spec.task.type
    if points and task != "correspondence":
        raise ValueError(
            f"--points is for correspondence, and head {trained.url} is for {task}; leave it out"
        )
    if caption is not None and not any("caption" in group.placeholders for group in spec.groups):
        raise ValueError(
            f"--caption has no effect: no prompt of the feature groups {', '.join(trained.manifest.groups)}, which head"
            f" {trained.url} reads, has {{caption}}; leave it out"
        )


def _places(moved: Sequence[str]) -> dict[str, str]:
    for one in moved:
        if not all(one.partition("=")):
            raise ValueError(f"--moved has {one!r}; give OLD=NEW, where weights were and where they are now")
    return dict(one.split("=", 1) for one in moved)
