"""Results that are there whole or not at all: written beside their place, and renamed into it."""

from __future__ import annotations

import shutil
from pathlib import Path


def staged(folder: Path) -> Path:
    """An empty folder to write what shall become `folder`, from which an earlier result is removed."""
    aside = folder.with_name(f"{folder.name}.part")
    for stale in (aside, folder):
        shutil.rmtree(stale, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside
