"""A cluster of several nodes: the same job given its address, and a node that goes away under it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from jobs import endings, extract
from tests.faults.harness import contents, job, markers, spec_of, wait_until, write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without cores, where the driver runs, and two nodes with one core and a loopback address each."""
    soon = {
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
        "health_check_initial_delay_ms": 0,
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
    for number in (2, 3):
        cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number}")
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_a_node_dies(cluster: Cluster, tmp_path: Path) -> None:
    """Kill -9 of a raylet: its shards are done by the other node, nobody is blamed, and no row differs."""
    shards = write_shards(tmp_path / "shards", shards=16, images=16)
    quiet = str(tmp_path / "quiet")
    assert extract.run(spec_of(quiet, shards), serial=True) == endings.DONE
    store = tmp_path / "store"
    spec = spec_of(str(store), shards, address=cluster.address)
    with job(spec, tmp_path) as process:
        wait_until(lambda: len(markers(store)) >= 4, "both actors to be at work")
        raylet = cluster.list_all_nodes()[-1].all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == endings.DONE, output
    assert "2 actors on a cluster of 2 CPUs" in output
    assert f"3 machines, and all of them must find the same under {store}, {shards}: a folder that" in output
    assert "an actor died" in output
    assert contents(str(store)) == contents(quiet)
