"""What all models of specs have in common."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Model(BaseModel):
    """Strict and immutable: an unknown key or a wrong type is an error, never a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def without_credentials(url: str) -> str:
    """The URL, or ValueError where it holds credentials."""
    if re.search(r"://[^/]*@|://[^@]*:[^@]*@|\?[^/]*=", url):
        raise ValueError(
            "holds credentials; give the URL without them, they are taken from the environment or the instance's role"
        )
    return url


def _sides(size: list[int]) -> list[int]:
    if min(size) < 8 or any(side % 8 for side in size):
        raise ValueError(f"is {size}; height and width must be positive multiples of 8")
    return size


ImageSize = Annotated[list[int], Field(min_length=2, max_length=2), AfterValidator(_sides)]
"""[H, W] in pixels."""
Url = Annotated[str, AfterValidator(without_credentials)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Dtype = Literal["float16", "float32"]
"""Of storage."""
