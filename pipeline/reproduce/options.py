"""What a user chooses of an experiment; all else is the experiment's own."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from schemas.dataset import PublicName
from schemas.model import ImageSize, Model, Url


class Options(Model):
    """Of one work folder, in which they never change. Defaults are the paper's."""

    version: Literal[1] = 1
    """Of this schema."""
    name: PublicName
    """Of the experiment."""
    store: Url | None = None
    """Folder or URL of the features; default: `features` in the work folder."""
    backbone: Url | None = None
    """As in an extract spec; default: the preset's, Stable Diffusion 1.5."""
    revision: str | None = None
    """Commit of `backbone`, where that is a hub id."""
    controlnet: Url | None = None
    """A ControlNet for Canny edges that belongs to the backbone; default: the preset's."""
    controlnet_revision: str | None = None
    """Commit of `controlnet`, where that is a hub id."""
    dtype: Literal["float16", "float32"] = "float16"
    """That features are computed in; CPUs are slow at float16."""
    image_size: ImageSize | None = None
    """[H, W] in pixels; default: the preset's."""
    gate: bool = False
    """Take the feature groups that GATE selects, with the paper's own as candidates, and not all of the paper's."""
    quick: bool = False
    """Few steps, and the first shard of each split: to see that all works."""

    @model_validator(mode="after")
    def _revisions(self) -> Options:
        for source, revision in (("backbone", "revision"), ("controlnet", "controlnet_revision")):
            if getattr(self, source) is None and getattr(self, revision) is not None:
                raise ValueError(f"{revision} is given without {source}; the default has a commit of its own")
        return self


def checked(*, image_size: str | None, **given: Any) -> Options:
    """Options as a command line has them.

    Args:
        image_size: `N` or `HxW` in pixels.
        given: the others, by their names.

    Raises:
        ValueError: a value that is not allowed; one line for each.
    """
    sides = None if image_size is None else _sides(image_size)
    try:
        return Options(image_size=sides, **given)
    except ValidationError as error:
        raise ValueError("\n".join(map(_worded, error.errors()))) from error


def _worded(error: Any) -> str:
    option = "--" + str(error["loc"][0]).replace("_", "-") if error["loc"] else "options"
    option = "experiment" if option == "--name" else option
    found = f": found {error['input']!r}" if error["loc"] else ""
    return f"{option}{found}: {error['msg'].removeprefix('Value error, ')}"


def _sides(given: str) -> list[int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", given)
    if found is None:
        raise ValueError(f"--image-size is {given!r}; give N or HxW in pixels, as in 512 or 1024x2048")
    return [int(found[1]), int(found[2] or found[1])]
