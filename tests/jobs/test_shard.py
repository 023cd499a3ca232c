"""Images in a folder to shards and back to samples, through the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.shard import shard
from pipeline.shards import list_shards, read_shard
from schemas.spec import Input
from tests.tars import jpeg


def test_folder_to_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(jpeg(4, 4, i))
    shard([str(tmp_path / "in")], out=str(tmp_path / "out"), shard_size=2)
    printed = capsys.readouterr().out.splitlines()
    spec = Input(shards=str(tmp_path / "out" / "*.tar"), caption_field=None)
    shards = list_shards(spec)
    assert [one.url for one in shards] == printed
    images = [sample.image for one in shards for sample in read_shard(one, spec)]
    assert images == [jpeg(4, 4, i) for i in range(3)]
