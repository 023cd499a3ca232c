"""Bytes an image: the store beside .npy files, and what each codec makes of each tap. The default level follows."""

from __future__ import annotations

import io
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numcodecs import blosc
from numpy.typing import NDArray

from jobs.benchmarks.figures import Figure, Line, Measurement
from jobs.benchmarks.workbench import Workbench

_LEVELS = (1, 3, 5, 9)
_SHUFFLES = {"byte shuffle": blosc.SHUFFLE, "bit shuffle": blosc.BITSHUFFLE}


def measure(bench: Workbench) -> Measurement:
    """The whole store, with index and pooled vectors, beside two ways to save the same taps with numpy."""
    features = list(bench.features.values())
    images = len(features[0])
    url = bench.new_url()
    bench.store(url, bench.features, images)
    ours = sum(path.stat().st_size for path in Path(url).rglob("*") if path.is_file()) / images
    maps = sum(path.stat().st_size for path in Path(url, "features").rglob("*") if path.is_file()) / images
    found = Measurement()
    baselines = {
        "upsampled to the largest, one .npy (the reference)": reference_npy(features),
        "native resolution, one .npy": native_npy(features),
    }
    for what, data in baselines.items():
        store = Figure("the store, all of it", [ours])
        found.lines.append(
            Line(f"beside {what}", "B/image", "lower", store, Figure("np.save", [len(data) / images]))
        )
    found.facts = {"images": images, "maps_bytes_per_image": maps, "codecs": _codecs(bench)}
    return found


def reference_npy(features: list[NDArray[Any]]) -> bytes:
    """What the reference writes of all images: every tap upsampled to the largest, concatenated, float16."""
    side = max((values.shape[2:] for values in features), key=lambda shape: shape[0] * shape[1])
    upsampled = [
        torch.nn.functional.interpolate(torch.from_numpy(values).float(), side, mode="bilinear").half()
        for values in features
    ]
    return b"".join(_npy(image.numpy()) for image in torch.cat(upsampled, 1))


def native_npy(features: list[NDArray[Any]]) -> bytes:
    """The same without upsampling: all taps of an image flat, one behind the other."""
    return b"".join(
        _npy(np.concatenate([tap.ravel() for tap in image])) for image in zip(*features, strict=True)
    )


def _npy(values: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


def _codecs(bench: Workbench) -> list[dict[str, Any]]:
    """Each tap's rows through zstd, one thread, as in a store: a row a chunk."""
    blosc.use_threads = False
    table = []
    for (_, tap), values in bench.features.items():
        rows = [np.ascontiguousarray(row) for row in values]
        for name, shuffle in _SHUFFLES.items():
            for level in _LEVELS:
                table.append(
                    {"tap": tap, "shuffle": name, "level": level, **_one_codec(rows, shuffle, level)}
                )
    return table


def _one_codec(rows: list[NDArray[Any]], shuffle: int, level: int) -> dict[str, float]:
    raw = sum(row.nbytes for row in rows)
    started = perf_counter()
    encoded = [blosc.compress(row, b"zstd", level, shuffle) for row in rows]
    half = perf_counter()
    for data in encoded:
        blosc.decompress(data)
    end = perf_counter()
    return {
        "stored": sum(map(len, encoded)) / raw,
        "encode_MB_per_s": raw / 1e6 / (half - started),
        "decode_MB_per_s": raw / 1e6 / (end - half),
    }
