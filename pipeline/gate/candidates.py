"""What may suppress content shift: the spec's candidates, or what the backbone and the shards offer by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from pipeline import families, techniques
from pipeline.layouts import layouts
from pipeline.scores import clean, has_score
from schemas.gate import PLAIN, Candidate, GateSpec
from schemas.groups import Group
from schemas.lora import MODERATE, OVERFITTED
from schemas.spec import ExtractSpec
from schemas.techniques import ControlNet, Guidance, Lora

_QUALITY: Final = "best quality, sharp"
"""Words for what most images are, as in the paper's first experiment."""
_GUIDANCE: Final = 7.5
"""Stable Diffusion's usual scale."""
_SD15: Final = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SD15_CANNY: Final = ("lllyasviel/sd-controlnet-canny", "7f2f69197050967007f6bbd23ab5e52f0384162a")


def candidates_of(spec: GateSpec, *, captions: bool) -> list[Candidate]:
    """Those of the spec. By default: captions where there are any, words of quality, the ControlNet and LoRAs that
    are known to belong to the backbone, and guidance, a negative control."""
    if spec.candidates is not None:
        return list(spec.candidates)
    found = [Candidate(name="quality", prompt=f"{spec.prompt}, {_QUALITY}")]
    if captions:
        found.insert(0, Candidate(name="caption", prompt="{caption}"))
    if spec.backbone.source == "embedded":
        loras = {f"lora-{name}": f"embedded/loras/{name}.safetensors" for name in (MODERATE, OVERFITTED)}
        canny = ControlNet(type="controlnet", source="embedded/controlnet-canny")
        found.append(Candidate(name="controlnet", techniques=[canny]))
        found += [
            Candidate(name=name, techniques=[Lora(type="lora", source=source)])
            for name, source in loras.items()
        ]
    elif spec.backbone.source == _SD15:
        source, revision = _SD15_CANNY
        canny = ControlNet(type="controlnet", source=source, revision=revision)
        found.append(Candidate(name="controlnet", techniques=[canny]))
    guidance = Guidance(type="guidance", scale=_GUIDANCE)
    return [*found, Candidate(name="guidance", techniques=[guidance])]


def plain() -> Candidate:
    """The feature without any technique."""
    return Candidate(name=PLAIN)


def group(spec: GateSpec, candidate: Candidate) -> dict[str, Any]:
    """The feature group that a candidate is extracted as, as a spec has it."""
    taps = spec.taps if isinstance(spec.taps, str) else [_tap(tap) for tap in spec.taps]
    return {
        "name": candidate.name,
        "prompt": spec.prompt if candidate.prompt is None else candidate.prompt,
        "t": spec.t,
        "taps": taps,
        "techniques": [
            one.model_dump(exclude_defaults=True) | {"type": one.type} for one in candidate.techniques
        ],
    }


def measured_groups(spec: GateSpec, candidate: Candidate) -> list[dict[str, Any]]:
    """What is measured of a candidate: `clean`, of clean latents at timestep 0, and `noisy` at every t it admits."""
    own = group(spec, candidate)
    quiet = clean(Group.model_validate(own)).model_dump()
    return [quiet | {"name": "clean"}, own | {"name": "noisy", "t": times(spec, candidate)}]


def extract_spec(spec: GateSpec, groups: list[dict[str, Any]]) -> ExtractSpec:
    """An extract job's spec of some groups, in float32."""
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


def times(spec: GateSpec, candidate: Candidate) -> list[int]:
    """Every t of the spec at which a candidate can be measured: below what `denoise` starts from."""
    starts = [one.start for one in candidate.techniques if one.type == "denoise"]
    return [t for t in spec.all_times if all(t < start for start in starts)]


def check(spec: GateSpec, candidates: list[Candidate], folder: Path) -> None:
    """Name a candidate that cannot be measured before any work.

    Raises:
        ValueError: weights that are missing or do not fit the backbone, techniques that do not go together, captions
            that the spec has no place for, taps that the backbone has not, or none that has a Score.
    """
    family = families.family(folder)
    for candidate in candidates:
        try:
            if spec.t not in times(spec, candidate):
                raise ValueError(f"it denoises from no more noise than t = {spec.t}; start above")
            measured = extract_spec(spec, measured_groups(spec, candidate))
            for checked in measured.groups:
                techniques.check(checked.techniques, family, folder)
            arrays = layouts(measured, folder)
        except ValueError as error:
            told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"candidate {candidate.name!r}: {told.removeprefix('Value error, ')}") from error
        if not any(has_score(array.tap, array.shape) for array in arrays):
            raise ValueError(
                f"taps: none of {', '.join(dict.fromkeys(array.tap for array in arrays))} has a Score; name some whose"
                " features are maps of channels with several cells"
            )


def _tap(tap: Any) -> Any:
    return tap if isinstance(tap, str) else tap.model_dump(exclude_defaults=True)
