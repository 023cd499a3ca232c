"""Selections as `gatehouse gate` writes them, with findings that nobody measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.gate import Estimate, Judged, Selection
from tests.engines import group


def selection(*groups: dict[str, Any], backbone: str = "0" * 64, **fields: Any) -> Selection:
    """Of these groups, made for the backbone with this fingerprint."""
    gain = {"own": Estimate(mean=0.25, low=0.125, high=0.5), "shape": Estimate(mean=-1, low=-2, high=1)}
    return Selection(
        gatehouse="0",
        backbone=backbone,
        reading="own",
        confidence=0.95,
        plain_cost=1.0,
        judged=[
            Judged(
                name="caption",
                candidates=["caption"],
                verdict="suppresses",
                gain=gain,
                score={"own": Estimate(mean=0.75, low=0.5, high=0.875)},
                cost=1.0,
            )
        ],
        groups=list(groups) or [group("caption", prompt="{caption}")],
        images=["a.tar/0"],
        usable=1,
        spec={"backbone": {"source": "embedded"}},
        **fields,
    )


def write(path: Path, made: Selection) -> str:
    """Its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.to_bytes())
    return str(path)
