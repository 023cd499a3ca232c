"""Measure what the embedded backbone can do on scenes of things that it never saw: `gatehouse embedded evaluate`.

Each figure is a module of `pipeline.embedded_figures`; here they get their scenes and networks, and are written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Final

import torch
from rich.console import Console
from torch import Tensor

from jobs import evaluate_report as report
from pipeline import device as devices
from pipeline import families, sources
from pipeline.backbone import Backbone
from pipeline.embedded_figures import (
    denoising,
    edges,
    lora_probe,
    pictures,
    pipelines,
    probe_figures,
    probes,
    reconstruction,
    shift_by_t,
    steering,
)
from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.latents import encoded
from pipeline.embedded_figures.scenes import Scene, read_scenes
from pipeline.linear_probe import Training
from schemas.lora import MODERATE, OVERFITTED
from schemas.spec import Backbone as BackboneSpec

DONE = 0
"""Exit code; a goal that is missed is a result, not an error."""
_SHOWN = 8
"""Scenes in each picture."""


@dataclass(frozen=True)
class Sizes:
    """How much of each figure is computed, in scenes where nothing else is said."""

    scenes: int
    """Read at most; reconstruction and probes take all of them."""
    denoised: int
    draws: int
    """Of noise for each scene's loss."""
    by_quality: int
    """Of each quality, for the words on quality."""
    by_domain: int
    """On each side of a LoRA's domain."""
    controlled: int
    shifted: int
    control_steps: int
    sample_steps: int
    samples: int
    """Prompts."""
    probe: probes.Protocol


FULL: Final = Sizes(480, 128, 4, 64, 64, 24, 96, 25, 30, 16, probes.Protocol(300, 5, 2, Training()))
QUICK: Final = Sizes(8, 4, 2, 4, 4, 2, 4, 2, 2, 2, probes.Protocol(5, 2, 2, Training(16, 20, 256)))


@dataclass
class Evaluation:
    """What figures are made of and where pictures go; networks and latents are made when they are first asked for."""

    folder: Path
    controlnet: Path | None
    loras: Mapping[str, Path]
    """Those that are there, by what they are."""
    scenes: list[Scene]
    target: list[Scene]
    """Of the domain that LoRAs were trained for; may be empty."""
    out: Path
    guidance: float
    sizes: Sizes
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    tables: dict[str, str] = field(default_factory=dict)
    """Title -> Markdown, of figures that are read best as tables."""

    @cached_property
    def backbone(self) -> Backbone:
        """In float32, without techniques."""
        return families.load(self.folder, dtype=torch.float32, device=devices.choose("auto"))

    @cached_property
    def latents(self) -> Tensor:
        """Of all scenes, clean."""
        return encoded(self.backbone, self.scenes)


def run(
    *,
    backbone: str = "embedded",
    controlnet: str | None = None,
    loras: str | None = None,
    shards: str,
    target: str | None = None,
    out: str,
    only: Sequence[str] | None = None,
    guidance: float = pipelines.GUIDANCE,
    quick: bool = False,
) -> int:
    """Measure, print the table of goals, write figures.json, figures.md and pictures; return the exit code.

    Args:
        backbone: a diffusers folder, or `embedded`.
        controlnet: a folder; default: what ships beside the embedded backbone. Its figures are left out if that is
            not there.
        loras: folder with moderate.safetensors and overfitted.safetensors; as `controlnet`.
        shards: of scenes that the backbone was not trained on.
        target: shards of scenes of the LoRAs' domain; without them, LoRAs have no figures. Scenes that a LoRA was
            trained on, which `lora.json` beside its file names, are passed over.
        out: a local folder, made if need be.
        only: figures, of `FIGURES`; default: all.
        guidance: of generated pictures, classifier-free.
        quick: a few scenes of everything, to see that all works. The figures mean nothing then.

    Raises:
        ValueError: an unknown figure, shards without scenes, weights that are missing or do not fit.
    """
    names = list(FIGURES) if not only else list(only)
    if strange := sorted(set(names) - set(FIGURES)):
        raise ValueError(f"{strange[0]!r} is no figure; there are {', '.join(FIGURES)}")
    sizes, console = QUICK if quick else FULL, Console()
    lora_files = steering.loras(loras)
    evaluation = Evaluation(
        folder=sources.locate(BackboneSpec(source=backbone)),
        controlnet=steering.controlnet(controlnet),
        loras=lora_files,
        scenes=read_scenes(shards, sizes.scenes),
        target=read_scenes(target, sizes.scenes, steering.trained_on(lora_files)) if target else [],
        out=Path(out),
        guidance=guidance,
        sizes=sizes,
    )
    if "probe" in names:
        _check_enough("shards", evaluation.scenes, sizes.probe)
    if "lora-probe" in names and target and lora_files:
        _check_enough("target", evaluation.target, sizes.probe)
    evaluation.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Figure]] = {}
    seconds: dict[str, float] = {}
    for name in names:
        start = perf_counter()
        found[name] = FIGURES[name](evaluation)
        seconds[name] = round(perf_counter() - start, 1)
        console.print(f"{name}: {seconds[name]:.0f} s", highlight=False)
    scenes = {"shards": (shards, len(evaluation.scenes)), "target": (target or "", len(evaluation.target))}
    about = report.about(evaluation.folder, scenes, quick)
    report.write(evaluation.out, about, found, seconds, evaluation.notes, evaluation.tables)
    report.show(console, found, evaluation.notes)
    console.print(str(evaluation.out), markup=False, highlight=False, soft_wrap=True)
    return DONE


