"""A report of made-up findings, as full as real ones are."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageFilter

from pipeline.gate.report import Report
from pipeline.gate.sheets import Picture
from schemas.gate import Estimate, GateSpec, Judged, Reading, Selection, Verdict

_SHARD = Path(__file__).parents[3] / "pipeline/embedded/shards/scenes-000.tar"
TAPS = (
    "up-level0-upsampler-out",
    "up-level1-upsampler-out",
    "up-level2-upsampler-out",
    "up-level3-repeat2-vit-out",
)
TIMES = (25, 50, 100, 200)
_READINGS: tuple[Reading, ...] = ("literal", "own", "shape")
_CANDIDATES: dict[str, tuple[tuple[float, float, float], float, Verdict, bool | None]] = {
    "caption": ((0.031, 0.034, 0.027), 0.0412, "suppresses", True),
    "quality": ((0.008, 0.006, 0.009), 0.0411, "no effect", None),
    "controlnet": ((-0.212, 0.118, 0.094), 0.0588, "suppresses", True),
    "lora-moderate": ((0.041, 0.047, 0.039), 0.0413, "suppresses", True),
    "lora-overfitted": ((0.018, 0.029, -0.004), 0.0414, "suppresses", False),
    "guidance": ((-0.094, -0.071, -0.083), 0.0823, "harms", False),
}
"""Gains by reading, seconds an image, verdict, closer."""
_COMBINED: dict[str, tuple[tuple[float, float, float], float, Verdict]] = {
    "controlnet-and-caption": ((-0.187, 0.139, 0.108), 0.0591, "suppresses"),
    "controlnet-and-lora-moderate": ((-0.181, 0.151, 0.117), 0.0592, "suppresses"),
}


def report() -> Report:
    """With something in each section."""
    spec = GateSpec.model_validate(
        {
            "version": 1,
            "out": "s3://made-up/gate/scenes",
            "input": {"shards": "s3://made-up/shards/scenes-{000..003}.tar"},
            "image_size": [128, 128],
            "backbone": {"source": "embedded"},
            "images": 32,
        }
    )
    alone = [
        _judged(name, [name], gains, cost, verdict, closer, made=True)
        for name, (gains, cost, verdict, closer) in _CANDIDATES.items()
    ]
    together = [
        _judged(name, name.split("-and-"), gains, cost, verdict)
        for name, (gains, cost, verdict) in _COMBINED.items()
    ]
    selection = Selection(
        gatehouse="0.1.0",
        backbone="9f3ac1d07be2445f8c1e6d2b7a90f4e35c6b8d7a1f2e3d4c5b6a798897a6b5c4",
        reading="own",
        confidence=0.95,
        plain_cost=0.0409,
        judged=[*alone, *together],
        groups=[_group("controlnet-and-lora-moderate", "a photo"), _group("caption", "{caption}")],
        images=[f"scenes-{place % 4:03}/held-out-{place:06}" for place in range(32)],
        usable=30,
        repainted=8,
        spec=spec.model_dump(mode="json"),
    )
    pictures = _pictures(8)
    return Report(
        selection=selection,
        curves=_curves(),
        by_tap={
            name: {tap: _estimate(gains[1] * (0.4 + 0.45 * place), 0.012) for place, tap in enumerate(TAPS)}
            for name, (gains, *_) in _CANDIDATES.items()
        },
        sheet=[
            ("input", pictures),
            ("reference (plain)", _repainted(pictures, 5.0)),
            *((name, _repainted(pictures, 4.0 - 20 * _CANDIDATES[name][0][1])) for name in _CANDIDATES),
        ],
        pca=[
            ("input", pictures),
            ("clean", _maps(pictures, 0.0)),
            ("plain", _maps(pictures, 0.45)),
            ("controlnet-and-lora-moderate", _maps(pictures, 0.12)),
            ("caption", _maps(pictures, 0.3)),
        ],
        agreement=(4, 5),
        spec_yaml=yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
        notes=[
            "2 of 32 images have no edges at some tap, and no Score",
            "3 drawn images are bad and gave way to others: 2 truncated, 1 too-large",
            "the tap attn has no Score: its channels are tokens of the prompt",
        ],
    )


def _judged(
    name: str,
    candidates: list[str],
    gains: Sequence[float],
    cost: float,
    verdict: Verdict,
    closer: bool | None = None,
    *,
    made: bool = False,
) -> Judged:
    similarity = {"pixels (PSNR)": _estimate(20 * gains[1], 0.5), "features": _estimate(gains[1] / 2, 0.008)}
    return Judged(
        name=name,
        candidates=candidates,
        verdict=verdict,
        gain={reading: _estimate(gain, 0.013) for reading, gain in zip(_READINGS, gains, strict=True)},
        score={reading: _estimate(0.62 + gain, 0.03) for reading, gain in zip(_READINGS, gains, strict=True)},
        cost=cost,
        similarity=similarity if made else None,
        closer=closer,
    )


def _group(name: str, prompt: str) -> dict[str, object]:
    techniques = [
        {"type": "controlnet", "source": "embedded/controlnet-canny"},
        {"type": "lora", "source": "embedded/loras/moderate.safetensors"},
    ]
    chosen = techniques if "-and-" in name else []
    return {"name": name, "prompt": prompt, "t": 50, "taps": "legacy", "techniques": chosen}


def _curves() -> dict[str, dict[int, Estimate]]:
    plain = {25: 0.81, 50: 0.62, 100: 0.36, 200: 0.0}
    gains = {"plain": 0.0, **{name: found[0][1] for name, found in _CANDIDATES.items()}}
    return {
        name: {t: _estimate(score + gain * (1.3 - score), 0.02) for t, score in plain.items()}
        for name, gain in gains.items()
    }


def _estimate(mean: float, half: float) -> Estimate:
    return Estimate(mean=mean, low=mean - half, high=mean + 1.1 * half)


def _pictures(count: int) -> list[Picture]:
    with tarfile.open(_SHARD) as shard:
        members = [member for member in shard if member.name.endswith(".jpg")][:count]
        found = [shard.extractfile(member) for member in members]
        return [np.asarray(Image.open(io.BytesIO(one.read())).convert("RGB")) for one in found if one]


def _repainted(pictures: Sequence[Picture], radius: float) -> list[Picture]:
    blur = ImageFilter.GaussianBlur(radius)
    return [np.asarray(Image.fromarray(picture).filter(blur)) for picture in pictures]


def _maps(pictures: Sequence[Picture], noise: float) -> list[Picture]:
    rng = np.random.default_rng(0)
    found = []
    for picture in pictures:
        small = np.asarray(Image.fromarray(picture[..., ::-1].copy()).resize((16, 16))) / 255
        mixed = (1 - noise) * small + noise * rng.random(small.shape)
        found.append(np.rint(255 * mixed).astype(np.uint8))
    return found
