"""What jobs do before they work: logs for people, paths that hold on every node, a word on other libraries."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TypeVar

from pipeline import logs
from schemas.model import Model

M = TypeVar("M", bound=Model)
logger = logging.getLogger("gatehouse")

_SOURCES = ("source", "config", "image_encoder")


def log_to_console() -> None:
    """Show what the job logs.

    Raises:
        ValueError: GATEHOUSE_LOG asks for what there is not.
    """
    logs.configure(json_lines=logs.wants_json())


def absolute_sources(model: M) -> M:
    """A part of a spec whose local sources are absolute, since actors work in other folders; others may be hub ids."""
    found = {name: getattr(model, name) for name in _SOURCES if getattr(model, name, None)}
    local = {name: path for name, path in found.items() if path != "embedded" and os.path.exists(path)}
    return model.model_copy(update={name: os.path.abspath(path) for name, path in local.items()})


def warn_of_other_libraries(stored: Mapping[str, str], now: Mapping[str, str], what: str, so: str) -> None:
    """Name each library that is not of the version that something (`what`) was begun with, and what follows (`so`)."""
    for name, version in now.items():
        if stored.get(name) != version:
            logger.warning("%s begun with %s %s, this is %s: %s", what, name, stored.get(name), version, so)
