"""One candidate measured on the drawn images: where its features change from place to place, at every t, and its cost.

No Ray here: a candidate is one task, and a task needs the backbone once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.extractor import FeatureExtractor
from pipeline.gate.candidates import extract_spec, group, measured_groups, plain, times
from pipeline.gate.readings import TapNorms
from pipeline.gate.sampling import Drawn
from pipeline.shift import laplacian_norms
from schemas.gate import Candidate, GateSpec

_SHOWN: Final = 8
"""Images whose features themselves are kept, for diversity and pictures."""
_SIDE: Final = 16
"""Cells a side that these are averaged to."""
_TIMED: Final = 5
_LARGEST: Final = 65504.0
"""Of float16."""
Maps = NDArray[np.float16]
"""[images, C, h, w]."""


@dataclass(frozen=True)
class Findings:
    """What is known of a candidate; small, since it travels."""

    norms: dict[str, TapNorms]
    """By tap, of all images."""
    maps: dict[str, Maps]
    """By tap, features of some images (`shown`) at the spec's t, at most 16 cells a side."""
    clean: dict[str, Maps]
    """The same of clean latents at timestep 0, of the finest tap."""
    cost: float
    """Seconds an image of the feature group alone, VAE and text encoder included."""
    plain_cost: float
    """The same of the plain group, measured in turns with it: only their ratio means something on a busy machine."""


def measure(spec: GateSpec, candidate: Candidate, drawn: Drawn) -> Findings:
    """All that is measured of a candidate.

    Raises:
        ValueError: names the candidate; features that are no numbers, or what a group needs and samples lack.
    """
    try:
        norms, maps = _measured(spec, candidate, drawn)
        cost, plain_cost = _costs(spec, candidate, drawn)
    except ValueError as error:
        raise ValueError(f"candidate {candidate.name!r}: {error}") from error
    by_tap = {
        tap: TapNorms(
            clean=norms[f"clean/{tap}"],
            noisy={t: norms[f"noisy-t{t}/{tap}"] for t in times(spec, candidate)},
        )
        for tap in dict.fromkeys(name.partition("/")[2] for name in norms)
    }
    finest = max(by_tap, key=lambda tap: maps[f"clean/{tap}"][0, 0].size)
    return Findings(
        norms=by_tap,
        maps={tap: maps[f"noisy-t{spec.t}/{tap}"] for tap in by_tap},
        clean={finest: maps[f"clean/{finest}"]},
        cost=cost,
        plain_cost=plain_cost,
    )


def shown(drawn: Drawn) -> list[int]:
    """Places of the images whose features are kept."""
    return drawn.places(_SHOWN)


def _measured(
    spec: GateSpec, candidate: Candidate, drawn: Drawn
) -> tuple[dict[str, NDArray[Any]], dict[str, Maps]]:
    """By group and tap: Laplacian norms [images, h, w] of all images, and small maps of some.

    Batch by batch, since features of all images may not fit into memory.
    """
    extractor = FeatureExtractor(extract_spec(spec, measured_groups(spec, candidate)))
    size, kept = spec.backbone.batch_size, set(shown(drawn))
    norms, maps = defaultdict(list), defaultdict(list)
    for start in range(0, len(drawn), size):
        places = range(start, min(start + size, len(drawn)))
        mine = [place - start for place in places if place in kept]
        for name, values in _features(extractor, drawn.pick(places)).items():
            norms[name].append(laplacian_norms(torch.from_numpy(values)).numpy())
            maps[name].append(_small(values[mine]))
    return tuple({name: np.concatenate(parts) for name, parts in found.items()} for found in (norms, maps))  # type: ignore[return-value]


def _features(extractor: FeatureExtractor, drawn: Drawn) -> dict[str, NDArray[Any]]:
    texts = drawn.texts
    return extractor(
        drawn.images,
        ids=drawn.ids,
        captions=texts.get("caption"),
        json={name.removeprefix("json:"): values for name, values in texts.items() if name != "caption"},
        fields=drawn.controls,
    )


def _small(values: NDArray[Any]) -> Maps:
    """At most 16 x 16 cells: enough for cosines and pictures."""
    maps = torch.from_numpy(values)
    height, width = maps.shape[2:]
    pooled = functional.adaptive_avg_pool2d(maps, (min(_SIDE, height), min(_SIDE, width)))
    return pooled.clamp(-_LARGEST, _LARGEST).half().numpy()


def _costs(spec: GateSpec, candidate: Candidate, drawn: Drawn) -> tuple[float, float]:
    """Of a candidate and of the plain feature: the median of a few batches in turns, after one that is not counted."""
    both = [FeatureExtractor(extract_spec(spec, [group(spec, one)])) for one in (candidate, plain())]
    batch = drawn.pick(drawn.places(spec.backbone.batch_size))
    seconds: list[list[float]] = [[], []]
    for _ in range(1 + _TIMED):
        for extractor, of_one in zip(both, seconds, strict=True):
            started = perf_counter()
            _features(extractor, batch)
            of_one.append(perf_counter() - started)
    ours, of_plain = (median(of_one[1:]) / len(batch) for of_one in seconds)
    return ours, of_plain
