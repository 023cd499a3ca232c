"""Ray and Prometheus on several hosts, begun by the commands of ray_cluster.yaml, with a store on S3 to work on."""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from schemas.status import Status
from tests.faults.harness import wait_until
from tests.faults.hosts import Host, Network
from tests.infra.test_prometheus import ready

REPOSITORY = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
SPEC, STORE, SHARDS = "s3://birds/spec.yaml", "s3://birds/store", "s3://birds/shards"
NIGHT = (str(REPOSITORY / "infra/schedule/nightly.sh"), SPEC, STORE)
_SUBMIT = (
    *("ray", "job", "submit", "--log-color=false", "--address=http://127.0.0.1:8265"),
    *(f"--working-dir={REPOSITORY}", f"--runtime-env={REPOSITORY / 'infra/runtime_env.yaml'}"),
)
_OPTIONS = [option for option in CLUSTER["docker"]["run_options"] if option.startswith("--env ")]
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
    "COLUMNS": "100",
    "RAY_metrics_report_interval_ms": "1000",
    **dict(option.removeprefix("--env ").split("=", 1) for option in _OPTIONS),
}
"""What ray_cluster.yaml gives its containers, and metrics as they are a second later."""
_NOISE = re.compile(r"^\d{4}-\d\d-\d\d \S+\s(INFO (?!.*Status message)|WARNING|SUCC .* -+$|ERR .* -+$)")


@dataclass(frozen=True)
class RayHosts:
    """A cluster that is up: a head without cores, and workers with one each."""

    head: Host
    workers: list[Host]

    def submit(self, *command: str) -> Any:
        """Start a job by `ray job submit` on the head."""
        return self.head.start(*_SUBMIT, "--", *command)

    def status(self) -> Status:
        """What `gatehouse status` says on the head."""
        code, said = self.head.run("gatehouse", "status", STORE, "--json")
        assert code == 0, said
        return Status.model_validate_json(said)

    def at_work(self, done: int) -> Status:
        """Status, once a driver lives and so many shards are done."""
        seen = [self.status()]

        def there() -> bool:
            seen.append(self.status())
            return seen[-1].shards.done >= done and any(driver.alive for driver in seen[-1].drivers)

        wait_until(there, f"{done} shards to be done", timeout=400)
        return seen[-1]

    def ask(self, query: str, began: float) -> dict[str, float]:
        """What Prometheus answers for the time since then, by the label's value: a count at its end, else the most."""
        now = time.time()
        start = now if "$__range" in query else began
        names = {"$session": ".+", "$__rate_interval": "10s", "$__range": f"{now - began:.0f}s"}
        for name, value in names.items():
            query = query.replace(name, value)
        fields = {"query": query, "start": start, "end": now, "step": "1s"}
        url = f"http://{self.head.address}:9090/api/v1/query_range?{urllib.parse.urlencode(fields)}"
        with urllib.request.urlopen(url) as answer:
            found = json.load(answer)["data"]["result"]
        values = {
            ",".join(one["metric"].values()): [float(text) for _, text in one["values"]] for one in found
        }
        return {label: max(filter(math.isfinite, some)) for label, some in values.items()}


@contextmanager
def ray_hosts(net: Network, environment: Mapping[str, str]) -> Iterator[RayHosts]:
    """Start Ray on all hosts, the first one the head, and Prometheus there, as Ray configures it."""
    token = secrets.token_hex(32)
    for host in net.hosts:
        host.environment.update(environment)
        file = host.folder / ".ray/auth_token"  # file_mounts of ray_cluster.yaml
        file.parent.mkdir()
        file.touch(mode=0o600)
        file.write_text(token)
    head, *workers = net.hosts
    commands = " && ".join(CLUSTER["head_start_ray_commands"])
    commands = commands.replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
    code, said = head.run("sh", "-c", commands)
    assert code == 0, said
    # Variables that the autoscaler sets.
    variables = {"RAY_HEAD_IP": head.address, "RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'}
    commands = " && ".join(CLUSTER["worker_start_ray_commands"])
    for started in [worker.start("sh", "-c", commands, env=variables) for worker in workers]:
        said, _ = started.communicate(timeout=240)
        assert started.returncode == 0, said
    rays = "/tmp/ray/session_latest/metrics/prometheus/prometheus.yml"
    often = f"sed s/10s/1s/ {rays} >/tmp/prometheus.yml"
    run = "prometheus --config.file=/tmp/prometheus.yml --storage.tsdb.path=/tmp/data"
    head.start("sh", "-c", f"{often}; exec {run} --web.listen-address={head.address}:9090 >/tmp/log 2>&1")
    wait_until(lambda: ready(f"http://{head.address}:9090"), "Prometheus to answer")
    yield RayHosts(head, workers)


def told(process: Any) -> tuple[int, str]:
    """Exit code and output of a command that was started, once it has ended, without what Ray says of itself."""
    output, _ = process.communicate(timeout=600)
    output = output.partition(", last available logs")[0]  # `ray job submit` says them twice
    return process.returncode, "".join(line for line in output.splitlines(True) if not _NOISE.match(line))
