"""Scenes as WebDataset shards, the same bytes from the same seed wherever and in whatever order they are made."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

from pipeline.scenes.compose import Scene, compose
from pipeline.scenes.cutouts import Cutout, find_cutouts
from pipeline.scenes.grounds import GROUNDS, PAPER

Split = Literal["seen", "held-out", "drawn"]
"""Which cut-outs: photographs that backbones are trained on, those that figures are taken on, or drawings on paper."""
_STREAM: Final[dict[Split, int]] = {"seen": 0, "held-out": 1, "drawn": 2}
_JPEG: Final = {"format": "JPEG", "quality": 95, "subsampling": 0}


def write_scenes(
    out: Path,
    split: Split,
    count: int,
    *,
    stamps: Path,
    size: int = 128,
    per_shard: int = 1000,
    first: int = 0,
    processes: int = 1,
) -> Iterator[Path]:
    """Write scenes to `out`/SPLIT-NNNNN.tar; each shard's path when it is there.

    Args:
        out: folder, made if need be.
        split: whose cut-outs.
        count: of scenes.
        stamps: the folder of tuxpaint-stamps.
        size: of both sides, in pixels.
        per_shard: scenes a shard.
        first: number of the first scene; scenes of other numbers are other scenes.
        processes: that compose at once.

    Raises:
        FileNotFoundError: no stamps.
        ValueError: none of them are of the split, or `out` holds shards of another division.
    """
    found = find_cutouts(stamps, drawn=split == "drawn")
    pool = found if split == "drawn" else [one for one in found if one.held_out == (split == "held-out")]
    if not pool:
        raise ValueError(f"{stamps} has no stamps that are {split}; expected those of tuxpaint-stamps")
    out.mkdir(parents=True, exist_ok=True)
    starts = range(first, first + count, per_shard)
    _check_others(out, split, {_name(split, start) for start in starts})
    work = partial(_write_shard, out, split, pool, size)
    ends = [min(start + per_shard, first + count) for start in starts]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        yield from executor.map(work, starts, ends)


def scene(number: int, split: Split, cutouts: Sequence[Cutout], size: int) -> Scene:
    """The scene of a number; it depends on nothing else."""
    grounds = (PAPER,) if split == "drawn" else GROUNDS
    return compose(cutouts, size, np.random.default_rng([_STREAM[split], number]), grounds)


def sample(scene: Scene, key: str) -> dict[str, Any]:
    """A WebDataset sample: jpg, txt, json, and as png the class and the thing of each pixel."""
    document = {
        "background": scene.ground,
        "quality": scene.quality,
        "objects": [thing.document() for thing in scene.things],
    }
    return {
        "__key__": key,
        "instances.png": _encoded(scene.instances, format="PNG", optimize=True),
        "jpg": _encoded(scene.pixels, **_JPEG),
        "json": json.dumps(document).encode(),
        "seg.png": _encoded(scene.classes, format="PNG", optimize=True),
        "txt": scene.caption.encode(),
    }


def _write_shard(out: Path, split: Split, cutouts: Sequence[Cutout], size: int, start: int, end: int) -> Path:
    path = out / _name(split, start)
    partial_path = path.with_suffix(".part")
    with TarWriter(str(partial_path), mtime=0, encoder=False) as writer:
        for number in range(start, end):
            writer.write(sample(scene(number, split, cutouts, size), f"{split}-{number:06d}"))
    return partial_path.replace(path)


def _name(split: Split, start: int) -> str:
    return f"{split}-{start:06d}.tar"


def _check_others(out: Path, split: Split, names: set[str]) -> None:
    """Shards of another division would hold the same scenes again."""
    others = sorted(path.name for path in out.glob(f"{split}-*.tar") if path.name not in names)
    if others:
        raise ValueError(
            f"{out} holds {others[0]}, which is not among the {len(names)} shards to be written; remove it, or write to"
            " another folder"
        )


def _encoded(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()
