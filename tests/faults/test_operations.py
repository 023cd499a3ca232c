"""The page for whoever is on call: what it quotes is what the product says, and what it tells to do works.

Answers that take a cluster, a signal or a server to try are in the other modules of this folder.
"""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs import endings, extract, verify
from pipeline import cluster
from pipeline.ray_runner import RayRunner
from pipeline.s3 import S3
from pipeline.schedule import JobFailed
from pipeline.storage import StorageError, create, open_fs, put
from schemas.spec import Cluster
from schemas.specfile import SpecError, load
from tests.faults.harness import contents, spec_of, write_shards

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "infra" / "OPERATIONS.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.S)

_COMMANDS = ("gatehouse ", "ray ", "gc ", "cp ", "--")
_OF_OTHERS = {  # Ray's own words, and the operating system's
    "the actor's node was terminated unexpectedly: ",
    "The actor is dead because its worker process has died. ",
    "Failed flush to file",
    "Failed to connect to GCS",
    "(File too large)",
    "No space left on device",
    "No space left on device: 'SOURCE' -> 'CACHE'",
}


def said() -> str:
    """Every text that the product has in it, with a gap where a value goes."""
    texts = []
    for folder in ("jobs", "pipeline", "schemas"):
        for file in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text()))
            texts += [
                node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
    return re.sub("%[sd]", "\0", "\0".join(texts))


def test_what_is_quoted_is_said() -> None:
    """A message that is worded anew must be worded anew on the page, which people search for what they see."""
    quotes = [" ".join(quote.split()) for quote in re.findall("`([^`]+)`", PROSE)]
    messages = [quote for quote in quotes if " " in quote and not quote.startswith(_COMMANDS)]
    parts = {part for message in messages for part in re.split(r"\.\.\.", message)}
    for words in sorted(_OF_OTHERS, key=len, reverse=True):
        parts = {piece for part in parts for piece in part.split(words)}
    text = said()
    assert len(messages) > 20
    assert {part for part in parts if part.strip(" ();:,") not in text} == set()


def test_every_exit_code_has_an_answer() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, flags=re.M)}
    constants = {value for name, value in vars(endings).items() if name.isupper() and isinstance(value, int)}
    assert codes == constants | {2}


def test_a_shard_is_done_again(tmp_path: Path) -> None:
    """What the page tells to run, on a store with a lost object and a spoilt one: it becomes what it was."""
    shards = write_shards(tmp_path / "shards", shards=3, images=4)
    store = tmp_path / "store"
    spec = spec_of(str(store), shards)
    assert extract.run(spec, serial=True) == endings.DONE
    before = contents(str(store))
    for place, block in enumerate(sorted(store.glob("features/plain/*/c/[01]/0/0/0"))):
        block.unlink() if place else block.write_bytes(b"x" * block.stat().st_size)
    assert verify.run(str(store), fast=False) == verify.FAULTY
    (snippet,) = (code for code in re.findall("```python\n(.*?)```", PAGE, flags=re.S) if "COMPACT" in code)
    code = snippet.replace('"STORE"', repr(str(store))).replace('["02.tar"]', '["00.tar", "01.tar"]')
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert extract.run(spec, serial=True) == endings.DONE
    assert verify.run(str(store), fast=False) == verify.SOUND
    assert contents(str(store)) == before


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that refuses every request: with a status, a code and a text."""
    answer: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            status, code, text = answer
            body = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = refuse

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "a")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(S3, "retries", 1)

    def refuse(status: int, code: str, text: str) -> S3:
        answer[:] = status, code, text
        return S3(config_kwargs={"retries": {"total_max_attempts": 1}}, skip_instance_cache=True)

    yield refuse
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "ExpiredToken", r"refused \(why\): the keys are wrong or have expired; give new ones"),
        (403, "InvalidAccessKeyId", r"refused \(why\): the keys are wrong or have expired; give new ones"),
        (403, "SignatureDoesNotMatch", r"refused \(why\): the keys are wrong or have expired; give new ones"),
        (403, "RequestTimeTooSkewed", r"refused \(why\): this machine's clock is wrong; set it"),
        (403, "AccessDenied", r"refused \(why\), since the identity in use lacks the right s3:PutObject"),
        (
            503,
            "SlowDown",
            r"throttled, or the server is down \(why\), after many tries; lower cluster.max_req",
        ),
        (400, "MalformedXML", r"put_object failed \(why\)"),
    ],
)
def test_what_a_server_refuses(refusal: Any, status: int, code: str, message: str) -> None:
    """Expired keys were told as a missing right, and a server that throttles as `[Errno 16]`, of no object."""
    with pytest.raises(OSError, match=f"s3://bucket/key: {message}"):
        refusal(status, code, "why.").pipe_file("bucket/key", b"data")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, r"refused \(Bad Request\): most likely the keys have expired"),
        (
            403,
            r"refused \(Forbidden\), since the keys or this machine's clock are wrong, the keys have exp.*Get",
        ),
    ],
)
def test_what_a_server_refuses_without_a_word(refusal: Any, status: int, message: str) -> None:
    """Answers to HEAD have no text."""
    with pytest.raises(OSError, match=f"s3://bucket/key: {message}"):
        refusal(status, "", "").info("bucket/key")


def test_no_keys_for_a_spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A traceback of botocore's, for whoever had forgotten to give keys."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    for key in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(key, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3.clear_instance_cache()
    with pytest.raises(
        SpecError, match=r"s3://bucket/spec.yaml: cannot be read: Unable to locate credentials"
    ):
        load("s3://bucket/spec.yaml")


def test_a_full_disk_names_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    fs, _ = open_fs(str(tmp_path))
    message = r"/a: 4 bytes cannot be written \(No space left on device\); free space there and start again"
    for write in (put, create):
        with pytest.raises(StorageError, match=f"{tmp_path}{message}"):
            write(fs, f"{tmp_path}/a", b"data")


@pytest.mark.ray
def test_ray_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback said neither which folder nor what to do; a full disk is told in the same way, after 30 s."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(OSError, match=r"Ray could not be started on this machine: .*RAY_TMPDIR names one"):
        cluster.connect(Cluster())


def test_an_actors_death_in_short() -> None:
    """Ray adds a paragraph of what may have been, to every death."""
    told = "The actor died\n\tWorker exit detail: End of file. Some common causes include: (1) the OOM killer"
    assert cluster.in_short(RuntimeError(told)) == "Worker exit detail: End of file."


def test_the_cure_of_a_full_gpu_is_one() -> None:
    """A lower batch size alone, as it said, is refused by the store that is there."""
    spec = spec_of("store", "shards")
    runner, task = (
        SimpleNamespace(_spec=spec),
        SimpleNamespace(assignment=SimpleNamespace(shard=SimpleNamespace(id="a"))),
    )
    with pytest.raises(
        JobFailed, match=r"out of memory at batch_size 4 \(CUDA out.*another store .* at first 2, since"
    ):
        RayRunner._task_failed(runner, None, None, task, torch.OutOfMemoryError("CUDA out of memory"))  # type: ignore[arg-type]
