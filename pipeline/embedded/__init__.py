"""What ships: a small backbone, its techniques and a few shards, for the demo and the tests (see README.md)."""

from pathlib import Path

BACKBONE = str(Path(__file__).parent / "backbone")
"""Folder of the backbone, in diffusers' layout."""

SHARDS = str(Path(__file__).parent / "shards")
"""Folder of the sample shards, `*.tar`."""
