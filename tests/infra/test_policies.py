"""The IAM policies, as they are, on the real S3 server: what they suffice for, and what each right is for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from jobs import endings, extract, gc, verify
from pipeline import FeatureStore
from pipeline.s3 import S3
from pipeline.storage import names, open_fs, put
from schemas.spec import ExtractSpec
from tests import policies, stores
from tests.conftest import BucketUrl
from tests.s3_server import Server

pytestmark = pytest.mark.s3

STORE = f"s3://{policies.BUCKET}/{policies.STORE}"
Become = Callable[[str], None]


@pytest.fixture
def become(s3: BucketUrl, s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Become]:
    """Use the S3 server as another identity; at the end, the store is removed."""

    def switch(identity: str) -> None:
        for key, value in s3_server.environment(identity).items():
            monkeypatch.setenv(key, value)
        S3.clear_instance_cache()

    yield switch
    switch("admin")
    fs, root = open_fs(STORE)
    if fs.exists(root):
        fs.rm(root, recursive=True)
    S3.clear_instance_cache()


@pytest.fixture(scope="module")
def spec(s3: BucketUrl, built: Path) -> ExtractSpec:
    """Of a small job whose shards and store are where the policies say."""
    fs, root = open_fs(f"s3://{policies.BUCKET}/{policies.SHARDS}")
    for shard in ("a.tar", "sub/b.tar"):
        put(fs, f"{root}/{shard}", (built / "shards" / shard).read_bytes())
    shards = [f"s3://{root}/*.tar", f"s3://{root}/sub/b.tar"]
    document = stores.spec_of(built, shards).model_dump(exclude={"selection"}) | {"store": STORE}
    return ExtractSpec.model_validate(document)


def test_what_the_policies_suffice_for(become: Become, spec: ExtractSpec) -> None:
    """A job, a check and a look as those who may just do that; none of them can undo a commit."""
    become("store-writer")
    assert extract.run(spec, serial=True) == endings.DONE
    become("store-reader")
    assert verify.run(STORE, fast=False) == verify.SOUND
    store = FeatureStore(STORE)
    assert len(store.rows("plain")) == 9
    become("store-keeper")
    fs, root = open_fs(STORE)
    put(fs, f"{root}/probe-left-behind", b"probe")
    assert gc.run(STORE, dry_run=False, abandoned=True) == endings.DONE
    assert not fs.exists(f"{root}/probe-left-behind")
    marker = fs.ls(f"{root}/markers")[0]
    for identity in ("store-writer", "store-keeper", "store-reader"):
        become(identity)
        fs, _ = open_fs(STORE)
        with pytest.raises(PermissionError, match="lacks the right s3:DeleteObject"):
            fs.rm_file(marker)
    with pytest.raises(PermissionError, match="lacks the right s3:PutObject"):
        fs.pipe_file(f"{root}/probe-reader", b"no")
    become("store-writer")
    with pytest.raises(PermissionError, match="lacks the right s3:PutObject"):
        open_fs(STORE)[0].pipe_file(f"{root}-beside/probe-writer", b"no")


STATEMENTS = policies.statements(*policies.WRITER)


@pytest.mark.parametrize("number", range(len(STATEMENTS)), ids=[one["Sid"] for one in STATEMENTS])
def test_a_right_that_is_missing_is_named_before_any_work(
    number: int, become: Become, spec: ExtractSpec
) -> None:
    """Each statement in its turn: without it nothing is computed or stored, and the message says which right it is."""
    action = STATEMENTS[number]["Action"]
    where = policies.STORE if number >= 2 else policies.SHARDS
    become(policies.without(number))
    with pytest.raises(OSError, match=f"s3://{policies.BUCKET}/{where}.*lacks the right {action}"):
        extract.run(spec, serial=True)
    become("admin")
    fs, root = open_fs(STORE)
    left = [name for name in names(fs, root) if not name.startswith("probe-")]
    assert left == [] == names(fs, f"{root}/claims"), "of who may not delete, only the probe stays"


def test_every_policy_is_explained() -> None:
    text = (policies.FOLDER / "README.md").read_text()
    named = set(re.findall(r"^\| `(\S+\.json)`", text, re.MULTILINE))
    assert named == {path.name for path in policies.FOLDER.glob("*.json")}
    placeholder = re.compile(r"\b[A-Z]{2,}(?:-[A-Z]+)*\b")
    for path in policies.FOLDER.glob("*.json"):
        for name in set(placeholder.findall(path.read_text())):
            assert f"`{name}`" in text, f"{path.name}: {name}"


def test_a_head_launches_what_its_cluster_file_names() -> None:
    """No other image, no other kind of machine, and nothing that it could not end again."""
    found = json.loads((policies.FOLDER / "launch-workers.json").read_text())["Statement"]
    launch = [one for one in found if one["Action"] == "ec2:RunInstances"]
    by_kind = {
        arn.split(":")[5]: one.get("Condition", {}).get("StringEquals", {})
        for one in launch
        for arn in ([one["Resource"]] if isinstance(one["Resource"], str) else one["Resource"])
    }
    assert "image/MACHINE-IMAGE" in by_kind and "image/*" not in by_kind
    assert by_kind["instance/*"] == {
        "ec2:InstanceType": "WORKER-MACHINE",
        "aws:RequestTag/ray-cluster-name": "CLUSTER-NAME",
    }
    (ends,) = [one for one in found if "ec2:TerminateInstances" in one["Action"]]
    assert ends["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "CLUSTER-NAME"}}
    cluster = yaml.safe_load((policies.FOLDER.parents[1] / "ray_cluster.yaml").read_text())
    assert cluster["cluster_name"] and {"machine_image", "worker_machine"} <= cluster["metadata"].keys()
