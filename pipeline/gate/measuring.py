"""One candidate measured on the drawn images: where its features change from place to place, at every t, and its cost.

No Ray here: a candidate is one task, and a task needs the backbone once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.extractor import FeatureExtractor
from pipeline.gate.candidates import group, measured_groups, plain, times
from pipeline.gate.readings import TapNorms
from pipeline.gate.sampling import Drawn
from pipeline.shift import laplacian_norms
from schemas.gate import Candidate, GateSpec
from schemas.spec import ExtractSpec

_SHOWN: Final = 8
"""Images whose features themselves are kept, for diversity and pictures."""
_SIDE: Final = 16
"""Cells a side that these are averaged to."""
_TIMED: Final = 5
Maps = NDArray[np.float32]
"""[images, C, h, w]."""


@dataclass(frozen=True)
class Findings:
    """What is known of a candidate; small, since it travels."""

    norms: dict[str, TapNorms]
    """By tap, of all images."""
    maps: dict[str, Maps]
    """By tap, features of the first images at the spec's t, at most 16 cells a side."""
    clean: dict[str, Maps]
    """The same of clean latents at timestep 0."""
    cost: float
    """Seconds an image of the feature group alone, VAE and text encoder included."""
    plain_cost: float
    """The same of the plain group, measured in turns with it: only their ratio means something on a busy machine."""


def measure(spec: GateSpec, candidate: Candidate, drawn: Drawn) -> Findings:
    """All that is measured of a candidate.

    Raises:
        ValueError: features that do not fit float32, or what a group needs and samples lack.
    """
    extractor = FeatureExtractor(_extract_spec(spec, measured_groups(spec, candidate)))
    parts = [_norms(features) for features in _batches(extractor, drawn)]
    taps = list(dict.fromkeys(name.partition("/")[2] for name in parts[0]))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    norms = {
        tap: TapNorms(
            clean=joined[f"clean/{tap}"],
            noisy={t: joined[f"noisy-t{t}/{tap}"] for t in times(spec, candidate)},
        )
        for tap in taps
    }
    shown = _features(extractor, drawn.first(_SHOWN))
    cost, plain_cost = _costs(spec, candidate, drawn)
    return Findings(
        norms=norms,
        maps={tap: _small(shown[f"noisy-t{spec.t}/{tap}"]) for tap in taps},
        clean={tap: _small(shown[f"clean/{tap}"]) for tap in taps},
        cost=cost,
        plain_cost=plain_cost,
    )


def _extract_spec(spec: GateSpec, groups: list[dict[str, Any]]) -> ExtractSpec:
    return ExtractSpec.model_validate(
        {
            "version": 1,
            "store": "none",
            "input": spec.input.model_dump(),
            "image_size": spec.image_size,
            "fit": spec.fit,
            "backbone": spec.backbone.model_dump(),
            "seed": spec.seed,
            "groups": groups,
            "output": {"dtype": "float32"},
            "cluster": spec.cluster.model_dump(),
        }
    )


def _batches(extractor: FeatureExtractor, drawn: Drawn) -> Iterator[dict[str, NDArray[Any]]]:
    """Features of one batch after the other: those of all images may not fit into memory."""
    size = extractor.spec.backbone.batch_size
    for start in range(0, len(drawn), size):
        yield _features(extractor, drawn, slice(start, start + size))


def _features(
    extractor: FeatureExtractor, drawn: Drawn, part: slice = slice(None)
) -> dict[str, NDArray[Any]]:
    texts = {name: values[part] for name, values in drawn.texts.items()}
    fields = {name.removeprefix("json:"): values for name, values in texts.items() if name != "caption"}
    return extractor(
        drawn.images[part],
        ids=drawn.ids[part],
        captions=texts.get("caption"),
        json=fields,
        fields={name: values[part] for name, values in drawn.controls.items()},
    )


def _norms(features: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Laplacian norms [images, h, w] of every group and tap."""
    return {name: laplacian_norms(torch.from_numpy(values)).numpy() for name, values in features.items()}


def _small(values: NDArray[Any]) -> Maps:
    """At most 16 x 16 cells: enough for cosines and pictures."""
    maps = torch.from_numpy(values)
    height, width = maps.shape[2:]
    return functional.adaptive_avg_pool2d(maps, (min(_SIDE, height), min(_SIDE, width))).numpy()


def _costs(spec: GateSpec, candidate: Candidate, drawn: Drawn) -> tuple[float, float]:
    """Of a candidate and of the plain feature: the median of a few batches in turns, after one that is not counted."""
    both = [FeatureExtractor(_extract_spec(spec, [group(spec, one)])) for one in (candidate, plain())]
    batch = drawn.first(spec.backbone.batch_size)
    seconds: list[list[float]] = [[], []]
    for _ in range(1 + _TIMED):
        for extractor, of_one in zip(both, seconds, strict=True):
            started = perf_counter()
            _features(extractor, batch)
            of_one.append(perf_counter() - started)
    ours, of_plain = (median(of_one[1:]) / len(batch) for of_one in seconds)
    return ours, of_plain
