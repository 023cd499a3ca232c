"""Show a store: a table of its arrays, its index by outcome, and a picture of what the features look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from jobs.report import size
from pipeline import inventory, pca, storage
from pipeline.originals import Originals
from pipeline.picture import Column, Label, draw
from pipeline.reader import FeatureStore

DONE = 0
"""Exit code."""

Picture = NDArray[np.uint8]


def run(store: str, *, out: str | None, rows: int) -> int:
    """Print the tables, write the picture, print its path last; return the exit code.

    Args:
        store: folder or URL.
        out: local path of the picture; default `NAME-inspect.png` in the current folder.
        rows: images in the picture, spread over the good rows.

    Raises:
        StoreError: no store there, or one of another schema version.
    """
    console = Console()
    opened = FeatureStore(store)
    console.print(_arrays_table(opened))
    console.print(_outcomes_table(opened.index))
    good = opened.good()
    if not len(good) or not opened.manifest.identity["output"]["maps"]:
        why = "no row is good in every group" if not len(good) else "the store holds pooled vectors only"
        console.print(f"no picture: {why}", highlight=False)
        return DONE
    places = np.unique(np.linspace(0, len(good) - 1, min(rows, len(good))).round().astype(int))
    path = out or f"{storage.open_fs(store)[1].rstrip('/').rpartition('/')[2]}-inspect.png"
    _picture(opened, good.take(places), console).save(path)
    console.print(path, markup=False, highlight=False, soft_wrap=True)
    return DONE


def _arrays_table(store: FeatureStore) -> Table:
    fs, root = storage.open_fs(store.url)
    manifest = store.manifest
    maps = bool(manifest.identity["output"]["maps"])
    committed = {extent for marker in store.ledger.markers for extent in marker.extents}
    good = {group: len(store.rows(group)) for group in manifest.groups}
    table = _table(store.url, "group", "tap", "a row", "dtype", "good", "stored", "of raw")
    for layout in manifest.arrays:
        stored = sum(
            one.size
            for one in (inventory.blocks(fs, root, layout) if maps else ())
            if one.block * manifest.rows_per_block // manifest.rows_per_extent in committed
        )
        raw = good[layout.group] * layout.row_bytes
        table.add_row(
            layout.group,
            layout.tap,
            _shape(layout.shape),
            layout.dtype,
            f"{good[layout.group]:,}",
            size(stored) if maps else "pooled only",
            f"{stored / raw:.2f}" if maps and raw else "-",
        )
    return table


def _outcomes_table(index: pa.Table) -> Table:
    table = _table("index", "status", "reason", "samples")
    counts = index.group_by(["status", "reason"]).aggregate([([], "count_all")])
    for line in counts.sort_by([("count_all", "descending")]).to_pylist():
        table.add_row(line["status"], line["reason"] or "-", f"{line['count_all']:,}")
    return table


def _table(title: str, *headings: str) -> Table:
    """Narrow, so that names fit a terminal of 80 columns whole."""
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in ("group", "tap"))
    return table


def _picture(store: FeatureStore, chosen: pa.Table, console: Console) -> Any:
    """The rows of `chosen`: image, then the features of each tap in the colours of one basis."""
    manifest = store.manifest
    height, width = manifest.identity["image"]["size"]
    images = _images(store, chosen, console)
    columns = []
    if any(image is not None for image in images):
        columns.append(Column("", "image", _shape([height, width]), images))
    maps = store.read(chosen["row"].to_numpy(), list(store.taps))
    for name, layout in store.taps.items():
        colours = pca.fit(maps[name]).colours(maps[name])
        columns.append(Column(layout.group, layout.tap, _shape(layout.shape), list(colours)))
    notes = {group["name"]: _described(group) for group in manifest.identity["groups"]}
    labels = [Label(line["key"], line["shard"]) for line in chosen.to_pylist()]
    return draw(columns, labels, notes, height / width)


def _images(store: FeatureStore, chosen: pa.Table, console: Console) -> list[Picture | None]:
    """The images as the network saw them, None where they are out of reach; says what is missing and why."""
    try:
        originals = Originals(store)
    except (OSError, ValueError) as error:
        console.print(f"no images: {error}", markup=False, highlight=False)
        return [None] * len(chosen)
    images: list[Picture | None] = []
    for line in chosen.to_pylist():
        try:
            images.append(originals.read(line))
        except (OSError, ValueError, KeyError) as error:
            console.print(
                f"no image of {line['shard']} {line['key']}: {error}", markup=False, highlight=False
            )
            images.append(None)
    return images


def _shape(sides: list[int]) -> str:
    return "x".join(map(str, sides))


def _described(group: dict[str, Any]) -> str:
    """A group of a manifest's identity in a line."""
    words = [f"prompt {group['prompt']!r}", f"timestep {group['timestep']}"]
    words += ["mirrored"] if group.get("flip") else []
    return ", ".join([*words, *(technique["type"] for technique in group["techniques"])])