def _reconstruction(given: Evaluation) -> list[Figure]:
    images = reconstruction.reconstructed(given.folder, given.scenes)
    shown = given.scenes[:_SHOWN]
    pictures.reconstructions(shown, images[:_SHOWN]).save(given.out / "reconstruction.png")
    return reconstruction.figures(given.scenes, images)


def _captions(given: Evaluation) -> list[Figure]:
    scenes, latents = given.scenes[: given.sizes.denoised], given.latents[: given.sizes.denoised]
    return denoising.captions(given.backbone, scenes, latents, given.sizes.draws)


def _quality(given: Evaluation) -> list[Figure]:
    found = denoising.quality_words(
        given.backbone, given.scenes, given.latents, given.sizes.draws, given.sizes.by_quality
    )
    if not found:
        given.notes.append("quality: the scenes have no two that are blurry or sharp")
    return found


def _lora(given: Evaluation) -> list[Figure]:
    most, draws = given.sizes.by_domain, given.sizes.draws
    if missing := [name for name in (MODERATE, OVERFITTED) if name not in given.loras]:
        given.notes.append(f"lora: there is no {', no '.join(missing)} LoRA")
    if not given.target:
        given.notes.append("lora: no scenes of their domain were given")
        return []
    domains = [
        ("target domain", given.target[:most], Goal("at most", -3)),
        ("elsewhere", given.scenes[:most], Goal("above", 0)),
    ]
    return [
        denoising.lora_change(
            given.backbone, path, scenes, encoded(given.backbone, scenes), draws, where, goal
        )
        for path in given.loras.values()
        for where, scenes, goal in domains
    ]


def _edges(given: Evaluation) -> list[Figure]:
    scenes = edges.with_edges(given.scenes, given.sizes.controlled)
    if given.controlnet is None or not scenes:
        given.notes.append("edges: there is no " + ("ControlNet" if scenes else "scene with enough edges"))
        return []
    plain = pipelines.text_to_image(given.folder)
    controlled = pipelines.controlled(plain, given.controlnet)
    result = edges.followed(plain, controlled, scenes, given.sizes.control_steps, given.guidance)
    pictures.control(result, _SHOWN).save(given.out / "edges.png")
    return edges.figures(result)


def _shift(given: Evaluation) -> list[Figure]:
    shifts = shift_by_t.measured(given.folder, given.scenes[: given.sizes.shifted])
    found = shift_by_t.figures(shifts)
    given.tables["Relative content shift (Eq. 1)"] = report.shift_table(shifts)
    return found


def _probe(given: Evaluation) -> list[Figure]:
    if given.controlnet is None:
        given.notes.append("probe: no rows with ControlNet, which is not there")
    scores = probes.scores(given.backbone, given.scenes, given.latents, given.controlnet, given.sizes.probe)
    given.tables["Linear probe, mIoU in percent"] = report.probe_table(scores)
    return probe_figures.figures(scores)


def _lora_probe(given: Evaluation) -> list[Figure]:
    if not given.target or not given.loras:
        given.notes.append(
            "lora-probe: there are no " + ("LoRAs" if given.target else "scenes of their domain")
        )
        return []
    scores = lora_probe.lora_scores(given.folder, given.target, given.loras, given.sizes.probe)
    given.tables["Linear probe in the LoRAs' domain, mIoU in percent"] = report.probe_table(scores)
    return lora_probe.figures(scores, list(given.loras))


def _check_enough(what: str, scenes: Sequence[Scene], protocol: probes.Protocol) -> None:
    if len(scenes) <= protocol.train:
        raise ValueError(
            f"the {what} have {len(scenes)} scenes; the probe trains on {protocol.train} and is tested on others, so"
            " give more, or leave it out"
        )


def _samples(given: Evaluation) -> list[Figure]:
    prompts = pictures.PROMPTS[: given.sizes.samples]
    pipe = pipelines.text_to_image(given.folder)
    made = pipelines.generate(pipe, prompts, steps=given.sizes.sample_steps, guidance=given.guidance)
    pictures.samples(prompts, made).save(given.out / "samples.png")
    return []


FIGURES: Final[Mapping[str, Callable[[Evaluation], list[Figure]]]] = {
    "reconstruction": _reconstruction,
    "captions": _captions,
    "quality": _quality,
    "edges": _edges,
    "lora": _lora,
    "shift": _shift,
    "probe": _probe,
    "lora-probe": _lora_probe,
    "samples": _samples,
}
"""What can be measured, in this order."""
