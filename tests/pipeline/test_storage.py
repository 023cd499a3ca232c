"""One suite for the local file system and a real S3 server: what the commit protocol rests on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from fsspec import AbstractFileSystem
from s3fs.errors import translate_boto_error

from pipeline.s3 import S3
from pipeline.storage import StorageError, check_puts, check_writable, create, names, open_fs, put
from tests.conftest import BucketUrl
from tests.s3_server import Server


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty place."""
    if request.param == "local":
        return str(tmp_path / "store")
    bucket: BucketUrl = request.getfixturevalue("s3")
    return f"{bucket()}/store"


@pytest.fixture
def fs(store: str) -> AbstractFileSystem:
    return open_fs(store)[0]


@pytest.fixture
def root(store: str) -> str:
    return open_fs(store)[1]


def refused(code: str) -> OSError:
    """What s3fs makes of a server's error."""
    return translate_boto_error(ClientError({"Error": {"Code": code, "Message": code}}, "PutObject"))


def test_create_only_once(fs: AbstractFileSystem, root: str) -> None:
    assert create(fs, f"{root}/deep/er/a", b"first")
    assert not create(fs, f"{root}/deep/er/a", b"second")
    assert fs.cat_file(f"{root}/deep/er/a") == b"first"
    assert names(fs, f"{root}/deep/er") == ["a"], "something is left of how the object came to be"


def test_one_of_many_creators_wins(fs: AbstractFileSystem, root: str) -> None:
    """Looking first and writing then, as fsspec's generic `create` does, lets several win."""
    racers = 16
    for race in range(1 if isinstance(fs, S3) else 10):  # the server makes losers wait for seconds
        gate = threading.Barrier(racers)
        contents = [f"racer {racer};".encode() * 5000 for racer in range(racers)]

        def run(
            content: bytes, path: str = f"{root}/race-{race}", gate: threading.Barrier = gate
        ) -> tuple[bool, bytes]:
            gate.wait()
            return create(fs, path, content), fs.cat_file(path)

        with ThreadPoolExecutor(racers) as pool:
            results = list(pool.map(run, contents))
        winners = [content for content, (won, _) in zip(contents, results, strict=True) if won]
        assert len(winners) == 1
        assert {seen for _, seen in results} == set(winners), "a loser saw something else, or half of it"


def test_put_replaces(fs: AbstractFileSystem, root: str) -> None:
    for data in (b"first" * 1000, b"", b"second"):
        put(fs, f"{root}/folder/a", data)
        assert fs.cat_file(f"{root}/folder/a") == data
    assert names(fs, f"{root}/folder") == ["a"]


