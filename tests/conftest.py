"""Fixtures that more than one module of tests uses."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import labelled as labelled_shapes
from tests import policies, stores
from tests.s3_server import Identity, Server, serve

BucketUrl = Callable[[], str]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running S3 server whose identities are an administrator, one who only reads, one who cannot list, and those of
    `tests.policies`."""
    identities = [
        Identity("admin"),
        Identity("reader", ["Read", "List"]),
        Identity("lister-not", ["Read", "Write"]),
        *policies.identities(),
    ]
    with serve(tmp_path_factory.mktemp("s3"), identities) as server:
        yield server


@pytest.fixture(scope="session")
def s3(s3_server: Server) -> Iterator[BucketUrl]:
    """`s3()` returns the URL of a new, empty folder; `s3://` URLs are the test server's from then on."""
    s3_server.make_bucket("tests")  # one for all: each bucket takes volumes of the server's for itself
    numbers = itertools.count()

    def bucket() -> str:
        return f"s3://tests/{next(numbers)}"

    with pytest.MonkeyPatch.context() as patch:
        for key, value in s3_server.environment().items():
            patch.setenv(key, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        yield bucket


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `shards` and the `store` made from them, built once; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    stores.build(folder)
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled `shards` and the `store` made from them, built once; not to be changed."""
    folder = tmp_path_factory.mktemp("labelled")
    labelled_shapes.build(folder)
    return folder


@pytest.fixture
def small_store(built: Path, tmp_path: Path) -> Path:
    """A copy of the built store, to be damaged."""
    shutil.copytree(built / "store", tmp_path / "store")
    return tmp_path / "store"
