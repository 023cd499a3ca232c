"""What a run on Ray tells a monitoring system: every metric with its unit, and the way from a worker's counters to it.

Ray adds a prefix and labels of its own (`NodeAddress`, `WorkerId`) and serves all of a node's metrics at its metrics
port in Prometheus' format. The ports change; Ray writes a configuration that finds them on the head, for
`prometheus --config.file=/tmp/ray/session_latest/metrics/prometheus/prometheus.yml`. `infra/grafana` has a dashboard.

Each actor and the driver report themselves, so totals are sums over series. Ray goes on showing the counters of those
that have ended, so what happened in a time is what each series grew by, from nothing where it began then. The last
seconds before a process ends may be missing: what a store holds is what `gatehouse status` says, not a sum of counters.

No label ever has a value that depends on the data but `reason`, of which there are some thirty.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ray.util import metrics

from pipeline.meter import STAGES

RestartReason = Literal["died", "stalled", "failing", "memory", "node-lost"]
"""Why an actor was replaced: it ended by itself, did not move, failed at shards, grew too large, or its node went."""
_BUSY_OVER_S = 60.0


@dataclass(frozen=True)
class Metric:
    """One metric, as documented."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    text: str
    label: str | None = None

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


_ALL = (
    Metric(
        "gatehouse_images",
        "counter",
        "images",
        "Samples done, good or bad; twice where a shard is done again.",
    ),
    Metric(
        "gatehouse_bad_samples",
        "counter",
        "images",
        "Samples that failed, wholly or in some groups.",
        "reason",
    ),
    Metric(
        "gatehouse_bad_shards", "counter", "shards", "Shards that could not be read to their end.", "reason"
    ),
    Metric("gatehouse_read_bytes", "counter", "bytes", "Bytes of shards read."),
    Metric("gatehouse_written_bytes", "counter", "bytes", "Bytes stored."),
    Metric(
        "gatehouse_stage_seconds",
        "counter",
        "seconds",
        "Seconds that threads spent in a stage: read (waiting for the shard's bytes), decode, forward (backbone),"
        " assemble, encode, upload. Encoding and uploading have several threads an actor, the others one.",
        "stage",
    ),
    Metric(
        "gatehouse_queue_depth",
        "gauge",
        "items",
        "What waits in an actor: tasks (shards) for the reader, batches (at most 4) for the backbone, blocks (at most"
        " 1) for the writer. No batches: reading is too slow; always a block: writing is.",
        "queue",
    ),
    Metric(
        "gatehouse_device_busy_share",
        "gauge",
        "share of time, 0 to 1",
        f"Share of the last {_BUSY_OVER_S:.0f} s that an actor's device, GPU or cores, had a forward pass in hand.",
    ),
    Metric(
        "gatehouse_actors", "gauge", "actors", "Actors of the run, by state: starting or working.", "state"
    ),
    Metric(
        "gatehouse_actor_restarts",
        "counter",
        "actors",
        "Actors replaced: died, stalled, failing, memory (max_actor_bytes) or node-lost.",
        "reason",
    ),
    Metric(
        "gatehouse_shards",
        "gauge",
        "shards",
        "Shards of the run, by state: left, done or set-aside.",
        "state",
    ),
)
METRICS: Final[dict[str, Metric]] = {metric.name: metric for metric in _ALL}
"""By name."""


class Exporter:
    """Hands numbers to Ray; nothing is kept but what was handed over before."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._totals: Counter[tuple[str, str]] = Counter()

    def total(self, name: str, value: float, label: str = "") -> None:
        """A counter now stands at `value`; what it grew by is handed over."""
        grown = value - self._totals[name, label]
        if grown > 0:
            self._totals[name, label] = value  # type: ignore[assignment]  # seconds are no whole numbers
            self._metric(name).inc(grown, _tags(name, label))

    def grow(self, name: str, label: str = "") -> None:
        """A counter grows by one."""
        self.total(name, self._totals[name, label] + 1, label)

    def level(self, name: str, value: float, label: str = "") -> None:
        """A gauge now stands at `value`."""
        self._metric(name).set(value, _tags(name, label))

    def _metric(self, name: str) -> Any:
        """Ray's object, made where it is first needed: Ray must be connected by then."""
        if name not in self._made:
            metric = METRICS[name]
            kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
            text = f"{metric.text} Unit: {metric.unit}."
            self._made[name] = kind(name, text, (metric.label,) if metric.label else ())
        return self._made[name]


def _tags(name: str, label: str) -> dict[str, str]:
    key = METRICS[name].label
    return {key: label} if key else {}


class WorkerMetrics:
    """Of one actor.

    Args:
        exporter: takes the numbers.
        clock: seconds, from any beginning.
    """

    _PLAIN: Final = {
        "images": "gatehouse_images",
        "bytes_read": "gatehouse_read_bytes",
        "bytes_written": "gatehouse_written_bytes",
    }
    _BY_REASON: Final = {"bad": "gatehouse_bad_samples", "bad_shards": "gatehouse_bad_shards"}

    def __init__(self, exporter: Exporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._exporter, self._clock = exporter, clock
        self._forward = deque([(clock(), 0.0)])
        """(time, seconds in forward passes until then), over the last while."""

    def update(self, counters: Mapping[str, float], queues: Mapping[str, int]) -> None:
        """Hand over a worker's counters (`pipeline.meter`) and the lengths of its queues."""
        for counter, name in self._PLAIN.items():
            self._exporter.total(name, counters.get(counter, 0.0))
        for stage in STAGES:
            self._exporter.total("gatehouse_stage_seconds", counters.get(f"{stage}_s", 0.0), stage)
        for counter, value in counters.items():
            kind, _, reason = counter.partition("/")
            if reason:
                self._exporter.total(self._BY_REASON[kind], value, reason)
        for queue, length in queues.items():
            self._exporter.level("gatehouse_queue_depth", length, queue)
        self._exporter.level("gatehouse_device_busy_share", self._busy(counters.get("forward_s", 0.0)))

    def _busy(self, forward_s: float) -> float:
        """A pass is counted when it ends, so that a share over a short time may be off by as much as a pass takes."""
        now, seen = self._clock(), self._forward
        seen.append((now, forward_s))
        while len(seen) > 2 and seen[1][0] <= now - _BUSY_OVER_S:
            seen.popleft()
        began, before = seen[0]
        return min(1.0, (forward_s - before) / (now - began)) if now > began else 0.0


class DriverMetrics:
    """Of a run as a whole, by its driver.

    Args:
        exporter: takes the numbers.
    """

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def restarted(self, reason: RestartReason) -> None:
        """An actor is given up, and replaced if there is work for another."""
        self._exporter.grow("gatehouse_actor_restarts", reason)

    def update(self, *, starting: int, working: int, left: int, done: int, set_aside: int) -> None:
        """Actors and shards as they are now."""
        self._exporter.level("gatehouse_actors", starting, "starting")
        self._exporter.level("gatehouse_actors", working, "working")
        for state, count in (("left", left), ("done", done), ("set-aside", set_aside)):
            self._exporter.level("gatehouse_shards", count, state)
