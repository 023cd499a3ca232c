"""The curve of a training run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.training.loop import LOG

CURVE = "curve.png"
_WINDOW = 50
"""Steps that a point of the curve is the mean of; single steps jump with their timesteps."""


def draw_curve(folder: Path) -> Path:
    """Draw what `folder`'s log has of loss and PSNR against the step; the picture's path."""
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    names = [name for name in ("loss", "psnr") if name in lines[0]]
    figure = Figure(figsize=(5 * len(names), 3), layout="constrained")
    FigureCanvasAgg(figure)
    window = max(1, min(_WINDOW, len(lines) // 4))
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        values = np.array([line[name] for line in lines])
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot([line["step"] for line in lines][window - 1 :], smooth, linewidth=1)
        axes.set(xlabel="step", ylabel={"psnr": "PSNR of crops, dB"}.get(name, name), title=folder.name)
        axes.grid(alpha=0.3)
        if name == "loss" and smooth.min() > 0:
            axes.set_yscale("log")
    path = folder / CURVE
    figure.savefig(path, dpi=120)
    return path
