"""What jobs that train have in common: how a signal stops them, and what they say while they work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from jobs.endings import on_signal
from jobs.report import duration

_LINE_EVERY_S = 15.0


@contextmanager
def stop_after_step(console: Console) -> Iterator[threading.Event]:
    """Set by a signal, SIGINT or SIGTERM, that is to stop the training after the step in work; a second ends at once.

    Raises:
        KeyboardInterrupt: at the second signal.
    """
    asked = threading.Event()
    with on_signal(asked, "the step and writing a checkpoint; again to stop at once", console):
        yield asked


class TrainingProgress:
    """A line every quarter of a minute: how far, the mean loss since the last line, how fast, how long still.

    Args:
        console: to print on.
        what: is trained.
        steps: in all.
        live: every step is told, so that the first one tells where an earlier run stopped.
    """

    def __init__(self, console: Console, what: str, steps: int, *, live: bool = True) -> None:
        self._console, self._what, self._steps, self._live = console, what, steps, live
        self._first: int | None = None
        self._started = self._last = time.monotonic()
        self._losses: list[float] = []

    def __call__(self, step: int, logged: dict[str, float]) -> None:
        """Call with the steps done and what was logged of the last one."""
        if self._first is None:
            self._first = step - 1
            if self._first and self._live:
                self._console.print(f"{self._what}: going on from step {self._first:,}", highlight=False)
        self._losses.append(logged["loss"])
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S and step < self._steps:
            return
        rate = (step - self._first) / max(now - self._started, 1e-9)
        self._console.print(
            f"{self._what}: {step:,}/{self._steps:,} steps  loss {sum(self._losses) / len(self._losses):.4f} "
            f" {rate:.2f}/s  left {duration((self._steps - step) / rate)}",
            highlight=False,
        )
        self._last, self._losses = now, []
