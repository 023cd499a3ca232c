"""What jobs do before they work: logs for people, paths that hold on every node, a word on other libraries."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TypeVar

from pipeline import logs, storage
from schemas.model import Model
from schemas.spec import ExtractSpec

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


def absolute_spec(spec: ExtractSpec) -> ExtractSpec:
    """Local paths made absolute, since actors work in other folders."""
    backbone = absolute_sources(spec.backbone)
    groups = [
        group.model_copy(
            update={"techniques": [absolute_sources(technique) for technique in group.techniques]}
        )
        for group in spec.groups
    ]
    captions = spec.input.captions and storage.absolute(spec.input.captions)
    selection = spec.selection
    if selection is not None:
        selection = selection.model_copy(update={"url": storage.absolute(selection.url)})
    return spec.model_copy(
        update={
            "store": storage.absolute(spec.store),
            "backbone": backbone,
            "groups": groups,
            "selection": selection,
            "input": spec.input.model_copy(update={"captions": captions}),
        }
    )


def warn_of_other_libraries(stored: Mapping[str, str], now: Mapping[str, str], what: str, so: str) -> None:
    """Name each library that is not of the version that something (`what`) was begun with, and what follows (`so`)."""
    for name, version in now.items():
        if stored.get(name) != version:
            logger.warning("%s begun with %s %s, this is %s: %s", what, name, stored.get(name), version, so)
