"""From a worker's counters to metrics: every one documented, counters by what they grew, few labels."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import METRICS, DriverMetrics, Exporter, WorkerMetrics


class Ray:
    """Stands for Ray's metrics: keeps what they were told, and refuses what Ray refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self.made: dict[str, tuple[str, tuple[str, ...]]] = {}
        ray = self

        class Metric:
            def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
                self.name, self.labels = name, labels
                ray.made[name] = (text, labels)

            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert value > 0 and tuple(tags) == self.labels
                ray.values[self.name, tuple(tags.items())] += value  # type: ignore[assignment]

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tuple(tags) == self.labels
                ray.values[self.name, tuple(tags.items())] = value  # type: ignore[assignment]

        monkeypatch.setattr("ray.util.metrics.Counter", Metric)
        monkeypatch.setattr("ray.util.metrics.Gauge", Metric)

    def __getitem__(self, name: str) -> dict[str, float]:
        """Values by label."""
        return {
            "".join(v for _, v in tags): value for (one, tags), value in self.values.items() if one == name
        }


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return Ray(monkeypatch)


COUNTERS = {
    "images": 10.0,
    "bad": 3.0,
    "bad/no-image": 2.0,
    "bad/no-caption": 1.0,
    "bad_shards/truncated-tar": 1.0,
    "bytes_read": 5000.0,
    "bytes_written": 700.0,
    "read_s": 1.5,
    "forward_s": 4.0,
}


def test_a_workers_counters(ray: Ray) -> None:
    worker = WorkerMetrics(Exporter())
    queues = {"tasks": 2, "batches": 4, "blocks": 0}
    worker.update(COUNTERS, queues)
    worker.update({**COUNTERS, "images": 16.0, "bad/no-image": 4.0}, queues)
    assert ray["gatehouse_images"] == {"": 16}
    assert ray["gatehouse_bad_samples"] == {"no-image": 4, "no-caption": 1}
    assert ray["gatehouse_bad_shards"] == {"truncated-tar": 1}
    assert ray["gatehouse_read_bytes"] == {"": 5000} and ray["gatehouse_written_bytes"] == {"": 700}
    assert ray["gatehouse_stage_seconds"] == {"read": 1.5, "forward": 4.0}
    assert ray["gatehouse_queue_depth"] == queues


def test_the_share_of_time_that_a_device_is_busy(ray: Ray) -> None:
    """Over the last minute: neither the average of a whole job nor the noise of half a second."""
    times = iter([0.0, *range(10, 201, 10)])
    worker = WorkerMetrics(Exporter(), clock=lambda: float(next(times)))
    forward = 0.0
    seen = []
    for turn in range(20):
        forward += 10.0 if turn < 10 else 2.5
        worker.update({"forward_s": forward}, {})
        seen.append(ray["gatehouse_device_busy_share"][""])
    assert seen[0] == 1.0 and seen[9] == 1.0
    assert seen[-1] == pytest.approx(0.25)
    assert all(0 <= share <= 1 for share in seen)


@given(values=st.lists(st.floats(0, 1e12), max_size=20))
def test_a_counter_stands_at_the_largest_total_it_was_told(values: list[float]) -> None:
    """Progress may arrive late or twice; counters never go back, and Ray refuses to grow one by nothing."""
    with pytest.MonkeyPatch.context() as patch:
        ray, exporter = Ray(patch), Exporter()
        for value in values:
            exporter.total("gatehouse_images", value)
        expected = max([0.0, *values])
        assert ray["gatehouse_images"].get("", 0.0) == pytest.approx(expected)


def test_a_drivers_metrics(ray: Ray) -> None:
    driver = DriverMetrics(Exporter())
    driver.restarted("died")
    driver.restarted("died")
    driver.restarted("node-lost")
    driver.update(starting=1, working=3, left=7, done=2, set_aside=1)
    assert ray["gatehouse_actor_restarts"] == {"died": 2, "node-lost": 1}
    assert ray["gatehouse_actors"] == {"starting": 1, "working": 3}
    assert ray["gatehouse_shards"] == {"left": 7, "done": 2, "set-aside": 1}


def test_every_metric_is_used_and_described(ray: Ray) -> None:
    """A metric of the table that no code reports would be documented in vain."""
    WorkerMetrics(Exporter()).update(COUNTERS, {"tasks": 0})
    driver = DriverMetrics(Exporter())
    driver.restarted("stalled")
    driver.update(starting=0, working=1, left=1, done=0, set_aside=0)
    assert set(ray.made) == set(METRICS)
    for name, (text, labels) in ray.made.items():
        assert f"Unit: {METRICS[name].unit}." in text and len(labels) <= 1


def test_names_are_prometheus() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"ray_gatehouse_[a-z_]+", metric.exported)
        assert metric.exported.endswith("_total") == (metric.kind == "counter")


def test_an_unknown_metric_is_our_mistake(ray: Ray) -> None:
    exporter: Any = Exporter()
    with pytest.raises(KeyError, match="gatehouse_typo"):
        exporter.level("gatehouse_typo", 1)
