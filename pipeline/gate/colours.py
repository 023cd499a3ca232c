"""Features as colours for the report: one basis for all, so that what is alike has like colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import pca
from pipeline.decode import decode
from pipeline.gate.analysis import Analysis
from pipeline.gate.measuring import shown
from pipeline.gate.sampling import Drawn
from schemas.gate import PLAIN


def colours(
    analysis: Analysis, drawn: Drawn, chosen: Sequence[str]
) -> list[tuple[str, list[NDArray[np.uint8]]]]:
    """Column titles, and RGB pictures of some images: input, clean, plain, and what was chosen; of the finest tap."""
    spec, findings = analysis.spec, analysis.findings
    [tap] = findings[PLAIN].clean
    maps = {"clean": findings[PLAIN].clean[tap], PLAIN: findings[PLAIN].maps[tap]}
    maps |= {name: findings[name].maps[tap] for name in chosen}
    basis = pca.fit(np.concatenate(list(maps.values())))
    size = (spec.image_size[0], spec.image_size[1])
    images = drawn.pick(shown(drawn)).images
    pixels = [decode(image, size, spec.input.max_pixels, spec.fit).pixels for image in images]
    inputs = [np.ascontiguousarray(np.moveaxis(one, 0, -1)) for one in pixels]
    return [("input", inputs), *((name, list(basis.colours(one))) for name, one in maps.items())]
