"""What a stored value depends on, and nothing else: the part of a spec that one store holds to for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import checkpoint, families, sources, techniques
from pipeline.backbone import Backbone
from pipeline.captions import Captions
from pipeline.differences import told
from pipeline.noising import Schedule, load_schedule
from pipeline.recipes import windows
from pipeline.techniques.starts import start_of
from schemas.groups import Group
from schemas.receipts import ArrayLayout, Manifest, fingerprint
from schemas.spec import ExtractSpec

METHOD = 2
"""Version of what this code does to a sample (decoding, stretching, noise, packing); raised when a value changes."""

_PLACES = {"source", "revision", "image_encoder", "image_encoder_revision"}


class IdentityError(ValueError):
    """A store that holds other features than the spec describes."""


def identity(spec: ExtractSpec, folder: Path, arrays: list[ArrayLayout]) -> dict[str, Any]:
    """Fingerprints, groups, seeds, geometry, dtypes, codec and batch size; not inputs, cluster or limits.

    Raises:
        ValueError: what a technique needs is missing, or does not fit the backbone.
    """
    family = families.family(folder)
    schedule = load_schedule(folder, checkpoint.config(folder, "scheduler"))
    return {
        "method": METHOD,
        "backbone": {
            "files": checkpoint.fingerprint(folder, family.parts()),
            "dtype": spec.backbone.dtype,
            "batch_size": spec.backbone.batch_size,
        },
        "image": {
            "size": list(spec.image_size),
            "fit": spec.fit,
            "tiles": None if spec.tiles is None else spec.tiles.model_dump(),
            "fields": spec.input.image_fields,
            "caption_field": spec.input.caption_field,
            "captions": None if spec.input.captions is None else Captions(spec.input.captions).fingerprint(),
        },
        "seed": spec.seed,
        "groups": [_group(group, folder, family, schedule, arrays) for group in spec.expanded_groups],
        "output": {
            "maps": spec.output.maps,
            "pooled": spec.output.pooled,
            "codec": "blosc-zstd-bitshuffle",
            "compression_level": spec.output.compression_level,
            # Not as null: stores from before there were scores keep their identity.
            **({} if spec.output.scores is None else {"scores": spec.output.scores.model_dump()}),
        },
    }


def _group(
    group: Group, folder: Path, family: type[Backbone], schedule: Schedule, arrays: list[ArrayLayout]
) -> dict[str, Any]:
    files = techniques.check(group.techniques, family, folder)
    return {
        "name": group.name,
        "prompt": group.prompt,
        "windows": windows(group, family, folder),
        "timestep": start_of(group).timestep(schedule),
        "seed": group.seed,
        "latents": group.latents,
        "flip": group.flip,
        "techniques": [
            # What files hold counts, not where they lie.
            technique.model_dump(exclude=_PLACES) | ({"files": found} if found else {})
            for technique, found in zip(group.techniques, files, strict=True)
        ],
        "taps": {array.tap: array.dtype for array in arrays if array.group == group.name},
        **(
            {"attn": group.asked("attn").model_dump(exclude={"name", "dtype"})}
            if _has_attn(group, arrays)
            else {}
        ),
    }


def _has_attn(group: Group, arrays: list[ArrayLayout]) -> bool:
    return any(array.group == group.name and array.tap == "attn" for array in arrays)


def check_same(store: str, manifest: Manifest, wanted: dict[str, Any]) -> None:
    """Refuse to mix features of another identity into a store.

    Raises:
        IdentityError: lists every difference.
    """
    if shown := told(manifest.identity, wanted, "store"):
        raise IdentityError(
            f"store {store} holds other features than this spec describes:\n{shown}\n"
            "Give the spec another store, or put these values back."
        )


def backbone_fingerprint(folder: Path) -> str:
    """Hash of all that is loaded of a backbone; a selection carries it."""
    return fingerprint(checkpoint.fingerprint(folder, families.family(folder).parts()))


def check_selection(spec: ExtractSpec, folder: Path) -> None:
    """Refuse groups that were selected for another backbone than the one in `folder`.

    Raises:
        ValueError: names both.
    """
    made_for = spec.selection
    if made_for is None:
        return
    found = backbone_fingerprint(folder)
    if made_for.backbone != found:
        raise ValueError(
            f"groups: {made_for.url} was selected for the backbone {made_for.backbone_source!r} with files"
            f" {made_for.backbone[:12]}, and backbone.source is {spec.backbone.source!r} with files {found[:12]}; give"
            " the backbone that it was made for, run `gatehouse gate` with this one, or list the groups"
        )


def check_weights(spec: ExtractSpec, manifest: Manifest) -> None:
    """Refuse weights that are not the ones a store was made with.

    Raises:
        IdentityError: the files found here differ.
        ValueError: files that are not here.
    """
    folder = sources.locate(spec.backbone)
    family = families.family(folder)
    if checkpoint.fingerprint(folder, family.parts()) != manifest.identity["backbone"]["files"]:
        raise IdentityError(
            f"backbone {spec.backbone.source!r}: the files found on this machine are not those that the store's"
            " features were made with; give it the same files everywhere"
        )
    for group, stored in zip(spec.expanded_groups, manifest.identity["groups"], strict=True):
        for found, technique in zip(
            techniques.check(group.techniques, family, folder), stored["techniques"], strict=True
        ):
            if found != technique.get("files", {}):
                raise IdentityError(
                    f"group {group.name!r}: the files of its {technique['type']} on this machine are not those that the"
                    " store's features were made with; give it the same files everywhere"
                )
