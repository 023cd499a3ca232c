"""A bucket to measure against: the one that is named, or one on a SeaweedFS server started here for the time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_KEY, _SECRET, _BUCKET = "bench", "bench-secret", "bench"
_START_S = 60.0


@contextmanager
def bucket(url: str | None, folder: Path) -> Iterator[str | None]:
    """The URL of a prefix on S3 to write to; None where none is named and the machine has no SeaweedFS.

    Args:
        url: `s3://BUCKET/PREFIX` to use, with endpoint and credentials in the environment.
        folder: where a server started here keeps its data.
    """
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if url is not None or weed is None:
        yield url
        return
    with _server(weed, folder) as endpoint:
        own = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            _create_bucket()
            yield f"s3://{_BUCKET}/bench"
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def client(connections: int) -> Any:
    """A boto3 client as a user would make it, with as many connections as ours."""
    return boto3.client("s3", config=Config(max_pool_connections=connections))


@contextmanager
def _server(weed: str, folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True)
    credentials = {"accessKey": _KEY, "secretKey": _SECRET}
    identity = {"name": "bench", "credentials": [credentials], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    port, *others = _free_ports(8)
    names = (
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
    )
    command = [
        weed,
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
    ]
    command += ["-s3", f"-s3.port={port}", f"-s3.config={folder}/s3.json"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=50", "-master.volumeSizeLimitMB=512"]
    command += [f"-{name}={number}" for name, number in zip((*names, "s3.port.grpc"), others, strict=True)]
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()  # nothing is to be kept, and asked politely it takes long
        server.wait()


def _create_bucket() -> None:
    """Wait for the server until it takes a first bucket."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            client(1).create_bucket(Bucket=_BUCKET)
            client(1).put_object(Bucket=_BUCKET, Key="ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"].startswith("BucketAlready"):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"SeaweedFS did not start within {_START_S:.0f} s: {error}") from error
            time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
