"""The Kubernetes manifests: valid by KubeRay's definitions, and as safe as they say."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import ray
import yaml

from pipeline.actor import ExtractActor
from schemas.spec import Cluster
from tests.faults.harness import wait_until
from tests.infra import crds

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes"


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


ONE_OFF, NIGHTLY = load("one-off.yaml")[0], load("nightly.yaml")[0]
JOB = ONE_OFF["spec"]
CLUSTER = JOB["rayClusterSpec"]
HEAD, WORKER = CLUSTER["headGroupSpec"]["template"], CLUSTER["workerGroupSpecs"][0]["template"]
SUBMITTER = JOB["submitterPodTemplate"]
PODS = [SUBMITTER, HEAD, WORKER]


@pytest.mark.parametrize("manifest", [ONE_OFF, NIGHTLY], ids=["one-off", "nightly"])
def test_valid(manifest: dict[str, Any]) -> None:
    assert crds.problems(manifest) == []


def test_a_misspelt_key_is_found() -> None:
    """A cluster would drop it in silence, and with it a limit or a right that was meant."""
    wrong = copy.deepcopy(ONE_OFF)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
        "securityContexts"
    ] = {}
    wrong["spec"]["shutdownAfterJobFinishes"] = "yes"
    found = "\n".join(crds.problems(wrong))
    assert "'securityContexts' was unexpected" in found and "'yes' is not of type 'boolean'" in found


OTHERS = [*load("rights.yaml"), *load("network.yaml")]


@pytest.mark.parametrize("manifest", OTHERS, ids=[one["kind"] for one in OTHERS])
def test_the_rest_is_valid(manifest: dict[str, Any]) -> None:
    """By Kubernetes' own schemas, which KubeRay's definitions do not have."""
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="'specs' was unexpected"):
        kubernetes_validate.validate(
            manifest | {"specs": {}}, kubernetes_validate.latest_version(), strict=True
        )


def test_both_jobs_are_the_same_but_for_what_they_run() -> None:
    """The cluster is written down twice, since YAML's anchors end with a document."""
    own = {"entrypoint", "activeDeadlineSeconds"}
    nightly = NIGHTLY["spec"]["jobTemplate"]
    assert {key for key in nightly.keys() | JOB if nightly.get(key) != JOB.get(key)} == own


