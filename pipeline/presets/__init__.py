"""Named specs to start from: the YAML files in this folder, each a complete extract spec with a header.

The header's first lines say what a preset is, where it comes from, and what it costs: `# What:`, `# Backbone:`,
`# Source:`, `# Passes:` and `# Bytes:`. The two figures are written down and not computed, since the configs of hub
ids are not on this machine; a test computes them from full-size configs.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

import yaml

from schemas.spec import ExtractSpec

_HEADER = re.compile(r"# (What|Backbone|Source|Passes|Bytes): (.+)")


@dataclass(frozen=True)
class Preset:
    """A preset's text and what its header says."""

    name: str
    text: str
    """The YAML file, ready to be a user's spec."""

    @cached_property
    def spec(self) -> ExtractSpec:
        """The text as it stands, its paths still to be filled in."""
        return ExtractSpec.model_validate(yaml.safe_load(self.text))

    @property
    def what(self) -> str:
        """One line."""
        return self._header["What"]

    @property
    def backbone(self) -> str:
        """Its common name."""
        return self._header["Backbone"]

    @property
    def source(self) -> str:
        """Paper and repository."""
        return self._header["Source"]

    @property
    def passes(self) -> int:
        """Of the network, an image."""
        return self._number("Passes")

    @property
    def bytes_per_image(self) -> int:
        """Of float16 maps, before compression."""
        return self._number("Bytes")

    def _number(self, line: str) -> int:
        return int(self._header[line].split()[0].replace(",", ""))

    @cached_property
    def _header(self) -> dict[str, str]:
        lines = [line for line in self.text.splitlines() if line.startswith("#")]
        return {match[1]: match[2] for line in lines if (match := _HEADER.fullmatch(line))}


def names() -> list[str]:
    """Every preset, sorted."""
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def read(name: str) -> Preset:
    """A preset.

    Raises:
        ValueError: there is none of that name; names the nearest.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise ValueError(f"no preset {name!r}; {hint}there are {', '.join(known)}")
    return Preset(name, resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8"))
