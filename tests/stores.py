"""A small store, made by the real job, and ways to damage a copy of it without the checksums noticing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import checkpoint, embedded
from schemas.layout import block_path, marker_name
from schemas.receipts import Marker
from schemas.spec import ExtractSpec
from tests.tars import jpeg, make_tar

TAPS = ["up-level0-upsampler-out", "up-level1-upsampler-out"]
CHANNELS: list[int] = checkpoint.config(Path(embedded.BACKBONE), "unet")["block_out_channels"][:-3:-1]
"""Of these taps; their maps are 2 x 2 and 4 x 4."""
_ROW = 2 * 2 * (4 * CHANNELS[0] + 16 * CHANNELS[1])
"""Bytes: two groups, in float16."""


def spec_of(store: Path, shards: list[str]) -> ExtractSpec:
    """Two groups of two taps, in blocks of up to four rows."""
    document = {
        "version": 1,
        "store": str(store),
        "input": {"shards": shards},
        "image_size": [64, 64],
        "backbone": {"batch_size": 4},
        "groups": [
            {"name": "plain", "prompt": "a photo", "t": 50, "taps": TAPS},
            {"name": "caption", "prompt": "{caption}", "t": 50, "taps": TAPS},
        ],
        "output": {"block_bytes": 4 * _ROW},
        "cluster": {"device": "cpu"},
        "max_bad_fraction": 0.5,
    }
    return ExtractSpec.model_validate(document)


def write_shards(folder: Path) -> None:
    """a.tar: six good samples, number 4 without a caption; sub/b.tar: four, the last no image.

    So a.tar's row 4 is partial, and b.tar's second block holds nothing and is not stored.
    """
    (folder / "sub").mkdir(parents=True)
    samples = []
    for number in range(6):
        samples.append((f"{number}.jpg", jpeg(40, 60, seed=number)))
        samples += [(f"{number}.txt", f"picture {number}".encode())] if number != 4 else []
        samples.append((f"{number}.seg.png", f"mask {number}".encode()))
    make_tar(folder / "a.tar", samples)
    samples = []
    for number in range(4):
        samples.append((f"{number}.jpg", jpeg(60, 40, seed=10 + number) if number < 3 else b"no image"))
        samples.append((f"{number}.txt", b"another picture"))
    make_tar(folder / "sub" / "b.tar", samples)


def build(folder: Path) -> None:
    """`folder/shards` and the `folder/store` extracted from them."""
    write_shards(folder / "shards")
    from jobs import endings, extract  # only where it is needed, since it brings torch and Ray

    shards = [str(folder / "shards" / name) for name in ("a.tar", "sub/b.tar")]
    assert extract.run(spec_of(folder / "store", shards), serial=True) == endings.DONE


def block(store: Path, number: int, tap: str = TAPS[0], group: str = "plain") -> Path:
    """File of a block of an array of maps."""
    return store / block_path(group, tap, number, ndim=4)


def marker_of(store: Path, shard: str = "a.tar", round_: int = 0) -> Marker:
    """As it is now."""
    return Marker.model_validate_json((store / "markers" / marker_name(shard, round_)).read_bytes())


def edit_marker(store: Path, shard: str = "a.tar", round_: int = 0, **changes: Any) -> None:
    """Change fields of a marker, and forget the compaction, which would disagree."""
    path = store / "markers" / marker_name(shard, round_)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for file in (store / "compact").glob("*"):
        file.unlink()


def edit_table(
    store: Path, name: str, edit: Callable[[pa.Table], pa.Table], shard: str = "a.tar", **changes: Any
) -> None:
    """Rewrite the `index`, `objects` or `pooled` table of a shard, its marker's receipt with it."""
    ref = getattr(marker_of(store, shard), name)
    path = store / ref.path
    table = pq.read_table(path)
    pq.write_table(edit(table).cast(table.schema), path)
    changes[name] = receipt(ref.path, path.read_bytes())
    edit_marker(store, shard, **changes)


def receipt(path: str, data: bytes) -> dict[str, Any]:
    """A `FileRef` of an object, as JSON and Parquet hold it."""
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
