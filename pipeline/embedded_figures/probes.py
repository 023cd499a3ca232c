"""What can be read off features: linear probes of twelve classes and background, by noise and by technique.

One protocol (`pipeline.linear_probe`), once a seed: a seed draws the split into scenes to train on and to test
on, an untrained network's weights, the probe's initial weights and its order, and takes one of a few draws of noise.
Intervals are over seeds, all on the same scenes: they say how far the protocol's chance goes, not how other scenes
would do. What two rows differ by is paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline import linear_probe
from pipeline.backbone import Backbone
from pipeline.embedded_figures.features import BATCH, PROMPT, clean, extract, legacy_taps
from pipeline.embedded_figures.latents import drawn
from pipeline.embedded_figures.scenes import Scene
from pipeline.scenes.cutouts import CLASSES
from pipeline.taps import Recorder

TIMES = (50, 100, 200, 400)
STEERED_TIMES = (50, 200)
ALL_TAPS = "four taps"
"""Concatenated, each brought to the resolution of the finest (16 x 16 at 128 px)."""
RAW, UNTRAINED = "raw pixels and position", "untrained network, t = 50"
CONTROLNET, BOTH = "ControlNet", "ControlNet and caption"
_POSITION_CELL = 8
"""Pixels a side that become one cell of raw features, as the VAE reduces pictures."""
Maps = Mapping[str, NDArray[Any]]
"""By tap, [scenes, C, h, w]."""
Scores = dict[str, dict[str, NDArray[np.float64]]]
"""mIoU in percent by row and tap, one a seed, [seeds]."""


@dataclass(frozen=True)
class Protocol:
    """How much is done of what."""

    train: int
    """Scenes; all others are for the test."""
    seeds: int
    draws: int
    """Of noise; with fewer than seeds, these take them in turn. A draw is a pass for each row: most of the time."""
    training: linear_probe.Training


def t_row(t: int, technique: str = "") -> str:
    """What a row is called."""
    return f"{technique}, t = {t}" if technique else f"t = {t}"


TWO_SEEDS = t_row(50, "two seeds")
TWO_GROUPS = t_row(50, f"plain, and {BOTH}")


def groups_of(draw: int, controlnet: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(row, feature group) of every row that is one group; the group's name is unique among draws of noise."""
    control = {"type": "controlnet", "source": str(controlnet)}
    steered: dict[str, dict[str, Any]] = {"caption": {"prompt": "{caption}"}}
    if controlnet is not None:
        steered[CONTROLNET] = {"techniques": [control]}
        steered[BOTH] = {"prompt": "{caption}", "techniques": [control]}

    def named(number: int, fields: dict[str, Any]) -> dict[str, Any]:
        return {"seed": draw, **fields, "name": f"draw{draw}-{number}"}

    rows = [(t_row(0), clean(""))]
    rows += [(t_row(t), {"t": t}) for t in TIMES]
    rows += [(t_row(t, name), {"t": t, **fields}) for t in STEERED_TIMES for name, fields in steered.items()]
    rows += [(_AGAIN, {"t": 50, "seed": draw + _OTHER_NOISE})]
    for number, (row, fields) in enumerate(rows):
        yield row, named(number, fields)


_AGAIN = "t = 50 again, with other noise"
_OTHER_NOISE = 1000
"""Between the seeds of two draws for one row."""


