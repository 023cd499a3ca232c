"""A real S3 server for tests: SeaweedFS, one process on free loopback ports, gone with the test run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_START_S = 60
_ENVIRONMENT = {
    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"
}  # volumes a bucket begins with; 7 use up the server soon


@dataclass(frozen=True)
class Identity:
    """A user of the server. Actions are SeaweedFS's: Admin, Read, Write, List, each also as `Read:BUCKET`."""

    name: str
    actions: Sequence[str] = ("Admin", "Read", "Write", "List", "Tagging")
    policy: str | None = None
    """In the place of actions: an IAM policy as JSON, which the server evaluates itself."""

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process this user."""
        return {"AWS_ACCESS_KEY_ID": self.name, "AWS_SECRET_ACCESS_KEY": f"{self.name}-secret"}


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    endpoint: str
    identities: Sequence[Identity]

    def environment(self, identity: int | str = 0) -> dict[str, str]:
        """Environment variables under which `s3://` URLs are this server's, for an identity's number or name."""
        if isinstance(identity, str):
            identity = [one.name for one in self.identities].index(identity)
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # no second of waiting for an instance's role
            **self.identities[identity].environment,
        }

    def make_bucket(self, name: str) -> None:
        """As the first identity, which must be an Admin."""
        _client(self.endpoint, self.identities[0]).create_bucket(Bucket=name)


@contextmanager
def serve(
    folder: Path, identities: Sequence[Identity] = (Identity("admin"),), address: str = "127.0.0.1"
) -> Iterator[Server]:
    """Run a server on `folder`, at one address of this machine, until the context ends."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "identities.json"
    policies = [{"name": one.name, "content": one.policy} for one in identities if one.policy]
    entries = [_entry(identity) for identity in identities]
    config.write_text(json.dumps({"identities": entries, "policies": policies}))
    port, *others = _free_ports(8)
    names = ["master.port", "volume.port", "filer.port"]
    names += ["master.port.grpc", "volume.port.grpc", "filer.port.grpc", "s3.port.grpc"]
    command = [
        *_dies_with_its_parent(),
        str(Path(sys.executable).parent / "weed"),
        "server",
        f"-dir={folder}",
        f"-ip={address}",
        f"-ip.bind={address}",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-volume.max=200",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        *(f"-{name}={number}" for name, number in zip(names, others, strict=True)),
    ]
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=os.environ | _ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        server = Server(f"http://{address}:{port}", identities)
        _wait(process, server, log)
        yield server
    finally:
        process.kill()  # asked politely it takes more than 10 s
        process.wait()


def _entry(identity: Identity) -> dict[str, object]:
    keys = identity.environment
    credentials = {"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}
    rights = {"policyNames": [identity.name]} if identity.policy else {"actions": list(identity.actions)}
    return {"name": identity.name, "credentials": [credentials], **rights}


def _dies_with_its_parent() -> list[str]:
    """Even if the test run is killed."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _client(endpoint: str, identity: Identity) -> Any:
    keys = identity.environment
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )


def _wait(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    """Until an object can be written and read, which is later than the port answers."""
    client = _client(server.endpoint, server.identities[0])
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.get_object(Bucket="ready", Key="ready")["Body"].read()
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(
        f"the S3 server did not answer within {_START_S} s (exit code {process.poll()}):\n{tail}"
    )
