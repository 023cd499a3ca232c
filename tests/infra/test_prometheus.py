"""A real run on Ray, watched by a real Prometheus: every query of the dashboard is answered. `make test-metrics`.

Needs Debian's package `prometheus`, and says so where it is not there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from jobs import endings
from pipeline.metrics import METRICS
from tests.faults.harness import actors, job, markers, spec_of, wait_until, write_shards
from tests.infra.test_dashboard import queries
from tests.s3_server import _free_ports
from tests.tars import jpeg, make_tar

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="Prometheus is not installed (apt-get install prometheus)"
    ),
]
IMAGES = 48  # a shard
SHARDS = 8


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One node with two cores, which shows its metrics as they are a second later."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield made
    made.shutdown()


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Scrapes a target every second; its URL."""
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    [port] = _free_ports(1)
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: ready(url), "Prometheus to answer")
        yield url
    finally:
        process.terminate()
        process.wait()


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def values(url: str, query: str, began: float) -> list[float]:
    """All finite values that a query had since a time, a second apart, over all its series."""
    for variable, value in {"$session": ".+", "$__rate_interval": "10s", "$__range": "10m"}.items():
        query = query.replace(variable, value)
    fields = {"query": query, "start": began, "end": time.time(), "step": "1s"}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(fields)}") as answer:
        found: dict[str, Any] = json.load(answer)
    pairs = [pair for series in found["data"]["result"] for pair in series["values"]]
    return [number for _, text in pairs if math.isfinite(number := float(text))]


def write_damaged(folder: Path) -> None:
    """A shard with a sample that is no image, cut off within its last sample."""
    samples = [
        ("0.jpg", jpeg(8, 8)),
        ("0.txt", b"a"),
        ("1.jpg", b"no image"),
        ("1.txt", b"b"),
        ("2.jpg", jpeg(8, 8)),
    ]
    path = folder / "00-damaged.tar"
    make_tar(path, samples)
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:-4])


def test_every_query_is_answered(cluster: Cluster, tmp_path: Path) -> None:
    """With bad samples, a damaged shard and an actor that is killed, so that nothing is empty for want of events."""
    shards = write_shards(tmp_path / "shards", SHARDS, IMAGES)
    write_damaged(tmp_path / "shards")
    node: Any = cluster.head_node
    raylet = node.all_processes["raylet"][0].process.pid
    store, began = tmp_path / "store", time.time()
    spec = spec_of(str(store), shards, address=cluster.address)
    with prometheus(tmp_path, f"{node.node_ip_address}:{node.metrics_export_port}") as url:
        with job(spec, tmp_path) as process:
            wait_until(lambda: len(markers(store)) >= 3, "some shards to be done", timeout=300)
            os.kill(actors(raylet)[0], signal.SIGKILL)
            output, _ = process.communicate(timeout=400)
        assert process.returncode in (endings.DONE, endings.TOO_MANY_BAD), output
        found = {title: values(url, query, began) for title, query in queries().items()}
        assert [title for title, seen in found.items() if not seen] == []
        seen = {name: values(url, metric.exported, began) for name, metric in METRICS.items()}
    assert [name for name, one in seen.items() if not one] == []
    images = max(found["Images in the time shown A"])
    assert SHARDS * IMAGES / 4 < images < 2 * SHARDS * IMAGES, (
        "the last seconds may be missing, some are done again"
    )
    assert max(found["Images a second A"]) > 0
    assert 0 < max(found["Device busy A"]) <= 1
    assert 0 < max(found["Share of bad samples A"]) < 1
    assert max(found["Bad samples by reason A"]) == 1
    assert max(found["Damaged shards by reason A"]) == 1
    assert max(found["Actors replaced, by reason A"]) == 1
