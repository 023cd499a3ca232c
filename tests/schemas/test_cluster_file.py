"""Cluster files: the one in the repository, and what is found wrong with others."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from schemas.cluster_file import FILL_IN, Workers, load
from schemas.spec import Cluster
from schemas.specfile import SpecError

SHIPPED = Path(__file__).parents[2] / "ray_cluster.yaml"
FILLED = yaml.safe_load(SHIPPED.read_text().replace(FILL_IN, "mine"))


def problems(data: Any, folder: Path) -> list[str]:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(data))
    return [line.partition(": ")[2] for line in load(str(path)).problems]


def test_what_is_to_be_filled_in() -> None:
    """Each value once, where it is explained, though aliases use it in several places; all at the file's top."""
    found = load(str(SHIPPED)).problems
    keys = [line.split(": ")[1] for line in found]
    assert keys == [f"metadata.{key}" for key, value in FILLED["metadata"].items() if value == "mine"]
    assert len(keys) < 10 and all("fill in your own value" in line for line in found)
    assert max(int(line.split(":")[1]) for line in found) < 25


def test_filled_in(tmp_path: Path) -> None:
    """Nothing is wrong with it any more, by our rules, Ray's schema and Ray's checks of what it makes of it."""
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(FILLED))
    found = load(str(path))
    assert found.problems == []
    assert found.workers == [Workers("worker", most=8, cpus=4, gpus=1, memory=12 * 2**30)]
    validate_config(prepare_config(copy.deepcopy(FILLED)))


@pytest.mark.parametrize("kind", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_knows_the_options(kind: str) -> None:
    """A wrong one shows only on a machine that is paid for."""
    stop, command = FILLED[kind]
    program, verb, *arguments = command.split()
    assert (stop, program, verb) == ("ray stop", "ray", "start")
    start.make_context("start", arguments, resilient_parsing=False)
    with pytest.raises(Exception, match="No such option"):
        start.make_context("start", [*arguments, "--object-store-memories=1"])


def test_it_costs_nothing_while_idle_and_stops_in_time() -> None:
    head, worker = (FILLED["available_node_types"][name] for name in ("head", "worker"))
    assert worker["min_workers"] == 0 and worker["node_config"]["InstanceMarketOptions"] == {
        "MarketType": "spot"
    }
    assert "InstanceMarketOptions" not in head["node_config"] and head["resources"] == {"CPU": 0}
    env = dict(
        option.removeprefix("--env ").split("=")
        for option in FILLED["docker"]["run_options"]
        if "--env" in option
    )
    assert float(env["RAY_JOB_STOP_WAIT_TIME_S"]) > Cluster().stop_grace_s


def without(*path: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("provider"), "'provider' is a required property"),
        (lambda data: data.update(max_worker=3), r"'max_worker' was unexpected"),
        (lambda data: data.update(max_workers="3"), r"^max_workers: '3' is not of type 'integer'"),
        (
            lambda data: data.update(head_node_type="haed"),
            "is 'haed'; name one of available_node_types: head, worker",
        ),
        (without("docker", "image"), "docker: has no image"),
        (lambda data: data["docker"]["run_options"].pop(0), "token authentication is off"),
        (without("file_mounts"), "brings the nodes no token; add '~/.ray/auth_token"),
        (
            without("provider", "use_internal_ips"),
            "a subnet that gives public addresses.*name a private subnet",
        ),
        (
            lambda data: data["available_node_types"]["worker"]["node_config"].update(
                NetworkInterfaces=[{"AssociatePublicIpAddress": True}]
            ),
            r"^available_node_types.worker.node_config.NetworkInterfaces: give machines public addresses",
        ),
        (
            lambda data: data["head_start_ray_commands"].append("ray start --head --dashboard-host=0.0.0.0"),
            r"^head_start_ray_commands.2: opens the dashboard",
        ),
        (
            without("available_node_types", "worker", "node_config", "SecurityGroupIds"),
            r"^available_node_types.worker.node_config: has no SecurityGroupIds",
        ),
    ],
)
def test_what_is_wrong_is_said(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    data = copy.deepcopy(FILLED)
    change(data)
    (found,) = problems(data, tmp_path)
    assert re.search(message, found), found


TOKEN, OFF = "--env RAY_AUTH_MODE=token", "--env RAY_AUTH_MODE=disabled"


@pytest.mark.parametrize(
    ("docker", "start", "said"),
    [
        ({"run_options": [TOKEN], "worker_run_options": [OFF]}, {}, "the worker has disabled"),
        ({"run_options": [TOKEN], "head_run_options": [OFF]}, {}, "the head has disabled"),
        ({"run_options": [TOKEN + "less"]}, {}, "the head has tokenless and the worker has tokenless"),
        ({}, {"head": "RAY_AUTH_MODE=token ray start"}, "the worker has none"),
        ({"run_options": [TOKEN]}, {"head": "RAY_AUTH_MODE='disabled' ray start"}, "the head has disabled"),
        ({"head_run_options": [TOKEN], "worker_run_options": ["-e RAY_AUTH_MODE=token"]}, {}, None),
        ({"run_options": [OFF, TOKEN]}, {}, None),
        (
            {},
            {"head": "export RAY_AUTH_MODE=token; ray start", "worker": "RAY_AUTH_MODE=token ray start"},
            None,
        ),
    ],
)
def test_each_kind_of_node_asks_for_the_token(
    docker: dict[str, Any], start: dict[str, str], said: str | None, tmp_path: Path
) -> None:
    """What is in force in the end counts, exactly."""
    data = copy.deepcopy(FILLED)
    data["docker"] = {"image": "mine", **docker}
    data |= {f"{kind}_start_ray_commands": ["ray stop", command] for kind, command in start.items()}
    found = problems(data, tmp_path)
    assert len(found) == (said is not None)
    assert all(re.search(f"is off.*: of RAY_AUTH_MODE, {said}; add", line) for line in found), found


def test_what_ray_makes_of_what_is_not_said(tmp_path: Path) -> None:
    """On AWS Ray looks a machine's resources up, and has two workers; who is the head must be said."""
    data = copy.deepcopy(FILLED)
    worker = data["available_node_types"]["worker"]
    worker["resources"] = {}
    del data["max_workers"], worker["max_workers"]
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(data))
    assert load(str(path)).workers == [Workers("worker", most=2, cpus=None, gpus=None, memory=None)]
    filled = prepare_config(data)
    assert filled["max_workers"] == filled["available_node_types"]["worker"]["max_workers"] == 2
    worker["resources"] = {"CPU": 4}
    data["provider"] = {"type": "gcp"}
    path.write_text(yaml.safe_dump(data))
    assert load(str(path)).workers == [Workers("worker", most=2, cpus=4, gpus=0, memory=None)]
    del data["head_node_type"]
    path.write_text(yaml.safe_dump(data))
    assert load(str(path)).workers == []


def test_no_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    with pytest.raises(SpecError, match=r"there is no such file; give the path or URL of a cluster file"):
        load(str(path))
    path.write_text("- a list\n")
    with pytest.raises(SpecError, match=r"cluster.yaml: is no mapping; give a cluster file"):
        load(str(path))
    path.write_text("provider: {type: aws}\nprovider: {type: gcp}\n")
    assert any("given twice" in line for line in load(str(path)).problems)
