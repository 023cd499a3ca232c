"""A figure: what was measured, its interval, and the goal that it should reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.embedded_figures.statistics import Interval


@dataclass(frozen=True)
class Goal:
    """A bound on a figure."""

    side: Literal["at least", "at most", "above", "below"]
    """`at least` and `at most` are about the mean, `above` and `below` about the whole interval."""
    bound: float

    def reached(self, value: Interval) -> bool:
        """Whether a value is on the right side; without an interval, its mean stands for it."""
        if self.side in ("at least", "at most"):
            return value.mean >= self.bound if self.side == "at least" else value.mean <= self.bound
        low = value.mean if value.low is None else value.low
        high = value.mean if value.high is None else value.high
        return low > self.bound if self.side == "above" else high < self.bound

    @property
    def text(self) -> str:
        """As a reader takes it."""
        about = "" if self.side in ("at least", "at most") else "interval "
        return f"{about}{self.side} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One number."""

    what: str
    value: Interval
    unit: str
    goal: Goal | None = None

    @property
    def reached(self) -> bool | None:
        """None without a goal."""
        return None if self.goal is None else self.goal.reached(self.value)

    def to_json(self) -> dict[str, Any]:
        """As in figures.json."""
        value = {"mean": self.value.mean, "low": self.value.low, "high": self.value.high, "n": self.value.n}
        goal = None if self.goal is None else self.goal.text
        return {"what": self.what, **value, "unit": self.unit, "goal": goal, "reached": self.reached}
