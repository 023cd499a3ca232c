"""The Kubernetes manifests: valid by KubeRay's definitions, and as safe as they say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from schemas.spec import Cluster
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
    assert WORKER["spec"]["nodeSelector"] and "nodeSelector" not in HEAD["spec"]
    assert WORKER["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert JOB["shutdownAfterJobFinishes"]


def test_it_stops_in_time() -> None:
    """What Ray and Kubernetes wait before they kill is more than the job's own grace."""
    grace = Cluster().stop_grace_s
    for pod in (HEAD, WORKER):
        assert pod["spec"]["terminationGracePeriodSeconds"] > grace
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
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert all("169.254.0.0/16" in block["except"] for block in blocks), (
        "an instance's keys stay out of reach"
    )
