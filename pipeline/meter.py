"""What the stages of a worker report to: how much they did, how long it took and, for a trace, when.

Stages know this object and nothing of where its numbers go: a progress bar (`jobs.report`), metrics
(`pipeline.metrics`), a trace (`pipeline.trace`), or nowhere.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple, TypeVar, get_args

T = TypeVar("T")

Stage = Literal["read", "decode", "forward", "assemble", "encode", "upload"]
"""What is done to a batch, in this order. `read` and `decode` have one thread, `forward` and `assemble` another."""
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


class Span(NamedTuple):
    """A stage was at work, once."""

    stage: Stage
    thread: str
    shard: str
    began: float
    """Seconds since 1970, by this machine's clock."""
    seconds: float


class Meter:
    """Counters of one worker, and its first spans. Any thread may report.

    Counters only grow: `images`, `bad` and `bad/REASON` (samples), `bad_shards/REASON`, `bytes_read`, `bytes_written`,
    and `STAGE_s`, the seconds that threads spent in each stage. Several threads encode and upload at once, so these
    two may grow by more than a second a second; decoding counts the seconds in which a batch is waited for.

    Args:
        spans: kept at most; later ones are only counted in seconds.
    """

    def __init__(self, spans: int = 0) -> None:
        self._lock = threading.Lock()
        self._counters: defaultdict[str, float] = defaultdict(float)
        self._spans: list[Span] = []
        self._room = spans

    def add(self, counter: str, amount: float = 1) -> None:
        """Count something."""
        with self._lock:
            self._counters[counter] += amount

    @contextmanager
    def stage(self, stage: Stage, shard: str) -> Iterator[None]:
        """Time a stage's work on a part of a shard, whether it succeeds or not."""
        began, started = time.time(), time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._counters[f"{stage}_s"] += seconds
                if self._room > 0:
                    self._room -= 1
                    thread = threading.current_thread().name
                    self._spans.append(Span(stage, thread, shard, began, seconds))

    def each(self, stage: Stage, shard: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; what it takes to come by each is the stage's time, what is done with them is not."""
        rest, none = iter(items), object()
        while True:
            with self.stage(stage, shard):
                item = next(rest, none)
            if item is none:
                return
            yield item  # type: ignore[misc]  # `none` is told apart by identity, which no checker follows

    def counters(self) -> dict[str, float]:
        """As they are now."""
        with self._lock:
            return dict(self._counters)

    def take_spans(self) -> list[Span]:
        """Spans since the last call."""
        with self._lock:
            spans, self._spans = self._spans, []
            return spans
