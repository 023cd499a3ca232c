"""What a trained head says of pictures that no store holds.

    trained = load_head("./head")
    extract = extractor(trained)
    for one in predict(trained, extract, [Path("horse.jpg").read_bytes()]):
        ids = mask(one, outside=255)

Features are computed as a job computes them, and the head's own network does the rest. Results are first over the image
that the network saw; `mask` and `locate` bring them back to the picture's own pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.decode import picture
from pipeline.extractor import FeatureExtractor
from pipeline.frames import Frame
from pipeline.heads.networks.correspondence import nearest
from pipeline.heads.pictures.palette import Picture
from pipeline.heads.tasks.classification import ClassificationHead
from pipeline.heads.tasks.correspondence import CorrespondenceHead
from pipeline.heads.tasks.label_scarce import LabelScarceHead
from pipeline.heads.tasks.segmentation import SegmentationHead
from pipeline.heads.trained import Trained

Maps = Mapping[str, Tensor]
_ROUNDING = 1e-6
"""In pixels, by which a point on an edge may miss it."""


@dataclass(frozen=True)
class Predicted:
    """A picture, and what a head says of it."""

    picture: Picture
    """Upright, of its own size."""
    frame: Frame
    """How it lies in the image that the network saw."""
    said: Tensor
    """On the CPU; see `said`, without the batch."""


def predict(
    trained: Trained,
    extract: FeatureExtractor,
    images: Sequence[bytes],
    *,
    ids: Sequence[tuple[str, str]] | None = None,
    captions: Sequence[str] | None = None,
    json: Mapping[str, Sequence[str]] | None = None,
    fields: Mapping[str, Sequence[bytes]] | None = None,
) -> list[Predicted]:
    """Predict on encoded pictures, a few at a time: all are in memory at once.

    Args:
        trained: the head.
        extract: as `pipeline.heads.trained.extractor` makes it.
        images: JPEG, PNG or WebP files.
        ids, captions, json, fields: what noise and prompts depend on, as of `FeatureExtractor`.

    Raises:
        BadSample: an image that cannot be decoded.
        ValueError: something that a group needs and that is missing, or values that do not fit the stored dtype.
    """
    spec = extract.spec
    size = (spec.image_size[0], spec.image_size[1])
    pictures = [np.asarray(picture(data, spec.input.max_pixels)) for data in images]
    pooled = trained.spec.task.type == "classification"
    compute = extract.pooled if pooled else extract
    found = compute(pictures, ids=ids, captions=captions, json=json, fields=fields)
    maps = {name: torch.from_numpy(values) for name, values in found.items()}
    if pooled:
        maps = {name: vectors[:, :, None, None] for name, vectors in maps.items()}
    return [
        Predicted(one, Frame((one.shape[0], one.shape[1]), size, spec.fit), values)
        for one, values in zip(pictures, said(trained, maps, size), strict=True)
    ]


@torch.inference_mode()
def said(trained: Trained, maps: Maps, size: tuple[int, int]) -> Tensor:
    """What a head says of features, on the CPU.

    Args:
        trained: the head.
        maps: by `group/tap`, [B, C, h, w]; [B, C, 1, 1] for classification.
        size: (H, W) of the image that the network saw.

    Returns:
        Segmentation: class ids int64 [B, H, W]. Classification: probabilities float32 [B, K]. Correspondence:
        descriptors float32 [B, D, h, w].
    """
    network = trained.network
    maps = {name: maps[name].to(trained.device) for name in trained.taps}
    if isinstance(network, LabelScarceHead | SegmentationHead):
        return network.predict(maps, size)[0].cpu()
    assert isinstance(network, ClassificationHead | CorrespondenceHead)
    found, _ = network(maps)
    return (found.softmax(1) if isinstance(network, ClassificationHead) else found).cpu()


def mask(predicted: Predicted, outside: int) -> NDArray[np.int64]:
    """A head's class ids over the picture itself, [height, width], by nearest neighbour.

    Args:
        predicted: by a head for segmentation.
        outside: what a crop cut off, which the network has not seen.
    """
    height, width = predicted.frame.picture
    columns, knows_column = _seen(predicted.frame, width, axis=0)
    rows, knows_row = _seen(predicted.frame, height, axis=1)
    ids = predicted.said.numpy()[np.ix_(rows, columns)]
    return np.where(np.outer(knows_row, knows_column), ids, outside)


def mask_file(ids: NDArray[np.integer], most: int) -> bytes:
    """Class ids [H, W] as a grey PNG, which training takes as a label: 8 bits, or 16 where `most`, the largest id that
    may occur, needs them."""
    data = io.BytesIO()
    Image.fromarray(ids.astype(np.uint8 if most < 2**8 else np.uint16)).save(data, "PNG")
    return data.getvalue()


def locate(source: Predicted, target: Predicted, points: Tensor) -> Tensor:
    """Where a target shows what a source shows at some points.

    Args:
        source, target: by a head for correspondence.
        points: (x, y) in pixels of the source picture, [n, 2]; the first pixel's centre is (0.5, 0.5).

    Returns:
        float64 [n, 2], in pixels of the target picture.
    """
    here = source.frame.to_image(points) / _sides(source.frame)
    found = nearest(source.said, here.float(), target.said)
    return target.frame.to_picture(found.double() * _sides(target.frame))


def grid(frame: Frame, count: int) -> Tensor:
    """Points of a picture, evenly over what the network sees of it: (x, y) in its pixels, float64 [count**2, 2]."""
    corners = frame.to_picture(torch.stack([torch.zeros(2), _sides(frame)])).clamp_min(0)
    first = corners[0]
    last = torch.minimum(corners[1], torch.tensor(frame.picture[::-1]))
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x, y = torch.meshgrid(steps, steps, indexing="xy")
    return first + torch.stack([x.flatten(), y.flatten()], 1) * (last - first)


def unseen(frame: Frame, points: Tensor) -> NDArray[np.bool_]:
    """Which points [n, 2] of a picture the network does not see: outside of it, or left out by a crop; bool [n]."""
    seen = _inside(points, torch.tensor(frame.picture[::-1])) & _inside(frame.to_image(points), _sides(frame))
    found: NDArray[np.bool_] = (~seen).numpy()
    return found


def _inside(points: Tensor, sides: Tensor) -> Tensor:
    return ((points >= -_ROUNDING) & (points <= sides + _ROUNDING)).all(1)


def _sides(frame: Frame) -> Tensor:
    """(width, height) of the image."""
    return torch.tensor(frame.image[::-1], dtype=torch.float64)


def _seen(frame: Frame, count: int, axis: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Along x (axis 0) or y (1), the image's pixel under the centre of each of the picture's, and if there is one."""
    centres = torch.zeros(count, 2)
    centres[:, axis] = torch.arange(count) + 0.5
    places = frame.to_image(centres)[:, axis].floor().long().numpy()
    last = frame.image[1 - axis] - 1
    return np.clip(places, 0, last), (places >= 0) & (places <= last)
