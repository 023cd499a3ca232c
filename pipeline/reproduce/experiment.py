"""What an experiment is: a preset's feature groups, the heads that learn from them, and what the paper found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.dataset import PublicName

Document = Mapping[str, Any]
"""A part of a spec as YAML has it."""


@dataclass(frozen=True)
class Figure:
    """A share in percent."""

    mean: float
    sd: float | None = None
    """Standard deviation over splits; None where there is one split, or none is told."""


@dataclass(frozen=True)
class Comparison:
    """A line of the table: one metric of one head, and the paper's figures for it."""

    head: str
    """Which of the experiment's heads."""
    metric: str
    """As the head job names it."""
    without: Figure | None = None
    """The paper's, without GATE; None where the paper has none."""
    gate: Figure | None = None


@dataclass(frozen=True)
class Experiment:
    """One of the paper's tasks on one data set."""

    name: PublicName
    title: str
    preset: str
    """Whose feature groups are the paper's."""
    prompt: str
    """A plain one: of the baseline's feature group, and of the images that LoRAs are trained on."""
    train: str
    """The split to train on, by its published name."""
    test: str
    heads: Mapping[str, Document]
    """Task of a head job by the head's name; the name is empty where there is one."""
    splits: Document
    """Of a head job."""
    comparisons: tuple[Comparison, ...]
    deviations: tuple[str, ...]
    """From the paper's protocol, a sentence or two each; `deviations.COMMON` are of all experiments."""
    baseline: str = ""
    """The method whose figures the paper's are, without GATE."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Of the preset's groups, in place of its own."""
    left_out: frozenset[str] = frozenset()
    """Groups of the preset."""
