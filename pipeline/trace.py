"""When each stage of each worker was at work, as a file for a trace viewer: shows what overlaps, and what waits.

The format is Chrome's (`chrome://tracing`, ui.perfetto.dev): a process is a worker, a line in it a thread, a bar a
stage at work on a part of a shard. Gaps are waiting. Clocks of different machines may differ by what they differ.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.meter import Span

logger = logging.getLogger("gatehouse")

MOST_SPANS = 100_000
"""In one file, which then has about 15 MB."""
_MOST_OF_A_WORKER = 10_000


def spans_each(workers: int) -> int:
    """Spans that a worker may keep, so that all have a share of the file; it shows the beginning of a longer job."""
    return min(_MOST_OF_A_WORKER, MOST_SPANS // max(1, workers))


class Trace:
    """Spans of all workers of a run, and the file that they become.

    Args:
        url: of the file, which is written at once, without spans, and again at the end.

    Raises:
        OSError: it cannot be written there.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._path = storage.open_fs(url)
        self._spans: dict[str, list[Span]] = {}
        self._room = MOST_SPANS
        self._put()

    def take(self, worker: str, spans: Sequence[Span]) -> None:
        """Keep spans of a worker (its host and process), as long as there is room."""
        kept = spans[: self._room]
        self._room -= len(kept)
        self._spans.setdefault(worker, []).extend(kept)

    def write(self) -> None:
        """Write the file; where that fails, say so and go on, since the job's work is done."""
        try:
            self._put()
        except OSError as error:
            logger.warning("no trace was written: %s", error)

    def _put(self) -> None:
        data = json.dumps(chrome(self._spans), separators=(",", ":")).encode()
        storage.put(self._fs, self._path, data)


def chrome(spans: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Spans by worker as a Chrome trace (JSON object format): complete events, times in microseconds from the first."""
    began = min((span.began for of_one in spans.values() for span in of_one), default=0.0)
    events = [
        event
        for number, (worker, of_one) in enumerate(spans.items(), start=1)
        for event in _events(number, worker, of_one, began)
    ]
    return {"displayTimeUnit": "ms", "otherData": {"began": began}, "traceEvents": events}


def _events(number: int, worker: str, spans: Sequence[Span], began: float) -> Iterator[dict[str, Any]]:
    threads = {name: place for place, name in enumerate(dict.fromkeys(span.thread for span in spans))}
    yield {"ph": "M", "name": "process_name", "pid": number, "args": {"name": worker}}
    for name, place in threads.items():
        yield {"ph": "M", "name": "thread_name", "pid": number, "tid": place, "args": {"name": name}}
    for span in spans:
        yield {
            "ph": "X",
            "name": span.stage,
            "cat": "stage",
            "pid": number,
            "tid": threads[span.thread],
            "ts": round((span.began - began) * 1e6),
            "dur": max(1, round(span.seconds * 1e6)),
            "args": {"shard": span.shard},
        }
