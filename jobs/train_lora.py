"""The LoRA job: a few images drawn from shards -> a frozen backbone -> two LoRA files, moderate and overfitted.

`gatehouse train-lora SPEC.yaml` and `python -m jobs.train_lora SPEC.yaml` are the same.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
import transformers
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.beginnings import absolute_sources, log_to_console, warn_of_other_libraries
from jobs.endings import DONE, FAILED, STOPPED
from jobs.training import TrainingProgress, stop_after_step
from pipeline import checkpoint, families, lora_folder, sources, storage
from pipeline import device as devices
from pipeline.listing import list_shards
from pipeline.lora_images import Drawn, draw_images
from pipeline.lora_samples import Sampler
from pipeline.lora_training import LoraStage, check_trainable, encode, encode_text, settings
from pipeline.lora_weights import add_factors, count_parameters, default_rank, to_file
from pipeline.meta import on_meta
from pipeline.training.loop import Trainer
from schemas.lora import MODERATE, OVERFITTED, LoraManifest, LoraSpec, Samples

logger = logging.getLogger("gatehouse")

_OUTCOMES = {
    DONE: "done",
    STOPPED: "stopped; the same command goes on from here",
}
_SAMPLE_PROMPTS = 4


def run(spec: LoraSpec, *, dry_run: bool = False) -> int:
    """Run the job, and return its exit code.

    Args:
        spec: checked.
        dry_run: print what would be trained, and on which images; write nothing.

    Raises:
        ValueError: whatever of spec, backbone, folders or shards makes the job impossible.
    """
    console = Console()
    log_to_console()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    spec = _located(spec)
    configs = sources.configs(spec.backbone)
    check_trainable(configs, spec.image_size)
    spec = _with_rank(spec, configs)
    shards = list_shards(spec.input)
    device = devices.choose(spec.device, "device")
    drawn = draw_images(spec, shards)
    _warn_of_images(spec, drawn)
    folder = sources.locate(spec.backbone)
    manifest = lora_folder.make_manifest(spec, folder, drawn)
    for place in (spec.lora, spec.work_folder):
        if stored := lora_folder.check_same(place, manifest):
            _warn_of_libraries(stored, manifest)
    if lora_folder.is_finished(spec.lora):
        console.print(f"nothing to do: both files are at {spec.lora}", soft_wrap=True)
        return DONE
    if dry_run:
        _show_plan(console, spec, folder, drawn, device)
        return DONE
    storage.check_writable(spec.lora, "lora")
    for place in (spec.lora, spec.work_folder):
        lora_folder.claim(place, manifest)
    return _run(console, spec, folder, drawn, manifest, device)


def _located(spec: LoraSpec) -> LoraSpec:
    """With absolute folders."""
    return spec.model_copy(
        update={
            "lora": storage.absolute(spec.lora),
            "work": str(Path(spec.work_folder).absolute()),
            "backbone": absolute_sources(spec.backbone),
        }
    )


def _with_rank(spec: LoraSpec, configs: Path) -> LoraSpec:
    """With rank and alpha, for this backbone."""
    rank = spec.rank or default_rank(checkpoint.config(configs, "unet"))
    return spec.model_copy(update={"rank": rank, "alpha": spec.alpha or rank / 2})


def _warn_of_images(spec: LoraSpec, drawn: Drawn) -> None:
    found = len(drawn.examples)
    for reason, count in drawn.bad.most_common():
        logger.warning("%d drawn samples are bad (%s) and were left out", count, reason)
    if found < spec.images:
        logger.warning(
            "images: the spec asks for %d, the shards have %d good ones; training on these",
            spec.images,
            found,
        )
    if drawn.without_text:
        logger.warning(
            "%d of %d images lack what the prompt %r takes; their prompt is the fallback %r",
            drawn.without_text,
            found,
            spec.prompt,
            spec.fallback,
        )


def _warn_of_libraries(stored: LoraManifest, now: LoraManifest) -> None:
    so = "the weights may differ in their last digits"
    warn_of_other_libraries(stored.libraries, now.libraries, "the LoRA was", so)


def _run(
    console: Console, spec: LoraSpec, folder: Path, drawn: Drawn, manifest: LoraManifest, device: str
) -> int:
    """Everything that needs weights."""
    work = Path(spec.work_folder)
    try:
        stage = _stage(spec, folder, drawn, device)
        trainer = Trainer(stage, settings(spec), work)
        lora_folder.check_work(spec, work, trainer.step)
        progress = TrainingProgress(console, "train-lora", spec.steps)
        with stop_after_step(console) as asked:

            def on_step(step: int, logged: dict[str, float]) -> bool:
                if step == spec.moderate_step:  # before the loop's checkpoint, so no resumed run misses it
                    _export(spec, stage, manifest, MODERATE, step)
                    stage.show(work, step)
                progress(step, logged)
                return asked.is_set()

            finished = trainer.run(on_step=on_step)
        if finished:
            _export(spec, stage, manifest, OVERFITTED, spec.steps)
            stage.show(work, spec.steps)  # if a crash came between the last checkpoint and its picture
            lora_folder.publish(spec, work)
        code = DONE if finished else STOPPED
        _show_summary(console, spec, code, trainer.step)
        return code
    except KeyboardInterrupt:
        logger.error("%s", _OUTCOMES[STOPPED])
        return STOPPED
    except FloatingPointError as error:
        logger.error("%s", error)
        return FAILED


def _stage(spec: LoraSpec, folder: Path, drawn: Drawn, device: str) -> LoraStage:
    """The backbone with factors beside its layers, and all that the loop needs of images and prompts."""
    backbone = families.load(folder, dtype=getattr(torch, spec.backbone.dtype), device=device)
    encoded = encode(backbone, drawn.examples, flip=spec.flip, batch_size=spec.backbone.batch_size)
    prompts = _sample_prompts(spec.samples, drawn)
    text = encode_text(backbone, [*prompts, ""]) if prompts else {}
    backbone.drop_text_encoders()
    backbone.vae = None
    assert spec.rank is not None and spec.alpha is not None
    factors = add_factors(
        backbone.network, layers=spec.layers, rank=spec.rank, alpha=spec.alpha, seed=spec.seed
    )
    if spec.gradient_checkpointing:
        backbone.network.enable_gradient_checkpointing()
    sampler = None
    if spec.samples is not None:
        sampler = Sampler(backbone, prompts, text, spec.image_size, spec.samples, spec.seed)
    return LoraStage(backbone, factors, encoded, spec.backbone.batch_size, sampler)


def _sample_prompts(samples: Samples | None, drawn: Drawn) -> list[str]:
    if samples is None:
        return []
    own = list(dict.fromkeys(one.prompt for one in drawn.examples))
    return list(samples.prompts or own[:_SAMPLE_PROMPTS])


def _export(spec: LoraSpec, stage: LoraStage, manifest: LoraManifest, name: str, step: int) -> None:
    """Write the factors as they are now into the work folder."""
    assert spec.alpha is not None
    data = to_file(stage.parameters(), spec.alpha, lora_folder.about(spec, manifest, step), spec.dtype)
    path = Path(spec.work_folder, lora_folder.weights_name(name)).absolute()
    storage.put(LocalFileSystem(), str(path), data)


def _show_plan(console: Console, spec: LoraSpec, folder: Path, drawn: Drawn, device: str) -> None:
    examples = Table("image", "prompt", title="the drawn images")
    for one in drawn.examples:
        examples.add_row(escape(one.id), escape(one.prompt))
    console.print(examples)
    network = on_meta(families.family(folder).network_class, checkpoint.config(folder, "unet"))
    assert spec.rank is not None
    numbers = count_parameters(network, spec.layers, spec.rank)
    table = Table(show_header=False)
    table.add_row("lora", spec.lora)
    table.add_row("checkpoint", spec.work_folder)
    table.add_row("backbone", f"{spec.backbone.source}, {checkpoint.pipeline_class(folder)}")
    table.add_row("layers", f"{spec.layers}, rank {spec.rank}, alpha {spec.alpha:g}")
    size = {"float16": 2, "float32": 4}[spec.dtype]
    table.add_row(
        "trained", f"{numbers / 1e6:,.2f} million numbers; two files of {size * numbers / 2**20:,.1f} MiB"
    )
    passes = spec.steps * spec.backbone.batch_size / len(drawn.examples)
    table.add_row("steps", f"{spec.steps:,}, each image about {passes:,.0f} times, on {devices.name(device)}")
    console.print(table)


def _show_summary(console: Console, spec: LoraSpec, code: int, step: int) -> None:
    console.print(f"train-lora: {_OUTCOMES[code]}", highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    table.add_row("steps", f"{step:,} of {spec.steps:,}")
    for name in (MODERATE, OVERFITTED) if code == DONE else ():
        table.add_row(name, f"{spec.lora.rstrip('/')}/{lora_folder.weights_name(name)}")
    table.add_row("checkpoint, log, pictures", spec.work_folder)
    console.print(table)


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv.insert(1, "train-lora")
    main()
