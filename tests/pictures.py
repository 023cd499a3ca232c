"""Batches of pictures at hand, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Batch


def of_pictures(
    ids: Sequence[tuple[str, str] | None], pixels: NDArray[np.uint8], **texts: list[str | None]
) -> Batch:
    """Pictures that fill the whole of [H, W]; `texts` by placeholder."""
    whole = np.tile(np.array([0, 0, *pixels.shape[2:]], np.int32), (len(ids), 1))
    return Batch(list(ids), pixels, whole, texts, {name: [None] * len(ids) for name in texts})