@pytest.mark.parametrize("pod", PODS, ids=["submitter", "head", "worker"])
def test_pods_are_confined(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all("hostPath" not in volume for volume in spec["volumes"])
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"]), (
        "a full disk ends a node's pods"
    )
    for container in spec["containers"]:
        confined = container["securityContext"]
        assert confined["capabilities"] == {"drop": ["ALL"]} and confined["readOnlyRootFilesystem"]
        assert confined["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert container["image"] == ONE_OFF["metadata"]["annotations"]["image"]
        known = {variable["name"] for variable in container.get("env", [])}
        assert not {name for name in known if "KEY" in name or "TOKEN" in name or "SECRET" in name}


def test_the_autoscaler_is_confined() -> None:
    options = CLUSTER["autoscalerOptions"]
    assert options["securityContext"]["allowPrivilegeEscalation"] is False
    assert options["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_workers_come_and_go() -> None:
    """From none, on machines that may be taken away, each with a GPU; the head stays and computes nothing."""
    (group,) = CLUSTER["workerGroupSpecs"]
    assert CLUSTER["enableInTreeAutoscaling"] and group["minReplicas"] == group["replicas"] == 0
    assert WORKER["spec"]["nodeSelector"]
    assert WORKER["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert JOB["shutdownAfterJobFinishes"]


def test_the_head_is_not_on_a_preemptible_machine() -> None:
    """Whichever label its cloud gives those; a machine without the label will do."""
    terms = HEAD["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = terms["nodeSelectorTerms"]  # several would be alternatives
    assert all(one["operator"] == "NotIn" for one in term["matchExpressions"])
    assert {one["key"]: one["values"] for one in term["matchExpressions"]} == {
        "cloud.google.com/gke-spot": ["true"],
        "karpenter.sh/capacity-type": ["spot"],
        "eks.amazonaws.com/capacityType": ["SPOT"],
        "kubernetes.azure.com/scalesetpriority": ["spot"],
    }


def test_what_ray_writes_is_bounded() -> None:
    """KubeRay mounts a volume of this name at /tmp/ray, for the autoscaler too, and adds one without a limit."""
    for pod in (HEAD, WORKER):
        (logs,) = [one for one in pod["spec"]["volumes"] if one["name"] == "ray-logs"]
        assert logs["emptyDir"]["sizeLimit"] == "10Gi"
        (mounts,) = [one["volumeMounts"] for one in pod["spec"]["containers"]]
        assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in mounts


def finish() -> Any:
    """infra/kubernetes/finish.py, as a module."""
    spec = importlib.util.spec_from_file_location("finish", FOLDER / "finish.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_knows_drivers_and_actors() -> None:
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    assert list(project["scripts"]) == [finish().DRIVER]
    assert f"ray::{ExtractActor.__name__}" == finish().ACTOR


def test_a_pod_that_goes_lets_its_driver_finish(tmp_path: Path) -> None:
    """Stand-ins of other names, since this machine may have real ones: a driver, and an actor that goes with it."""
    asked = finish()
    asked.DRIVER, asked.ACTOR = f"driver{os.getpid()}", f"actor{os.getpid()}"
    log, driver = tmp_path / "log", tmp_path / asked.DRIVER
    driver.write_text(
        f"#!/bin/sh\ntrap 'echo told >>{log}; sleep 0.5; exit 5' TERM\n"
        f"echo began >{log}\nwhile :; do sleep 0.1; done\n"
    )
    driver.chmod(0o755)
    until_then = f"exec -a {asked.ACTOR}.run sleep 2"
    with subprocess.Popen(driver) as head, subprocess.Popen(["bash", "-c", until_then]) as worker:
        wait_until(lambda: len(asked.working()) == 2 and log.exists(), "both to begin")
        asked.main(60)
        assert (head.wait(timeout=10), worker.wait(timeout=10)) == (5, 0)
    assert log.read_text() == "began\ntold\n"
    asked.main(60)


def test_it_stops_in_time() -> None:
    """What Ray and Kubernetes wait before they kill is more than the job's own grace."""
    grace = Cluster().stop_grace_s
    for pod in (HEAD, WORKER):
        (container,) = pod["spec"]["containers"]
        program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (
            program == "finish.py" and grace < float(seconds) < pod["spec"]["terminationGracePeriodSeconds"]
        )
    env = {variable["name"]: variable["value"] for variable in HEAD["spec"]["containers"][0]["env"]}
    assert float(env["RAY_JOB_STOP_WAIT_TIME_S"]) > grace


def test_authentication_and_version() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["rayVersion"] == ray.__version__, "KubeRay decides by it what the image can do"
    assert CLUSTER["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_least_rights() -> None:
    """Only the head's account has any, and just what Ray's autoscaler does."""
    found = load("rights.yaml")
    accounts = {one["metadata"]["name"]: one for one in found if one["kind"] == "ServiceAccount"}
    assert all(one["automountServiceAccountToken"] is False for one in accounts.values())
    (role,) = [one for one in found if one["kind"] == "Role"]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
    ]
    (binding,) = [one for one in found if one["kind"] == "RoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": HEAD["spec"]["serviceAccountName"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {one["kind"] for one in found} == {"ServiceAccount", "Role", "RoleBinding"}, (
        "nothing of the whole cluster"
    )
    for pod in PODS:
        assert pod["spec"]["serviceAccountName"] in accounts
    without_rights = {pod["spec"]["serviceAccountName"] for pod in (SUBMITTER, WORKER)}
    assert HEAD["spec"]["serviceAccountName"] not in without_rights


def test_the_network_policy_is_of_these_pods() -> None:
    """One that selects nothing would say nothing, and nobody would notice."""
    (policy,) = load("network.yaml")
    ours = policy["spec"]["podSelector"]["matchLabels"].items()
    for pod in PODS:
        assert ours <= pod["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for rule in policy["spec"]["ingress"]:
        assert all("ipBlock" not in source for source in rule["from"]), "nothing from outside"
    for rule in policy["spec"]["egress"]:
        for block in [to["ipBlock"] for to in rule["to"] if "ipBlock" in to]:
            names_only = {port["port"] for port in rule["ports"]} == {53}
            assert names_only or "169.254.0.0/16" in block["except"], "an instance's keys stay out of reach"
    blocks = {
        to["ipBlock"]["cidr"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to
    }
    assert blocks >= {"169.254.20.10/32", "169.254.169.254/32"}, "or no name is found with a node's own DNS"
