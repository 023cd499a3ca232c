"""What a LoRA adds to what can be read off features, on scenes of the domain that it was trained for.

The protocol of `probes`, with and without the LoRA, everything else the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.embedded_figures.features import extract, legacy_taps
from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.probes import (
    ALL_TAPS,
    STEERED_TIMES,
    Protocol,
    Scores,
    best_tap,
    joined,
    score,
    t_row,
)
from pipeline.embedded_figures.scenes import Scene
from pipeline.embedded_figures.statistics import interval, paired


def lora_scores(
    backbone: Path, scenes: Sequence[Scene], loras: Mapping[str, Path], protocol: Protocol
) -> Scores:
    """mIoU in percent of plain features and of those with each LoRA, on every tap and on all of them, [seeds].

    Args:
        backbone: a diffusers folder.
        scenes: of the LoRAs' domain, none of them trained on.
        loras: by name; rows are called `t = T` and `NAME, t = T`.
        protocol: how much of it.
    """
    rows: dict[str, dict[str, Any]] = {}
    for t in STEERED_TIMES:
        rows[t_row(t)] = {"t": t}
        for name, path in loras.items():
            rows[t_row(t, name)] = {"t": t, "techniques": [{"type": "lora", "source": str(path)}]}
    draws = range(min(protocol.draws, protocol.seeds))
    groups = [
        {**fields, "seed": draw, "name": f"draw{draw}-{number}"}
        for draw in draws
        for number, fields in enumerate(rows.values())
    ]
    features = extract(backbone, scenes, groups, "float16")
    labels = torch.from_numpy(np.stack([scene.labels for scene in scenes]))
    taps = legacy_taps(backbone)

    def of(number: int, tap: str) -> NDArray[np.float64]:
        found = []
        for seed in range(protocol.seeds):
            group = f"draw{seed % len(draws)}-{number}"
            maps = {name: features[f"{group}/{name}"] for name in taps}
            found.append(score(joined([maps], tap), labels, seed, protocol))
        return np.array(found)

    return {row: {tap: of(number, tap) for tap in (*taps, ALL_TAPS)} for number, row in enumerate(rows)}


def figures(scores: Scores, loras: Sequence[str]) -> list[Figure]:
    """Each LoRA beside plain features of the same t, with a goal on the best single tap; then all."""
    single = best_tap(scores)
    found = [
        Figure(
            f"linear probe in the LoRAs' domain, {tap}: {t_row(t, name)}, minus plain",
            paired(scores[t_row(t, name)][tap], scores[t_row(t)][tap]),
            "points",
            Goal("above", 0) if tap == single else None,
        )
        for t in STEERED_TIMES
        for name in loras
        for tap in (single, ALL_TAPS)
    ]
    return found + [
        Figure(f"linear probe in the LoRAs' domain, {row}, {tap}", interval(values), "% mIoU")
        for row, by_tap in scores.items()
        for tap, values in by_tap.items()
    ]
