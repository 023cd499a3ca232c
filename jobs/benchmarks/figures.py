"""What a measurement gives: lines of two figures and their ratio, and facts that explain them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """One thing, measured several times."""

    what: str
    values: list[float]

    @property
    def median(self) -> float:
        """Of all repetitions."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """As in the result file."""
        return {"what": self.what, "median": self.median, "min": min(self.values), "max": max(self.values)}


@dataclass(frozen=True)
class Line:
    """Ours beside a baseline."""

    what: str
    unit: str
    better: Literal["higher", "lower"]
    """Which ratio is the better one."""
    ours: Figure
    baseline: Figure

    @property
    def ratio(self) -> float:
        """Ours by the baseline, of the medians."""
        return self.ours.median / self.baseline.median

    def to_json(self) -> dict[str, Any]:
        """As in the result file."""
        return {
            "what": self.what,
            "unit": self.unit,
            "better": self.better,
            "ours": self.ours.to_json(),
            "baseline": self.baseline.to_json(),
            "repetitions": len(self.ours.values),
            "ratio": self.ratio,
        }


@dataclass
class Measurement:
    """The result of one measurement."""

    lines: list[Line] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever explains the lines: seconds by stage, sizes, tables. Plain JSON."""


def rate(amount: float, work: Callable[[], object]) -> Callable[[], float]:
    """A function that does `work` and returns `amount` a second."""

    def measured() -> float:
        started = perf_counter()
        work()
        return amount / (perf_counter() - started)

    return measured


def in_turns(repeats: int, **functions: Callable[[], float]) -> dict[str, list[float]]:
    """Call functions in turns, A B A B, so that what disturbs the machine disturbs all of them alike."""
    values: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            os.sync()  # what one has left to write must not slow down the next
            values[name].append(function())
    return values
