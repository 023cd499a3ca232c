"""The results of `gatehouse embedded evaluate` as JSON, as Markdown for the model card, and on the terminal."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline import checkpoint, device, families
from pipeline.embedded_figures.figure import Figure
from pipeline.embedded_figures.probes import ALL_TAPS, RAW, Scores
from pipeline.embedded_figures.statistics import Interval, interval

_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless")
_HEADS = ("what", "value", "95% interval", "n", "goal", "reached")
Figures = Mapping[str, Sequence[Figure]]


def about(backbone: Path, scenes: Mapping[str, tuple[str, int]], quick: bool) -> dict[str, Any]:
    """What the figures belong to and depend on."""
    weights = checkpoint.fingerprint(backbone, families.family(backbone).weighted_parts())
    return {
        "version": 1,
        "scale": "quick" if quick else "full",
        "weights": weights,
        **{what: url.rstrip("/").rpartition("/")[2] for what, (url, _) in scenes.items()},
        "scenes": {what: count for what, (_, count) in scenes.items()},
        "device": device.name(device.choose("auto")),
        "threads": torch.get_num_threads(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def write(
    out: Path,
    about: Mapping[str, Any],
    found: Figures,
    seconds: Mapping[str, float],
    notes: Sequence[str],
    tables: Mapping[str, str],
) -> None:
    """figures.json with every number, figures.md with the goals and the tables."""
    figures = {name: [one.to_json() for one in group] for name, group in found.items()}
    document = {**about, "seconds": dict(seconds), "left_out": list(notes), "figures": figures}
    (out / "figures.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    (out / "figures.md").write_text(markdown(found, notes, tables))


def markdown(found: Figures, notes: Sequence[str], tables: Mapping[str, str]) -> str:
    """Goals as one table, what was left out, and the other tables behind it."""
    parts = [_table(_HEADS, [_cells(one) for one in _with_goals(found)])]
    parts += ["\n".join(f"- Left out: {note}" for note in notes)] if notes else []
    parts += [f"**{title}**\n\n{table}" for title, table in tables.items()]
    return "\n\n".join(parts) + "\n"


def show(console: Console, found: Figures, notes: Sequence[str]) -> None:
    """The goals as a table."""
    table = Table(*_HEADS, box=box.SIMPLE)
    for one in _with_goals(found):
        table.add_row(*_cells(one))
    console.print(table)
    for note in notes:
        console.print(f"left out: {note}", markup=False, highlight=False)


def shift_table(shifts: Mapping[str, Mapping[int, NDArray[np.float64]]]) -> str:
    """Mean and interval of each tap (rows) and t (columns)."""
    times = list(next(iter(shifts.values())))
    rows = [[tap, *(_spread(interval(by_time[t])) for t in times)] for tap, by_time in shifts.items()]
    return _table(["tap", *(f"t = {t}" for t in times)], rows)


def probe_table(scores: Scores) -> str:
    """Mean and interval of each row and tap."""
    taps = [tap for tap in next(by for row, by in scores.items() if row != RAW) if tap != ALL_TAPS]
    rows = []
    for row, by_tap in scores.items():
        values = by_tap if row != RAW else {ALL_TAPS: by_tap[RAW]}
        rows.append(
            [row, *(_spread(interval(values[tap])) if tap in values else "" for tap in [*taps, ALL_TAPS])]
        )
    return _table(["features", *taps, ALL_TAPS], rows)


def _with_goals(found: Figures) -> list[Figure]:
    return [one for group in found.values() for one in group if one.goal is not None]


def _cells(figure: Figure) -> list[str]:
    value = figure.value
    spread = "" if value.low is None or value.high is None else f"{value.low:.3g} to {value.high:.3g}"
    goal = "" if figure.goal is None else figure.goal.text
    shown = f"{value.mean:.3g} {figure.unit}".rstrip()
    return [figure.what, shown, spread, str(value.n), goal, "yes" if figure.reached else "no"]


def _spread(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.3g}"
    return f"{value.mean:.3g} ± {(value.high - value.low) / 2:.2g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
