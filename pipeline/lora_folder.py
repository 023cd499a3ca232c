"""Where a LoRA job writes: what its folders hold is theirs for ever, and files appear in the output at the end, whole.

A job has a local work folder, for what changes while it trains, and an output, which may be a URL. Both carry the
manifest, so neither is mistaken for another LoRA's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import checkpoint, families, storage
from pipeline.differences import told
from pipeline.libraries import libraries
from pipeline.lora_images import Drawn
from pipeline.lora_samples import picture_name
from pipeline.training.loop import LOG
from schemas import __version__
from schemas.lora import MANIFEST, MODERATE, OVERFITTED, LoraManifest, LoraSpec

METHOD = 1
"""Version of what this code does to an image and to weights; raised when a trained value changes."""


def make_manifest(spec: LoraSpec, folder: Path, drawn: Drawn) -> LoraManifest:
    """What LoRA files are that are trained by a spec.

    Args:
        spec: with rank and alpha.
        folder: of the backbone, with its weights.
        drawn: what the spec's shards gave.
    """
    facts = [[one.id, one.sha256, one.prompt] for one in drawn.examples]
    return LoraManifest(
        gatehouse=__version__,
        identity={
            "method": METHOD,
            "backbone": {
                "files": checkpoint.fingerprint(folder, families.family(folder).parts()),
                "dtype": spec.backbone.dtype,
                "batch_size": spec.backbone.batch_size,
            },
            "images": {
                "count": len(facts),
                "drawn": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
                "size": list(spec.image_size),
                "fit": spec.fit,
                "flip": spec.flip,
                "prompt": spec.prompt,
                "fallback": spec.fallback,
            },
            "layers": spec.layers,
            "rank": spec.rank,
            "alpha": spec.alpha,
            "dtype": spec.dtype,
            "steps": spec.steps,
            "moderate_at": spec.moderate_at,
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
        },
        images=[one.id for one in drawn.examples],
        spec=spec.model_dump(),
        libraries=libraries(),
    )


def stored_manifest(url: str) -> LoraManifest | None:
    """The manifest of a folder; None where there is none.

    Raises:
        ValueError: it is of another release.
    """
    fs, root = storage.open_fs(url)
    try:
        return LoraManifest.model_validate_json(fs.cat_file(f"{root}/{MANIFEST}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise ValueError(
            f"lora {url}: {MANIFEST} cannot be read ({error.errors()[0]['msg']}); use the release that wrote it"
        ) from error


def check_same(url: str, wanted: LoraManifest) -> LoraManifest | None:
    """Refuse a folder that holds another LoRA; the manifest that is there, if any.

    Raises:
        ValueError: lists every difference.
    """
    stored = stored_manifest(url)
    if stored is not None and (shown := told(stored.identity, wanted.identity, "folder")):
        raise ValueError(
            f"lora {url} holds another LoRA than this spec describes:\n{shown}\n"
            "Give the spec another folder, or put these values back."
        )
    return stored


def claim(url: str, manifest: LoraManifest) -> None:
    """Make a folder this LoRA's.

    Raises:
        ValueError: it is another one's.
    """
    fs, root = storage.open_fs(url)
    if not storage.create(fs, f"{root}/{MANIFEST}", manifest.to_bytes()):
        check_same(url, manifest)


def is_finished(url: str) -> bool:
    """Whether both files are there.

    Raises:
        ValueError: files of these names that no manifest speaks of.
    """
    fs, root = storage.open_fs(url)
    names = set(storage.names(fs, root))
    there = sorted(names & {weights_name(MODERATE), weights_name(OVERFITTED)})
    if there and MANIFEST not in names:
        raise ValueError(
            f"lora {url}: has {' and '.join(there)}, but no {MANIFEST}, so they are of another origin; give the spec"
            " another folder"
        )
    return len(there) == 2


def weights_name(name: str) -> str:
    """File of an export."""
    return f"{name}.safetensors"


def check_work(spec: LoraSpec, work: Path, step: int) -> None:
    """Refuse a work folder whose checkpoint is behind the moderate file's step, but which has lost that file.

    Raises:
        ValueError: names it.
    """
    if step >= spec.moderate_step and not (work / weights_name(MODERATE)).exists():
        raise ValueError(
            f"work {work}: its checkpoint is at step {step}, but {weights_name(MODERATE)}, made at step"
            f" {spec.moderate_step}, is not there; put it back, or move the folder away to begin anew"
        )


_OF_A_RUN = ("lora", "work", "input", "samples", "device", "checkpoint_every")
"""Keys of a spec that say where and how a run went, not what came out."""


def about(spec: LoraSpec, manifest: LoraManifest, step: int) -> dict[str, Any]:
    """What a file says of itself; nothing of where anything lay, since files are given to others."""
    return {
        "gatehouse": __version__,
        "fingerprint": manifest.fingerprint,
        "backbone": manifest.identity["backbone"]["files"],
        "rank": spec.rank,
        "alpha": spec.alpha,
        "step": step,
        "steps": spec.steps,
        "seed": spec.seed,
        "images": manifest.images,
        "spec": spec.model_dump(exclude=dict.fromkeys(_OF_A_RUN, True) | {"backbone": {"source", "config"}}),
    }


def publish(spec: LoraSpec, work: Path) -> None:
    """Bring what the work folder holds into the output: pictures and the log first, then the two files.

    Raises:
        StorageError: the output has a file of that name with other bytes.
    """
    fs, root = storage.open_fs(spec.lora)
    steps = {MODERATE: spec.moderate_step, OVERFITTED: spec.steps}
    shown = {f"{name}.png": work / picture_name(step) for name, step in steps.items()}
    for name, path in {LOG: work / LOG, **shown}.items():
        if path.exists():
            storage.put(fs, f"{root}/{name}", path.read_bytes())
    for name in steps:
        file = weights_name(name)
        data = (work / file).read_bytes()
        if not storage.create(fs, f"{root}/{file}", data) and fs.cat_file(f"{root}/{file}") != data:
            raise storage.StorageError(
                f"lora {spec.lora}: {file} is there already with other bytes, so another run of this spec wrote it;"
                f" both are whole: take that one, or {work / file}"
            )
