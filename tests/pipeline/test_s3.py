"""Errors before a request can be made; botocore's are neither OSError nor ValueError, so users saw a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem

from pipeline.arrays import create_arrays
from pipeline.s3 import S3
from pipeline.storage import StorageError, check_writable, names, open_fs
from tests.attempts import manifest


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials, and a server where nobody listens."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3.clear_instance_cache()
    yield
    S3.clear_instance_cache()


def read(fs: AbstractFileSystem) -> None:
    with fs.open("bucket/a", "rb") as file:
        file.read()


CALLS: list[Callable[[AbstractFileSystem], object]] = [
    read,
    lambda fs: fs.cat_file("bucket/a"),
    lambda fs: fs.pipe_file("bucket/a", b"data"),
    lambda fs: fs.info("bucket/a"),
    lambda fs: fs.glob("bucket/*.tar"),
    lambda fs: fs.find("bucket/folder", detail=True),
    lambda fs: names(fs, "bucket/folder"),
]


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("call", CALLS)
def test_no_credentials(call: Callable[[AbstractFileSystem], object]) -> None:
    fs, _ = open_fs("s3://bucket")
    with pytest.raises(
        StorageError, match="s3://bucket: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SEC"
    ):
        call(fs)


@pytest.mark.usefixtures("nobody")
def test_no_credentials_for_a_store() -> None:
    with pytest.raises(StorageError, match=r"store s3://bucket/store: cannot create .*no credentials found"):
        check_writable("s3://bucket/store")


@pytest.mark.usefixtures("nobody")
def test_no_credentials_for_arrays() -> None:
    """Zarr's requests are made as everything else's: with the identity of now, and with errors that say what to do."""
    with pytest.raises(StorageError, match="s3://bucket: no credentials found; set AWS_ACCESS_KEY_ID"):
        create_arrays("s3://bucket/store", manifest())


@pytest.mark.s3
def test_no_client_is_left_open(s3: Callable[[], str]) -> None:
    """Guards against a second client, of zarr's: each command complained of it at its end, in every log."""
    code = "import zarr, pipeline.arrays as a; zarr.open_group(a.open_zarr({!r}, read_only=False), mode='a')"
    done = subprocess.run(
        [sys.executable, "-c", code.format(s3())], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("nobody")
def test_no_such_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "typo")
    with pytest.raises(StorageError, match=r"s3://bucket: The config profile \(typo\) could not be found"):
        open_fs("s3://bucket")[0].cat_file("bucket/a")


@pytest.mark.usefixtures("nobody")
def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr(S3, "retries", 1)
    options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
    with pytest.raises(StorageError, match=r"s3://bucket: .*127.0.0.1:9.*named by AWS_ENDPOINT_URL"):
        S3(**options).cat_file("bucket/a")


@pytest.mark.parametrize("url", ["s3://bucket/folder/a", "s3a://bucket/folder/a"])
def test_open(url: str) -> None:
    fs, path = open_fs(url)
    assert isinstance(fs, S3) and path == "bucket/folder/a"
    assert fs.unstrip_protocol(path) == "s3://bucket/folder/a"
