"""Feature groups out of a selection, for a spec that names one where it could list groups."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, get_args

import fsspec
from pydantic import Field, TypeAdapter, ValidationError

from schemas.gate import SELECTION, Selection
from schemas.groups import Group
from schemas.model import without_credentials
from schemas.problems import dotted
from schemas.spec import Backbone, Finding, SelectionRef

_CURE: Final = f"give a list of groups, or the {SELECTION} that `gatehouse gate` wrote"
_VERSIONS: Final = get_args(Selection.model_fields["schema_version"].annotation)
_GROUPS: Final = TypeAdapter(dict[str, Annotated[list[Group], Field(min_length=1)]])


def selected(url: str) -> tuple[list[dict[str, Any]], SelectionRef]:
    """The groups of the selection at a path or fsspec URL, as a spec has them, and where they came from.

    Raises:
        ValueError: no such file, or one that is no selection of this release.
    """
    data = _read(without_credentials(url))
    selection = _parse(url, data)
    found = SelectionRef(
        url=url,
        sha256=hashlib.sha256(data).hexdigest(),
        backbone=selection.backbone,
        backbone_source=Backbone.model_validate(selection.spec.get("backbone", {})).source,
        reading=selection.reading,
        confidence=selection.confidence,
        judged=[
            Finding(name=one.name, verdict=one.verdict, gain=gain.mean, low=gain.low, high=gain.high)
            for one in selection.judged
            if (gain := one.gain.get(selection.reading)) is not None
        ],
    )
    return selection.groups, found


def _read(url: str) -> bytes:
    try:
        with fsspec.open(url, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise ValueError(f"found {url!r}, and there is no such file; {_CURE}") from None
    except Exception as error:  # plugins raise their client library's own types
        raise ValueError(f"found {url!r}, which cannot be read: {error}; {_CURE}") from error


def _parse(url: str, data: bytes) -> Selection:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"found {url!r}, which is no JSON: {error}; {_CURE}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version is not None and version not in _VERSIONS:
        raise ValueError(
            f"found {url!r}, a selection of schema version {version!r}; this release reads {_VERSIONS[0]}: use the"
            " release that wrote it, or run `gatehouse gate` again"
        )
    try:
        selection = Selection.model_validate(document)
        Backbone.model_validate(selection.spec.get("backbone", {}))
        _GROUPS.validate_python({"groups": selection.groups})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{dotted(first['loc'])}: " if first["loc"] else ""
        raise ValueError(
            f"found {url!r}, which is no selection of this release ({where}{first['msg']}); {_CURE}"
        ) from None
    return selection
