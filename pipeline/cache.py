"""The user's cache of weights on this machine: folders that are made once and never changed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_dir


def cached(version: str) -> Path:
    """The folder for something that `version` describes completely; it may not be there yet."""
    return Path(user_cache_dir("gatehouse")) / hashlib.sha256(version.encode()).hexdigest()[:24]


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A new folder that becomes `folder` when the context ends well; of several processes, the first one's stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        staged = Path(temporary) / "staged"
        staged.mkdir()
        yield staged
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
