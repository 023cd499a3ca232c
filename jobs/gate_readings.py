"""Which reading of GATE's Score predicts what a head gains: `python -m jobs.gate_readings`.

On scenes with a class for each pixel, for every candidate and tap: how much the Score is above the plain feature's (by
each reading of `pipeline.gate.readings`), and how much the mIoU of a linear probe is. What is asked is whether the two
have the same order: Spearman's rank correlation over candidates and taps, and over candidates, with intervals by
bootstrap.

A prompt made of each scene's own caption names the classes that the probe is to find, so candidates with it are kept
out of the correlation, and shown beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline import sources
from pipeline.embedded_figures.features import extract, legacy_taps
from pipeline.embedded_figures.probes import Protocol, joined, score
from pipeline.embedded_figures.scenes import Scene, read_scenes
from pipeline.embedded_figures.statistics import spearman
from pipeline.gate import readings
from pipeline.gate.candidates import candidates_of, group
from pipeline.gate.readings import READINGS, TapNorms
from pipeline.linear_probe import Training
from pipeline.scores import clean
from pipeline.shift import laplacian_norms
from schemas.gate import Candidate, GateSpec, Reading
from schemas.groups import Group
from schemas.spec import Backbone as BackboneSpec
from schemas.techniques import Average, ControlNet

_ANCHOR_T: Final = 400
_SCORED: Final = 96
"""Scenes whose Score is taken."""
_TRAINED: Final = 300
_RESAMPLES: Final = 2000
Line = dict[str, str | float]
_TELLS: Final = "caption"
"""What names of candidates contain whose prompt tells the answer."""


def main(
    shards: Annotated[str, typer.Option(help="Scenes with classes, 400 or more.")],
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path("gate-readings.json"),
    scenes: Annotated[int, typer.Option(min=8, help="How many.")] = 480,
    seeds: Annotated[int, typer.Option(min=1, help="Splits of scenes and first weights of the probe.")] = 3,
    t: Annotated[list[int] | None, typer.Option(help="Noise; may be repeated. Default: 50 and 200.")] = None,
) -> None:
    """Measure, print a table, and write a json file."""
    backbone = sources.locate(BackboneSpec(source="embedded"))
    chosen = read_scenes(shards, scenes)
    protocol = Protocol(min(_TRAINED, len(chosen) // 2), seeds, 1, Training())
    lines = [
        line
        for time in t or (50, 200)
        for line in measured(backbone, chosen, candidates(shards), time, protocol)
    ]
    correlations = {"taps": correlated(lines), "candidates": correlated(by_candidate(lines))}
    out.write_text(json.dumps({"lines": lines, "spearman": correlations}, indent=1) + "\n")
    _show(lines, correlations)


def candidates(shards: str) -> list[Candidate]:
    """The embedded backbone's own, at several strengths, and two that pair some."""
    spec = _spec(shards, 50)
    canny = ControlNet(type="controlnet", source="embedded/controlnet-canny")
    found = candidates_of(spec, captions=True)
    half = canny.model_copy(update={"scale": 0.5})
    found.append(Candidate(name="controlnet-half", techniques=[half]))
    found.append(Candidate(name="average", techniques=[Average(type="average", seeds=4)]))
    found.append(Candidate(name="caption-and-controlnet", prompt="{caption}", techniques=[canny]))
    return found


def measured(
    backbone: Path, scenes: list[Scene], chosen: list[Candidate], t: int, protocol: Protocol
) -> list[Line]:
    """A line for each candidate and tap: gains of Score by reading, and of the probe in points."""
    spec = _spec("", t)
    labels = torch.from_numpy(np.stack([scene.labels for scene in scenes]))
    taps = legacy_taps(backbone)
    plain, probed = _norms(backbone, scenes, Candidate(name="plain"), spec, anchor=True)
    of_plain = {tap: _miou(probed[tap], labels, protocol) for tap in taps}
    lines: list[Line] = []
    for candidate in chosen:
        norms, maps = _norms(backbone, scenes, candidate, spec, anchor=False)
        for tap in taps:
            gains: Line = {reading: _gain(norms[tap], plain[tap], t, reading) for reading in READINGS}
            miou = _miou(maps[tap], labels, protocol) - of_plain[tap]
            lines.append({"candidate": candidate.name, "t": t, "tap": tap, "miou": miou, **gains})
        print(f"t = {t}: {candidate.name}", flush=True)
    return lines


