"""The embedded backbone from scenes to files, stage by stage. Each stage goes on from its own checkpoint.

WORK/scenes/{seen,held-out}-*.tar    `gatehouse embedded scenes`
WORK/vae/                            checkpoint, log and pictures of a stage; so for each
WORK/latents-*.safetensors           the seen scenes, encoded once; named by VAE and scenes
WORK/backbone/                       a StableDiffusionPipeline; until the UNet is trained, its VAE only
WORK/controlnet-canny/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from pipeline import checkpoint
from pipeline.training import unet, vae
from pipeline.training.controlnet import ControlNetStage
from pipeline.training.digest import digest
from pipeline.training.images import Images, read_images
from pipeline.training.latents import Latents, encode
from pipeline.training.loop import Settings, Stage, Trainer
from pipeline.training.precision import to_device, training_device
from pipeline.training.staging import staged
from pipeline.training.tokens import make_tokenizer

_VAE: Final = Path("vae", "result")
_LOCAL: Final = {"use_safetensors": True, "local_files_only": True}
_SHOWN: Final = 8
"""Held-out scenes in sample pictures."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long each stage is trained, and on how much."""

    size: int = 128
    """Of the scenes, in pixels."""
    scenes: int = 24_000
    """Seen scenes that the VAE learns from."""
    encoded: int
    """Of these, those that UNet and ControlNet learn from."""
    stages: Mapping[str, Settings]
    """Settings by stage, in the order in which they are trained."""


_VAE_STAGE: Final = Settings(
    steps=1500, batch_size=64, optimizer="muon", learning_rate=3e-3, decay=0.8, ema=0.995
)
_UNET_STAGE: Final = Settings(
    steps=2500, batch_size=256, optimizer="muon", learning_rate=2e-3, decay=0.5, checkpoint_every=625
)
_CONTROLNET_STAGE: Final = Settings(
    steps=800, batch_size=64, optimizer="muon", learning_rate=1e-3, ema=0.99, checkpoint_every=200
)
RECIPES: Final = {
    "gpu": Recipe(
        encoded=24_000, stages={"vae": _VAE_STAGE, "unet": _UNET_STAGE, "controlnet": _CONTROLNET_STAGE}
    ),
    "cpu": Recipe(
        encoded=14_000,
        stages={
            "vae": replace(_VAE_STAGE, batch_size=16),
            "unet": replace(_UNET_STAGE, batch_size=32, steps=4400),
            "controlnet": replace(_CONTROLNET_STAGE, batch_size=16, steps=700),
        },
    ),
}
"""`gpu` made the files that ship; `cpu` is planned for about an hour a stage on two cores that multiply
bfloat16 fast, and sees a fifth as many images."""


def default_recipe() -> str:
    """`gpu` where there is one."""
    return "gpu" if training_device().type == "cuda" else "cpu"


def train(
    name: str,
    work: Path,
    recipe: Recipe,
    *,
    stop_after_s: float | None = None,
    on_step: Callable[[int, dict[str, float]], bool] | None = None,
) -> bool:
    """Train a stage to its end, or go on with it; whether its files are written.

    Args:
        name: of the stage.
        work: the folder of all stages.
        recipe: as given to the stages before.
        stop_after_s: stop then, with a checkpoint.
        on_step: see `Trainer.run`.

    Raises:
        ValueError: an earlier stage is not finished, or the checkpoint is of another recipe, other scenes or other
            results of earlier stages.
    """
    stage = _STAGES[name](work, recipe)
    settings = recipe.stages[name]
    recorded = training_device().type == "cuda" and settings.optimizer == "muon"
    trainer = Trainer(stage, settings, work / name, recorded=recorded)
    done = trainer.run(stop_after_s=stop_after_s, on_step=on_step)
    if done:
        with trainer.averaged(), torch.no_grad():
            _EXPORTS[name](stage, work, recipe)
    return done


def _vae_stage(work: Path, recipe: Recipe) -> vae.VaeStage:
    settings = recipe.stages["vae"]
    shown = _scenes(work, "held-out", recipe, _SHOWN)
    seen = _scenes(work, "seen", recipe, recipe.scenes)
    return vae.VaeStage(seen, shown, batch_size=settings.batch_size, seed=settings.seed)


def _export_vae(stage: Any, work: Path, recipe: Recipe) -> None:
    vae.normalise(stage.vae, _scenes(work, "seen", recipe, min(2000, recipe.scenes)))
    vae.export(stage.vae, work / _VAE)


def _unet_stage(work: Path, recipe: Recipe) -> unet.UNetStage:
    settings = recipe.stages["unet"]
    images = _scenes(work, "seen", recipe, recipe.encoded)
    encoder = _trained_vae(work)
    latents = _latents(work, encoder, images)
    tokenizer = make_tokenizer(images.captions)
    return unet.UNetStage(
        latents, images.captions, encoder, tokenizer, batch_size=settings.batch_size, seed=settings.seed
    )


def _export_unet(stage: Any, work: Path, recipe: Recipe) -> None:
    unet.export(stage.unet, stage.text_encoder, _trained_vae(work), stage.tokenizer, work / "backbone")


def _controlnet_stage(work: Path, recipe: Recipe) -> ControlNetStage:
    settings = recipe.stages["controlnet"]
    images = _scenes(work, "seen", recipe, recipe.encoded)
    pipeline = _backbone(work)
    return ControlNetStage(
        _latents(work, pipeline.vae, images),
        images,
        _scenes(work, "held-out", recipe, _SHOWN),
        pipeline,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _export_controlnet(stage: Any, work: Path, recipe: Recipe) -> None:
    aside = staged(work / "controlnet-canny")
    stage.controlnet.to(torch.float16).save_pretrained(aside, safe_serialization=True)
    aside.rename(work / "controlnet-canny")


def _scenes(work: Path, split: str, recipe: Recipe, count: int) -> Images:
    """The first so many scenes of a split."""
    pattern = work / "scenes" / f"{split}-*.tar"
    images = read_images(str(pattern), recipe.size, count)
    if len(images) < count:
        raise ValueError(
            f"{pattern} holds {len(images):,} scenes, the recipe asks for {count:,}; run `gatehouse embedded scenes`"
        )
    return images


def _latents(work: Path, encoder: AutoencoderKL, images: Images) -> Latents:
    weights = checkpoint.sha256(work / _VAE / "diffusion_pytorch_model.safetensors")
    return encode(encoder, images, work / f"latents-{digest(weights, images.digest)}.safetensors")


def _trained_vae(work: Path) -> AutoencoderKL:
    folder = work / _VAE
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there; train the stage `vae` to its end first")
    return to_device(AutoencoderKL.from_pretrained(folder, dtype=torch.float32, **_LOCAL).eval())


def _backbone(work: Path) -> StableDiffusionPipeline:
    folder = work / "backbone"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there; train the stage `unet` to its end first")
    return StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **_LOCAL)


_STAGES: Final[dict[str, Callable[[Path, Recipe], Stage]]] = {
    "vae": _vae_stage,
    "unet": _unet_stage,
    "controlnet": _controlnet_stage,
}
_EXPORTS: Final[dict[str, Callable[[Any, Path, Recipe], None]]] = {
    "vae": _export_vae,
    "unet": _export_unet,
    "controlnet": _export_controlnet,
}
STAGES: Final = tuple(_STAGES)
"""In the order in which they are trained."""
