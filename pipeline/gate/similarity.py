"""How close repainted pictures come to their inputs: edges, structure and colour, and what an image encoder sees.

Every measure takes two arrays of RGB pictures uint8 [n, H, W, 3], inputs and outputs, and gives float64 [n], each
picture with its own; 1 is identical, and higher is closer. They see different things: edges and structure what a
ControlNet can hold, colours what it cannot, embeddings what is shown, wherever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from pipeline.backbone import load_module
from pipeline.techniques.ip_adapter import clip_images

Pictures = NDArray[np.uint8]
"""RGB [n, H, W, 3]."""
Values = NDArray[np.float64]
"""[n]"""

_LUMA: Final = np.array([0.299, 0.587, 0.114])
"""Of R, G and B, as in ITU-R BT.601."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""Window in pixels and constants of Wang et al. 2004."""
_CELLS: Final = 8
"""A side of the grid of colours."""
_BATCH: Final = 16


def measures(inputs: Pictures, outputs: Pictures) -> dict[str, Values]:
    """All measures that need no network, by name.

    Raises:
        ValueError: arrays of different shapes, or pictures smaller than SSIM's window.
    """
    return {name: measure(inputs, outputs) for name, measure in _MEASURES.items()}


def closer(
    inputs: Pictures, without: Pictures, repainted: Mapping[str, Pictures], encoder: Any = None
) -> dict[str, dict[str, Values]]:
    """How much more alike its input each picture is than one repainted without any technique, by name and measure.

    Args:
        inputs: that were repainted.
        without: repainted without.
        repainted: with each candidate, by name.
        encoder: as `load_encoder` gave it; adds the measure `embedding`.
    """

    def alike(outputs: Pictures) -> dict[str, Values]:
        found = measures(inputs, outputs)
        return (
            found
            if encoder is None
            else found | {"embedding": embedding_similarity(inputs, outputs, encoder)}
        )

    plain = alike(without)
    return {
        name: {measure: values - plain[measure] for measure, values in alike(outputs).items()}
        for name, outputs in repainted.items()
    }


def edge_agreement(inputs: Pictures, outputs: Pictures) -> Values:
    """F1 of Canny edges (thresholds 100 and 200) that lie within one pixel of one another, in [0, 1].

    1 where neither picture has any, 0 where only one has.
    """
    # Here, since it imports stock pipelines, which warn that torchvision is missing.
    from pipeline.embedded_figures.edges import edges, f1

    _check(inputs, outputs)
    return f1(edges(outputs), edges(inputs))


def ssim(inputs: Pictures, outputs: Pictures) -> Values:
    """Mean structural similarity of luma, in [-1, 1] (Wang et al. 2004, eq. 13 and 17).

    Gaussian windows of 11 x 11 pixels with sigma 1.5 that lie whole inside the picture, K1 = 0.01, K2 = 0.03, L = 255;
    pictures are not reduced before.

    Raises:
        ValueError: pictures smaller than a window.
    """
    _check(inputs, outputs)
    if min(inputs.shape[1:3]) < _WINDOW:
        raise ValueError(
            f"pictures of {inputs.shape[1]} x {inputs.shape[2]} pixels; SSIM looks through windows of {_WINDOW} x"
            f" {_WINDOW}"
        )
    return np.array([_ssim(one @ _LUMA, other @ _LUMA) for one, other in zip(inputs, outputs, strict=True)])


def colour(inputs: Pictures, outputs: Pictures) -> Values:
    """Agreement of local colours: 1 - d / 100, at most 1.

    d is the distance (CIE 1976) of mean CIELAB colours in the cells of an 8 x 8 grid, averaged over cells. 100 is that
    of black and white; of saturated complements it is more, so that values below 0 occur.
    """
    _check(inputs, outputs)
    distances = [
        np.linalg.norm(_grid(one) - _grid(other), axis=2).mean()
        for one, other in zip(inputs, outputs, strict=True)
    ]
    return 1 - np.array(distances, np.float64) / 100


def load_encoder(folder: Path, device: str = "cpu") -> Any:
    """A CLIPVisionModelWithProjection from its folder, in float32; safetensors and local files only.

    Raises:
        ValueError: weights that its config asks for are not there.
    """
    return load_module(
        CLIPVisionModelWithProjection, folder, dtype=torch.float32, device=torch.device(device)
    )


def embedding_similarity(inputs: Pictures, outputs: Pictures, encoder: Any) -> Values:
    """Cosine of image embeddings, in [-1, 1].

    Args:
        inputs, outputs: of any size; each is seen as CLIP sees pictures (`clip_images`).
        encoder: as `load_encoder` gave it.
    """
    _check(inputs, outputs)
    return (_embeddings(inputs, encoder) * _embeddings(outputs, encoder)).sum(1)


_MEASURES: Final[dict[str, Callable[[Pictures, Pictures], Values]]] = {
    "edge_agreement": edge_agreement,
    "ssim": ssim,
    "colour": colour,
}


def _check(inputs: Pictures, outputs: Pictures) -> None:
    for pictures in (inputs, outputs):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise ValueError(
                f"pictures are {pictures.dtype} {list(pictures.shape)}; they must be uint8 [n, H, W, 3]"
            )
    if inputs.shape != outputs.shape:
        raise ValueError(
            f"inputs are {list(inputs.shape)}, outputs {list(outputs.shape)}; pictures are compared one to one"
        )


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of two pictures' luma [H, W]; mu and sigma as the paper has them."""
    mu_x, mu_y = _windowed(x), _windowed(y)
    sigma_xx, sigma_yy, sigma_xy = (
        _windowed(product) - mean
        for product, mean in ((x * x, mu_x * mu_x), (y * y, mu_y * mu_y), (x * y, mu_x * mu_y))
    )
    above = (2 * mu_x * mu_y + _C1) * (2 * sigma_xy + _C2)
    below = (mu_x * mu_x + mu_y * mu_y + _C1) * (sigma_xx + sigma_yy + _C2)
    return float((above / below).mean())


def _windowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of every window that lies whole inside [H, W]."""
    border = _WINDOW // 2
    blurred = cv2.GaussianBlur(values, (_WINDOW, _WINDOW), _SIGMA)
    return np.asarray(blurred[border:-border, border:-border], np.float64)


def _grid(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean CIELAB (D65) of each cell, [8, 8, 3]; a pixel on a border counts for each cell by its share."""
    lab = cv2.cvtColor(np.ascontiguousarray(picture).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(cv2.resize(lab, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA), np.float32)


@torch.inference_mode()
def _embeddings(pictures: Pictures, encoder: Any) -> Values:
    """Unit vectors [n, C]."""
    parts = [
        encoder(
            clip_images(part.transpose(0, 3, 1, 2), encoder.config.image_size).to(encoder.device)
        ).image_embeds
        for part in np.split(pictures, range(_BATCH, len(pictures), _BATCH))
    ]
    return normalize(torch.cat(parts).double(), dim=1).cpu().numpy()