def by_candidate(lines: list[Line]) -> list[Line]:
    """A line for each candidate and t, the means over its taps: what GATE judges by."""
    found: list[Line] = []
    for name, t in dict.fromkeys((line["candidate"], line["t"]) for line in lines):
        own = [line for line in lines if (line["candidate"], line["t"]) == (name, t)]
        means = {key: float(np.mean([float(line[key]) for line in own])) for key in ("miou", *READINGS)}
        found.append({"candidate": name, "t": t, **means})
    return found


def correlated(lines: list[Line]) -> dict[Reading, list[float]]:
    """`correlation` by reading, over the lines whose prompt does not tell the answer."""
    honest = [line for line in lines if _TELLS not in str(line["candidate"])]
    gains = np.array([float(line["miou"]) for line in honest])
    return {
        reading: correlation(np.array([float(line[reading]) for line in honest]), gains)
        for reading in READINGS
    }


def correlation(scores: NDArray[np.float64], gains: NDArray[np.float64]) -> list[float]:
    """Spearman's rank correlation of two arrays [n], and its 95 % interval by bootstrap over the n."""
    random = np.random.default_rng(0)
    draws = random.integers(len(scores), size=(_RESAMPLES, len(scores)))
    resampled = [spearman(scores[draw], gains[draw]) for draw in draws]
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return [spearman(scores, gains), float(low), float(high)]


def _norms(
    backbone: Path, scenes: list[Scene], candidate: Candidate, spec: GateSpec, *, anchor: bool
) -> tuple[dict[str, TapNorms], dict[str, NDArray[np.float16]]]:
    """Laplacian norms of the first scenes by tap; and features of all of them, to probe."""
    own = group(spec, candidate)
    groups = [clean(Group.model_validate(own)).model_dump() | {"name": "clean"}]
    if anchor:
        groups.append(own | {"name": "anchor", "t": _ANCHOR_T})
    first, taps = scenes[:_SCORED], legacy_taps(backbone)
    features = extract(backbone, first, groups, "float32")
    noisy = extract(backbone, scenes, [own | {"name": "noisy"}], "float32")
    features |= {name: values[: len(first)] for name, values in noisy.items()}
    norms = {name: laplacian_norms(torch.from_numpy(values)).numpy() for name, values in features.items()}
    found = {
        tap: TapNorms(
            norms[f"clean/{tap}"],
            {spec.t: norms[f"noisy/{tap}"]} | ({_ANCHOR_T: norms[f"anchor/{tap}"]} if anchor else {}),
        )
        for tap in taps
    }
    return found, {tap: noisy[f"noisy/{tap}"].astype(np.float16) for tap in taps}


def _gain(norms: TapNorms, plain: TapNorms, t: int, reading: Reading) -> float:
    ours = readings.score(norms.noisy[t], norms.clean, plain, _ANCHOR_T, reading)
    theirs = readings.score(plain.noisy[t], plain.clean, plain, _ANCHOR_T, reading)
    gain = ours - theirs
    return float(gain[np.isfinite(gain)].mean())


def _miou(maps: NDArray[np.float16], labels: torch.Tensor, protocol: Protocol) -> float:
    values = joined([{"tap": maps}], "tap")
    return float(np.mean([score(values, labels, seed, protocol) for seed in range(protocol.seeds)]))


def _spec(shards: str, t: int) -> GateSpec:
    return GateSpec.model_validate(
        {
            "version": 1,
            "out": "none",
            "input": {"shards": shards or "none"},
            "image_size": [128, 128],
            "t": t,
            "anchor_t": _ANCHOR_T,
        }
    )


def _show(lines: list[Line], correlations: dict[str, dict[Reading, list[float]]]) -> None:
    console = Console(width=120)
    for shown in (lines, by_candidate(lines)):
        table = Table("candidate", "t", "tap", "probe, points", *READINGS)
        for line in shown:
            numbers = [f"{line[key]:+.3f}" for key in READINGS]
            names = [str(line.get(key, "mean")) for key in ("candidate", "t", "tap")]
            table.add_row(*names, f"{line['miou']:+.2f}", *numbers)
        console.print(table)
    for over, found in correlations.items():
        for reading, (value, low, high) in found.items():
            told = f"over {over}, {reading}: Spearman {value:+.2f}, 95 % {low:+.2f} to {high:+.2f}"
            console.print(told, highlight=False)


if __name__ == "__main__":
    typer.run(main)
