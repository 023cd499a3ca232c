"""A store as the driver and its workers see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store import StoreError, check_shared, open_store
from tests.attempts import manifest


def test_a_node_that_does_not_see_the_store(tmp_path: Path) -> None:
    """Guards against workers that stored everything in a folder of their own machine, in a job that said `done`."""
    url, made = str(tmp_path / "store"), manifest()
    with pytest.raises(
        StoreError, match="does not see there what the driver wrote; give an s3:// URL"
    ) as none:
        check_shared(url, made)
    assert none.value.missing
    check_shared(url, open_store(url, made))
    with pytest.raises(StoreError, match=r"store .*: host \S+ does not see there") as another:
        check_shared(url, made.model_copy(update={"rows_per_extent": made.rows_per_extent + 1}))
    assert not another.value.missing
