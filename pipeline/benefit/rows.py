"""What is compared: feature groups with and without techniques, alone and together.

Names of rows are those of the table that `jobs.benefit` prints. The paper's counterparts are, for segmentation, those
of its Table 5 (one split of Horse-21, mIoU), and for correspondence those of its Table 1 (SPair-71k, PCK@0.1 by box,
without GATE and with it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

PLAIN: Final = "plain"
TIMES: Final = (100, 200, 400)
"""Of the plain features beside the one at t = 50."""
TECHNIQUES: Final = ("quality", "caption", "controlnet", "lora-moderate", "lora-overfitted", "guidance")
RECIPE: Final = ("quality", "controlnet", "lora-moderate", "lora-overfitted")
"""The paper's groups for label-scarce segmentation: a prompt, ControlNet, two LoRAs. The paper's LoRAs are of the data
set itself, the embedded ones of another domain."""
_PAPER: Final[dict[str, dict[str, str]]] = {
    "plain": {"segmentation": "58.13", "correspondence": "51.66", "correspondence, conv": "65.74"},
    "plain + other t": {"segmentation": "59.44"},
    "plain + quality": {"segmentation": "60.12"},
    "plain + controlnet": {"segmentation": "60.02"},
    "plain + lora-moderate": {"segmentation": "60.27"},
    "the paper's recipe": {
        "segmentation": "60.74",
        "correspondence": "55.72",
        "correspondence, conv": "69.10",
    },
}
_CANNY: Final = {"type": "controlnet", "source": "embedded/controlnet-canny"}


@dataclass(frozen=True)
class Row:
    """One line of the table: what a head reads."""

    name: str
    groups: tuple[str, ...]
    """Amalgamated, if there are several."""
    source: Literal["trained", "untrained", "raw"] = "trained"
    regularised: bool = True

    def paper(self, kind: str) -> str:
        """What the paper has for it, by kind of head; empty where it has nothing."""
        return _PAPER.get(self.name, {}).get(kind, "")

    @property
    def key(self) -> str:
        """Fit for a folder."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())


def groups() -> list[dict[str, Any]]:
    """Feature groups to extract, as a spec has them; those of GATE's selection come besides."""

    def group(name: str, t: int = 50, prompt: str = "a photo", *techniques: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "prompt": prompt, "t": t, "taps": "legacy", "techniques": list(techniques)}

    def lora(name: str) -> dict[str, Any]:
        return {"type": "lora", "source": f"embedded/loras/{name}.safetensors"}

    return [
        group(PLAIN),
        *(group(_at(t), t) for t in TIMES),
        group("quality", 50, "a photo, best quality, sharp"),
        group("caption", 50, "{caption}"),
        group("controlnet", 50, "a photo", _CANNY),
        *(group(f"lora-{name}", 50, "a photo", lora(name)) for name in ("moderate", "overfitted")),
        group("guidance", 50, "a photo", {"type": "guidance", "scale": 7.5}),
    ]


def rows(selected: Sequence[str]) -> list[Row]:
    """All rows.

    Args:
        selected: groups of GATE's selection.
    """
    times = (PLAIN, *(_at(t) for t in TIMES))
    found = [
        Row("raw pixels", ("raw",), "raw"),
        Row("untrained backbone", (PLAIN,), "untrained"),
        Row("plain", (PLAIN,)),
        *(Row(name, (name,)) for name in TECHNIQUES),
        Row("plain + other t", (PLAIN, _at(200))),
        *(Row(f"plain + {name}", (PLAIN, name)) for name in TECHNIQUES[:5]),
        Row(f"plain at {len(times)} t", times),
        Row("the paper's recipe", RECIPE),
        Row("the paper's recipe, g1 = g2 = 0", RECIPE, regularised=False),
        Row("GATE's selection", tuple(selected)),
    ]
    if len(selected) > 1:
        found.append(Row("GATE's selection, g1 = g2 = 0", tuple(selected), regularised=False))
    return found


def single_taps(names: Sequence[str], taps: Sequence[str]) -> list[tuple[str, str]]:
    """(group, tap) of every technique and tap, the plain feature's first: what Scores are compared with gains on."""
    return [(name, tap) for name in (PLAIN, *names) for tap in taps]


def _at(t: int) -> str:
    return f"plain-t{t}"
