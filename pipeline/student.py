"""Points of Student's distribution at any tail, which an interval of several together needs."""

from __future__ import annotations

import math
from typing import Final

_HALVINGS: Final = 60
"""Of a right angle; beyond the precision of float64."""


def student(tail: float, freedom: int) -> float:
    """The point that a share `tail` of Student's distribution lies above.

    Args:
        tail: in (0, 0.5]; at least 1e-12, so that rounding does not tell.
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _above(middle, freedom) > tail else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _above(angle: float, freedom: int) -> float:
    """Share above sqrt(freedom) * tan(angle), by a finite series (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    cosine = math.cos(angle)
    term = math.sin(angle) * (cosine if odd else 1.0)
    total = 0.0
    for place in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * place / (place + 1)
    return 0.5 - ((angle + total) / math.pi if odd else total / 2)
