"""The tasks that heads are trained for, one module each; `base` says what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pipeline.heads.choice import Choice
from pipeline.heads.tasks.base import Task
from pipeline.heads.tasks.classification import ClassificationTask
from pipeline.heads.tasks.correspondence import CorrespondenceTask
from pipeline.heads.tasks.label_scarce import LabelScarceTask
from pipeline.heads.tasks.segmentation import SegmentationTask
from schemas.head import HeadSpec

_TASKS: Final[Mapping[str, Callable[[HeadSpec, Choice, Sequence[str]], Task]]] = {
    "label-scarce": LabelScarceTask,
    "segmentation": SegmentationTask,
    "correspondence": CorrespondenceTask,
    "classification": ClassificationTask,
}


def make(spec: HeadSpec, choice: Choice, classes: Sequence[str]) -> Task:
    """A spec's task."""
    return _TASKS[spec.task.type](spec, choice, classes)
