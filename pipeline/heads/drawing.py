"""The plots of one split's head: how it was trained, where it errs, what its assigners weigh, some rows of the test."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.heads.fit import VALIDATION
from pipeline.heads.pictures.plots import confusion_plot, history_plot, pck_plot, weights_plot
from pipeline.heads.problem import Problem
from pipeline.heads.splits import Split
from pipeline.heads.tasks.base import Evaluation, Head, Pictures
from pipeline.originals import Originals
from pipeline.read_ahead import collate
from pipeline.reader import FeatureStore
from pipeline.training.loop import LOG

_SHOWN = 6
"""Rows of the test, or pairs."""
logger = logging.getLogger("gatehouse")


def pictures(
    problem: Problem, split: Split, head: Head, evaluation: Evaluation, work: Path, device: str
) -> dict[str, bytes]:
    """PNG files by name.

    Args:
        problem: what was trained on what.
        split: which rows.
        head: trained.
        evaluation: on the split's rows for the test.
        work: the split's folder, with its logs.
        device: where the head is.
    """
    metric = next(iter(evaluation.metrics))
    found = {}
    if history := _lines(work / LOG):
        found["history.png"] = history_plot(history, _lines(work / VALIDATION), metric)
    if evaluation.confusion is not None:
        found["confusion.png"] = confusion_plot(evaluation.confusion.numpy(), problem.classes)
    if evaluation.curves:
        found["pck.png"] = pck_plot(evaluation.curves)
    if evaluation.weights is not None:
        levels = [f"level {place}" for place in range(len(evaluation.weights))]
        found["weights.png"] = weights_plot(evaluation.weights, problem.choice.groups, levels)
    try:
        found["examples.png"] = _examples(problem, split, head, device)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("no pictures of examples: %s", error)
    return found


def _examples(problem: Problem, split: Split, head: Head, device: str) -> bytes:
    chosen = split.test[
        np.unique(np.linspace(0, len(split.test) - 1, min(_SHOWN, len(split.test))).astype(int))
    ]
    items = collate(problem.examples.served.__getitems__(chosen.tolist()))
    return problem.task.sheet(head, items, _Stored(problem.store, problem.spec.labels.root), device)


class _Stored(Pictures):
    """Pictures of stored rows."""

    def __init__(self, store: FeatureStore, root: str) -> None:
        self._index, self._originals = store.index, Originals(store, root)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        line: dict[str, Any] = self._index.filter(pc.field("row") == row).to_pylist()[0]
        return self._originals.read(line)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