def scores(
    backbone: Backbone,
    scenes: Sequence[Scene],
    latents: Tensor,
    controlnet: Path | None,
    protocol: Protocol,
) -> Scores:
    """Every row on one tap and on four taps; raw pixels, noise and the untrained network on each tap.

    The one tap is the best at t = 50 (`best_tap`).

    Args:
        backbone: for its folder, and its text for the untrained network.
        scenes: to train and to test on.
        latents: of the scenes, clean.
        controlnet: None leaves its rows out.
        protocol: how much of it.
    """
    taps, seeds = legacy_taps(backbone.folder), range(protocol.seeds)
    draws = [dict(groups_of(draw, controlnet)) for draw in range(min(protocol.draws, protocol.seeds))]
    groups = [group for of_draw in draws for group in of_draw.values()]
    features = extract(backbone.folder, scenes, groups, "float16")
    labels = torch.from_numpy(np.stack([scene.labels for scene in scenes]))

    def maps(row: str, seed: int) -> Maps:
        group = draws[seed % len(draws)][row]["name"]
        return {tap: features[f"{group}/{tap}"] for tap in taps}

    def over_seeds(parts: Sequence[Sequence[Maps]], chosen: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """By tap; `parts` has for each seed the maps whose channels are laid side by side."""
        return {
            tap: np.array(
                [score(joined(of_seed, tap), labels, seed, protocol) for seed, of_seed in enumerate(parts)]
            )
            for tap in chosen
        }

    found: Scores = {RAW: over_seeds([[raw_features(scenes)]] * len(seeds), [RAW])}
    of_chance = [[features_of(untrained(backbone, seed), backbone, scenes, latents, seed)] for seed in seeds]
    found[UNTRAINED] = over_seeds(of_chance, [*taps, ALL_TAPS])
    for t in (0, *TIMES):
        found[t_row(t)] = over_seeds([[maps(t_row(t), seed)] for seed in seeds], [*taps, ALL_TAPS])
    chosen = [best_tap(found), ALL_TAPS]
    for row in draws[0]:
        if row not in found and row != _AGAIN:
            found[row] = over_seeds([[maps(row, seed)] for seed in seeds], chosen)
    pairs = {TWO_SEEDS: _AGAIN, TWO_GROUPS: t_row(50, BOTH)}
    for row, other in pairs.items():
        if other in draws[0]:
            both = [[maps(t_row(50), seed), maps(other, seed)] for seed in seeds]
            found[row] = over_seeds(both, chosen)
    return found


def best_tap(found: Scores) -> str:
    """The single tap with the highest mean mIoU at t = 50."""
    plain = found[t_row(50)]
    return max((tap for tap in plain if tap != ALL_TAPS), key=lambda tap: plain[tap].mean())


def raw_features(scenes: Sequence[Scene]) -> Maps:
    """All pixels of each cell of 8 x 8, and where the cell lies: float32 [scenes, 194, H/8, W/8]."""
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    cells = functional.pixel_unshuffle(pixels, _POSITION_CELL)
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, side) for side in cells.shape[2:]), indexing="ij")
    place = torch.stack([rows, columns]).expand(len(cells), -1, -1, -1)
    return {RAW: torch.cat([cells, place], 1).numpy()}


def untrained(backbone: Backbone, seed: int) -> Any:
    """A network of the same config with random weights by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = type(backbone.network).from_config(backbone.network.config)
    return network.eval().to(backbone.device)


@torch.inference_mode()
def features_of(
    network: Any, backbone: Backbone, scenes: Sequence[Scene], latents: Tensor, seed: int
) -> Maps:
    """Legacy taps of a network in the backbone's place, plain prompt, t = 50: float16 [scenes, C, h, w]."""
    taps, timestep = legacy_taps(backbone.folder), backbone.schedule.timestep(50)
    recorder, text, found = Recorder(network, taps), backbone.encode_text([PROMPT]), []
    for start in range(0, len(scenes), BATCH):
        part = slice(start, start + BATCH)
        noise = drawn(scenes[part], latents[part], seed)
        noisy = backbone.schedule.add_noise(latents[part], noise, timestep)
        prompts = {name: value.expand(len(noisy), *value.shape[1:]) for name, value in text.items()}
        inputs = backbone.inputs(network, backbone.schedule.scale(noisy, timestep), timestep, prompts)
        found.append(recorder.run(partial(network, **inputs)))
    return {tap: torch.cat([one[tap] for one in found]).half().cpu().numpy() for tap in taps}


def joined(parts: Sequence[Maps], tap: str) -> Tensor:
    """One tap's maps [scenes, C, h, w], or of all taps at the finest resolution, with the channels of all parts."""
    maps = [
        torch.from_numpy(values).float()
        for part in parts
        for name, values in part.items()
        if tap in (name, ALL_TAPS)
    ]
    side = max(one.shape[2] for one in maps)
    return torch.cat(
        [
            one if one.shape[2] == side else functional.interpolate(one, size=(side, side), mode="bilinear")
            for one in maps
        ],
        1,
    )


def score(maps: Tensor, labels: Tensor, seed: int, protocol: Protocol) -> float:
    """mIoU in percent on the scenes that the seed's split leaves for the test."""
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))
    train, test = order[: protocol.train], order[protocol.train :]
    probe = linear_probe.train(maps[train], labels[train], len(CLASSES), seed, protocol.training)
    truth = linear_probe.reduced(labels[test], protocol.training.side)
    counts = linear_probe.confusion(probe.predict(maps[test]), truth, len(CLASSES))
    return 100 * linear_probe.mean_iou(counts)
