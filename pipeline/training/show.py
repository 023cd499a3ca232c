"""Sample pictures, written as training goes."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def write_grid(path: Path, images: Tensor, columns: int) -> None:
    """Images [n, 3, H, W] in [-1, 1] as one PNG, row by row; the last row may be short."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    height, width = pixels.shape[1:3]
    rows = -(-len(pixels) // columns)
    grid = Image.new("RGB", (columns * width, rows * height))
    for place, image in enumerate(pixels):
        grid.paste(Image.fromarray(image), (place % columns * width, place // columns * height))
    grid.save(path)