def test_put_reads_back_where_the_server_gives_no_md5(
    fs: AbstractFileSystem, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With server-side encryption an ETag is no MD5."""
    if isinstance(fs, S3):
        real = fs.pipe_file
        monkeypatch.setattr(
            fs, "pipe_file", lambda *args, **kwargs: {**real(*args, **kwargs), "ETag": '"x-1"'}
        )
    read: list[str] = []
    real_cat = fs.cat_file
    monkeypatch.setattr(fs, "cat_file", lambda path: read.append(path) or real_cat(path))  # type: ignore[func-returns-value]
    put(fs, f"{root}/a", b"data")
    assert read == [f"{root}/a"]


def test_a_corrupted_upload_is_noticed(
    fs: AbstractFileSystem, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parallel uploads can lose data without an error (gcsfs #327)."""
    if isinstance(fs, S3):
        real = fs.pipe_file
        monkeypatch.setattr(
            fs, "pipe_file", lambda path, data, **options: real(path, data[:-1] + b"?", **options)
        )
    else:
        real_fsync = os.fsync

        def flip_a_byte(handle: int) -> None:
            if os.fstat(handle).st_size == 4:
                os.pwrite(handle, b"?", 3)
            real_fsync(handle)

        monkeypatch.setattr(os, "fsync", flip_a_byte)
    with pytest.raises(
        StorageError, match=r"store/a: the 4 bytes read back differ from those sent; check disk"
    ):
        put(fs, f"{root}/a", b"data")


def test_a_failed_local_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left of a block on a full disk kept the disk full."""
    fs, _ = open_fs(str(tmp_path))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (put, create):
        with pytest.raises(OSError, match="No space left"):
            write(fs, f"{tmp_path}/a", b"data")
    assert list(tmp_path.iterdir()) == []


def test_names(fs: AbstractFileSystem, root: str) -> None:
    """Only objects directly in the folder, and what others wrote since the last look."""
    assert names(fs, f"{root}/folder") == []
    for name in ("b", "a.json", "sub/c"):
        put(fs, f"{root}/folder/{name}", b"1")
    put(fs, f"{root}/folder-beside", b"1")
    assert names(fs, f"{root}/folder") == ["a.json", "b"]
    put(fs, f"{root}/folder/c", b"1")
    assert names(fs, f"{root}/folder") == ["a.json", "b", "c"]


def test_writable_store_stays_empty(fs: AbstractFileSystem, store: str, root: str) -> None:
    for check in (check_writable, check_puts):
        check(store)
        assert names(fs, root) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=r"cannot create objects there .*Permission denied"):
        check_writable(f"{tmp_path}/store")


@pytest.fixture
def become(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Use the S3 server as another identity."""

    def switch(identity: int) -> None:
        for key, value in s3_server.environment(identity).items():
            monkeypatch.setenv(key, value)
        S3.clear_instance_cache()

    yield switch
    S3.clear_instance_cache()


@pytest.mark.s3
@pytest.mark.parametrize(("identity", "step"), [(1, "create"), (2, "list")])
def test_missing_right_is_named(s3: BucketUrl, become: Any, identity: int, step: str) -> None:
    url = f"{s3()}/store"
    become(identity)
    with pytest.raises(
        StorageError,
        match=f"store {url}: cannot {step} objects there .*needs the rights to create, read, list",
    ):
        check_writable(url)
    become(0)
    fs, root = open_fs(url)
    assert names(fs, root) == [], "the probe is left behind"


@pytest.mark.s3
def test_a_folder_that_one_may_only_read(s3: BucketUrl, become: Any) -> None:
    url = f"{s3()}/folder"
    become(1)
    with pytest.raises(
        StorageError, match=f"folder {url}: cannot write objects there .*rights to write and delete"
    ):
        check_puts(url)


@pytest.mark.s3
def test_missing_bucket(s3: BucketUrl) -> None:
    s3()
    with pytest.raises(StorageError, match=r"cannot create objects there .*bucket does not exist"):
        check_writable("s3://no-such-bucket/store")


@pytest.mark.s3
def test_a_server_that_ignores_the_condition_is_refused(
    s3: BucketUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers that speak S3 take If-None-Match and overwrite all the same."""
    url = f"{s3()}/store"
    fs, root = open_fs(url)
    real = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, data, mode: real(path, data))
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        check_writable(url)
    assert names(fs, root) == []


@pytest.mark.s3
def test_a_create_whose_answer_was_lost_is_no_reason_to_refuse(
    s3: BucketUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client repeats it, and is told that the object exists."""
    url = f"{s3()}/store"
    fs, _ = open_fs(url)
    real = fs.pipe_file
    monkeypatch.setattr(
        fs, "pipe_file", lambda *args, **options: (real(*args, **options), real(*args, **options))
    )
    check_writable(url)


@pytest.mark.s3
def test_conflicting_creators_try_again(s3: BucketUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 may answer 409 to all of several writers at once; taken for `exists`, nobody would have won."""
    fs, root = open_fs(f"{s3()}/store")
    real = fs.pipe_file
    waits: list[float] = []
    answers = [refused("ConditionalRequestConflict"), refused("ConditionalRequestConflict"), None]

    def pipe_file(*args: Any, **options: Any) -> Any:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return real(*args, **options)

    monkeypatch.setattr(fs, "pipe_file", pipe_file)
    monkeypatch.setattr(time, "sleep", waits.append)
    assert create(fs, f"{root}/a", b"data")
    assert fs.cat_file(f"{root}/a") == b"data" and waits == [0.1, 0.2]
    answers += [refused("ConditionalRequestConflict")] * 6
    with pytest.raises(StorageError, match="6 tries to create it met others"):
        create(fs, f"{root}/b", b"data")


@pytest.mark.s3
def test_other_refusals_of_a_create_are_errors(s3: BucketUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, root = open_fs(f"{s3()}/store")

    def pipe_file(*args: Any, **options: Any) -> Any:
        raise refused("SlowDown")

    monkeypatch.setattr(fs, "pipe_file", pipe_file)
    with pytest.raises(OSError, match="SlowDown"):
        create(fs, f"{root}/a", b"data")


def test_create_needs_a_file_system_that_can() -> None:
    """Memory, FTP and the like look first and write then."""
    fs, root = open_fs("memory://store")
    with pytest.raises(ValueError, match="stores live on a local file system or S3, not 'memory'"):
        create(fs, f"{root}/a", b"data")


@pytest.mark.parametrize(
    ("url", "message"),
    [("pipe:cat x", "'pipe:' runs a shell"), ("nope://x", "no installed fsspec plugin opens 'nope' URLs")],
)
def test_urls_that_nothing_opens(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_fs(url)


def test_relative_and_home_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_fs("store")[1] == f"{tmp_path}/store"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_fs("~/store")[1] == f"{tmp_path}/store"
